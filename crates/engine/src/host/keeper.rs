//! The keeper: one task for each engine that does what is rare. It replaces workers that ended and
//! templates that died, with growing pauses where that does not help, and it swaps templates.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::Shared;
use super::process::WorkerProcess;
use super::spec::StartError;
use super::template::{self, Started, Template};

/// Pause after the first worker that died at birth; doubled for each one after it.
const BIRTH_PAUSE_MIN: Duration = Duration::from_millis(100);
/// And the longest.
const BIRTH_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Pause after a template that died soon after its start; doubled for each one after it.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(500);
/// And the longest.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A template that lived this long is started again at once.
const RESTART_PAUSE_FORGIVEN: Duration = Duration::from_secs(60);
/// Time beyond a job's own that a replaced template gets for its last jobs.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);

/// What the keeper is told.
pub(super) enum Event {
    /// A worker was lost in use.
    Lost { epoch: u64 },
    /// A worker is ready.
    Born(WorkerProcess),
    /// There will be none.
    Stillborn { epoch: u64, why: String },
    /// Time to ask for a worker again.
    BirthDue { epoch: u64 },
    /// The template says that what it judges by has changed.
    Changed { epoch: u64 },
    /// The template ended.
    TemplateGone { epoch: u64, why: String },
    /// Time to start a template again.
    RestartDue,
    /// A new template is ready, or will not be.
    Started(Result<Started, StartError>),
    /// Replace the template.
    Reload {
        args: Option<Vec<OsString>>,
        reply: Option<Reply>,
    },
    /// End, and say so.
    Stop(Option<oneshot::Sender<()>>),
}

type Reply = oneshot::Sender<Result<(), StartError>>;

struct Start {
    args: Option<Vec<OsString>>,
    reply: Option<Reply>,
    /// The template died: this is no reload.
    is_restart: bool,
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    inbox: mpsc::UnboundedReceiver<Event>,
    /// Arguments of the running template, and of the next.
    args: Vec<OsString>,
    template: Option<Template>,
    started_at: Instant,
    epochs: u64,
    birth_failures: u32,
    restart_failures: u32,
    /// The start under way, and those that wait for it.
    starting: Option<Start>,
    queue: VecDeque<Start>,
}

