//! This guest as a member of its fleet: enrolled where it is not, its certificate renewed, and asked
//! for an identity of its own where it is a copy. Whatever comes of that, the session goes on.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use daemon::log::escape;
use daemon::signal::Stop;
use model::Machine;
use pki::{GuestKey, Identity};
use proto::v1::{self, envelope::Body};

use crate::again::Again;
use crate::bell::Bell;
use crate::credentials::{Credentials, CredentialsError, Home};
use crate::dialer::{DialError, Dialer};
use crate::enroller::Enroller;
use crate::gate::Gate;
use crate::membership::{Asking, Membership};
use crate::orders::chain;
use crate::placed::Placed;
use crate::{AgentConfig, STACK_BYTES, machine, origin};

/// What was asked for and not answered is asked for again.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The first pause after an identity of its own was refused; it doubles up to `enrol.refused_retry_s`.
const REKEY_PAUSE: Duration = Duration::from_secs(5);
/// The first pause after an identity could not be used; it doubles up to `enrol.retry_max_s`.
const ADOPT_PAUSE: Duration = Duration::from_secs(1);
/// When nothing is due.
const NEVER: Duration = Duration::from_secs(6 * 3600);

/// What the fleet says to the member.
pub(crate) struct FromFleet {
    /// Answers, with the id of what they answer.
    pub(crate) renewed: Receiver<(u64, v1::Renewed)>,
    /// That it is a copy, and why.
    pub(crate) rekey: Receiver<String>,
}

/// A certificate that was asked for.
struct Asked {
    request_id: u64,
    at: Instant,
    what: What,
}

enum What {
    /// For the same identity, for this key.
    Renewal(Box<GuestKey>),
    /// For one of its own.
    Rekey,
}

/// This machine is a copy of the one that its identity was given to.
struct Copy {
    key: GuestKey,
    machine: Machine,
    again: Again,
}

/// An identity that is new, and not in use yet.
struct Fresh {
    credentials: Credentials,
    again: Again,
    has_failed: bool,
}

impl Fresh {
    fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            again: Again::at_once(ADOPT_PAUSE),
            has_failed: false,
        }
    }
}

/// What the keeper keeps of this guest's identity.
pub(crate) struct Member {
    config: Arc<AgentConfig>,
    stop: Stop,
    bell: Arc<Bell>,
    dialer: Arc<Dialer>,
    membership: Arc<Membership>,
    from_fleet: FromFleet,
    /// `None`: not enrolled.
    credentials: Option<Credentials>,
    enrolled: (Sender<Credentials>, Receiver<Credentials>),
    is_enrolling: bool,
    asked: Option<Asked>,
    copy: Option<Copy>,
    fresh: Option<Fresh>,
    /// `None`: lists of appliances are not followed, or there is no link yet.
    placed: Option<Placed>,
}

impl Member {
    /// Takes the identity that there is, and begins the link; or begins to enrol.
    ///
    /// # Errors
    /// There is one that cannot be used.
    pub(crate) fn start(
        gate: &Gate,
        config: &Arc<AgentConfig>,
        stop: &Stop,
        dialer: &Arc<Dialer>,
        membership: &Arc<Membership>,
        from_fleet: FromFleet,
    ) -> Result<Self, DialError> {
        let mut member = Self {
            config: Arc::clone(config),
            stop: stop.clone(),
            bell: Arc::clone(&gate.bell),
            dialer: Arc::clone(dialer),
            membership: Arc::clone(membership),
            from_fleet,
            credentials: None,
            enrolled: bounded(1),
            is_enrolling: false,
            asked: None,
            copy: None,
            fresh: None,
            placed: None,
        };
        match Credentials::load(config) {
            Ok(credentials) if !credentials.are_over() => {
                member.adopt(gate, credentials)?;
                member.compare_machine();
            }
            Ok(_) | Err(CredentialsError::NotEnrolled(_)) => member.enrol()?,
            Err(error) => return Err(error.into()),
        }
        Ok(member)
    }

