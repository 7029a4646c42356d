//! What guests do and this crate does not: writable shared mappings, write leases, odd answers.
#![expect(
    unsafe_code,
    reason = "mmap and F_SETLEASE(F_WRLCK) have no safe wrapper"
)]

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of a mapping: one page.
const LENGTH: usize = 4096;

/// A file mapped shared and writable, whose descriptor is closed.
pub(crate) struct SharedMapping(*mut c_void);

impl SharedMapping {
    pub(crate) fn of(path: &Path) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("a writable file");
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                LENGTH,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        Self(address.expect("a shared mapping"))
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing points into it.
        unsafe { rustix::mm::munmap(self.0, LENGTH) }.expect("unmapped");
    }
}

/// Opens `path` with a write lease, which ends when the file is dropped.
pub(crate) fn with_write_lease(path: &Path) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("a writable file");
    // SAFETY: F_SETLEASE takes an integer; the descriptor is open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(
        result,
        0,
        "a write lease: {}",
        std::io::Error::last_os_error()
    );
    file
}

/// Writes an answer of any shape to a group.
pub(crate) fn respond(group: impl AsFd, number: i32, response: u32) -> Result<usize, Errno> {
    let mut bytes = number.to_ne_bytes().to_vec();
    bytes.extend(response.to_ne_bytes());
    rustix::io::write(group, &bytes)
}
