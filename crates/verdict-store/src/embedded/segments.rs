//! A tree in segments. Each is of one generation; when all together are full, the oldest goes.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, UserValue};
use model::Generation;
use parking_lot::{Mutex, RwLock};

use super::OpenError;
use super::absent::Absent;

/// Version of the folder's layout, kept in the file `format`.
const FORMAT: u32 = 2;
/// The tree, below the store's folder.
const DATABASE: &str = "db";
/// A full store loses this part of itself at once.
const SEGMENTS_MAX: usize = 8;
const MEMTABLE_BYTES: u64 = 8 << 20;
const BLOCK_CACHE_BYTES: u64 = 32 << 20;
const JOURNAL_BYTES_MAX: u64 = 128 << 20;

/// Key and value.
pub(super) type Item = (Vec<u8>, Vec<u8>);

pub(super) struct Segments {
    database: Database,
    segment_bytes_max: u64,
    /// Oldest first.
    segments: RwLock<Vec<Arc<Segment>>>,
    /// Held while a segment is added or dropped, so that it happens once.
    turning: Mutex<()>,
    /// Tells what is absent.
    tells: bool,
}

struct Segment {
    generation: Generation,
    number: u64,
    keyspace: Keyspace,
    /// Of keys and values, replaced ones included.
    bytes: AtomicU64,
    /// `None`: nobody asks.
    absent: Option<Absent>,
}

impl std::fmt::Debug for Segments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments").finish_non_exhaustive()
    }
}

impl Segment {
    fn open(database: &Database, number: u64, generation: Generation) -> fjall::Result<Self> {
        let name = format!("{number:016x}-{generation}");
        let keyspace = database.keyspace(&name, || {
            KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
        })?;
        Ok(Self {
            generation,
            number,
            bytes: AtomicU64::new(keyspace.disk_space()),
            keyspace,
            absent: None,
        })
    }

    fn parse(name: &str) -> Option<(u64, Generation)> {
        let (number, generation) = name.split_once('-')?;
        let number = u64::from_str_radix(number, 16).ok()?;
        Some((number, Generation::from_hex(generation)?))
    }
}

impl Segments {
    /// With `tells`, it [tells what is absent](Self::surely_lack) of what is put from now on, and of
    /// the rest once that is [noted](Self::note_what_is_there).
    pub(super) fn open(path: &Path, bytes_max: u64, tells: bool) -> Result<Self, OpenError> {
        let (database, mut segments) = open_or_begin_anew(path)?;
        let segment_bytes_max = (bytes_max / SEGMENTS_MAX as u64).max(1);
        for segment in &mut segments {
            segment.absent = tells.then(|| Absent::new(segment_bytes_max, false));
        }
        Ok(Self {
            database,
            segment_bytes_max,
            segments: RwLock::new(segments.into_iter().map(Arc::new).collect()),
            turning: Mutex::new(()),
            tells,
        })
    }

    /// Reads the keys of all segments, so that what is absent can be told; until `stops` says so.
    pub(super) fn note_what_is_there(&self, stops: impl Fn() -> bool) -> fjall::Result<()> {
        let segments = self.segments.read().clone();
        for segment in segments.iter().rev() {
            let Some(absent) = &segment.absent else {
                continue;
            };
            for item in segment.keyspace.iter() {
                if stops() {
                    return Ok(());
                }
                absent.note(&item.key()?);
            }
            absent.complete();
        }
        Ok(())
    }

    /// Whether there is surely nothing under a key; never waits for the disk.
    pub(super) fn surely_lack(&self, generation: Generation, key: &[u8]) -> bool {
        let segments = self.segments.read();
        let mut fitting = segments
            .iter()
            .filter(|segment| segment.generation == generation);
        fitting.all(|segment| {
            let absent = segment.absent.as_ref();
            absent.is_some_and(|absent| absent.is_sure_of(key))
        })
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or(0)
    }

    /// Entries, roughly.
    pub(super) fn len(&self) -> u64 {
        let segments = self.segments.read();
        let lens = segments
            .iter()
            .map(|segment| segment.keyspace.approximate_len());
        lens.map(|len| len as u64).sum()
    }

    /// The segments of a generation, newest first.
    pub(super) fn of(&self, generation: Generation) -> Vec<Keyspace> {
        let segments = self.segments.read();
        let fitting = segments.iter().rev();
        let fitting = fitting.filter(|segment| segment.generation == generation);
        fitting.map(|segment| segment.keyspace.clone()).collect()
    }

