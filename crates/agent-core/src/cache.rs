//! Verdicts by file identity. See the crate's documentation for why it is sound.

use std::collections::{HashMap, HashSet};

use model::Digest;

use crate::{ContextHash, FileKey, FileNode};

/// What was said about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Clean,
    Malicious,
    /// Its content is on the allowlist. No rules judged it, so it outlives a change of them.
    Listed,
}

/// What was said, and about which content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) known: Known,
    pub(crate) digest: Digest,
}

impl Remembered {
    /// Its file is let through.
    pub(crate) fn is_good(&self) -> bool {
        matches!(self.known, Known::Clean | Known::Listed)
    }
}

/// All of a file's identity but its inode, which is the map's key. There are many of these, so
/// stamps have 64 bits: enough until the year 2262.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    generation: u64,
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Stamp {
    /// `None` for a time that does not fit, which nobody has by accident.
    fn of(key: &FileKey) -> Option<Self> {
        Some(Self {
            generation: key.generation,
            size: key.size,
            mtime_ns: key.mtime_ns.try_into().ok()?,
            ctime_ns: key.ctime_ns.try_into().ok()?,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    stamp: Stamp,
    context: ContextHash,
    remembered: Remembered,
}

/// A bounded map in two generations: a full young one becomes the old one, and what is used
/// moves to the young one. Whatever stays unused for a while is forgotten.
#[derive(Debug)]
pub(crate) struct VerdictCache {
    young: HashMap<FileNode, Entry>,
    old: HashMap<FileNode, Entry>,
    half_len_max: usize,
}

impl VerdictCache {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            half_len_max: entries_max / 2,
        }
    }

    pub(crate) fn lookup(&mut self, key: &FileKey, context: ContextHash) -> Option<Remembered> {
        let stamp = Stamp::of(key)?;
        let matches = |entry: &Entry| entry.stamp == stamp && entry.context == context;
        if let Some(entry) = self.young.get(&key.node) {
            return matches(entry).then_some(entry.remembered);
        }
        let entry = *self.old.get(&key.node)?;
        if !matches(&entry) {
            return None;
        }
        self.old.remove(&key.node);
        self.insert_young(key.node, entry);
        Some(entry.remembered)
    }

    pub(crate) fn insert(&mut self, key: FileKey, context: ContextHash, remembered: Remembered) {
        self.forget(key.node);
        let Some(stamp) = Stamp::of(&key) else {
            return;
        };
        let entry = Entry {
            stamp,
            context,
            remembered,
        };
        self.insert_young(key.node, entry);
    }

    fn insert_young(&mut self, node: FileNode, entry: Entry) {
        if self.half_len_max == 0 {
            return;
        }
        if self.young.len() >= self.half_len_max && !self.young.contains_key(&node) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(node, entry);
    }

    pub(crate) fn forget(&mut self, node: FileNode) {
        self.young.remove(&node);
        self.old.remove(&node);
    }

    /// Forgets what rules said; what is listed stays.
    pub(crate) fn forget_verdicts(&mut self) {
        self.keep(|it| it.known == Known::Listed);
    }

    /// Forgets what is there because of the allowlist.
    pub(crate) fn forget_listed(&mut self) {
        self.keep(|it| it.known != Known::Listed);
    }

    /// Forgets these contents, whatever was said of them.
    pub(crate) fn forget_contents(&mut self, digests: &HashSet<Digest>) {
        self.keep(|it| !digests.contains(&it.digest));
    }

    fn keep(&mut self, wanted: impl Fn(&Remembered) -> bool) {
        for half in [&mut self.young, &mut self.old] {
            half.retain(|_, entry| wanted(&entry.remembered));
            half.shrink_to_fit();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.young = HashMap::new();
        self.old = HashMap::new();
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ino: u64) -> FileKey {
        FileKey {
            node: FileNode { fs: 1, ino },
            generation: 0,
            size: 10,
            mtime_ns: 5,
            ctime_ns: 5,
        }
    }

    fn as_known(known: Known) -> Remembered {
        Remembered {
            known,
            digest: Digest([known as u8; 32]),
        }
    }

    #[test]
    fn every_part_of_the_identity_counts() {
        let mut cache = VerdictCache::new(16);
        cache.insert(key(1), ContextHash::NONE, as_known(Known::Clean));
        let other = |change: fn(&mut FileKey)| {
            let mut key = key(1);
            change(&mut key);
            key
        };
        let none = ContextHash::NONE;
        assert_eq!(cache.lookup(&key(1), none), Some(as_known(Known::Clean)));
        assert_eq!(cache.lookup(&key(1), ContextHash([1; 16])), None);
        for changed in [
            other(|k| k.ctime_ns += 1),
            other(|k| k.mtime_ns += 1),
            other(|k| k.size += 1),
            other(|k| k.generation += 1),
            other(|k| k.node.fs += 1),
        ] {
            assert_eq!(cache.lookup(&changed, none), None, "{changed:?}");
        }
    }

    #[test]
    fn verdicts_and_listed_content_are_forgotten_apart() {
        let fill = || {
            let mut cache = VerdictCache::new(4);
            cache.insert(key(1), ContextHash::NONE, as_known(Known::Listed));
            cache.insert(key(2), ContextHash::NONE, as_known(Known::Clean));
            cache.insert(key(3), ContextHash::NONE, as_known(Known::Malicious));
            cache
        };
        let here = |mut cache: VerdictCache| {
            let known = |ino| cache.lookup(&key(ino), ContextHash::NONE);
            [1, 2, 3].map(known)
        };
        let mut cache = fill();
        cache.forget_verdicts();
        assert_eq!(here(cache), [Some(as_known(Known::Listed)), None, None]);
        let mut cache = fill();
        cache.forget_contents(&HashSet::from([as_known(Known::Clean).digest]));
        let others = [
            Some(as_known(Known::Listed)),
            None,
            Some(as_known(Known::Malicious)),
        ];
        assert_eq!(here(cache), others);
        let mut cache = fill();
        cache.forget_listed();
        let verdicts = [
            None,
            Some(as_known(Known::Clean)),
            Some(as_known(Known::Malicious)),
        ];
        assert_eq!(here(cache), verdicts);
    }

    #[test]
    fn an_impossible_time_is_not_remembered() {
        let mut cache = VerdictCache::new(16);
        let far = FileKey {
            mtime_ns: i128::MAX,
            ..key(1)
        };
        cache.insert(far, ContextHash::NONE, as_known(Known::Clean));
        assert_eq!(cache.lookup(&far, ContextHash::NONE), None);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut cache = VerdictCache::new(8);
        cache.insert(key(0), ContextHash::NONE, as_known(Known::Malicious));
        for ino in 1..100 {
            cache.insert(key(ino), ContextHash::NONE, as_known(Known::Clean));
            let hot = cache.lookup(&key(0), ContextHash::NONE);
            assert_eq!(hot, Some(as_known(Known::Malicious)), "after {ino}");
            assert!(cache.len() <= 8, "{} entries", cache.len());
        }
        assert_eq!(cache.lookup(&key(1), ContextHash::NONE), None);
    }

    #[test]
    fn forgotten_in_both_generations() {
        let mut cache = VerdictCache::new(2);
        cache.insert(key(1), ContextHash::NONE, as_known(Known::Clean));
        cache.insert(key(2), ContextHash::NONE, as_known(Known::Clean));
        cache.forget(FileNode { fs: 1, ino: 1 });
        cache.forget(FileNode { fs: 1, ino: 2 });
        assert_eq!(cache.len(), 0);
    }
}
