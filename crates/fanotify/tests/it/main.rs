//! Tests on the running kernel. They need root: without it they fail, they do not skip.
//!
//! Only file systems that a test made and mounted itself are ever marked. Openers are child
//! processes, since a group shows no opens of its own process. Tests named `trap_N_…` prove what
//! this crate does about row N of the design's table of kernel traps (which ends at 17).

mod answers;
mod descriptors;
mod file_systems;
mod fuse;
mod gate;
mod opener;
mod probe;
mod raw;
mod reader;
mod ring;
mod scratch;
mod standing;
mod writers;
