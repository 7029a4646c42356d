//! What is guarded: which file systems are marked, and which opens on them are judged.

pub(crate) mod container;
pub(crate) mod everywhere;
pub(crate) mod execs;
pub(crate) mod marks;
pub(crate) mod mountinfo;
pub(crate) mod probe;
pub(crate) mod scope;
pub(crate) mod strangers;
pub(crate) mod sweep;
pub(crate) mod sweeping;
