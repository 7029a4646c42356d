//! Code that is in memory although only the start needed it.

use std::io;
use std::sync::OnceLock;

use crate::sys::{self, OneThread};

/// The code of the program and of the libraries that it was started with, of which none is ever
/// unloaded. In a worker the same, since it is a clone.
static CODE: OnceLock<Vec<CodeRange>> = OnceLock::new();

/// An address and a length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CodeRange {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Notes what is code. While there is one thread nobody loads a library, so what is read here is
/// what is there.
pub(crate) fn note(_proof: &OneThread) -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    CODE.get_or_init(|| maps.lines().filter_map(of_file).collect());
    Ok(())
}

/// Gives back the memory of code that is not needed now; what is needed again is mapped again, from
/// the same file. Costs some page faults, no reading of files as long as they are cached. Without a
/// supervisor all stays.
pub fn give_back_code() {
    for range in CODE.get().into_iter().flatten() {
        sys::give_back(range);
    }
}

/// Of a line of `maps`, where it is code of a file: private, executable and never writable, so that
/// no page of it is anything but the file's. (Read-only data may have been relocated.)
fn of_file(line: &str) -> Option<CodeRange> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let inode = fields.nth(2)?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    (permissions == "r-xp" && inode != "0").then(|| CodeRange {
        start,
        len: end.saturating_sub(start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0a0000000-55d0a0010000 r--p 00000000 08:01 131   /usr/bin/lazaret-agent
55d0a0010000-55d0a0030000 r-xp 00010000 08:01 131   /usr/bin/lazaret-agent
55d0a0030000-55d0a0040000 rw-p 00030000 08:01 131   /usr/bin/lazaret-agent
55d0a1000000-55d0a1021000 rw-p 00000000 00:00 0     [heap]
7f0000000000-7f0000001000 r-xs 00000000 00:1a 77    /run/lazaret/board
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0     [vdso]
";

    #[test]
    fn code_of_files_alone() {
        let found: Vec<_> = MAPS.lines().filter_map(of_file).collect();
        let program = CodeRange {
            start: 0x55d0_a001_0000,
            len: 0x2_0000,
        };
        assert_eq!(found, [program]);
        assert_eq!(of_file("no line of maps"), None);
    }
}
