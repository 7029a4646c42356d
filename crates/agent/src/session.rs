//! What an appliance says, handed to the gate on the link's own thread: the opener's answer is
//! written to the kernel before anything else happens.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use agent_core::{Input, Ticket};
use crossbeam_channel::Sender;
use daemon::log::escape;
use link::client::Handler;
use model::{Coverage, Digest, Generation, Outcome, Policy, Verdict};
use proto::v1::{self, envelope::Body};

use crate::gate::Gate;
use crate::gate::content::Content;
use crate::guard::container;
use crate::turns::Said;
use crate::{AgentConfig, machine};

/// Who answers, for people.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Peer {
    /// The appliance's name; empty before the first session.
    pub(crate) appliance: String,
    /// Its content generation.
    pub(crate) generation: String,
    /// Why there is no link, as far as is known.
    pub(crate) trouble: String,
}

/// The link's handler.
pub(crate) struct Session {
    gate: Arc<Gate>,
    to: Outlets,
    peer: Arc<Mutex<Peer>>,
    follows_lists: bool,
    /// Where this machine's facts are found.
    sys_dir: PathBuf,
}

/// Who takes what an appliance says.
pub(crate) struct Outlets {
    pub(crate) orders: Sender<v1::Order>,
    pub(crate) renewed: Sender<(u64, v1::Renewed)>,
    pub(crate) rekey: Sender<String>,
    pub(crate) turns: Sender<Said>,
}

impl Session {
    pub(crate) fn new(
        gate: Arc<Gate>,
        to: Outlets,
        peer: Arc<Mutex<Peer>>,
        config: &AgentConfig,
    ) -> Self {
        Self {
            gate,
            to,
            peer,
            follows_lists: config.appliance.follows_lists(),
            sys_dir: config.sys_dir.clone(),
        }
    }

