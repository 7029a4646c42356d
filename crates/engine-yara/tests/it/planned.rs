//! A rule set by its plan matches what YARA-X matches with the whole set, whatever the content.

use engine::host::Content;
use engine::sparse::{SparseView, lay_out};
use engine_yara::{Planned, PlannedScanner, Step, Whole};
use literal_filter::Report;
use model::Ranges;
use proptest::prelude::*;
use proptest::sample::select;
use readplan::{Hits, Plan};

/// One rule for each way in which a condition can need something.
const RULES: &str = r#"
import "pe"
import "elf"
import "math"
rule r_text { strings: $a = "long enough to be looked for" condition: $a }
rule r_nocase { strings: $a = "MiXeD case wOrds" nocase condition: $a }
rule r_wide { strings: $a = "wide words here" wide ascii condition: $a }
rule r_fullword { strings: $a = "fullword" fullword condition: $a }
rule xored { strings: $a = "xor this text" xor(1-20) condition: $a }
rule based { strings: $a = "base sixty-four" base64 condition: $a }
rule r_short { strings: $a = "<?" $b = "eval" condition: $a and $b }
rule r_one_of { strings: $a = "first alternative" $b = "ab" $c = { 01 02 } condition: any of them }
rule r_two_of { strings: $a = "number one" $b = "number two" $c = "nr3" condition: 2 of them }
rule r_all_but { strings: $a = "number one" $b = "number two" condition: $a and not $b }
rule r_none_of { strings: $a = "number one" $b = "xyz" condition: none of them and filesize < 40 }
rule counted { strings: $a = "twice" condition: #a >= 2 }
rule at_start { strings: $a = "MZ" condition: $a at 0 and filesize > 3 }
rule in_range { strings: $a = "number one" condition: $a in (0..20) }
rule r_offset { strings: $a = "number two" condition: @a[1] > 10 }
rule r_for_of { strings: $a = "number one" $b = "number two" condition: for any of them : ($ at 0) }
rule r_for_in { strings: $a = "twice" condition: for any i in (1..#a) : (@a[i] > 30) }
rule percent { strings: $a = "number one" $b = "number two" $c = "nr3" condition: 60% of them }
rule jumps { strings: $a = { 4d 5a [2-6] ( 61 | 62 63 ) ?? 0? ~00 } condition: $a }
rule endless { strings: $a = { aa bb cc dd [4-] ee ff 11 22 } condition: $a }
rule r_regex { strings: $a = /ab+c[0-9]{2,4}(x|yz)/ condition: $a }
rule regex_nocase { strings: $a = /start.{0,8}END/is condition: $a }
rule r_module { strings: $a = "number one" condition: $a or pe.is_pe or elf.type == elf.ET_EXEC }
rule imphash { strings: $a = "nr3" condition: uint16(0) == 0x5a4d and (pe.imphash() == "" or $a) }
rule r_entropy { condition: filesize > 20 and math.entropy(0, filesize) > 4.0 }
private rule r_hidden { strings: $a = "hidden helper" condition: $a }
rule refers { strings: $a = "number two" condition: r_hidden and $a }
rule refuses { strings: $a = "number one" condition: $a and not r_hidden }
rule named { condition: filename == "evil.exe" }
rule defined_at { condition: defined uint32(60) and uint8(0) == 0x4d }
"#;

const GLOBAL: &str = r#"
global rule gate { strings: $a = "open sesame" condition: $a or filesize < 30 }
rule behind { strings: $a = "number one" condition: $a }
"#;

/// What contents are made of.
const FRAGMENTS: [&[u8]; 34] = [
    b"long enough to be looked for",
    b"mixed CASE Words",
    b"w\0i\0d\0e\0 \0w\0o\0r\0d\0s\0 \0h\0e\0r\0e\0",
    b"wide words here",
    b"fullword",
    b" fullword ",
    b"|kv$plmw$pa|p",
    b"YmFzZSBzaXh0eS1mb3Vy",
    b"<?",
    b"eval",
    b"first alternative",
    b"ab",
    b"\x01\x02",
    b"number one",
    b"number two",
    b"nr3",
    b"xyz",
    b"twice",
    b"MZ",
    b"MZ\0\0a1\x01\x05",
    b"MZ....bc\x02\x03\x04",
    b"\xaa\xbb\xcc\xdd",
    b"\xee\xff\x11\x22",
    b"abbbc123yz",
    b"ac12x",
    b"START it e\nEND",
    b"hidden helper",
    b"open sesame",
    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0",
    b"\0\0\0\0\0\0\0\0",
    b"PE\0\0",
    b" ",
    b"zyxwvutsrqponmlkjihgfedcba0123456789",
    b"\n",
];

/// What an agent reports of a file.
fn report(plan: &Plan, bytes: &[u8]) -> Report {
    let (filter, needles) = plan.agent_filter();
    let mut report = Report::default();
    let _ = filter.scan(bytes, &mut |id, at| report.add(id, at as u64));
    let first = filter.len() as u32;
    let _ = needles.scan(bytes, 0, bytes.len(), &mut |id, at| {
        report.add(first + id, at as u64)
    });
    report
}

/// A file as an appliance knows it that has asked for these ranges.
fn view(bytes: &[u8], known: &Ranges) -> SparseView {
    let mut read = |offset: u64, buffer: &mut [u8]| {
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    };
    let size = bytes.len() as u64;
    let Content::Sealed { fd, .. } = lay_out(size, known, &mut read).expect("laid out") else {
        panic!("inline");
    };
    let fd = fd.try_clone().expect("a descriptor");
    SparseView::open(fd, size, known.clone()).expect("opened")
}

/// Judged by a report and ranges; `None`: the whole file was asked for.
fn by_ranges(
    scanner: &mut PlannedScanner<'_>,
    bytes: &[u8],
    name: &[u8],
    report: &Report,
) -> Option<Vec<(String, String)>> {
    let hits = Hits::of_report(report);
    let mut known = Ranges::new();
    loop {
        let step = scanner.scan_view(&view(bytes, &known), &hits, name);
        match step.expect("judged") {
            Step::Judged(matches) => return Some(matches),
            Step::Ask(ranges) => {
                assert!(
                    !ranges.without(&known).is_empty(),
                    "asked for what is known"
                );
                known.extend(&ranges);
            }
            Step::Whole(_) => return None,
        }
    }
}

#[test]
fn ranges_lose_and_invent_nothing() {
    // A rule that reads everything makes every file travel whole.
    let bounded: String = RULES
        .lines()
        .filter(|line| !line.contains("entropy"))
        .fold(String::new(), |all, line| all + line + "\n");
    let sources = [("rules", bounded.as_str()), ("global", GLOBAL)]
        .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
    let planned = Planned::compile(&sources).expect("planned");
    let whole = Whole::compile(&sources).expect("whole");
    let state = std::cell::RefCell::new((
        planned.scanner().expect("scanner"),
        whole.scanner(),
        // Files judged by ranges, matches among them, differences with a broken filter.
        (0u32, 0usize, 0u32),
    ));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
    let names = select(vec!["/tmp/evil.exe", "/tmp/plain.txt"]);
    // Far apart, so that there is something between what is asked for.
    let spread = (contents(), contents(), 0usize..20_000).prop_map(|(a, b, gap)| {
        let filler = (0..gap).map(|at| if at % 7 == 0 { b' ' } else { b'.' });
        [a, filler.collect(), b].concat()
    });
    runner
        .run(&(spread, names), |(bytes, name)| {
            let (by_plan, by_whole, (judged, matched, caught)) = &mut *state.borrow_mut();
            let expected = by_whole.scan(&bytes, name.as_bytes()).expect("whole");
            let report = report(planned.plan(), &bytes);
            if let Some(found) = by_ranges(by_plan, &bytes, name.as_bytes(), &report) {
                prop_assert_eq!(&found, &expected.matches);
                *judged += 1;
                *matched += found.len();
            }
            // A filter that is broken on purpose: it finds nothing.
            let nothing = by_ranges(by_plan, &bytes, name.as_bytes(), &Report::default());
            *caught += u32::from(nothing.is_some_and(|found| found != expected.matches));
            Ok(())
        })
        .expect("the same verdicts");
    let (judged, matched, caught) = state.borrow().2;
    // Global rules and loops make some files travel whole.
    assert!(
        judged > 1000 && matched > 1000,
        "{judged} files, {matched} matches"
    );
    assert!(caught > 500, "a broken filter is seen: {caught}");
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::collection::vec(select(&FRAGMENTS[..]), 0..12);
    let change = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (parts, change).prop_map(|(parts, change)| {
        let mut bytes = parts.concat();
        if let Some((at, byte)) = change.filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

#[test]
fn a_plan_loses_and_invents_nothing() {
    let sources = [("rules", RULES), ("global", GLOBAL)]
        .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
    let planned = Planned::compile(&sources).expect("planned");
    let whole = Whole::compile(&sources).expect("whole");
    let (mut by_plan, mut by_whole) = (planned.scanner().expect("scanner"), whole.scanner());
    let mut seen = std::collections::BTreeSet::new();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
    let names = select(vec!["/tmp/evil.exe", "/tmp/plain.txt"]);
    let scans = std::cell::RefCell::new((&mut by_plan, &mut by_whole, &mut seen));
    runner
        .run(&(contents(), names), |(bytes, name)| {
            let (by_plan, by_whole, seen) = &mut *scans.borrow_mut();
            let judged = by_plan.scan(&bytes, name.as_bytes()).expect("by plan");
            let expected = by_whole.scan(&bytes, name.as_bytes()).expect("whole");
            prop_assert_eq!(&judged.matches, &expected.matches);
            seen.extend(expected.matches.into_iter().map(|(_, rule)| rule));
            Ok(())
        })
        .expect("the same verdicts");
    // Otherwise the contents would test nothing.
    let never: Vec<_> = (0..planned.plan().len())
        .map(|rule| planned.plan().name(rule).1)
        .filter(|rule| !seen.contains(*rule) && *rule != "r_hidden")
        .collect();
    assert!(never.is_empty(), "never matched: {never:?}");
}
