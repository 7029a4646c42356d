//! Placement and storm control: the rules of the design, for any course of events.

mod lists;
mod properties;
mod storm;
mod world;
