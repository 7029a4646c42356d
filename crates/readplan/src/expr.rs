//! Conditions as this crate evaluates them: converted from YARA-X's syntax tree.

use yara_x_parser::ast::{self, Expr as Ast, MatchAnchor};

use crate::hidden::Hidden;
use crate::pattern::PatternInfo;
use crate::probe::{Probe, decided};
use crate::required;
use crate::value::{Truth, Value};

/// An expression. Whatever is not here is [`Expr::Opaque`].
#[derive(Debug, Clone)]
pub(crate) enum Expr {
    Bool(bool),
    Int(i64),
    /// A string that is not empty.
    Text,
    /// `contains` and its kin: undefined where either side is.
    TextTest(Box<Expr>, Box<Expr>),
    Filesize,
    /// A pattern of the rule, by its index there.
    Pattern(usize, Anchor),
    /// The pattern of the loop around it.
    LoopPattern(Anchor),
    /// `#a`; `None`: of the loop.
    Count(Option<usize>),
    /// `#a in (..)`, `@a[i]`, `!a[i]`: nothing is known but that no match means zero or undefined.
    Detail {
        pattern: Option<usize>,
        /// What it is without a match.
        absent: Value,
    },
    Read(Read, Box<Expr>),
    /// Something of a module.
    Module {
        module: String,
        /// `timestamp`, `overlay.size`; empty: something else than a field by its names.
        path: String,
        kind: ModuleItem,
    },
    /// A function of a module.
    Call {
        module: String,
    },
    /// False or undefined where a literal of the plan's own does not occur, by its index among
    /// the rule's patterns; else the expression.
    Needing(usize, Box<Expr>),
    /// Another rule of the namespace.
    Rule(String),
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Defined(Box<Expr>),
    Arithmetic(Operator, Vec<Expr>),
    Compare(Comparison, Box<Expr>, Box<Expr>),
    OfPatterns(Quantifier, Vec<usize>, Anchor),
    OfExpressions(Quantifier, Vec<Expr>),
    ForOf(Quantifier, Vec<usize>, Box<Expr>),
    /// A loop over values: the body with the loop's variables unknown.
    ForIn(Quantifier, Box<Expr>),
    /// A condition that reads no pattern and no rule: YARA-X itself can tell its value. By index
    /// into the plan's probes; beside it, what can be told without YARA-X.
    Probe(usize, Box<Expr>),
    /// Never known.
    Opaque,
}

#[derive(Debug, Clone)]
pub(crate) enum Anchor {
    None,
    At(Box<Expr>),
    In(Box<Expr>, Box<Expr>),
}

impl Anchor {
    /// Its bounds have values whatever the file is: no match there is false, not undefined.
    pub(crate) fn is_defined(&self) -> bool {
        match self {
            Self::None => true,
            Self::At(at) => at.is_defined(),
            Self::In(lower, upper) => lower.is_defined() && upper.is_defined(),
        }
    }

    /// The value of what is (not) found there.
    pub(crate) fn value(&self, truth: Truth) -> Value {
        match truth {
            Truth::False if !self.is_defined() => Value::Falsy,
            truth => truth.into(),
        }
    }
}