    /// Spreads what a fleet would else do at once.
    pub(crate) fn seed(&self) -> u64 {
        self.credentials.as_ref().map_or(0, Credentials::seed)
    }

    /// Does what is due; whether the guest is another one now.
    pub(crate) fn round(&mut self, gate: &Gate) -> bool {
        let before = self.credentials.as_ref().map(|it| it.guest);
        while let Ok(credentials) = self.enrolled.1.try_recv() {
            self.is_enrolling = false;
            self.fresh = Some(Fresh::new(credentials));
        }
        self.adopt_fresh(gate);
        if self.needs_identity()
            && let Err(error) = self.enrol()
        {
            tracing::error!(error = chain(&error), "cannot enrol");
        }
        if let Ok(why) = self.from_fleet.rekey.try_recv() {
            self.is_copy(&why);
        }
        self.take_answers(gate);
        if gate.is_link_up() {
            self.ask(gate);
        }
        if let (Some(placed), Some(client)) = (&mut self.placed, gate.client()) {
            placed.keep(&client.route());
        }
        before != self.credentials.as_ref().map(|it| it.guest)
    }

    /// How long nothing is to do, unless the bell rings.
    pub(crate) fn pause(&self, gate: &Gate) -> Duration {
        let mut pause = self
            .fresh
            .as_ref()
            .map_or(NEVER, |fresh| fresh.again.left());
        let Some(credentials) = &self.credentials else {
            return pause;
        };
        if let Some(validity) = credentials.validity()
            && credentials.home != Home::Disk
            && !self.is_enrolling
        {
            pause = pause.min(until(validity.not_after));
        }
        if !gate.is_link_up() {
            return pause;
        }
        if let Some(asked) = &self.asked {
            return pause.min(ANSWER_WITHIN.saturating_sub(asked.at.elapsed()));
        }
        if let Some(copy) = &self.copy {
            pause = pause.min(copy.again.left());
        }
        self.renewal_due()
            .map_or(pause, |due| pause.min(until(due)))
    }

    /// There is none that can be used, none that is new, and nobody asks for one.
    fn needs_identity(&self) -> bool {
        let has_one = self.credentials.as_ref().is_some_and(|it| !it.are_over());
        !has_one && self.fresh.is_none() && !self.is_enrolling
    }

    /// Begins to enrol. The thread is not waited for when the agent ends: it may be asking.
    fn enrol(&mut self) -> Result<(), DialError> {
        let enroller = Enroller {
            config: Arc::clone(&self.config),
            stop: self.stop.clone(),
            enrolled: self.enrolled.0.clone(),
            bell: Arc::clone(&self.bell),
            membership: Arc::clone(&self.membership),
        };
        let thread = std::thread::Builder::new().name("enrol".into());
        let thread = thread.stack_size(STACK_BYTES).spawn(|| enroller.run());
        self.is_enrolling = thread.is_ok();
        thread.map(drop).map_err(DialError::Thread)
    }

    /// Takes an identity that is new. What failed once is read anew, as at a restart: somebody may have
    /// put right what is kept of it.
    fn adopt_fresh(&mut self, gate: &Gate) {
        let Some(mut fresh) = self.fresh.take_if(|fresh| fresh.again.is_due()) else {
            return;
        };
        if fresh.has_failed
            && fresh.credentials.home != Home::Process
            && let Ok(credentials) = Credentials::load(&self.config)
        {
            fresh.credentials = credentials;
        }
        if fresh.credentials.are_over() {
            return;
        }
        if let Err(error) = self.adopt(gate, fresh.credentials.clone()) {
            self.adopt_later(fresh, &error);
        }
    }

    fn adopt_later(&mut self, mut fresh: Fresh, error: &DialError) {
        let error = chain(error);
        tracing::error!(error, "the new identity cannot be used; it is tried again");
        self.membership.asking(Asking::Failed(error));
        fresh.has_failed = true;
        fresh
            .again
            .put_off(Duration::from_secs(self.config.enrol.retry_max_s));
        self.fresh = Some(fresh);
    }

