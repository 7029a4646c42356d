//! Turns: work of guests that nobody waits for, on what their hosts share.
//!
//! A guest asks before it begins; the answer comes from [`placement::Admission`]. Whoever asks says
//! only what kind of work it is: what it is taken to use is policy. A guest has one turn of each
//! kind at most, so that asking often reserves nothing more.
//!
//! A turn follows its VM to another host. Where that has no room for it, it is taken back: the agent
//! stops and asks anew.
//!
//! Turns are not written down, but that some are out is, and how long they may last: a placer that takes
//! over waits so long before it gives any.

use std::collections::BTreeMap;
use std::time::Duration;

use model::GuestId;
use placement::{
    ApplianceId, Begin, Followed, HostId, Job, Lease, LeaseId, Place, Refused, VmId, WorkKind,
};

use crate::core::{Clock, Core, Order};
use crate::rows::Row;

/// No turn is longer; longer work takes several.
const TAKES_MAX: Duration = Duration::from_secs(300);
/// After the last turn is over, it is not written down at once that none is out.
const OUT_PAUSE: Duration = Duration::from_secs(60);
/// How long turns last is written down in multiples of this, so that it seldom changes.
const OUT_STEP_S: u32 = 60;
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
    /// Appliances through which turns were asked for: a scan may use another one than its guest's gate.
    asked_via: BTreeMap<LeaseId, ApplianceId>,
    /// Turns that were taken back before their end, and when that is: until then a guest may
    /// not have heard of it.
    taken: BTreeMap<LeaseId, Taken>,
    /// Sites by the number of their link.
    links: BTreeMap<String, u64>,
    /// When the last turn that was given has ended.
    out_until: Duration,
    /// What is written down of that.
    written_s: u32,
}

#[derive(Debug, Clone, Copy)]
struct Taken {
    guest: GuestId,
    would_end: Duration,
}

/// A turn, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnRow {
    /// The VM's name.
    pub vm: String,
    /// The name of the host that it is on, as far as the turn is concerned.
    pub host: String,
    /// What for.
    pub kind: WorkKind,
    /// It begins so long from now. Zero: it has begun, or may.
    pub begins_in: Duration,
    /// It has to have ended so long from now.
    pub ends_in: Duration,
}