impl Expr {
    /// A number whatever the file is. Sums may overflow, which YARA-X lets wrap.
    fn is_defined(&self) -> bool {
        match self {
            Self::Int(_) | Self::Filesize | Self::Count(_) => true,
            Self::Arithmetic(Operator::Add | Operator::Sub | Operator::Mul, operands) => {
                operands.iter().all(Self::is_defined)
            }
            _ => false,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Quantifier {
    None,
    All,
    Any,
    AtLeast(Box<Expr>),
    Percentage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Sub,
    Mul,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Gt,
    Le,
    Ge,
}

/// `uint16be(…)` and its kin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) bytes: usize,
    pub(crate) signed: bool,
    pub(crate) big_endian: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModuleItem {
    /// A field, which is undefined where the module does not apply.
    Field,
    /// A field that is false or zero there.
    Flag,
    /// Of the PE module: how many signatures there are, or something of one of them.
    Signatures,
    /// A constant, or whatever cannot be told from one.
    Constant,
}

/// Converts the condition of one rule.
pub(crate) struct Converter<'a> {
    /// The rule file's text: probes are cut from it.
    pub(crate) source: &'a [u8],
    /// The rule's patterns, without `$`.
    pub(crate) patterns: Vec<&'a str>,
    /// Those that a search finds out last: by a regular expression.
    pub(crate) slow: Vec<bool>,
    /// Modules that the file imports.
    pub(crate) imports: Vec<&'a str>,
    /// Rules of the namespace so far.
    pub(crate) rules: &'a dyn Fn(&str) -> bool,
    /// Takes a probe, gives its index.
    pub(crate) probes: &'a mut dyn FnMut(Probe) -> usize,
    /// Takes a literal, gives the index of a pattern of it.
    pub(crate) literals: &'a mut dyn FnMut(PatternInfo) -> usize,
    /// Variables of the loops around.
    pub(crate) variables: Vec<String>,
    /// What was left out so far.
    pub(crate) hidden: Hidden,
    /// Expressions around.
    pub(crate) depth: u32,
}

/// What is nested deeper is never known: all that looks at expressions calls itself for each level.
/// YARA-X takes 3,000 levels.
pub(crate) const DEPTH_MAX: u32 = 128;

impl Converter<'_> {
    /// An expression where a truth value is wanted.
    pub(crate) fn condition(&mut self, expr: &Ast<'_>) -> Expr {
        self.deeper(expr, Self::condition_here)
    }

    /// Any expression.
    fn value(&mut self, expr: &Ast<'_>) -> Expr {
        self.deeper(expr, Self::value_here)
    }

    fn deeper(&mut self, expr: &Ast<'_>, convert: fn(&mut Self, &Ast<'_>) -> Expr) -> Expr {
        if self.depth >= DEPTH_MAX {
            return self.opaque(expr);
        }
        self.depth += 1;
        let converted = convert(self, expr);
        self.depth -= 1;
        converted
    }

    fn condition_here(&mut self, expr: &Ast<'_>) -> Expr {
        let hidden = self.hidden.clone();
        let converted = match expr {
            Ast::And(all) => return Expr::And(all.operands().map(|e| self.condition(e)).collect()),
            Ast::Or(any) => return Expr::Or(any.operands().map(|e| self.condition(e)).collect()),
            Ast::Not(not) => return Expr::Not(Box::new(self.condition(&not.operand))),
            other => self.value(other),
        };
        if decided(&converted) {
            return converted;
        }
        match self.probe(expr) {
            Some(probe) => {
                // YARA-X tells its value, with all that it reads.
                let literals = self.hidden.literals;
                self.hidden = Hidden { literals, ..hidden };
                Expr::Probe((self.probes)(probe), Box::new(converted))
            }
            None => converted,
        }
    }

