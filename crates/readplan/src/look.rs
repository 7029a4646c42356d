//! What is looked for in every file: by the appliance, which has the content and looks closer
//! where it has to, and by an agent, whose report has to do.

use std::collections::BTreeSet;
use std::sync::Arc;

use literal_filter::{
    Filter, LITERALS_MAX, Literal, NEEDLES_MAX, Needle, Needles, POOL_MAX, SHORT_MAX, WHOLE_MIN,
};
use rustc_hash::FxHashMap;

use crate::bits::Bits;
use crate::compile::{PatternEntry, Plan, PlanError, RuleId};
use crate::eval::Presence;
use crate::gate;
use crate::guard::Guard;
use crate::pattern::{Exact, Part, PatternInfo};
use crate::value::Truth;

/// A needle is worth more than a literal of its pattern that has fewer bits by this.
const NEEDLE_BITS_MORE: u32 = 16;
/// Needles of one pattern that an agent looks for.
const NEEDLES_OF_PATTERN_MAX: usize = 512;

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Side {
    #[default]
    Appliance,
    Agent,
}

/// What one side looks for.
#[derive(Debug, Default)]
pub(crate) struct Look {
    filter: Arc<Filter>,
    /// Their ids follow those of the filter's literals.
    needles: Arc<Needles>,
    /// By pattern; `None`: it is not looked for.
    patterns: Vec<Option<Wanted>>,
    /// Those that are.
    sought: Bits,
    /// By id, the patterns that have it.
    users: Vec<Vec<u32>>,
    /// By id, the rules that it opens: those that are shut where nothing of their gate occurs.
    opened: Vec<Vec<u32>>,
    /// Rules that may match where nothing is found.
    residents: Vec<RuleId>,
    /// By rule.
    guards: Vec<Guard>,
}

/// What is looked for to find one pattern.
#[derive(Debug, Default)]
struct Wanted {
    /// One for each part.
    ids: Vec<u32>,
    /// What surrounds the keys of needles; `None`: literals, which the pattern knows.
    around: Option<Vec<Part>>,
}

/// How a pattern was looked for.
pub(crate) struct Sought<'p> {
    pub(crate) parts: &'p [Part],
    /// For each of them its id in the filter.
    pub(crate) ids: &'p [u32],
    pub(crate) exact: Exact,
}

/// How to look for a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Literals,
    Needles,
}

impl Look {
    pub(crate) fn filter(&self) -> &Arc<Filter> {
        &self.filter
    }

    pub(crate) fn needles(&self) -> &Arc<Needles> {
        &self.needles
    }

    pub(crate) fn residents(&self) -> &[RuleId] {
        &self.residents
    }

    /// Patterns that have a literal or needle.
    pub(crate) fn users(&self, id: u32) -> &[u32] {
        self.users.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// What was looked for to find a pattern; `None`: it was not looked for.
    pub(crate) fn sought<'p>(
        &'p self,
        pattern: usize,
        info: &'p PatternInfo,
    ) -> Option<Sought<'p>> {
        let wanted = self.patterns.get(pattern)?.as_ref()?;
        Some(match &wanted.around {
            Some(around) => Sought {
                parts: around,
                ids: &wanted.ids,
                exact: Exact::No,
            },
            None => Sought {
                parts: &info.literals,
                ids: &wanted.ids,
                exact: info.exact,
            },
        })
    }

    pub(crate) fn guard(&self, rule: RuleId) -> &Guard {
        &self.guards[rule]
    }

    /// Rules that an occurrence opens, unless they are open already.
    pub(crate) fn opened(&self, id: u32) -> &[u32] {
        self.opened.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The pattern is looked for.
    pub(crate) fn seeks(&self, pattern: usize) -> bool {
        self.sought.contains(pattern)
    }

    /// What is known of a pattern where nothing is found.
    pub(crate) fn without_hits(&self, pattern: usize) -> Presence {
        match self.seeks(pattern) {
            true => Presence::Absent,
            false => Presence::Maybe(None),
        }
    }

    /// What the appliance looks for: the gates, and long literals, which cost the filter next to
    /// nothing and close many rules.
    pub(crate) fn of_appliance(plan: &Plan) -> Result<Self, PlanError> {
        let mut how = vec![None; plan.patterns().len()];
        for rule in 0..plan.len() {
            let first = plan.rule(rule).first_pattern;
            let cost = |index: usize| plan.patterns().get(first + index)?.info.cost();
            for index in gate::of_rule(plan.rule(rule), &cost).patterns {
                how[first + index] = Some(How::Literals);
            }
        }
        for (how, entry) in how.iter_mut().zip(plan.patterns()) {
            if entry.info.cost().is_some() && entry.info.is_long() {
                *how = Some(How::Literals);
            }
        }
        Self::build(plan, &how)
    }

    /// What an agent looks for: every pattern that can be looked for, so that its report decides
    /// as much as a look at the content would.
    pub(crate) fn of_agent(plan: &Plan) -> Result<Self, PlanError> {
        let how: Vec<Option<How>> = plan
            .patterns()
            .iter()
            .map(|entry| best(&entry.info))
            .collect();
        Self::build(plan, &how)
    }

    fn build(plan: &Plan, how: &[Option<How>]) -> Result<Self, PlanError> {
        let mut building = Building::default();
        for (entry, how) in plan.patterns().iter().zip(how) {
            building.add(entry, *how);
        }
        let mut look = building.finish()?;
        let all = 0..plan.len();
        let open = all.filter(|rule| plan.without_hits(*rule, &look, None) != Truth::False);
        look.residents = open.collect();
        look.opened = look.opened_by(plan);
        look.guards = Guard::all(plan, &look);
        Ok(look)
    }

    /// By id, the rules that it opens. Of a rule with a gate of its own, proven by evaluation, what
    /// is outside of it cannot open it.
    fn opened_by(&self, plan: &Plan) -> Vec<Vec<u32>> {
        let mut opened = vec![Vec::new(); self.users.len()];
        for rule in 0..plan.len() {
            let gate = plan.seldom_gate(rule, self);
            let is_proven = plan.without_gate(rule, self, &gate) == Truth::False;
            let sought = plan
                .patterns_of(rule)
                .filter(|pattern| self.seeks(*pattern));
            let patterns: Vec<usize> = match is_proven {
                true => gate.into_iter().collect(),
                false => sought.collect(),
            };
            let ids = patterns.iter().filter_map(|p| self.patterns[*p].as_ref());
            let ids: BTreeSet<u32> = ids.flat_map(|wanted| wanted.ids.iter().copied()).collect();
            ids.iter()
                .for_each(|id| opened[*id as usize].push(rule as u32));
        }
        opened
    }
}

