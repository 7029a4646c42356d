//! What the appliance does by a file's class: which rules it leaves open where nothing is found,
//! which literals are looked for, and what a close look begins with.
//!
//! A rule that is shut by a file's class alone is shut whatever its patterns do, so its literals
//! need not be looked for in such a file. That they then seem to be absent changes nothing: no
//! other rule reads them, and one that refers to this rule is told that it is false, as it is.
//! An agent's report is not cut so: its appliance may learn only later of which class a file is.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use literal_filter::{Filter, Literal};

use crate::bits::Bits;
use crate::class::Class;
use crate::compile::{Plan, PlanError, RuleId};
use crate::gate;
use crate::glance::Glance;
use crate::known::Hits;
use crate::look::{Look, Side};
use crate::open::Known;
use crate::value::Truth;

/// By class of file.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    /// By [`Class::filter`].
    filters: Vec<Subset>,
    /// By class.
    residents: Vec<Residents>,
    /// By class: what a close look begins with.
    glances: Vec<Glance>,
}

impl Classes {
    /// Of a plan whose looks are chosen.
    pub(crate) fn of(plan: &Plan) -> Result<Self, PlanError> {
        let look = plan.look(Side::Appliance);
        let residents: Vec<Vec<RuleId>> = Class::all()
            .map(|class| {
                let residents = look.residents().iter().copied();
                residents
                    .filter(|rule| plan.without_hits(*rule, look, Some(class)) != Truth::False)
                    .collect()
            })
            .collect();
        let refers = plan.refers();
        let divided = Class::all().zip(&residents).map(|(class, residents)| {
            let is_by_probes = |rule: &RuleId| {
                !refers.contains(*rule) && plan.without_probes(*rule, look, class) == Truth::False
            };
            let (by_probes, open) = residents.iter().partition(|rule| is_by_probes(rule));
            Residents::of(plan, open, by_probes)
        });
        let divided = divided.collect();
        let glances = Class::all()
            .zip(&residents)
            .map(|(class, residents)| glance(plan, look, class, residents));
        Ok(Self {
            filters: filters(plan, look)?,
            glances: glances.collect::<Result<_, _>>()?,
            residents: divided,
        })
    }

    pub(crate) fn residents(&self, class: Class) -> Option<&Residents> {
        self.residents.get(class.index())
    }

    /// The rule may match a file of this class where nothing is found.
    pub(crate) fn is_resident(&self, class: Class, rule: RuleId) -> bool {
        let residents = self.residents(class);
        residents.is_some_and(|residents| {
            let mut by_probes = residents.by_probes();
            residents.open.binary_search(&rule).is_ok() || by_probes.any(|(other, _)| other == rule)
        })
    }

    pub(crate) fn glance(&self, class: Class) -> Option<&Glance> {
        self.glances.get(class.index())
    }
}

/// Rules that may match in a file of some class though nothing is found.
#[derive(Debug, Default)]
pub(crate) struct Residents {
    pub(crate) open: Vec<RuleId>,
    /// Those that are shut where in addition none of their probes is true, and where the probes of
    /// each end.
    shut: Vec<(u32, u32)>,
    probes: Vec<u32>,
}

impl Residents {
    fn of(plan: &Plan, open: Vec<RuleId>, by_probes: Vec<RuleId>) -> Self {
        let (mut shut, mut probes) = (Vec::new(), Vec::new());
        for rule in by_probes {
            probes.extend(plan.probes_of(rule).iter().map(|probe| *probe as u32));
            shut.push((rule as u32, probes.len() as u32));
        }
        Self { open, shut, probes }
    }

    /// Those that probes shut, and these.
    pub(crate) fn by_probes(&self) -> impl Iterator<Item = (RuleId, &[u32])> {
        let starts = std::iter::once(0).chain(self.shut.iter().map(|(_, end)| *end));
        self.shut.iter().zip(starts).map(|((rule, end), start)| {
            let probes = self.probes.get(start as usize..*end as usize);
            (*rule as RuleId, probes.unwrap_or_default())
        })
    }
}

