//! The thread that keeps deadlines.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use daemon::notify::Progress;

use super::Gate;

/// Policy answers whoever's deadline comes, until told to end. Its rounds feed the watchdog:
/// each needs the core's lock, so a gate that hangs is found out. A panic costs one round.
pub(crate) fn run(gate: &Gate, progress: &Arc<Progress>, beat_within: Duration) {
    loop {
        let round = AssertUnwindSafe(|| gate.wait_for_deadline(beat_within));
        match catch_unwind(round) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => gate.tally.panics.add(1),
        }
        progress.beat();
    }
}
