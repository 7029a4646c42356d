//! The vault on a real file system. Needs root: owners, capabilities and a small tmpfs.

mod crash;
mod damage;
mod full;
mod refuse;
mod round_trip;
mod scene;
