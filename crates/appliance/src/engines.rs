//! The engines in use, and how they come to be: processes of ours, started from configuration.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::host::{self, Content, EngineSpec, Job, JobResult, PartialJob, PartialResult};
use literal_filter::Pack;
use model::{FilterPack, Generation, UnscannedReason};
use parking_lot::RwLock;
use proto::v1;
use scan_core::{
    Context, Engine, EngineCounts, EngineFacts, Finding, PartialFuture, PartialStep, PartialTask,
    ScanFuture, Settings, Task,
};

use crate::config::{ClamdConfig, Config, EngineLimits, YaraConfig};
use crate::rule_delta::Manifest;

/// How often an engine that could not be started is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// An engine that takes longer to say what its rules are has none that can be told apart.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Folders with rules that are looked for where none are configured, the first that exists;
/// relative ones are beside our program.
const RULE_FOLDERS: [&str; 3] = ["/etc/lazaret/rules", "../share/lazaret/rules", "rules"];

/// Engines cannot be used as configured. What ran goes on.
#[derive(Debug, thiserror::Error)]
pub enum EngineSetError {
    /// No rules were configured, and none are where they are looked for.
    #[error("engine.yara.rules: not set, and there is no folder of rules at {}", looked_at.join(", "))]
    NoRules {
        /// Where they were looked for.
        looked_at: Vec<String>,
    },
    /// Configured rules are not there.
    #[error("engine.yara.rules: {}: cannot be read", path.display())]
    Rules {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An engine did not start.
    #[error(transparent)]
    Start(#[from] host::StartError),
    /// Our own program cannot be found, so neither can the engines beside it.
    #[error("cannot tell where this program lies; set engine.*.program")]
    OwnProgram(#[source] std::io::Error),
}

/// What [`EngineSource::load`] returns.
pub type LoadFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<SharedEngine>, EngineSetError>> + Send + 'a>>;
/// What [`EngineSource::manifest`] returns.
pub type ManifestFuture<'a> = Pin<Box<dyn Future<Output = Option<Manifest>> + Send + 'a>>;
/// What [`EngineSource::delta`] returns.
pub type DeltaFuture<'a> = Pin<Box<dyn Future<Output = Option<SharedEngine>> + Send + 'a>>;
/// An engine in use.
pub type SharedEngine = Arc<dyn Engine<Content>>;

/// Makes engines from a configuration.
pub trait EngineSource: Send + Sync {
    /// Starts every engine that the configuration names, beside those that run already: either
    /// all of them are ready, or nothing has changed. An engine ends when it is dropped.
    fn load<'a>(&'a self, config: &'a Config) -> LoadFuture<'a>;

    /// The rules of the engine whose rules can be told apart, as they lie there now. `None`: there
    /// is no such engine, or it cannot tell.
    fn manifest<'a>(&'a self, _config: &'a Config) -> ManifestFuture<'a> {
        Box::pin(std::future::ready(None))
    }

    /// That engine, beside those that run, with the rules alone that the manifest in this file does
    /// not have.
    fn delta<'a>(&'a self, _config: &'a Config, _manifest: &'a Path) -> DeltaFuture<'a> {
        Box::pin(std::future::ready(None))
    }
}

/// The engines in use.
pub(crate) struct EngineSet {
    pub(crate) engines: Vec<SharedEngine>,
    /// What these were made with, and no generation of theirs covers.
    pub(crate) settings: Settings,
}

impl EngineSet {
    pub(crate) fn facts(&self) -> Vec<EngineFacts> {
        self.engines.iter().map(|engine| engine.facts()).collect()
    }

    /// What agents can look for in place of all engines. Of several none: the content that one of
    /// them wants whole is whole for all.
    pub(crate) fn filter(&self) -> Option<Arc<FilterPack>> {
        match &self.engines[..] {
            [only] => only.filter(),
            _ => None,
        }
    }

    /// Whether content that begins so is wanted whole, whatever its agent finds in it.
    pub(crate) fn want_whole(&self, head: &[u8]) -> bool {
        let pack = self.filter();
        pack.is_some_and(|pack| Pack::bytes_want_whole(&pack.bytes, head))
    }

