//! The gate's decisions, seen from outside: inputs in, actions out.

mod allowlist;
mod gate;
mod properties;
mod scenarios;
mod standing;
