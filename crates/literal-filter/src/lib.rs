//! Finds which of many literals occur where, fast: the same filter runs in the agent and in the appliance. No I/O.
//!
//! **Method.** Not every position of the data needs a look: if for each residue of the position
//! modulo four one gram of the literal is in the table, then looking at every fourth position
//! meets each occurrence exactly once. Grams have 4, 6 or 8 bytes, the longer the rarer; a literal
//! of 11 bytes and more has such of all kinds to choose from, one of 7 and more whole ones of four
//! bytes. Of a shorter one some lie across an end, and stand there in all spellings of the byte
//! that is not known. A look is one access to a table that stays in the cache, sixteen or eight
//! at a time where the processor can (`byte-sets`). What passes goes through buckets of literals
//! and a comparison of four more bytes to that with the whole literal, many places at a time, so
//! that memory is waited for once. Case is ignored in grams, so that literals of any spelling cost
//! no more. The grams are the rarest ones, by the pairs of bytes that files were measured to have.
//!
//! The idea of sampled grams is that of Wu and Manber's multi-pattern search ("A fast algorithm
//! for multi-pattern searching", 1994) with a fixed stride in place of the shift table; that of some
//! bits in one word is Putze, Sanders and Singler's blocked Bloom filter (2007).

mod error;
mod filter;
mod grams;
mod needles;
mod pack;
mod report;
mod scan;
mod spots;
mod stream;
mod table;
mod triples;
mod wire;

pub use error::FilterError;
pub use filter::{
    Filter, LITERAL_MAX, LITERAL_MIN, LITERALS_MAX, Literal, POOL_MAX, SHORT_MAX, WHOLE_MIN,
};
pub use needles::{
    KEYS_MAX, NEEDLES_MAX, Needle, Needles, REACH_MAX, STEPS_MAX, TOKENS_MAX, Token as NeedleToken,
};
pub use pack::{HEAD_BYTES_MAX, Pack};
pub use report::{OFFSETS_MAX, REPORT_BYTES_MAX, REPORT_HITS_MAX, Report};
pub use scan::PackScan;
pub use stream::Stream;
pub use table::is_common;
