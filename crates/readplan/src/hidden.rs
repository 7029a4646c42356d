//! What conditions have that is left out of their [`Expr`]: it is never known, but YARA-X reads it.

use yara_x_parser::ast::dfs::{DFSEvent, DFSIter};
use yara_x_parser::ast::{self, Expr as Ast};

use crate::expr::{Converter, Expr, Named};

/// Modules whose functions read what the module found, and no content...
const WITHOUT_CONTENT: [&str; 6] = ["pe", "elf", "macho", "dotnet", "lnk", "string"];
/// ...but for these.
const WITH_CONTENT: [&str; 1] = ["calculate_checksum"];

/// What a condition has besides what its [`Expr`] shows: parts that were left out of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hidden {
    /// Patterns of the rule.
    pub(crate) patterns: Vec<usize>,
    /// Names that other rules may have.
    pub(crate) rules: Vec<String>,
    /// Something of a module.
    pub(crate) modules: bool,
    /// Something of the PE module that is told by a literal's absence from the file, but read by
    /// YARA-X from what it is given.
    pub(crate) literals: bool,
    /// Reads of content at places that only YARA-X knows.
    pub(crate) content: bool,
}

impl Converter<'_> {
    /// An expression that is never known.
    pub(crate) fn opaque(&mut self, expr: &Ast<'_>) -> Expr {
        self.hide(expr);
        Expr::Opaque
    }

    /// Notes what an expression that is left out has.
    pub(crate) fn hide(&mut self, expr: &Ast<'_>) {
        for event in DFSIter::new(expr) {
            let DFSEvent::Enter(part) = event else {
                continue;
            };
            match part {
                Ast::PatternMatch(found) => self.hide_pattern(found.identifier.name),
                Ast::PatternCount(count) => self.hide_pattern(count.identifier.name),
                Ast::PatternOffset(detail) | Ast::PatternLength(detail) => {
                    self.hide_pattern(detail.identifier.name);
                }
                Ast::Of(of) => {
                    if let ast::OfItems::PatternSet(set) = &of.items {
                        let set = self.pattern_set(set);
                        self.hidden.patterns.extend(set);
                    }
                }
                Ast::ForOf(for_of) => {
                    let set = self.pattern_set(&for_of.pattern_set);
                    self.hidden.patterns.extend(set);
                }
                Ast::FuncCall(call) => self.hide_call(call),
                Ast::Ident(ident) => {
                    self.hidden.modules |= self.imports.contains(&ident.name);
                    if (self.rules)(ident.name) {
                        self.hidden.rules.push(ident.name.to_owned());
                    }
                }
                Ast::Entrypoint { .. } => self.hidden.content = true,
                // Behind a variable that is called like a module may be another.
                Ast::ForIn(inner) => {
                    let mut names = inner.variables.iter().map(|v| v.name);
                    self.hidden.content |= names.any(|name| self.imports.contains(&name));
                }
                Ast::With(_) => self.hidden.content = true,
                _ => {}
            }
        }
    }

    fn hide_pattern(&mut self, identifier: &str) {
        match self.pattern(identifier) {
            Named::Pattern(index) => self.hidden.patterns.push(index),
            // The loop that it is of has its patterns.
            Named::Loop => {}
            Named::Unknown => self.hidden.content = true,
        }
    }

    fn hide_call(&mut self, call: &ast::FuncCall<'_>) {
        let module = call.object.as_ref().and_then(|object| self.module(object));
        let reads_none = module.is_some_and(|module| {
            WITHOUT_CONTENT.contains(&module.as_str())
                && !WITH_CONTENT.contains(&call.identifier.name)
        });
        self.hidden.modules = true;
        self.hidden.content |= !reads_none;
    }
}
