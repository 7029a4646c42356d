//! The whole agent in this process, on a file system of its own and against a puppet appliance.
//! Openers are other processes: the gate never judges its own. Needs root.

mod allowlist;
mod everywhere;
mod gate;
mod identity;
mod looks;
mod office;
mod puppet;
mod races;
mod recheck;
mod reports;
mod rig;
mod standing;
