//! A fanotify group: its marks and its reader.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::event::{
    Answer, Answering, CloseEvent, Event, OpenKind, PermissionEvent, write_response,
};
use crate::filesystem::FilesystemKind;
use crate::identity::FileIdentity;
use crate::parse::{METADATA_LEN, ParseError};
use crate::pending::Pending;
use crate::standing::{BreakOwner, NotPlaced, StandingVerdict};
use crate::sys::{self, ReadFailure, ReceivedEvent};
use crate::without::is_off;

/// How a group behaves.
#[derive(Debug, Clone, Copy)]
pub struct GroupOptions {
    /// The answer to an event that is dropped unanswered, by a panic for instance.
    pub default_answer: Answer,
}

/// What a mark raises events for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkMask {
    /// Ask before any open.
    pub open_perm: bool,
    /// Ask before an open for execution.
    pub open_exec_perm: bool,
    /// Tell when a file's last writer is gone.
    pub close_write: bool,
}

impl MarkMask {
    /// All of it, in one group: only there do close-write and open keep their order (trap 8), and
    /// exec alone misses scripts given to an interpreter and programs given to a loader (trap 14).
    pub const ALL: Self = Self {
        open_perm: true,
        open_exec_perm: true,
        close_write: true,
    };

    fn bits(self) -> u64 {
        [
            (self.open_perm && !is_off(14), libc::FAN_OPEN_PERM),
            (self.open_exec_perm, libc::FAN_OPEN_EXEC_PERM),
            (self.close_write && !is_off(8), libc::FAN_CLOSE_WRITE),
        ]
        .into_iter()
        .filter_map(|(wanted, bit)| wanted.then_some(bit))
        .sum()
    }
}

/// An event that [`MarkMask`] cannot name.
const NEVER_MARKED: u64 = libc::FAN_ACCESS_PERM;

