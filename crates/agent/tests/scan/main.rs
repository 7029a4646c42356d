//! Whole scans against an appliance made from the link's own server half.

mod allowlist;
mod appliance;
mod process;
mod reports;
mod results;
mod resume;
mod scene;
mod trouble;
