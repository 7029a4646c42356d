//! Verdicts of the last rules, brought to the new ones: of a content that was clean, only the rules
//! that are new or changed are run.
//!
//! Clean says that no rule of then matched. Taking rules away cannot change that, so that only the
//! new ones are in doubt. Malicious holds as long as a rule that found it is there unchanged; where
//! none is, others may have matched that were not listed, so that nothing is known. Whatever else
//! there is (another engine's rules changed, the new rules' finding is not complete) is judged by
//! all engines, as if nothing were known.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use model::{Generation, Outcome};
use scan_core::{EngineFacts, Settings, generation_in_force};

use crate::engines::SharedEngine;

/// A manifest's first line begins with this; engine-yara writes it.
const HEADER: &str = "lazaret rules ";

/// The rules of one generation of one engine, by what identifies them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    text: String,
    generation: Generation,
}

impl Manifest {
    /// Reads what the engine wrote; `None` for anything else.
    #[must_use]
    pub fn read(text: String) -> Option<Self> {
        let first = text.lines().next()?;
        let (_version, generation) = first.strip_prefix(HEADER)?.rsplit_once(' ')?;
        Some(Self {
            generation: Generation::from_hex(generation)?,
            text,
        })
    }

    /// As it was read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The engine's generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    fn version(&self) -> Option<&str> {
        let first = self.text.lines().next()?;
        Some(first.rsplit_once(' ')?.0)
    }

    /// Fingerprints of rules that judge together, each with their names.
    fn groups(&self) -> HashMap<&str, &str> {
        let lines = self.text.lines().skip(1);
        lines
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
            .collect()
    }

    /// The change since then. `None`: they cannot be compared.
    #[must_use]
    pub fn since(&self, old: &Self) -> Option<Change> {
        if self.version() != old.version() {
            return None;
        }
        let (before, now) = (old.groups(), self.groups());
        let gone = before.iter().filter(|(group, _)| !now.contains_key(*group));
        let gone = gone.flat_map(|(_, names)| names.split(' ').map(str::to_owned));
        Some(Change {
            new_groups: now
                .keys()
                .filter(|group| !before.contains_key(*group))
                .count(),
            gone: gone.collect(),
        })
    }
}

/// What happened to a set of rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Groups of rules that are new or changed.
    pub new_groups: usize,
    /// Names of rules that went or changed. Another rule of the same name may still be there:
    /// then neither is relied on.
    pub gone: HashSet<String>,
}

/// From which generation verdicts can be brought to the one in force, and by what.
pub(crate) struct RuleDelta {
    pub(crate) from: Generation,
    pub(crate) to: Generation,
    /// The rules that are new or changed; `None`: there are none, some went.
    pub(crate) engine: Option<SharedEngine>,
    /// The engine whose rules these are.
    name: String,
    gone: HashSet<String>,
}

impl RuleDelta {
    /// The change from `old`, if `facts` are those of engines among which nothing else changed.
    /// Where something did, no verdict will be found under `from`.
    pub(crate) fn new(
        name: &str,
        old: &Manifest,
        facts: &[EngineFacts],
        settings: Settings,
        change: Change,
        engine: Option<SharedEngine>,
    ) -> Arc<Self> {
        let now = facts.iter().map(|it| (it.name.as_str(), it.generation));
        let then = facts.iter().map(|it| {
            let is_it = it.name == name;
            let generation = if is_it { old.generation } else { it.generation };
            (it.name.as_str(), generation)
        });
        Arc::new(Self {
            from: generation_in_force(then, settings),
            to: generation_in_force(now, settings),
            engine,
            name: name.to_owned(),
            gone: change.gone,
        })
    }

