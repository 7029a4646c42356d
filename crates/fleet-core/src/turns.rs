//! Turns: work of guests that nobody waits for, on what their hosts share.
//!
//! A guest asks before it begins; the answer comes from [`placement::Admission`]. Whoever asks says
//! only what kind of work it is: what it is taken to use is policy. A guest has one turn of each
//! kind at most, so that asking often reserves nothing more.

use std::collections::BTreeMap;
use std::time::Duration;

use model::GuestId;
use placement::{Begin, HostId, Job, LeaseId, Refused, VmId, WorkKind};

use crate::core::{Clock, Core};

/// No turn is longer; longer work takes several.
const TAKES_MAX: Duration = Duration::from_secs(1800);
/// Longest time that a turn may be spread over.
const WITHIN_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Work that is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnAsk {
    /// What it is.
    pub kind: WorkKind,
    /// The turn that was given for it before and is to begin later.
    pub again: Option<LeaseId>,
    /// How long it takes at most.
    pub takes: Duration,
    /// It has to have ended so long from now.
    pub within: Duration,
}

/// When it may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnAnswer {
    /// Now.
    Begin {
        /// The turn; `None`: nobody knows what the guest shares with whom, so nothing is reserved.
        turn: Option<LeaseId>,
        /// It has to have ended so long from now.
        ends_in: Duration,
    },
    /// Later: it is to be asked for again then.
    Wait {
        /// The turn.
        turn: LeaseId,
        /// How much later.
        wait: Duration,
    },
    /// Not within the time that was named.
    Refused {
        /// Why.
        why: Refused,
        /// Within this time it could be done, as far as is known now.
        possible_within: Option<Duration>,
    },
}

/// The turns that are out.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    of_vm: BTreeMap<VmId, BTreeMap<WorkKind, LeaseId>>,
    /// Sites by the number of their link.
    links: BTreeMap<String, u64>,
}

impl Core {
    /// A guest asks whether it may work.
    pub fn ask_turn(&mut self, clock: Clock, guest: GuestId, ask: TurnAsk) -> TurnAnswer {
        let takes = ask.takes.min(TAKES_MAX);
        let Some((vm, host)) = self.host_under(guest) else {
            return TurnAnswer::Begin {
                turn: None,
                ends_in: takes,
            };
        };
        if let Some(turn) = self.kept_turn(vm, host, &ask)
            && let Some(answer) = self.begin_turn(clock, turn)
        {
            return answer;
        }
        self.end_turn(clock.now, vm, ask.kind);
        let job = self.job(clock, vm, host, takes, &ask);
        match self.admission.reserve(clock.now, job) {
            Ok(lease) => {
                let turns = self.turns.of_vm.entry(vm).or_default();
                turns.insert(ask.kind, lease.id);
                self.begin_turn(clock, lease.id)
                    .unwrap_or(TurnAnswer::Wait {
                        turn: lease.id,
                        wait: lease.begins.saturating_sub(clock.now),
                    })
            }
            Err(why) => TurnAnswer::Refused {
                why,
                possible_within: match why {
                    Refused::Full { by } => by.map(|by| by.saturating_sub(clock.now)),
                    _ => None,
                },
            },
        }
    }

    /// The work of a turn is done, or given up.
    pub fn turn_over(&mut self, clock: Clock, guest: GuestId, turn: LeaseId) {
        let Some(vm) = self.vm_of_guest.get(&guest).copied() else {
            return;
        };
        let mut turns = self.turns.of_vm.get(&vm).into_iter().flatten();
        let own = turns.find(|(_, own)| **own == turn);
        // What is another guest's is not this one's to give back.
        if let Some(kind) = own.map(|(kind, _)| *kind) {
            self.end_turn(clock.now, vm, kind);
        }
    }

    /// The VM that a guest is in, and the host that is known to be under it.
    fn host_under(&self, guest: GuestId) -> Option<(VmId, HostId)> {
        let id = self.vm_of_guest.get(&guest).copied()?;
        let vm = self.vms.get(&id)?;
        let host = self.host_id(&vm.connector, vm.record.host.as_deref()?)?;
        Some((id, host))
    }

    /// The turn that is asked for again, where it is this VM's, and still on this host.
    fn kept_turn(&self, vm: VmId, host: HostId, ask: &TurnAsk) -> Option<LeaseId> {
        let own = self.turns.of_vm.get(&vm)?.get(&ask.kind).copied()?;
        let lease = self.admission.lease(own)?;
        (ask.again == Some(own) && lease.job.host == host).then_some(own)
    }

    /// `None`: its time is over.
    fn begin_turn(&mut self, clock: Clock, turn: LeaseId) -> Option<TurnAnswer> {
        match self.admission.begin(clock.now, turn) {
            Begin::Go { until } => Some(TurnAnswer::Begin {
                turn: Some(turn),
                ends_in: until.saturating_sub(clock.now),
            }),
            Begin::NotYet { at } => Some(TurnAnswer::Wait {
                turn,
                wait: at.saturating_sub(clock.now),
            }),
            Begin::Over => None,
        }
    }

    fn job(&mut self, clock: Clock, vm: VmId, host: HostId, takes: Duration, ask: &TurnAsk) -> Job {
        // A lease begins and ends at a step: less room than this is none.
        let room = takes + self.admission.policy().step * 2;
        let within = ask.within.clamp(room, WITHIN_MAX.max(room));
        let stored = self.hosts.get(&host);
        let datastore = stored.and_then(|host| {
            let cluster = host.record.cluster.as_deref();
            self.sites.datastore_of(&host.connector, cluster)
        });
        let site = stored.and_then(|host| host.site.clone());
        Job {
            vm,
            host,
            datastore,
            link: site.map(|site| self.turns.link(site)),
            kind: ask.kind,
            needs: self.admission.policy().needs(ask.kind),
            takes,
            not_before: clock.now,
            deadline: clock.now.saturating_add(within),
        }
    }

    fn end_turn(&mut self, now: Duration, vm: VmId, kind: WorkKind) {
        let Some(turns) = self.turns.of_vm.get_mut(&vm) else {
            return;
        };
        if let Some(turn) = turns.remove(&kind) {
            self.admission.release(now, turn);
        }
        if turns.is_empty() {
            self.turns.of_vm.remove(&vm);
        }
    }

    /// A VM is gone: so is its work.
    pub(crate) fn end_turns(&mut self, now: Duration, vm: VmId) {
        for turn in self.turns.of_vm.remove(&vm).into_iter().flatten() {
            self.admission.release(now, turn.1);
        }
    }
}

impl Turns {
    fn link(&mut self, site: String) -> u64 {
        let next = self.links.len() as u64;
        *self.links.entry(site).or_insert(next)
    }
}