    /// Of the engine that has the most.
    pub(crate) fn workers(&self) -> usize {
        let workers = self.engines.iter().map(|engine| engine.facts().workers);
        workers.max().unwrap_or(1)
    }

    pub(crate) fn status(&self) -> Vec<v1::EngineStatus> {
        let status = self.engines.iter().map(|engine| {
            let (facts, counts) = (engine.facts(), engine.counts());
            v1::EngineStatus {
                name: facts.name,
                version: facts.version,
                rules: facts.rules,
                workers: u32::try_from(counts.workers_alive).unwrap_or(u32::MAX),
                scanned_total: counts.scanned_total,
                killed_total: counts.killed_total,
            }
        });
        status.collect()
    }
}

/// Engines as child processes.
#[derive(Debug, Default)]
pub struct ProcessEngines {
    /// Rules to use where none are configured and none are where they are looked for.
    pub last_resort_rules: Option<PathBuf>,
}

impl EngineSource for ProcessEngines {
    fn load<'a>(&'a self, config: &'a Config) -> LoadFuture<'a> {
        Box::pin(async move {
            let chosen = config.engine.or_default();
            let unpack = config.unpack.to_wire();
            let mut engines: Vec<SharedEngine> = Vec::new();
            if let Some(yara) = &chosen.yara {
                let running = host::Engine::start(self.yara_spec(yara)?).await?;
                engines.push(Arc::new(ProcessEngine { running, unpack }));
            }
            if let Some(clamd) = &chosen.clamd {
                engines.push(LateEngine::start(clamd_spec(clamd)?, unpack).await);
            }
            Ok(engines)
        })
    }

    fn manifest<'a>(&'a self, config: &'a Config) -> ManifestFuture<'a> {
        Box::pin(async move {
            let spec = self
                .yara_spec(config.engine.or_default().yara.as_ref()?)
                .ok()?;
            let asked = tokio::process::Command::new(&spec.program)
                .args(&spec.args)
                .arg("--manifest")
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output();
            let output = tokio::time::timeout(MANIFEST_TIMEOUT, asked)
                .await
                .ok()?
                .ok()?;
            Manifest::read(String::from_utf8(output.stdout).ok()?)
        })
    }

    fn delta<'a>(&'a self, config: &'a Config, manifest: &'a Path) -> DeltaFuture<'a> {
        Box::pin(async move {
            let spec = self
                .yara_spec(config.engine.or_default().yara.as_ref()?)
                .ok()?;
            let mut args = spec.args;
            args.extend([OsString::from("--known"), manifest.as_os_str().to_owned()]);
            let unpack = config.unpack.to_wire();
            let spec = EngineSpec { args, ..spec };
            match host::Engine::start(spec).await {
                Ok(running) => Some(Arc::new(ProcessEngine { running, unpack }) as SharedEngine),
                Err(error) => {
                    let error = daemon::log::escape(error.to_string().as_bytes()).to_string();
                    tracing::warn!(error, "the rules that are new cannot be run by themselves");
                    None
                }
            }
        })
    }
}

impl ProcessEngines {
    fn yara_spec(&self, config: &YaraConfig) -> Result<EngineSpec, EngineSetError> {
        let rules = if config.rules.is_empty() {
            vec![self.default_rules()?]
        } else {
            config.rules.clone()
        };
        let mut args = vec![OsString::from("--rules")];
        for path in rules {
            let path = path
                .canonicalize()
                .map_err(|source| EngineSetError::Rules { path, source })?;
            args.push(path.into());
        }
        spec("yara", "lazaret-engine-yara", &config.limits(), args)
    }

    fn default_rules(&self) -> Result<PathBuf, EngineSetError> {
        let beside = own_folder()?;
        let folders = RULE_FOLDERS.map(|folder| beside.join(folder));
        if let Some(folder) = folders.iter().find(|folder| folder.is_dir()) {
            return Ok(folder.clone());
        }
        let looked_at = folders.map(|folder| folder.display().to_string());
        let Some(last_resort) = &self.last_resort_rules else {
            return Err(EngineSetError::NoRules {
                looked_at: looked_at.to_vec(),
            });
        };
        tracing::warn!(looked_at = looked_at.join(", "), rules = %last_resort.display(),
            "engine.yara.rules is not set and there are no rules where they are looked for: only the rules built in are in force, which find test files and nothing else");
        Ok(last_resort.clone())
    }
}

