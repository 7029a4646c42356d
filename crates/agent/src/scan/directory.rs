//! A directory's names in order, with bounded memory.

use std::collections::{BinaryHeap, VecDeque};
use std::ffi::{CStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::FileType;

/// Most names of one directory held at a time. A directory of a million names is read in 62 passes.
pub(crate) const NAMES_MAX: usize = 16 * 1024;

/// A name and its type.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) name: OsString,
    /// `Unknown` where the file system does not tell.
    pub(crate) kind: FileType,
}

/// The names of a directory that come after one given: a batch of them, and whether there are more.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    names: VecDeque<Name>,
    /// The last name handed out.
    after: Option<OsString>,
    /// No names follow those held.
    complete: bool,
}

impl Batch {
    /// Starts behind that name.
    pub(crate) fn after(name: Option<OsString>) -> Self {
        Self {
            after: name,
            ..Self::default()
        }
    }

    /// The next name, reading the directory once more where none are held.
    pub(crate) fn next(
        &mut self,
        dir: &OwnedFd,
        names_max: usize,
    ) -> rustix::io::Result<Option<Name>> {
        if self.names.is_empty() && !self.complete {
            self.fill(dir, names_max)?;
        }
        let next = self.names.pop_front();
        if let Some(next) = &next {
            self.after = Some(next.name.clone());
        }
        Ok(next)
    }

    /// Names held.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Lets go of the names held; they are read again when they are due.
    pub(crate) fn forget(&mut self) {
        if !self.names.is_empty() {
            self.names = VecDeque::new();
            self.complete = false;
        }
    }

    /// Hands out nothing more: the directory cannot be read on.
    pub(crate) fn abandon(&mut self) {
        self.names = VecDeque::new();
        self.complete = true;
    }

    /// One pass over the directory that keeps the smallest names after the last one handed out.
    fn fill(&mut self, dir: &OwnedFd, names_max: usize) -> rustix::io::Result<()> {
        let mut smallest: BinaryHeap<(Vec<u8>, Kind)> = BinaryHeap::new();
        let mut complete = true;
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if is_dot(entry.file_name()) || self.is_done(name) {
                continue;
            }
            if smallest.len() >= names_max {
                complete = false;
                let largest = smallest.peek().map(|(name, _)| name.as_slice());
                if largest.is_some_and(|largest| name >= largest) {
                    continue;
                }
                smallest.pop();
            }
            smallest.push((name.to_vec(), Kind(entry.file_type())));
        }
        let name = |(name, kind): (Vec<u8>, Kind)| Name {
            name: OsString::from_vec(name),
            kind: kind.0,
        };
        self.names = smallest.into_sorted_vec().into_iter().map(name).collect();
        self.complete = complete;
        Ok(())
    }

    fn is_done(&self, name: &[u8]) -> bool {
        let after = self.after.as_ref();
        after.is_some_and(|after| name <= after.as_encoded_bytes())
    }
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Rides along with its name, and has no say in the order.
struct Kind(FileType);

impl PartialEq for Kind {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Kind {}
impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Kind {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn all(batch: &mut Batch, dir: &OwnedFd, names_max: usize) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(name) = batch.next(dir, names_max).unwrap() {
            assert!(batch.len() < names_max);
            names.push(name.name.into_string().unwrap());
        }
        names
    }

    #[test]
    fn in_order_whatever_fits() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected: Vec<_> = (0..100).map(|n| format!("n{}", n * 37 % 100)).collect();
        for name in &expected {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        expected.sort();
        let fd: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        for names_max in [1, 7, 99, 100, 1000] {
            assert_eq!(all(&mut Batch::default(), &fd, names_max), expected);
        }
        let mut rest = Batch::after(Some("n5".into()));
        let later: Vec<_> = expected
            .iter()
            .filter(|n| n.as_str() > "n5")
            .cloned()
            .collect();
        assert_eq!(all(&mut rest, &fd, 7), later);
    }

    #[test]
    fn forgotten_names_come_again() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let fd: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        let mut batch = Batch::default();
        batch.next(&fd, 10).unwrap();
        batch.forget();
        assert_eq!(all(&mut batch, &fd, 10), ["b", "c"]);
    }
}
