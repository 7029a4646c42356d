//! Actions of the core, with what they need taken out of the files held; then carried out.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent_core::{Action, Answered, Fallen, FileKey, Input, Source, Ticket, Why};
use bytes::Bytes;
use daemon::log::escape;
use fanotify::{Answer, FileIdentity, PermissionEvent};
use link::Priority;
use model::{AccessClass, Digest, Disposition, LateAction, Outcome, UnscannedReason};
use proto::v1::{self, envelope::Body};

use super::content::{Along, Content, key_of};
use super::interpreter;
use super::standing::{Decided, Standing};
use super::workers::{self, AtOnce, HashTask, UploadTask};
use super::{Gate, Held};
use crate::guard::container;

/// What the caller of the core has at hand for its actions.
#[derive(Default)]
pub(super) struct AtHand<'a> {
    /// What goes along of a ticket's content, from its hashing.
    pub(super) along: Option<(Ticket, Along)>,
    /// What the appliance wants of a content.
    pub(super) need: v1::Need,
    /// Where the caller may hash a small file itself.
    pub(super) at_once: Option<(Ticket, AtOnce<'a>)>,
}

/// Something to do, with all it needs.
pub(super) enum Deed {
    Answer {
        event: PermissionEvent,
        disposition: Disposition,
        why: Why,
        opened_at: Duration,
        /// Whose way it went, where it did not join another one's.
        content: Option<Arc<Content>>,
    },
    Suspect {
        pid: i32,
        key: FileKey,
        opened_at: Duration,
    },
    Place(Decided),
    Lift,
    Hash(HashTask),
    Check {
        check: Question,
        content: Arc<Content>,
        along: Along,
    },
    Upload(UploadTask),
    Cancel {
        request_id: u64,
    },
    LedgerAdd(Arc<Content>, UnscannedReason),
    LedgerPaid(Arc<Content>),
    LedgerUnpaid(Arc<Content>),
    Late(Arc<Content>, Digest),
    /// Its drop closes the last descriptor, outside the lock.
    Close(#[expect(dead_code, reason = "held for its drop")] Arc<Content>),
}

impl Deed {
    pub(super) fn hashes(&self, of: Ticket) -> bool {
        matches!(self, Self::Hash(task) if task.ticket == of)
    }
}

/// A check without its content.
pub(super) struct Question {
    request_id: u64,
    digest: Digest,
    size: u64,
    class: AccessClass,
    patience: Option<Duration>,
}

/// The files held, and what else actions need.
pub(super) struct Preparation<'a, 'b> {
    pub(super) held: &'a mut HashMap<Ticket, Held>,
    pub(super) at_hand: &'a mut AtHand<'b>,
    pub(super) standing: &'a Standing,
}

impl Preparation<'_, '_> {
    fn content(&self, ticket: Ticket) -> Option<Arc<Content>> {
        self.held.get(&ticket)?.content.clone()
    }

    /// Takes what an action needs. `None` only where the core breaks its own rules: then there
    /// is nothing left to do it with.
    pub(super) fn deed(&mut self, action: Action) -> Option<Deed> {
        Some(match action {
            Action::Answer {
                ticket,
                disposition,
                why,
            } => self.answer(ticket, disposition, why)?,
            Action::Provisional { ticket } => {
                let held = self.held.get(&ticket)?;
                Deed::Suspect {
                    pid: held.event.as_ref()?.pid,
                    key: held.key,
                    opened_at: held.opened_at,
                }
            }
            Action::Place {
                ticket,
                standing,
                key,
            } => {
                self.standing.announce(standing);
                Deed::Place(Decided {
                    id: standing,
                    key,
                    content: self.content(ticket)?,
                })
            }
            Action::Lift(taken) => {
                self.standing.take_back(taken);
                Deed::Lift
            }
            Action::Digest { ticket, class } => Deed::Hash(HashTask {
                ticket,
                class,
                content: self.content(ticket)?,
            }),
            Action::Check {
                request_id,
                ticket,
                digest,
                size,
                class,
                patience,
            } => Deed::Check {
                check: Question {
                    request_id,
                    digest,
                    size,
                    class,
                    patience,
                },
                content: self.content(ticket)?,
                along: self.along_of(ticket),
            },
            Action::Upload {
                request_id,
                ticket,
                class,
            } => Deed::Upload(UploadTask {
                request_id,
                class,
                content: self.content(ticket)?,
                need: std::mem::take(&mut self.at_hand.need),
            }),
            Action::Cancel { request_id } => Deed::Cancel { request_id },
            Action::LedgerAdd { ticket, reason } => Deed::LedgerAdd(self.content(ticket)?, reason),
            Action::LedgerPaid { ticket } => Deed::LedgerPaid(self.content(ticket)?),
            Action::LedgerUnpaid { ticket } => Deed::LedgerUnpaid(self.content(ticket)?),
            Action::Late { ticket, digest } => Deed::Late(self.content(ticket)?, digest),
            Action::Release { ticket } => Deed::Close(self.release(ticket)?),
        })
    }

