//! Which rules are worth evaluating for a file at all.

use crate::bits::Bits;
use crate::class::Class;
use crate::compile::{Plan, RuleId};
use crate::look::Side;
use crate::open::Known;

impl Plan {
    /// Rules that the hits or nothing at all can make match in a file of this class, themselves or
    /// through others. What an agent found tells nothing by classes: it looks for everything.
    pub(crate) fn candidates(
        &self,
        known: &Known<'_>,
        class: Option<Class>,
        probe: &dyn Fn(usize) -> Option<bool>,
    ) -> Vec<RuleId> {
        let side = known.hits.side();
        let look = self.look(side);
        let touched = known.hits.touched(look, self.patterns().len());
        let lets = |rule: RuleId| look.guard(rule).lets(known.size, class, &touched);
        let mut found = Bits::default();
        found.reset(self.len());
        let mut add_resident = |rule: RuleId| {
            if lets(rule) {
                found.insert(rule);
            }
        };
        match (
            side,
            class.and_then(|class| self.classes().residents(class)),
        ) {
            (Side::Appliance, Some(residents)) => {
                residents.open.iter().for_each(|rule| add_resident(*rule));
                for (rule, probes) in residents.by_probes() {
                    let is_false = |id: &u32| probe(*id as usize) == Some(false);
                    let is_shut =
                        look.guard(rule).is_untouched(&touched) && probes.iter().all(is_false);
                    if !is_shut {
                        add_resident(rule);
                    }
                }
            }
            (Side::Appliance, None) | (Side::Agent, _) => {
                look.residents().iter().for_each(|rule| add_resident(*rule));
            }
        }
        // Rules that hits change the result of. A resident is one of them, too: without hits it may
        // hold, and what refers to it not.
        let mut changed = Bits::default();
        changed.reset(self.len());
        let mut todo = Vec::new();
        for literal in known.hits.literals() {
            for rule in look.opened(literal) {
                let rule = *rule as RuleId;
                if lets(rule) && changed.insert(rule) {
                    todo.push(rule);
                }
            }
        }
        while let Some(rule) = todo.pop() {
            found.insert(rule);
            for dependant in self.dependants(rule) {
                if changed.insert(*dependant) {
                    todo.push(*dependant);
                }
            }
        }
        found.iter().collect()
    }
}
