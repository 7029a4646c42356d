//! What the guarded file systems were found to be good for, and how it is told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use daemon::log::escape;
use fanotify::filesystem::FilesystemKind;
use fanotify::probe::{FastPath, Finding, Report, probe};
use proto::v1;
use rustix::fs::{FileType, Mode, OFlags};
use serde_json::{Value, json};

use super::mountinfo::{self, Mount};
use crate::AgentConfig;
use crate::control;
use crate::gate::look::Medium;

/// File systems that are tried; those mounted beyond use no fast path.
const PROBES_MAX: usize = 256;
/// Of those, which the status names: its line has an end.
const TOLD_MAX: usize = 64;

/// One file system, as it was found.
#[derive(Debug)]
pub(crate) struct Probed {
    /// Where it is mounted, or one of the places.
    at: PathBuf,
    /// The kernel's number for that mount.
    mount_id: u64,
    /// Its type, as in `/proc/filesystems`.
    filesystem: String,
    kind: FilesystemKind,
    report: Report,
}

impl Probed {
    /// Tries a file system out at a place where it is mounted.
    pub(crate) fn at(mount: &Mount) -> Self {
        Self {
            at: mount.at.clone(),
            mount_id: mount.id,
            filesystem: mount.kind.clone(),
            kind: kind_at(&mount.at),
            report: probe(&mount.at),
        }
    }

    pub(crate) fn finding_of(&self, path: FastPath) -> Finding {
        self.report.finding_of(path)
    }

    fn is_sound(&self, path: FastPath) -> bool {
        self.finding_of(path) == Finding::Sound
    }

    /// Its type and where it is mounted.
    pub(crate) fn place(&self) -> (&str, &Path) {
        (&self.filesystem, &self.at)
    }

    fn summary(&self) -> Value {
        let fast_paths = FastPath::ALL.map(|path| {
            let name = self.finding_of(path).name();
            (path.name().to_owned(), Value::from(name))
        });
        json!({
            "at": text(&self.at),
            "filesystem": self.filesystem,
            "fast_paths": Value::Object(fast_paths.into_iter().collect()),
        })
    }

    /// Everything that was tried.
    fn json(&self) -> Value {
        let findings = self.report.findings.iter().map(|(experiment, finding)| {
            json!({
                "claim": experiment.claim,
                "trap": experiment.trap,
                "finding": finding.name(),
                "why": finding.why(),
            })
        });
        let mut told = self.summary();
        told["findings"] = findings.collect();
        told
    }

    /// A table for people.
    fn render(&self) -> String {
        let mut out = format!("{} ({})\n", text(&self.at), self.filesystem);
        let mut row = |what: &str, trap: &str, finding: &Finding| {
            let why = escape(finding.why().as_bytes());
            let _ = writeln!(out, "  {:8} {what:54} {trap:8} {why}", finding.name());
        };
        for (experiment, finding) in &self.report.findings {
            row(
                experiment.claim,
                &format!("trap {}", experiment.trap),
                finding,
            );
        }
        for path in FastPath::ALL {
            let finding = self.finding_of(path);
            let use_ = if finding == Finding::Sound {
                "used"
            } else {
                "not used"
            };
            row(
                &format!("fast path: {} ({use_})", path.name()),
                "",
                &finding,
            );
        }
        out
    }
}

/// Tries out the file systems of these paths, or all that are guarded, for people or as JSON: one
/// object a line.
///
/// # Errors
/// The table of mounts cannot be read.
pub(crate) fn tell(config: &AgentConfig, paths: &[PathBuf], as_json: bool) -> io::Result<String> {
    let table = mountinfo::parse(&std::fs::read(mountinfo::PATH)?);
    let mut mounts: Vec<&Mount> = if paths.is_empty() {
        let guard = &config.guard;
        let guarded = guard.include.iter();
        let all = guarded.flat_map(|path| mountinfo::concerned(&table, path));
        all.filter(|mount| !guard.exclude_filesystems.contains(&mount.kind))
            .collect()
    } else {
        let own = |path: &PathBuf| mountinfo::concerned(&table, path).into_iter().next();
        paths.iter().filter_map(own).collect()
    };
    mounts.sort_by_key(|mount| mount.id);
    mounts.dedup_by_key(|mount| mount.id);
    // A running agent would judge the files that are tried with.
    let _excluded = control::exclude_this_process(&config.control_socket()).ok();
    let mut told = String::new();
    for mount in mounts {
        let probed = Probed::at(mount);
        if as_json {
            let _ = writeln!(told, "{}", probed.json());
        } else {
            told.push_str(&probed.render());
        }
    }
    Ok(told)
}

