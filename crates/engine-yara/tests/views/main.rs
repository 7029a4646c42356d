//! A file judged by an agent's report and some of its ranges matches what YARA-X matches with all
//! of it. A target of its own, since it takes a while.

mod paged;
mod paging;
#[path = "../it/rules.rs"]
mod rules;

use engine::host::Content;
use engine::sparse::{SparseView, lay_out};
use engine_yara::{Planned, PlannedScanner, Reported, Step, Whole, agent_pack};
use literal_filter::{Pack, PackScan, Report};
use model::Ranges;
use proptest::prelude::*;
use proptest::sample::select;
use readplan::Plan;

use rules::{GLOBAL, RULES, contents};

/// What an agent reports of a file.
fn report(pack: &Pack, bytes: &[u8]) -> Report {
    let mut scan = PackScan::new(pack);
    let _ = scan.push(bytes);
    scan.finish().expect("a small report")
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
    plan: &Plan,
    report: &Report,
) -> Option<Vec<(String, String)>> {
    let reported = Reported::of(plan, report);
    let mut known = Ranges::new();
    loop {
        let step = scanner.scan_reported(&view(bytes, &known), &reported, name, false);
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
    let pack = Pack::read(&agent_pack(planned.plan()).expect("built")).expect("read");
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
            let (plan, report) = (planned.plan(), report(&pack, &bytes));
            if let Some(found) = by_ranges(by_plan, &bytes, name.as_bytes(), plan, &report) {
                prop_assert_eq!(&found, &expected.matches);
                *judged += 1;
                *matched += found.len();
            }
            // A filter that is broken on purpose: it finds nothing.
            let nothing = by_ranges(by_plan, &bytes, name.as_bytes(), plan, &Report::default());
            *caught += u32::from(nothing.is_some_and(|found| found != expected.matches));
            Ok(())
        })
        .expect("the same verdicts");
    let (judged, matched, caught) = state.borrow().2;
    // Global rules and loops make some files travel whole.
    assert!(
        judged > 500 && matched > 1000,
        "{judged} files, {matched} matches"
    );
    assert!(caught > 100, "a broken filter is seen: {caught}");
}
