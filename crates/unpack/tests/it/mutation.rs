//! Damage anywhere: the walk ends, within its limits, without a panic.

use std::ops::ControlFlow;

use proptest::prelude::*;
use unpack::{Budget, Format, Limits};

use crate::samples::samples;

const LIMITS: Limits = Limits {
    depth_max: 4,
    entries_max: 300,
    entry_bytes_max: 1 << 20,
    total_bytes_max: 4 << 20,
    ratio_max: 200,
    window_bytes_max: 16 << 20,
};

fn check(format: Format, bytes: &[u8]) -> Result<(), TestCaseError> {
    let (mut members, mut total) = (0_u64, 0_u64);
    let mut longest = 0;
    let budget = &mut Budget::unlimited();
    let summary = unpack::walk_as(format, bytes, &LIMITS, budget, &mut |member| {
        members += 1;
        total += member.bytes.len() as u64;
        longest = longest.max(member.bytes.len() as u64);
        ControlFlow::Continue(())
    });
    prop_assert_eq!((summary.members, summary.bytes), (members, total));
    prop_assert!(members <= LIMITS.entries_max.into());
    prop_assert!(total <= LIMITS.total_bytes_max);
    prop_assert!(longest <= LIMITS.entry_bytes_max);
    let panicked = summary.incomplete.filter(|i| i.detail.contains("panicked"));
    // A third-party parser that panics is contained, and worth knowing.
    if let Some(panicked) = panicked {
        eprintln!("contained: {}", panicked.detail);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_containers(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        thread_local!(static SAMPLES: Vec<crate::samples::Sample> = samples(600));
        let (format, mut bytes) = SAMPLES.with(|samples| {
            let sample = pick.get(samples);
            (sample.format, sample.bytes.clone())
        });
        for (at, value) in changes {
            // Headers are where it matters: half of the changes hit the first 600 bytes.
            let len = if value % 2 == 0 { bytes.len().min(600) } else { bytes.len() };
            let at = at.index(len);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            let len = cut.index(bytes.len());
            bytes.truncate(len);
        }
        check(format, &bytes)?;
    }

    #[test]
    fn any_bytes_as_any_format(
        pick in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        check(*pick.get(&Format::ALL), &bytes)?;
    }
}