fn clamd_spec(config: &ClamdConfig) -> Result<EngineSpec, EngineSetError> {
    let mut args: Vec<OsString> = vec!["--socket".into(), config.socket.clone().into()];
    for path in config.database() {
        args.push("--database".into());
        args.push(path.into());
    }
    spec("clamd", "lazaret-engine-clamd", &config.limits(), args)
}

fn spec(
    name: &str,
    program: &str,
    limits: &EngineLimits,
    args: Vec<OsString>,
) -> Result<EngineSpec, EngineSetError> {
    let program = match &limits.program {
        Some(program) => program.clone(),
        None => own_folder()?.join(program),
    };
    Ok(EngineSpec {
        args,
        workers: limits.workers,
        job_timeout: limits.job_timeout,
        memory_max_bytes: limits.memory_max_bytes,
        ..EngineSpec::new(name, program)
    })
}

fn own_folder() -> Result<PathBuf, EngineSetError> {
    let own = std::env::current_exe().map_err(EngineSetError::OwnProgram)?;
    Ok(own.parent().map_or_else(PathBuf::new, Path::to_owned))
}

/// An engine that runs as a child process.
struct ProcessEngine {
    running: host::Engine,
    unpack: v1::UnpackLimits,
}

impl Engine<Content> for ProcessEngine {
    fn facts(&self) -> EngineFacts {
        let ready = self.running.info();
        EngineFacts {
            name: ready.name.clone(),
            version: ready.version.clone(),
            generation: Generation::from_slice(&ready.generation).unwrap_or_default(),
            rules: ready.rules,
            context_sensitive: ready.context_sensitive,
            workers: self.running.stats().workers,
        }
    }

    fn counts(&self) -> EngineCounts {
        let stats = self.running.stats();
        EngineCounts {
            workers_alive: stats.workers,
            scanned_total: stats.scanned_total,
            killed_total: stats.killed_total.saturating_add(stats.crashed_total),
        }
    }

    fn scan(&self, task: Task<Content>) -> ScanFuture<'_> {
        Box::pin(async move {
            let result = self
                .running
                .scan(Job {
                    content: task.content,
                    context: task.context.map(wire_context),
                    unpack: Some(self.unpack),
                })
                .await;
            finding(result)
        })
    }

    fn filter(&self) -> Option<Arc<FilterPack>> {
        self.running.filter()
    }

    fn judge_partial(&self, task: PartialTask<Content>) -> PartialFuture<'_> {
        Box::pin(async move {
            let job = PartialJob {
                content: task.content,
                size: task.size,
                known: task.known,
                filter: task.filter,
                report: task.report,
                context: task.context.map(wire_context),
                unpack: Some(self.unpack),
            };
            match self.running.judge_partial(job).await {
                PartialResult::Judged(result) => PartialStep::Judged(finding(result)),
                PartialResult::Ask(ranges) => PartialStep::Ask(ranges),
                PartialResult::Whole(why) => PartialStep::Whole(why),
                PartialResult::Failed(result) => PartialStep::Failed(finding(result)),
            }
        })
    }
}

fn finding(result: JobResult) -> Finding {
    Finding {
        detections: result.detections,
        omitted: result.omitted,
        incomplete: result.incomplete,
        error: result.error,
        members_judged: result.members_judged,
        member_bytes_judged: result.member_bytes_judged,
        generation: result.generation,
    }
}

fn wire_context(context: Context) -> v1::FileContext {
    v1::FileContext {
        path: context.path,
        uid: context.uid,
        mode: context.mode,
        pid: 0,
    }
}

/// An engine that depends on a daemon which may come up after us: until then its files are
/// unscanned(engine_unavailable).
struct LateEngine {
    name: String,
    workers: usize,
    state: RwLock<Result<Arc<ProcessEngine>, String>>,
}

