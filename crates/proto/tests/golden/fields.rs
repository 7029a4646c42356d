//! Reads the generated code as text: messages, their fields, the variants of their oneofs.

use std::collections::{BTreeMap, BTreeSet};

/// A message of the contract.
#[derive(Debug, Default)]
pub(crate) struct Contract {
    pub(crate) name: String,
    /// Field numbers; those of a oneof together, one of them is set.
    pub(crate) fields: Vec<Vec<u64>>,
    pub(crate) variants: Vec<String>,
}

/// Every message in the generated code.
pub(crate) fn of(generated: &str) -> Vec<Contract> {
    let variants = variants(generated);
    let mut messages = Vec::new();
    for piece in generated.split("\npub struct ").skip(1) {
        let name: String = piece.chars().take_while(|c| c.is_alphanumeric()).collect();
        let body = match piece.get(name.len()..) {
            Some(rest) if rest.starts_with(" {}") => "",
            rest => rest.and_then(|rest| rest.split("\n}").next()).unwrap_or(""),
        };
        let mut message = Contract {
            name,
            ..Contract::default()
        };
        for attribute in body.split("#[prost(").skip(1) {
            let attribute = attribute.split(")]").next().unwrap_or("");
            message.fields.push(numbers(attribute));
            if let Some(oneof) = attribute.split("oneof = \"").nth(1) {
                let path = oneof.split('"').next().unwrap_or("");
                message.variants = variants.get(path).cloned().unwrap_or_default();
                assert!(!message.variants.is_empty(), "{path} was not understood");
            }
        }
        messages.push(message);
    }
    messages
}

/// The numbers in `tag = "1"` or `tags = "1, 2"`.
fn numbers(attribute: &str) -> Vec<u64> {
    let list = attribute.rsplit("tag").next().unwrap_or("");
    let list = list.split('"').nth(1).unwrap_or("");
    let numbers = list.split(", ").map(|number| number.parse().unwrap());
    numbers.collect()
}

/// Variants by `module::Enum`.
fn variants(generated: &str) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for piece in generated.split("\npub mod ").skip(1) {
        let module = piece.split(' ').next().unwrap_or("");
        let body = piece.split("\n}").next().unwrap_or("");
        let Some(body) = body.split("::prost::Oneof)]").nth(1) else {
            continue;
        };
        let name = body.split("pub enum ").nth(1).unwrap_or("");
        let name = name.split(' ').next().unwrap_or("");
        let variant = |line: &str| {
            let (variant, _) = line.trim().strip_suffix("),")?.split_once('(')?;
            let is_name = variant.starts_with(|c: char| c.is_ascii_uppercase());
            is_name.then(|| variant.to_owned())
        };
        let list = body.lines().filter_map(variant).collect();
        all.insert(format!("{module}::{name}"), list);
    }
    all
}

/// The field numbers at the top level of an encoded message.
pub(crate) fn tags_in(mut bytes: &[u8]) -> BTreeSet<u64> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let mut tags = BTreeSet::new();
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).unwrap();
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).unwrap();
        tags.insert(tag.into());
    }
    tags
}
