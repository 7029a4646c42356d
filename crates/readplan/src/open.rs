//! Which rules are still open for a file.

use std::cell::RefCell;
use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::class::{Class, Kind};
use crate::compile::{Plan, RuleId};
use crate::eval::{Evaluation, Presence, References};
use crate::glance::Glance;
use crate::known::{Bytes, Hits, View};
use crate::look::Look;
use crate::value::Truth;

/// From this size of the content on, in bytes, one more pass is worth what making it takes...
const AGAIN_MIN: usize = 128 << 10;
/// ...for so many patterns at most...
const AGAIN_MAX: usize = 48;
/// ...so often at most.
const PASSES_MAX: usize = 4;

/// What is known of a file.
pub struct Known<'a> {
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes, as far as they are at hand.
    pub bytes: &'a dyn Bytes,
    /// All occurrences of the filter's literals.
    pub hits: &'a Hits,
    /// The whole content, to look for patterns that the literals leave open; costs a search for
    /// some of them. `hits` remember what it found.
    pub search: Option<&'a [u8]>,
}

/// Nothing known.
struct Nothing;

impl Bytes for Nothing {
    fn get(&self, _: u64, _: usize) -> Option<&[u8]> {
        None
    }
}

impl Plan {
    /// The rules that may match this file: all others do not. `probe` tells what YARA-X said of a
    /// probe (by its index): true, not true, or `None` where it was not asked.
    pub fn open(&self, known: &Known<'_>, probe: &dyn Fn(usize) -> Option<bool>) -> Vec<RuleId> {
        let class = Class::of(known.size, known.bytes);
        let candidates = self.candidates(known, class, probe);
        self.still_open(&candidates, known, probe)
    }

