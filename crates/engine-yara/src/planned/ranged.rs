//! A file of which only some ranges are known, and of which an agent told where literals occur.
//!
//! What is not known is zeros to YARA-X, so no rule is run before all that can decide it is
//! known: `readplan::Wants` says which bytes a condition and its patterns need, and what modules
//! and probes read is seen as they read it ([`SparseView::touched`]).

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use engine::sparse::SparseView;
use model::Ranges;
use readplan::{Hits, Known, Plan, RuleId, View, Wants};
use yara_x::ScanResults;

use super::{PlannedScanner, Stopped, Telling, scanner};
use crate::context::Names;
use crate::pe::Portable;
use crate::scan::MATCHES_MAX;

/// Bytes at the head of a file that must be known before anything is judged.
pub const HEAD_BYTES: u64 = 512;
/// On either side of a match what decides whether it is one: `fullword` of wide strings.
const AROUND_MATCH: u64 = 2;
/// What is asked for on either side of a match that may be made of zeros.
const MARGIN: u64 = 64;
/// Matches that may be made of zeros; with more, the whole file is asked for.
const DOUBTFUL_MAX: usize = 256;

/// What is known of a file suffices, or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It does: no rule comes to anything else for the whole file. Namespace and name of the
    /// public rules that match, sorted.
    Judged(Vec<(String, String)>),
    /// These could change a verdict.
    Ask(Ranges),
    /// No set of ranges is known to suffice.
    Whole(Why),
}

/// Why a file has to travel whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nothing bounds what these rules may read or match.
    Rules(Vec<RuleId>),
    /// Too many matches may be made of zeros.
    Zeros,
    /// It may be a container, whose members would be judged too.
    Container,
}

