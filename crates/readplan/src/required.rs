//! What expressions over YARA-X's PE module need of a file, told without running the module.

use literal_filter::LITERAL_MAX;
use yara_x_parser::ast::{Expr as Ast, FuncCall};

use crate::needle;
use crate::pattern::{PatternInfo, part_of};

/// `pe.exports("name")`: the module reads names of functions as they stand in the file, and
/// compares them without regard to case.
pub(crate) fn of_exports(call: &FuncCall<'_>) -> Option<PatternInfo> {
    let is_exports = matches!(&call.object, Some(Ast::Ident(name)) if name.name == "pe")
        && call.identifier.name == "exports";
    match call.args.as_slice() {
        [Ast::LiteralString(name)] if is_exports => literal(name.value.as_ref(), false),
        _ => None,
    }
}

/// `pe.section_index("name") >= 0` and its kin: the module reads names of sections as they stand in
/// the file, and what is compared is undefined where there is none.
pub(crate) fn of_section_index(left: &Ast<'_>) -> Option<PatternInfo> {
    let Ast::FuncCall(call) = left else {
        return None;
    };
    let is_index = matches!(&call.object, Some(Ast::Ident(name)) if name.name == "pe")
        && call.identifier.name == "section_index";
    match call.args.as_slice() {
        [Ast::LiteralString(name)] if is_index => literal(name.value.as_ref(), false),
        _ => None,
    }
}

/// `pe.version_info["key"] contains "text"` and its kin: the module reads values that stand in
/// the file in UTF-16.
pub(crate) fn of_version_info(
    left: &Ast<'_>,
    right: &Ast<'_>,
    ignores_case: bool,
) -> Option<PatternInfo> {
    let Ast::Lookup(lookup) = left else {
        return None;
    };
    match (&lookup.primary, right) {
        // By Unicode the Kelvin sign is a k, and a dotted I an i: what is looked for knows ASCII.
        (_, Ast::LiteralString(text))
            if ignores_case && text.value.iter().any(|byte| b"kKiI".contains(byte)) =>
        {
            None
        }
        (Ast::FieldAccess(access), Ast::LiteralString(text))
            if names(access.operands(), &["pe", "version_info"]) =>
        {
            literal(text.value.as_ref(), true)
        }
        _ => None,
    }
}

fn literal(text: &[u8], wide: bool) -> Option<PatternInfo> {
    if text.is_empty() || !text.is_ascii() {
        return None;
    }
    let bytes: Vec<u8> = match wide {
        true => text.iter().flat_map(|byte| [*byte, 0]).collect(),
        false => text.to_vec(),
    };
    let part = part_of(&bytes, true, wide, bytes.len() <= LITERAL_MAX);
    Some(PatternInfo {
        literals: vec![part],
        needles: needle::of_text(text, true, !wide, wide),
        sample: bytes,
        ..PatternInfo::resident()
    })
}

/// `pe.number_of_signatures`, `pe.signatures[i].subject`.
pub(crate) fn is_of_signatures(expr: &Ast<'_>) -> bool {
    let Ast::FieldAccess(access) = expr else {
        return false;
    };
    match access.first() {
        Ast::Ident(_) => {
            names(access.operands(), &["pe", "number_of_signatures"])
                || names(access.operands(), &["pe", "is_signed"])
        }
        Ast::Lookup(lookup) => match &lookup.primary {
            Ast::FieldAccess(list) => names(list.operands(), &["pe", "signatures"]),
            _ => false,
        },
        _ => false,
    }
}

/// The expressions are just these identifiers.
fn names<'e, 's: 'e>(mut exprs: impl Iterator<Item = &'e Ast<'s>>, wanted: &[&str]) -> bool {
    let all = wanted
        .iter()
        .all(|wanted| matches!(exprs.next(), Some(Ast::Ident(ident)) if ident.name == *wanted));
    all && exprs.next().is_none()
}
