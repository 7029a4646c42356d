//! Chunks of golden images, as configured.

use std::os::unix::ffi::OsStrExt as _;

use daemon::log::escape;
use image_chunks::{Error, ImageChunks};

use crate::chunk_store::Images;
use crate::config::Config;

/// Opens all files of `chunks.images`, or none. Reads their indexes: blocks on the disk.
pub(crate) fn open(config: &Config) -> Result<Images, Error> {
    let images = config.chunks.images.iter();
    images.map(|path| ImageChunks::open(path)).collect()
}

/// Says which are in use from now on.
pub(crate) fn tell(images: &Images) {
    for image in images.iter() {
        let path = escape(image.path().as_os_str().as_bytes()).to_string();
        let (chunks, bytes) = (image.len(), image.bytes());
        tracing::info!(path, chunks, bytes, "chunks of an image in use");
    }
}
