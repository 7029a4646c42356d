//! A rule set that runs, on each file, only those rules that can match it.
//!
//! 1. The literal filter over the content: which literals occur where.
//! 2. Conditions in three values ([`readplan`]): most rules come to *false*.
//! 3. What is open because of modules and the like: YARA-X evaluates just these parts of the
//!    conditions (*probes*), without looking for any pattern.
//! 4. What is still open is run by YARA-X, in the parts (*shards*) of the rule set that hold it.

mod ranged;
mod reported;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use readplan::{Hits, Known, Plan, RuleId, Source};
use yara_x::{Compiler, Rules, ScanError, ScanResults, Scanner, SourceCode};

pub use ranged::{HEAD_BYTES, Step, Why};
pub use reported::{Reported, agent_pack};

use crate::context::{self, Names, Reads};
use crate::pe::{Needs, Portable};
use crate::probes::{Prober, Probes};
use crate::scan::{MATCHES_MAX, TIMEOUT_DEFAULT};

/// Rules of one shard, about: small ones are fast to run, many of them cost memory.
const SHARD_RULES: usize = 96;
/// The same for rules that no literal guards: they are run most often, each for itself.
const RESIDENT_SHARD_RULES: usize = 6;

/// A part of the rule set, compiled by itself.
struct Shard {
    rules: Rules,
    reads: Reads,
    needs: Needs,
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
    /// Rules open after the filter and the first probes.
    pub open_after_filter: usize,
    /// Groups of probes asked.
    pub probes: usize,
    /// Rules open after the probes and a close look.
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

