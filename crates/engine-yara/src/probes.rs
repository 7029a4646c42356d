//! Parts of conditions that YARA-X decides without looking for patterns, in groups of those that
//! need the same of the file: a group is run for a file when an open rule asks one of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use readplan::{Plan, RuleId};
use yara_x::{Rules, Scanner};
use yara_x_parser::ast::{AST, Expr};

use crate::context::Reads;
use crate::pe::{Needs, Portable};
use crate::planned::{Stopped, Telling, compiler, scanner};

/// All probes of a plan that stand by themselves.
pub(crate) struct Probes {
    groups: Vec<Group>,
    /// By the plan's probe: its group. `None`: it is never asked.
    group_of: Vec<Option<usize>>,
}

/// What is asked together.
enum Group {
    /// Of YARA-X.
    Rules(Box<Asked>),
    /// `pe.imphash() == "…"`: by what stands there, the plan's probes.
    ImportHash(HashMap<String, Vec<usize>>),
}

struct Asked {
    rules: Rules,
    reads: Reads,
    needs: Needs,
    has_modules: bool,
    /// Of rules that are not open for every file.
    is_rare: bool,
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
        let mut hashes: HashMap<String, Vec<usize>> = HashMap::new();
        let all = plan.probes().iter().enumerate();
        for (id, probe) in all.filter(|(_, probe)| !probe.expensive) {
            let imports = probe.imports.iter();
            let mut text: String = imports.map(|name| format!("import \"{name}\"\n")).collect();
            text.push_str(&format!("rule p{id} {{ condition: {} }}\n", probe.text));
            if let Some(hash) = import_hash(text.as_bytes()) {
                hashes.entry(hash).or_default().push(id);
                continue;
            }
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
        let mut hashes = Some(hashes).filter(|hashes| !hashes.is_empty());
        for (kind, texts) in texts {
            // It is told without YARA-X making structures: before all else of modules.
            if let Some(hashes) = hashes.take_if(|_| kind.has_modules) {
                probes.add_hashes(hashes);
            }
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
            probes.groups.push(Group::Rules(Box::new(Asked {
                rules,
                reads,
                needs: kind.needs,
                has_modules: kind.has_modules,
                is_rare: kind.is_rare,
                ids,
            })));
        }
        if let Some(hashes) = hashes {
            probes.add_hashes(hashes);
        }
        Ok(probes)
    }

    fn add_hashes(&mut self, hashes: HashMap<String, Vec<usize>>) {
        for id in hashes.values().flatten() {
            self.group_of[*id] = Some(self.groups.len());
        }
        self.groups.push(Group::ImportHash(hashes));
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

    /// It takes structures of a module to answer this group.
    pub(crate) fn is_slow(&self, group: usize) -> bool {
        match self.groups.get(group) {
            Some(Group::Rules(asked)) => asked.has_modules,
            Some(Group::ImportHash(_)) | None => false,
        }
    }

    fn is_rare(&self, group: usize) -> bool {
        matches!(self.groups.get(group), Some(Group::Rules(asked)) if asked.is_rare)
    }

    /// The rule has a probe in this group.
    pub(crate) fn asks(&self, plan: &Plan, rule: RuleId, group: usize) -> bool {
        let mut probes = plan.probes_of(rule).iter();
        probes.any(|probe| self.group_of.get(*probe) == Some(&Some(group)))
    }

    /// The groups that have these probes, are answered without a module's structures and asked for
    /// most files, rising.
    fn quick(&self, probes: &[u32]) -> Vec<usize> {
        let mut wanted = vec![false; self.groups.len()];
        for group in probes
            .iter()
            .filter_map(|p| *self.group_of.get(*p as usize)?)
        {
            wanted[group] = !self.is_slow(group) && !self.is_rare(group);
        }
        let groups = (0..self.groups.len()).filter(|group| wanted[*group]);
        groups.collect()
    }
}

/// Asks probes, one file after the other.
pub(crate) struct Prober<'r> {
    probes: &'r Probes,
    /// Made when they are first needed.
    scanners: Vec<Option<Scanner<'r>>>,
    /// By the plan's probe.
    answers: Vec<Option<bool>>,
    /// By group.
    asked: Vec<bool>,
}

impl<'r> Prober<'r> {
    pub(crate) fn new(probes: &'r Probes) -> Self {
        Self {
            probes,
            scanners: probes.groups.iter().map(|_| None).collect(),
            answers: vec![None; probes.group_of.len()],
            asked: vec![false; probes.groups.len()],
        }
    }

    /// Forgets the answers.
    pub(crate) fn clear(&mut self) {
        self.answers.fill(None);
        self.asked.fill(false);
    }

    /// The first group that one of these rules asks and that was not asked yet.
    pub(crate) fn wanted(&self, plan: &Plan, rules: &[RuleId]) -> Option<usize> {
        let probes = rules.iter().flat_map(|rule| plan.probes_of(*rule));
        let groups = probes.filter_map(|probe| *self.probes.group_of.get(*probe)?);
        groups.filter(|group| !self.asked[*group]).min()
    }

    /// Asks those groups of these probes that are quick; returns how many.
    pub(crate) fn ask_quick(
        &mut self,
        probes: &[u32],
        telling: &Telling<'_>,
        portable: &mut Portable,
    ) -> Result<usize, Stopped> {
        let groups = self.probes.quick(probes);
        for group in &groups {
            self.ask(*group, telling, portable)?;
        }
        Ok(groups.len())
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
        if let Some(asked) = self.asked.get_mut(group) {
            *asked = true;
        }
        let asked = match self.probes.groups.get(group) {
            None => return Ok(()),
            Some(Group::Rules(asked)) => asked,
            Some(Group::ImportHash(by_hash)) => {
                let hash = portable.import_hash(telling.bytes);
                for (wanted, ids) in by_hash {
                    for id in ids {
                        self.answers[*id] = Some(hash == Some(wanted.as_str()));
                    }
                }
                return Ok(());
            }
        };
        let scanner = self.scanners[group].get_or_insert_with(|| scanner(&asked.rules));
        telling.tell(scanner, asked.reads, asked.needs, portable)?;
        let results = scanner.scan(telling.bytes)?;
        for id in &asked.ids {
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

/// What a probe compares the import hash with. YARA-X's is in lower case, and case counts.
fn import_hash(source: &[u8]) -> Option<String> {
    let ast = AST::from(source);
    let Expr::Eq(equal) = &ast.rules().next()?.condition else {
        return None;
    };
    let (Expr::FuncCall(call), Expr::LiteralString(hash)) = (&equal.lhs, &equal.rhs) else {
        return None;
    };
    let is_of_module = matches!(&call.object, Some(Expr::Ident(name)) if name.name == "pe");
    let is_hash = is_of_module && call.identifier.name == "imphash" && call.args.is_empty();
    let hash = std::str::from_utf8(hash.value.as_ref()).ok()?;
    is_hash.then(|| hash.to_owned())
}
