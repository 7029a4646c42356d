//! What must hold of every walk, whatever the bytes.

use std::ops::ControlFlow;

use unpack::{Budget, Limits, Member, Summary};

/// Tight, so that the limits themselves are reached.
const LIMITS: Limits = Limits {
    depth_max: 4,
    entries_max: 200,
    entry_bytes_max: 1 << 20,
    total_bytes_max: 4 << 20,
    ratio_max: 100,
    window_bytes_max: 8 << 20,
};

type Visit<'a> = &'a mut dyn FnMut(&Member<'_>) -> ControlFlow<()>;

pub(crate) fn check(walk: impl FnOnce(&Limits, &mut Budget<'_>, Visit<'_>) -> Summary) {
    let (mut members, mut bytes) = (0_u64, 0_u64);
    let summary = walk(&LIMITS, &mut Budget::unlimited(), &mut |member| {
        assert!(member.path.len() <= LIMITS.depth_max as usize);
        assert!(
            member
                .path
                .iter()
                .all(|name| name.len() <= unpack::NAME_BYTES_MAX)
        );
        assert!(member.bytes.len() as u64 <= LIMITS.entry_bytes_max);
        members += 1;
        bytes += member.bytes.len() as u64;
        ControlFlow::Continue(())
    });
    assert_eq!((summary.members, summary.bytes), (members, bytes));
    assert!(members <= u64::from(LIMITS.entries_max));
    assert!(bytes <= LIMITS.total_bytes_max);
}