    /// How many scanners a thread may come to need.
    pub(crate) fn scanners(&self) -> usize {
        self.shards.len() + self.probes.groups() + 1
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
/// each for itself: they come in small ones. Rules without modules are not made to wait for one.
fn divide(plan: &Plan) -> Vec<Vec<RuleId>> {
    let is_resident = |rule: &RuleId| {
        plan.residents().binary_search(rule).is_ok() && plan.probes_of(*rule).is_empty()
    };
    let has_module = |rule: &RuleId| !plan.imports_of(*rule).is_empty();
    let mut parts: BTreeMap<(bool, bool), Vec<&Vec<RuleId>>> = BTreeMap::new();
    for group in plan.groups() {
        let part = (group.iter().any(is_resident), group.iter().any(has_module));
        parts.entry(part).or_default().push(group);
    }
    let mut shards: Vec<Vec<RuleId>> = Vec::new();
    for ((resident, _), groups) in parts {
        let most = if resident {
            RESIDENT_SHARD_RULES
        } else {
            SHARD_RULES
        };
        let mut shard: Vec<RuleId> = Vec::new();
        for group in groups {
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
            let shard = compile_whole(text).map(|(rules, reads)| Shard {
                rules,
                reads,
                needs: text.iter().fold(Needs::default(), |needs, (_, text)| {
                    needs.and(Needs::of(text))
                }),
            });
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

pub(crate) fn compiler<'a>() -> Result<Compiler<'a>, Vec<String>> {
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
    prober: Prober<'r>,
    /// Made when it is first needed.
    modules: Option<Scanner<'r>>,
    hits: Hits,
}

/// What a scanner is told before it scans a file, or the member of one at `inside`.
pub(crate) struct Telling<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) names: &'a Names,
    pub(crate) inside: &'a [Vec<u8>],
    /// The time that is left.
    pub(crate) left: &'a dyn Fn() -> Option<Duration>,
}

impl Telling<'_> {
    pub(crate) fn tell(
        &self,
        scanner: &mut Scanner<'_>,
        reads: Reads,
        needs: Needs,
        portable: &mut Portable,
    ) -> Result<(), Stopped> {
        scanner.set_timeout((self.left)().ok_or(Stopped::Timeout)?);
        let told = self.names.tell(reads, scanner, self.inside, self.bytes);
        told.and_then(|()| portable.tell(needs, scanner, self.bytes))
            .map_err(Stopped::Failed)
    }
}

pub(crate) fn scanner(rules: &Rules) -> Scanner<'_> {
    let mut scanner = Scanner::new(rules);
    scanner.max_matches_per_pattern(MATCHES_MAX);
    scanner
}

impl<'r> PlannedScanner<'r> {
    fn new(planned: &'r Planned) -> Result<Self, String> {
        let mut shards: Vec<_> = planned.shards.iter().map(|_| None).collect();
        // The first scan with a time limit starts YARA-X's heartbeat thread, which a worker's
        // system call filter would not let it do later.
        if let (Some(first), Some(shard)) = (shards.first_mut(), planned.shards.first()) {
            let scanner: &mut Scanner<'r> = first.insert(scanner(&shard.rules));
            scanner.set_timeout(TIMEOUT_DEFAULT);
            scanner.scan(b"").map_err(|e| format!("first scan: {e}"))?;
        }
        Ok(Self {
            planned,
            shards,
            prober: Prober::new(&planned.probes),
            modules: None,
            hits: Hits::default(),
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
        let telling = Telling {
            bytes,
            names: &names,
            inside: &[],
            left: &left,
        };
        let stages = self.run(&telling, &mut take);
        let stages = stages.map_err(|stopped| stopped.to_string())?;
        matches.sort();
        Ok(Judged { matches, stages })
    }

    /// Runs the rules over the file, and hands over the results of each shard that ran.
    pub(crate) fn run(
        &mut self,
        telling: &Telling<'_>,
        take: &mut dyn FnMut(&ScanResults<'_, '_>),
    ) -> Result<Stages, Stopped> {
        let planned = self.planned;
        let mut portable = Portable::default();
        let mut stages = Stages::default();
        self.hits.clear();
        planned.plan.search(telling.bytes, &mut self.hits);
        stages.hits = self.hits.len();
        let open = self.open(telling, &mut portable, &mut stages)?;
        stages.open = open.len();
        let mut shards: Vec<usize> = open.iter().map(|rule| planned.shard_of[*rule]).collect();
        shards.sort_unstable();
        shards.dedup();
        stages.shards = shards.len();
        for index in shards {
            let shard = &planned.shards[index];
            let scanner = self.shards[index].get_or_insert_with(|| scanner(&shard.rules));
            telling.tell(scanner, shard.reads, shard.needs, &mut portable)?;
            take(&scanner.scan(telling.bytes)?);
        }
        Ok(stages)
    }

    /// The rules that YARA-X has to decide: by the hits and quick probes, then by a close look at
    /// the content, then by what modules say.
    fn open(
        &mut self,
        telling: &Telling<'_>,
        portable: &mut Portable,
        stages: &mut Stages,
    ) -> Result<Vec<RuleId>, Stopped> {
        let Planned { plan, probes, .. } = self.planned;
        let mut known = Known {
            size: telling.bytes.len() as u64,
            bytes: &telling.bytes,
            hits: &self.hits,
            search: None,
        };
        self.prober.clear();
        // A few answers shut most of the rules that are open for every file of its kind.
        let first = plan.first_probes(&known);
        stages.probes += self.prober.ask_quick(first, telling, portable)?;
        portable.tell_numbers(&self.hits);
        let mut open = plan.open(&known, &|probe| self.prober.answer(probe));
        stages.open_after_filter = open.len();
        loop {
            let wanted = self.prober.wanted(plan, &open);
            let is_slow = wanted.is_none_or(|group| probes.is_slow(group));
            if known.search.is_none() && is_slow {
                known.search = Some(telling.bytes);
                open = plan.still_open(&open, &known, &|probe| self.prober.answer(probe));
                continue;
            }
            let Some(group) = wanted else {
                return Ok(open);
            };
            // What numbers of the module decide needs no structures of it.
            let learns = is_slow && portable.learn(telling.bytes);
            if !learns {
                self.prober.ask(group, telling, portable)?;
                stages.probes += 1;
                // The answers are news for those alone that asked.
                let asks = |rule: &RuleId| probes.asks(plan, *rule, group);
                let (asking, others): (Vec<_>, Vec<_>) = open.iter().copied().partition(asks);
                open = others;
                open.extend(plan.still_open(&asking, &known, &|p| self.prober.answer(p)));
            }
            if portable.tell_numbers(&self.hits) {
                open = plan.still_open(&open, &known, &|probe| self.prober.answer(probe));
            }
        }
    }
}
