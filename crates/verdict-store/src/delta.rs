//! What a verdict of the last rules is worth under the next: only what changed is run.

use std::collections::BTreeSet;

use crate::{Entry, Judged};

/// One rule. Equal ids mean equal judgement.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    /// The engine, as in detections.
    pub engine: String,
    /// The rule, as the engine names it in detections.
    pub name: String,
    /// BLAKE3 of everything the rule's judgement depends on: its source, and the sources of the
    /// rules, includes and global rules that it refers to.
    pub source: [u8; 32],
}

/// Everything that judges in one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Identity of all that is not a rule: engine programs, their settings, engines whose rules
    /// cannot be told apart (ClamAV's).
    pub basis: [u8; 16],
    /// The rules.
    pub rules: BTreeSet<RuleId>,
}

/// The difference between two manifests. A rule that changed is in both lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleDelta {
    /// Rules of the new manifest alone, in order.
    pub added: Vec<RuleId>,
    /// Rules of the old manifest alone, in order.
    pub removed: Vec<RuleId>,
}

impl RuleDelta {
    /// `None` where more than rules changed: then nothing of the old generation can be used.
    #[must_use]
    pub fn between(old: &Manifest, new: &Manifest) -> Option<Self> {
        (old.basis == new.basis).then(|| Self {
            added: new.rules.difference(&old.rules).cloned().collect(),
            removed: old.rules.difference(&new.rules).cloned().collect(),
        })
    }
}

/// What to do with an entry of the old generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It holds under the new rules; see [`carried`].
    Keep,
    /// Run the added rules only: clean if they say so, else what they find.
    Rerun,
    /// What decided it is gone; judge anew with all rules.
    Drop,
}

/// Judges an entry of the old generation under a change of rules.
///
/// A clean entry says that no old rule matched; taking rules away cannot change that, so that only
/// the added ones are in doubt. A malicious one holds as long as one of the detections listed is by
/// a rule that is still there unchanged. Where none is, others may have matched that were not
/// listed, so that nothing is known.
#[must_use]
pub fn decide(entry: &Entry, delta: &RuleDelta) -> Decision {
    match &entry.judged {
        Judged::Clean if delta.added.is_empty() => Decision::Keep,
        Judged::Clean => Decision::Rerun,
        Judged::Malicious { detections, .. } => {
            if detections.iter().any(|d| !is_removed(d, delta)) {
                Decision::Keep
            } else {
                Decision::Drop
            }
        }
    }
}

/// The entry for the new generation where [`decide`] says [`Decision::Keep`]: without detections by
/// rules that are gone. `None` in the other cases.
#[must_use]
pub fn carried(entry: &Entry, delta: &RuleDelta) -> Option<Entry> {
    if decide(entry, delta) != Decision::Keep {
        return None;
    }
    let mut entry = entry.clone();
    if let Judged::Malicious { detections, .. } = &mut entry.judged {
        detections.retain(|detection| !is_removed(detection, delta));
    }
    Some(entry)
}

