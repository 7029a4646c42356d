//! A rule set that runs, on each file, only those rules that can match it.
//!
//! 1. The literal filter over the content: which literals occur where.
//! 2. Conditions in three values ([`readplan`]): most rules come to *false*.
//! 3. What is open because of modules and the like: YARA-X evaluates just these parts of the
//!    conditions (*probes*), without looking for any pattern.
//! 4. What is still open is run by YARA-X, in the parts (*shards*) of the rule set that hold it.

mod ranged;
mod reported;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use readplan::{Hits, Known, Plan, RuleId, Source};
use yara_x::{Compiler, Rules, ScanError, ScanResults, Scanner, SourceCode};

pub use ranged::{HEAD_BYTES, Step, Why};
pub use reported::{Reported, agent_pack};

use crate::context::{self, Names, Reads};
use crate::scan::{MATCHES_MAX, TIMEOUT_DEFAULT};

/// Rules of one shard, about: small ones are fast to run, many of them cost memory.
const SHARD_RULES: usize = 96;
/// The same for rules that no literal guards: they are run most often, each for itself.
const RESIDENT_SHARD_RULES: usize = 6;

/// A part of the rule set, compiled by itself.
struct Shard {
    rules: Rules,
    reads: Reads,
}

/// Compiled rules and their plan.
pub struct Planned {
    plan: Plan,
    shards: Vec<Shard>,
    /// By rule: where it is.
    shard_of: Vec<usize>,
    /// By rule: rules of the same number are compiled together.
    group_of: Vec<usize>,
    probes: Probes,
    /// A rule set that has all modules' findings and nothing else.
    modules: Rules,
    /// By namespace and name, the order of the rules.
    order: HashMap<String, HashMap<String, RuleId>>,
}

/// Conditions that YARA-X decides without patterns.
struct Probes {
    rules: Rules,
    reads: Reads,
    /// By rule of `rules`, in order: the plan's probe.
    ids: Vec<usize>,
    /// By the plan's probe: it is among them.
    asked: Vec<bool>,
}

/// What a file came to.
#[derive(Debug, Clone, Default)]
pub struct Judged {
    /// Namespace and name of the public rules that match, sorted.
    pub matches: Vec<(String, String)>,
    /// What was left for YARA-X, in shards and rules.
    pub stages: Stages,
}

/// How far the plan got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stages {
    /// Occurrences of literals.
    pub hits: usize,
    /// Rules open after the filter.
    pub open_after_filter: usize,
    /// Rules open after the probes.
    pub open: usize,
    /// Shards run.
    pub shards: usize,
}

/// Why a scan ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    /// Time is up.
    #[error("time is up")]
    Timeout,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<ScanError> for Stopped {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Timeout => Self::Timeout,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl Planned {
    /// Compiles rule files, namespaces beside their texts.
    ///
    /// # Errors
    /// All mistakes.
    pub fn compile(sources: &Sources) -> Result<Self, Vec<String>> {
        let list: Vec<Source<'_>> = sources
            .iter()
            .map(|(namespace, text)| Source { namespace, text })
            .collect();
        let plan = Plan::compile(&list).map_err(|error| vec![error.to_string()])?;
        let divided = divide(&plan);
        let mut shard_of = vec![0; plan.len()];
        for (index, rules) in divided.iter().enumerate() {
            for rule in rules {
                shard_of[*rule] = index;
            }
        }
        let texts: Vec<_> = divided.iter().map(|rules| plan.sources_of(rules)).collect();
        let shards = compile_all(&texts)?;
        let mut group_of = vec![0; plan.len()];
        for (index, rules) in plan.groups().iter().enumerate() {
            for rule in rules {
                group_of[*rule] = index;
            }
        }
        let probes = Probes::compile(&plan)?;
        let modules = compile_modules(&plan)?;
        let mut order: HashMap<String, HashMap<String, RuleId>> = HashMap::new();
        for rule in 0..plan.len() {
            let (namespace, name) = plan.name(rule);
            let names = order.entry(namespace.to_owned()).or_default();
            names.insert(name.to_owned(), rule);
        }
        Ok(Self {
            plan,
            shards,
            shard_of,
            group_of,
            probes,
            modules,
            order,
        })
    }

    /// The place of a rule in the order of the files and the rules in them.
    pub(crate) fn order_of(&self, namespace: &str, name: &str) -> RuleId {
        let rule = self.order.get(namespace).and_then(|names| names.get(name));
        rule.copied().unwrap_or(RuleId::MAX)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// A scanner, for one thread.
    ///
    /// # Errors
    /// YARA-X cannot start.
    pub fn scanner(&self) -> Result<PlannedScanner<'_>, String> {
        PlannedScanner::new(self)
    }
}

/// Shards of whole groups. Rules that neither a literal nor a probe shuts are run most often,
/// each for itself: they come in small ones.
fn divide(plan: &Plan) -> Vec<Vec<RuleId>> {
    let is_resident = |group: &&Vec<RuleId>| {
        group.iter().any(|rule| {
            plan.residents().binary_search(rule).is_ok() && plan.probes_of(*rule).is_empty()
        })
    };
    let groups = plan.groups().iter();
    let (residents, others): (Vec<_>, Vec<_>) = groups.partition(is_resident);
    let mut shards: Vec<Vec<RuleId>> = Vec::new();
    for (part, most) in [(residents, RESIDENT_SHARD_RULES), (others, SHARD_RULES)] {
        let mut shard: Vec<RuleId> = Vec::new();
        for group in part {
            if !shard.is_empty() && shard.len() + group.len() > most {
                shards.push(std::mem::take(&mut shard));
            }
            shard.extend(group);
        }
        if !shard.is_empty() {
            shards.push(shard);
        }
    }
    shards
}

/// Rule files with their namespaces.
type Sources = [(String, Vec<u8>)];

/// The shards of these texts, compiled by as many threads as there are processors; these have
/// ended when this returns.
fn compile_all(texts: &[Vec<(String, Vec<u8>)>]) -> Result<Vec<Shard>, Vec<String>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(text) = texts.get(index) else {
                return done;
            };
            let shard = compile_whole(text).map(|(rules, reads)| Shard { rules, reads });
            done.push((index, shard));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().flat_map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Vec<_>>()
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, shard)| shard).collect()
}

