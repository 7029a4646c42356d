//! A second way to the same verdict: an unmodified YARA-X on memory whose pages are fetched when it
//! touches them. Exact by construction, so what plans and ranges say is held against it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use engine_yara::{Planned, Whole, agent_pack};
use literal_filter::Pack;

use crate::paged::{PAGE, Paged};
use crate::{by_ranges, report};

/// What looks into a file without searching it.
const STRUCTURE: &str = r#"
import "elf"
rule magic { condition: uint32(0) == 0x464c457f and filesize > 1000 }
rule library { condition: elf.type == elf.ET_DYN and elf.machine == elf.EM_X86_64 }
rule executable { condition: elf.type == elf.ET_EXEC }
rule interpreted { condition: for any s in elf.segments : (s.type == elf.PT_INTERP) }
rule sections { condition: for any s in elf.sections : (s.name == ".gnu_debuglink") }
rule end { condition: uint8(filesize - 1) == 0 }
rule far { condition: filesize > 40000 and uint32(uint32(0x28)) == 0 }
"#;
const SEARCHING: &str = r#"
rule versioned { strings: $a = "GLIBC_2.2.5" condition: uint32(0) == 0x464c457f and $a }
rule cloned { strings: $a = "_ITM_deregisterTMCloneTable" condition: #a > 0 }
rule finalized { strings: $a = /__cxa_fin[a-z]{3,8}/ condition: $a }
"#;
const FILES: usize = 40;

/// Libraries of this system, small and large.
fn libraries() -> Vec<PathBuf> {
    let folder = std::fs::read_dir("/usr/lib/x86_64-linux-gnu").expect("Debian's libraries");
    let paths = folder.map(|entry| entry.expect("an entry").path());
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        path.is_file() && name.windows(4).any(|part| part == b".so.")
    };
    let mut found: Vec<PathBuf> = paths.filter(is_library).collect();
    found.sort();
    let step = (found.len() / FILES).max(1);
    found.into_iter().step_by(step).take(FILES).collect()
}

/// Matches of all files by pages, compared with those of whole files and of ranges. Gives the
/// numbers of matches, of pages that were touched, and of all pages.
fn compare(rules: &str) -> (usize, usize, usize) {
    let sources = [("rules".to_owned(), rules.as_bytes().to_vec())];
    let whole = Whole::compile(&sources).expect("whole");
    let planned = Planned::compile(&sources).expect("planned");
    let pack = Pack::read(&agent_pack(planned.plan()).expect("built")).expect("read");
    let (mut by_whole, mut by_plan) = (whole.scanner(), planned.scanner().expect("scanner"));
    let (mut matched, mut touched, mut all) = (0, 0, 0);
    let mut named = BTreeSet::new();
    for path in libraries() {
        let bytes: Arc<[u8]> = std::fs::read(&path).expect("read").into();
        let name = path.as_os_str().as_encoded_bytes();
        let expected = by_whole.scan(&bytes, name).expect("whole").matches;
        let paged = Paged::new(bytes.clone()).expect("userfaultfd: needs CONFIG_USERFAULTFD");
        let found = by_whole.scan(paged.bytes(), name).expect("paged").matches;
        assert_eq!(found, expected, "{}", path.display());
        let report = report(&pack, &bytes);
        if let Some(found) = by_ranges(&mut by_plan, &bytes, name, planned.plan(), &report) {
            assert_eq!(found, expected, "by ranges: {}", path.display());
        }
        matched += expected.len();
        named.extend(expected);
        touched += paged.touched().expect("served").len();
        all += bytes.len().div_ceil(PAGE);
    }
    assert!(named.len() >= 3, "only {named:?} match");
    (matched, touched, all)
}

#[test]
fn what_only_looks_at_the_structure_touches_little() {
    let (matched, touched, all) = compare(STRUCTURE);
    assert!(matched > FILES, "{matched}");
    assert!(touched > 0 && touched < all, "{touched} of {all} pages");
}

#[test]
fn what_searches_touches_all() {
    let (_, touched, all) = compare(SEARCHING);
    assert_eq!(touched, all);
}
