//! The shipped daemons on a real kernel, their processes killed, stopped and upgraded. Needs root.

mod chaos;
mod deaths;
mod namespace;
mod unguarded;
