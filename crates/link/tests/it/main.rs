//! The link, both ends in one process, over loopback.

mod failure;
mod flow;
mod hostile;
mod moves;
mod rig;
mod trust;
