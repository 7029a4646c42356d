//! Parts of conditions that YARA-X can tell the value of without looking for patterns.

use std::ops::Range;

use yara_x_parser::ast::dfs::{DFSEvent, DFSIter};
use yara_x_parser::ast::{self, Expr as Ast, WithSpan};

use crate::expr::{Converter, DEPTH_MAX, Expr, read};

/// Functions that read as much as their arguments say, or everything.
const EXPENSIVE: [&str; 2] = ["hash", "math"];

/// A condition that YARA-X can decide by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probe {
    /// The modules that it needs.
    pub imports: Vec<String>,
    /// The expression, as in the rule.
    pub text: String,
    /// It may read the whole content (a hash, entropy): worth deciding last.
    pub expensive: bool,
    /// What it reads of the content, as offsets and lengths; `None`: only YARA-X knows.
    pub reads: Option<Vec<(u64, u64)>>,
}

impl Converter<'_> {
    /// The expression as a probe, where it reads neither patterns nor rules nor variables.
    pub(crate) fn probe(&self, expr: &Ast<'_>) -> Option<Probe> {
        let mut expensive = false;
        let mut imports = Vec::new();
        let mut locals = Vec::new();
        if !self.is_pure(expr, &mut locals, &mut imports, &mut expensive, 0) {
            return None;
        }
        let text = self.source.get(extent(expr))?;
        imports.sort();
        imports.dedup();
        Some(Probe {
            imports,
            text: std::str::from_utf8(text).ok()?.to_owned(),
            expensive,
            reads: self.fixed_reads(expr),
        })
    }

    /// What an expression reads, where it has nothing of a module and reads fixed places only.
    fn fixed_reads(&self, expr: &Ast<'_>) -> Option<Vec<(u64, u64)>> {
        let mut reads = Vec::new();
        for event in DFSIter::new(expr) {
            match event {
                DFSEvent::Enter(Ast::FuncCall(call)) if call.object.is_none() => {
                    let read = read(call.identifier.name)?;
                    let [Ast::LiteralInteger(at)] = call.args.as_slice() else {
                        return None;
                    };
                    let at = u64::try_from(at.value).ok().filter(|_| !at.is_unsigned)?;
                    reads.push((at, read.bytes as u64));
                }
                DFSEvent::Enter(Ast::FuncCall(_) | Ast::Entrypoint { .. }) => return None,
                DFSEvent::Enter(Ast::Ident(ident)) if self.imports.contains(&ident.name) => {
                    return None;
                }
                DFSEvent::Enter(_) | DFSEvent::Leave(_) => {}
            }
        }
        Some(reads)
    }

    fn is_pure(
        &self,
        expr: &Ast<'_>,
        locals: &mut Vec<String>,
        imports: &mut Vec<String>,
        expensive: &mut bool,
        depth: u32,
    ) -> bool {
        if depth >= DEPTH_MAX {
            return false;
        }
        let mut all = |exprs: &mut dyn Iterator<Item = &Ast<'_>>, locals: &mut Vec<String>| {
            let mut pure = true;
            for expr in exprs {
                pure &= self.is_pure(expr, locals, imports, expensive, depth + 1);
            }
            pure
        };
        match expr {
            Ast::PatternMatch(_)
            | Ast::PatternCount(_)
            | Ast::PatternOffset(_)
            | Ast::PatternLength(_)
            | Ast::ForOf(_)
            | Ast::With(_) => false,
            Ast::Of(of) => match &of.items {
                ast::OfItems::PatternSet(_) => false,
                ast::OfItems::BoolExprTuple(items) => {
                    of.anchor.is_none()
                        && all(&mut quantifier_parts(&of.quantifier), locals)
                        && all(&mut items.iter(), locals)
                }
            },
            Ast::ForIn(inner) => {
                let parts: Vec<&Ast<'_>> = match &inner.iterable {
                    ast::Iterable::Range(range) => vec![&range.lower_bound, &range.upper_bound],
                    ast::Iterable::ExprTuple(items) => items.iter().collect(),
                    ast::Iterable::Expr(expr) => vec![expr],
                };
                if !all(&mut parts.into_iter(), locals)
                    || !all(&mut quantifier_parts(&inner.quantifier), locals)
                {
                    return false;
                }
                let outer = locals.len();
                locals.extend(inner.variables.iter().map(|v| v.name.to_owned()));
                let pure = all(&mut std::iter::once(&inner.body), locals);
                locals.truncate(outer);
                pure
            }
            Ast::Ident(ident) => {
                let name = ident.name;
                if locals.iter().any(|local| local == name) {
                    return true;
                }
                if self.variables.iter().any(|variable| variable == name) || (self.rules)(name) {
                    return false;
                }
                if self.imports.contains(&name) {
                    *expensive |= EXPENSIVE.contains(&name);
                    imports.push(name.to_owned());
                }
                true
            }
            // The names behind a dot are the field's, whatever else is called so.
            Ast::FieldAccess(access) => {
                let mut operands = access.operands();
                let first = operands.next();
                let fields = operands.filter(|e| !matches!(e, Ast::Ident(_)));
                all(&mut first.into_iter().chain(fields), locals)
            }
            other => all(&mut other.children(), locals),
        }
    }
}

/// Where an expression stands, with all its parts: the span of a call leaves out what it is a
/// method of.
fn extent(expr: &Ast<'_>) -> Range<usize> {
    let mut extent = expr.span().range();
    for event in DFSIter::new(expr) {
        if let DFSEvent::Enter(part) = event {
            let part = part.span().range();
            extent = extent.start.min(part.start)..extent.end.max(part.end);
        }
    }
    extent
}

fn quantifier_parts<'e, 's>(
    quantifier: &'e ast::Quantifier<'s>,
) -> impl Iterator<Item = &'e Ast<'s>> {
    match quantifier {
        ast::Quantifier::Percentage(expr) | ast::Quantifier::Expr(expr) => Some(expr),
        ast::Quantifier::None { .. }
        | ast::Quantifier::All { .. }
        | ast::Quantifier::Any { .. } => None,
    }
    .into_iter()
}

/// Known from size, literals and constants alone: no probe helps. Reads of fixed places count,
/// as content at hand decides them.
pub(crate) fn decided(expr: &Expr) -> bool {
    match expr {
        Expr::Bool(_) | Expr::Int(_) | Expr::Filesize | Expr::Rule(_) => true,
        Expr::Read(_, at) => decided(at),
        Expr::Arithmetic(_, parts) => parts.iter().all(decided),
        Expr::Compare(_, left, right) => decided(left) && decided(right),
        _ => false,
    }
}
