//! One worker process, as the host sees it: hostile from its first file on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Generation;
use prost::Message;
use proto::{ENGINE_PACKET_MAX_BYTES, v1};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::report;
use super::spec::{Content, INLINE_MAX_BYTES, Job, PartialJob};
use crate::{packet, ranges, sys};

/// In less time than this a worker is not taken to have been idle.
const IDLE_MIN: Duration = Duration::from_millis(1);
/// After a worker's socket has closed, its template says within this time what ended it.
const EXIT_REPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// A worker that is no longer to be trusted.
pub(super) enum Broken {
    /// It closed its socket.
    Ended,
    /// It sent what the contract does not allow.
    Nonsense(&'static str),
}

/// Why a job was not handed over.
pub(super) enum SubmitError {
    /// The worker is gone, or does not read; the job can go to another.
    Gone,
    /// The content cannot be handed to any worker.
    Content(String),
}

/// What a worker is asked.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    Whole(&'a Job),
    Partial(&'a PartialJob),
}

pub(super) struct WorkerProcess {
    socket: AsyncFd<OwnedFd>,
    pidfd: OwnedFd,
    exit: oneshot::Receiver<v1::WorkerExited>,
    ready: Arc<v1::EngineReady>,
    epoch: u64,
    last_job_id: u64,
    /// When it last said something that it was asked for.
    reported_at: Option<Instant>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl WorkerProcess {
    /// Takes over a worker's socket (non-blocking already).
    pub(super) fn new(
        socket: OwnedFd,
        pidfd: OwnedFd,
        exit: oneshot::Receiver<v1::WorkerExited>,
        ready: Arc<v1::EngineReady>,
        epoch: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            socket: sys::watch(socket)?,
            pidfd,
            exit,
            ready,
            epoch,
            last_job_id: 0,
            reported_at: None,
            incoming: vec![0; ENGINE_PACKET_MAX_BYTES],
            outgoing: Vec::new(),
        })
    }

    /// The template it was forked from.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn ready(&self) -> Arc<v1::EngineReady> {
        Arc::clone(&self.ready)
    }

    pub(super) fn generation(&self) -> Generation {
        report::generation(&self.ready)
    }

    /// False where an idle worker has ended or spoken without being asked. One that has reported a
    /// moment ago has hardly been idle, and is not looked at.
    pub(super) fn is_quiet(&mut self) -> bool {
        if self.reported_at.is_some_and(|at| at.elapsed() < IDLE_MIN) {
            return true;
        }
        let got = packet::recv(self.socket.get_ref(), &mut self.incoming);
        matches!(got, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a job; its id is returned.
    pub(super) fn submit(&mut self, work: Work<'_>, limit: Duration) -> Result<u64, SubmitError> {
        self.last_job_id += 1;
        let own_limit_ms = limit.as_millis() / 4 * 3;
        let message = v1::ScanJob {
            job_id: self.last_job_id,
            timeout_ms: u32::try_from(own_limit_ms).unwrap_or(u32::MAX).max(1),
            ..Default::default()
        };
        match work {
            Work::Whole(job) => self.submit_whole(job, message)?,
            Work::Partial(job) => self.submit_partial(job, message)?,
        }
        Ok(self.last_job_id)
    }

    fn submit_whole(&mut self, job: &Job, message: v1::ScanJob) -> Result<(), SubmitError> {
        let sealed;
        let content = match &job.content {
            Content::Inline(bytes) if bytes.len() > INLINE_MAX_BYTES => {
                sealed = Content::seal(bytes)
                    .map_err(|e| SubmitError::Content(format!("cannot seal content: {e}")))?;
                &sealed
            }
            content => content,
        };
        let (inline, fd) = match content {
            Content::Inline(bytes) => (Some(bytes.clone()), None),
            Content::Sealed { size: 0, .. } => (None, None),
            Content::Sealed { fd, .. } => (None, Some(fd.as_fd())),
        };
        let message = v1::ScanJob {
            size: content.size(),
            content: inline,
            context: job.context.clone(),
            unpack: job.unpack,
            ..message
        };
        self.send(&message, fd)
    }

    fn submit_partial(
        &mut self,
        job: &PartialJob,
        message: v1::ScanJob,
    ) -> Result<(), SubmitError> {
        let (inline, fd) = match &job.content {
            Content::Inline(packed) => (Some(packed.clone()), None),
            Content::Sealed { fd, .. } => (None, Some(fd.as_fd())),
        };
        let partial = v1::PartialContent {
            known: ranges::write(&job.known),
            report: job.report.clone(),
            filter: job.filter.0.to_vec(),
        };
        let message = v1::ScanJob {
            size: job.size,
            content: inline,
            context: job.context.clone(),
            unpack: job.unpack,
            partial: Some(partial),
            ..message
        };
        self.send(&message, fd)
    }

    fn send(
        &mut self,
        message: &v1::ScanJob,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), SubmitError> {
        let socket = self.socket.get_ref().as_fd();
        packet::send(socket, message, fd, &mut self.outgoing).map_err(|error| {
            match rustix::io::Errno::from_io_error(&error) {
                Some(rustix::io::Errno::MSGSIZE) => {
                    SubmitError::Content("job does not fit into a packet".to_owned())
                }
                _ => SubmitError::Gone,
            }
        })
    }

    /// Waits for the report of that job.
    pub(super) async fn report(&mut self, job_id: u64) -> Result<v1::ScanReport, Broken> {
        let incoming = &mut self.incoming;
        let received = self
            .socket
            .async_io(tokio::io::Interest::READABLE, |socket| {
                packet::recv(socket, incoming)
            })
            .await;
        let received = match received {
            Ok(Some(received)) => received,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Broken::Nonsense("a packet that is too large"));
            }
            Ok(None) | Err(_) => return Err(Broken::Ended),
        };
        if received.fd.is_some() {
            return Err(Broken::Nonsense("a descriptor with its report"));
        }
        let bytes = self.incoming.get(..received.len).unwrap_or_default();
        let report = v1::ScanReport::decode(bytes)
            .map_err(|_| Broken::Nonsense("a report that cannot be decoded"))?;
        if report.job_id != job_id {
            return Err(Broken::Nonsense("a report for another job"));
        }
        if !report::is_well_formed(&report) {
            return Err(Broken::Nonsense("a report that breaks the contract"));
        }
        self.reported_at = Some(Instant::now());
        Ok(report)
    }

    /// What ended it, for people; says so where it cannot be known.
    pub(super) async fn cause_of_death(&mut self) -> String {
        match tokio::time::timeout(EXIT_REPORT_TIMEOUT, &mut self.exit).await {
            Ok(Ok(exit)) if exit.signal != 0 => format!("ended by {}", signal_name(exit.signal)),
            Ok(Ok(exit)) => format!("exited with code {}", exit.code),
            Ok(Err(_)) | Err(_) => "ended, cause unknown".to_owned(),
        }
    }

    /// Kills it; a worker that is gone already is no matter.
    ///
    /// # Errors
    /// It lives on: workers of root are another user's, so that takes CAP_KILL.
    pub(super) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Names the signals that workers die of.
fn signal_name(signal: u32) -> String {
    let name = match i32::try_from(signal).unwrap_or(0) {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGFPE => "SIGFPE",
        libc::SIGABRT => "SIGABRT (abort, or out of memory)",
        libc::SIGSYS => "SIGSYS (a forbidden system call)",
        libc::SIGKILL => "SIGKILL",
        libc::SIGXCPU => "SIGXCPU (CPU time)",
        libc::SIGTERM => "SIGTERM",
        libc::SIGTRAP => "SIGTRAP",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}
