//! What an agent can look for.

use crate::{FilterId, Generation};

/// What an agent can look for in place of an engine.
#[derive(Debug, PartialEq, Eq)]
pub struct FilterPack {
    /// What identifies it.
    pub id: FilterId,
    /// The version and rules of the engine that it stands for.
    pub generation: Generation,
    /// As it travels.
    pub bytes: Vec<u8>,
}
