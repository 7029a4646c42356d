//! The real program, run.

mod lists;
