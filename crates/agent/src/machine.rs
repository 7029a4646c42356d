//! What the firmware and the kernel say of this machine: its facts, and what its hypervisor injected.
//! All of it but the boot's id is below one folder, `/sys`, which tests replace.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use model::{GuestId, MACS_MAX, Machine};

/// Longest file read: a page of QEMU's, or a table of the firmware.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Where QEMU's page of the generation id has it; before it is what keeps firmware from taking it
/// for a table of ACPI.
const GENERATION_ID_OFFSET: usize = 40;
/// SMBIOS structures of OEM strings.
const OEM_STRINGS: u8 = 11;
/// Type, length and handle of a structure, and the count of strings of that type.
const OEM_HEADER_BYTES: usize = 5;

/// What a hypervisor gave this machine, as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Injected {
    /// A join token.
    pub(crate) token: Option<String>,
    /// The controller, host:port.
    pub(crate) controller: Option<String>,
}

/// The facts of this machine. A part is missing where the firmware, the kernel or the rights do not
/// tell it.
#[must_use]
pub fn facts(sys: &Path) -> Machine {
    Machine {
        generation_id: generation_id(sys),
        system_uuid: read_uuid(&sys.join("class/dmi/id/product_uuid")),
        macs: macs(sys),
        boot_id: boot_id(),
    }
}

/// The kernel's id of this boot, wherever the agent runs in it.
#[must_use]
pub fn boot_id() -> Option<[u8; 16]> {
    read_uuid(Path::new("/proc/sys/kernel/random/boot_id"))
}

/// What the hypervisor injected: QEMU's fw_cfg, or else an OEM string of SMBIOS.
pub(crate) fn injected(sys: &Path) -> Injected {
    let strings = oem_strings(&read(&sys.join("firmware/dmi/tables/DMI")).unwrap_or_default());
    let find = |name: &str| {
        let file = format!("firmware/qemu_fw_cfg/by_name/opt/org.lazaret/{name}/raw");
        let prefix = format!("lazaret.{name}=");
        let of_smbios = || strings.iter().find_map(|it| it.strip_prefix(&prefix));
        read(&sys.join(file))
            .and_then(|bytes| plain(&bytes))
            .or_else(|| of_smbios().and_then(|text| plain(text.as_bytes())))
    };
    Injected {
        token: find("token"),
        controller: find("controller"),
    }
}

/// A UUID of hexadecimal digits and dashes.
fn read_uuid(path: &Path) -> Option<[u8; 16]> {
    let text = String::from_utf8(read(path)?).ok()?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    GuestId::from_hex(&digits.to_ascii_lowercase()).map(|id| id.0)
}

/// Linux keeps the generation id to itself; QEMU shows what it put there. As people write it: the
/// first three fields are stored with the low byte first.
fn generation_id(sys: &Path) -> Option<[u8; 16]> {
    let page = read(&sys.join("firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw"))?;
    let id = page.get(GENERATION_ID_OFFSET..GENERATION_ID_OFFSET + 16)?;
    let mut id: [u8; 16] = id.try_into().ok()?;
    id[..4].reverse();
    id[4..6].reverse();
    id[6..8].reverse();
    (id != [0; 16]).then_some(id)
}

/// Of cards that have a device behind them: bridges, tunnels and containers' ends come and go.
fn macs(sys: &Path) -> Vec<[u8; 6]> {
    let cards = std::fs::read_dir(sys.join("class/net"));
    let cards = cards.into_iter().flatten().flatten();
    let cards = cards.map(|card| card.path());
    let cards = cards.filter(|card| card.join("device").exists());
    let mut macs: Vec<_> = cards
        .filter_map(|card| read_mac(&card.join("address")))
        .collect();
    macs.sort_unstable();
    macs.dedup();
    macs.truncate(MACS_MAX);
    macs
}