    /// What an outcome of then is worth now.
    pub(crate) fn decide(&self, then: &Outcome) -> Decision {
        match (then, &self.engine) {
            (Outcome::Clean, None) => Decision::Keep(Outcome::Clean),
            (Outcome::Clean, Some(engine)) => Decision::Rerun(engine.clone()),
            (
                Outcome::Malicious {
                    detections,
                    omitted,
                },
                _,
            ) => {
                let mut detections = detections.clone();
                detections.retain(|it| it.engine != self.name || !self.gone.contains(&it.name));
                if detections.is_empty() {
                    return Decision::Drop;
                }
                Decision::Keep(Outcome::Malicious {
                    detections,
                    omitted: *omitted,
                })
            }
            (Outcome::Unscanned { .. } | Outcome::Error { .. }, _) => Decision::Drop,
        }
    }
}

/// What to do with a verdict of the generation before.
pub(crate) enum Decision {
    /// It holds, so.
    Keep(Outcome),
    /// Clean, if the rules that are new say so.
    Rerun(SharedEngine),
    /// All engines must judge.
    Drop,
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Detection;

    fn manifest(text: &str) -> Manifest {
        Manifest::read(text.to_owned()).unwrap()
    }

    const G: &str = "01010101010101010101010101010101";

    #[test]
    fn what_changed() {
        let old = manifest(&format!("lazaret rules 1 v1 {G}\naa A\nbb B C\n"));
        assert_eq!(old.generation(), Generation([1; 16]));
        let since = |text: &str| manifest(&format!("{text} {G}\naa A\ncc B C\n")).since(&old);
        let change = since("lazaret rules 1 v1").unwrap();
        assert_eq!(change.new_groups, 1);
        assert_eq!(change.gone, HashSet::from(["B".to_owned(), "C".to_owned()]));
        // Another version of the engine may judge otherwise by the same rules.
        assert_eq!(since("lazaret rules 1 v2"), None);
        assert_eq!(old.since(&old), Some(Change::default()));
        assert!(Manifest::read("something else".into()).is_none());
        assert!(Manifest::read("lazaret rules 1 x".into()).is_none());
    }

    fn malicious(found: &[(&str, &str)]) -> Outcome {
        let detections = found.iter().map(|(engine, name)| Detection {
            name: (*name).into(),
            engine: (*engine).into(),
            path_inside: Vec::new(),
        });
        Outcome::Malicious {
            detections: detections.collect(),
            omitted: 0,
        }
    }

    /// `None`: all engines must judge.
    #[track_caller]
    fn check(then: Outcome, expected: Option<Outcome>) {
        let facts = [EngineFacts {
            name: "yara".into(),
            version: "1".into(),
            generation: Generation([2; 16]),
            rules: 1,
            context_sensitive: false,
            workers: 1,
        }];
        let old = manifest(&format!("lazaret rules 1 v1 {G}\naa A\nbb B\n"));
        let change = Change {
            new_groups: 0,
            gone: HashSet::from(["B".to_owned()]),
        };
        let settings = Settings::of(&[]);
        let delta = RuleDelta::new("yara", &old, &facts, settings, change, None);
        let before = generation_in_force([("yara", Generation([1; 16]))], settings);
        assert_eq!(delta.from, before);
        assert_ne!(delta.from, delta.to);
        let decided = match delta.decide(&then) {
            Decision::Keep(outcome) => Some(outcome),
            Decision::Rerun(_) => panic!("there is no rule to run"),
            Decision::Drop => None,
        };
        assert_eq!(decided, expected);
    }

    #[test]
    fn a_verdict_lives_as_long_as_a_rule_that_made_it() {
        check(Outcome::Clean, Some(Outcome::Clean));
        let a = malicious(&[("yara", "A")]);
        check(a.clone(), Some(a.clone()));
        check(malicious(&[("yara", "B")]), None);
        check(malicious(&[("yara", "B"), ("yara", "A")]), Some(a));
        // Another engine has names of its own.
        let other = malicious(&[("clamd", "B")]);
        check(other.clone(), Some(other));
        check(Outcome::unscanned(model::UnscannedReason::Encrypted), None);
    }
}