    fn answer(&mut self, ticket: Ticket, disposition: Disposition, why: Why) -> Option<Deed> {
        let held = self.held.get_mut(&ticket)?;
        let event = held.event.take()?;
        let opened_at = held.opened_at;
        let content = held.content.clone();
        if held.content.is_none() {
            self.held.remove(&ticket);
        }
        Some(Deed::Answer {
            event,
            disposition,
            why,
            opened_at,
            content,
        })
    }

    fn along_of(&mut self, ticket: Ticket) -> Along {
        let along = self.at_hand.along.take_if(|(of, _)| *of == ticket);
        along.map(|(_, along)| along).unwrap_or_default()
    }

    /// An entry goes once it is both answered and released.
    fn release(&mut self, ticket: Ticket) -> Option<Arc<Content>> {
        let held = self.held.get_mut(&ticket)?;
        let content = held.content.take();
        if held.event.is_none() {
            self.held.remove(&ticket);
        }
        content
    }
}

impl Gate {
    /// Carries a deed out; what came of it may be an input again.
    pub(super) fn do_deed(
        &self,
        deed: Deed,
        at_once: &mut Option<(Ticket, AtOnce<'_>)>,
    ) -> Option<Input> {
        // Its lease would hold up whoever is answered now and wants to write.
        let at_once = at_once.take().filter(|(of, _)| deed.hashes(*of));
        let at_once = at_once.map(|(_, at_once)| at_once);
        match deed {
            Deed::Answer {
                event,
                disposition,
                why,
                opened_at,
                content,
            } => {
                self.answer(event, (disposition, why), opened_at, content.as_deref());
                None
            }
            Deed::Place(decided) => {
                let standing = decided.id;
                let stands = self.standing.place_soon(decided);
                let why = Fallen::NotPlaced;
                (!stands).then_some(Input::Fallen { standing, why })
            }
            Deed::Lift => {
                self.standing.lift();
                None
            }
            Deed::Suspect {
                pid,
                key,
                opened_at,
            } => {
                self.suspect(pid, key, self.now().saturating_sub(opened_at));
                None
            }
            Deed::Hash(task) => self.hash(task, at_once),
            Deed::Check {
                check,
                content,
                along,
            } => self.ask(&check, &content, along),
            Deed::Upload(task) => {
                if let Err(task) = self.queues.upload(task) {
                    self.end_data(&task, Some(UnscannedReason::Overloaded));
                }
                None
            }
            Deed::Cancel { request_id } => {
                if let Some(client) = self.client() {
                    client.cancel(request_id);
                }
                None
            }
            Deed::LedgerAdd(content, reason) => {
                self.books.add(content.path(), reason);
                None
            }
            Deed::LedgerPaid(content) => {
                self.books.paid(content.path());
                None
            }
            Deed::LedgerUnpaid(content) => {
                if content.before_us {
                    self.books.add(content.path(), UnscannedReason::Other);
                } else {
                    self.books.unpaid(content.path(), self.now());
                }
                None
            }
            Deed::Late(content, digest) => {
                self.late(&content, digest);
                None
            }
            Deed::Close(_) => None,
        }
    }

    fn answer(
        &self,
        event: PermissionEvent,
        (disposition, why): (Disposition, Why),
        opened_at: Duration,
        content: Option<&Content>,
    ) {
        let (file, pid) = (event.file(), event.pid);
        let answer = match disposition {
            Disposition::Allow => Answer::Allow,
            Disposition::Deny => Answer::Deny,
        };
        let taken = event.answer(answer);
        let now = self.now();
        let waited = now.saturating_sub(opened_at);
        if let Err(error) = taken {
            if error.elsewhere {
                return self.answered_before(&file, pid, why, waited);
            }
            self.tally.answers_refused.add(1);
            tracing::debug!(%error, "the kernel refused an answer");
        }
        self.tally.answered(disposition, why, waited);
        if self.trace.wants(why.source) {
            // Which was asked for already where policy or the guarded folders need it.
            let path = match content {
                Some(content) => content.path().to_vec(),
                None => fanotify::path_of(&file).unwrap_or_default(),
            };
            let how = (disposition, why);
            let stages = content.map(|content| &content.stages);
            self.trace.note((path, pid), how, stages, (opened_at, now));
        }
        self.log_answer(&file, pid, disposition, why);
    }

    /// The supervisor had answered this opener, whose budget was over. What the core gives now is
    /// a late verdict; a debt it enters itself.
    fn answered_before(&self, file: &Arc<OwnedFd>, pid: i32, why: Why, waited: Duration) {
        let Ok(identity) = FileIdentity::of(file.as_fd()) else {
            return;
        };
        let key = key_of(&identity);
        self.suspect(pid, key, waited);
        if why.answered == Answered::Malicious {
            let recalled = self.recall_openers(&key);
            let path = fanotify::path_of(file).unwrap_or_default();
            self.told_late(&format!("answered at the deadline{recalled}"), &path);
        }
    }

    /// Answers an opener that the core never sees, because its file cannot be looked at, and
    /// enters the debt.
    pub(super) fn answer_directly(&self, event: PermissionEvent, reason: UnscannedReason) {
        let disposition = self.policy().disposition(&Outcome::unscanned(reason));
        let why = Why {
            answered: Answered::Unscanned(reason),
            source: Source::Local,
        };
        let path = fanotify::path_of(event.fd()).unwrap_or_default();
        self.books.add(&path, reason);
        self.answer(event, (disposition, why), self.now(), None);
    }

    /// Only what a person may want to know; verdicts are logged where they arrive.
    fn log_answer(&self, file: &Arc<OwnedFd>, pid: i32, disposition: Disposition, why: Why) {
        let reason = match (why.source, why.answered) {
            (Source::Verdict, _) => return,
            (_, Answered::Unscanned(reason)) => reason.name(),
            (_, Answered::Error) => "error",
            (_, Answered::Malicious) => "malicious",
            (_, Answered::Clean | Answered::Released) => return,
        };
        let Some(suppressed) = self.lines.unscanned.allow(Instant::now()) else {
            return;
        };
        let path = fanotify::path_of(file).unwrap_or_default();
        let container = container::of(pid).map(|it| it.to_string());
        tracing::warn!(
            path = %escape(&path),
            pid,
            container = container.map(|it| escape(it.as_bytes()).to_string()),
            reason,
            ?disposition,
            suppressed,
            "opened without a verdict of now"
        );
    }

    fn hash(&self, task: HashTask, at_once: Option<AtOnce<'_>>) -> Option<Input> {
        if at_once.is_some_and(|at_once| workers::hash_at_once(self, &task, at_once)) {
            return None;
        }
        let ticket = task.ticket;
        let refused = self.queues.hash(task).is_err();
        refused.then_some(Input::DigestFailed {
            ticket,
            reason: UnscannedReason::Overloaded,
        })
    }

    fn ask(&self, check: &Question, content: &Content, along: Along) -> Option<Input> {
        let Along { bytes, report } = along;
        let request_id = check.request_id;
        let patience_ms = |patience: Duration| {
            // 0 would say that nobody waits.
            u32::try_from(patience.as_millis())
                .unwrap_or(u32::MAX)
                .max(1)
        };
        self.tally.rode_along(bytes.as_ref());
        let filter = self.looking.filter_for(check.size);
        let filter = filter.filter(|_| bytes.is_none());
        // By another one than counts now it would say nothing.
        let report = report.filter(|it| filter.is_some_and(|id| it.filter == id.0));
        if let Some(report) = &report {
            self.tally.reported(report);
        }
        let compressed = bytes
            .as_ref()
            .filter(|_| self.compresses())
            .and_then(|bytes| chunks::compress(bytes));
        // The kernel, and so the deadline, calls it an open.
        let is_run = check.class == AccessClass::Open && interpreter::runs(content.pid, content);
        let class = if is_run {
            AccessClass::Exec
        } else {
            check.class
        };
        let message = v1::Check {
            blake3: check.digest.0.to_vec(),
            size: check.size,
            class: v1::AccessClass::from(class) as i32,
            deadline_ms: check.patience.map_or(0, patience_ms),
            context: Some(content.context()),
            content_compressed: compressed.is_some(),
            content: compressed.map(Bytes::from).or(bytes),
            filter: filter.map_or_else(Vec::new, |id| id.0.to_vec()),
            report,
        };
        content.stages.asked(self.now());
        let envelope = v1::Envelope {
            request_id,
            body: Some(Body::Check(message)),
        };
        let sent = self
            .client()
            .map(|client| client.send(Priority::from(check.class), envelope));
        match sent {
            Some(Ok(())) => None,
            // The link says so itself when it comes back, or has room again.
            Some(Err(_)) | None => Some(Input::NotSent { request_id }),
        }
    }

    fn late(&self, content: &Content, digest: Digest) {
        let recalled = self.recall_openers(&content.key);
        self.told_late(&format!("content {digest}{recalled}"), content.path());
    }

    /// Remembers an opener that is let through without a verdict, if policy wants it killed when
    /// a bad one comes.
    pub(super) fn suspect(&self, pid: i32, key: FileKey, age: Duration) {
        if self.kills_late.load(Ordering::Relaxed) {
            self.suspects.add(pid, key, age);
        }
    }

    /// Does what policy says to those who opened this; told in words.
    fn recall_openers(&self, key: &FileKey) -> String {
        if self.policy().on_late_malicious != LateAction::Kill {
            return String::new();
        }
        let killed = self.suspects.kill(key);
        self.tally.openers_killed.add(killed.pids.len() as u64);
        for pid in &killed.pids {
            tracing::warn!(pid, "killed: it had opened malicious content");
        }
        format!("; killed {:?}, {} had ended", killed.pids, killed.gone)
    }

    fn told_late(&self, what: &str, path: &[u8]) {
        self.send_alert("late_malicious", what, path);
        if let Some(suppressed) = self.lines.late.allow(Instant::now()) {
            tracing::warn!(
                path = %escape(path),
                what,
                suppressed,
                "malicious, and let through before the verdict came"
            );
        }
    }

    /// Tells the appliance's people. Without a link nothing is sent: the ledger tells then.
    pub(crate) fn send_alert(&self, kind: &str, detail: &str, path: &[u8]) {
        let alert = v1::Alert {
            kind: kind.to_owned(),
            detail: detail.to_owned(),
            path: path.to_vec(),
        };
        self.send_control(0, Body::Alert(alert));
    }

    /// A small frame that does not wait behind content; true if the link took it.
    pub(crate) fn send_control(&self, request_id: u64, body: Body) -> bool {
        let envelope = v1::Envelope {
            request_id,
            body: Some(body),
        };
        let sent = self
            .client()
            .map(|client| client.send(Priority::Control, envelope));
        matches!(sent, Some(Ok(())))
    }
}
