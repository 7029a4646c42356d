//! What of a file must travel, when something like it has travelled before.
//!
//! The agent cuts a file into chunks and sends their list, a [`Manifest`]; the appliance, which has
//! cut what came before in the same way, asks for the ranges it lacks ([`Plan`]) and puts the file
//! together again. Nothing here proves anything by itself: chunks are named by 64 bits, and what was
//! put together counts only when its whole digest is the one that was asked about. No I/O, no clock.
//!
//! [`compress`] makes data smaller for the wire, and nothing else may undo that but [`decompress`], which
//! has a hard limit; [`compress_against`] and [`decompress_against`] do the same for somebody who has
//! something like it.

mod against;
mod compression;
mod cut;
mod groups;
mod kind;
mod lister;
mod manifest;
mod plan;

pub use against::{AgainstError, compress_against, decompress_against};
pub use compression::{DecompressError, PLAIN_BYTES_MAX, PieceCompressor, compress, decompress};
pub use groups::GROUP_BYTES;
pub use kind::{HEAD_BYTES, Kind, PAGE_BYTES, is_packed};
pub use lister::Lister;
pub use manifest::{
    CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Chunk, ChunkId, MANIFEST_BYTES_MAX, Manifest, ManifestError,
};
pub use plan::{Copy, Plan, RANGES_MAX, Range, plan};