    /// Those of `rules` that may still match, now that more is known.
    pub fn still_open(
        &self,
        rules: &[RuleId],
        known: &Known<'_>,
        probe: &dyn Fn(usize) -> Option<bool>,
    ) -> Vec<RuleId> {
        let open = |rules: &[RuleId], known: &Known<'_>| -> Vec<RuleId> {
            self.evaluate(known, probe, |evaluation| {
                let open = |rule: &RuleId| evaluation.rule(*rule) != Truth::False;
                rules.iter().copied().filter(open).collect()
            })
        };
        match known.search {
            Some(content) if !rules.is_empty() && !known.hits.glance() => {
                self.glance(known, content);
                // What the glance shuts needs no search for anything else.
                let search = None;
                let glanced = Known { search, ..*known };
                let mut left = open(rules, &glanced);
                // What is met of a rule leaves another of its patterns to be looked for.
                for _ in 0..PASSES_MAX {
                    if !self.glance_again(&left, known, content, probe) {
                        break;
                    }
                    left = open(&left, &glanced);
                }
                open(&left, known)
            }
            _ => open(rules, known),
        }
    }

    /// Those of `rules` that may still match, after a look at the places in a view where hex
    /// patterns may match.
    pub fn open_on_view(
        &self,
        rules: &[RuleId],
        known: &Known<'_>,
        view: &View<'_>,
        probe: &dyn Fn(usize) -> Option<bool>,
    ) -> Vec<RuleId> {
        let look = |pattern: usize| match self.presence(pattern, known.hits, known.bytes) {
            Presence::Maybe(most) => match self.look_at_hits(pattern, known.hits, view, usize::MAX)
            {
                Some(false) => Presence::Absent,
                Some(true) | None => Presence::Maybe(most),
            },
            told => told,
        };
        let memo: RefCell<FxHashMap<usize, Presence>> = RefCell::default();
        let presence = |pattern: usize| {
            let told = memo.borrow().get(&pattern).copied();
            told.unwrap_or_else(|| {
                let presence = look(pattern);
                memo.borrow_mut().insert(pattern, presence);
                presence
            })
        };
        self.evaluate_with(known, &presence, probe, |evaluation| {
            let open = |rule: &RuleId| evaluation.rule(*rule) != Truth::False;
            rules.iter().copied().filter(open).collect()
        })
    }

    pub(crate) fn evaluate<R>(
        &self,
        known: &Known<'_>,
        probe: &dyn Fn(usize) -> Option<bool>,
        with: impl FnOnce(&Evaluation<'_>) -> R,
    ) -> R {
        let presence = |pattern: usize| {
            let presence = self.presence(pattern, known.hits, known.bytes);
            if !matches!(presence, Presence::Maybe(_)) {
                return presence;
            }
            let looked = known.hits.looked(pattern);
            match (looked, known.search) {
                (Some(looked), _) => looked,
                (None, None) => presence,
                (None, Some(content)) => self.look_closely(pattern, known, content),
            }
        };
        self.evaluate_with(known, &presence, probe, with)
    }

    /// One pass over the content for many patterns, which `hits` remember.
    fn glance(&self, known: &Known<'_>, content: &[u8]) {
        let class = Class::of(known.size, known.bytes);
        if let Some(glance) = class.and_then(|class| self.classes().glance(class)) {
            let note = &mut |pattern, told| known.hits.note_glance(pattern, told);
            glance.look(content, note);
        }
    }

    /// One more pass in the place of a search for each pattern that nothing tells of yet: of each
    /// of these rules for those that shut it if they are absent, as most will be. False: there is
    /// nothing to look for in such a way.
    fn glance_again(
        &self,
        rules: &[RuleId],
        known: &Known<'_>,
        content: &[u8],
        probe: &dyn Fn(usize) -> Option<bool>,
    ) -> bool {
        if content.len() < AGAIN_MIN {
            return false;
        }
        let wanted: RefCell<BTreeSet<usize>> = RefCell::default();
        let info = |pattern: usize| self.patterns().get(pattern).map(|entry| &entry.info);
        let is_sought = |pattern: usize| {
            !known.hits.is_met(pattern) && info(pattern).is_some_and(|i| Glance::cost(i).is_some())
        };
        let presence = |pattern: usize| {
            let presence = self.presence(pattern, known.hits, known.bytes);
            match (presence, known.hits.looked(pattern)) {
                (Presence::Maybe(_), Some(looked)) => looked,
                (Presence::Maybe(_), None) if is_sought(pattern) => {
                    wanted.borrow_mut().insert(pattern);
                    Presence::Absent
                }
                (told, _) => told,
            }
        };
        self.evaluate_with(known, &presence, probe, |evaluation| {
            for rule in rules {
                evaluation.rule(*rule);
            }
        });
        let wanted = wanted.into_inner().into_iter().take(AGAIN_MAX);
        let infos = wanted.filter_map(|index| Some((index, info(index)?)));
        // One that cannot be made tells nothing.
        match Glance::once(infos) {
            Ok(glance) if !glance.is_empty() => {
                let note = &mut |pattern, told| known.hits.note_glance(pattern, told);
                glance.look(content, note);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// A look at the content, which `hits` remember.
    fn look_closely(&self, pattern: usize, known: &Known<'_>, content: &[u8]) -> Presence {
        let looked = self.look_for(pattern, known.hits, content);
        known.hits.note_look(pattern, looked);
        looked
    }

    fn evaluate_with<R>(
        &self,
        known: &Known<'_>,
        presence: &dyn Fn(usize) -> Presence,
        probe: &dyn Fn(usize) -> Option<bool>,
        with: impl FnOnce(&Evaluation<'_>) -> R,
    ) -> R {
        with(&Evaluation {
            plan: self,
            sizes: (known.size, known.size),
            kind: Kind::of(known.bytes),
            bytes: known.bytes,
            presence,
            probe,
            number: &|path| known.hits.number(path),
            references: References::default(),
        })
    }

    /// What a rule comes to in a file of this class of which nothing else is known but that
    /// nothing is found of what is looked for.
    pub(crate) fn without_hits(&self, rule: RuleId, look: &Look, class: Option<Class>) -> Truth {
        self.of_class(rule, class, &|pattern| look.without_hits(pattern), None)
    }

    /// What a rule comes to where these patterns are absent, whatever else there is.
    pub(crate) fn without_gate(
        &self,
        rule: RuleId,
        look: &Look,
        absent: &BTreeSet<usize>,
    ) -> Truth {
        let presence = |pattern| match absent.contains(&pattern) && look.seeks(pattern) {
            true => Presence::Absent,
            false => Presence::Maybe(None),
        };
        self.of_class(rule, None, &presence, None)
    }

    /// The same where no probe is true.
    pub(crate) fn without_probes(&self, rule: RuleId, look: &Look, class: Class) -> Truth {
        let presence = |pattern| look.without_hits(pattern);
        self.of_class(rule, Some(class), &presence, Some(false))
    }

    /// The same where these patterns are absent, too.
    pub(crate) fn without_probes_and(
        &self,
        rule: RuleId,
        look: &Look,
        class: Class,
        absent: &BTreeSet<usize>,
    ) -> Truth {
        let presence = |pattern| match absent.contains(&pattern) {
            true => Presence::Absent,
            false => look.without_hits(pattern),
        };
        self.of_class(rule, Some(class), &presence, Some(false))
    }

    /// What a rule comes to in a file of this class, whatever its patterns do.
    pub(crate) fn by_class_alone(&self, rule: RuleId, class: Class) -> Truth {
        self.of_class(rule, Some(class), &|_| Presence::Maybe(None), None)
    }

    fn of_class(
        &self,
        rule: RuleId,
        class: Option<Class>,
        presence: &dyn Fn(usize) -> Presence,
        probe: Option<bool>,
    ) -> Truth {
        let evaluation = Evaluation {
            plan: self,
            sizes: class.map_or((0, u64::MAX), Class::sizes),
            kind: class.map(|class| class.kind),
            bytes: &Nothing,
            presence,
            probe: &|_| probe,
            number: &|_| None,
            references: References::default(),
        };
        evaluation.rule(rule)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fmt::Write as _;

    use super::*;
    use crate::{Source, Wants};

    /// Rules each of which names the one before twice, so many levels.
    fn towers(levels: usize) -> Plan {
        let mut text = "import \"pe\"\nrule r0 { condition: pe.imphash() == \"x\" }\n".to_owned();
        for level in 1..=levels {
            let below = level - 1;
            writeln!(
                text,
                "rule r{level} {{ condition: r{below} and (r{below} or false) }}"
            )
            .expect("a String");
        }
        compiled(&text)
    }

    /// A condition of so many levels that comes down to whether a text occurs.
    fn nested(levels: usize) -> Plan {
        let opened = "filesize >= 0 and (false or (".repeat(levels);
        let closed = "))".repeat(levels);
        condition(&format!("{opened}$a{closed}"))
    }

    /// A number of so many levels, compared where a text occurs.
    fn summed(levels: usize) -> Plan {
        let (opened, closed) = ("(1 + ".repeat(levels), ")".repeat(levels));
        condition(&format!("$a and {opened}1{closed} == filesize"))
    }

    fn condition(condition: &str) -> Plan {
        compiled(&format!(
            "rule r {{ strings: $a = \"something\" condition: {condition} }}"
        ))
    }

    fn compiled(text: &str) -> Plan {
        let source = Source {
            namespace: "rules",
            text: text.as_bytes(),
        };
        Plan::compile(&[source]).expect("compiles")
    }

    #[test]
    fn what_is_nested_too_deep_may_match() {
        let content: &[u8] = b"nothing";
        let known = Known {
            size: content.len() as u64,
            bytes: &content,
            hits: &Hits::default(),
            search: None,
        };
        assert!(nested(20).open(&known, &|_| None).is_empty());
        assert_eq!(nested(500).open(&known, &|_| None), [0]);
        for levels in [20, 400] {
            assert!(summed(levels).open(&known, &|_| None).is_empty());
        }
    }

    /// Evaluated anew wherever it is named, the lowest rule would be asked for 2^60 times.
    #[test]
    fn what_rules_refer_to_is_evaluated_once() {
        const LEVELS: usize = 60;
        let plan = towers(LEVELS);
        let content: &[u8] = b"MZ";
        let known = Known {
            size: content.len() as u64,
            bytes: &content,
            hits: &Hits::default(),
            search: None,
        };
        let asked = Cell::new(0);
        let ask = |answer| {
            let asked = &asked;
            move |_: usize| {
                asked.set(asked.get() + 1);
                answer
            }
        };
        let most = 4 * LEVELS;
        assert_eq!(plan.open(&known, &ask(None)).len(), LEVELS + 1);
        assert!(asked.replace(0) <= most, "{} times", asked.get());
        let all: Vec<RuleId> = (0..=LEVELS).collect();
        assert!(plan.still_open(&all, &known, &ask(Some(false))).is_empty());
        assert!(asked.replace(0) <= most);
        let wants = plan.wants(&all, &known, &ask(None));
        assert!(asked.get() <= most, "{} times", asked.get());
        let probe = Wants {
            probes: vec![0],
            ..Wants::default()
        };
        assert_eq!(wants[5], probe);
        // Nobody follows references so far down.
        assert!(wants[LEVELS].whole);
    }
}
