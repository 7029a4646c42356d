//! What of the program is in memory although only its start needed it.

use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::sys;

/// An address and a length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Gives back the memory of code and constants that are not needed now; what is needed again is
/// mapped again. Costs some page faults, no reading of files as long as they are cached.
pub fn give_back_start() {
    // Where the kernel does not tell, all stays: nothing depends on it.
    if let Ok(smaps) = File::open("/proc/self/smaps") {
        sys::give_back(&unchanged(BufReader::new(smaps)));
    }
}

/// Mappings of files that cannot be written and of which no page is a private copy. (Relocated
/// constants are read-only too, but copies.)
fn unchanged(smaps: impl BufRead) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines().map_while(Result::ok) {
        if let Some(copies) = line.strip_prefix("Anonymous:") {
            let is_none = copies.split_whitespace().next() == Some("0");
            found.extend(current.take().filter(|_| is_none));
        } else if line.starts_with(|it: char| it.is_ascii_digit() || ('a'..='f').contains(&it)) {
            current = of_file(&line);
        }
    }
    found
}

/// Of a mapping's first line, where it is of a file and private and cannot be written.
fn of_file(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.as_bytes();
    let inode = fields.nth(2)?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let is_fixed = permissions.get(1) == Some(&b'-') && permissions.get(3) == Some(&b'p');
    (is_fixed && inode != "0").then(|| Mapping {
        start,
        len: end.saturating_sub(start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0a0000000-55d0a0010000 r--p 00000000 08:01 131 /usr/bin/lazaret-agent
Size:                 64 kB
Rss:                  64 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55d0a0010000-55d0a0020000 r-xp 00010000 08:01 131 /usr/bin/lazaret-agent
Anonymous:             0 kB
55d0a0020000-55d0a0030000 r--p 00020000 08:01 131 /usr/bin/lazaret-agent
Anonymous:            40 kB
55d0a0030000-55d0a0040000 rw-p 00030000 08:01 131 /usr/bin/lazaret-agent
Anonymous:             0 kB
55d0a1000000-55d0a1021000 r--p 00000000 00:00 0 [heap]
Anonymous:             0 kB
7f0000000000-7f0000001000 r--s 00000000 00:1a 77 /run/lazaret/board
Anonymous:             0 kB
";

    #[test]
    fn what_is_as_in_its_file_alone() {
        let starts: Vec<_> = unchanged(SMAPS.as_bytes())
            .iter()
            .map(|it| (it.start, it.len))
            .collect();
        let program = 0x55d0_a000_0000;
        assert_eq!(starts, [(program, 0x10000), (program + 0x10000, 0x10000)]);
    }

    /// Code, constants and what was relocated still are what they were.
    #[test]
    fn the_program_goes_on() {
        static TABLE: [&str; 3] = ["one", "two", "three"];
        let before = TABLE.concat();
        assert!(unchanged(BufReader::new(File::open("/proc/self/smaps").unwrap())).len() > 3);
        give_back_start();
        assert_eq!(std::hint::black_box(&TABLE).concat(), before);
    }
}
