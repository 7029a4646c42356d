//! Files to scan, an agent's directories, and a scan of them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::AgentConfig;
use agent::scan::{Ended, ScanArgs, ScanError, Setup, scan};
use clap::{Args, FromArgMatches};
use daemon::signal::Stop;
use tempfile::TempDir;

use crate::appliance::{Appliance, Brain, Greeting};

/// For what happens soon on its own; its end is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Scene {
    dir: TempDir,
    pub(crate) appliance: Appliance,
    pub(crate) config: AgentConfig,
    pub(crate) stop: Stop,
    pub(crate) patience: Duration,
}

impl Scene {
    pub(crate) fn new(
        brain: impl Fn(&proto::v1::Check, Option<&[u8]>) -> crate::appliance::Say
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self::greeted(Greeting::default(), brain)
    }

    pub(crate) fn greeted(
        greeting: Greeting,
        brain: impl Fn(&proto::v1::Check, Option<&[u8]>) -> crate::appliance::Say
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        let state_dir = dir.path().join("state");
        fs::create_dir(&state_dir).unwrap();
        let brain: Arc<Brain> = Arc::new(brain);
        let appliance = Appliance::start(&state_dir, greeting, brain);
        let mut config = AgentConfig {
            state_dir,
            runtime_dir: dir.path().join("run"),
            ..AgentConfig::default()
        };
        config.appliance.addresses = vec![appliance.addr.to_string()];
        fs::create_dir(&config.runtime_dir).unwrap();
        Self {
            dir,
            appliance,
            config,
            stop: Stop::manual().unwrap(),
            patience: Duration::from_secs(60),
        }
    }

    /// Another appliance takes the first one's place.
    pub(crate) fn replace_appliance(
        &mut self,
        greeting: Greeting,
        brain: impl Fn(&proto::v1::Check, Option<&[u8]>) -> crate::appliance::Say
        + Send
        + Sync
        + 'static,
    ) {
        let brain: Arc<Brain> = Arc::new(brain);
        self.appliance = Appliance::start(&self.config.state_dir, greeting, brain);
        self.config.appliance.addresses = vec![self.appliance.addr.to_string()];
        self.stop = Stop::manual().unwrap();
    }

    pub(crate) fn files(&self) -> PathBuf {
        self.dir.path().join("files").canonicalize().unwrap()
    }

    pub(crate) fn write(&self, name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
        let path = self.files().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn setup(&self) -> Setup {
        Setup {
            patience: self.patience,
            save_after: Duration::ZERO,
            ..Setup::of(&self.config)
        }
    }

    /// Scans the files with these options.
    pub(crate) fn scan(&self, options: &[&str]) -> (Ended, String) {
        let (ended, out) = self.try_scan(options);
        (ended.unwrap(), out)
    }

    pub(crate) fn try_scan(&self, options: &[&str]) -> (Result<Ended, ScanError>, String) {
        let files = self.files();
        let mut options = options.to_vec();
        options.push(files.to_str().unwrap());
        self.scan_paths(&options)
    }

    pub(crate) fn scan_paths(&self, args: &[&str]) -> (Result<Ended, ScanError>, String) {
        let out = Output::default();
        let writer = Box::new(out.clone());
        let ended = scan(&parse(args), &self.setup(), &self.stop, writer);
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        (ended, text)
    }

    /// Paths asked about, below the files' directory, in order of their names.
    pub(crate) fn asked(&self) -> Vec<String> {
        let prefix = format!("{}/", self.files().display());
        let name = |path: String| path.strip_prefix(&prefix).unwrap().to_owned();
        let mut asked: Vec<_> = self.appliance.asked().into_iter().map(name).collect();
        asked.sort();
        asked
    }

    pub(crate) fn journals(&self) -> Vec<PathBuf> {
        let Ok(dir) = fs::read_dir(self.config.state_dir.join("scans")) else {
            return Vec::new();
        };
        let paths = dir.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|e| e == "journal"))
            .collect()
    }
}

pub(crate) fn parse(args: &[&str]) -> ScanArgs {
    let command = ScanArgs::augment_args(clap::Command::new("scan"));
    let matches = command.get_matches_from([&["scan"], args].concat());
    ScanArgs::from_arg_matches(&matches).unwrap()
}

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON lines, the summary last.
pub(crate) fn json(out: &str) -> Vec<serde_json::Value> {
    let parse = |line| serde_json::from_str(line).unwrap();
    out.lines().map(parse).collect()
}
