//! Where the files are whose content was judged, so that one can be judged again though nobody opens
//! it: an appliance whose rules changed names digests, and the agent knows files of its own.
//!
//! A bounded table, in two halves: a full young one becomes the old one, which goes. What it says is
//! a place to look, never an answer: the file found there is hashed like any other.

use std::collections::VecDeque;
use std::sync::Mutex;

use agent_core::FileKey;
use model::Digest;

use super::content::lock;

/// Digests that wait to be looked for: as many as one frame names.
const WANTED_MAX: usize = 64;
/// Before each path: name, state and length.
const FIXED_BYTES: usize = 8 + 8 + 2;

/// Where files are, and which are to be judged again.
pub(crate) struct Whereabouts {
    known: Mutex<Table>,
    wanted: Mutex<VecDeque<Digest>>,
}

/// Records: the first 8 bytes of the digest, a hash of the file's state, the path's length, the path.
struct Table {
    young: Vec<u8>,
    old: Vec<u8>,
    half_bytes_max: usize,
}

impl Whereabouts {
    /// Of at most so many bytes; 0: nothing is known.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            known: Mutex::new(Table {
                young: Vec::new(),
                old: Vec::new(),
                half_bytes_max: bytes_max / 2,
            }),
            wanted: Mutex::default(),
        }
    }

    /// The file of this path has this content as long as its identity is this one.
    pub(crate) fn note(&self, digest: &Digest, key: &FileKey, path: &[u8]) {
        let Ok(length) = u16::try_from(path.len()) else {
            return;
        };
        // Of a file without a name nothing can be found again.
        if path.first() != Some(&b'/') {
            return;
        }
        let mut known = lock(&self.known);
        if known.make_room(FIXED_BYTES + path.len()) {
            let young = &mut known.young;
            young.extend_from_slice(&name_of(digest));
            young.extend_from_slice(&state_of(key));
            young.extend_from_slice(&length.to_le_bytes());
            young.extend_from_slice(path);
        }
    }

    /// Paths under which a file with this content was, and the state that it had; the latest first.
    pub(crate) fn find(&self, digest: &Digest) -> Vec<(Vec<u8>, State)> {
        let name = name_of(digest);
        let known = lock(&self.known);
        let found = [&known.old, &known.young].map(|half| {
            let records = Records(half).filter(|record| record.name == name);
            let found = records.map(|record| (record.path.to_vec(), State(record.state)));
            found.collect::<Vec<_>>()
        });
        drop(known);
        found.into_iter().flatten().rev().collect()
    }

    /// These are to be looked for. Beyond what one frame may name they are forgotten.
    pub(crate) fn want(&self, digests: impl Iterator<Item = Digest>) {
        let mut wanted = lock(&self.wanted);
        let room = WANTED_MAX - wanted.len();
        wanted.extend(digests.take(room));
    }

    pub(crate) fn is_wanted(&self) -> bool {
        !lock(&self.wanted).is_empty()
    }

    /// What is to be looked for next, at most so many.
    pub(crate) fn take_wanted(&self, at_most: usize) -> Vec<Digest> {
        let mut wanted = lock(&self.wanted);
        let len = wanted.len().min(at_most);
        wanted.drain(..len).collect()
    }

    /// The session ended: whoever wanted them asks again.
    pub(crate) fn forget_wanted(&self) {
        lock(&self.wanted).clear();
    }
}

impl Table {
    /// False: there is no room for a record of this length at all.
    fn make_room(&mut self, bytes: usize) -> bool {
        if bytes > self.half_bytes_max {
            return false;
        }
        if self.young.len() + bytes > self.half_bytes_max {
            self.old = std::mem::take(&mut self.young);
        }
        if self.young.capacity() == 0 {
            // At once, so that it never holds twice that; pages count when they are written.
            self.young.reserve_exact(self.half_bytes_max);
        }
        true
    }
}

/// A file's state when it was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State([u8; 8]);

impl State {
    /// Whether a file of this identity is in that state.
    pub(crate) fn is(self, key: &FileKey) -> bool {
        self.0 == state_of(key)
    }
}

struct Record<'a> {
    name: [u8; 8],
    state: [u8; 8],
    path: &'a [u8],
}

/// All records of a half.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let (name, rest) = self.0.split_first_chunk()?;
        let (state, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (path, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
        self.0 = rest;
        Some(Record {
            name: *name,
            state: *state,
            path,
        })
    }
}

/// A part of the digest does: the whole is computed anew from the file.
fn name_of(digest: &Digest) -> [u8; 8] {
    std::array::from_fn(|at| digest.0[at])
}

/// Not ctime, which a link or a change of owner moves.
fn state_of(key: &FileKey) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in [key.node.fs, key.node.ino, key.generation, key.size] {
        hasher.update(&part.to_le_bytes());
    }
    hasher.update(&key.mtime_ns.to_le_bytes());
    let mut state = [0; 8];
    hasher.finalize_xof().fill(&mut state);
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_core::FileNode;

    fn key(ino: u64) -> FileKey {
        FileKey {
            node: FileNode { fs: 1, ino },
            generation: 0,
            size: 10,
            mtime_ns: 5,
            ctime_ns: 5,
        }
    }

    fn digest(n: u64) -> Digest {
        Digest::of(&n.to_be_bytes())
    }

    #[test]
    fn the_latest_place_comes_first_and_knows_its_state() {
        let places = Whereabouts::new(4096);
        places.note(&digest(1), &key(1), b"/a");
        places.note(&digest(2), &key(2), b"/other");
        places.note(&digest(1), &key(3), b"/b");
        places.note(&digest(1), &key(4), b"no path");
        let found = places.find(&digest(1));
        let paths: Vec<&[u8]> = found.iter().map(|(path, _)| &path[..]).collect();
        assert_eq!(paths, [b"/b", b"/a"]);
        let state = found[0].1;
        assert!(state.is(&key(3)) && !state.is(&key(1)));
        let touched = FileKey {
            ctime_ns: 9,
            ..key(3)
        };
        assert!(state.is(&touched));
        for changed in [
            FileKey { size: 11, ..key(3) },
            FileKey {
                mtime_ns: 6,
                ..key(3)
            },
            FileKey {
                generation: 1,
                ..key(3)
            },
        ] {
            assert!(!state.is(&changed), "{changed:?}");
        }
        assert_eq!(places.find(&digest(9)), []);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_goes() {
        let places = Whereabouts::new(2000);
        for n in 0..1000 {
            places.note(&digest(n), &key(n), b"/some/path/of/a/file");
            let known = lock(&places.known);
            assert!(known.young.capacity() + known.old.capacity() <= 2000);
        }
        assert!(places.find(&digest(999)).len() == 1 && places.find(&digest(0)).is_empty());
        let none = Whereabouts::new(0);
        none.note(&digest(1), &key(1), b"/a");
        assert!(none.find(&digest(1)).is_empty());
        let long = vec![b'/'; 70_000];
        places.note(&digest(5000), &key(1), &long);
        assert!(places.find(&digest(5000)).is_empty());
    }

    #[test]
    fn what_is_wanted_is_bounded() {
        let places = Whereabouts::new(4096);
        assert!(!places.is_wanted());
        places.want((0..1000).map(digest));
        assert_eq!(places.take_wanted(3), [0, 1, 2].map(digest));
        assert_eq!(places.take_wanted(1000).len(), WANTED_MAX - 3);
        places.want(std::iter::once(digest(1)));
        places.forget_wanted();
        assert!(!places.is_wanted());
    }
}
