//! Containers opened through capped readers; no I/O beyond the bytes given.
//!
//! [`walk`] shows a visitor every member of a container, and every member of those members, with
//! its path inside. Whatever the bytes are, it ends, keeps to its [`Limits`], never panics, and
//! says when it could not show everything: *incomplete* is not *clean*.
//!
//! # Who reads what
//!
//! | format | read by | because |
//! |---|---|---|
//! | zip | `zip`, its iterating reader | it keeps entries of equal names, which the usual reader hides |
//! | gzip, bzip2, xz, zstd | `flate2`, `bzip2`, `lzma-rust2`, `zstd` | |
//! | tar | `tar` | |
//! | 7z | `sevenz-rust2` | |
//! | OLE | `cfb` | |
//! | cab | us; `flate2`, `lzxd` decode | the crate `cab` decodes a folder again for each of its files: quadratic |
//! | ar, cpio, rpm, ISO 9660 | us | a few headers; members are slices of the container, nothing is copied |
//! | PDF | us; `flate2`, `weezl` decode | `lopdf` follows the cross-reference table and holds all objects; hostile PDFs break that table, viewers cope, and so must we |
//! | MIME | us | `mail-parser` decodes all parts at once and turns text into UTF-8; signatures want the bytes |
//!
//! # Damaged, or not a container?
//!
//! [`Format::detect`] asks for enough that chance does not pass it. From there on everything
//! that cannot be read is [`Malformed`](IncompleteKind::Malformed), so that policy sees it. Bytes
//! behind the end of a container (which its readers ignore, and which the visitor saw as part of
//! the container) are no damage.
//!
//! # Memory
//!
//! At most `total_bytes_max` for the members held (one for each level of nesting; a growing
//! buffer may take twice its size for a moment) and `window_bytes_max` for decoders.

mod budget;
mod codecs;
pub mod fields;
mod format;
mod formats;
mod guess;
mod limits;
mod predictor;
mod sink;
mod summary;
mod text_codecs;
mod walker;

use std::ops::ControlFlow;

pub use budget::Budget;
pub use format::Format;
pub use guess::{Glimpse, Guess, HEAD_BYTES, Mark};
pub use limits::{DEPTH_CEILING, Limits, NAME_BYTES_MAX, RATIO_FREE_BYTES};
pub use summary::{End, Incomplete, IncompleteKind, Member, Summary};

use walker::Walker;

/// Shows `visit` every member inside `content`, depth first; `content` itself is not shown.
///
/// `name` is the content's name, if known; it only serves to name what a compressed file holds
/// (`a.tar.gz` holds `a.tar`). After a limit or damage the walk goes on with what can still be
/// reached, but for `entries_max`, `total_bytes_max` and the budget, which end it. The visitor
/// ends it with `Break`; a panic of the visitor goes through.
pub fn walk(
    content: &[u8],
    name: Option<&[u8]>,
    limits: &Limits,
    budget: &mut Budget<'_>,
    visit: &mut dyn FnMut(&Member<'_>) -> ControlFlow<()>,
) -> Summary {
    Walker::new(name, limits, budget, visit).run(content, Format::detect(content))
}

/// As [`walk`], taking `content` for a `format` whatever it looks like. Members inside are
/// detected as usual. For tests and fuzzing.
pub fn walk_as(
    format: Format,
    content: &[u8],
    limits: &Limits,
    budget: &mut Budget<'_>,
    visit: &mut dyn FnMut(&Member<'_>) -> ControlFlow<()>,
) -> Summary {
    Walker::new(None, limits, budget, visit).run(content, Some(format))
}
