//! Golden bytes: what each message of the contract looks like on the wire. A change here is a
//! change of the protocol. `UPDATE_GOLDEN=1 cargo test -p proto` writes the file anew.
//!
//! The generated code is read as text to make sure that no message, no variant and no field is
//! forgotten.

mod administration;
mod engines;
mod fields;
mod fleet;
mod link;
mod membership;
mod stored;
mod types;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use prost::Message;

const GENERATED: &str = include_str!("../../src/generated/lazaret.v1.rs");

/// Bytes by name: `Message` for messages, `Message.Variant` for each variant of its oneof.
#[derive(Default)]
pub(crate) struct Golden(BTreeMap<String, Vec<u8>>);

impl Golden {
    /// Adds a value whose every field is set to something other than its default.
    pub(crate) fn add<M: Message + Default + PartialEq + Debug>(&mut self, name: &str, value: &M) {
        let bytes = value.encode_to_vec();
        assert_eq!(&M::decode(&bytes[..]).unwrap(), value, "{name}");
        let twice = self.0.insert(name.to_owned(), bytes);
        assert!(twice.is_none(), "{name} twice");
    }
}

fn all() -> Golden {
    let mut golden = Golden::default();
    types::add(&mut golden);
    link::add(&mut golden);
    engines::add(&mut golden);
    administration::add(&mut golden);
    stored::add(&mut golden);
    fleet::add(&mut golden);
    golden
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(empty)".into();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/messages.hex")
}

#[test]
fn every_message_has_the_bytes_it_always_had() {
    let lines = |golden: &Golden| -> String {
        let line = |(name, bytes): (&String, &Vec<u8>)| format!("{name} {}\n", hex(bytes));
        golden.0.iter().map(line).collect()
    };
    let now = lines(&all());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path(), &now).unwrap();
    }
    let committed = std::fs::read_to_string(path()).expect("tests/golden/messages.hex");
    let split = |text: &str| -> BTreeMap<String, String> {
        let pair = |line: &str| line.split_once(' ').map(|(a, b)| (a.into(), b.into()));
        text.lines().filter_map(pair).collect()
    };
    let (now, committed) = (split(&now), split(&committed));
    for name in now.keys().chain(committed.keys()) {
        let (now, then) = (now.get(name), committed.get(name));
        assert_eq!(now, then, "{name}: the wire format changed");
    }
}

#[test]
fn no_message_and_no_variant_is_forgotten() {
    let golden = all();
    let contract = fields::of(GENERATED);
    assert!(contract.len() > 60, "the generated code was not understood");
    for message in &contract {
        let name = &message.name;
        let bytes = golden.0.get(name);
        let bytes = bytes.unwrap_or_else(|| panic!("{name} has no golden bytes"));
        for tags in &message.fields {
            let set = fields::tags_in(bytes);
            let is_set = tags.iter().any(|tag| set.contains(tag));
            assert!(is_set, "{name}: field {tags:?} is not set");
        }
        for variant in &message.variants {
            let name = format!("{name}.{variant}");
            assert!(golden.0.contains_key(&name), "{name} has no golden bytes");
        }
    }
    let known = |name: &str| {
        let (message, variant) = name.split_once('.').unwrap_or((name, ""));
        let message = contract.iter().find(|m| m.name == message);
        message.is_some_and(|m| variant.is_empty() || m.variants.iter().any(|v| v == variant))
    };
    for name in golden.0.keys() {
        assert!(known(name), "{name} is not in the contract any more");
    }
}

/// Frames and messages that were cut or changed anywhere are refused or read as something else;
/// nothing panics.
#[test]
fn damaged_golden_bytes_hurt_nobody() {
    fn read<M: Message + Default + Debug>(bytes: &[u8]) {
        // Either is fine.
        let _ = proto::decode::<M>(bytes.to_vec().into());
    }
    for bytes in all().0.values() {
        for end in 0..bytes.len() {
            read::<proto::v1::Envelope>(&bytes[..end]);
            let mut changed = bytes.clone();
            changed[end] ^= 0xff;
            read::<proto::v1::Envelope>(&changed);
            read::<proto::v1::EngineReply>(&changed);
            read::<proto::v1::AdminRequest>(&changed);
            read::<proto::v1::EnrolRequest>(&changed);
            read::<proto::v1::EnrolTpm>(&changed);
        }
    }
}
