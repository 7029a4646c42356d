//! Memory whose pages come when they are touched: userfaultfd, as `transfer.md` of the design notes
//! has it. An engine that runs on it needs no plan and cannot miss anything.
#![expect(
    unsafe_code,
    reason = "userfaultfd, its ioctls and the mapping have no safe form"
)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::thread::JoinHandle;

pub(crate) const PAGE: usize = 4096;

/// `UFFDIO_*` of linux/userfaultfd.h; `API` is also the number of the protocol.
const API: u64 = 0xaa;
const IOCTL_API: libc::Ioctl = 0xc018_aa3f;
const IOCTL_REGISTER: libc::Ioctl = 0xc020_aa00;
const IOCTL_COPY: libc::Ioctl = 0xc028_aa03;
const REGISTER_MISSING: u64 = 1;
const USER_MODE_ONLY: libc::c_int = 1;
const EVENT_PAGEFAULT: u64 = 0x12;
/// Of an event: its kind, flags, address and one more, 8 bytes each.
const EVENT_WORDS: usize = 4;

/// Content in memory, page by page when it is touched.
pub(crate) struct Paged {
    start: *mut libc::c_void,
    mapped: usize,
    len: usize,
    stop: OwnedFd,
    pager: Option<JoinHandle<io::Result<BTreeSet<usize>>>>,
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

impl Paged {
    pub(crate) fn new(content: Arc<[u8]>) -> io::Result<Self> {
        let (len, mapped) = (content.len(), content.len().next_multiple_of(PAGE));
        // SAFETY: a new descriptor, or an error.
        let fault = unsafe {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
            let number = libc::syscall(libc::SYS_userfaultfd, flags);
            OwnedFd::from_raw_fd(checked(number as libc::c_int)?)
        };
        // SAFETY: as above.
        let stop = unsafe { OwnedFd::from_raw_fd(checked(libc::eventfd(0, libc::EFD_CLOEXEC))?) };
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(ptr::null_mut(), mapped, access, kind, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut api = [API, 0, 0];
        let mut register = [start as u64, mapped as u64, REGISTER_MISSING, 0];
        // SAFETY: both structures are as long as the numbers say; the range is the mapping.
        unsafe {
            checked(libc::ioctl(fault.as_raw_fd(), IOCTL_API, &mut api))?;
            checked(libc::ioctl(
                fault.as_raw_fd(),
                IOCTL_REGISTER,
                &mut register,
            ))?;
        }
        let (base, stopped) = (start as usize, stop.try_clone()?);
        let pager = std::thread::spawn(move || serve(&fault, &stopped, base, &content));
        Ok(Self {
            start,
            mapped,
            len,
            stop,
            pager: Some(pager),
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped until `self` is dropped; each page is filled before it can be read and
        // never changes afterwards.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }

    /// Numbers of the pages that were touched. What is not there yet never will be.
    pub(crate) fn touched(mut self) -> io::Result<BTreeSet<usize>> {
        self.end().expect("ended once")
    }

    fn end(&mut self) -> Option<io::Result<BTreeSet<usize>>> {
        let pager = self.pager.take()?;
        let once = 1_u64;
        // SAFETY: eight bytes, as eventfd takes.
        let rung = unsafe { libc::write(self.stop.as_raw_fd(), (&raw const once).cast(), 8) };
        assert_eq!(rung, 8, "the pager cannot be ended");
        Some(pager.join().expect("the pager does not panic"))
    }
}

impl Drop for Paged {
    fn drop(&mut self) {
        let _ended = self.end();
        // SAFETY: our own mapping, which nobody borrows any more.
        unsafe { libc::munmap(self.start, self.mapped) };
    }
}

/// Fills pages as they are asked for, until it is stopped.
fn serve(
    fault: &OwnedFd,
    stop: &OwnedFd,
    base: usize,
    content: &[u8],
) -> io::Result<BTreeSet<usize>> {
    let mut touched = BTreeSet::new();
    loop {
        let wait = |fd: &OwnedFd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut waits = [wait(fault), wait(stop)];
        // SAFETY: two structures.
        unsafe { checked(libc::poll(waits.as_mut_ptr(), 2, -1))? };
        if waits[0].revents == 0 {
            return Ok(touched);
        }
        let mut event = [0_u64; EVENT_WORDS];
        // SAFETY: the buffer has room for one event.
        let read = unsafe {
            let buffer = event.as_mut_ptr().cast();
            libc::read(fault.as_raw_fd(), buffer, size_of_val(&event))
        };
        if read <= 0 || event[0] & 0xff != EVENT_PAGEFAULT {
            continue;
        }
        let page = (event[2] as usize - base) / PAGE;
        fill(fault, base, page, content)?;
        touched.insert(page);
    }
}

fn fill(fault: &OwnedFd, base: usize, page: usize, content: &[u8]) -> io::Result<()> {
    let mut bytes = [0; PAGE];
    let own = &content[page * PAGE..content.len().min((page + 1) * PAGE)];
    bytes[..own.len()].copy_from_slice(own);
    let to = (base + page * PAGE) as u64;
    let mut copy = [to, bytes.as_ptr() as u64, PAGE as u64, 0, 0];
    // SAFETY: the structure is as long as the number says; one page is copied into the mapping.
    match unsafe { checked(libc::ioctl(fault.as_raw_fd(), IOCTL_COPY, &mut copy)) } {
        // Filled already.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done.map(drop),
    }
}