/// No group could be made.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// `EPERM`: needs `CAP_SYS_ADMIN` in the initial user namespace. `ENOSYS` or `EINVAL`: the
    /// kernel has no fanotify permission events. `EMFILE`: 128 groups of this user exist.
    #[error("cannot make a fanotify group")]
    Init(#[source] io::Error),
    /// No descriptor for the interrupter.
    #[error("cannot make an eventfd for the group's interrupter")]
    Interrupter(#[source] io::Error),
    /// What was handed over is no fanotify group.
    #[error("the descriptor handed over is not a fanotify group")]
    NotAGroup,
}

/// A file system could not be marked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The path is not a directory that can be reached.
    #[error("cannot reach the directory {}", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system's kind cannot be told.
    #[error("cannot tell the kind of the file system at {}", path.display())]
    Kind {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file system that would stop the reader.
    #[error("the file system at {} is not guarded: {}", path.display(), refusal(*kind))]
    Refused {
        /// As given.
        path: PathBuf,
        /// What it is.
        kind: FilesystemKind,
    },
    /// `EINVAL`: the mask is empty, or the kernel has no permission events.
    #[error("the kernel refused a mark on the file system at {}", path.display())]
    Kernel {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn refusal(kind: FilesystemKind) -> &'static str {
    match kind {
        FilesystemKind::Local | FilesystemKind::Unknown => "its kind changed meanwhile",
        FilesystemKind::Stacked => {
            "it lies over other file systems; guard those, which raise the events of both"
        }
        FilesystemKind::Network => {
            "other machines write to it unseen, and its server may not answer"
        }
        FilesystemKind::Fuse => {
            "a process of this machine serves it, which may itself be waiting for an answer"
        }
    }
}

/// The group could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// [`Interrupter::interrupt`] was called. Every later read says so too.
    #[error("reading the fanotify group was interrupted")]
    Interrupted,
    /// `EMFILE` or `ENFILE`: no descriptor for the next event. The kernel has denied that open,
    /// and denies more with each read. Shed load: see [`crate::limits::Reserve`].
    #[error("no descriptor left for a fanotify event")]
    OutOfDescriptors(#[source] io::Error),
    /// The kernel could not open the file of the next event for us and has denied that open. Read
    /// on. `EAGAIN`: another process holds a write lease on it (it is asked to give it up, a
    /// second open may pass), or the opener was killed while it waited. Only an event that is the
    /// first of its read is told; a later one ends the read, and is denied, without a word.
    #[error("the kernel could not open the file of a fanotify event")]
    Unopenable(#[source] io::Error),
    /// The group itself is unusable.
    #[error("cannot read the fanotify group")]
    Failed(#[source] io::Error),
    /// A kernel that we do not speak with. The events read have been answered by the default as
    /// far as they were understood; end the group, which lets the others go.
    #[error("the kernel's fanotify events have an unknown layout")]
    Malformed(#[from] ParseError),
}

/// A fanotify group of class CONTENT with the kernel's bounded queue.
///
/// It is one queue: let one thread read it (trap 8), and let that thread do nothing but read and
/// hand on (trap 4). That thread must not open any file on a marked file system: the open would
/// wait for an answer that only the same thread could read (trap 1).
///
/// Dropping the group *and* its last event lets all waiting openers through (trap 2).
#[derive(Debug)]
pub struct Group {
    answering: Arc<Answering>,
    interrupter: Interrupter,
    own_pids: Vec<i32>,
}

/// A group that lives longer than the process that reads it.
#[derive(Debug)]
pub struct Shared {
    /// The group, as [`Group::to_fd`] gives it.
    pub group: OwnedFd,
    /// Processes whose opens are allowed and not shown: the reader's own, and those it must not
    /// wait for.
    pub own_pids: Vec<i32>,
    /// What the others are told.
    pub pending: Arc<dyn Pending>,
}

impl Group {
    /// Makes a group without marks. Events of the calling process are recognised by its PID of
    /// now: make the group after the last fork.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn new(options: GroupOptions) -> Result<Self, GroupError> {
        let group = sys::init().map_err(GroupError::Init)?;
        let own_pids = vec![rustix::process::getpid().as_raw_nonzero().get()];
        Self::around(group, own_pids, options, None)
    }

    /// The same group, marks and all, in a process that shares it.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn shared(shared: Shared, options: GroupOptions) -> Result<Self, GroupError> {
        let group = sys::GroupFd::adopt(shared.group).ok_or(GroupError::NotAGroup)?;
        Self::around(group, shared.own_pids, options, Some(shared.pending))
    }

    fn around(
        group: sys::GroupFd,
        own_pids: Vec<i32>,
        options: GroupOptions,
        pending: Option<Arc<dyn Pending>>,
    ) -> Result<Self, GroupError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags)
            .map_err(|errno| GroupError::Interrupter(errno.into()))?;
        Ok(Self {
            answering: Arc::new(Answering {
                group,
                default: options.default_answer,
                pending,
            }),
            interrupter: Interrupter(Arc::new(wake)),
            own_pids,
        })
    }

    /// From now on the opens of these processes are allowed and not shown.
    pub fn set_own_pids(&mut self, own_pids: Vec<i32>) {
        self.own_pids = own_pids;
    }

    /// A duplicate of the group's descriptor, to be shared.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn to_fd(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.answering.group, 3)?)
    }

    /// The event of an opener that another process left waiting: this one owns its descriptor
    /// and answers it from now on.
    #[must_use]
    pub fn taken_over(&self, kind: OpenKind, pid: i32, file: OwnedFd) -> Event {
        let answering = Arc::clone(&self.answering);
        Event::Permission(PermissionEvent::known(kind, pid, file, answering))
    }

    /// Answers by number for a process that cannot any more. The caller knows, by what it shares
    /// with that process, that the number is no other opener's.
    ///
    /// # Errors
    /// `ENOENT`: nobody waits for this number.
    pub fn answer_number(&self, number: i32, answer: Answer) -> io::Result<()> {
        write_response(&self.answering.group, number, answer)
    }

    /// Takes all marks off single files: verdicts stored in the kernel, which nobody keeps true
    /// when the process is gone that held their leases. The marks on file systems stay.
    ///
    /// # Errors
    /// As `fanotify_mark`.
    pub fn unmark_files(&self) -> io::Result<()> {
        let group = &self.answering.group;
        sys::mark(group, libc::FAN_MARK_FLUSH, 0, group.as_fd(), c".")
    }

    /// The same group, which tells of opens by this process too.
    pub(crate) fn showing_own_opens(self) -> Self {
        const NOBODY: i32 = -1;
        Self {
            own_pids: vec![NOBODY],
            ..self
        }
    }

    /// Marks the whole file system that the directory `path` is on, for all its mounts in all
    /// mount namespaces (trap 11). Marking again adds to the mask.
    ///
    /// A file system's mark ends with its last unmount, and its device number is then given to the
    /// next. So after marking, forget every verdict cached for that device: a removable disk can
    /// come back with the same inodes and stamps and other bytes.
    ///
    /// # Errors
    /// See [`MarkError`]. File systems on which the reader itself would wait are refused: network
    /// and FUSE ones (trap 17), and stacked ones (trap 12). With overlayfs and a layer's file
    /// system in one group, the kernel's open of the event's file, done inside [`Group::read`],
    /// raises an event for the layer that nobody can read. Mark the layers' file systems: since
    /// Linux 6.5 they raise events for opens through the overlay too, once each and with the real
    /// inode.
    pub fn mark_filesystem(&self, path: &Path, mask: MarkMask) -> Result<(), MarkError> {
        let directory = open_directory(path)?;
        let kind = FilesystemKind::of(&directory).map_err(|source| MarkError::Kind {
            path: path.to_owned(),
            source,
        })?;
        if !kind.may_be_guarded() {
            return Err(MarkError::Refused {
                path: path.to_owned(),
                kind,
            });
        }
        self.mark(libc::FAN_MARK_ADD, mask.bits(), &directory, path)
    }

    /// Whether this group has a mark on the file system that the directory `path` is on. A device
    /// number does not tell: it may have been given to another file system since.
    ///
    /// # Errors
    /// See [`MarkError`].
    pub fn is_marked(&self, path: &Path) -> Result<bool, MarkError> {
        let directory = open_directory(path)?;
        // Takes an event off the mark that none of ours has. That changes nothing, and the kernel
        // says ENOENT where there is no mark.
        match self.mark(libc::FAN_MARK_REMOVE, NEVER_MARKED, &directory, path) {
            Ok(()) => Ok(true),
            Err(MarkError::Kernel { source, .. })
                if source.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the marks off all file systems, reachable by a path or not. Events already queued
    /// still come.
    ///
    /// # Errors
    /// As `fanotify_mark`.
    pub fn unmark_all(&self) -> io::Result<()> {
        let group = &self.answering.group;
        let flags = libc::FAN_MARK_FLUSH | libc::FAN_MARK_FILESYSTEM;
        // A flush looks at neither descriptor nor path.
        sys::mark(group, flags, 0, group.as_fd(), c".")
    }

    /// Marks by the descriptor whose kind was looked at, not by the path once more.
    fn mark(
        &self,
        action: libc::c_uint,
        bits: u64,
        directory: &OwnedFd,
        path: &Path,
    ) -> Result<(), MarkError> {
        let whole = if is_off(11) {
            libc::FAN_MARK_MOUNT
        } else {
            libc::FAN_MARK_FILESYSTEM
        };
        let flags = action | whole | libc::FAN_MARK_ONLYDIR;
        let group = &self.answering.group;
        sys::mark(group, flags, bits, directory.as_fd(), c".").map_err(|source| MarkError::Kernel {
            path: path.to_owned(),
            source,
        })
    }

    /// Waits for events and reads as many as there are and fit.
    ///
    /// Opens by this very process are allowed here and not shown (trap 1); its close-writes are,
    /// as they change files like any other. Events that the iterator is dropped with are answered
    /// by the default.
    ///
    /// # Errors
    /// See [`ReadError`]; `OutOfDescriptors` and `Unopenable` concern one event, reading goes on.
    pub fn read<'b>(&self, buffer: &'b mut EventBuffer) -> Result<Events<'b>, ReadError> {
        let pending = self.answering.pending.as_deref();
        if let Some(pending) = pending {
            pending.idle();
        }
        self.wait()?;
        if let Some(pending) = pending {
            pending.reading();
        }
        self.read_now(buffer)
    }

    /// As [`read`](Self::read), for a caller that waits by itself: never sleeps. Without anything
    /// to read it is `Unopenable(EAGAIN)`.
    ///
    /// # Errors
    /// See [`ReadError`]; never `Interrupted`.
    pub fn read_now<'b>(&self, buffer: &'b mut EventBuffer) -> Result<Events<'b>, ReadError> {
        let EventBuffer { bytes, events } = buffer;
        events.clear();
        let read = sys::read_events(&self.answering.group, bytes, |received| {
            events.extend(self.event(received));
        });
        match read {
            Ok(()) => Ok(Events(events.drain(..))),
            Err(failure) => {
                events.clear();
                Err(read_error(failure))
            }
        }
    }

    /// Sleeps until there is something to read. The group itself does not block: an opener killed
    /// between the two calls takes its event back, and an interrupt must not be missed then.
    fn wait(&self) -> Result<(), ReadError> {
        let wake = &*self.interrupter.0;
        let mut sources = [
            PollFd::new(&self.answering.group, PollFlags::IN),
            PollFd::new(wake, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None))
            .map_err(|errno| ReadError::Failed(errno.into()))?;
        let [_, wake] = sources;
        if wake.revents().is_empty() {
            Ok(())
        } else {
            Err(ReadError::Interrupted)
        }
    }

    /// What the caller is shown of a received event; `None` for our own opens.
    fn event(&self, received: ReceivedEvent) -> Option<Event> {
        let ReceivedEvent { mask, pid, file } = received;
        // No other event of this class comes without a descriptor. Should one, then it is lost.
        let Some(file) = file else {
            return (!is_off(4)).then_some(Event::Overflow);
        };
        if mask & libc::FAN_CLOSE_WRITE != 0 {
            return Some(Event::CloseWrite(CloseEvent::new(pid, file)));
        }
        let kind = if mask & libc::FAN_OPEN_EXEC_PERM != 0 {
            OpenKind::OpenExec
        } else {
            OpenKind::Open
        };
        let event = PermissionEvent::new(kind, pid, file, Arc::clone(&self.answering));
        if self.own_pids.contains(&pid) && !is_off(1) {
            // An error means that nobody waits any more.
            let _ = event.answer(Answer::Allow);
            return None;
        }
        Some(Event::Permission(event))
    }

    /// Places a clean verdict in the kernel: from now on opens of this file raise no event, until
    /// a writer comes or the verdict is dropped. See [`crate::standing`] for why it is sound.
    ///
    /// `file` is the descriptor of the file's event. `is_judged` says whether the content with this
    /// identity is the one that the verdict is about; it is asked while no writer can be.
    ///
    /// # Errors
    /// Then opens go on raising events.
    pub fn place(
        &self,
        file: Arc<OwnedFd>,
        breaks: BreakOwner,
        is_judged: impl FnOnce(&FileIdentity) -> bool,
    ) -> Result<StandingVerdict, NotPlaced> {
        StandingVerdict::place(Arc::clone(&self.answering), file, breaks, is_judged)
    }

    /// Takes every standing verdict of this group out of the kernel, by whichever process it was
    /// placed; the file systems stay guarded. For whoever goes on with the group of a process that
    /// died: the leases that watched over those verdicts died with it.
    ///
    /// # Errors
    /// As `fanotify_mark`.
    pub fn lift_all(&self) -> io::Result<()> {
        let group = &self.answering.group;
        // A flush looks at neither descriptor nor path; without a kind it is about inodes.
        sys::mark(group, libc::FAN_MARK_FLUSH, 0, group.as_fd(), c".")
    }

    /// What ends a blocked [`Group::read`], for another thread.
    #[must_use]
    pub fn interrupter(&self) -> Interrupter {
        self.interrupter.clone()
    }
}