    /// Shows these from now on, of a guest that it was not before.
    fn adopt(&mut self, gate: &Gate, credentials: Credentials) -> Result<(), DialError> {
        let had_one = self.credentials.is_some();
        (self.asked, self.copy) = (None, None);
        self.show(gate, credentials, true, had_one)
    }

    /// Whether the identity was given to another machine; one that does not say is this one.
    fn compare_machine(&mut self) {
        let Some(credentials) = &self.credentials else {
            return;
        };
        let Some(dir) = credentials.home.dir(&self.config) else {
            return;
        };
        let facts = machine::facts(&self.config.sys_dir);
        let Some(own) = facts.system_uuid else {
            return;
        };
        match origin::system_uuid(dir, credentials.guest) {
            Some(given) if given != own => {
                let given = model::GuestId(given);
                self.is_copy(&format!("its identity was given to the machine {given}"));
            }
            Some(_) => {}
            None => {
                if let Err(error) = origin::note(dir, credentials.guest, &facts, None) {
                    tracing::warn!(error = chain(&error), "the machine's facts are not kept");
                }
            }
        }
    }

    fn is_copy(&mut self, why: &str) {
        if self.copy.is_some() || self.credentials.is_none() {
            return;
        }
        let key = match GuestKey::generate() {
            Ok(key) => key,
            Err(error) => {
                tracing::error!(error = chain(&error), "no key for an identity of its own");
                return;
            }
        };
        tracing::warn!(
            why,
            "this machine is a copy: it asks for an identity of its own"
        );
        self.membership.is_copy(why);
        self.copy = Some(Copy {
            key,
            machine: machine::facts(&self.config.sys_dir),
            again: Again::at_once(REKEY_PAUSE),
        });
    }

    /// Asks for what is due, one thing at a time. A copy whose own identity has to wait renews the
    /// one that it has: it is not to be locked out.
    fn ask(&mut self, gate: &Gate) {
        let waits = |asked: &Asked| asked.at.elapsed() < ANSWER_WITHIN;
        if self.asked.as_ref().is_some_and(waits) {
            return;
        }
        self.asked = self.next_request().map(|(renew, what)| {
            let request_id = gate.new_request_id();
            gate.send_control(request_id, Body::Renew(renew));
            Asked {
                request_id,
                at: Instant::now(),
                what,
            }
        });
    }

    fn next_request(&mut self) -> Option<(v1::Renew, What)> {
        if let Some(copy) = self.copy.as_mut().filter(|copy| copy.again.is_due()) {
            copy.again.wait(ANSWER_WITHIN);
            let renew = v1::Renew {
                csr: copy.key.csr().to_vec(),
                rekey: true,
                machine: Some((&copy.machine).into()),
            };
            return Some((renew, What::Rekey));
        }
        if !self.is_renewal_due() {
            return None;
        }
        let key = match GuestKey::generate() {
            Ok(key) => key,
            Err(error) => {
                tracing::error!(error = chain(&error), "no key for a renewal");
                return None;
            }
        };
        let renew = v1::Renew {
            csr: key.csr().to_vec(),
            ..v1::Renew::default()
        };
        Some((renew, What::Renewal(Box::new(key))))
    }

    fn is_renewal_due(&self) -> bool {
        self.renewal_due()
            .is_some_and(|due| SystemTime::now() >= due)
    }

    /// Spread over a fleet that was enrolled at once.
    fn renewal_due(&self) -> Option<SystemTime> {
        let credentials = self.credentials.as_ref()?;
        let pki::Validity {
            not_before,
            not_after,
        } = credentials.validity()?;
        Some(pki::renew_after(not_before, not_after, credentials.seed()))
    }

    fn take_answers(&mut self, gate: &Gate) {
        while let Ok((request_id, renewed)) = self.from_fleet.renewed.try_recv() {
            let is_it = |asked: &mut Asked| asked.request_id == request_id;
            let Some(asked) = self.asked.take_if(is_it) else {
                continue;
            };
            let taken = match &asked.what {
                What::Renewal(key) => self.take_renewed(gate, key, renewed),
                What::Rekey => self.take_own(gate, renewed),
            };
            match taken {
                Ok(()) => {}
                Err(problem) if matches!(asked.what, What::Rekey) => {
                    self.rekey_later();
                    tracing::error!(problem, "no identity of its own; it is tried again");
                }
                Err(problem) => {
                    tracing::error!(problem, "certificate not renewed; it is tried again");
                    // After the pause, with another key.
                    self.asked = Some(asked);
                }
            }
        }
    }

