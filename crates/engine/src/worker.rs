//! The engine's side: [`run`] turns a [`Template`] into an engine program.
//!
//! The template loads rules, which are trusted, and never sees a file. For each request of the
//! host it forks a worker while it has a single thread, so whatever it loaded is shared with the
//! worker as it is, compiled code included. (A forked child has only the thread that forked; were
//! there others, their locks would stay locked in it. yara-x, for one, starts a thread with its
//! first scan: so templates never scan.) The worker confines itself and only then reads hostile
//! bytes.

mod filter;
mod input;
mod partial;
mod serve;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use prost::Message;
use proto::{ENGINE_PACKET_MAX_BYTES, v1};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::packet;
use crate::sandbox::Sandbox;
use crate::sys::{self, Forked};

pub use filter::FILTER_MAX_BYTES;
pub use input::Input;
pub use partial::{PartialInput, ask_for, ask_for_layout, ask_for_whole};

use filter::Filter;

/// A worker that is tried out before the template says that it is ready.
const TRIAL_TIMEOUT_MS: i64 = 30_000;

/// What an engine program loads once.
pub trait Template {
    /// What scans in a worker.
    type Worker: Worker;

    /// What the engine is. Warnings about the sandbox are added.
    fn ready(&self) -> v1::EngineReady;

    /// Makes a worker's scanner. Called in the forked process, confined but for the system call
    /// filter, which follows: what needs more system calls than a scan (connecting, starting
    /// threads) is to be done here.
    ///
    /// # Errors
    /// For people: why no worker can be had now.
    fn worker(&self) -> Result<Self::Worker, String>;

    /// What workers need beyond the least.
    fn sandbox(&self) -> Sandbox;

    /// What agents can look for in place of the engine: a `literal_filter::Pack` as it travels, of
    /// at most [`FILTER_MAX_BYTES`]. `None`: the engine judges whole content only. Asked once.
    ///
    /// # Errors
    /// For people: why there is none, though there should be. The engine goes on without.
    fn filter(&self) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    /// How often [`changed`](Self::changed) is asked. `None`: never.
    fn check_interval(&self) -> Option<Duration> {
        None
    }

    /// True where what is judged by is no longer what [`ready`](Self::ready) said, such as
    /// clamd's database: the host then replaces this template.
    fn changed(&mut self) -> bool {
        false
    }
}