/// Rules of these files, each a namespace of its own.
pub(crate) fn compile_whole(sources: &Sources) -> Result<(Rules, Reads), Vec<String>> {
    let mut compiler = compiler()?;
    let mut reads = Reads::default();
    for (namespace, text) in sources {
        compiler.new_namespace(namespace);
        compiler
            .add_source(SourceCode::from(text.as_slice()).with_origin(namespace))
            .map_err(|error| vec![format!("{namespace}: {error}")])?;
        reads.add(text);
    }
    Ok((compiler.build(), reads))
}

impl Probes {
    fn compile(plan: &Plan) -> Result<Self, Vec<String>> {
        let mut compiler = compiler()?;
        let mut reads = Reads::default();
        let mut ids = Vec::new();
        let mut asked = vec![false; plan.probes().len()];
        let cheap = plan
            .probes()
            .iter()
            .enumerate()
            .filter(|(_, probe)| !probe.expensive);
        for (id, probe) in cheap {
            let imports = probe
                .imports
                .iter()
                .map(|name| format!("import \"{name}\"\n"));
            let mut text = imports.collect::<String>();
            text.push_str(&format!("rule p{id} {{ condition: {} }}\n", probe.text));
            // One that does not stand by itself is not asked.
            if compiler.add_source(text.as_str()).is_ok() {
                reads.add(text.as_bytes());
                ids.push(id);
                asked[id] = true;
            }
        }
        Ok(Self {
            rules: compiler.build(),
            reads,
            ids,
            asked,
        })
    }
}

/// A rule that imports what any rule does.
fn compile_modules(plan: &Plan) -> Result<Rules, Vec<String>> {
    let mut compiler = compiler()?;
    let imports = plan.imports().into_iter();
    let mut text = imports
        .map(|name| format!("import \"{name}\"\n"))
        .collect::<String>();
    text.push_str("rule modules { condition: false }\n");
    let added = compiler.add_source(text.as_str());
    added.map_err(|error| vec![error.to_string()])?;
    Ok(compiler.build())
}

fn compiler<'a>() -> Result<Compiler<'a>, Vec<String>> {
    let mut compiler = Compiler::new();
    // A file that another includes would not be part of the generation.
    compiler.enable_includes(false);
    context::define(&mut compiler)?;
    Ok(compiler)
}

/// Scans, one file after the other.
pub struct PlannedScanner<'r> {
    planned: &'r Planned,
    /// Made when they are first needed.
    shards: Vec<Option<Scanner<'r>>>,
    probes: Scanner<'r>,
    /// Made when it is first needed.
    modules: Option<Scanner<'r>>,
    hits: Hits,
    answers: Vec<Option<bool>>,
}

fn scanner(rules: &Rules) -> Scanner<'_> {
    let mut scanner = Scanner::new(rules);
    scanner.max_matches_per_pattern(MATCHES_MAX);
    scanner
}

impl<'r> PlannedScanner<'r> {
    fn new(planned: &'r Planned) -> Result<Self, String> {
        let mut probes = scanner(&planned.probes.rules);
        // The first scan with a time limit starts YARA-X's heartbeat thread, which a worker's
        // system call filter would not let it do later.
        probes.set_timeout(TIMEOUT_DEFAULT);
        probes.scan(b"").map_err(|e| format!("first scan: {e}"))?;
        Ok(Self {
            planned,
            shards: planned.shards.iter().map(|_| None).collect(),
            probes,
            modules: None,
            hits: Hits::default(),
            answers: Vec::new(),
        })
    }