    fn rekey_later(&mut self) {
        if let Some(copy) = &mut self.copy {
            let longest = Duration::from_secs(self.config.enrol.refused_retry_s);
            copy.again.put_off(longest);
        }
    }

    /// The same identity with another certificate.
    fn take_renewed(
        &mut self,
        gate: &Gate,
        key: &GuestKey,
        renewed: v1::Renewed,
    ) -> Result<(), String> {
        let Some(before) = self.credentials.clone() else {
            return Ok(());
        };
        let renewed = certified(&before, key, renewed)?;
        if renewed.guest != before.guest {
            return Err("the new certificate is another guest's".to_owned());
        }
        // What cannot be used is not written.
        renewed.tls().map_err(|e| chain(&e))?;
        if let Some(dir) = renewed.home.dir(&self.config) {
            Credentials::save_identity(dir, &renewed.identity).map_err(|e| chain(&e))?;
        }
        // With an expired one nothing but this was possible.
        let shown = self.show(gate, renewed, false, before.is_expired());
        shown.map_err(|e| chain(&e))?;
        tracing::info!("certificate renewed");
        Ok(())
    }

    /// An identity of its own, instead of the one that it shares with another machine.
    fn take_own(&mut self, gate: &Gate, renewed: v1::Renewed) -> Result<(), String> {
        let (Some(before), Some(copy)) = (self.credentials.clone(), &self.copy) else {
            return Ok(());
        };
        let own = certified(&before, &copy.key, renewed)?;
        if own.guest == before.guest {
            return Err("the new certificate is the same guest's".to_owned());
        }
        own.tls().map_err(|e| chain(&e))?;
        own.save_new(&self.config, &copy.machine, Some(before.guest))
            .map_err(|e| chain(&e))?;
        tracing::warn!(
            before = %before.guest,
            guest = %own.guest,
            "this machine has an identity of its own"
        );
        self.copy = None;
        // What was said to the one that it was.
        while self.from_fleet.rekey.try_recv().is_ok() {}
        self.membership.has_become_another();
        if let Err(error) = self.show(gate, own.clone(), true, true) {
            self.adopt_later(Fresh::new(own), &error);
        }
        Ok(())
    }

    /// Shows these from now on: from the next connection, or `at_once`.
    fn show(
        &mut self,
        gate: &Gate,
        credentials: Credentials,
        is_other: bool,
        at_once: bool,
    ) -> Result<(), DialError> {
        let dialer = &self.dialer;
        let placed = dialer.use_credentials(gate, &self.config, &credentials, is_other)?;
        if placed.is_some() {
            self.placed = placed;
        }
        self.membership.enrolled(&credentials);
        self.credentials = Some(credentials);
        if let Some(client) = gate.client().filter(|_| at_once) {
            client.reconnect("another certificate");
        }
        Ok(())
    }
}

/// The credentials with this answer in the place of key and certificate.
fn certified(
    before: &Credentials,
    key: &GuestKey,
    renewed: v1::Renewed,
) -> Result<Credentials, String> {
    if renewed.chain.is_empty() {
        return Err(escape(renewed.refused.as_bytes()).to_string());
    }
    let chain_der = renewed.chain.into_iter().map(Into::into).collect();
    let identity: Identity = key.certified(chain_der).map_err(|e| chain(&e))?;
    let leaf = identity.leaf().map(|leaf| &leaf[..]).unwrap_or_default();
    let guest = pki::guest_id_of(leaf).map_err(|e| chain(&e))?;
    Ok(Credentials {
        identity,
        guest,
        ..before.clone()
    })
}

fn until(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::now()).unwrap_or_default()
}
