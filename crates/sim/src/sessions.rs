//! Sessions of agents on appliances, and what controllers are told of them.

use fleet_core::{GuestFacts, Key};
use model::{GuestId, Machine};

use crate::guests::{address, appliance_of};
use crate::world::{APPLIANCES, World, address_of};

/// A link notices within this that nobody is at its other end: the kernel of a live machine after 30 s, or
/// some more.
const NOTICED_MS: u64 = 60_000;

/// A session as its appliance sees it.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub(crate) via: usize,
    pub(crate) vm: usize,
    pub(crate) guest: GuestId,
    /// The key that it began with.
    pub(crate) key: Key,
    pub(crate) machine: Machine,
    /// Of the list that the guest followed when it came.
    epoch: u64,
    /// Nobody is at its other end; its appliance notices then.
    dead_until_ms: Option<u64>,
}

impl Gate {
    pub(crate) fn is_live(&self) -> bool {
        self.dead_until_ms.is_none()
    }
}

impl World {
    pub(crate) fn reaches(&self, vm: usize, appliance: usize) -> bool {
        self.appliances[appliance].up && !self.cut.contains(&(vm, appliance))
    }

    /// Agents fail over by themselves, down their list; and go to the first of a newer list.
    pub(crate) fn keep_links(&mut self) {
        self.notice_dead();
        for vm in 0..self.vms.len() {
            if !self.runs(vm) {
                self.break_off(vm);
                continue;
            }
            let at = self.agents[vm].at.filter(|at| self.reaches(vm, *at));
            if at.is_none() {
                self.break_off(vm);
            }
            let route = &self.agents[vm].route;
            let better = at.and_then(|at| route.better_than(&address(at)).map(str::to_owned));
            let to = match (at, better) {
                (Some(_), None) => None,
                (Some(_), Some(better)) => appliance_of(&better).filter(|to| self.reaches(vm, *to)),
                (None, _) => {
                    let order = route.order(None);
                    let mut order = order.iter().filter_map(|it| appliance_of(it));
                    let listed = order.find(|to| self.reaches(vm, *to));
                    // Those that are configured are the last resort.
                    listed.or_else(|| (0..APPLIANCES).find(|to| self.reaches(vm, *to)))
                }
            };
            if let Some(to) = to {
                self.go(vm, to);
            }
        }
    }

    /// An agent connects there: the new link is up before the old one is left.
    pub(crate) fn go(&mut self, vm: usize, to: usize) {
        let old = self.gates.iter().position(|it| it.vm == vm && it.is_live());
        self.moves += u64::from(old.is_some());
        self.work.came(vm);
        let old = old.map(|at| self.gates[at].clone());
        self.enter(vm, to);
        if let Some(old) = old {
            self.end(|it| it.vm == old.vm && it.via == old.via && it.guest == old.guest);
        }
    }

    fn enter(&mut self, vm: usize, via: usize) {
        let agent = &mut self.agents[vm];
        agent.at = Some(via);
        let gate = Gate {
            via,
            vm,
            guest: agent.id,
            key: agent.key,
            machine: self.vms[vm].machine.clone(),
            epoch: agent.route.epoch(),
            dead_until_ms: None,
        };
        // The machine has come back.
        let is_older =
            |it: &Gate| it.via == via && it.guest == gate.guest && it.machine == gate.machine;
        self.end(is_older);
        self.say_up(&gate);
        self.gates.push(gate);
    }

    /// A machine is gone or its network is: its appliance does not know that yet.
    pub(crate) fn break_off(&mut self, vm: usize) {
        self.agents[vm].at = None;
        if !self.gates.iter().any(|it| it.vm == vm && it.is_live()) {
            return;
        }
        let dead_until_ms = self.now_ms + self.random.next() % NOTICED_MS;
        for gate in self
            .gates
            .iter_mut()
            .filter(|it| it.vm == vm && it.is_live())
        {
            gate.dead_until_ms = Some(dead_until_ms);
        }
    }

    fn notice_dead(&mut self) {
        let (now_ms, appliances) = (self.now_ms, &self.appliances);
        // Of what was at an appliance that died nobody tells.
        self.gates.retain(|gate| appliances[gate.via].up);
        self.end(|gate| gate.dead_until_ms.is_some_and(|until| until <= now_ms));
    }

    /// Sessions end. What an appliance says of a guest's end counts for all its sessions there, so
    /// those that go on are told of again.
    fn end(&mut self, is_over: impl Fn(&Gate) -> bool) {
        while let Some(at) = self.gates.iter().position(&is_over) {
            let over = self.gates.remove(at);
            self.say_down(&over);
            let others = self.gates.iter();
            let others = others.filter(|it| it.via == over.via && it.guest == over.guest);
            for other in others.cloned().collect::<Vec<_>>() {
                self.say_up(&other);
            }
        }
    }

    /// An appliance has a stream: everybody who is there is told of.
    pub(crate) fn say_all_up(&mut self, via: usize) {
        let there = self.gates.iter().filter(|it| it.via == via);
        for gate in there.cloned().collect::<Vec<_>>() {
            self.say_up(&gate);
        }
    }

    fn say_up(&mut self, gate: &Gate) {
        let known = self.disk.members.get(gate.guest);
        let facts = GuestFacts {
            uuid: known.machine.system_uuid,
            address: address_of(gate.vm),
            hostname: format!("v{}", gate.vm),
            epoch: gate.epoch,
            channel: None,
            key: Some(gate.key),
            machine: gate.machine.clone(),
            known: Some(known),
            vm: None,
        };
        let guest = gate.guest;
        self.with_stream(gate.via, |core, clock, id| {
            core.guest_up(clock, id, guest, facts)
        });
    }

    fn say_down(&mut self, gate: &Gate) {
        let guest = gate.guest;
        self.with_stream(gate.via, |core, clock, id| {
            core.guest_down(clock, id, guest)
        });
    }
}
