//! The numbers of placement, each with its default.

use std::time::Duration;

/// Numbers of placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// An appliance is never called full below this share of its capacity, in percent. 60.
    pub bound_floor_percent: u64,
    /// Nor below the fleet's mean use times this, in percent. 125.
    pub bound_mean_percent: u64,
    /// What is over its bound sheds down to this share of it, in percent. 97.
    pub shed_to_percent: u64,
    /// A guest goes home where that leaves the nearer appliance below this share of its bound, in
    /// percent. 90.
    pub home_below_percent: u64,
    /// Moves that nothing forces (shedding, going home), in thousandths of the fleet a minute;
    /// at least 10. 10.
    pub optional_moves_per_mille_minute: u64,
    /// Moves away from draining appliances in one tick. 2000.
    pub drain_moves_max: usize,
    /// VMs in a worse tier than they could be that one tick looks at. 512.
    pub homecoming_looks_max: usize,
    /// Lists with a dead backup that one tick renews. 512.
    pub list_renewals_max: usize,
    /// An appliance that appears or returns gets its full weight after this time. 120 s.
    pub slow_start: Duration,
    /// Share of its capacity that it has at once, in percent. 10.
    pub slow_start_floor_percent: u64,
    /// A queue that holds scans up by so long takes no further guests, in milliseconds. 200.
    pub queue_busy_ms: u32,
    /// A measured round trip counts for so long. 900 s.
    pub measured_valid: Duration,
    /// What arrives so soon after the inventory has moved a VM was measured before. 2 s.
    pub measured_after_move: Duration,
    /// An appliance is measured as nearer than another when its round trip times this, in
    /// percent, is below the other's. 200.
    pub nearer_percent: u64,
    /// … and by at least this, in microseconds. 100.
    pub nearer_by_us: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bound_floor_percent: 60,
            bound_mean_percent: 125,
            shed_to_percent: 97,
            home_below_percent: 90,
            optional_moves_per_mille_minute: 10,
            drain_moves_max: 2000,
            homecoming_looks_max: 512,
            list_renewals_max: 512,
            slow_start: Duration::from_secs(120),
            slow_start_floor_percent: 10,
            queue_busy_ms: 200,
            measured_valid: Duration::from_secs(900),
            measured_after_move: Duration::from_secs(2),
            nearer_percent: 200,
            nearer_by_us: 100,
        }
    }
}

/// A number that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{key} must be between {min} and {max}")]
pub struct SettingError {
    /// Which.
    pub key: &'static str,
    /// Lowest.
    pub min: u64,
    /// Highest.
    pub max: u64,
}

impl Settings {
    /// Checks every number.
    ///
    /// # Errors
    /// The first that is out of range.
    pub fn validate(&self) -> Result<(), SettingError> {
        let ranges = [
            ("bound_floor_percent", self.bound_floor_percent, 1, 100),
            ("bound_mean_percent", self.bound_mean_percent, 101, 1000),
            ("shed_to_percent", self.shed_to_percent, 50, 100),
            ("home_below_percent", self.home_below_percent, 1, 100),
            (
                "optional_moves_per_mille_minute",
                self.optional_moves_per_mille_minute,
                0,
                1000,
            ),
            (
                "slow_start_floor_percent",
                self.slow_start_floor_percent,
                1,
                100,
            ),
            ("nearer_percent", self.nearer_percent, 100, 10_000),
        ];
        for (key, value, min, max) in ranges {
            if value < min || value > max {
                return Err(SettingError { key, min, max });
            }
        }
        Ok(())
    }
}
