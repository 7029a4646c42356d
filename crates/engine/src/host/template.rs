//! The template process: started, asked for workers, listened to, ended.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{FilterPack, Generation};
use prost::Message;
use proto::{ENGINE_PACKET_MAX_BYTES, v1};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

use super::filter;
use super::keeper::Event;
use super::process::{Broken, WorkerProcess};
use super::spec::{EngineSpec, Sandboxing, StartError};
use crate::packet::{self, HELLO_JOB_ID};
use crate::sys;

/// From the request to the newborn's hello: fork, sandbox, warm-up.
const BIRTH_TIMEOUT: Duration = Duration::from_secs(30);
/// A template whose control socket is closed is dead by then, or killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages of an engine that are kept for people.
const MESSAGES_MAX: usize = 100;

/// A template that is ready, and its first workers.
pub(super) struct Started {
    pub(super) template: Template,
    pub(super) loaded: Loaded,
    pub(super) workers: Vec<WorkerProcess>,
}

/// What it has loaded.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) ready: Arc<v1::EngineReady>,
    pub(super) filter: Option<Arc<FilterPack>>,
}

/// The host's handle on a template. Dropped without [`retire`](Template::retire), it is killed.
pub(super) struct Template {
    link: Arc<Link>,
    retire: oneshot::Sender<Duration>,
    gone: oneshot::Receiver<()>,
}

/// What the births need and the listener serves.
pub(super) struct Link {
    control: AsyncFd<OwnedFd>,
    epoch: u64,
    ready: Arc<v1::EngineReady>,
    births: Mutex<Births>,
    gone: AtomicBool,
}

#[derive(Default)]
struct Births {
    /// Requests on their way; the template answers in order.
    asked: VecDeque<oneshot::Sender<Result<Newborn, String>>>,
    /// Who wants to know how a worker ended, by process id (which the kernel does not use again
    /// before the template has reaped it and told us).
    exits: HashMap<u32, oneshot::Sender<v1::WorkerExited>>,
    outgoing: Vec<u8>,
}

struct Newborn {
    pidfd: OwnedFd,
    exit: oneshot::Receiver<v1::WorkerExited>,
}

/// Starts a template and all its workers.
pub(super) async fn start(
    spec: &EngineSpec,
    args: &[OsString],
    epoch: u64,
    events: mpsc::UnboundedSender<Event>,
) -> Result<Started, StartError> {
    let (mut child, control) = spawn(spec, args)?;
    let loading = tokio::time::timeout(spec.load_timeout, load(spec, &control, &mut child));
    let (ready, filter) = loading.await.map_err(|_| StartError::Timeout {
        name: spec.name.clone(),
        limit: spec.load_timeout,
    })??;
    for warning in &ready.warnings {
        tracing::warn!(engine = %spec.name, "{warning}");
    }
    let ready = Arc::new(ready);
    let link = Arc::new(Link {
        control,
        epoch,
        ready: Arc::clone(&ready),
        births: Mutex::default(),
        gone: AtomicBool::new(false),
    });
    let (retire, retired) = oneshot::channel();
    let (left, gone) = oneshot::channel();
    let listener = Listener {
        link: Arc::clone(&link),
        child,
        events,
        retired,
    };
    tokio::spawn(async move {
        listener.run().await;
        let _ = left.send(());
    });
    let template = Template { link, retire, gone };
    let mut workers = Vec::with_capacity(spec.workers);
    for _ in 0..spec.workers {
        let worker = birth(template.link()).await;
        workers.push(worker.map_err(|why| StartError::Failed {
            name: spec.name.clone(),
            errors: vec![why],
        })?);
    }
    Ok(Started {
        template,
        loaded: Loaded { ready, filter },
        workers,
    })
}

fn spawn(spec: &EngineSpec, args: &[OsString]) -> Result<(Child, AsyncFd<OwnedFd>), StartError> {
    let failed = |source| StartError::Spawn {
        name: spec.name.clone(),
        program: spec.program.clone(),
        source,
    };
    let (ours, theirs) = packet::pair().map_err(failed)?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(|e| failed(e.into()))?;
    let child = Command::new(&spec.program)
        .args(args)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let control = sys::watch(ours).map_err(failed)?;
    let setup = v1::Setup {
        memory_max_bytes: spec.memory_max_bytes,
        best_effort: spec.sandbox == Sandboxing::BestEffort,
    };
    let request = request(v1::engine_request::Body::Setup(setup));
    // Where this fails, the program has ended already: reading its first words says how.
    let _ = packet::send(control.get_ref().as_fd(), &request, None, &mut Vec::new());
    Ok((child, control))
}

