//! The tier on disk: segments of an LSM tree, dropped whole, oldest first, so that its size is
//! bounded without ever looking for something to evict.
//!
//! A segment holds verdicts of one generation. It is a cache: a store that cannot be read is put
//! aside and begun anew; an entry that is damaged is dropped.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use daemon::log::RateLimit;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use model::{Generation, Verdict};
use parking_lot::{Mutex, RwLock};
use scan_core::{CacheKey, VerdictStore};

use super::encoding;

/// Version of the folder's layout, kept in the file `format`.
const FORMAT: u32 = 1;
/// Segments at most; the store holds between 7/8 and all of its limit when it is full.
const SEGMENTS_MAX: usize = 8;
/// How often a full segment is looked for, in verdicts kept.
const LENGTH_CHECK_EVERY: u64 = 64;
const MEMTABLE_BYTES: u64 = 8 << 20;
const BLOCK_CACHE_BYTES: u64 = 32 << 20;

static FAILED: RateLimit = RateLimit::new(6);

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Written by a newer version of this software.
    #[error("{}: the verdict store has format {found}, this version knows up to {FORMAT}; remove the folder or use the newer version", path.display())]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another process has it open.
    #[error("{}: the verdict store is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The folder cannot be read or written.
    #[error("{}: cannot use the verdict store", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A new, empty store could not be made either.
    #[error("{}: cannot begin a verdict store: {reason}", path.display())]
    Begin {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

pub(super) struct DiskStore {
    database: Database,
    segment_entries_max: u64,
    state: RwLock<State>,
    /// Held while a segment is added or dropped, so that it happens once.
    turning: Mutex<()>,
    kept: AtomicU64,
    failures: AtomicU64,
}

struct State {
    generation: Generation,
    /// Oldest first.
    segments: Vec<Segment>,
}

#[derive(Clone)]
struct Segment {
    generation: Generation,
    number: u64,
    keyspace: Keyspace,
}

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskStore").finish_non_exhaustive()
    }
}

impl Segment {
    fn name(generation: Generation, number: u64) -> String {
        format!("{number:016x}-{generation}")
    }

    fn parse(name: &str) -> Option<(u64, Generation)> {
        let (number, generation) = name.split_once('-')?;
        let number = u64::from_str_radix(number, 16).ok()?;
        Some((number, Generation::from_hex(generation)?))
    }

    fn len(&self) -> u64 {
        self.keyspace.approximate_len() as u64
    }
}

impl DiskStore {
    pub(super) fn open(
        dir: &Path,
        entries_max: u64,
        generation: Generation,
    ) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(io)?;
        check_format(dir)?;
        let (database, segments) = open_or_begin_anew(dir)?;
        let store = Self {
            database,
            segment_entries_max: (entries_max / SEGMENTS_MAX as u64).max(1),
            state: RwLock::new(State {
                generation,
                segments,
            }),
            turning: Mutex::new(()),
            kept: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        };
        store.turn();
        Ok(store)
    }

    pub(super) fn use_generation(&self, generation: Generation) {
        self.state.write().generation = generation;
        self.turn();
    }

    pub(super) fn entries(&self) -> u64 {
        self.state.read().segments.iter().map(Segment::len).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or(0)
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Makes sure that the newest segment is one of the generation in force with room in it, and
    /// drops the oldest beyond [`SEGMENTS_MAX`].
    fn turn(&self) {
        let _turning = self.turning.lock();
        let (generation, fits, next) = {
            let state = self.state.read();
            let fits = state.segments.last().is_some_and(|newest| {
                newest.generation == state.generation && newest.len() < self.segment_entries_max
            });
            let newest = state.segments.last().map_or(0, |newest| newest.number);
            (state.generation, fits, newest.wrapping_add(1))
        };
        if fits {
            return;
        }
        let name = Segment::name(generation, next);
        let keyspace = match self.database.keyspace(&name, segment_options) {
            Ok(keyspace) => keyspace,
            Err(error) => return self.failed("begin a segment", &error),
        };
        let old: Vec<Segment> = {
            let mut state = self.state.write();
            state.segments.push(Segment {
                generation,
                number: next,
                keyspace,
            });
            let beyond = state.segments.len().saturating_sub(SEGMENTS_MAX);
            state.segments.drain(..beyond).collect()
        };
        for segment in old {
            if let Err(error) = self.database.delete_keyspace(segment.keyspace) {
                self.failed("drop a segment", &error);
            }
        }
    }

    fn failed(&self, doing: &str, error: &fjall::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = FAILED.allow(Instant::now()) {
            tracing::warn!(doing, ?error, suppressed, "verdict store");
        }
    }
}

