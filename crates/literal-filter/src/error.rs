use crate::filter::WHOLE_MIN;
use crate::{LITERAL_MAX, LITERAL_MIN, LITERALS_MAX, POOL_MAX, SHORT_MAX};

/// Why a filter could not be built, read or updated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// More literals than a filter may have.
    #[error("{count} literals; a filter has at most {LITERALS_MAX}")]
    TooMany {
        /// How many were given or announced.
        count: u64,
    },
    /// More short literals than a filter may have.
    #[error("{count} literals of less than {WHOLE_MIN} bytes; a filter has at most {SHORT_MAX}")]
    TooManyShort {
        /// How many were given before it was noticed.
        count: u64,
    },
    /// A literal is too short or too long.
    #[error("literal {id} has {len} bytes; allowed are {LITERAL_MIN} to {LITERAL_MAX}")]
    Length {
        /// The literal's index.
        id: u32,
        /// Its length in bytes.
        len: usize,
    },
    /// The literals have too many bytes together.
    #[error("literal {id} makes the filter larger than {POOL_MAX} bytes")]
    TooLarge {
        /// The first literal that does not fit.
        id: u32,
    },
    /// The bytes are not of this kind, or of another version.
    #[error("not a {what} of version {version}: wrong first bytes")]
    Magic {
        /// What was expected: a filter or a delta.
        what: &'static str,
        /// The version that this code reads.
        version: u8,
    },
    /// The bytes end too early.
    #[error("{what} ends at byte {at}, inside {inside}")]
    Truncated {
        /// What is being read: a filter or a delta.
        what: &'static str,
        /// What was read when the bytes ended.
        inside: &'static str,
        /// Where the missing part should start.
        at: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{what} has a bad {field} at byte {at}: {value}")]
    Field {
        /// What is being read: a filter or a delta.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Where the field starts.
        at: usize,
        /// What it says.
        value: u64,
    },
    /// Something follows the last literal.
    #[error("{what} has {extra} bytes too many at byte {at}")]
    Trailing {
        /// What is being read: a filter or a delta.
        what: &'static str,
        /// Where they start.
        at: usize,
        /// How many they are.
        extra: usize,
    },
    /// The delta was made from another filter than the one at hand.
    #[error("the delta starts from filter {wanted}, not from {have}")]
    WrongBase {
        /// The digest that the delta names, in hex.
        wanted: String,
        /// The digest of the filter at hand, in hex.
        have: String,
    },
    /// The delta does not lead to the filter that it names.
    #[error("the delta names filter {wanted} but makes {have}")]
    WrongResult {
        /// The digest that the delta names, in hex.
        wanted: String,
        /// The digest of what came out, in hex.
        have: String,
    },
}
