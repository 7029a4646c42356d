//! Which clean verdicts stand in the kernel, so that opens of their files raise no event.
//!
//! Each costs the caller a descriptor, so there are only so many, for the files that are used most.
//! What stands is not seen to be used: a full set gives up its oldest for a file that raised an
//! event again, and one that was used all the same comes back with its next event. None is given
//! up before it has stood for a while, so that more files than places do not chase each other.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use model::Digest;

use crate::FileNode;
use crate::cache::{Known, Remembered};

/// Names one verdict in the kernel. Rising, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StandingId(pub u64);

/// Why a verdict no longer stands, or never did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallen {
    /// It was not placed: the kernel would not, or the file was changing.
    NotPlaced,
    /// A writer came.
    Writer,
    /// The file's last name was removed.
    Deleted,
}

/// How a file came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Just judged.
    First,
    /// Known from before, and opened again.
    Again,
}

/// How long a verdict stands before it may make room for another one.
const STANDS_MIN: Duration = Duration::from_secs(10);
/// An event of a file whose verdict has stood for less was under way when it was placed.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);
/// Files that writers came to lately are remembered so many: they are written again and again,
/// and their writers shall not wait for us each time.
const WRITTEN_MAX: usize = 1024;

#[derive(Debug)]
struct Standing {
    id: StandingId,
    remembered: Remembered,
    since: Duration,
}

/// What was decided for a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) id: StandingId,
    /// Gives its place up.
    pub(crate) instead_of: Option<StandingId>,
}

#[derive(Debug)]
pub(crate) struct StandingSet {
    by_node: HashMap<FileNode, Standing>,
    /// Identities rise, so the oldest comes first.
    by_id: BTreeMap<StandingId, FileNode>,
    written: VecDeque<FileNode>,
    written_set: HashSet<FileNode>,
    next_id: u64,
    len_max: usize,
}

