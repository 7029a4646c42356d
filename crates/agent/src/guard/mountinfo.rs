//! What is mounted where: `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The kernel's table of what this process sees.
pub(crate) const PATH: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The kernel's number for it; given again after an unmount.
    pub(crate) id: u64,
    /// `major:minor`, for people and to tell file systems apart.
    pub(crate) device: String,
    /// Where.
    pub(crate) at: PathBuf,
    /// Type, as in `/proc/filesystems`.
    pub(crate) kind: String,
}

/// Reads the kernel's table; lines that are not understood are left out.
pub(crate) fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /root /mnt rw shared:1 - ext4 /dev/sda1 rw`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let device = words.nth(1)?;
    let at = words.nth(1)?;
    let kind = words.skip_while(|word| *word != b"-").nth(1)?;
    Some(Mount {
        id,
        device: String::from_utf8(device.to_vec()).ok()?,
        at: PathBuf::from(OsString::from_vec(unescape(at))),
        kind: String::from_utf8(kind.to_vec()).ok()?,
    })
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let value = octal.and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        bytes.push(value.unwrap_or(*first));
        rest = match value {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    bytes
}

/// The mounts that hold something of a guarded path: its own, and those below it.
pub(crate) fn concerned<'m>(mounts: &'m [Mount], include: &Path) -> Vec<&'m Mount> {
    let own = mounts
        .iter()
        .filter(|mount| include.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.as_os_str().as_bytes().len());
    let below = mounts
        .iter()
        .filter(|mount| mount.at.starts_with(include) && mount.at != include);
    own.into_iter().chain(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:5 / /proc rw,nosuid shared:3 master:1 - proc proc rw
22 20 8:2 / /srv rw shared:4 - xfs /dev/sda2 rw
23 22 8:3 / /srv/a\\040b\\134 rw - btrfs /dev/sda3 rw
junk
24 20 8:2 / /srv2 rw - xfs /dev/sda2 rw
";

    #[test]
    fn names_with_odd_bytes() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[3].at, Path::new("/srv/a b\\"));
        assert_eq!(mounts[3].kind, "btrfs");
        assert_eq!((mounts[1].id, &*mounts[1].device), (21, "0:5"));
    }

    #[test]
    fn a_guarded_path_concerns_its_own_mount_and_those_below() {
        let mounts = parse(TABLE);
        let at = |include: &str| -> Vec<String> {
            let concerned = concerned(&mounts, Path::new(include));
            concerned.iter().map(|m| m.device.clone()).collect()
        };
        assert_eq!(at("/srv"), ["8:2", "8:3"]);
        assert_eq!(at("/srv/x"), ["8:2"]);
        assert_eq!(at("/etc"), ["8:1"]);
        assert_eq!(at("/").len(), 5);
    }

    #[test]
    fn this_machine_has_a_root() {
        let mounts = parse(&std::fs::read("/proc/self/mountinfo").unwrap());
        assert!(mounts.iter().any(|mount| mount.at == Path::new("/")));
    }
}
