//! Engines and unpacking, as an administrator writes them.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use proto::v1;
use scan_core::Settings;
use serde::Deserialize;

use super::Ranged;

/// What the engines take.
const WORKERS_MAX: u64 = engine::host::WORKERS_MAX as u64;
/// Where distributions keep clamd's database and configuration.
const CLAMD_DATABASE: [&str; 2] = ["/var/lib/clamav", "/etc/clamav/clamd.conf"];

/// Which engines judge every file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnginesConfig {
    /// YARA-X.
    pub yara: Option<YaraConfig>,
    /// ClamAV's daemon.
    pub clamd: Option<ClamdConfig>,
}

impl EnginesConfig {
    /// The engines to start; yara with its defaults where none is named.
    #[must_use]
    pub fn or_default(&self) -> Self {
        if self.yara.is_none() && self.clamd.is_none() {
            return Self {
                yara: Some(YaraConfig::default()),
                clamd: None,
            };
        }
        self.clone()
    }
}

/// What every engine has.
#[derive(Debug, Clone)]
pub struct EngineLimits {
    /// The engine's program. `None`: beside our own.
    pub program: Option<PathBuf>,
    /// Files judged at once.
    pub workers: usize,
    /// A worker that takes longer for a file is killed.
    pub job_timeout: Duration,
    /// Address space that a worker may add to what it shares with the others.
    pub memory_max_bytes: u64,
}

/// YARA-X.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct YaraConfig {
    /// Files, or folders whose `*.yar` and `*.yara` are loaded. Unset: `/etc/lazaret/rules`, or
    /// `../share/lazaret/rules`, or `rules` beside the program, the first that exists; else the rules
    /// built in, which find test files only.
    pub rules: Vec<PathBuf>,
    /// Unset: beside our own program.
    pub program: Option<PathBuf>,
    /// Files judged at once. Unset: one for each processor.
    pub workers: Option<Ranged<1, WORKERS_MAX>>,
    /// A worker that takes longer for a file is killed. Unset: 60 s.
    pub job_timeout_ms: Option<Ranged<100, 3_600_000>>,
    /// Address space that a worker may add to the rules it shares with the others. Unset: 2 GiB.
    pub memory_max_bytes: Option<Ranged<67_108_864>>,
}

/// ClamAV's daemon.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClamdConfig {
    /// Its unix socket.
    pub socket: PathBuf,
    /// Files, and folders of files, that it judges by: a change of them makes former verdicts void.
    /// Unset: `/var/lib/clamav` and `/etc/clamav/clamd.conf`, where they can be read.
    #[serde(default)]
    pub database: Option<Vec<PathBuf>>,
    /// Unset: beside our own program.
    #[serde(default)]
    pub program: Option<PathBuf>,
    /// Files judged at once. Unset: one for each processor.
    #[serde(default)]
    pub workers: Option<Ranged<1, WORKERS_MAX>>,
    /// A worker that takes longer for a file is killed. Unset: 120 s.
    #[serde(default)]
    pub job_timeout_ms: Option<Ranged<100, 3_600_000>>,
}

impl YaraConfig {
    /// With the defaults filled in.
    #[must_use]
    pub fn limits(&self) -> EngineLimits {
        EngineLimits {
            program: self.program.clone(),
            workers: workers(self.workers),
            job_timeout: Duration::from_millis(self.job_timeout_ms.map_or(60_000, Ranged::get)),
            memory_max_bytes: self.memory_max_bytes.map_or(2 << 30, Ranged::get),
        }
    }
}

impl ClamdConfig {
    /// With the defaults filled in.
    #[must_use]
    pub fn database(&self) -> Vec<PathBuf> {
        if let Some(database) = &self.database {
            return database.clone();
        }
        let defaults = CLAMD_DATABASE.map(PathBuf::from);
        let can_be_read = |path: &PathBuf| path.read_dir().is_ok() || File::open(path).is_ok();
        defaults.into_iter().filter(can_be_read).collect()
    }

    /// With the defaults filled in.
    #[must_use]
    pub fn limits(&self) -> EngineLimits {
        EngineLimits {
            program: self.program.clone(),
            workers: workers(self.workers),
            job_timeout: Duration::from_millis(self.job_timeout_ms.map_or(120_000, Ranged::get)),
            memory_max_bytes: 1 << 30,
        }
    }
}

fn workers(configured: Option<Ranged<1, WORKERS_MAX>>) -> usize {
    configured.map_or_else(
        || std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        Ranged::count,
    )
}

/// Limits of unpacking, each enforced by a capped reader in the engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnpackConfig {
    /// Nesting. 0: nothing is unpacked. 16.
    pub depth_max: Ranged<0, 64>,
    /// Members in all. 10,000.
    pub entries_max: Ranged<1, 10_000_000>,
    /// Bytes of one member. 256 MiB.
    pub entry_bytes_max: Ranged<1>,
    /// Bytes of all members. 1 GiB.
    pub total_bytes_max: Ranged<1>,
    /// Expansion of one member, times. 1000.
    pub ratio_max: Ranged<1, 1_000_000>,
}

impl Default for UnpackConfig {
    fn default() -> Self {
        Self {
            depth_max: Ranged::new(16),
            entries_max: Ranged::new(10_000),
            entry_bytes_max: Ranged::new(256 << 20),
            total_bytes_max: Ranged::new(1 << 30),
            ratio_max: Ranged::new(1000),
        }
    }
}

impl UnpackConfig {
    /// As engines get them.
    #[must_use]
    pub fn to_wire(&self) -> v1::UnpackLimits {
        v1::UnpackLimits {
            depth_max: self.depth_max.u32(),
            entries_max: self.entries_max.u32(),
            entry_bytes_max: self.entry_bytes_max.get(),
            total_bytes_max: self.total_bytes_max.get(),
            ratio_max: self.ratio_max.u32(),
        }
    }

    /// Their identity: verdicts under other limits are other verdicts.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings::of(&[
            self.depth_max.get(),
            self.entries_max.get(),
            self.entry_bytes_max.get(),
            self.total_bytes_max.get(),
            self.ratio_max.get(),
        ])
    }
}