impl AsFd for Group {
    /// Becomes readable with the next event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.answering.group.as_fd()
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, MarkError> {
    // O_PATH reaches the object without opening it: no event, and no word to a FUSE server.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| MarkError::Open {
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn read_error(failure: ReadFailure) -> ReadError {
    match failure {
        ReadFailure::Malformed(error) => ReadError::Malformed(error),
        ReadFailure::Errno(errno) => match errno {
            Errno::MFILE | Errno::NFILE => ReadError::OutOfDescriptors(errno.into()),
            Errno::BADF | Errno::FAULT | Errno::INVAL => ReadError::Failed(errno.into()),
            _ => ReadError::Unopenable(errno.into()),
        },
    }
}

/// Memory for one read, to be used again.
///
/// The kernel opens a descriptor for each event it puts in: the size bounds how many come at once.
#[derive(Debug)]
pub struct EventBuffer {
    bytes: Box<[u8]>,
    events: Vec<Event>,
}

impl EventBuffer {
    /// Room for `events_max` events, at least one.
    #[must_use]
    pub fn new(events_max: usize) -> Self {
        let events_max = events_max.max(1);
        Self {
            bytes: vec![0; events_max * METADATA_LEN].into_boxed_slice(),
            events: Vec::with_capacity(events_max),
        }
    }
}

/// The events of one read, in the kernel's order. Those not taken are answered by the default.
#[derive(Debug)]
pub struct Events<'b>(std::vec::Drain<'b, Event>);

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Events<'_> {}

/// Ends a group's blocked read, for good.
#[derive(Debug, Clone)]
pub struct Interrupter(Arc<OwnedFd>);

impl Interrupter {
    /// Makes the current and every later [`Group::read`] return [`ReadError::Interrupted`].
    pub fn interrupt(&self) {
        // Fails only if the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl AsFd for Interrupter {
    /// For a process that cannot call [`Self::interrupt`]: an eventfd, to be written to.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