impl PlannedScanner<'_> {
    /// Judges a file of these names by what is known of it. `left` tells the time that is left.
    pub(super) fn judge_view(
        &mut self,
        view: &SparseView,
        hits: &Hits,
        names: &Names,
        left: &dyn Fn() -> Option<Duration>,
    ) -> Result<Step, Stopped> {
        let size = view.bytes().len() as u64;
        let head = 0..HEAD_BYTES.min(size);
        if !view.known().contains(&head) {
            return Ok(Step::Ask(Ranges::of(head).without(view.known())));
        }
        let seen = View {
            bytes: view.bytes(),
            known: view.known(),
        };
        let known = Known {
            size,
            bytes: &seen,
            hits,
            search: None,
        };
        let telling = Telling {
            bytes: view.bytes(),
            names,
            inside: &[],
            left,
        };
        let plan = &self.planned.plan;
        let open = plan.open(&known, &|_| None);
        if open.is_empty() {
            return Ok(Step::Judged(Vec::new()));
        }
        let mut asking = Asking {
            view,
            known,
            answers: Answers::new(plan.probes().len()),
            ask: Ranges::new(),
        };
        self.ask_fixed(&open, &mut asking, &telling)?;
        let open = asking.still_open(plan, &open);
        self.ask_guarded(&open, &mut asking, &telling)?;
        let open = asking.still_open(plan, &open);
        let answers = &asking.answers;
        let open = plan.open_on_view(&open, &asking.known, &seen, &|id| answers.of(id));
        let (wants_modules, unbounded) = self.unmet(&open, &mut asking);
        if !unbounded.is_empty() {
            return Ok(Step::Whole(Why::Rules(unbounded)));
        }
        // What probes read need not be all that modules do.
        if wants_modules {
            self.modules
                .get_or_insert_with(|| scanner(&self.planned.modules))
                .set_timeout(left().ok_or(Stopped::Timeout)?)
                .scan(view.guarded().map_err(Stopped::Failed)?)?;
            asking.ask.extend(&touched(view)?);
        }
        if !asking.ask.is_empty() {
            return Ok(Step::Ask(asking.ask));
        }
        self.run_on_view(view, &open, &telling)
    }

    /// Asks the probes that read fixed places.
    fn ask_fixed(
        &mut self,
        open: &[RuleId],
        asking: &mut Asking<'_>,
        telling: &Telling<'_>,
    ) -> Result<(), Stopped> {
        let wanted = self.wanted_probes(open, asking);
        if !wanted.is_empty() {
            // What they read is known, or asked for; those that read more are asked next.
            self.prober.clear();
            self.probe(&wanted, telling)?;
            self.take_fixed(&wanted, asking);
        }
        Ok(())
    }

    /// Asks the probes of which only YARA-X knows what they read, which is seen as they do.
    fn ask_guarded(
        &mut self,
        open: &[RuleId],
        asking: &mut Asking<'_>,
        telling: &Telling<'_>,
    ) -> Result<(), Stopped> {
        let wanted = self.wanted_probes(open, asking);
        if !wanted.iter().any(|id| self.is_dynamic(*id)) {
            return Ok(());
        }
        let telling = Telling {
            bytes: asking.view.guarded().map_err(Stopped::Failed)?,
            ..*telling
        };
        self.prober.clear();
        self.probe(&wanted, &telling)?;
        let touched = touched(asking.view)?;
        match touched.is_empty() {
            true => asking.answers.all(&wanted, |id| self.prober.answer(id)),
            false => asking.ask.extend(&touched),
        }
        Ok(())
    }

    /// Asks for what these rules want and is not known; tells whether they want what modules read,
    /// and those of them for which no ranges suffice.
    fn unmet(&self, open: &[RuleId], asking: &mut Asking<'_>) -> (bool, Vec<RuleId>) {
        let (mut wants_modules, mut unbounded) = (false, Vec::new());
        for (rule, wants) in open.iter().zip(asking.wants(&self.planned.plan, open)) {
            let unmet = wants.ranges.without(asking.view.known());
            // A rule may be shut by what can be had for less.
            if !wants.probes.is_empty() {
                let is_asked = wants.probes.iter().all(|id| self.is_asked(*id));
                if !is_asked && asking.ask.is_empty() {
                    unbounded.push(*rule);
                }
                continue;
            }
            if unmet.is_empty() && wants.whole {
                unbounded.push(*rule);
            }
            wants_modules |= wants.modules;
            asking.ask.extend(&unmet);
        }
        (wants_modules, unbounded)
    }

    /// Probes that could shut some of these rules.
    fn wanted_probes(&self, open: &[RuleId], asking: &Asking<'_>) -> BTreeSet<usize> {
        let wants = asking.wants(&self.planned.plan, open);
        let wanted = wants.into_iter().flat_map(|wants| wants.probes);
        wanted.filter(|id| self.is_asked(*id)).collect()
    }

    /// Asks the groups that have these probes, all on the same content.
    fn probe(&mut self, probes: &BTreeSet<usize>, telling: &Telling<'_>) -> Result<(), Stopped> {
        let mut portable = Portable::default();
        for group in self.planned.probes.groups_of(probes) {
            self.prober.ask(group, telling, &mut portable)?;
        }
        Ok(())
    }

    fn is_asked(&self, probe: usize) -> bool {
        self.planned.probes.is_asked(probe)
    }

    /// It reads what only YARA-X knows.
    fn is_dynamic(&self, probe: usize) -> bool {
        let probe = self.planned.plan.probes().get(probe);
        probe.is_none_or(|probe| probe.reads.is_none())
    }

    /// Takes the answers of those of the wanted probes that read fixed places, all known.
    fn take_fixed(&self, wanted: &BTreeSet<usize>, asking: &mut Asking<'_>) {
        let (known, size) = (asking.view.known(), asking.known.size);
        for id in wanted {
            let probe = self.planned.plan.probes().get(*id);
            let Some(reads) = probe.and_then(|probe| probe.reads.as_ref()) else {
                continue;
            };
            let ranges = reads.iter().map(|(at, len)| {
                let end = at.saturating_add(*len).min(size);
                (*at).min(end)..end
            });
            let unmet = ranges.collect::<Ranges>().without(known);
            match unmet.is_empty() {
                true => asking.answers.set(*id, self.prober.answer(*id)),
                false => asking.ask.extend(&unmet),
            }
        }
    }

    /// Runs these rules, of which all that decides them is known.
    fn run_on_view(
        &mut self,
        view: &SparseView,
        open: &[RuleId],
        telling: &Telling<'_>,
    ) -> Result<Step, Stopped> {
        let planned = self.planned;
        let mut portable = Portable::default();
        let shards: BTreeSet<usize> = open.iter().map(|rule| planned.shard_of[*rule]).collect();
        let groups: BTreeSet<usize> = open.iter().map(|rule| planned.group_of[*rule]).collect();
        let mut found = Found {
            view,
            matches: Vec::new(),
            doubtful: Ranges::new(),
            doubts: 0,
            too_many: false,
        };
        for index in shards {
            let shard = &planned.shards[index];
            let scanner = self.shards[index].get_or_insert_with(|| scanner(&shard.rules));
            telling.tell(scanner, shard.reads, shard.needs, &mut portable)?;
            let results = scanner.scan(telling.bytes)?;
            found.take(
                &results,
                &|namespace, name| {
                    let rule = planned.order_of(namespace, name);
                    open.binary_search(&rule).is_ok()
                },
                &|namespace, name| {
                    let rule = planned.order_of(namespace, name);
                    planned
                        .group_of
                        .get(rule)
                        .is_some_and(|g| groups.contains(g))
                },
            );
        }
        if found.too_many || found.doubts > DOUBTFUL_MAX {
            return Ok(Step::Whole(Why::Zeros));
        }
        let ask = found.doubtful.without(view.known());
        if !ask.is_empty() {
            return Ok(Step::Ask(ask));
        }
        found.matches.sort();
        found.matches.dedup();
        Ok(Step::Judged(found.matches))
    }
}

