//! Every limit of the gate's decisions.

use std::time::Duration;

/// Limits; each bounds memory or time that a guest could otherwise use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreLimits {
    /// Openers that wait at once; the next one is answered *overloaded* by policy. Each holds a
    /// descriptor.
    pub openers_max: usize,
    /// Files that wait for a place among those in flight.
    pub queue_len_max: usize,
    /// Files being hashed, asked about or sent at once; an appliance may say less.
    pub in_flight_max: usize,
    /// Of those, files nobody waits for (close-write, ledger).
    pub background_in_flight_max: usize,
    /// Files whose openers were all answered by policy and whose scan goes on. Each holds a
    /// descriptor. Beyond it the oldest is left to the ledger.
    pub kept_max: usize,
    /// Verdicts remembered.
    pub cache_entries_max: usize,
    /// Verdicts that stand in the kernel. Each holds a descriptor.
    pub standing_max: usize,
    /// How long openers wait for a lost link before policy answers them at once.
    pub link_grace: Duration,
    /// How long a scan that nobody waits for may go on.
    pub scan_time_max: Duration,
    /// How often a file that keeps changing is hashed, with pauses that grow to
    /// 100 ms in between.
    pub attempts_max: u32,
}

impl Default for CoreLimits {
    fn default() -> Self {
        Self {
            openers_max: 4096,
            queue_len_max: 4096,
            in_flight_max: 64,
            background_in_flight_max: 32,
            kept_max: 256,
            cache_entries_max: 16_384,
            standing_max: 8192,
            link_grace: Duration::from_secs(3),
            scan_time_max: Duration::from_secs(600),
            attempts_max: 16,
        }
    }
}