impl Core {
    /// A guest asks, through an appliance, whether it may work; the answer is an order.
    pub fn order_turn(
        &mut self,
        clock: Clock,
        (via, ticket): (ApplianceId, u64),
        guest: GuestId,
        ask: TurnAsk,
    ) {
        let answer = self.ask_turn(clock, guest, ask);
        if let TurnAnswer::Begin {
            turn: Some(turn), ..
        } = answer
        {
            self.turns.asked_via.insert(turn, via);
        }
        self.orders.push(Order::Turn {
            via,
            ticket,
            answer,
        });
    }

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
        Some((id, self.known_host(id)?))
    }

    fn known_host(&self, vm: VmId) -> Option<HostId> {
        let vm = self.vms.get(&vm)?;
        self.host_id(&vm.connector, vm.record.host.as_deref()?)
    }

    /// A VM may have moved: its turns go with it, or are over.
    pub(crate) fn turns_follow(&mut self, now: Duration, vm: VmId) {
        let Some(turns) = self.turns.of_vm.get(&vm).cloned() else {
            return;
        };
        let to = self.known_host(vm).map(|host| self.place_on(host));
        for (kind, turn) in turns {
            let Some(lease) = self.admission.lease(turn).copied() else {
                continue;
            };
            // Where nobody knows what is shared, nothing is reserved.
            let followed = to.map_or(Followed::Over, |to| self.admission.follow(now, turn, to));
            if followed == Followed::Over {
                self.end_turn(now, vm, kind);
                self.take_back(now, vm, &lease);
            }
        }
    }

    /// Work that has begun has to stop. What has not begun is asked for again anyway.
    fn take_back(&mut self, now: Duration, vm: VmId, lease: &Lease) {
        let guest = self.vms.get(&vm).and_then(|vm| vm.guest);
        let Some(guest) = guest.filter(|_| lease.has_begun && now < lease.ends) else {
            return;
        };
        let taken = Taken {
            guest,
            would_end: lease.ends,
        };
        self.turns.taken.insert(lease.id, taken);
        let gate = self.guests.get(&guest).and_then(|guest| guest.via);
        let asked = self.turns.asked_via.remove(&lease.id);
        for via in gate
            .into_iter()
            .chain(asked.filter(|via| gate != Some(*via)))
        {
            self.orders.push(Order::TurnOver {
                via,
                guest,
                turn: lease.id,
            });
        }
    }

    /// A guest that comes to an appliance may have missed that its turn was taken back.
    pub(crate) fn tell_taken(&mut self, now: Duration, via: ApplianceId, guest: GuestId) {
        let taken = self.turns.taken.iter();
        let own = taken.filter(|(_, it)| it.guest == guest && now < it.would_end);
        let orders = own.map(|(turn, _)| Order::TurnOver {
            via,
            guest,
            turn: *turn,
        });
        self.orders.extend(orders);
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
            Begin::Go { until } => {
                self.note_turn(clock.now, until);
                Some(TurnAnswer::Begin {
                    turn: Some(turn),
                    ends_in: until.saturating_sub(clock.now),
                })
            }
            Begin::NotYet { at } => Some(TurnAnswer::Wait {
                turn,
                wait: at.saturating_sub(clock.now),
            }),
            Begin::Over => None,
        }
    }

    /// A turn is given: that is written down before it is told.
    fn note_turn(&mut self, now: Duration, until: Duration) {
        let turns = &mut self.turns;
        turns.out_until = turns.out_until.max(until);
        let left = until.saturating_sub(now).as_secs() + 1;
        let left_s = u32::try_from(left).unwrap_or(u32::MAX);
        let left_s = left_s.next_multiple_of(OUT_STEP_S);
        if left_s > turns.written_s {
            turns.written_s = left_s;
            self.write(Row::TurnsOut(left_s));
        }
    }

    /// What an earlier term gave and nobody knows any more is over before this one gives anything.
    pub(crate) fn load_turns(&mut self, now: Duration, out_s: u32) {
        let until = now.saturating_add(Duration::from_secs(out_s.into()));
        (self.turns.out_until, self.turns.written_s) = (until, out_s);
        self.admission.hold_all(until);
    }

    /// Writes down that no turn is out, some time after the last one; forgets what is over.
    pub(crate) fn forget_turns(&mut self, now: Duration) {
        self.turns.taken.retain(|_, taken| now < taken.would_end);
        let admission = &self.admission;
        let is_out = |turn: &LeaseId| admission.lease(*turn).is_some_and(|it| now < it.ends);
        self.turns.asked_via.retain(|turn, _| is_out(turn));
        let is_over = now >= self.turns.out_until.saturating_add(OUT_PAUSE);
        if self.turns.written_s > 0 && is_over {
            self.turns.written_s = 0;
            self.write(Row::TurnsOut(0));
        }
    }

    /// Every turn that is out, the first to begin first; those on this host only, where one is named.
    #[must_use]
    pub fn turn_rows(&self, now: Duration, host: Option<&str>) -> Vec<TurnRow> {
        let out = self.turns.of_vm.values().flat_map(BTreeMap::values);
        let leases = out.filter_map(|turn| self.admission.lease(*turn));
        let rows = leases.filter(|lease| lease.ends > now).map(|lease| {
            let vm = self.vms.get(&lease.job.vm);
            let host = self.hosts.get(&lease.job.host);
            TurnRow {
                vm: vm.map_or_else(String::new, |vm| vm.record.name.clone()),
                host: host.map_or_else(String::new, |host| host.record.name.clone()),
                kind: lease.job.kind,
                begins_in: lease.begins.saturating_sub(now),
                ends_in: lease.ends.saturating_sub(now),
            }
        });
        let mut rows: Vec<TurnRow> = rows
            .filter(|row| host.is_none_or(|host| row.host == host))
            .collect();
        rows.sort_by(|a, b| (a.begins_in, &a.vm).cmp(&(b.begins_in, &b.vm)));
        rows
    }

    /// What a turn reserves; `None`: there is no such turn (any more).
    #[must_use]
    pub fn turn(&self, turn: LeaseId) -> Option<&Lease> {
        self.admission.lease(turn)
    }

    fn job(&mut self, clock: Clock, vm: VmId, host: HostId, takes: Duration, ask: &TurnAsk) -> Job {
        // A lease begins and ends at a step: less room than this is none.
        let room = takes + self.admission.policy().step * 2;
        let within = ask.within.clamp(room, WITHIN_MAX.max(room));
        let Place {
            host,
            datastore,
            link,
        } = self.place_on(host);
        Job {
            vm,
            host,
            datastore,
            link,
            kind: ask.kind,
            needs: self.admission.policy().needs(ask.kind),
            takes,
            not_before: clock.now,
            deadline: clock.now.saturating_add(within),
            yields: self.is_in_session(clock, vm),
        }
    }

    /// What work on a host shares with others.
    fn place_on(&mut self, host: HostId) -> Place {
        let stored = self.hosts.get(&host);
        let datastore = stored.and_then(|host| {
            let cluster = host.record.cluster.as_deref();
            self.sites.datastore_of(&host.connector, cluster)
        });
        let site = stored.and_then(|host| host.site.clone());
        Place {
            host,
            datastore,
            link: site.map(|site| self.turns.link(site)),
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