impl StandingSet {
    pub(crate) fn new(len_max: usize) -> Self {
        Self {
            by_node: HashMap::new(),
            by_id: BTreeMap::new(),
            written: VecDeque::new(),
            written_set: HashSet::new(),
            next_id: 1,
            len_max,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether this file's verdict shall stand from now on.
    pub(crate) fn admit(
        &mut self,
        now: Duration,
        node: FileNode,
        remembered: Remembered,
        how: Use,
    ) -> Option<Admitted> {
        if self.len_max == 0 || self.written_set.contains(&node) {
            return None;
        }
        let mut instead_of = None;
        if let Some(standing) = self.by_node.get(&node) {
            if now.saturating_sub(standing.since) < SETTLES_WITHIN {
                return None;
            }
            // It raised an event, so it stands no more.
            instead_of = self.forget(node);
        } else if self.len() >= self.len_max {
            let (_, oldest) = self.by_id.first_key_value()?;
            let oldest = *oldest;
            let stood = now.saturating_sub(self.by_node.get(&oldest)?.since);
            if how == Use::First || stood < STANDS_MIN {
                return None;
            }
            instead_of = self.forget(oldest);
        }
        let id = StandingId(self.next_id);
        self.next_id += 1;
        self.by_id.insert(id, node);
        let standing = Standing {
            id,
            remembered,
            since: now,
        };
        self.by_node.insert(node, standing);
        Some(Admitted { id, instead_of })
    }

    /// The caller says that it stands no more.
    pub(crate) fn fell(&mut self, id: StandingId, why: Fallen) {
        let Some(node) = self.by_id.remove(&id) else {
            return;
        };
        self.by_node.remove(&node);
        if why == Fallen::Writer && self.written_set.insert(node) {
            self.written.push_back(node);
            if self.written.len() > WRITTEN_MAX
                && let Some(oldest) = self.written.pop_front()
            {
                self.written_set.remove(&oldest);
            }
        }
    }

    /// The verdict on this file has to be taken back.
    pub(crate) fn forget(&mut self, node: FileNode) -> Option<StandingId> {
        let standing = self.by_node.remove(&node)?;
        self.by_id.remove(&standing.id);
        Some(standing.id)
    }

    /// The verdicts that have to be taken back: those on contents of which `stays` is false.
    pub(crate) fn keep(&mut self, stays: impl Fn(Known, &Digest) -> bool) -> Vec<StandingId> {
        let mut taken = Vec::new();
        self.by_node.retain(|_, standing| {
            let Remembered { known, digest } = &standing.remembered;
            let stays = stays(*known, digest);
            if !stays {
                taken.push(standing.id);
            }
            stays
        });
        for id in &taken {
            self.by_id.remove(id);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ino: u64) -> FileNode {
        FileNode { fs: 1, ino }
    }

    fn clean(n: u8) -> Remembered {
        Remembered {
            known: Known::Clean,
            digest: Digest([n; 32]),
        }
    }

    fn at(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn admit(set: &mut StandingSet, s: u64, ino: u64, how: Use) -> Option<(u64, Option<u64>)> {
        let admitted = set.admit(at(s), node(ino), clean(ino as u8), how)?;
        Some((admitted.id.0, admitted.instead_of.map(|id| id.0)))
    }

    #[test]
    fn a_full_set_gives_up_its_oldest_for_a_file_that_is_used_again() {
        let mut set = StandingSet::new(2);
        assert_eq!(admit(&mut set, 0, 10, Use::First), Some((1, None)));
        assert_eq!(admit(&mut set, 1, 11, Use::First), Some((2, None)));
        assert_eq!(admit(&mut set, 99, 12, Use::First), None, "opened once");
        assert_eq!(admit(&mut set, 9, 12, Use::Again), None, "too early");
        assert_eq!(admit(&mut set, 10, 12, Use::Again), Some((3, Some(1))));
        assert_eq!(
            admit(&mut set, 10, 13, Use::Again),
            None,
            "the next one is younger"
        );
        assert_eq!(admit(&mut set, 11, 13, Use::Again), Some((4, Some(2))));
        assert_eq!(set.len(), 2);
    }

    #[test]
    fn an_event_of_a_standing_file_replaces_it_unless_it_was_under_way() {
        let mut set = StandingSet::new(2);
        assert_eq!(admit(&mut set, 5, 10, Use::First), Some((1, None)));
        assert_eq!(admit(&mut set, 5, 10, Use::Again), None);
        assert_eq!(admit(&mut set, 6, 10, Use::Again), Some((2, Some(1))));
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn what_writers_came_to_does_not_stand_again_for_a_while() {
        let mut set = StandingSet::new(4);
        assert_eq!(admit(&mut set, 0, 10, Use::First), Some((1, None)));
        set.fell(StandingId(1), Fallen::Writer);
        assert_eq!(admit(&mut set, 100, 10, Use::Again), None);
        for ino in 0..WRITTEN_MAX as u64 {
            let (id, _) = admit(&mut set, 0, 1000 + ino, Use::First).unwrap();
            set.fell(StandingId(id), Fallen::Writer);
        }
        assert_eq!(set.written.len(), WRITTEN_MAX);
        assert!(admit(&mut set, 100, 10, Use::Again).is_some());
        set.fell(StandingId(77), Fallen::NotPlaced);
        assert_eq!(set.len(), 1, "an unknown one changes nothing");
    }

    #[test]
    fn exactly_what_is_touched_is_taken_back() {
        let mut set = StandingSet::new(8);
        for ino in 1..=4 {
            admit(&mut set, 0, ino, Use::First);
        }
        let taken = set.keep(|_, digest| digest.0[0] != 2);
        assert_eq!(taken, [StandingId(2)]);
        assert_eq!(set.forget(node(3)), Some(StandingId(3)));
        assert_eq!(set.forget(node(3)), None);
        assert_eq!(set.len(), 2);
        assert_eq!(set.keep(|known, _| known != Known::Clean).len(), 2);
        assert_eq!((set.len(), set.by_id.len()), (0, 0));
    }

    #[test]
    fn no_places_no_verdicts() {
        assert_eq!(admit(&mut StandingSet::new(0), 0, 1, Use::Again), None);
    }
}
