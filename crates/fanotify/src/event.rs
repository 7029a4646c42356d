//! Events and their answers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use crate::identity::FileIdentity;
use crate::pending::Pending;
use crate::sys::GroupFd;
use crate::without::is_off;

/// What an opener is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The open goes on.
    Allow,
    /// The open fails with `EPERM`.
    ///
    /// There is no choice of another errno: `FAN_DENY_ERRNO` is refused in this class of group,
    /// and an answer that is refused leaves the opener waiting (trap 9).
    Deny,
}

impl Answer {
    fn response(self) -> u32 {
        match self {
            Self::Allow => libc::FAN_ALLOW,
            Self::Deny => libc::FAN_DENY,
        }
    }
}

/// How a file is being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenKind {
    /// To be read or written; also by an interpreter or a loader that will run it.
    Open,
    /// To be executed. The same exec raises a second event, of kind `Open`, for the same process
    /// and file.
    OpenExec,
}

/// What a group tells.
#[derive(Debug)]
pub enum Event {
    /// A process waits in `open` (or `exec`) for an answer.
    Permission(PermissionEvent),
    /// The last writer of an open file is gone: closed, and its shared mappings unmapped.
    CloseWrite(CloseEvent),
    /// Events were lost: the queue was full (16,384 by default). Opens passed *unscanned*
    /// meanwhile, and close-writes went by unseen, so no verdict cached before may be used.
    Overflow,
}

/// The part of a group that answers need. It lives as long as any event of the group does.
#[derive(Debug)]
pub(crate) struct Answering {
    pub(crate) group: GroupFd,
    pub(crate) default: Answer,
    /// Who else must know which openers wait.
    pub(crate) pending: Option<Arc<dyn Pending>>,
}

/// A process that waits for an answer. Answered exactly once: by [`PermissionEvent::answer`], or
/// by the group's default when dropped, panics included.
#[derive(Debug)]
pub struct PermissionEvent {
    /// How the file is being opened.
    pub kind: OpenKind,
    /// The opener (a thread-group id), or 0 if it lives in a PID namespace we cannot see.
    pub pid: i32,
    file: Arc<OwnedFd>,
    answering: Arc<Answering>,
    answered: bool,
}

impl PermissionEvent {
    pub(crate) fn new(kind: OpenKind, pid: i32, file: OwnedFd, answering: Arc<Answering>) -> Self {
        if let Some(pending) = &answering.pending {
            pending.waits(file.as_raw_fd(), kind, pid);
        }
        Self::known(kind, pid, file, answering)
    }

    /// One whose opener the others know of already.
    pub(crate) fn known(
        kind: OpenKind,
        pid: i32,
        file: OwnedFd,
        answering: Arc<Answering>,
    ) -> Self {
        Self {
            kind,
            pid,
            file: Arc::new(file),
            answering,
            answered: false,
        }
    }

    /// The file being opened, read-only and non-blocking. Only this names the file that the opener
    /// will get; a path may name another by now (trap 16).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Shared ownership of the same descriptor, for a scan that goes on after the answer.
    ///
    /// The kernel takes answers by descriptor *number* (trap 10). The event owns a share of it
    /// itself, so the number cannot be closed, and reused, before the answer; and there is no
    /// duplicate whose number could be used by mistake.
    #[must_use]
    pub fn file(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }

    /// Which file it is, and in which state.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        if is_off(16) {
            return FileIdentity::of_path(self.fd());
        }
        FileIdentity::of(self.fd())
    }

    /// Answers the opener.
    ///
    /// # Errors
    /// The kernel refused the answer. The group's default was then tried at once, and the error
    /// says whether that was taken. If not, nobody waits for this event any more.
    pub fn answer(mut self, answer: Answer) -> Result<(), AnswerError> {
        self.answered = true;
        self.send(answer)
    }

    /// Leaves the opener waiting and the descriptor open, for the process that takes over from
    /// this one: [`Pending`] knows both. Without one, or where the file is shared with a scan,
    /// the event is answered by the default instead.
    pub fn leave(mut self) {
        if self.answering.pending.is_none() {
            return;
        }
        let Some(file) = Arc::get_mut(&mut self.file) else {
            return;
        };
        // The number stays open: whoever takes over finds it by the number alone.
        if let Ok(held) = file.try_clone() {
            let file = std::mem::replace(file, held);
            let _left_open = file.into_raw_fd();
        } else {
            // No descriptor left for that: what never ends cannot close it either.
            let _left_open = Arc::into_raw(Arc::clone(&self.file));
        }
        self.answered = true;
    }

    fn send(&self, answer: Answer) -> Result<(), AnswerError> {
        let duplicate = is_off(10).then(|| self.file.try_clone());
        let duplicate = duplicate.and_then(Result::ok);
        let number = duplicate.as_ref().unwrap_or(&*self.file).as_raw_fd();
        let pending = self.answering.pending.as_deref();
        if pending.is_some_and(|pending| !pending.claim(number)) {
            return Err(AnswerError {
                wanted: answer,
                fallback: None,
                elsewhere: true,
                source: io::ErrorKind::AlreadyExists.into(),
            });
        }
        let sent = send_or_fall_back(answer, self.answering.default, |answer| {
            write_response(&self.answering.group, number, answer)
        });
        if let Some(pending) = pending {
            pending.settled(number);
        }
        sent
    }
}