fn read_mac(path: &Path) -> Option<[u8; 6]> {
    let text = String::from_utf8(read(path)?).ok()?;
    let parts = text.trim().split(':');
    let bytes: Result<Vec<u8>, _> = parts.map(|part| u8::from_str_radix(part, 16)).collect();
    let mac: [u8; 6] = bytes.ok()?.try_into().ok()?;
    (mac != [0; 6]).then_some(mac)
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Text without what may be around it; `None` where nothing is left, or it is no text.
fn plain(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The OEM strings of an SMBIOS table: structures of type, length, handle and fields, each followed
/// by strings that end in a zero byte, the last one in two.
fn oem_strings(mut table: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while let [kind, length, ..] = *table {
        let length = usize::from(length);
        let Some(strings) = table
            .get(length..)
            .filter(|_| length >= OEM_HEADER_BYTES - 1)
        else {
            break;
        };
        let Some(end) = strings.windows(2).position(|pair| pair == [0, 0]) else {
            break;
        };
        if kind == OEM_STRINGS && length >= OEM_HEADER_BYTES {
            let each = strings[..end].split(|byte| *byte == 0);
            found.extend(each.map(|text| String::from_utf8_lossy(text).into_owned()));
        }
        table = &strings[end + 2..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine's `/sys`, of files by their paths.
    fn sys(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    }

    /// A structure as the firmware writes it.
    fn structure(kind: u8, fields: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![kind, fields.len() as u8 + 4, 1, 0];
        bytes.extend_from_slice(fields);
        for text in strings {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        bytes.resize(bytes.len() + if strings.is_empty() { 2 } else { 1 }, 0);
        bytes
    }

    #[test]
    fn facts_are_found_where_they_are() {
        let mut page = vec![0; 4096];
        page[40..56].copy_from_slice(&[4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16]);
        let sys = sys(&[
            (
                "class/dmi/id/product_uuid",
                b"5D1C7A52-8F0E-4A5A-9D0B-3F6F2B7E0001\n",
            ),
            ("firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw", &page),
            ("class/net/eth1/address", b"52:54:00:77:00:51\n"),
            ("class/net/eth1/device/vendor", b""),
            ("class/net/eth0/address", b"52:54:00:77:00:50\n"),
            ("class/net/eth0/device/vendor", b""),
            ("class/net/docker0/address", b"02:42:00:00:00:01\n"),
            ("class/net/lo/address", b"00:00:00:00:00:00\n"),
        ]);
        let found = facts(sys.path());
        assert_eq!(found.system_uuid.unwrap()[..4], [0x5d, 0x1c, 0x7a, 0x52]);
        let id = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(found.generation_id, Some(id));
        let card = |last| [0x52, 0x54, 0, 0x77, 0, last];
        assert_eq!(found.macs, [card(0x50), card(0x51)]);
    }

    #[test]
    fn the_kernel_tells_its_boot() {
        assert!(boot_id().is_some_and(|id| id != [0; 16]));
    }

    #[test]
    fn a_machine_that_tells_nothing_is_unknown() {
        let sys = sys(&[
            ("class/dmi/id/product_uuid", b"Not Settable\n"),
            (
                "firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw",
                &[0; 50],
            ),
            ("class/net/eth0/address", b"52:54\n"),
            ("class/net/eth0/device/vendor", b""),
        ]);
        let unknown = Machine {
            boot_id: boot_id(),
            ..Machine::default()
        };
        assert_eq!(facts(sys.path()), unknown);
        assert_eq!(facts(Path::new("/nonexistent")), unknown);
        assert_eq!(injected(sys.path()), Injected::default());
    }

    #[test]
    fn what_is_injected_is_found_and_fw_cfg_comes_first() {
        let mut table = structure(1, &[1, 2, 3], &["a maker", "lazaret.token=not this"]);
        table.extend(structure(3, &[], &[]));
        let given = ["something", "lazaret.token=one", "lazaret.controller=c:1"];
        table.extend(structure(11, &[3], &given));
        table.extend(structure(127, &[], &[]));
        let dmi = ("firmware/dmi/tables/DMI", &table[..]);
        let injection = |token: &str| Injected {
            token: Some(token.to_owned()),
            controller: Some("c:1".to_owned()),
        };
        assert_eq!(injected(sys(&[dmi]).path()), injection("one"));
        let token = "firmware/qemu_fw_cfg/by_name/opt/org.lazaret/token/raw";
        let both = sys(&[dmi, (token, b"two\n\0")]);
        assert_eq!(injected(both.path()), injection("two"));
        let empty = sys(&[dmi, (token, b" \n")]);
        assert_eq!(injected(empty.path()), injection("one"));
    }

    #[test]
    fn a_table_that_is_cut_or_wrong_ends_where_it_is() {
        let table = structure(11, &[2], &["first", "second"]);
        for cut in 0..table.len() {
            assert!(oem_strings(&table[..cut]).len() <= 2, "{cut}");
        }
        assert_eq!(oem_strings(&table), ["first", "second"]);
        for wrong in [&[11, 0, 0, 0, 0, 0][..], &[11, 255, 0, 0], &[0; 64]] {
            assert!(oem_strings(wrong).is_empty(), "{wrong:?}");
        }
    }
}
