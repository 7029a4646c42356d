//! What the appliance does by a file's class: which rules it leaves open where nothing is found,
//! which literals are looked for, and what a close look begins with.
//!
//! A rule that is shut by a file's class alone is shut whatever its patterns do, so its literals
//! need not be looked for in such a file. That they then seem to be absent changes nothing: no
//! other rule reads them, and one that refers to this rule is told that it is false, as it is.
//! An agent's report is not cut so: its appliance may learn only later of which class a file is.

use std::ops::ControlFlow;

use literal_filter::{Filter, Literal};
use rustc_hash::FxHashSet;

use crate::class::Class;
use crate::compile::{Plan, PlanError, RuleId};
use crate::eval::Truth;
use crate::glance::Glance;
use crate::known::Hits;
use crate::look::{Look, Side};

/// By class of file.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    /// By [`Class::filter`].
    filters: Vec<Subset>,
    /// By class: rules that may match where nothing is found.
    residents: Vec<Vec<RuleId>>,
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
        let glances = Class::all()
            .zip(&residents)
            .map(|(class, residents)| glance(plan, look, class, residents));
        Ok(Self {
            filters: filters(plan, look)?,
            glances: glances.collect::<Result<_, _>>()?,
            residents,
        })
    }

    pub(crate) fn residents(&self, class: Class) -> &[RuleId] {
        self.residents.get(class.index()).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn glance(&self, class: Class) -> Option<&Glance> {
        self.glances.get(class.index())
    }
}

/// Of the residents that probes do not shut the patterns that the filter leaves out.
fn glance(
    plan: &Plan,
    look: &Look,
    class: Class,
    residents: &[RuleId],
) -> Result<Glance, PlanError> {
    let open = |rule: &RuleId| plan.without_probes(*rule, look, class) != Truth::False;
    let residents: FxHashSet<RuleId> = residents.iter().copied().filter(open).collect();
    let patterns = plan.patterns().iter().enumerate();
    let left_out = patterns
        .filter(|(index, entry)| !look.seeks(*index) && residents.contains(&entry.rule))
        .map(|(index, entry)| (index, &entry.info));
    Glance::of(left_out)
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