    /// The value in the newest segment that has the key.
    pub(super) fn newest(
        &self,
        generation: Generation,
        key: &[u8],
    ) -> fjall::Result<Option<UserValue>> {
        // Kept locked, so that no segment is dropped under the search.
        let segments = self.segments.read();
        for segment in segments.iter().rev() {
            if segment.generation == generation
                && let Some(value) = segment.keyspace.get(key)?
            {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// All of it or nothing, even in a crash. The disk is not waited for: a verdict that a power
    /// failure takes is judged again.
    pub(super) fn insert(&self, generation: Generation, items: Vec<Item>) -> fjall::Result<()> {
        let segment = self.with_room(generation)?;
        let mut batch = self.database.batch();
        let mut bytes = 0;
        for (key, value) in items {
            bytes += (key.len() + value.len()) as u64;
            if let Some(absent) = &segment.absent {
                absent.note(&key);
            }
            batch.insert(&segment.keyspace, key, value);
        }
        batch.commit()?;
        segment.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The newest segment of a generation, or a new one where that is full.
    fn with_room(&self, generation: Generation) -> fjall::Result<Arc<Segment>> {
        if let Some(segment) = self.newest_with_room(generation) {
            return Ok(segment);
        }
        let _turning = self.turning.lock();
        if let Some(segment) = self.newest_with_room(generation) {
            return Ok(segment);
        }
        let newest = self
            .segments
            .read()
            .last()
            .map_or(0, |newest| newest.number);
        let segment = Segment::open(&self.database, newest.wrapping_add(1), generation)?;
        let absent = self
            .tells
            .then(|| Absent::new(self.segment_bytes_max, true));
        let segment = Arc::new(Segment { absent, ..segment });
        let gone: Vec<_> = {
            let mut segments = self.segments.write();
            segments.push(Arc::clone(&segment));
            let beyond = segments.len().saturating_sub(SEGMENTS_MAX);
            segments.drain(..beyond).collect()
        };
        self.delete(&gone)?;
        Ok(segment)
    }

    fn newest_with_room(&self, generation: Generation) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let mut newest_first = segments.iter().rev();
        let newest = newest_first.find(|segment| segment.generation == generation)?;
        let fits = newest.bytes.load(Ordering::Relaxed) < self.segment_bytes_max;
        fits.then(|| Arc::clone(newest))
    }

    fn delete(&self, gone: &[Arc<Segment>]) -> fjall::Result<()> {
        gone.iter()
            .try_for_each(|segment| self.database.delete_keyspace(segment.keyspace.clone()))
    }
}

fn io_failed(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

/// Refuses a folder of a newer version, empties one of an older, and marks it as ours.
fn check_format(dir: &Path) -> Result<(), OpenError> {
    fs::create_dir_all(dir).map_err(io_failed(dir))?;
    let path = dir.join("format");
    let found = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u32>().unwrap_or(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(io_failed(&path)(error)),
    };
    if found > FORMAT {
        let path = dir.to_owned();
        return Err(OpenError::Newer { path, found });
    }
    if found == FORMAT {
        return Ok(());
    }
    let database = dir.join(DATABASE);
    if database.exists() {
        fs::remove_dir_all(&database).map_err(io_failed(&database))?;
    }
    fs::write(&path, format!("{FORMAT}\n")).map_err(io_failed(&path))
}

enum OpenFailure {
    Locked,
    Damaged(String),
}

/// Opens what is there; puts it aside where it is damaged, and begins anew.
fn open_or_begin_anew(dir: &Path) -> Result<(Database, Vec<Segment>), OpenError> {
    check_format(dir)?;
    let path = dir.join(DATABASE);
    let damage = match open_database(&path) {
        Ok(opened) => return Ok(opened),
        Err(OpenFailure::Locked) => return Err(OpenError::Locked(dir.to_owned())),
        Err(OpenFailure::Damaged(reason)) => reason,
    };
    let aside = dir.join(format!("{DATABASE}.damaged"));
    tracing::error!(path = %path.display(), aside = %aside.display(), damage,
        "the store cannot be read; it is put aside and a new one begun");
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(io_failed(&aside))?;
    }
    fs::rename(&path, &aside).map_err(io_failed(&path))?;
    open_database(&path).map_err(|failure| match failure {
        OpenFailure::Locked => OpenError::Locked(dir.to_owned()),
        OpenFailure::Damaged(reason) => OpenError::Begin {
            path: dir.to_owned(),
            reason,
        },
    })
}

/// The library reports most damage as an error and asserts on some; both are damage here.
fn open_database(path: &Path) -> Result<(Database, Vec<Segment>), OpenFailure> {
    let open = || -> fjall::Result<_> {
        let database = Database::builder(path)
            .cache_size(BLOCK_CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(1)
            .open()?;
        let names = database.list_keyspace_names();
        let named = names.iter().filter_map(|name| Segment::parse(name));
        let segments =
            named.map(|(number, generation)| Segment::open(&database, number, generation));
        let mut segments = segments.collect::<fjall::Result<Vec<_>>>()?;
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

    const OLD: Generation = Generation([1; 16]);
    const NEW: Generation = Generation([2; 16]);

    fn put(segments: &Segments, generation: Generation, n: u32) {
        let item = (n.to_be_bytes().to_vec(), vec![7; 96]);
        segments.insert(generation, vec![item]).unwrap();
    }

    fn has(segments: &Segments, generation: Generation, n: u32) -> bool {
        let found = segments.newest(generation, &n.to_be_bytes()).unwrap();
        let is_told_absent = segments.surely_lack(generation, &n.to_be_bytes());
        assert!(found.is_none() || !is_told_absent);
        found.is_some()
    }

    #[test]
    fn what_is_absent_is_told_at_once_and_after_a_start_when_all_is_read() {
        let key = |n: u8| blake3::hash(&[n]);
        let put = |segments: &Segments, n| {
            let item = (key(n).as_bytes().to_vec(), vec![7; 96]);
            segments.insert(OLD, vec![item]).unwrap();
        };
        let lacks = |segments: &Segments, n| segments.surely_lack(OLD, key(n).as_bytes());
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path(), 1 << 20, true).unwrap();
        assert!(lacks(&segments, 1), "there is no segment");
        put(&segments, 1);
        assert!(!lacks(&segments, 1) && lacks(&segments, 2));
        drop(segments);
        let segments = Segments::open(dir.path(), 1 << 20, true).unwrap();
        assert!(!lacks(&segments, 2), "nothing is known yet");
        put(&segments, 3);
        segments.note_what_is_there(|| true).unwrap();
        assert!(!lacks(&segments, 2), "it was stopped");
        segments.note_what_is_there(|| false).unwrap();
        assert!(!lacks(&segments, 1) && lacks(&segments, 2) && !lacks(&segments, 3));
    }

    #[test]
    fn it_is_bounded_and_forgets_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path(), 8_000, true).unwrap();
        for n in 0..500 {
            put(&segments, OLD, n);
        }
        assert_eq!(segments.segments.read().len(), SEGMENTS_MAX);
        assert_eq!(segments.database.keyspace_count(), SEGMENTS_MAX);
        assert!(has(&segments, OLD, 499) && has(&segments, OLD, 425));
        assert!(!has(&segments, OLD, 400) && !has(&segments, OLD, 0));
    }

    #[test]
    fn generations_live_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path(), 1 << 20, true).unwrap();
        put(&segments, OLD, 1);
        put(&segments, NEW, 2);
        put(&segments, OLD, 3);
        drop(segments);
        let segments = Segments::open(dir.path(), 1 << 20, true).unwrap();
        assert!(has(&segments, OLD, 1) && has(&segments, OLD, 3) && !has(&segments, NEW, 1));
        assert!(has(&segments, NEW, 2));
    }

    #[test]
    fn many_generations_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path(), 1 << 20, true).unwrap();
        for n in 0..30u8 {
            put(&segments, Generation([n; 16]), 1);
        }
        assert_eq!(segments.database.keyspace_count(), SEGMENTS_MAX);
    }

    #[test]
    fn a_newer_format_is_refused_and_an_older_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "7\n").unwrap();
        let error = Segments::open(dir.path(), 10, false).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 7, .. }));
        assert!(!dir.path().join(DATABASE).exists());
        fs::write(dir.path().join("format"), "1\n").unwrap();
        fs::create_dir(dir.path().join(DATABASE)).unwrap();
        fs::write(dir.path().join(DATABASE).join("old"), "x").unwrap();
        let _opened = Segments::open(dir.path(), 10, false).unwrap();
        assert!(!dir.path().join(DATABASE).join("old").exists());
    }

    #[test]
    fn a_store_in_use_is_not_taken_for_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Segments::open(dir.path(), 10, false).unwrap();
        let error = Segments::open(dir.path(), 10, false).unwrap_err();
        assert!(matches!(error, OpenError::Locked(_)), "{error}");
    }
}