    fn value_here(&mut self, expr: &Ast<'_>) -> Expr {
        match expr {
            Ast::True { .. } => Expr::Bool(true),
            Ast::False { .. } => Expr::Bool(false),
            Ast::Filesize { .. } => Expr::Filesize,
            Ast::LiteralInteger(integer) if !integer.is_unsigned => Expr::Int(integer.value),
            Ast::LiteralString(text) if !text.value.is_empty() => Expr::Text,
            Ast::Contains(b) | Ast::StartsWith(b) | Ast::EndsWith(b) => self.text_test(b, false),
            Ast::IContains(b) | Ast::IStartsWith(b) | Ast::IEndsWith(b) | Ast::IEquals(b) => {
                self.text_test(b, true)
            }
            Ast::Ident(ident) => self.name(ident.name),
            Ast::PatternMatch(found) => self.matched(found, expr),
            Ast::PatternCount(count) => self.counted(count, expr),
            Ast::PatternOffset(detail) | Ast::PatternLength(detail) => self.detail(detail, expr),
            Ast::Lookup(_) | Ast::FieldAccess(_) => {
                self.hide(expr);
                self.field(expr)
            }
            Ast::FuncCall(call) => {
                let converted = self.call(call, expr);
                self.needing(required::of_exports(call), converted)
            }
            Ast::Defined(unary) => Expr::Defined(Box::new(self.value(&unary.operand))),
            Ast::Not(_) | Ast::And(_) | Ast::Or(_) => self.condition(expr),
            Ast::Add(n) => self.arithmetic(Operator::Add, n),
            Ast::Sub(n) => self.arithmetic(Operator::Sub, n),
            Ast::Mul(n) => self.arithmetic(Operator::Mul, n),
            Ast::BitwiseAnd(b) => self.bitwise(Operator::And, b),
            Ast::BitwiseXor(b) => self.bitwise(Operator::Xor, b),
            Ast::BitwiseOr(b) => self.bitwise(Operator::Or, b),
            Ast::Shl(b) => self.bitwise(Operator::Shl, b),
            Ast::Shr(b) => self.bitwise(Operator::Shr, b),
            Ast::Eq(b) => {
                let converted = self.compared(Comparison::Eq, b);
                self.needing(required::of_version_info(&b.lhs, &b.rhs, false), converted)
            }
            Ast::Ne(b) => self.compared(Comparison::Ne, b),
            Ast::Lt(b) => self.compared(Comparison::Lt, b),
            Ast::Gt(b) => self.compared(Comparison::Gt, b),
            Ast::Le(b) => self.compared(Comparison::Le, b),
            Ast::Ge(b) => self.compared(Comparison::Ge, b),
            Ast::Of(of) => self.of(of),
            Ast::ForOf(for_of) => {
                let quantifier = self.quantifier(&for_of.quantifier);
                let patterns = self.pattern_set(&for_of.pattern_set);
                Expr::ForOf(quantifier, patterns, Box::new(self.condition(&for_of.body)))
            }
            Ast::ForIn(for_in) => self.for_in(for_in),
            _ => self.opaque(expr),
        }
    }

    /// `contains` and its kin.
    fn text_test(&mut self, b: &ast::BinaryExpr<'_>, ignores_case: bool) -> Expr {
        let (left, right) = (self.value(&b.lhs), self.value(&b.rhs));
        let test = Expr::TextTest(Box::new(left), Box::new(right));
        let text = required::of_version_info(&b.lhs, &b.rhs, ignores_case);
        self.needing(text, test)
    }

    fn matched(&mut self, found: &ast::PatternMatch<'_>, expr: &Ast<'_>) -> Expr {
        let anchor = self.anchor(found.anchor.as_ref());
        match self.pattern(found.identifier.name) {
            Named::Loop => Expr::LoopPattern(anchor),
            Named::Pattern(index) => Expr::Pattern(index, anchor),
            Named::Unknown => self.opaque(expr),
        }
    }

    /// `#a`, `#a in (..)`.
    fn counted(&mut self, count: &ast::IdentWithRange<'_>, expr: &Ast<'_>) -> Expr {
        let named = self.pattern(count.identifier.name);
        let range = match (named, &count.range) {
            (Named::Unknown, _) => return self.opaque(expr),
            (_, None) => return Expr::Count(named.index()),
            (_, Some(range)) => range,
        };
        self.hide(expr);
        let is_number = |e: &Ast<'_>| matches!(e, Ast::LiteralInteger(_) | Ast::Filesize { .. });
        let is_defined = is_number(&range.lower_bound) && is_number(&range.upper_bound);
        Expr::Detail {
            pattern: named.index(),
            absent: match is_defined {
                true => Value::Int(0, 0),
                false => Value::Falsy,
            },
        }
    }

    /// `@a[i]`, `!a[i]`.
    fn detail(&mut self, detail: &ast::IdentWithIndex<'_>, expr: &Ast<'_>) -> Expr {
        self.hide(expr);
        match self.pattern(detail.identifier.name) {
            Named::Unknown => Expr::Opaque,
            named => Expr::Detail {
                pattern: named.index(),
                absent: Value::Undefined,
            },
        }
    }

    fn for_in(&mut self, for_in: &ast::ForIn<'_>) -> Expr {
        let quantifier = self.quantifier(&for_in.quantifier);
        match &for_in.iterable {
            ast::Iterable::Range(range) => {
                self.hide(&range.lower_bound);
                self.hide(&range.upper_bound);
            }
            ast::Iterable::ExprTuple(items) => items.iter().for_each(|e| self.hide(e)),
            ast::Iterable::Expr(expr) => self.hide(expr),
        }
        let outer = self.variables.len();
        let names = for_in.variables.iter().map(|v| v.name.to_owned());
        self.variables.extend(names);
        let body = self.condition(&for_in.body);
        self.variables.truncate(outer);
        Expr::ForIn(quantifier, Box::new(body))
    }

