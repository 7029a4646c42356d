//! Every unsafe block of the agent. Each function is a safe, complete wrapper of one system call.
#![expect(
    unsafe_code,
    reason = "fanotify, leases, signalfd and FS_IOC_GETVERSION have no safe wrapper in rustix"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::parse::{self, ParseError};

/// A descriptor that `fanotify_init` returned, here or in the process that shares it: so what is
/// read from it was written by the kernel.
#[derive(Debug)]
pub(crate) struct GroupFd(OwnedFd);

impl AsFd for GroupFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl GroupFd {
    /// A descriptor from elsewhere; `None`: it is no fanotify group.
    pub(crate) fn adopt(fd: OwnedFd) -> Option<Self> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        // The kernel's own name for it, which nothing else has.
        let name = rustix::fs::readlink(link, Vec::new()).ok()?;
        (name.as_bytes() == b"anon_inode:[fanotify]").then_some(Self(fd))
    }
}

/// One event as the kernel told it, its descriptor owned.
#[derive(Debug)]
pub(crate) struct ReceivedEvent {
    pub(crate) mask: u64,
    pub(crate) pid: i32,
    /// `None` where the kernel sent no descriptor (`FAN_NOFD`: an overflow).
    pub(crate) file: Option<OwnedFd>,
}

/// Why [`read_events`] stopped.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    Errno(Errno),
    Malformed(ParseError),
}

