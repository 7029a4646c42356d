//! The whole system, as shipped. Needs root, loop devices, clamav, git, cargo, dpkg-deb and
//! iproute2, PostgreSQL and Redis; a test that lacks one fails and says so.

mod chunks;
mod clamav;
mod failures;
mod golden;
mod hostile;
mod removal;
mod rule_change;
mod scan;
mod shared_verdicts;
mod workloads;
