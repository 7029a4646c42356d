//! What is known to be good.

use std::fmt;

use model::Digest;

/// Contents that are allowed without a question. Looked into under the core's lock: it must answer
/// at once, and a digest that was recalled must be gone from it before the core hears of that.
pub trait Allowlist: fmt::Debug + Send {
    /// Whether this content is listed, not revoked and not recalled.
    fn lists(&self, digest: &Digest) -> bool;
    /// Whether nothing is listed at all.
    fn is_empty(&self) -> bool;
}

/// Lists nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingListed;

impl Allowlist for NothingListed {
    fn lists(&self, _: &Digest) -> bool {
        false
    }

    fn is_empty(&self) -> bool {
        true
    }
}
