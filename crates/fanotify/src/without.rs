//! Switches for single mitigations. A program has them all, always: without the feature `without`,
//! which the trap suite alone is built with, [`is_off`] is a constant.

#[cfg(feature = "without")]
static OFF: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// From now on this process goes without what is done about this row of the table of traps.
#[cfg(feature = "without")]
pub fn switch_off(row: u8) {
    OFF.store(row, std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "without")]
pub(crate) fn is_off(row: u8) -> bool {
    OFF.load(std::sync::atomic::Ordering::Relaxed) == row
}

#[cfg(not(feature = "without"))]
pub(crate) const fn is_off(_: u8) -> bool {
    false
}