    fn change_peer(&self, change: impl FnOnce(&mut Peer)) {
        change(&mut self.peer.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn replied(&self, request_id: u64, reply: v1::CheckReply) {
        self.gate.foresight.learn(reply.cached);
        let contents = self.gate.contents_of(request_id);
        let verdict = verdict_of(reply.verdict);
        for (_, content) in &contents {
            content.stages.replied(self.gate.now());
            content.stages.covered(&verdict.coverage);
        }
        let changed = match verdict.outcome {
            Outcome::Clean => contents
                .iter()
                .filter(|(_, content)| content.has_changed())
                .map(|(ticket, _)| *ticket)
                .collect(),
            _ => Vec::new(),
        };
        let outcome = match verdict.outcome {
            Outcome::Clean => None,
            ref other => Some(other.clone()),
        };
        let is_changed = |ticket: &Ticket| changed.contains(ticket);
        let unchanged = contents.iter().filter(|(ticket, _)| !is_changed(ticket));
        let to_note: Vec<_> = match verdict.outcome {
            Outcome::Clean => unchanged.map(|(_, content)| content.clone()).collect(),
            _ => Vec::new(),
        };
        let proved = match (&verdict.outcome, verdict.digest) {
            (Outcome::Malicious { .. }, digest) => digest,
            _ => None,
        };
        if let Some(digest) = proved {
            self.gate.found_malicious(digest);
        }
        self.gate.input(Input::Reply {
            request_id,
            verdict,
            released: reply.released,
            changed,
        });
        // Openers were answered; where their files are is of use when rules change.
        for content in to_note {
            if let Some((digest, key)) = content.judged() {
                self.gate.whereabouts.note(&digest, &key, content.path());
            }
        }
        match (reply.order, proved) {
            (Some(order), Some(_)) => self.order(order),
            // Nothing is removed for a verdict on content that the appliance never had whole.
            (Some(order), None) => self.refuse(order, "the content was not judged as a whole"),
            (None, _) => {}
        }
        if let Some(outcome) = outcome {
            for (_, content) in contents {
                self.log_verdict(&outcome, reply.released, &content);
            }
        }
    }

    fn order(&self, order: v1::Order) {
        if let Err(refused) = self.to.orders.try_send(order) {
            let why = "too many orders wait to be carried out";
            self.refuse(refused.into_inner(), why);
        }
    }

    fn refuse(&self, order: v1::Order, why: &str) {
        let result = v1::OrderResult {
            order_id: order.order_id,
            status: v1::OrderStatus::Failed as i32,
            detail: why.to_owned(),
            ..v1::OrderResult::default()
        };
        self.gate.send_control(0, Body::OrderResult(result));
    }

    fn log_verdict(&self, outcome: &Outcome, released: bool, content: &Content) {
        if let (Outcome::Malicious { .. }, true, false) = (outcome, content.before_us, released) {
            let detail = format!("process {}", content.pid);
            self.gate
                .send_alert("malicious_before_start", &detail, content.path());
        }
        let Some(suppressed) = self.gate.lines.malicious.allow(Instant::now()) else {
            return;
        };
        let path = escape(content.path());
        match outcome {
            Outcome::Malicious { detections, .. } => {
                let first = detections.first();
                let name = first.map_or("", |detection| detection.name.as_str());
                let engine = first.map_or("", |detection| detection.engine.as_str());
                let detections = detections.len();
                let container = container::of(content.pid).map(|it| it.to_string());
                tracing::warn!(
                    %path,
                    pid = content.pid,
                    container = container.map(|it| escape(it.as_bytes()).to_string()),
                    name = %escape(name.as_bytes()),
                    engine = %escape(engine.as_bytes()),
                    detections,
                    released,
                    suppressed,
                    "malicious"
                );
            }
            Outcome::Unscanned { reason, detail } => {
                let reason = reason.name();
                let detail = escape(detail.as_bytes());
                tracing::info!(%path, reason, %detail, suppressed, "not scanned");
            }
            Outcome::Error { message } => {
                let message = escape(message.as_bytes());
                tracing::error!(%path, %message, suppressed, "the appliance failed");
            }
            Outcome::Clean => {}
        }
    }
}

/// Whatever cannot be understood is an error, never a verdict.
fn verdict_of(message: Option<v1::Verdict>) -> Verdict {
    let converted = message.map(Verdict::try_from);
    let problem = match converted {
        Some(Ok(verdict)) => return verdict,
        Some(Err(error)) => error.to_string(),
        None => "verdict is not set".to_owned(),
    };
    Verdict {
        outcome: Outcome::Error {
            message: format!("the appliance's reply cannot be used: {problem}"),
        },
        coverage: Coverage::none(0),
        generation: Generation([0; 16]),
        digest: None,
        sha256: None,
    }
}

/// What a Welcome says that the gate needs.
struct Terms {
    generation: Generation,
    policy: Policy,
    in_flight_max: usize,
}

fn terms_of(welcome: &v1::Welcome) -> Result<Terms, String> {
    let generation = Generation::from_slice(&welcome.generation);
    let policy = welcome.policy.clone().ok_or("policy is not set")?;
    Ok(Terms {
        generation: generation.ok_or("generation is not valid")?,
        policy: Policy::try_from(policy).map_err(|error| error.to_string())?,
        in_flight_max: usize::try_from(welcome.in_flight_max).unwrap_or(usize::MAX),
    })
}

impl Session {
    /// Begins with an appliance; `is_move`: the one before still answers what it was asked.
    fn begin(&self, welcome: &v1::Welcome, is_move: bool) {
        let Terms {
            generation,
            policy,
            in_flight_max,
        } = match terms_of(welcome) {
            Ok(terms) => terms,
            Err(problem) => {
                // Without its policy nothing it says can be acted on.
                tracing::error!(problem, "the appliance's welcome cannot be used");
                self.change_peer(|peer| peer.trouble = problem);
                return;
            }
        };
        let appliance = escape(welcome.appliance.as_bytes()).to_string();
        self.gate.books.forgive(self.gate.now());
        if is_move {
            self.gate.delivery_lost();
            self.gate.input(Input::LinkMoved {
                generation,
                policy,
                in_flight_max,
            });
            tracing::info!(appliance, %generation, "moved to another appliance");
        } else {
            self.gate.input(Input::LinkUp {
                generation,
                policy,
                in_flight_max,
            });
            tracing::info!(appliance, %generation, "link is up");
            // A handshake runs through much code that nothing else does.
            supervisor::give_back_code();
        }
        self.gate.sessions.fetch_add(1, Ordering::Relaxed);
        self.gate.bell.ring();
        self.change_peer(|peer| {
            *peer = Peer {
                appliance,
                generation: generation.to_string(),
                trouble: String::new(),
            };
        });
    }

    fn said_of_turns(&self, said: Said) {
        // One too many answers no question.
        let _ = self.to.turns.try_send(said);
        self.gate.bell.ring();
    }

    fn place(&self, placement: &v1::Placement) {
        let Some(client) = self.gate.client().filter(|_| self.follows_lists) else {
            return;
        };
        match client.set_route(placement.epoch, &placement.appliances) {
            Ok(()) => {
                // It is to be written down.
                self.gate.bell.ring();
                tracing::info!(
                    epoch = placement.epoch,
                    appliances = placement.appliances.join(" "),
                    "another list of appliances"
                );
            }
            Err(refused) => {
                self.gate.tally.lists_refused.add(1);
                tracing::debug!(%refused, "a list of appliances was refused");
            }
        }
    }
}

impl Handler for Session {
    fn greeting(&self, hello: &mut v1::Hello) {
        // It may be a copy of the machine that it was, in the middle of its work.
        hello.machine = Some((&machine::facts(&self.sys_dir)).into());
        let channel = self.gate.attached.get();
        hello.channel = channel.map_or_else(Vec::new, |id| id.0.to_vec());
    }

    fn up(&self, welcome: &v1::Welcome) {
        self.begin(welcome, false);
    }

    fn moved(&self, welcome: &v1::Welcome) {
        self.begin(welcome, true);
    }

    fn lost(&self, request_ids: &[u64]) {
        for request_id in request_ids.iter().copied() {
            self.gate.input(Input::NotSent { request_id });
        }
    }

    fn down(&self, why: &str) {
        self.gate.input(Input::LinkDown);
        self.gate.delivery_lost();
        self.gate.whereabouts.forget_wanted();
        self.gate.bell.ring();
        let why = escape(why.as_bytes()).to_string();
        tracing::warn!(why, "link is down");
        self.change_peer(|peer| peer.trouble = why);
    }

    fn frame(&self, envelope: v1::Envelope) {
        let request_id = envelope.request_id;
        match envelope.body {
            Some(Body::CheckReply(reply)) => self.replied(request_id, reply),
            Some(Body::Need(need)) => self.gate.needed(request_id, need),
            Some(Body::ContentChanged(changed)) => {
                if let Some(generation) = Generation::from_slice(&changed.generation) {
                    self.gate.input(Input::ContentChanged { generation });
                    tracing::info!(%generation, "content generation changed");
                    self.change_peer(|peer| peer.generation = generation.to_string());
                }
            }
            Some(Body::Policy(policy)) => match Policy::try_from(policy) {
                Ok(policy) => {
                    self.gate.input(Input::PolicyChanged { policy });
                    self.gate.bell.ring();
                    tracing::info!("policy changed");
                }
                Err(error) => tracing::error!(%error, "policy refused; the old one counts"),
            },
            Some(Body::Recall(recall)) => {
                let digests = recall.digests.iter();
                let digests = digests.filter_map(|it| it.as_slice().try_into().ok());
                self.gate.recall(&digests.collect::<Vec<_>>());
            }
            Some(Body::Recheck(recheck)) => {
                let digests = recheck.digests.iter();
                let digests = digests.filter_map(|it| Digest::from_slice(it));
                self.gate.whereabouts.want(digests);
                self.gate.bell.ring();
            }
            Some(Body::AllowlistOffers(offers)) => self.gate.offered(offers),
            Some(Body::AllowlistPart(part)) => self.gate.part(&part),
            Some(Body::FilterOffer(offer)) => self.gate.filter_offered(&offer),
            Some(Body::FilterPart(part)) => self.gate.filter_part(&part),
            Some(Body::Order(order)) => self.order(order),
            Some(Body::Placement(placement)) => self.place(&placement),
            Some(Body::Turn(turn)) => self.said_of_turns(Said::Answer(request_id, turn)),
            Some(Body::TurnOver(over)) => self.said_of_turns(Said::Over(over.turn_id)),
            Some(Body::Renewed(renewed)) => {
                // A second answer to one question is none.
                let _ = self.to.renewed.try_send((request_id, renewed));
                self.gate.bell.ring();
            }
            Some(Body::Rekey(rekey)) => {
                // Said twice is said.
                let why = escape(rekey.reason.as_bytes()).to_string();
                let _ = self.to.rekey.try_send(why);
                self.gate.bell.ring();
            }
            _ => {}
        }
    }

    fn unreachable(&self, appliance: &str, why: &str) {
        let why = escape(why.as_bytes()).to_string();
        tracing::warn!(appliance, why, "appliance unreachable");
        self.change_peer(|peer| peer.trouble = format!("{appliance}: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_an_error() {
        for message in [None, Some(v1::Verdict::default())] {
            let verdict = verdict_of(message);
            assert!(matches!(verdict.outcome, Outcome::Error { .. }));
        }
        assert!(terms_of(&v1::Welcome::default()).is_err());
    }
}