fn request(body: v1::engine_request::Body) -> v1::EngineRequest {
    v1::EngineRequest { body: Some(body) }
}

/// Waits for the template's first words.
async fn load(
    spec: &EngineSpec,
    control: &AsyncFd<OwnedFd>,
    child: &mut Child,
) -> Result<(v1::EngineReady, Option<Arc<FilterPack>>), StartError> {
    let died = |what: String| StartError::Died {
        name: spec.name.clone(),
        what,
    };
    let mut buffer = vec![0; ENGINE_PACKET_MAX_BYTES];
    match receive(control, &mut buffer).await {
        Ok((v1::engine_reply::Body::Ready(mut ready), fd)) => {
            if Generation::from_slice(&ready.generation).is_none() || ready.name.is_empty() {
                return Err(died(
                    "sent a name or generation that is not valid".to_owned(),
                ));
            }
            ready.warnings.truncate(MESSAGES_MAX);
            let filter = filter::take(&ready, fd).map_err(died)?;
            Ok((ready, filter.map(Arc::new)))
        }
        Ok((v1::engine_reply::Body::Failed(mut failed), _)) => {
            failed.errors.truncate(MESSAGES_MAX);
            Err(StartError::Failed {
                name: spec.name.clone(),
                errors: failed.errors,
            })
        }
        Ok(_) => Err(died("sent something else than its state".to_owned())),
        Err(why) => match tokio::time::timeout(EXIT_TIMEOUT, child.wait()).await {
            Ok(Ok(status)) => Err(died(format!("ended ({status})"))),
            Ok(Err(_)) | Err(_) => Err(died(why)),
        },
    }
}

/// The next message of a template; the error is for people.
async fn receive(
    control: &AsyncFd<OwnedFd>,
    buffer: &mut [u8],
) -> Result<(v1::engine_reply::Body, Option<OwnedFd>), String> {
    let received = control
        .async_io(Interest::READABLE, |socket| packet::recv(socket, buffer))
        .await
        .map_err(|error| format!("control socket: {error}"))?
        .ok_or_else(|| "closed its control socket".to_owned())?;
    let bytes = buffer.get(..received.len).unwrap_or_default();
    let reply = v1::EngineReply::decode(bytes)
        .map_err(|_| "sent a message that cannot be decoded".to_owned())?;
    let body = reply
        .body
        .ok_or_else(|| "sent a message that it cannot know".to_owned())?;
    Ok((body, received.fd))
}

impl Template {
    pub(super) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.link.epoch
    }

    /// True where the process has ended (it may have before anyone counted on it).
    pub(super) fn is_gone(&self) -> bool {
        self.link.gone.load(Acquire)
    }

    /// Lets busy workers finish, at most for that long, then ends everything. Returns when the
    /// process is gone.
    pub(super) async fn retire(self, patience: Duration) {
        let shutdown = request(v1::engine_request::Body::Shutdown(v1::Shutdown {}));
        // Where this fails, the template is gone or stuck; the listener kills it in the end.
        let _ = self.link.send(&shutdown, None, |_| ());
        let _ = self.retire.send(patience);
        let _ = self.gone.await;
    }
}

impl Link {
    fn births(&self) -> MutexGuard<'_, Births> {
        self.births.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends, and does `then` before any answer can be seen.
    fn send(
        &self,
        message: &v1::EngineRequest,
        fd: Option<&OwnedFd>,
        then: impl FnOnce(&mut Births),
    ) -> std::io::Result<()> {
        let mut births = self.births();
        let fd = fd.map(AsFd::as_fd);
        let control = self.control.get_ref().as_fd();
        packet::send(control, message, fd, &mut births.outgoing)?;
        then(&mut births);
        Ok(())
    }
}