impl Drop for PermissionEvent {
    fn drop(&mut self) {
        if !self.answered && !is_off(9) {
            // Nobody is left to be told of an error here, and the fallback has been tried.
            let _ = self.send(self.answering.default);
        }
    }
}

/// The kernel refused an answer.
#[derive(Debug, thiserror::Error)]
#[error("fanotify refused the answer {wanted:?}; then answered: {fallback:?}")]
pub struct AnswerError {
    /// The answer that was to be given.
    pub wanted: Answer,
    /// The answer that the kernel took instead, if any.
    pub fallback: Option<Answer>,
    /// Another process answered this opener before; ours was not sent.
    pub elsewhere: bool,
    /// Why the first one was refused. `ENOENT`: no such event is waiting.
    pub source: io::Error,
}

fn send_or_fall_back(
    wanted: Answer,
    fallback: Answer,
    mut write: impl FnMut(Answer) -> io::Result<()>,
) -> Result<(), AnswerError> {
    let Err(source) = write(wanted) else {
        return Ok(());
    };
    Err(AnswerError {
        wanted,
        fallback: write(fallback).is_ok().then_some(fallback),
        elsewhere: false,
        source,
    })
}

/// Writes a `struct fanotify_response`.
pub(crate) fn write_response(group: &GroupFd, number: i32, answer: Answer) -> io::Result<()> {
    let mut response = [0; 8];
    let (fd, verdict) = response.split_at_mut(4);
    fd.copy_from_slice(&number.to_ne_bytes());
    verdict.copy_from_slice(&answer.response().to_ne_bytes());
    rustix::io::retry_on_intr(|| rustix::io::write(group, &response))?;
    Ok(())
}

/// The last writer of an open file is gone.
#[derive(Debug)]
pub struct CloseEvent {
    /// The process that let go of it last, or 0 if it lives in a PID namespace we cannot see.
    pub pid: i32,
    file: OwnedFd,
}

impl CloseEvent {
    pub(crate) fn new(pid: i32, file: OwnedFd) -> Self {
        Self { pid, file }
    }

    /// The file, read-only and non-blocking.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Which file it is, and in which state.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        FileIdentity::of(self.fd())
    }

    /// The descriptor itself, for a scan of what was written.
    #[must_use]
    pub fn into_file(self) -> OwnedFd {
        self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Error {
        io::Error::from_raw_os_error(libc::EINVAL)
    }

    #[test]
    fn a_taken_answer_is_sent_once() {
        let mut sent = Vec::new();
        let result = send_or_fall_back(Answer::Allow, Answer::Deny, |answer| {
            sent.push(answer);
            Ok(())
        });
        assert!(result.is_ok());
        assert_eq!(sent, [Answer::Allow]);
    }

    #[test]
    fn a_refused_answer_is_followed_by_the_default_at_once() {
        let mut sent = Vec::new();
        let result = send_or_fall_back(Answer::Allow, Answer::Deny, |answer| {
            sent.push(answer);
            if sent.len() == 1 {
                Err(refused())
            } else {
                Ok(())
            }
        });
        assert_eq!(sent, [Answer::Allow, Answer::Deny]);
        let error = result.expect_err("the first answer was refused");
        assert_eq!(error.fallback, Some(Answer::Deny));
        assert_eq!(error.source.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn two_refusals_are_told() {
        let result = send_or_fall_back(Answer::Deny, Answer::Deny, |_| Err(refused()));
        let error = result.expect_err("both were refused");
        assert_eq!((error.wanted, error.fallback), (Answer::Deny, None));
    }
}
