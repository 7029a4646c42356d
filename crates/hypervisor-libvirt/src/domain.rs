//! What libvirt says of a domain, as the record of a VM.

use std::collections::BTreeSet;

use hypervisor::{Mac, NAME_MAX_BYTES, Power, TAGS_MAX, Vm, VmId};
use roxmltree::{Document, Node, ParsingOptions};

use crate::wire::{DomainRef, DomainState};

/// Where our tags are in a domain's metadata.
pub(crate) const TAGS_NAMESPACE: &str = "urn:lazaret:tags:1";
pub(crate) const TAGS_PREFIX: &str = "lazaret";

const STATE_RUNNING: i32 = 1;
const STATE_BLOCKED: i32 = 2;
const STATE_PAUSED: i32 = 3;
const STATE_SHUTTING_DOWN: i32 = 4;
const STATE_OFF: i32 = 5;
const STATE_CRASHED: i32 = 6;
const STATE_SLEEPING: i32 = 7;
const PAUSED_FOR_MIGRATION: i32 = 2;
/// Elements of a description; real ones have some hundreds.
const NODES_MAX: u32 = 100_000;

/// The id of a domain's VM: its uuid as text.
pub(crate) fn vm_id(uuid: &[u8; 16]) -> VmId {
    VmId::new(&uuid_text(uuid)).expect("a uuid's text is short")
}

pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts: [String; 5] = [
        hex(&uuid[..4]),
        hex(&uuid[4..6]),
        hex(&uuid[6..8]),
        hex(&uuid[8..10]),
        hex(&uuid[10..]),
    ];
    parts.join("-")
}

/// The uuid that this text writes.
pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b'-')
        .map(|byte| char::from(byte).to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let digits: [u8; 32] = digits.try_into().ok()?;
    Some(std::array::from_fn(|i| {
        digits[2 * i] << 4 | digits[2 * i + 1]
    }))
}

impl DomainState {
    pub(crate) fn power(self, domain: &DomainRef) -> Power {
        match self.state {
            STATE_RUNNING | STATE_BLOCKED | STATE_SHUTTING_DOWN => Power::Running,
            // Memory stays where it is, and nothing runs.
            STATE_PAUSED | STATE_SLEEPING => Power::Paused,
            STATE_OFF | STATE_CRASHED => Power::Off,
            // Xen says so of a guest that waits for work.
            _ if domain.number >= 0 => Power::Running,
            _ => Power::Unknown,
        }
    }

    /// Paused at either end of a live migration.
    pub(crate) fn is_paused_for_migration(self) -> bool {
        self.state == STATE_PAUSED && self.reason == PAUSED_FOR_MIGRATION
    }
}

/// The record of a domain that has this description. One that cannot be read gives the record
/// that a domain without a description would have.
pub(crate) fn record(domain: &DomainRef, xml: &str) -> Vm {
    let mut vm = Vm::new(vm_id(&domain.uuid), &domain.name);
    vm.smbios_uuid = Some(domain.uuid);
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: NODES_MAX,
        ..ParsingOptions::default()
    };
    let Ok(document) = Document::parse_with_options(xml, options) else {
        return vm;
    };
    let root = document.root_element();
    let children = |parent: &str| -> Vec<Node<'_, '_>> {
        root.children()
            .filter(|node| node.has_tag_name(parent))
            .flat_map(|node| node.children())
            .collect()
    };
    vm.macs = children("devices")
        .iter()
        .filter(|node| node.has_tag_name("interface"))
        .flat_map(Node::children)
        .filter(|node| node.has_tag_name("mac"))
        .filter_map(|node| node.attribute("address")?.parse::<Mac>().ok())
        .collect();
    if let Some(shown) = shown_uuid(&children("sysinfo")) {
        vm.smbios_uuid = Some(shown);
    }
    vm.tags = tags(&children("metadata"));
    vm
}

/// The uuid of `<sysinfo><system><entry name='uuid'>`, where one is set.
fn shown_uuid(sysinfo: &[Node<'_, '_>]) -> Option<[u8; 16]> {
    sysinfo
        .iter()
        .filter(|node| node.has_tag_name("system"))
        .flat_map(Node::children)
        .find(|node| node.has_tag_name("entry") && node.attribute("name") == Some("uuid"))
        .and_then(|node| parse_uuid(node.text()?.trim()))
}

fn tags(metadata: &[Node<'_, '_>]) -> BTreeSet<String> {
    metadata
        .iter()
        .filter(|node| node.has_tag_name((TAGS_NAMESPACE, "tags")))
        .flat_map(Node::children)
        .filter(|node| node.has_tag_name((TAGS_NAMESPACE, "tag")))
        .filter_map(|node| node.text())
        .filter(|tag| tag.len() <= NAME_MAX_BYTES)
        .take(TAGS_MAX)
        .map(str::to_owned)
        .collect()
}

/// The element that holds these tags; `None` where there are none.
pub(crate) fn tags_element(tags: &BTreeSet<String>) -> Option<String> {
    let escape = |tag: &String| {
        let tag = tag.replace('&', "&amp;").replace('<', "&lt;");
        format!("<tag>{}</tag>", tag.replace('>', "&gt;"))
    };
    let all: String = tags.iter().map(escape).collect();
    (!tags.is_empty()).then(|| format!("<tags>{all}</tags>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: [u8; 16] = *b"\x6b\xa7\xb8\x10\x9d\xad\x11\xd1\x80\xb4\x00\xc0\x4f\xd4\x30\xc8";

    fn domain() -> DomainRef {
        DomainRef {
            name: "web".to_owned(),
            uuid: UUID,
            number: 1,
        }
    }

    #[test]
    fn a_description_as_libvirt_writes_it() {
        let xml = "<domain type='kvm'><name>web</name>
            <metadata><lazaret:tags xmlns:lazaret='urn:lazaret:tags:1'>
              <lazaret:tag>a&amp;b</lazaret:tag><lazaret:tag>c</lazaret:tag>
            </lazaret:tags><other/></metadata>
            <sysinfo type='smbios'><system><entry name='uuid'>00000000-0000-0000-0000-0000000000ff</entry></system></sysinfo>
            <devices><interface type='bridge'><mac address='52:54:00:77:00:51'/></interface>
              <interface type='user'><mac address='nonsense'/></interface></devices></domain>";
        let vm = record(&domain(), xml);
        assert_eq!(vm.id.as_str(), "6ba7b810-9dad-11d1-80b4-00c04fd430c8");
        assert_eq!(vm.macs.len(), 1);
        assert_eq!(vm.smbios_uuid.expect("a uuid")[15], 255);
        let tags: Vec<&str> = vm.tags.iter().map(String::as_str).collect();
        assert_eq!(tags, ["a&b", "c"]);
    }

    #[test]
    fn a_description_that_is_none() {
        for xml in [
            "",
            "<domain",
            "<!DOCTYPE x [<!ENTITY a 'b'>]><domain>&a;</domain>",
        ] {
            let vm = record(&domain(), xml);
            assert_eq!(vm.smbios_uuid, Some(UUID));
            assert!(vm.macs.is_empty());
        }
    }

    #[test]
    fn tags_are_escaped() {
        let tags = BTreeSet::from(["<a>&".to_owned()]);
        let element = tags_element(&tags).expect("an element");
        assert_eq!(element, "<tags><tag>&lt;a&gt;&amp;</tag></tags>");
        assert_eq!(tags_element(&BTreeSet::new()), None);
    }
}