    /// A comparison, undefined where its left side is.
    fn compared(&mut self, comparison: Comparison, b: &ast::BinaryExpr<'_>) -> Expr {
        let converted = self.compare(comparison, b);
        self.needing(required::of_section_index(&b.lhs), converted)
    }

    /// The expression, which is false or undefined without the literal.
    fn needing(&mut self, literal: Option<PatternInfo>, expr: Expr) -> Expr {
        let known = self.imports.contains(&"pe") && !self.variables.iter().any(|v| v == "pe");
        match literal.filter(|_| known) {
            Some(literal) => {
                self.hidden.literals = true;
                Expr::Needing((self.literals)(literal), Box::new(expr))
            }
            None => expr,
        }
    }

    fn name(&self, name: &str) -> Expr {
        if self.variables.iter().any(|variable| variable == name) {
            Expr::Opaque
        } else if (self.rules)(name) {
            Expr::Rule(name.to_owned())
        } else {
            Expr::Opaque
        }
    }

    /// `module.field`, `module.list[i].field`.
    fn field(&mut self, expr: &Ast<'_>) -> Expr {
        match (self.module(expr), expr) {
            (Some(module), Ast::FieldAccess(access)) => {
                let name = match access.operands().nth(1) {
                    Some(Ast::Ident(ident)) => ident.name,
                    _ => "",
                };
                // Constants are upper case by convention; a module may give a field any default.
                let kind = match name {
                    _ if module == "pe" && required::is_of_signatures(expr) => {
                        ModuleItem::Signatures
                    }
                    "" => ModuleItem::Constant,
                    name if name.chars().all(|c| !c.is_ascii_lowercase()) => ModuleItem::Constant,
                    name if name.starts_with("is_") => ModuleItem::Flag,
                    _ => ModuleItem::Field,
                };
                // `pe.sections[0].characteristics` begins with a look-up: no name of it is told.
                let names = access.operands().map(|part| match part {
                    Ast::Ident(ident) => Some(ident.name),
                    _ => None,
                });
                let path = names.collect::<Option<Vec<_>>>();
                let path = path.map_or_else(Vec::new, |names| names[1..].to_vec());
                Expr::Module {
                    module,
                    path: path.join("."),
                    kind,
                }
            }
            (Some(module), _) => Expr::Module {
                module,
                path: String::new(),
                kind: ModuleItem::Flag,
            },
            (None, _) => Expr::Opaque,
        }
    }

    /// The module at the root of an access, where it is not hidden by a variable.
    pub(crate) fn module(&self, expr: &Ast<'_>) -> Option<String> {
        match expr {
            Ast::Ident(ident) => {
                let hidden = self.variables.iter().any(|variable| variable == ident.name);
                (!hidden && self.imports.contains(&ident.name)).then(|| ident.name.to_owned())
            }
            Ast::FieldAccess(access) => self.module(access.first()),
            Ast::Lookup(lookup) => self.module(&lookup.primary),
            Ast::FuncCall(call) => self.module(call.object.as_ref()?),
            _ => None,
        }
    }

    fn call(&mut self, call: &ast::FuncCall<'_>, expr: &Ast<'_>) -> Expr {
        let Some(object) = &call.object else {
            return match (read(call.identifier.name), call.args.as_slice()) {
                (Some(read), [at]) => Expr::Read(read, Box::new(self.value(at))),
                _ => self.opaque(expr),
            };
        };
        self.hide(expr);
        match self.module(object) {
            Some(module) => Expr::Call { module },
            None => Expr::Opaque,
        }
    }

    fn arithmetic(&mut self, operator: Operator, nary: &ast::NAryExpr<'_>) -> Expr {
        Expr::Arithmetic(operator, nary.operands().map(|e| self.value(e)).collect())
    }

    fn bitwise(&mut self, operator: Operator, binary: &ast::BinaryExpr<'_>) -> Expr {
        let operands = vec![self.value(&binary.lhs), self.value(&binary.rhs)];
        Expr::Arithmetic(operator, operands)
    }