/// By name alone: where two rules share a name and one is removed, neither is relied on.
fn is_removed(detection: &model::Detection, delta: &RuleDelta) -> bool {
    let mut removed = delta.removed.iter();
    removed.any(|rule| rule.name == detection.name && rule.engine == detection.engine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Coverage, Detection};
    use proptest::prelude::*;

    /// `a1` is rule `a` with source `1`.
    fn rule(text: &str) -> RuleId {
        let (name, source) = text.split_at(1);
        RuleId {
            engine: "yara".into(),
            name: name.into(),
            source: *blake3::hash(source.as_bytes()).as_bytes(),
        }
    }

    fn manifest(rules: &str) -> Manifest {
        Manifest {
            basis: [0; 16],
            rules: rules.split_whitespace().map(rule).collect(),
        }
    }

    fn entry(matched: &str) -> Entry {
        let detections = matched.split_whitespace().map(|name| Detection {
            name: name.into(),
            engine: "yara".into(),
            path_inside: Vec::new(),
        });
        let detections: Vec<_> = detections.collect();
        let judged = if detections.is_empty() {
            Judged::Clean
        } else {
            Judged::Malicious {
                detections,
                omitted: 0,
            }
        };
        Entry {
            judged,
            engines: Vec::new(),
            coverage: Coverage::whole(1),
            plan: None,
            judged_at: 0,
        }
    }

    fn check(matched: &str, old: &str, new: &str, expected: Decision) {
        let delta = RuleDelta::between(&manifest(old), &manifest(new)).unwrap();
        assert_eq!(decide(&entry(matched), &delta), expected, "{matched}: {old} → {new}");
    }

    #[test]
    fn clean_needs_the_added_rules_only() {
        check("", "a1 b1", "a1 b1", Decision::Keep);
        check("", "a1 b1", "a1", Decision::Keep);
        check("", "a1 b1", "a1 b1 c1", Decision::Rerun);
        check("", "a1 b1", "a1 b2", Decision::Rerun);
    }

    #[test]
    fn malicious_lives_as_long_as_a_rule_that_detected_it() {
        check("a", "a1 b1", "a1 b1", Decision::Keep);
        check("a", "a1 b1", "a1 b2 c1", Decision::Keep);
        check("a", "a1 b1", "b1", Decision::Drop);
        check("a", "a1 b1", "a2 b1", Decision::Drop);
        check("a b", "a1 b1", "a2 b1", Decision::Keep);
        check("a b", "a1 b1", "a2", Decision::Drop);
    }

    #[test]
    fn of_two_rules_with_one_name_neither_is_relied_on() {
        check("a", "a1 a2", "a1", Decision::Drop);
    }

    #[test]
    fn another_engine_has_names_of_its_own() {
        let mut other = entry("a");
        if let Judged::Malicious { detections, .. } = &mut other.judged {
            detections[0].engine = "clamd".into();
        }
        let delta = RuleDelta::between(&manifest("a1"), &manifest("")).unwrap();
        assert_eq!(decide(&other, &delta), Decision::Keep);
    }

    #[test]
    fn a_new_engine_makes_everything_new() {
        let mut new = manifest("a1");
        new.basis = [1; 16];
        assert_eq!(RuleDelta::between(&manifest("a1"), &new), None);
    }

    #[test]
    fn what_is_carried_names_no_rule_that_is_gone() {
        let delta = RuleDelta::between(&manifest("a1 b1"), &manifest("b1")).unwrap();
        assert_eq!(carried(&entry("a b"), &delta), Some(entry("b")));
        assert_eq!(carried(&entry("a"), &delta), None);
        assert_eq!(carried(&entry(""), &delta), Some(entry("")));
    }

    proptest! {
        /// Against a model of an engine, a rule matching where its letter and digit are in the
        /// content: whatever the decision, the new verdict is that of a full scan.
        #[test]
        fn the_outcome_is_that_of_a_full_scan(
            old in prop::collection::btree_set("[a-d][12]", 0..6),
            new in prop::collection::btree_set("[a-d][12]", 0..6),
            content in prop::collection::btree_set("[a-d][12]", 0..4),
        ) {
            let text = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
            let delta = RuleDelta::between(&manifest(&text(&old)), &manifest(&text(&new))).unwrap();
            let matched: Vec<&str> = old.intersection(&content).map(|r| &r[..1]).collect();
            let entry = entry(&matched.join(" "));
            let is_malicious = match decide(&entry, &delta) {
                Decision::Keep => entry.judged != Judged::Clean,
                Decision::Rerun => content.iter().any(|r| delta.added.contains(&rule(r))),
                Decision::Drop => return Ok(()),
            };
            prop_assert_eq!(is_malicious, !new.is_disjoint(&content));
        }
    }
}