/// A file about which questions are asked.
struct Asking<'a> {
    view: &'a SparseView,
    known: Known<'a>,
    answers: Answers,
    /// Ranges without which something stays open.
    ask: Ranges,
}

impl Asking<'_> {
    fn still_open(&self, plan: &Plan, open: &[RuleId]) -> Vec<RuleId> {
        plan.still_open(open, &self.known, &|id| self.answers.of(id))
    }

    fn wants(&self, plan: &Plan, open: &[RuleId]) -> Vec<Wants> {
        plan.wants(open, &self.known, &|id| self.answers.of(id))
    }
}

/// What probes said, as far as all that they read is known.
struct Answers(Vec<Option<bool>>);

impl Answers {
    fn new(probes: usize) -> Self {
        Self(vec![None; probes])
    }

    fn of(&self, probe: usize) -> Option<bool> {
        self.0.get(probe).copied().flatten()
    }

    fn set(&mut self, probe: usize, answer: Option<bool>) {
        if let Some(place) = self.0.get_mut(probe) {
            *place = answer;
        }
    }

    fn all(&mut self, probes: &BTreeSet<usize>, answer: impl Fn(usize) -> Option<bool>) {
        for probe in probes {
            self.set(*probe, answer(*probe));
        }
    }
}

fn touched(view: &SparseView) -> Result<Ranges, Stopped> {
    let pages = view.touched();
    pages.map_err(|error| Stopped::Failed(format!("which pages were read: {error}")))
}

type Selects<'a> = &'a dyn Fn(&str, &str) -> bool;

/// What YARA-X says of a view.
struct Found<'a> {
    view: &'a SparseView,
    matches: Vec<(String, String)>,
    /// Places of matches that are not known whole.
    doubtful: Ranges,
    doubts: usize,
    too_many: bool,
}

impl Found<'_> {
    /// Takes matches of rules that are `judged`, and looks at the patterns of those that are
    /// `concerned`.
    fn take(&mut self, results: &ScanResults<'_, '_>, judged: Selects<'_>, concerned: Selects<'_>) {
        for rule in results.matching_rules() {
            if judged(rule.namespace(), rule.identifier()) {
                let name = (rule.namespace().to_owned(), rule.identifier().to_owned());
                self.matches.push(name);
            }
        }
        let matching = results.matching_rules().include_private(true);
        let others = results.non_matching_rules().include_private(true);
        for rule in matching.chain(others) {
            if !concerned(rule.namespace(), rule.identifier()) {
                continue;
            }
            for pattern in rule.patterns().include_private(true) {
                let matches = pattern.matches();
                self.too_many |= matches.len() >= MATCHES_MAX;
                for found in matches {
                    self.look_at(&found.range());
                }
            }
        }
    }

    fn look_at(&mut self, range: &Range<usize>) {
        let size = self.view.bytes().len() as u64;
        let (start, end) = (range.start as u64, range.end as u64);
        let around = |bytes: u64| start.saturating_sub(bytes)..(end + bytes).min(size);
        if self.view.known().contains(&around(AROUND_MATCH)) {
            return;
        }
        self.doubts += 1;
        if self.doubts <= DOUBTFUL_MAX {
            self.doubtful.add(around(MARGIN));
        }
    }
}