impl VerdictStore for DiskStore {
    fn find(&self, key: &CacheKey) -> Option<Verdict> {
        let bytes = key.to_bytes();
        let state = self.state.read();
        let fitting = state.segments.iter().rev();
        for segment in fitting.filter(|segment| segment.generation == key.generation) {
            match segment.keyspace.get(bytes) {
                Ok(None) => {}
                Ok(Some(value)) => {
                    let verdict = encoding::decode(key, &value);
                    if verdict.is_none() {
                        self.failures.fetch_add(1, Ordering::Relaxed);
                        let removed = segment.keyspace.remove(bytes);
                        removed.unwrap_or_else(|error| self.failed("remove", &error));
                    }
                    return verdict;
                }
                Err(error) => self.failed("read", &error),
            }
        }
        None
    }

    fn keep(&self, key: &CacheKey, verdict: &Verdict) {
        if !verdict.outcome.is_cacheable() {
            return;
        }
        {
            let state = self.state.read();
            let newest = state.segments.last();
            let Some(segment) = newest.filter(|s| s.generation == key.generation) else {
                return;
            };
            let value = encoding::encode(key, verdict);
            if let Err(error) = segment.keyspace.insert(key.to_bytes(), value) {
                return self.failed("write", &error);
            }
        }
        let kept = self.kept.fetch_add(1, Ordering::Relaxed);
        if kept.is_multiple_of(LENGTH_CHECK_EVERY.min(self.segment_entries_max)) {
            self.turn();
        }
    }
}

fn segment_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
}

/// Refuses a folder of a newer version, and marks a new one as ours.
fn check_format(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("format");
    let io = |source| StoreError::Io {
        path: dir.to_owned(),
        source,
    };
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found > FORMAT => Err(StoreError::Newer {
                path: dir.to_owned(),
                found,
            }),
            Ok(_) => Ok(()),
            Err(_) => fs::write(&path, format!("{FORMAT}\n")).map_err(io),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::write(&path, format!("{FORMAT}\n")).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

/// Opens what is there; puts it aside where it is damaged, and begins anew.
fn open_or_begin_anew(dir: &Path) -> Result<(Database, Vec<Segment>), StoreError> {
    let path = dir.join("db");
    let damage = match open_database(&path) {
        Ok(opened) => return Ok(opened),
        Err(OpenFailure::Locked) => return Err(StoreError::Locked(dir.to_owned())),
        Err(OpenFailure::Damaged(reason)) => reason,
    };
    let aside = dir.join("db.damaged");
    tracing::error!(path = %path.display(), aside = %aside.display(), damage,
        "the verdict store cannot be read; it is put aside and a new one begun");
    let io = |source| StoreError::Io {
        path: dir.to_owned(),
        source,
    };
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(io)?;
    }
    fs::rename(&path, &aside).map_err(io)?;
    open_database(&path).map_err(|failure| match failure {
        OpenFailure::Locked => StoreError::Locked(dir.to_owned()),
        OpenFailure::Damaged(reason) => StoreError::Begin {
            path: dir.to_owned(),
            reason,
        },
    })
}

enum OpenFailure {
    Locked,
    Damaged(String),
}

