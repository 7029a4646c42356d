//! The `machine` file beside the key: which machine an identity was given to. A machine with another
//! SMBIOS UUID that finds the key is a copy.

use std::path::Path;

use model::{GuestId, Machine};
use pki::FileError;
use serde::{Deserialize, Serialize};

const FILE: &str = "machine";
/// Longest file read.
const FILE_BYTES_MAX: usize = 16 << 10;

/// One line of the file. Ids in hexadecimal digits; empty: unknown.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    guest: String,
    system_uuid: String,
    generation_id: String,
    macs: Vec<String>,
}

/// Writes down that `guest` is this machine, before the guest's identity is in its place: the entry
/// of `before`, whose identity still is, stays.
///
/// # Errors
/// The file is as it was then.
pub(crate) fn note(
    dir: &Path,
    guest: GuestId,
    machine: &Machine,
    before: Option<GuestId>,
) -> Result<(), FileError> {
    let path = dir.join(FILE);
    let before = before.map(|guest| guest.to_string());
    let mut lines: Vec<Line> = read(&path);
    lines.retain(|line| Some(&line.guest) == before.as_ref());
    lines.push(Line {
        guest: guest.to_string(),
        system_uuid: hex(machine.system_uuid.as_ref()),
        generation_id: hex(machine.generation_id.as_ref()),
        macs: machine.macs.iter().map(|mac| hex(Some(mac))).collect(),
    });
    let mut text = String::new();
    for line in lines {
        // Strings alone: this cannot fail.
        text.push_str(&serde_json::to_string(&line).unwrap_or_default());
        text.push('\n');
    }
    pki::write_atomic(&path, 0o600, text.as_bytes())
}

/// The SMBIOS UUID of the machine that `guest` is; `None`: not known.
pub(crate) fn system_uuid(dir: &Path, guest: GuestId) -> Option<[u8; 16]> {
    let guest = guest.to_string();
    let lines = read(&dir.join(FILE));
    let own = lines.into_iter().find(|line| line.guest == guest)?;
    GuestId::from_hex(&own.system_uuid).map(|id| id.0)
}

/// What can be read of it: a file that cannot be used counts as none, and nobody is called a copy.
fn read(path: &Path) -> Vec<Line> {
    let bytes = std::fs::read(path).unwrap_or_default();
    if bytes.len() > FILE_BYTES_MAX {
        return Vec::new();
    }
    let lines = bytes.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}

fn hex<const N: usize>(bytes: Option<&[u8; N]>) -> String {
    let digits = bytes.into_iter().flatten();
    digits.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(uuid: u8) -> Machine {
        Machine {
            system_uuid: Some([uuid; 16]),
            ..Machine::default()
        }
    }

    #[test]
    fn each_identity_has_its_machine_until_the_next_but_one() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = [1, 2, 3].map(|n| GuestId([n; 16]));
        let of = |guest| system_uuid(dir.path(), guest);
        assert_eq!(of(a), None);
        note(dir.path(), a, &machine(1), None).unwrap();
        note(dir.path(), b, &machine(2), Some(a)).unwrap();
        assert_eq!([of(a), of(b)], [Some([1; 16]), Some([2; 16])], "a crash");
        note(dir.path(), c, &machine(3), Some(b)).unwrap();
        assert_eq!([of(a), of(b), of(c)], [None, Some([2; 16]), Some([3; 16])]);
    }

    #[test]
    fn what_is_unknown_or_unreadable_makes_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let guest = GuestId([1; 16]);
        note(dir.path(), guest, &Machine::default(), None).unwrap();
        assert_eq!(system_uuid(dir.path(), guest), None);
        std::fs::write(dir.path().join(FILE), "half a li").unwrap();
        assert_eq!(system_uuid(dir.path(), guest), None);
        note(dir.path(), guest, &machine(7), None).unwrap();
        assert_eq!(system_uuid(dir.path(), guest), Some([7; 16]));
    }
}