impl Keeper {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbox: mpsc::UnboundedReceiver<Event>,
        first: Started,
    ) -> Self {
        shared.pool.swap(first.template.epoch(), first.workers);
        Self {
            args: shared.spec.args.clone(),
            template: Some(first.template),
            started_at: Instant::now(),
            epochs: 1,
            birth_failures: 0,
            restart_failures: 0,
            starting: None,
            queue: VecDeque::new(),
            shared,
            inbox,
        }
    }

    pub(super) async fn run(mut self) {
        let mut stopped = None;
        while let Some(event) = self.inbox.recv().await {
            match event {
                Event::Stop(done) => {
                    stopped = done;
                    break;
                }
                event => self.handle(event),
            }
        }
        self.shared.pool.close();
        if let Some(template) = self.template.take() {
            template.retire(Duration::ZERO).await;
        }
        if let Some(done) = stopped {
            let _ = done.send(());
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Lost { epoch } | Event::BirthDue { epoch } => self.ask_for_worker(epoch),
            Event::Born(worker) => {
                self.birth_failures = 0;
                self.shared.pool.add(worker);
            }
            Event::Stillborn { epoch, why } => self.stillborn(epoch, &why),
            Event::Changed { epoch } => {
                // Said again by the template until it is replaced: one at a time is enough.
                if self.is_current(epoch) && self.starting.is_none() {
                    info!(engine = %self.shared.spec.name, "rules changed underneath");
                    self.start(None, None, false);
                }
            }
            Event::TemplateGone { epoch, why } => self.template_gone(epoch, &why),
            Event::RestartDue => {
                if self.template.is_none() {
                    self.start(None, None, true);
                }
            }
            Event::Started(result) => self.started(result),
            Event::Reload { args, reply } => self.start(args, reply, false),
            // Handled by the loop.
            Event::Stop(_) => {}
        }
    }

    fn is_current(&self, epoch: u64) -> bool {
        self.template.as_ref().is_some_and(|t| t.epoch() == epoch)
    }

    fn ask_for_worker(&mut self, epoch: u64) {
        let Some(template) = self.template.as_ref().filter(|t| t.epoch() == epoch) else {
            return;
        };
        let link = template.link();
        let events = self.shared.events.clone();
        tokio::spawn(async move {
            let event = match template::birth(link).await {
                Ok(worker) => Event::Born(worker),
                Err(why) => Event::Stillborn { epoch, why },
            };
            let _ = events.send(event);
        });
    }

    fn stillborn(&mut self, epoch: u64, why: &str) {
        if !self.is_current(epoch) {
            return;
        }
        let pause = doubled(BIRTH_PAUSE_MIN, BIRTH_PAUSE_MAX, self.birth_failures);
        self.birth_failures = self.birth_failures.saturating_add(1);
        warn!(engine = %self.shared.spec.name, ?pause, "{why}");
        self.later(pause, Event::BirthDue { epoch });
    }

    fn template_gone(&mut self, epoch: u64, why: &str) {
        if !self.is_current(epoch) {
            return;
        }
        self.template = None;
        self.shared.counters.restarts.fetch_add(1, Relaxed);
        // Its workers have died with it; no epoch is current until the next one is there.
        self.shared.pool.swap(0, Vec::new());
        if self.started_at.elapsed() >= RESTART_PAUSE_FORGIVEN {
            self.restart_failures = 0;
        }
        warn!(engine = %self.shared.spec.name, "engine process ended: {why}");
        self.restart_later();
    }

    fn restart_later(&mut self) {
        let pause = match self.restart_failures {
            0 => Duration::ZERO,
            n => doubled(RESTART_PAUSE_MIN, RESTART_PAUSE_MAX, n - 1),
        };
        self.restart_failures = self.restart_failures.saturating_add(1);
        self.later(pause, Event::RestartDue);
    }

    fn later(&self, pause: Duration, event: Event) {
        let events = self.shared.events.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            let _ = events.send(event);
        });
    }

    /// Starts a template in the background; one at a time.
    fn start(&mut self, args: Option<Vec<OsString>>, reply: Option<Reply>, is_restart: bool) {
        self.queue.push_back(Start {
            args,
            reply,
            is_restart,
        });
        self.start_next();
    }

    fn start_next(&mut self) {
        if self.starting.is_some() {
            return;
        }
        let Some(next) = self.queue.pop_front() else {
            return;
        };
        self.epochs += 1;
        let epoch = self.epochs;
        let args = next.args.clone().unwrap_or_else(|| self.args.clone());
        let shared = Arc::clone(&self.shared);
        let events = self.shared.events.clone();
        tokio::spawn(async move {
            let result = template::start(&shared.spec, &args, epoch, events.clone()).await;
            let _ = events.send(Event::Started(result));
        });
        self.starting = Some(next);
    }

    fn started(&mut self, result: Result<Started, StartError>) {
        let Some(start) = self.starting.take() else {
            return;
        };
        let answer = match result {
            Ok(started) => {
                self.swap(started);
                if let Some(args) = start.args {
                    self.args = args;
                }
                if !start.is_restart {
                    self.shared.counters.reloads.fetch_add(1, Relaxed);
                }
                Ok(())
            }
            Err(error) => {
                warn!(engine = %self.shared.spec.name, "{error}");
                if !start.is_restart {
                    self.shared.counters.reloads_failed.fetch_add(1, Relaxed);
                }
                Err(error)
            }
        };
        if let Some(reply) = start.reply {
            let _ = reply.send(answer);
        }
        // A restart that failed, or one that a failed reload kept waiting.
        if self.template.is_none() && self.queue.is_empty() {
            self.restart_later();
        }
        self.start_next();
    }

    fn swap(&mut self, started: Started) {
        *self.shared.loaded() = started.loaded;
        let epoch = started.template.epoch();
        self.shared.pool.swap(epoch, started.workers);
        let old = self.template.replace(started.template);
        self.started_at = Instant::now();
        self.birth_failures = 0;
        if let Some(old) = old {
            let patience = self.shared.spec.job_timeout + DRAIN_MARGIN;
            tokio::spawn(old.retire(patience));
        }
        info!(engine = %self.shared.spec.name, epoch, "engine swapped in");
        if self.template.as_ref().is_some_and(Template::is_gone) {
            // Its end was told while it was nobody's template yet.
            self.template_gone(epoch, "ended as soon as it was ready");
        }
    }
}

fn doubled(min: Duration, max: Duration, times: u32) -> Duration {
    min.saturating_mul(1 << times.min(16)).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pause = |n| doubled(BIRTH_PAUSE_MIN, BIRTH_PAUSE_MAX, n);
        assert_eq!(pause(0), BIRTH_PAUSE_MIN);
        assert_eq!(pause(1), 2 * BIRTH_PAUSE_MIN);
        assert_eq!(pause(7), BIRTH_PAUSE_MAX);
        assert_eq!(pause(u32::MAX), BIRTH_PAUSE_MAX);
    }
}
