//! Finds which of many literals occur where, fast: the same filter runs in the agent and in the appliance. No I/O.
//!
//! **Method.** Of a literal that is long enough, not every position needs a look: if for each
//! residue of the position modulo the stride one gram (3 or 4 bytes) of the literal is in the
//! table, then looking at every `stride`-th position of the data meets each occurrence exactly
//! once. So literals of 7 bytes and more are found by a look at every 4th position, those of 5
//! and 6 bytes at every 2nd, those of 4 bytes at every 2nd with shorter grams. A look is a hash
//! and one bit of a bitmap that stays in the cache; 64 looks are made without a branch. What
//! passes goes through an exact table of grams and then through the comparison with the literal.
//! The grams are the rarest ones by a static model of what files contain.
//!
//! The idea of sampled grams is that of Wu and Manber's multi-pattern search ("A fast algorithm
//! for multi-pattern searching", 1994) with a fixed stride in place of the shift table.

mod error;
mod filter;
mod grams;
mod needles;
mod pack;
mod report;
mod scan;
mod stream;
mod table;
mod wire;

pub use error::FilterError;
pub use filter::{Filter, LITERAL_MAX, LITERAL_MIN, LITERALS_MAX, Literal, POOL_MAX};
pub use needles::{
    KEYS_MAX, NEEDLES_MAX, Needle, Needles, REACH_MAX, TOKENS_MAX, Token as NeedleToken,
};
pub use pack::Pack;
pub use report::{OFFSETS_MAX, REPORT_BYTES_MAX, REPORT_HITS_MAX, Report};
pub use scan::PackScan;
pub use stream::Stream;
pub use table::is_common;
