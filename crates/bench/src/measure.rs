//! Timed passes over files, and what they add up to.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testbed::Pin;

/// One pass over all files.
#[derive(Debug)]
pub(crate) struct Pass {
    /// open(2) + close(2) of each file, in nanoseconds.
    pub(crate) each_ns: Vec<u64>,
    /// From the first open to the last close.
    pub(crate) wall: Duration,
}

impl Pass {
    /// Opens and closes each file once, spread over `threads`.
    pub(crate) fn run(files: &[PathBuf], threads: usize, pin: Pin) -> Result<Self> {
        pin.apply(|| {
            let start = Instant::now();
            let parts = std::thread::scope(|scope| {
                let share = |number| files.iter().skip(number).step_by(threads);
                let workers: Vec<_> = (0..threads)
                    .map(|number| scope.spawn(move || open_each(share(number))))
                    .collect();
                let joined = workers.into_iter().map(|worker| match worker.join() {
                    Ok(part) => part,
                    Err(panic) => std::panic::resume_unwind(panic),
                });
                joined.collect::<Result<Vec<_>>>()
            })?;
            Ok(Self {
                each_ns: parts.concat(),
                wall: start.elapsed(),
            })
        })
    }
}

fn open_each<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<Vec<u64>> {
    files
        .map(|file| {
            let start = Instant::now();
            let opened = File::open(file);
            // A clean file that is denied makes the whole run worthless.
            drop(opened.with_context(|| format!("cannot open {}", file.display()))?);
            Ok(start.elapsed().as_nanos() as u64)
        })
        .collect()
}

/// What several passes of one kind add up to.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    /// Of all opens of all passes, in µs.
    pub(crate) p50_us: f64,
    /// Of all opens of all passes, in µs.
    pub(crate) p99_us: f64,
    /// Median over the passes.
    pub(crate) opens_per_s: f64,
    /// All opens in rising order, in µs.
    pub(crate) sorted_us: Vec<f64>,
}

impl Summary {
    /// `passes` is not empty, and neither is any of them.
    pub(crate) fn of(passes: &[Pass]) -> Self {
        let all = passes.iter().flat_map(|pass| &pass.each_ns);
        let mut sorted_us: Vec<f64> = all.map(|ns| *ns as f64 / 1e3).collect();
        sorted_us.sort_by(f64::total_cmp);
        let rates = passes
            .iter()
            .map(|pass| pass.each_ns.len() as f64 / pass.wall.as_secs_f64());
        let mut rates: Vec<f64> = rates.collect();
        rates.sort_by(f64::total_cmp);
        Self {
            p50_us: quantile(&sorted_us, 0.5),
            p99_us: quantile(&sorted_us, 0.99),
            opens_per_s: quantile(&rates, 0.5),
            sorted_us,
        }
    }
}

/// The value below which the share `q` of `sorted` lies; the upper of two neighbours.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (sorted.len() as f64 * q) as usize;
    sorted[rank.min(sorted.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.5), 51.0);
        assert_eq!(quantile(&hundred, 0.99), 100.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn every_file_once_whatever_the_threads() {
        let dir = tempfile::tempdir().expect("tempdir");
        let files: Vec<PathBuf> = (0..7)
            .map(|number| dir.path().join(number.to_string()))
            .collect();
        files
            .iter()
            .for_each(|file| std::fs::write(file, b"x").expect("write"));
        for threads in [1, 4, 9] {
            let pass = Pass::run(&files, threads, Pin::Free).expect("pass");
            assert_eq!(pass.each_ns.len(), files.len());
        }
        let missing = [dir.path().join("missing")];
        assert!(Pass::run(&missing, 1, Pin::Free).is_err());
    }
}