impl LateEngine {
    async fn start(spec: EngineSpec, unpack: v1::UnpackLimits) -> Arc<Self> {
        let (name, workers) = (spec.name.clone(), spec.workers);
        let first = host::Engine::start(spec.clone()).await;
        let late = Arc::new(Self {
            name,
            workers,
            state: RwLock::new(Err(String::new())),
        });
        if !late.settle(first, unpack) {
            tokio::spawn(Self::retry(Arc::downgrade(&late), spec, unpack));
        }
        late
    }

    /// True: it runs.
    fn settle(
        &self,
        started: Result<host::Engine, host::StartError>,
        unpack: v1::UnpackLimits,
    ) -> bool {
        match started {
            Ok(running) => {
                tracing::info!(engine = self.name, "engine is available");
                *self.state.write() = Ok(Arc::new(ProcessEngine { running, unpack }));
                true
            }
            Err(error) => {
                let error = daemon::log::escape(error.to_string().as_bytes()).to_string();
                tracing::error!(engine = self.name, error, "engine is not available");
                *self.state.write() = Err(error);
                false
            }
        }
    }

    async fn retry(late: Weak<Self>, spec: EngineSpec, unpack: v1::UnpackLimits) {
        loop {
            tokio::time::sleep(RETRY_EVERY).await;
            if late.strong_count() == 0 {
                return;
            }
            let started = host::Engine::start(spec.clone()).await;
            match late.upgrade() {
                Some(late) if !late.settle(started, unpack) => {}
                _ => return,
            }
        }
    }

    fn running(&self) -> Result<Arc<ProcessEngine>, String> {
        self.state.read().clone()
    }

    fn unavailable(&self, why: &str) -> Finding {
        Finding::incomplete(
            Generation::default(),
            UnscannedReason::EngineUnavailable,
            format!("engine {}: {why}", self.name),
        )
    }
}

impl Engine<Content> for LateEngine {
    fn facts(&self) -> EngineFacts {
        match self.running() {
            Ok(running) => running.facts(),
            Err(why) => EngineFacts {
                name: self.name.clone(),
                version: format!("unavailable: {why}"),
                generation: Generation::default(),
                rules: 0,
                context_sensitive: false,
                workers: self.workers,
            },
        }
    }

    fn counts(&self) -> EngineCounts {
        self.running()
            .map_or_else(|_| EngineCounts::default(), |running| running.counts())
    }

    fn scan(&self, task: Task<Content>) -> ScanFuture<'_> {
        Box::pin(async move {
            match self.running() {
                Ok(running) => running.scan(task).await,
                Err(why) => self.unavailable(&why),
            }
        })
    }

    fn filter(&self) -> Option<Arc<FilterPack>> {
        self.running().ok()?.filter()
    }

    fn judge_partial(&self, task: PartialTask<Content>) -> PartialFuture<'_> {
        Box::pin(async move {
            match self.running() {
                Ok(running) => running.judge_partial(task).await,
                Err(why) => PartialStep::Failed(self.unavailable(&why)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_are_not_there_are_named() {
        let config = YaraConfig {
            rules: vec!["/nonexistent/rules".into()],
            ..YaraConfig::default()
        };
        let engines = ProcessEngines::default();
        let error = engines.yara_spec(&config).unwrap_err().to_string();
        assert!(error.starts_with("engine.yara.rules: /nonexistent/rules: "));
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_leaves_files_unscanned() {
        let spec = EngineSpec::new("clamd", "/nonexistent/engine");
        let engine = LateEngine::start(spec, v1::UnpackLimits::default()).await;
        let task = Task {
            content: Content::Inline(bytes::Bytes::from_static(b"x")),
            context: None,
        };
        let finding = engine.scan(task).await;
        let (reason, _) = finding.incomplete.unwrap();
        assert_eq!(reason, UnscannedReason::EngineUnavailable);
        assert_eq!(engine.facts().name, "clamd");
        assert_eq!(engine.counts(), EngineCounts::default());
    }
}
