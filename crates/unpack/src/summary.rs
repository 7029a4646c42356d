//! What a walk tells its caller.

/// A member as the visitor sees it.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Names from the outermost container inwards, this member's own last; the walked content
    /// itself has no place in it. Names come from the file: any bytes, each at most
    /// [`NAME_BYTES_MAX`](crate::NAME_BYTES_MAX) long.
    pub path: &'a [Vec<u8>],
    /// The unpacked bytes; of a member that hit a limit or is damaged, what there was of it.
    pub bytes: &'a [u8],
}

/// How a walk went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Members visited.
    pub members: u64,
    /// Bytes of those members.
    pub bytes: u64,
    /// The first thing that kept the walk from showing everything. `None`: nothing did.
    pub incomplete: Option<Incomplete>,
    /// Why the walk ended.
    pub end: End,
}

impl Summary {
    /// Every member of every container was visited whole.
    pub fn is_complete(&self) -> bool {
        self.incomplete.is_none() && self.end == End::Done
    }
}

/// Why a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There was no more to visit, or `incomplete` says what stopped it.
    Done,
    /// The visitor returned `Break`.
    Visitor,
    /// The budget's `should_stop` said so: the time was up.
    Budget,
}

/// Something was not shown to the visitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// What kind of thing.
    pub kind: IncompleteKind,
    /// Where: as [`Member::path`]. Empty: the walked content itself.
    pub path: Vec<Vec<u8>>,
    /// For people, at most a few hundred bytes; may quote third-party parsers.
    pub detail: String,
}

/// The kinds of incompleteness; each is one `UNSCANNED_REASON_…` of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IncompleteKind {
    /// A container lies deeper than `depth_max`: `UNPACK_DEPTH`.
    Depth,
    /// More than `entries_max` members; the walk ended there: `UNPACK_ENTRIES`.
    Entries,
    /// A member expands by more than `ratio_max`: `UNPACK_RATIO`.
    Ratio,
    /// A member is larger than `entry_bytes_max`: `UNPACK_ENTRY_BYTES`.
    EntryBytes,
    /// All members together are larger than `total_bytes_max`; the walk ended there:
    /// `UNPACK_TOTAL_BYTES`.
    TotalBytes,
    /// A container is damaged or cut, so that members may be missing: `UNPACK_MALFORMED`.
    Malformed,
    /// A container uses a method that cannot be read: `UNPACK_UNSUPPORTED`.
    Unsupported,
    /// A member is encrypted: `ENCRYPTED`.
    Encrypted,
}

/// Longest `detail`.
const DETAIL_BYTES_MAX: usize = 300;

/// A kind and its detail, before it is known where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) kind: IncompleteKind,
    pub(crate) detail: String,
}

impl Problem {
    pub(crate) fn new(kind: IncompleteKind, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        if detail.len() > DETAIL_BYTES_MAX {
            let cut = (0..=DETAIL_BYTES_MAX)
                .rev()
                .find(|&at| detail.is_char_boundary(at))
                .unwrap_or(0);
            detail.truncate(cut);
        }
        Self { kind, detail }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(IncompleteKind::Malformed, detail)
    }

    pub(crate) fn unsupported(detail: impl Into<String>) -> Self {
        Self::new(IncompleteKind::Unsupported, detail)
    }

    pub(crate) fn encrypted(detail: impl Into<String>) -> Self {
        Self::new(IncompleteKind::Encrypted, detail)
    }

    /// What an error of a decoder means. Decoders report what they refuse by the kinds
    /// `Unsupported` and `OutOfMemory` (a window beyond the limit); libzstd has only its text.
    pub(crate) fn of_io(what: &str, error: &std::io::Error) -> Self {
        let text = error.to_string();
        let refused = matches!(
            error.kind(),
            std::io::ErrorKind::Unsupported | std::io::ErrorKind::OutOfMemory
        ) || text.contains("requires too much memory");
        let kind = if refused {
            IncompleteKind::Unsupported
        } else {
            IncompleteKind::Malformed
        };
        Self::new(kind, format!("{what}: {text}"))
    }
}
