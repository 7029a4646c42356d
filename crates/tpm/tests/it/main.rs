//! Against swtpm, as hypervisors run it, and against TPMs and certificates that are none.

mod certificates;
mod hostile;
mod swtpm;
