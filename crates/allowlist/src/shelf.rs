//! The lists in force of a program that runs for long: loaded, replaced, rolled back never, and
//! overruled by what was recalled.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::recalls::Recalls;
use crate::store::{self, Stamp};
use crate::{Digest, Error, Map, PublicKey, Set, hex, parse_hex};

/// The most that the file of serials may have: lists are few.
const SERIALS_BYTES_MAX: u64 = 1024 * 1024;

/// Where lists come from and what is kept of them.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The lists' files.
    pub files: Vec<PathBuf>,
    /// Keys that may have signed them.
    pub trusted: Vec<PublicKey>,
    /// The most bytes that one file may have.
    pub bytes_max: u64,
    /// An existing folder of this program alone: remembers across restarts which serial was in
    /// force (`allowlist.serials`) and what was recalled (`allowlist.recalled`).
    pub state: PathBuf,
    /// Whether that folder is written to. A second process that uses it must not.
    pub keeps: bool,
    /// When so many digests are recalled, nothing is listed any more: there may be others.
    pub recalls_max: usize,
}

/// A list in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// Where it is from.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// Its serial.
    pub serial: u64,
    /// When it was made, in seconds of Unix time.
    pub created: u64,
    /// Digests that it lists.
    pub listed: usize,
    /// Digests that it revokes.
    pub revoked: usize,
    /// Bytes of its file.
    pub size: usize,
    /// BLAKE3 of its file.
    pub fingerprint: Digest,
}

/// What became of a file that changed.
#[derive(Debug)]
pub struct Reloaded {
    /// The file.
    pub path: PathBuf,
    /// What became of it.
    pub change: Change,
}

/// What became of a file that changed.
#[derive(Debug)]
pub enum Change {
    /// It is in force now.
    Taken(InForce),
    /// There is no file any more: its list is in force no more.
    Gone,
    /// It was refused; what was in force stays so.
    Refused(Error),
}

/// Lists in force. May be shared among threads: no look-up waits for a disk.
#[derive(Debug)]
pub struct Shelf {
    sources: Sources,
    slots: Mutex<Slots>,
    set: RwLock<Arc<Set>>,
    recalls: Recalls,
}

#[derive(Debug)]
struct Slots {
    slots: Vec<Slot>,
    serials: Serials,
}

#[derive(Debug, Default)]
struct Slot {
    /// Of the file when last looked at, whatever came of it.
    seen: Option<Stamp>,
    map: Option<Arc<Map>>,
}

impl Shelf {
    /// Nothing is in force until [`Shelf::reload`].
    ///
    /// # Errors
    /// What is kept in [`Sources::state`] cannot be read.
    pub fn open(sources: Sources) -> Result<Self, Error> {
        let serials = Serials::open(&sources.state.join("allowlist.serials"))?;
        let recalled = sources.state.join("allowlist.recalled");
        let recalls = Recalls::open(&recalled, sources.recalls_max)?;
        let slots = sources.files.iter().map(|_| Slot::default()).collect();
        Ok(Self {
            slots: Mutex::new(Slots { slots, serials }),
            set: RwLock::default(),
            recalls,
            sources,
        })
    }

    /// Whether a list lists `digest`, none revokes it and it was not recalled.
    #[must_use]
    pub fn lists(&self, digest: &Digest) -> bool {
        self.set().lists(digest) && !self.recalls.contains(digest)
    }

    /// Whether a list lists `digest` and none revokes it, recalled or not.
    #[must_use]
    pub fn names(&self, digest: &Digest) -> bool {
        self.set().lists(digest)
    }

