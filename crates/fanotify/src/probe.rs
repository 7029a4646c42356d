//! What this kernel and one file system really do, tried out on files made for it.
//!
//! The gate's fast paths each rest on some behaviour of the kernel that differs between versions
//! and file systems and fails without a word. So none is used before it was seen to work here:
//! [`probe`] runs the experiments in a folder of its own, and [`Report::finding_of`] says which
//! fast paths they bear out. What cannot be tried (a file system that is read-only, say) is not
//! called sound.

mod experiments;
mod scene;

use std::path::Path;
use std::time::Duration;

pub use crate::sys::SharedMapping;
use experiments::ALL;
use scene::{Failed, Scene};

/// What an experiment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It was seen to hold.
    Sound,
    /// It was seen not to hold.
    Unsound(String),
    /// It could not be tried.
    Unknown(String),
}

impl Finding {
    /// `sound`, `unsound` or `unknown`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Unsound(_) => "unsound",
            Self::Unknown(_) => "unknown",
        }
    }

    /// What was seen instead, or why it could not be tried; empty where it is sound.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Sound => "",
            Self::Unsound(why) | Self::Unknown(why) => why,
        }
    }

    /// The worse of two.
    fn and(&self, other: &Self) -> Self {
        let badness = |finding: &Self| match finding {
            Self::Sound => 0,
            Self::Unknown(_) => 1,
            Self::Unsound(_) => 2,
        };
        let worse = if badness(other) > badness(self) {
            other
        } else {
            self
        };
        worse.clone()
    }
}

/// Ways to answer an open without judging it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FastPath {
    /// The agent remembers verdicts by identity.
    Cache,
    /// A verdict counts at once, without waiting for the clock to tick after the last change.
    FineStamps,
    /// Verdicts stand in the kernel.
    Standing,
}

impl FastPath {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cache, Self::FineStamps, Self::Standing];

    /// For metrics and people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::FineStamps => "fine_stamps",
            Self::Standing => "standing",
        }
    }
}

/// One experiment.
#[derive(Debug)]
pub struct Experiment {
    /// What is expected to hold.
    pub claim: &'static str,
    /// The row of the design's table of kernel traps.
    pub trap: u8,
    /// The fast paths that rest on it.
    supports: &'static [FastPath],
    run: fn(&Scene) -> Result<(), Failed>,
}

/// Longer than a child takes to run its program.
const PAUSE: Duration = Duration::from_millis(100);
/// How often an experiment that failed has to hold after all.
const AGAIN: usize = 3;

impl Experiment {
    /// A child of ours that has not run its program yet has open what we have: to the kernel it is a
    /// writer, and its close is the one that is told. So one failure says nothing yet.
    fn try_on(&self, scene: &Scene) -> Finding {
        let first = found((self.run)(scene));
        if first == Finding::Sound {
            return first;
        }
        std::thread::sleep(PAUSE);
        let mut again = (0..AGAIN).map(|_| found((self.run)(scene)));
        let failed = again.find(|finding| *finding != Finding::Sound);
        failed.map_or(Finding::Sound, |second| first.and(&second))
    }
}

/// What was found on one file system.
#[derive(Debug)]
pub struct Report {
    /// Each experiment and what it says, in a fixed order.
    pub findings: Vec<(&'static Experiment, Finding)>,
}

impl Report {
    /// Whether a fast path may be used here: it is as sound as the least of what it rests on.
    #[must_use]
    pub fn finding_of(&self, path: FastPath) -> Finding {
        let of_path = self
            .findings
            .iter()
            .filter(|(experiment, _)| experiment.supports.contains(&path));
        of_path.fold(Finding::Sound, |worst, (_, finding)| worst.and(finding))
    }
}

/// Tries everything on the file system that `directory` is on, in a folder made there and removed
/// again. Takes some tenths of a second. While it runs the file system is guarded by a group of
/// its own, which lets every open pass.
#[must_use]
pub fn probe(directory: &Path) -> Report {
    // In a thread of its own, for it blocks signals that nobody else must have blocked.
    let tried = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("probe".into());
        let spawned = thread.spawn_scoped(scope, || try_all(directory));
        spawned.ok().and_then(|thread| thread.join().ok())
    });
    tried.unwrap_or_else(|| nothing_known("the experiments broke off"))
}

fn try_all(directory: &Path) -> Report {
    match Scene::set(directory) {
        Ok(scene) => Report {
            findings: ALL.iter().map(|it| (it, it.try_on(&scene))).collect(),
        },
        Err(Failed::Otherwise(why) | Failed::Untried(why)) => nothing_known(&why),
    }
}

fn nothing_known(why: &str) -> Report {
    let unknown = Finding::Unknown(why.to_owned());
    Report {
        findings: ALL.iter().map(|it| (it, unknown.clone())).collect(),
    }
}

fn found(result: Result<(), Failed>) -> Finding {
    match result {
        Ok(()) => Finding::Sound,
        Err(Failed::Otherwise(what)) => Finding::Unsound(what),
        Err(Failed::Untried(why)) => Finding::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::scene::ensure;
    use super::*;

    #[test]
    fn a_fast_path_is_as_sound_as_the_least_of_what_it_rests_on() {
        let unsound = || Finding::Unsound("x".to_owned());
        let unknown = || Finding::Unknown("y".to_owned());
        for (findings, expected) in [
            ([Finding::Sound, Finding::Sound], Finding::Sound),
            ([Finding::Sound, unknown()], unknown()),
            ([unknown(), unsound()], unsound()),
            ([unsound(), unknown()], unsound()),
        ] {
            let both = ALL
                .iter()
                .filter(|it| it.supports.contains(&FastPath::Cache));
            let report = Report {
                findings: both.zip(findings).collect(),
            };
            assert_eq!(report.finding_of(FastPath::Cache), expected);
        }
    }

    #[test]
    fn one_failure_says_nothing_yet_and_two_do() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        fn fails_first(_: &Scene) -> Result<(), Failed> {
            let run = RUNS.fetch_add(1, Ordering::Relaxed);
            ensure(run != 0, "it failed first")
        }
        fn fails_at_times(_: &Scene) -> Result<(), Failed> {
            match RUNS.fetch_add(1, Ordering::Relaxed) {
                4 => ensure(false, "it failed"),
                7 => Err(Failed::Untried("no descriptor".to_owned())),
                _ => Ok(()),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let scene = Scene::set(dir.path()).unwrap_or_else(|_| panic!("a scene (needs root)"));
        let try_on = |run| {
            let experiment = Experiment {
                claim: "",
                trap: 0,
                supports: &[],
                run,
            };
            experiment.try_on(&scene)
        };
        assert_eq!(try_on(fails_first), Finding::Sound);
        assert_eq!(RUNS.load(Ordering::Relaxed), 1 + AGAIN);
        // The worse of both counts.
        let failed = Finding::Unsound("it failed".to_owned());
        assert_eq!(try_on(fails_at_times), failed);
    }

    #[test]
    fn each_fast_path_rests_on_something() {
        for path in FastPath::ALL {
            assert!(ALL.iter().any(|it| it.supports.contains(&path)), "{path:?}");
        }
    }
}