/// Of the residents that probes do not shut the patterns that the filter leaves out: where a few
/// of a rule's suffice to shut it, these.
fn glance(
    plan: &Plan,
    look: &Look,
    class: Class,
    residents: &[RuleId],
) -> Result<Glance, PlanError> {
    let is_open = |rule: &&RuleId| plan.without_probes(**rule, look, class) != Truth::False;
    let mut wanted: BTreeSet<usize> = BTreeSet::new();
    for rule in residents.iter().filter(is_open) {
        let patterns = plan.patterns_of(*rule);
        let left_out = |index: &usize| !look.seeks(*index);
        let gate = plan.glance_gate(*rule, look);
        match plan.without_probes_and(*rule, look, class, &gate) {
            Truth::False => wanted.extend(gate),
            Truth::True | Truth::Unknown => wanted.extend(patterns.filter(left_out)),
        }
    }
    let infos = wanted
        .iter()
        .filter_map(|index| Some((*index, &plan.patterns().get(*index)?.info)));
    Glance::of(infos)
}

/// For each class the literals of the rules that it leaves open, whatever occurs where.
fn filters(plan: &Plan, look: &Look) -> Result<Vec<Subset>, PlanError> {
    let literals = look.filter().len();
    let mut wanted = vec![vec![false; literals]; Class::FILTERS];
    for class in Class::all() {
        let wanted = &mut wanted[class.filter()];
        let open: Vec<bool> = (0..plan.len())
            .map(|rule| plan.by_class_alone(rule, class) != Truth::False)
            .collect();
        for (literal, wanted) in wanted.iter_mut().enumerate() {
            let mut users = look.users(literal as u32).iter();
            *wanted |= users.any(|pattern| open[plan.patterns()[*pattern as usize].rule]);
        }
    }
    wanted
        .iter()
        .map(|wanted| Subset::of(look.filter(), wanted))
        .collect()
}

impl Plan {
    /// Probes that shut most rules of a file such as this where nothing is found: to be asked before
    /// all else.
    pub fn first_probes(&self, known: &Known<'_>) -> &[u32] {
        let class = Class::of(known.size, known.bytes);
        let residents = class.and_then(|class| self.classes().residents(class));
        residents.map_or(&[], |residents| residents.probes.as_slice())
    }

    /// Rules that refer to others.
    fn refers(&self) -> Bits {
        let mut refers = Bits::default();
        refers.reset(self.len());
        for rule in (0..self.len()).flat_map(|rule| self.dependants(rule)) {
            refers.insert(*rule);
        }
        refers
    }

    /// Of the patterns that the filter leaves out those that may suffice to shut a rule.
    fn glance_gate(&self, rule: RuleId, look: &Look) -> BTreeSet<usize> {
        let first = self.rule(rule).first_pattern;
        let cost = |index: usize| {
            let index = first + index;
            match look.seeks(index) {
                // The filter tells.
                true => Some(0),
                false => Glance::cost(&self.patterns().get(index)?.info),
            }
        };
        let gate = gate::of_rule(self.rule(rule), &cost);
        let patterns = gate.patterns.into_iter().map(|index| first + index);
        patterns.filter(|index| !look.seeks(*index)).collect()
    }

    /// Looks for the literals that matter for a file of this content.
    pub fn search(&self, content: &[u8], hits: &mut Hits) {
        let class = Class::of(content.len() as u64, &content);
        let part = class.and_then(|class| self.classes().filters.get(class.filter()));
        let filter = part.map_or(self.filter().as_ref(), |part| &part.filter);
        let _ = filter.scan(content, &mut |literal, offset| {
            let id = match part {
                Some(part) => part.ids[literal as usize],
                None => literal,
            };
            hits.add(id, offset as u64);
            ControlFlow::Continue(())
        });
    }
}

/// A filter over some of the literals, and their ids.
#[derive(Debug)]
struct Subset {
    filter: Filter,
    ids: Vec<u32>,
}

impl Subset {
    fn of(all: &Filter, wanted: &[bool]) -> Result<Self, PlanError> {
        let ids = (0u32..).zip(wanted).filter(|(_, wanted)| **wanted);
        let ids: Vec<u32> = ids.map(|(id, _)| id).collect();
        let some = ids.iter().filter_map(|id| all.literal(*id));
        let some = some.map(|(bytes, nocase)| Literal {
            bytes: bytes.to_vec(),
            nocase,
        });
        let filter = Filter::build(&some.collect::<Vec<_>>())?;
        Ok(Self { filter, ids })
    }
}