    /// Whether nothing is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set().is_empty() || self.recalls.is_full()
    }

    /// Looks at the files; loads those that are not as they were when last looked at. Returns
    /// what changed.
    pub fn reload(&self) -> Vec<Reloaded> {
        let mut held = self.slots();
        let Slots { slots, serials } = &mut *held;
        let mut changes = Vec::new();
        for (path, slot) in self.sources.files.iter().zip(slots.iter_mut()) {
            if let Some(change) = self.look(path, slot, serials) {
                changes.push(Reloaded {
                    path: path.clone(),
                    change,
                });
            }
        }
        if !changes.is_empty() {
            self.put_in_force(slots);
        }
        changes
    }

    fn put_in_force(&self, slots: &[Slot]) {
        let maps = slots.iter().filter_map(|slot| slot.map.clone()).collect();
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Set::new(maps));
    }

    /// `None`: nothing new.
    fn look(&self, path: &Path, slot: &mut Slot, serials: &mut Serials) -> Option<Change> {
        let stamp = match Stamp::of(path) {
            Ok(stamp) => stamp,
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                slot.seen = None;
                return slot.map.take().map(|_| Change::Gone);
            }
            Err(error) => {
                let is_new = slot.seen.take().is_some();
                return is_new.then_some(Change::Refused(error));
            }
        };
        if slot.seen == Some(stamp) {
            return None;
        }
        slot.seen = Some(stamp);
        let Sources {
            trusted, bytes_max, ..
        } = &self.sources;
        let opened = Map::open(path, trusted, *bytes_max, slot.map.as_deref());
        let taken = opened.and_then(|map| {
            serials.admit(&map, self.sources.keeps)?;
            Ok(map)
        });
        Some(match taken {
            Ok(map) => {
                let map = slot.map.insert(Arc::new(map));
                Change::Taken(in_force(path, map))
            }
            Err(error) => Change::Refused(error),
        })
    }

    /// The lists in force.
    #[must_use]
    pub fn in_force(&self) -> Vec<InForce> {
        let held = self.slots();
        let with_path = self.sources.files.iter().zip(&held.slots);
        with_path
            .filter_map(|(path, slot)| Some(in_force(path, slot.map.as_deref()?)))
            .collect()
    }

    /// At most `max` bytes from `offset` on of the file of the list in force with this
    /// fingerprint; none behind its end. `None`: there is no such list.
    #[must_use]
    pub fn piece(&self, fingerprint: &Digest, offset: u64, max: usize) -> Option<Vec<u8>> {
        let held = self.slots();
        let mut maps = held.slots.iter().filter_map(|slot| slot.map.as_deref());
        let bytes = maps.find(|map| map.fingerprint() == *fingerprint)?.bytes();
        let from = usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
        Some(bytes[from..][..max.min(bytes.len() - from)].to_vec())
    }

    /// Takes a list that came by other ways as the one at `path`, which is one of
    /// [`Sources::files`]: verified as [`Shelf::reload`] does, then written there, then in force.
    ///
    /// # Errors
    /// What is wrong with it; file and list in force are what they were.
    pub fn install(&self, path: &Path, bytes: Vec<u8>) -> Result<InForce, Error> {
        let mut held = self.slots();
        let Slots { slots, serials } = &mut *held;
        let slot = self.sources.files.iter().position(|file| file == path);
        let Some(slot) = slot.and_then(|at| slots.get_mut(at)) else {
            return Err(Error::NoFile { path: path.into() });
        };
        let map = Map::new(bytes, &self.sources.trusted, slot.map.as_deref())?;
        serials.admit(&map, self.sources.keeps)?;
        store::replace(path, map.bytes())?;
        slot.seen = Stamp::of(path).ok();
        let taken = in_force(path, slot.map.insert(Arc::new(map)));
        self.put_in_force(slots);
        Ok(taken)
    }

    /// The files of all lists, in force or not.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.sources.files
    }

    /// From now on none of `digests` is listed; returns those that were not recalled before.
    /// They are on disk after [`Shelf::save_recalls`].
    #[must_use]
    pub fn recall(&self, digests: &[Digest]) -> Vec<Digest> {
        self.recalls.add(digests)
    }

    /// Writes recalled digests that are not on disk yet; a crash leaves the old or the new.
    ///
    /// # Errors
    /// [`Error::Io`]; they are tried again the next time.
    pub fn save_recalls(&self) -> Result<(), Error> {
        if !self.sources.keeps {
            return Ok(());
        }
        self.recalls.save()
    }

    /// Every recalled digest, rising.
    #[must_use]
    pub fn recalled(&self) -> Vec<Digest> {
        self.recalls.all()
    }

    /// How many digests are recalled, and whether these are as many as may be held.
    #[must_use]
    pub fn recalled_len(&self) -> (usize, bool) {
        (self.recalls.len(), self.recalls.is_full())
    }

    fn set(&self) -> Arc<Set> {
        self.set
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_force(path: &Path, map: &Map) -> InForce {
    InForce {
        path: path.to_owned(),
        name: map.name().to_owned(),
        serial: map.serial(),
        created: map.created(),
        listed: map.len(),
        revoked: map.revoked_len(),
        size: map.bytes().len(),
        fingerprint: map.fingerprint(),
    }
}

/// The highest serial that was ever in force here, by the list's name, with the list's
/// fingerprint. A line is the serial, the fingerprint and the name.
#[derive(Debug)]
struct Serials {
    path: PathBuf,
    seen: BTreeMap<String, (u64, Digest)>,
}

impl Serials {
    fn open(path: &Path) -> Result<Self, Error> {
        let mut serials = Self {
            path: path.to_owned(),
            seen: BTreeMap::new(),
        };
        let bytes = match store::read(path, SERIALS_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(serials);
            }
            Err(error) => return Err(error),
        };
        let damaged = || Error::Damaged {
            path: path.to_owned(),
            what: "not a file of serials",
        };
        for line in str::from_utf8(&bytes).map_err(|_| damaged())?.lines() {
            let entry = serial_line(line).ok_or_else(damaged)?;
            serials.seen.insert(entry.0.to_owned(), entry.1);
        }
        Ok(serials)
    }

    /// Refuses what is older than what was in force before; remembers what is newer, on disk,
    /// before it comes in force.
    fn admit(&mut self, map: &Map, keeps: bool) -> Result<(), Error> {
        let is = (map.serial(), map.fingerprint());
        if let Some(was) = self.seen.get(map.name()) {
            if *was == is {
                return Ok(());
            }
            if is.0 <= was.0 {
                return Err(Error::RollBack {
                    name: map.name().to_owned(),
                    found: is.0,
                    in_force: was.0,
                });
            }
        }
        let mut seen = self.seen.clone();
        seen.insert(map.name().to_owned(), is);
        let text = seen
            .iter()
            .fold(String::new(), |mut text, (name, (serial, print))| {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{serial} {} {name}", hex(print));
                text
            });
        if keeps {
            store::replace(&self.path, text.as_bytes())?;
        }
        self.seen = seen;
        Ok(())
    }
}

fn serial_line(line: &str) -> Option<(&str, (u64, Digest))> {
    let (serial, rest) = line.split_once(' ')?;
    let (print, name) = rest.split_once(' ')?;
    Some((name, (serial.parse().ok()?, parse_hex(print)?)))
}
