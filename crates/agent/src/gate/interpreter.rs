//! Files that are run without being executed: scripts by their interpreter, programs by the loader
//! (trap 14). The kernel calls their open an open like any other.
//!
//! Who opens is told by the program that it runs; nothing else of another process is looked at, since
//! its memory may make whoever reads it wait for ever.

use std::os::fd::OwnedFd;

use rustix::io::pread;

use super::content::Content;

/// What these open they run, or hand to a program whose name they were given.
const SHELLS: [&[u8]; 12] = [
    b"sh", b"bash", b"dash", b"ash", b"busybox", b"zsh", b"ksh", b"mksh", b"csh", b"tcsh", b"fish",
    b"pwsh",
];
/// These read data, too: of theirs, what begins like a script or is called like one.
const LANGUAGES: [&[u8]; 20] = [
    b"python", b"pypy", b"perl", b"ruby", b"node", b"nodejs", b"deno", b"bun", b"php", b"php-fpm",
    b"php-cgi", b"lua", b"luajit", b"tclsh", b"wish", b"awk", b"gawk", b"mawk", b"java",
    b"Rscript",
];
const SCRIPT_SUFFIXES: [&[u8]; 21] = [
    b"sh", b"py", b"pyc", b"pyw", b"pl", b"pm", b"rb", b"js", b"mjs", b"cjs", b"ts", b"php",
    b"phar", b"lua", b"tcl", b"awk", b"jar", b"class", b"R", b"ps1", b"so",
];
const LOADERS: [&[u8]; 4] = [b"ld-linux", b"ld-musl", b"ld.so", b"ld64.so"];

/// What runs other programs' files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    Shell,
    Language,
    Loader,
}

impl Runner {
    /// By the path of the program that a process runs.
    fn of(program: &[u8]) -> Option<Self> {
        let program = program.strip_suffix(b" (deleted)").unwrap_or(program);
        let name = program.rsplit(|byte| *byte == b'/').next()?;
        if LOADERS.iter().any(|loader| name.starts_with(loader)) {
            return Some(Self::Loader);
        }
        let is_version = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
        let len = name.iter().rposition(|byte| !is_version(byte))? + 1;
        let name = name.get(..len)?;
        if SHELLS.contains(&name) {
            Some(Self::Shell)
        } else {
            LANGUAGES.contains(&name).then_some(Self::Language)
        }
    }
}

/// Whether the process that opens this runs it. Reads the file, which was hashed just now.
pub(super) fn runs(pid: i32, content: &Content) -> bool {
    if pid <= 0 {
        return false;
    }
    let Ok(program) = rustix::fs::readlink(format!("/proc/{pid}/exe"), Vec::new()) else {
        return false;
    };
    match Runner::of(program.as_bytes()) {
        None => false,
        Some(Runner::Shell) => true,
        Some(Runner::Language) => {
            begins(&content.file, b"#!") || is_called_a_script(content.path())
        }
        // What else it opens: a list of libraries, its cache.
        Some(Runner::Loader) => begins(&content.file, b"\x7fELF"),
    }
}

fn is_called_a_script(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let dot = name.iter().rposition(|byte| *byte == b'.');
    let suffix = dot.and_then(|dot| name.get(dot + 1..));
    suffix.is_some_and(|suffix| SCRIPT_SUFFIXES.contains(&suffix))
}

fn begins(file: &OwnedFd, with: &[u8]) -> bool {
    let mut head = [0; 4];
    let head = head.get_mut(..with.len()).unwrap_or_default();
    let read = pread(file, &mut *head, 0);
    read == Ok(with.len()) && *head == *with
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_files() {
        for (program, runner) in [
            (&b"/usr/bin/dash"[..], Some(Runner::Shell)),
            (b"/bin/bash (deleted)", Some(Runner::Shell)),
            (b"/usr/bin/python3.11", Some(Runner::Language)),
            (b"/usr/bin/perl5.36-x86_64-linux-gnu", None),
            (b"/usr/bin/perl", Some(Runner::Language)),
            (b"/usr/bin/php8.2", Some(Runner::Language)),
            (b"/usr/sbin/php-fpm8.2", Some(Runner::Language)),
            (b"/bin/busybox", Some(Runner::Shell)),
            (
                b"/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
                Some(Runner::Loader),
            ),
            (b"/usr/bin/cat", None),
            (b"/usr/bin/shred", None),
            (b"/12.3", None),
            (b"", None),
        ] {
            let name = program.escape_ascii();
            assert_eq!(Runner::of(program), runner, "{name}");
        }
    }

    #[test]
    fn what_is_called_a_script() {
        for (path, is_script) in [
            (&b"/x/tool.py"[..], true),
            (b"/x.py/data", false),
            (b"/x/data.csv", false),
            (b"/x/py", false),
            (b"", false),
        ] {
            assert_eq!(is_called_a_script(path), is_script);
        }
    }

    #[test]
    fn heads() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"#!/bin/sh", 0).unwrap();
        let file = OwnedFd::from(file);
        assert!(begins(&file, b"#!") && !begins(&file, b"\x7fELF"));
        assert!(!begins(
            &OwnedFd::from(tempfile::tempfile().unwrap()),
            b"#!"
        ));
    }
}