/// What judges one file after the other.
pub trait Worker {
    /// Scans one file into an empty report. `job_id` is filled in by the caller, and what exceeds
    /// the contract's limits is cut and counted. A panic is reported as a crash on this file,
    /// along with what was found before it.
    fn scan(&mut self, job: &v1::ScanJob, input: &Input<'_>, report: &mut v1::ScanReport);

    /// Judges one file by what is known of it, into an empty report: either how far that led, with
    /// detections only where it led to the end, or what went wrong, as for a scan. Only called with
    /// what the filter of this engine found.
    fn scan_partial(
        &mut self,
        _job: &v1::ScanJob,
        _input: PartialInput<'_>,
        report: &mut v1::ScanReport,
    ) {
        report.partial = Some(ask_for_whole("the engine judges whole content only"));
    }
}

/// Runs an engine program: its standard input is the host's control socket.
pub fn run<T: Template>(load: impl FnOnce() -> Result<T, Vec<String>>) -> ExitCode {
    let stdin = io::stdin();
    let mut control = Control {
        socket: stdin.as_fd(),
        incoming: vec![0; ENGINE_PACKET_MAX_BYTES],
        outgoing: Vec::new(),
    };
    let setup = match control.receive() {
        Ok(Some((v1::engine_request::Body::Setup(setup), _))) => setup,
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(_)) | Err(_) => {
            eprintln!("an engine is started by a Lazaret appliance, with a socket as its input");
            return ExitCode::from(2);
        }
    };
    let loaded = load().and_then(|template| {
        let filter = Filter::of(&template);
        sys::trim_heap();
        let nursery = Nursery::new(template, setup, filter).map_err(|error| vec![error])?;
        Ok(nursery)
    });
    let mut nursery = match loaded {
        Ok(nursery) => nursery,
        Err(errors) => {
            let failed = v1::EngineFailed { errors };
            // Where the host is gone, nobody wants to know.
            let _ = control.send(v1::engine_reply::Body::Failed(failed), None);
            return ExitCode::FAILURE;
        }
    };
    let served = nursery
        .say_ready(&mut control)
        .and_then(|()| nursery.tend(&mut control));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("engine: control socket: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Control<'a> {
    socket: BorrowedFd<'a>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Control<'_> {
    /// The host's next request; `None` where the host is gone.
    fn receive(&mut self) -> io::Result<Option<(v1::engine_request::Body, Option<OwnedFd>)>> {
        let received = match packet::recv(self.socket, &mut self.incoming) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = self.incoming.get(..received.len).unwrap_or_default();
        let request = v1::EngineRequest::decode(bytes)?;
        let body = request.body.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((body, received.fd)))
    }

    fn send(&mut self, body: v1::engine_reply::Body, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let reply = v1::EngineReply { body: Some(body) };
        packet::send(self.socket, &reply, fd, &mut self.outgoing)
    }
}

/// The loaded template and its living workers.
struct Nursery<T> {
    template: T,
    setup: v1::Setup,
    ready: v1::EngineReady,
    filter: Filter,
    null: OwnedFd,
    workers: Vec<(OwnedFd, u32)>,
}

impl<T: Template> Nursery<T> {
    /// Tries a worker out, so that a sandbox or a scanner that cannot be had is known before the
    /// host counts on it.
    fn new(template: T, setup: v1::Setup, filter: Filter) -> Result<Self, String> {
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|error| format!("/dev/null: {error}"))?;
        let mut ready = template.ready();
        ready.warnings.extend(filter.warning().map(str::to_owned));
        let mut nursery = Self {
            ready,
            template,
            setup,
            filter,
            null,
            workers: Vec::new(),
        };
        let warnings = nursery.try_out()?;
        nursery.ready.warnings.extend(warnings);
        Ok(nursery)
    }

    /// Tells the host what there is, once with the filter.
    fn say_ready(&mut self, control: &mut Control<'_>) -> io::Result<()> {
        let mut ready = self.ready.clone();
        let bytes = self.filter.hand_over();
        ready.filter_bytes = bytes.as_ref().map_or(0, |(_, len)| *len);
        let fd = bytes.as_ref().map(|(fd, _)| fd.as_fd());
        control.send(v1::engine_reply::Body::Ready(ready), fd)
    }

    /// The trial worker's warnings.
    fn try_out(&mut self) -> Result<Option<String>, String> {
        let failed = |error: io::Error| format!("cannot try a worker out: {error}");
        let (ours, theirs) = packet::pair().map_err(failed)?;
        let (pidfd, _) = self.fork(theirs).map_err(failed)?;
        let mut polled = [PollFd::new(&ours, PollFlags::IN)];
        let limit = Timespec::try_from(Duration::from_millis(TRIAL_TIMEOUT_MS.unsigned_abs()));
        poll(&mut polled, limit.ok().as_ref()).map_err(|e| failed(e.into()))?;
        if polled[0].revents().is_empty() {
            return Err("a worker is not ready after 30 s".to_owned());
        }
        let mut buffer = vec![0; ENGINE_PACKET_MAX_BYTES];
        let received = packet::recv(&ours, &mut buffer).map_err(failed)?;
        drop(ours);
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        let Some(received) = received else {
            let signal = status.ok().flatten().and_then(|s| s.terminating_signal());
            return Err(match signal {
                Some(signal) => format!("a worker died of signal {signal} while it was set up"),
                None => "a worker ended while it was set up".to_owned(),
            });
        };
        let bytes = buffer.get(..received.len).unwrap_or_default();
        let hello = v1::ScanReport::decode(bytes).map_err(|e| failed(e.into()))?;
        if !hello.error.is_empty() {
            return Err(hello.error);
        }
        Ok(hello.incomplete.map(|missing| missing.detail))
    }

