//! Code and constants that are in memory although only the start needed them.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::OnceLock;

use crate::sys::{self, OneThread};

/// Code and constants of the program and of the libraries that it was started with, of which none
/// is ever unloaded. In a worker the same, since it is a clone.
static FIXED: OnceLock<Vec<FixedRange>> = OnceLock::new();

/// An address and a length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FixedRange {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Notes what is code. While there is one thread nobody loads a library, so what is read here is
/// what is there.
pub(crate) fn note(_proof: &OneThread) -> io::Result<()> {
    let found = fixed(BufReader::new(File::open("/proc/self/smaps")?))?;
    FIXED.get_or_init(|| found);
    Ok(())
}

/// Gives back the memory of code that is not needed now; what is needed again is mapped again, from
/// the same file. Costs some page faults, no reading of files as long as they are cached. Without a
/// supervisor all stays.
pub fn give_back_code() {
    for range in FIXED.get().into_iter().flatten() {
        sys::give_back(range);
    }
}

/// Private mappings of files that cannot be written and of which no page is a copy, in memory or
/// swapped out. (Relocated constants are read-only too, but copies.)
fn fixed(smaps: impl BufRead) -> io::Result<Vec<FixedRange>> {
    let (mut found, mut current) = (Vec::new(), None);
    for line in smaps.lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:" | "Swap:"), Some(kilobytes)) if kilobytes != "0" => current = None,
            (Some("VmFlags:"), _) => found.extend(current.take()),
            (Some(field), _) if field.ends_with(':') => {}
            _ => current = of_file(&line),
        }
    }
    Ok(found)
}

/// Of a mapping's first line.
fn of_file(line: &str) -> Option<FixedRange> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let inode = fields.nth(2)?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let is_fixed = matches!(permissions, "r-xp" | "r--p") && inode != "0";
    is_fixed.then(|| FixedRange {
        start,
        len: end.saturating_sub(start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0a0000000-55d0a0010000 r--p 00000000 08:01 131   /usr/bin/lazaret-agent
Rss:                  64 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
55d0a0010000-55d0a0030000 r-xp 00010000 08:01 131   /usr/bin/lazaret-agent
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
55d0a0030000-55d0a0040000 r--p 00030000 08:01 131   /usr/bin/lazaret-agent
Anonymous:            40 kB
Swap:                  0 kB
VmFlags: rd mr mw me
55d0a0040000-55d0a0050000 r--p 00040000 08:01 131   /usr/bin/lazaret-agent
Anonymous:             0 kB
Swap:                 40 kB
VmFlags: rd mr mw me
55d0a0050000-55d0a0060000 rw-p 00050000 08:01 131   /usr/bin/lazaret-agent
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me
55d0a1000000-55d0a1021000 r--p 00000000 00:00 0     [heap]
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
7f0000000000-7f0000001000 r--s 00000000 00:1a 77    /run/lazaret/board
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
";

    #[test]
    fn what_is_as_in_its_file_alone() {
        let found = fixed(SMAPS.as_bytes()).unwrap();
        let found: Vec<_> = found.iter().map(|it| (it.start, it.len)).collect();
        let program = 0x55d0_a000_0000;
        assert_eq!(found, [(program, 0x1_0000), (program + 0x1_0000, 0x2_0000)]);
    }

    #[test]
    fn a_process_has_code() {
        let own = fixed(BufReader::new(File::open("/proc/self/smaps").unwrap())).unwrap();
        let here = a_process_has_code as fn() as usize;
        let is_in = |it: &FixedRange| (it.start..it.start + it.len).contains(&here);
        assert!(own.iter().any(is_in));
    }
}