    fn compare(&mut self, comparison: Comparison, binary: &ast::BinaryExpr<'_>) -> Expr {
        let (left, right) = (self.value(&binary.lhs), self.value(&binary.rhs));
        Expr::Compare(comparison, Box::new(left), Box::new(right))
    }

    fn of(&mut self, of: &ast::Of<'_>) -> Expr {
        let quantifier = self.quantifier(&of.quantifier);
        match &of.items {
            ast::OfItems::PatternSet(set) => {
                let anchor = self.anchor(of.anchor.as_ref());
                Expr::OfPatterns(quantifier, self.pattern_set(set), anchor)
            }
            ast::OfItems::BoolExprTuple(items) => {
                let items = items.iter().map(|item| self.condition(item)).collect();
                Expr::OfExpressions(quantifier, items)
            }
        }
    }

    fn quantifier(&mut self, quantifier: &ast::Quantifier<'_>) -> Quantifier {
        match quantifier {
            ast::Quantifier::None { .. } => Quantifier::None,
            ast::Quantifier::All { .. } => Quantifier::All,
            ast::Quantifier::Any { .. } => Quantifier::Any,
            ast::Quantifier::Percentage(share) => {
                self.hide(share);
                Quantifier::Percentage
            }
            ast::Quantifier::Expr(expr) => Quantifier::AtLeast(Box::new(self.value(expr))),
        }
    }

    fn anchor(&mut self, anchor: Option<&MatchAnchor<'_>>) -> Anchor {
        match anchor {
            None => Anchor::None,
            Some(MatchAnchor::At(at)) => Anchor::At(Box::new(self.value(&at.expr))),
            Some(MatchAnchor::In(within)) => {
                let lower = self.value(&within.range.lower_bound);
                Anchor::In(
                    Box::new(lower),
                    Box::new(self.value(&within.range.upper_bound)),
                )
            }
        }
    }

    pub(crate) fn pattern(&self, identifier: &str) -> Named {
        let name = identifier.trim_start_matches(['$', '#', '@', '!']);
        if name.is_empty() {
            return Named::Loop;
        }
        let found = self.patterns.iter().position(|pattern| *pattern == name);
        found.map_or(Named::Unknown, Named::Pattern)
    }

    /// The patterns of a set, those that are found out fast first.
    pub(crate) fn pattern_set(&self, set: &ast::PatternSet<'_>) -> Vec<usize> {
        let mut patterns = self.patterns_of(set);
        patterns.sort_by_key(|index| self.slow.get(*index));
        patterns
    }

    fn patterns_of(&self, set: &ast::PatternSet<'_>) -> Vec<usize> {
        let all = self.patterns.iter().enumerate();
        match set {
            ast::PatternSet::Them { .. } => all.map(|(index, _)| index).collect(),
            ast::PatternSet::Set(items) => {
                let in_set = |name: &str| {
                    items.iter().any(|item| {
                        let wanted = item.identifier.trim_start_matches('$');
                        let wanted = wanted.trim_end_matches('*');
                        match item.wildcard {
                            true => name.starts_with(wanted),
                            false => name == wanted,
                        }
                    })
                };
                all.filter(|(_, name)| in_set(name))
                    .map(|(index, _)| index)
                    .collect()
            }
        }
    }
}

/// What an identifier with a sigil names.
#[derive(Clone, Copy)]
pub(crate) enum Named {
    Loop,
    Pattern(usize),
    Unknown,
}

impl Named {
    fn index(self) -> Option<usize> {
        match self {
            Self::Pattern(index) => Some(index),
            Self::Loop | Self::Unknown => None,
        }
    }
}

/// `uint16be` and its kin, by name.
pub(crate) fn read(name: &str) -> Option<Read> {
    let (rest, big_endian) = match name.strip_suffix("be") {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let (signed, bytes) = match rest {
        "uint8" => (false, 1),
        "uint16" => (false, 2),
        "uint32" => (false, 4),
        "int8" => (true, 1),
        "int16" => (true, 2),
        "int32" => (true, 4),
        _ => return None,
    };
    Some(Read {
        bytes,
        signed,
        big_endian,
    })
}
