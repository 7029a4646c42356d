//! The progress bar's line.

use std::time::Duration;

use super::totals::Totals;

/// Width of the bar proper.
const BAR_CELLS: u64 = 20;
/// Weight of the newest measurement in the rate, in percent.
const NEWEST_PERCENT: f64 = 15.0;

/// All that there is to scan, once it has been counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Where a scan stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) totals: Totals,
    /// Bytes read, those of unfinished files too.
    pub(crate) bytes_read: u64,
    /// `None`: not counted yet.
    pub(crate) expected: Option<Expected>,
    /// Waiting for the gate's openers, or for an appliance.
    pub(crate) paused: Option<&'static str>,
}

/// Measures rates from one line to the next.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    last: Option<(Duration, Totals, u64)>,
    bytes_per_s: Option<f64>,
    files_per_s: Option<f64>,
}

impl Rates {
    /// The line for where the scan stands, `at` so long after its start.
    pub(crate) fn line(&mut self, at: Duration, now: &Standing) -> String {
        self.measure(at, now);
        let totals = &now.totals;
        let mut line = format!("{} files, {}", totals.files, size(now.bytes_read));
        if let Some(rate) = self.bytes_per_s {
            line.push_str(&format!(", {}/s", size(rate as u64)));
        }
        match now.expected {
            Some(expected) => {
                let done = share(now.bytes_read, expected.bytes, totals.files, expected.files);
                let cells = (done * BAR_CELLS as f64) as u64;
                let cell = |at| if at < cells { '#' } else { '-' };
                let bar: String = (0..BAR_CELLS).map(cell).collect();
                line.push_str(&format!("  [{bar}] {:.0} %", (done * 100.0).floor()));
                if let Some(left) = self.time_left(now, expected) {
                    line.push_str(&format!("  ETA {}", clock(left)));
                }
            }
            None => line.push_str("  (counting)"),
        }
        for (count, what) in [
            (totals.found, "found"),
            (totals.unscanned, "unscanned"),
            (totals.errors, "errors"),
        ] {
            if count > 0 {
                line.push_str(&format!("  {count} {what}"));
            }
        }
        if let Some(why) = now.paused {
            line.push_str(&format!("  ({why})"));
        }
        line
    }

    fn measure(&mut self, at: Duration, now: &Standing) {
        let last = self.last.replace((at, now.totals, now.bytes_read));
        let Some((last_at, last_totals, last_bytes)) = last else {
            return;
        };
        let seconds = at.saturating_sub(last_at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let smooth = |old: Option<f64>, new: f64| {
            let new_share = NEWEST_PERCENT / 100.0;
            Some(old.map_or(new, |old| old + (new - old) * new_share))
        };
        self.bytes_per_s = smooth(self.bytes_per_s, rate(now.bytes_read, last_bytes));
        self.files_per_s = smooth(self.files_per_s, rate(now.totals.files, last_totals.files));
    }

    /// Whichever is the longer: by bytes or by files. Small files cost by their number.
    fn time_left(&self, now: &Standing, expected: Expected) -> Option<Duration> {
        let left = |expected: u64, done: u64, rate: f64| {
            let left = expected.saturating_sub(done) as f64;
            if left == 0.0 {
                Some(0.0)
            } else {
                (rate > 0.0).then(|| left / rate)
            }
        };
        let bytes = left(expected.bytes, now.bytes_read, self.bytes_per_s?)?;
        let files = left(expected.files, now.totals.files, self.files_per_s?)?;
        Duration::try_from_secs_f64(bytes.max(files)).ok()
    }
}

/// Between 0 and 1. Files that were added since the count never make it more.
fn share(bytes: u64, bytes_expected: u64, files: u64, files_expected: u64) -> f64 {
    let part = |done: u64, all: u64| {
        if all == 0 {
            1.0
        } else {
            done as f64 / all as f64
        }
    };
    part(bytes, bytes_expected)
        .min(part(files, files_expected))
        .min(1.0)
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

fn clock(time: Duration) -> String {
    let s = time.as_secs();
    format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(files: u64, bytes_read: u64, expected: Option<Expected>) -> Standing {
        Standing {
            totals: Totals {
                files,
                ..Totals::default()
            },
            bytes_read,
            expected,
            paused: None,
        }
    }

    #[test]
    fn lines() {
        let mut rates = Rates::default();
        let at = Duration::from_secs;
        let line = rates.line(at(0), &standing(0, 0, None));
        assert_eq!(line, "0 files, 0 B  (counting)");
        let expected = Some(Expected {
            files: 100,
            bytes: 40 << 20,
        });
        let mut now = standing(50, 10 << 20, expected);
        now.totals.found = 2;
        let line = rates.line(at(10), &now);
        assert_eq!(
            line,
            "50 files, 10.0 MiB, 1.0 MiB/s  [#####---------------] 25 %  ETA 0:00:30  2 found"
        );
        let mut done = standing(100, 41 << 20, expected);
        done.paused = Some("openers first");
        let line = rates.line(at(20), &done);
        assert!(line.ends_with("[####################] 100 %  ETA 0:00:00  (openers first)"));
    }

    #[test]
    fn no_rate_is_no_eta() {
        let mut rates = Rates::default();
        let expected = Some(Expected {
            files: 1,
            bytes: u64::MAX,
        });
        for s in 0..3 {
            let line = rates.line(Duration::from_secs(s), &standing(0, 0, expected));
            assert!(!line.contains("ETA"), "{line}");
        }
    }
}