/// Asks for a worker and waits for its hello. The error is for people.
pub(super) async fn birth(link: Arc<Link>) -> Result<WorkerProcess, String> {
    tokio::time::timeout(BIRTH_TIMEOUT, deliver(link))
        .await
        .unwrap_or_else(|_| Err("no worker within 30 s".to_owned()))
}

async fn deliver(link: Arc<Link>) -> Result<WorkerProcess, String> {
    let failed = |error: std::io::Error| format!("cannot ask for a worker: {error}");
    let (ours, theirs) = packet::pair().map_err(failed)?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(|e| failed(e.into()))?;
    let (asked, answer) = oneshot::channel();
    let message = request(v1::engine_request::Body::SpawnWorker(v1::SpawnWorker {}));
    link.send(&message, Some(&theirs), |births| {
        births.asked.push_back(asked)
    })
    .map_err(failed)?;
    drop(theirs);
    let newborn = answer
        .await
        .map_err(|_| "the template ended".to_owned())??;
    let ready = Arc::clone(&link.ready);
    let mut worker =
        WorkerProcess::new(ours, newborn.pidfd, newborn.exit, ready, link.epoch).map_err(failed)?;
    match worker.report(HELLO_JOB_ID).await {
        Ok(hello) if hello.error.is_empty() => Ok(worker),
        Ok(hello) => Err(format!("worker cannot start: {}", hello.error)),
        Err(Broken::Ended) => {
            let cause = worker.cause_of_death().await;
            Err(format!("worker died at birth: {cause}"))
        }
        Err(Broken::Nonsense(what)) => Err(match worker.kill() {
            Ok(()) => format!("worker sent {what} at birth"),
            Err(error) => format!("worker sent {what} at birth and cannot be killed: {error}"),
        }),
    }
}

/// Reads what the template says until it is gone, and owns its process.
struct Listener {
    link: Arc<Link>,
    child: Child,
    events: mpsc::UnboundedSender<Event>,
    retired: oneshot::Receiver<Duration>,
}

impl Listener {
    async fn run(mut self) {
        let mut buffer = vec![0; ENGINE_PACKET_MAX_BYTES];
        let why = tokio::select! {
            why = listen(&self.link, &self.events, &mut buffer) => why,
            // Dropped without a word: killed at once.
            patience = &mut self.retired => {
                let rest = listen(&self.link, &self.events, &mut buffer);
                let rest = tokio::time::timeout(patience.unwrap_or_default(), rest);
                rest.await.unwrap_or_else(|_| "took too long to end".to_owned())
            }
        };
        let status = match tokio::time::timeout(EXIT_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                let _ = self.child.kill().await;
                "killed".to_owned()
            }
        };
        self.link.gone.store(true, Release);
        // Births on their way fail, exits are unknown.
        *self.link.births() = Births::default();
        let _ = self.events.send(Event::TemplateGone {
            epoch: self.link.epoch,
            why: format!("{why}; {status}"),
        });
    }
}

/// Serves messages until there are no more; says why.
async fn listen(link: &Link, events: &mpsc::UnboundedSender<Event>, buffer: &mut [u8]) -> String {
    loop {
        match receive(&link.control, buffer).await {
            Ok((v1::engine_reply::Body::WorkerSpawned(spawned), pidfd)) => {
                let mut births = link.births();
                let Some(asked) = births.asked.pop_front() else {
                    return "sent a worker that nobody asked for".to_owned();
                };
                let newborn = match pidfd {
                    Some(pidfd) => {
                        let (ended, exit) = oneshot::channel();
                        births.exits.insert(spawned.pid, ended);
                        Ok(Newborn { pidfd, exit })
                    }
                    None => Err(format!("cannot fork a worker: {}", spawned.error)),
                };
                let _ = asked.send(newborn);
            }
            Ok((v1::engine_reply::Body::WorkerExited(exited), _)) => {
                if let Some(ended) = link.births().exits.remove(&exited.pid) {
                    let _ = ended.send(exited);
                }
            }
            Ok((v1::engine_reply::Body::Ready(_), _)) => {
                let _ = events.send(Event::Changed { epoch: link.epoch });
            }
            Ok((v1::engine_reply::Body::Failed(failed), _)) => {
                return format!("failed: {}", failed.errors.join("; "));
            }
            Err(why) => return why,
        }
    }
}
