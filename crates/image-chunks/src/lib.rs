//! Chunks of golden images in one file.
//!
//! What a machine's image holds is mostly on an allowlist and never travels. But once a machine
//! changes such a file (a document saved again, a database, a package's next version), an appliance
//! that has never seen the old one asks for all of it. A file of image chunks, made where images are
//! made, tells appliances the old ones beforehand.
//!
//! Nothing is trusted: a chunk that is read is checked by its name, and what was put together by its
//! whole digest. A wrong file costs bytes, never a verdict.

mod build;
mod error;
mod format;
mod read;

pub use build::{Builder, Made};
pub use error::Error;
pub use format::CHUNKS_MAX;
pub use read::ImageChunks;

#[cfg(test)]
mod tests;
