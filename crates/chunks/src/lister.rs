//! From bytes to their list.

use blake3::hazmat::{ChainingValue, HasherExt};

use crate::cut::Cutter;
use crate::groups;
use crate::kind::Kind;
use crate::manifest::{Chunk, Manifest};

/// Lists the chunks of content that comes piece by piece, and computes its digest on the way.
#[derive(Debug)]
pub struct Lister {
    cutter: Cutter,
    list: List,
}

#[derive(Debug)]
struct List {
    kind: Kind,
    chunks: Vec<Chunk>,
    values: Vec<ChainingValue>,
    size: u64,
    /// Of the whole; for groups of the first one alone: of several the digest follows from their
    /// values.
    whole: blake3::Hasher,
}

impl List {
    fn take(&mut self, bytes: &[u8]) {
        let (offset, len) = (self.size, bytes.len() as u32);
        let id = if self.kind == Kind::Groups {
            let value = match offset {
                0 => self.whole.update(bytes).finalize_non_root(),
                _ => groups::chaining_value(offset, bytes),
            };
            self.values.push(value);
            groups::id_of(&value)
        } else {
            self.kind.name(offset, bytes)
        };
        self.chunks.push(Chunk { offset, len, id });
        self.size += u64::from(len);
    }
}

impl Lister {
    /// For content to be cut in this way.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            cutter: Cutter::new(kind),
            list: List {
                kind,
                chunks: Vec::new(),
                values: Vec::new(),
                size: 0,
                whole: blake3::Hasher::new(),
            },
        }
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        if self.list.kind != Kind::Groups {
            self.list.whole.update(bytes);
        }
        let list = &mut self.list;
        self.cutter.update(bytes, |chunk| list.take(chunk));
    }

    /// The list, and the BLAKE3 digest of all that came.
    #[must_use]
    pub fn finish(self) -> (Manifest, [u8; 32]) {
        self.finish_with(&[])
    }

    /// The same where these bytes are the last ones: what comes at once is copied nowhere.
    #[must_use]
    pub fn finish_with(mut self, last: &[u8]) -> (Manifest, [u8; 32]) {
        if self.list.kind != Kind::Groups {
            self.list.whole.update(last);
        }
        let Self { cutter, mut list } = self;
        cutter.finish_with(last, |chunk| list.take(chunk));
        // One group is no tree: then it is the whole.
        let of_tree = match list.kind {
            Kind::Groups => groups::digest(list.size, &list.values),
            _ => None,
        };
        let digest = of_tree.unwrap_or_else(|| *list.whole.finalize().as_bytes());
        (
            Manifest::new(list.kind, list.size, list.chunks, list.values),
            digest,
        )
    }
}