/// Makes a content-class group that does not block in `read`.
pub(crate) fn init() -> io::Result<GroupFd> {
    let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    // O_NONBLOCK: the kernel opens an event's file inside our read(). A guest that holds a write
    // lease on it, or a FIFO without a writer, would otherwise stop the reader there, and with it
    // every opener in the machine.
    let event_flags =
        libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC | libc::O_NOATIME | libc::O_NONBLOCK;
    // SAFETY: takes two integers, no pointers.
    let number = unsafe { libc::fanotify_init(flags, event_flags.cast_unsigned()) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `number` is an open descriptor that nobody else owns.
    Ok(GroupFd(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// `fanotify_mark` on the object that `path` names, relative to the directory `at`.
pub(crate) fn mark(
    group: &GroupFd,
    flags: libc::c_uint,
    mask: u64,
    at: BorrowedFd<'_>,
    path: &CStr,
) -> io::Result<()> {
    // SAFETY: both descriptors are open for the call's duration (borrowed), and `path` is a
    // NUL-terminated string that outlives it.
    let result = unsafe {
        libc::fanotify_mark(
            group.0.as_raw_fd(),
            flags,
            mask,
            at.as_raw_fd(),
            path.as_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `fanotify_mark` on the very object that `file` is, whatever its name is now. Resolves no name.
pub(crate) fn mark_object(
    group: &GroupFd,
    flags: libc::c_uint,
    mask: u64,
    file: BorrowedFd<'_>,
) -> Result<(), Errno> {
    // SAFETY: both descriptors are open for the call's duration (borrowed); a null path stands
    // for the object of the descriptor itself.
    let result = unsafe {
        libc::fanotify_mark(
            group.0.as_raw_fd(),
            flags,
            mask,
            file.as_raw_fd(),
            std::ptr::null(),
        )
    };
    if result < 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// One `read` of the group: gives each event, in the kernel's order, to `each`.
///
/// After `Malformed`, descriptors that were not parsed stay open: this is a kernel we do not speak
/// with, and the caller must end the group.
pub(crate) fn read_events(
    group: &GroupFd,
    buffer: &mut [u8],
    mut each: impl FnMut(ReceivedEvent),
) -> Result<(), ReadFailure> {
    let length = loop {
        match rustix::io::read(group, &mut *buffer) {
            Ok(length) => break length,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(ReadFailure::Errno(errno)),
        }
    };
    for event in parse::events(buffer.get(..length).unwrap_or_default()) {
        let event = event.map_err(ReadFailure::Malformed)?;
        // SAFETY: the kernel wrote this event just now (`GroupFd` is a fanotify group), and a
        // descriptor number ≥ 0 in it was installed for this reader alone; each event is parsed
        // once, so the descriptor gets one owner.
        let file = (event.fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(event.fd) });
        each(ReceivedEvent {
            mask: event.mask,
            pid: event.pid,
            file,
        });
    }
    Ok(())
}

/// `fcntl(F_SETLEASE)`: `F_RDLCK` takes, `F_UNLCK` releases.
pub(crate) fn set_lease(file: BorrowedFd<'_>, kind: libc::c_int) -> Result<(), Errno> {
    // SAFETY: F_SETLEASE takes an integer argument; the descriptor is borrowed, so open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if result < 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// `fcntl(F_GETLEASE)`: the lease's kind, or the kind it is being broken to.
pub(crate) fn lease_kind(file: BorrowedFd<'_>) -> Result<libc::c_int, Errno> {
    // SAFETY: F_GETLEASE takes no argument; the descriptor is borrowed, so open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) };
    if result < 0 {
        return Err(last_errno());
    }
    Ok(result)
}

/// The inode's generation (`FS_IOC_GETVERSION`), which tells a reused inode number from the old
/// file. Call it on regular files only: a device gives the number a meaning of its own.
pub(crate) fn generation(file: BorrowedFd<'_>) -> Result<u32, Errno> {
    // The request is declared with `long`, file systems write an `int`: room for either.
    let mut words = [0_u32; 2];
    // SAFETY: FS_IOC_GETVERSION writes at most a `long` (8 bytes) to the pointer, which points to
    // 8 writable bytes that outlive the call.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::FS_IOC_GETVERSION,
            words.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(last_errno());
    }
    let [generation, _] = words;
    Ok(generation)
}

/// Sets a signal to be ignored in this process, but where a thread has it blocked and reads it.
pub(crate) fn ignore_signal(signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: SIG_IGN installs no handler, so nothing of ours runs in a signal's context.
    let previous = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if previous == libc::SIG_ERR {
        return Err(last_errno());
    }
    Ok(())
}

/// A descriptor that reads these signals as they are sent to the calling thread, where they are
/// blocked from now on.
pub(crate) fn signals_of_this_thread(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero `sigset_t` is a value of it, and `sigemptyset` makes it the empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a writable `sigset_t` for the duration of each call; the numbers are checked
    // by the kernel. `pthread_sigmask` takes no old set.
    let masked = unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    if masked != 0 {
        return Err(io::Error::from_raw_os_error(masked));
    }
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: -1 asks for a new descriptor; `set` is an initialised `sigset_t`.
    let number = unsafe { libc::signalfd(-1, &raw const set, flags) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `number` is an open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has the kernel send what it has to say about `file` to this thread, as this signal.
pub(crate) fn send_signals_of(
    file: BorrowedFd<'_>,
    signal: libc::c_int,
    thread: i32,
) -> Result<(), Errno> {
    /// `struct f_owner_ex`.
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        id: libc::pid_t,
    }
    const F_SETSIG: libc::c_int = 10;
    const F_SETOWN_EX: libc::c_int = 15;
    const F_OWNER_TID: libc::c_int = 0;
    let owner = Owner {
        kind: F_OWNER_TID,
        id: thread,
    };
    // SAFETY: F_SETOWN_EX reads a `struct f_owner_ex`, which `owner` is laid out as and which
    // outlives the call; the descriptor is borrowed, so open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    if result < 0 {
        return Err(last_errno());
    }
    // SAFETY: F_SETSIG takes an integer; the descriptor is borrowed, so open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, signal) };
    if result < 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// `truncate`: cuts a file off that is not open.
pub(crate) fn truncate(path: &CStr, length: libc::off_t) -> io::Result<()> {
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let result = unsafe { libc::truncate(path.as_ptr(), length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The first byte of a file, mapped shared and writable: a writer without a descriptor.
#[derive(Debug)]
pub struct SharedMapping(std::ptr::NonNull<libc::c_void>);

impl SharedMapping {
    /// Of a file of at least one byte, open for reading and writing.
    ///
    /// # Errors
    /// As `mmap`.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                1,
                protection,
                rustix::mm::MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let address = std::ptr::NonNull::new(address);
        Ok(Self(address.ok_or(io::ErrorKind::OutOfMemory)?))
    }

    /// Stores into the file's first byte. Where the file was cut off meanwhile this is a SIGBUS.
    pub fn store(&mut self, byte: u8) {
        // SAFETY: the mapping is this value's own, writable, and has at least one byte; nothing
        // else of ours refers to it.
        unsafe { self.0.cast::<u8>().write_volatile(byte) };
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing points into it.
        // The only failure is that there is no such mapping.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr(), 1) };
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