/// Literals are found faster; needles have the whole pattern and are found less often.
fn best(info: &PatternInfo) -> Option<How> {
    let bits = info.needles.iter().map(|part| part.bits).min();
    let has_needles = bits.is_some() && info.needles.len() <= NEEDLES_OF_PATTERN_MAX;
    if info.cost().is_none() {
        return has_needles.then_some(How::Needles);
    }
    let shortest = info.literals.iter().map(|part| part.bytes.len()).min();
    let of_literals = 8 * u32::try_from(shortest.unwrap_or(0)).unwrap_or(u32::MAX);
    let is_better = bits.is_some_and(|bits| bits >= of_literals + NEEDLE_BITS_MORE);
    match info.exact == Exact::No && has_needles && is_better {
        true => Some(How::Needles),
        false => Some(How::Literals),
    }
}

fn is_short(literal: &[u8]) -> bool {
    literal.len() < WHOLE_MIN
}

#[derive(Default)]
struct Building {
    literals: Vec<Literal>,
    literal_ids: FxHashMap<Literal, u32>,
    /// How many of the literals are short, and bytes of all.
    short: usize,
    bytes: usize,
    needles: Vec<Needle>,
    needle_ids: FxHashMap<Needle, u32>,
    patterns: Vec<Option<Wanted>>,
}

impl Building {
    /// Needles are numbered from 0 until all literals are known. A pattern for which there is no
    /// place is not looked for.
    fn add(&mut self, entry: &PatternEntry, how: Option<How>) {
        let how = how.filter(|how| self.has_place(&entry.info, *how));
        let wanted = how.map(|how| match how {
            How::Literals => {
                let ids = entry.info.literals.iter().map(|part| self.literal(part));
                Wanted {
                    ids: ids.collect(),
                    around: None,
                }
            }
            How::Needles => {
                let needles = entry.info.needles.iter();
                let ids = needles.clone().map(|part| self.needle(&part.needle));
                let ids = ids.collect();
                Wanted {
                    ids,
                    around: Some(needles.map(|part| part.around()).collect()),
                }
            }
        });
        self.patterns.push(wanted);
    }

    /// Counts literals twice that are there already: the limits are far off.
    fn has_place(&self, info: &PatternInfo, how: How) -> bool {
        match how {
            How::Needles => self.needles.len() + info.needles.len() <= NEEDLES_MAX,
            How::Literals => {
                let short = info.literals.iter().filter(|part| is_short(&part.bytes));
                let bytes: usize = info.literals.iter().map(|part| part.bytes.len()).sum();
                self.literals.len() + info.literals.len() <= LITERALS_MAX
                    && self.short + short.count() <= SHORT_MAX
                    && self.bytes + bytes <= POOL_MAX
            }
        }
    }

    fn literal(&mut self, part: &Part) -> u32 {
        let literal = Literal {
            bytes: part.bytes.clone(),
            nocase: part.nocase,
        };
        let (literals, short, bytes) = (&mut self.literals, &mut self.short, &mut self.bytes);
        *self
            .literal_ids
            .entry(literal)
            .or_insert_with_key(|literal| {
                *short += usize::from(is_short(&literal.bytes));
                *bytes += literal.bytes.len();
                literals.push(literal.clone());
                literals.len() as u32 - 1
            })
    }

    fn needle(&mut self, needle: &Needle) -> u32 {
        let needles = &mut self.needles;
        *self
            .needle_ids
            .entry(needle.clone())
            .or_insert_with_key(|needle| {
                needles.push(needle.clone());
                needles.len() as u32 - 1
            })
    }

    fn finish(mut self) -> Result<Look, PlanError> {
        let first = self.literals.len() as u32;
        let mut users = vec![Vec::new(); self.literals.len() + self.needles.len()];
        for (pattern, wanted) in self.patterns.iter_mut().enumerate() {
            let Some(wanted) = wanted else {
                continue;
            };
            if wanted.around.is_some() {
                wanted.ids.iter_mut().for_each(|id| *id += first);
            }
            for id in &wanted.ids {
                users[*id as usize].push(pattern as u32);
            }
        }
        let mut sought = Bits::default();
        sought.reset(self.patterns.len());
        let all = self.patterns.iter().enumerate();
        for (pattern, _) in all.filter(|(_, wanted)| wanted.is_some()) {
            sought.insert(pattern);
        }
        Ok(Look {
            filter: Arc::new(Filter::build(&self.literals)?),
            needles: Arc::new(Needles::build(self.needles)?),
            patterns: self.patterns,
            sought,
            users,
            opened: Vec::new(),
            residents: Vec::new(),
            guards: Vec::new(),
        })
    }
}