fn kind_at(place: &Path) -> FilesystemKind {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::open(place, flags, Mode::empty());
    let kind = opened.ok().and_then(|fd| FilesystemKind::of(fd).ok());
    kind.unwrap_or(FilesystemKind::Unknown)
}

fn text(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    escape(path.as_os_str().as_bytes()).to_string()
}

/// All guarded file systems, by device number.
#[derive(Debug, Default)]
pub(crate) struct Probes(BTreeMap<u64, Probed>);

impl Probes {
    /// Tries out what is mounted there, unless its file system was already.
    pub(crate) fn add(&mut self, mount: &Mount) {
        let Ok(stat) = rustix::fs::lstat(&mount.at) else {
            return;
        };
        let device = stat.st_dev;
        let is_folder = FileType::from_raw_mode(stat.st_mode).is_dir();
        let known = self.0.contains_key(&device);
        if !is_folder || known || self.0.len() >= PROBES_MAX {
            return;
        }
        let probed = Probed::at(mount);
        for path in FastPath::ALL {
            let finding = probed.finding_of(path);
            if finding != Finding::Sound {
                let (path, why) = (path.name(), escape(finding.why().as_bytes()).to_string());
                let at = text(&mount.at);
                tracing::warn!(
                    at,
                    path,
                    finding = finding.name(),
                    why,
                    "fast path not used"
                );
            }
        }
        self.0.insert(device, probed);
    }

    /// Forgets those that are no longer mounted where they were tried: their device numbers may
    /// be others' by now.
    pub(crate) fn keep(&mut self, mounts: &[Mount]) {
        let is_there = |probed: &Probed| {
            let same = |mount: &Mount| {
                let place = (mount.id, &mount.at, &mount.kind);
                place == (probed.mount_id, &probed.at, &probed.filesystem)
            };
            mounts.iter().any(same)
        };
        self.0.retain(|_, probed| is_there(probed));
    }

    /// Another file system has this device number.
    pub(crate) fn forget(&mut self, device: u64) {
        self.0.remove(&device);
    }

    /// What each is good for. Left out are those where nothing could be tried: nothing stands
    /// there, and what is cached goes by their kind.
    pub(crate) fn media(&self, may_be_held: impl Fn(u64) -> bool) -> BTreeMap<u64, Medium> {
        let medium = |(device, probed): (&u64, &Probed)| {
            if matches!(probed.finding_of(FastPath::Cache), Finding::Unknown(_)) {
                return None;
            }
            let may_be_cached = probed.kind.verdicts_may_be_cached();
            let sound = |path| may_be_cached && probed.is_sound(path);
            let medium = Medium {
                cacheable: sound(FastPath::Cache),
                fine_stamps: sound(FastPath::FineStamps),
                stands: sound(FastPath::Standing) && may_be_held(*device),
            };
            Some((*device, medium))
        };
        self.0.iter().filter_map(medium).collect()
    }

    /// For the appliance.
    pub(crate) fn counts(&self) -> v1::FastPaths {
        let count = |path| {
            let sound = self.0.values().filter(|probed| probed.is_sound(path));
            // At most `PROBES_MAX`.
            sound.count() as u32
        };
        v1::FastPaths {
            filesystems: self.0.len() as u32,
            cache: count(FastPath::Cache),
            fine_stamps: count(FastPath::FineStamps),
            standing: count(FastPath::Standing),
        }
    }

    /// For the status.
    pub(crate) fn json(&self) -> Value {
        let told = self.0.values().take(TOLD_MAX);
        told.map(Probed::summary).collect()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Probed> {
        self.0.values()
    }
}
