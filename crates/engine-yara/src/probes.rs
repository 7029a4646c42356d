//! Parts of conditions that YARA-X decides without looking for patterns, in groups of those that
//! need the same of the file: a group is run for a file when an open rule asks one of it.

use std::collections::{BTreeMap, BTreeSet};

use readplan::{Plan, RuleId};
use yara_x::{Rules, Scanner};

use crate::context::Reads;
use crate::pe::{Needs, Portable};
use crate::planned::{Stopped, Telling, compiler, scanner};

/// All probes of a plan that stand by themselves.
pub(crate) struct Probes {
    groups: Vec<Group>,
    /// By the plan's probe: its group. `None`: it is never asked.
    group_of: Vec<Option<usize>>,
}

struct Group {
    rules: Rules,
    reads: Reads,
    needs: Needs,
    has_modules: bool,
    /// The plan's probes in it.
    ids: Vec<usize>,
}

/// What makes probes belong together; in the order in which groups are asked.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    has_modules: bool,
    needs: Needs,
    imports: Vec<String>,
    /// Not of a rule that is open for every file.
    is_rare: bool,
}

impl Probes {
    pub(crate) fn compile(plan: &Plan) -> Result<Self, Vec<String>> {
        let mut texts: BTreeMap<Kind, Vec<(usize, String)>> = BTreeMap::new();
        // Probes of rules that are open for every file are asked for every file.
        let mut often = vec![false; plan.probes().len()];
        for rule in (0..plan.len()).filter(|rule| plan.is_always_open(*rule)) {
            plan.probes_of(rule)
                .iter()
                .for_each(|probe| often[*probe] = true);
        }
        let all = plan.probes().iter().enumerate();
        for (id, probe) in all.filter(|(_, probe)| !probe.expensive) {
            let imports = probe.imports.iter();
            let mut text: String = imports.map(|name| format!("import \"{name}\"\n")).collect();
            text.push_str(&format!("rule p{id} {{ condition: {} }}\n", probe.text));
            let needs = Needs::of(text.as_bytes()).rounded();
            let kind = Kind {
                has_modules: !probe.imports.is_empty(),
                needs,
                imports: probe.imports.clone(),
                is_rare: !often[id],
            };
            texts.entry(kind).or_default().push((id, text));
        }
        let mut probes = Self {
            groups: Vec::new(),
            group_of: vec![None; plan.probes().len()],
        };
        // Those that need the least come first.
        for (kind, texts) in texts {
            let mut compiler = compiler()?;
            let mut reads = Reads::default();
            let mut ids = Vec::new();
            for (id, text) in texts {
                // One that does not stand by itself is not asked.
                if compiler.add_source(text.as_str()).is_ok() {
                    reads.add(text.as_bytes());
                    ids.push(id);
                    probes.group_of[id] = Some(probes.groups.len());
                }
            }
            let rules = compiler.build();
            probes.groups.push(Group {
                rules,
                reads,
                needs: kind.needs,
                has_modules: kind.has_modules,
                ids,
            });
        }
        Ok(probes)
    }

    /// How many scanners they need.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The probe is asked at all.
    pub(crate) fn is_asked(&self, probe: usize) -> bool {
        self.group_of.get(probe).is_some_and(Option::is_some)
    }

    /// The groups that have these probes.
    pub(crate) fn groups_of(&self, probes: &BTreeSet<usize>) -> BTreeSet<usize> {
        let groups = probes
            .iter()
            .filter_map(|probe| *self.group_of.get(*probe)?);
        groups.collect()
    }

    /// It takes a module to answer this group.
    pub(crate) fn has_modules(&self, group: usize) -> bool {
        self.groups
            .get(group)
            .is_some_and(|group| group.has_modules)
    }

    /// The rule has a probe in this group.
    pub(crate) fn asks(&self, plan: &Plan, rule: RuleId, group: usize) -> bool {
        let mut probes = plan.probes_of(rule).iter();
        probes.any(|probe| self.group_of.get(*probe) == Some(&Some(group)))
    }

    /// The first group from `from` on that one of these rules asks.
    pub(crate) fn wanted(&self, plan: &Plan, rules: &[RuleId], from: usize) -> Option<usize> {
        let asked = rules.iter().flat_map(|rule| plan.probes_of(*rule));
        let groups = asked.filter_map(|probe| *self.group_of.get(*probe)?);
        groups.filter(|group| *group >= from).min()
    }
}

/// Asks probes, one file after the other.
pub(crate) struct Prober<'r> {
    probes: &'r Probes,
    /// Made when they are first needed.
    scanners: Vec<Option<Scanner<'r>>>,
    /// By the plan's probe.
    answers: Vec<Option<bool>>,
}

impl<'r> Prober<'r> {
    pub(crate) fn new(probes: &'r Probes) -> Self {
        Self {
            probes,
            scanners: probes.groups.iter().map(|_| None).collect(),
            answers: vec![None; probes.group_of.len()],
        }
    }

    /// Forgets the answers.
    pub(crate) fn clear(&mut self) {
        self.answers.fill(None);
    }

    pub(crate) fn answer(&self, probe: usize) -> Option<bool> {
        self.answers.get(probe).copied().flatten()
    }

    /// Asks all probes of a group.
    pub(crate) fn ask(
        &mut self,
        group: usize,
        telling: &Telling<'_>,
        portable: &mut Portable,
    ) -> Result<(), Stopped> {
        let Some(Group {
            rules,
            reads,
            needs,
            ids,
            ..
        }) = self.probes.groups.get(group)
        else {
            return Ok(());
        };
        let scanner = self.scanners[group].get_or_insert_with(|| scanner(rules));
        telling.tell(scanner, *reads, *needs, portable)?;
        let results = scanner.scan(telling.bytes)?;
        for id in ids {
            self.answers[*id] = Some(false);
        }
        for rule in results.matching_rules() {
            let id = rule.identifier().strip_prefix('p');
            let id = id.and_then(|id| id.parse::<usize>().ok());
            if let Some(answer) = id.and_then(|id| self.answers.get_mut(id)) {
                *answer = Some(true);
            }
        }
        Ok(())
    }
}