    /// Runs the rules over a file of this path. No time limit.
    ///
    /// # Errors
    /// YARA-X failed.
    pub fn scan(&mut self, bytes: &[u8], path: &[u8]) -> Result<Judged, String> {
        let names = Names::of_path(path);
        let mut matches = Vec::new();
        let mut take = |results: &ScanResults<'_, '_>| {
            matches.extend(
                results
                    .matching_rules()
                    .map(|rule| (rule.namespace().to_owned(), rule.identifier().to_owned())),
            );
        };
        let left = || Some(TIMEOUT_DEFAULT);
        let stages = self.run(bytes, &names, &[], &left, &mut take);
        let stages = stages.map_err(|stopped| stopped.to_string())?;
        matches.sort();
        Ok(Judged { matches, stages })
    }

    /// Runs the rules over the file of these names, or its member at `inside`; hands over the
    /// results of each shard that ran. `left` tells the time that is left.
    pub(crate) fn run(
        &mut self,
        bytes: &[u8],
        names: &Names,
        inside: &[Vec<u8>],
        left: &dyn Fn() -> Option<Duration>,
        take: &mut dyn FnMut(&ScanResults<'_, '_>),
    ) -> Result<Stages, Stopped> {
        let planned = self.planned;
        self.filter(bytes);
        let open = self.open(bytes);
        let mut stages = Stages {
            hits: self.hits.len(),
            open_after_filter: open.len(),
            ..Stages::default()
        };
        let asked = planned.wants_probes(&open);
        if asked {
            self.probe(bytes, names, inside, left)?;
        }
        let open = self.still_open(bytes, &open, asked);
        stages.open = open.len();
        let mut shards: Vec<usize> = open.iter().map(|rule| planned.shard_of[*rule]).collect();
        shards.sort_unstable();
        shards.dedup();
        stages.shards = shards.len();
        for index in shards {
            let shard = &planned.shards[index];
            let scanner = self.shards[index].get_or_insert_with(|| scanner(&shard.rules));
            scanner.set_timeout(left().ok_or(Stopped::Timeout)?);
            names
                .tell(shard.reads, scanner, inside, bytes)
                .map_err(Stopped::Failed)?;
            take(&scanner.scan(bytes)?);
        }
        Ok(stages)
    }

    fn filter(&mut self, bytes: &[u8]) {
        self.hits.clear();
        let hits = &mut self.hits;
        let _ = self
            .planned
            .plan
            .filter()
            .scan(bytes, &mut |literal, offset| {
                hits.add(literal, offset as u64);
                std::ops::ControlFlow::Continue(())
            });
    }

    fn open(&self, bytes: &[u8]) -> Vec<RuleId> {
        let known = Known {
            size: bytes.len() as u64,
            bytes: &bytes,
            hits: &self.hits,
            search: None,
        };
        self.planned.plan.open(&known, &|_| None)
    }

    /// With the probes' answers, where they were asked, and a closer look at the content.
    fn still_open(&self, bytes: &[u8], open: &[RuleId], asked: bool) -> Vec<RuleId> {
        let known = Known {
            size: bytes.len() as u64,
            bytes: &bytes,
            hits: &self.hits,
            search: None,
        };
        let answer = |probe: usize| match asked {
            true => self.answers.get(probe).copied().flatten(),
            false => None,
        };
        let plan = &self.planned.plan;
        let open = plan.still_open(open, &known, &answer);
        let known = Known {
            search: Some(bytes),
            ..known
        };
        plan.still_open(&open, &known, &answer)
    }

    fn probe(
        &mut self,
        bytes: &[u8],
        names: &Names,
        inside: &[Vec<u8>],
        left: &dyn Fn() -> Option<Duration>,
    ) -> Result<(), Stopped> {
        let probes = &self.planned.probes;
        let scanner = &mut self.probes;
        scanner.set_timeout(left().ok_or(Stopped::Timeout)?);
        names
            .tell(probes.reads, scanner, inside, bytes)
            .map_err(Stopped::Failed)?;
        let results = scanner.scan(bytes)?;
        self.answers.clear();
        self.answers.resize(probes.asked.len(), None);
        for id in &probes.ids {
            self.answers[*id] = Some(false);
        }
        for rule in results.matching_rules() {
            let id = rule
                .identifier()
                .strip_prefix('p')
                .and_then(|id| id.parse::<usize>().ok());
            if let Some(answer) = id.and_then(|id| self.answers.get_mut(id)) {
                *answer = Some(true);
            }
        }
        Ok(())
    }
}

impl Planned {
    /// Some of these rules have a part that a probe can decide.
    fn wants_probes(&self, rules: &[RuleId]) -> bool {
        let asked = |probe: usize| self.probes.asked.get(probe) == Some(&true);
        rules
            .iter()
            .any(|rule| self.plan.probes_of(*rule).iter().any(|p| asked(*p)))
    }
}
