//! The shipped daemons on a real kernel, their processes killed, stopped and upgraded. Needs root.

mod deaths;