/// The library reports most damage as an error and asserts on some; both are damage here.
fn open_database(path: &Path) -> Result<(Database, Vec<Segment>), OpenFailure> {
    let open = || -> Result<_, fjall::Error> {
        let database = Database::builder(path)
            .cache_size(BLOCK_CACHE_BYTES)
            .worker_threads(1)
            .open()?;
        let mut segments = Vec::new();
        for name in database.list_keyspace_names() {
            if let Some((number, generation)) = Segment::parse(&name) {
                let keyspace = database.keyspace(&name, segment_options)?;
                segments.push(Segment {
                    generation,
                    number,
                    keyspace,
                });
            }
        }
        segments.sort_by_key(|segment| segment.number);
        Ok((database, segments))
    };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(fjall::Error::Locked)) => Err(OpenFailure::Locked),
        Ok(Err(error)) => Err(OpenFailure::Damaged(format!("{error:?}"))),
        Err(_) => Err(OpenFailure::Damaged("the library gave up".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Coverage, Digest, Outcome};
    use scan_core::{ContextClass, Settings};

    const OLD: Generation = Generation([1; 16]);
    const NEW: Generation = Generation([2; 16]);

    fn key(n: u32, generation: Generation) -> CacheKey {
        CacheKey {
            digest: Digest::of(&n.to_be_bytes()),
            context: ContextClass::ANY,
            generation,
            settings: Settings::of(&[]),
        }
    }

    fn clean(key: &CacheKey) -> Verdict {
        Verdict {
            outcome: Outcome::Clean,
            coverage: Coverage::whole(4),
            generation: key.generation,
            digest: Some(key.digest),
            sha256: None,
        }
    }

    fn keep(store: &DiskStore, n: u32, generation: Generation) {
        let key = key(n, generation);
        store.keep(&key, &clean(&key));
    }

    fn found(store: &DiskStore, n: u32, generation: Generation) -> bool {
        let key = key(n, generation);
        let verdict = store.find(&key);
        assert!(verdict.is_none() || verdict == Some(clean(&key)));
        verdict.is_some()
    }

    #[test]
    fn a_restart_keeps_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(dir.path(), 1000, OLD).unwrap();
        keep(&store, 1, OLD);
        drop(store);
        let store = DiskStore::open(dir.path(), 1000, OLD).unwrap();
        assert!(found(&store, 1, OLD) && !found(&store, 2, OLD));
    }

    #[test]
    fn another_generation_finds_nothing_and_the_old_may_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(dir.path(), 1000, OLD).unwrap();
        keep(&store, 1, OLD);
        store.use_generation(NEW);
        assert!(!found(&store, 1, NEW));
        keep(&store, 1, OLD);
        keep(&store, 2, NEW);
        assert!(found(&store, 2, NEW));
        store.use_generation(OLD);
        assert!(found(&store, 1, OLD), "rules were rolled back");
    }

    #[test]
    fn it_is_bounded_and_forgets_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(dir.path(), 800, OLD).unwrap();
        for n in 0..3000 {
            keep(&store, n, OLD);
        }
        let slack = LENGTH_CHECK_EVERY * SEGMENTS_MAX as u64;
        assert!(store.entries() <= 800 + slack, "{}", store.entries());
        assert!(found(&store, 2999, OLD) && !found(&store, 0, OLD));
    }

    #[test]
    fn many_generations_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(dir.path(), 800, OLD).unwrap();
        for n in 0..30u8 {
            store.use_generation(Generation([n; 16]));
        }
        assert_eq!(store.state.read().segments.len(), SEGMENTS_MAX);
        assert_eq!(store.database.keyspace_count(), SEGMENTS_MAX);
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "7\n").unwrap();
        let error = DiskStore::open(dir.path(), 10, OLD).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 7, .. }));
        assert!(!dir.path().join("db").exists());
    }

    #[test]
    fn a_store_in_use_is_not_taken_for_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DiskStore::open(dir.path(), 10, OLD).unwrap();
        let error = DiskStore::open(dir.path(), 10, OLD).unwrap_err();
        assert!(matches!(error, StoreError::Locked(_)), "{error}");
    }

    /// Whatever is damaged: it opens, and what it finds is true.
    #[test]
    fn damage_costs_entries_never_truth() {
        for pattern in [0x00u8, 0xff] {
            let dir = tempfile::tempdir().unwrap();
            let store = DiskStore::open(dir.path(), 1000, OLD).unwrap();
            for n in 0..200 {
                keep(&store, n, OLD);
            }
            drop(store);
            for path in files(dir.path()) {
                let mut bytes = fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                let end = (middle + 64).min(bytes.len());
                bytes[middle..end].fill(pattern);
                fs::write(&path, bytes).unwrap();
            }
            let store = DiskStore::open(dir.path(), 1000, OLD).unwrap();
            for n in 0..200 {
                found(&store, n, OLD);
            }
            keep(&store, 1000, OLD);
            assert!(found(&store, 1000, OLD));
        }
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut out = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                out.extend(files(&path));
            } else if path.file_name().is_some_and(|name| name != "format") {
                out.push(path);
            }
        }
        out
    }
}
