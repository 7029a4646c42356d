//! The filters of a plan: one over all literals of gates, and for some classes of files one over
//! those that matter there.
//!
//! A rule that is shut by a file's class alone is shut whatever its patterns do, so its literals
//! need not be looked for in such a file. That they then seem to be absent changes nothing.

use std::ops::ControlFlow;
use std::sync::Arc;

use literal_filter::{Filter, Literal};
use rustc_hash::FxHashMap;

use crate::class::Class;
use crate::compile::{Plan, PlanError};
use crate::eval::Truth;
use crate::known::Hits;

impl Plan {
    /// The filter over the gates' literals.
    pub(crate) fn build_filter(&mut self) -> Result<(), PlanError> {
        let mut ids: FxHashMap<(&[u8], bool), u32> = FxHashMap::default();
        let mut literals: Vec<Literal> = Vec::new();
        let mut of_patterns = Vec::new();
        for (index, entry) in self.patterns.iter().enumerate().filter(|(_, p)| p.gated) {
            for part in &entry.info.literals {
                let id = *ids.entry((&part.bytes, part.nocase)).or_insert_with(|| {
                    literals.push(Literal {
                        bytes: part.bytes.clone(),
                        nocase: part.nocase,
                    });
                    self.users.push(Vec::new());
                    literals.len() as u32 - 1
                });
                of_patterns.push((index, id));
            }
        }
        for (pattern, id) in of_patterns {
            self.patterns[pattern].literals.push(id);
            self.users[id as usize].push(pattern as u32);
        }
        self.filter = Arc::new(Filter::build(&literals)?);
        self.filters = self.filters_of_classes(&literals)?;
        Ok(())
    }

    /// For each class the literals of the rules that it leaves open, whatever occurs where.
    fn filters_of_classes(&self, literals: &[Literal]) -> Result<Vec<Subset>, PlanError> {
        let mut wanted = vec![vec![false; literals.len()]; Class::FILTERS];
        for class in Class::all() {
            let wanted = &mut wanted[class.filter()];
            let all = 0..self.rules.len();
            let open: Vec<bool> = all
                .map(|rule| self.by_class_alone(rule, class) != Truth::False)
                .collect();
            for (literal, users) in self.users.iter().enumerate() {
                let rule = |pattern: &u32| self.patterns[*pattern as usize].rule;
                wanted[literal] |= users.iter().any(|pattern| open[rule(pattern)]);
            }
        }
        wanted
            .iter()
            .map(|wanted| Subset::of(literals, wanted))
            .collect()
    }

    /// Looks for the literals that matter for a file of this content.
    pub fn search(&self, content: &[u8], hits: &mut Hits) {
        let class = Class::of(content.len() as u64, &content);
        let part = class.and_then(|class| self.filters.get(class.filter()));
        let filter = part.map_or(self.filter.as_ref(), |part| &part.filter);
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
pub(crate) struct Subset {
    filter: Filter,
    ids: Vec<u32>,
}

impl Subset {
    fn of(literals: &[Literal], wanted: &[bool]) -> Result<Self, PlanError> {
        let ids = (0..literals.len()).filter(|id| wanted[*id]);
        let ids: Vec<u32> = ids.map(|id| id as u32).collect();
        let some = ids.iter().map(|id| literals[*id as usize].clone());
        let filter = Filter::build(&some.collect::<Vec<_>>())?;
        Ok(Self { filter, ids })
    }
}
