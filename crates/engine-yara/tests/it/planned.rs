//! A rule set by its plan matches what YARA-X matches with the whole set, whatever the content.

use engine_yara::{Planned, Whole};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::rules::{GLOBAL, RULES, contents};

/// Bytes of content from which on one more pass is worth more than single searches.
const LARGE: usize = 128 << 10;

/// Content, one in ten filled up somewhere with one byte to about [`LARGE`].
fn filled() -> impl Strategy<Value = Vec<u8>> {
    let filler = select(b".\0nx".to_vec());
    let size = prop_oneof![LARGE - 2..LARGE + 2, LARGE..LARGE + (32 << 10)];
    let filling = prop::option::weighted(0.1, (any::<Index>(), filler, size));
    (contents(), filling).prop_map(|(mut bytes, filling)| {
        if let Some((at, filler, size)) = filling {
            let at = at.index(bytes.len() + 1);
            let behind = bytes.split_off(at);
            bytes.resize(size.saturating_sub(behind.len()).max(at), filler);
            bytes.extend(behind);
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
    let names = select(vec!["/tmp/evil.exe", "/tmp/plain.txt", "/tmp/\u{212a}.txt"]);
    let scans = std::cell::RefCell::new((&mut by_plan, &mut by_whole, &mut seen));
    runner
        .run(&(filled(), names), |(bytes, name)| {
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