    /// Serves the host until it is gone or says so.
    fn tend(&mut self, control: &mut Control<'_>) -> io::Result<()> {
        let interval = self.template.check_interval();
        let mut check_at = interval.map(|interval| Instant::now() + interval);
        let mut accepting = true;
        while accepting || !self.workers.is_empty() {
            let wait = check_at.map(|at| at.saturating_duration_since(Instant::now()));
            if self.wait(control.socket, wait)? {
                match control.receive()? {
                    Some((v1::engine_request::Body::SpawnWorker(_), Some(socket))) => {
                        self.spawn(socket, control)?;
                    }
                    Some((v1::engine_request::Body::Shutdown(_), _)) => accepting = false,
                    Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                    None => return Ok(()),
                }
            }
            self.reap(control)?;
            if check_at.is_some_and(|at| Instant::now() >= at) {
                if self.template.changed() {
                    self.say_ready(control)?;
                }
                check_at = interval.map(|interval| Instant::now() + interval);
            }
        }
        Ok(())
    }

    /// Waits for the host, a worker's end, or the time; true where the host has said something.
    fn wait(&self, control: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<bool> {
        let mut polled = vec![PollFd::from_borrowed_fd(control, PollFlags::IN)];
        let ends = self.workers.iter();
        polled.extend(ends.map(|(pidfd, _)| PollFd::new(pidfd, PollFlags::IN)));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        Ok(polled
            .first()
            .is_some_and(|host| !host.revents().is_empty()))
    }

    fn spawn(&mut self, socket: OwnedFd, control: &mut Control<'_>) -> io::Result<()> {
        match self.fork(socket) {
            Ok((pidfd, pid)) => {
                let spawned = v1::WorkerSpawned {
                    pid,
                    error: String::new(),
                };
                let body = v1::engine_reply::Body::WorkerSpawned(spawned);
                control.send(body, Some(pidfd.as_fd()))?;
                self.workers.push((pidfd, pid));
                Ok(())
            }
            Err(error) => {
                let spawned = v1::WorkerSpawned {
                    pid: 0,
                    error: error.to_string(),
                };
                control.send(v1::engine_reply::Body::WorkerSpawned(spawned), None)
            }
        }
    }

    /// Forks a worker that serves this socket.
    fn fork(&self, socket: OwnedFd) -> io::Result<(OwnedFd, u32)> {
        let template = rustix::process::getpid();
        match sys::fork()? {
            Forked::Child => serve::serve(
                &self.template,
                &self.setup,
                self.filter.id(),
                socket,
                self.null.as_fd(),
                template,
            ),
            Forked::Parent(pid) => {
                // Only this process reaps its children, and not before this: the id is still its.
                let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
                Ok((pidfd, pid.as_raw_nonzero().get().unsigned_abs()))
            }
        }
    }

    /// Tells the host which workers have ended, and how.
    fn reap(&mut self, control: &mut Control<'_>) -> io::Result<()> {
        let mut ended = Vec::new();
        for (index, (pidfd, _)) in self.workers.iter().enumerate() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if let Some(status) = waitid(WaitId::PidFd(pidfd.as_fd()), options)? {
                ended.push((index, status));
            }
        }
        for (index, status) in ended.into_iter().rev() {
            let (_, pid) = self.workers.swap_remove(index);
            let number = |value: Option<i32>| value.unwrap_or(0).unsigned_abs();
            let exited = v1::WorkerExited {
                pid,
                signal: number(status.terminating_signal()),
                code: number(status.exit_status()),
            };
            control.send(v1::engine_reply::Body::WorkerExited(exited), None)?;
        }
        Ok(())
    }
}
