//! Machines that are copied, restored and deleted, and what becomes of their identities: what the
//! shipped core says of sessions, and agents that do as they are told.

use std::collections::{BTreeMap, BTreeSet};

use fleet_core::Key;
use link::client::Route;
use model::{GuestId, Machine};

use crate::guests::address;
use crate::sessions::Gate;
use crate::world::{APPLIANCES, VMS, Vm, World};

/// Copies that are made in one course.
const COPIES_MAX: usize = 12;

/// What is known from outside of who is who.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// The SMBIOS UUID of the machine that got each identity.
    homes: BTreeMap<GuestId, Option<[u8; 16]>>,
    /// Machines that were told to re-key, and rightly.
    told: BTreeSet<(usize, GuestId)>,
    last_number: u64,
    /// What must not happen, and has.
    pub(crate) broken: Option<String>,
    /// Copies that got an identity of their own.
    pub(crate) rekeyed: u64,
    /// Machines that were set back to a snapshot.
    pub(crate) restored: u64,
}

impl Truth {
    /// A key, a UUID, an id: none is like another.
    pub(crate) fn fresh(&mut self) -> [u8; 16] {
        self.last_number += 1;
        let mut bytes = [9; 16];
        bytes[..8].copy_from_slice(&self.last_number.to_be_bytes());
        bytes
    }
}

impl World {
    /// Each machine of the beginning is a guest of its own.
    pub(crate) fn join_all(&mut self) {
        for vm in 0..self.vms.len() {
            self.join(vm);
        }
    }

    /// A machine gets an identity of its own. The list that it follows is another guest's.
    fn join(&mut self, vm: usize) {
        let (guest, key) = (GuestId(self.truth.fresh()), self.truth.fresh());
        let machine = self.vms[vm].machine.clone();
        self.truth.homes.insert(guest, machine.system_uuid);
        self.disk.members.join(guest, key, machine);
        let agent = &mut self.agents[vm];
        (agent.id, agent.key, agent.is_told) = (guest, key, false);
        agent.route = Route::new(0, (0..APPLIANCES).map(address).collect());
        agent.told.clear();
        self.work.forget(vm);
    }

    /// A machine is copied while it runs, with its memory and its disk.
    pub(crate) fn copy(&mut self, from: usize, keeps_uuid: bool) {
        if !self.runs(from) || self.vms.len() >= VMS + COPIES_MAX {
            return;
        }
        let mut machine = self.vms[from].machine.clone();
        machine.generation_id = Some(self.truth.fresh());
        if !keeps_uuid {
            machine.system_uuid = Some(self.truth.fresh());
        }
        let host = self.random.below(crate::world::HOSTS);
        self.vms.push(Vm::new(host, machine));
        let mut agent = self.agents[from].clone();
        (agent.at, agent.is_told) = (None, false);
        self.agents.push(agent);
        self.tell_vm(self.vms.len() - 1);
    }

    /// A copy is deleted.
    pub(crate) fn delete_copy(&mut self) {
        let copies = self.vms.len() - VMS;
        if copies > 0 {
            let vm = VMS + self.random.below(copies);
            self.vms[vm].exists = false;
            self.tell_vm(vm);
        }
    }

    pub(crate) fn take_snapshot(&mut self, vm: usize) {
        self.vms[vm].snapshot = Some(self.agents[vm].clone());
    }

    /// The machine is as it was, and its hypervisor says so with another generation id.
    pub(crate) fn restore(&mut self, vm: usize) {
        let Some(agent) = self.vms[vm].snapshot.clone() else {
            return;
        };
        self.break_off(vm);
        self.vms[vm].machine.generation_id = Some(self.truth.fresh());
        self.agents[vm] = agent;
        (self.agents[vm].at, self.agents[vm].is_told) = (None, false);
        self.truth.told.retain(|(told, _)| *told != vm);
        self.truth.restored += 1;
        self.work.forget(vm);
    }

    /// Whether no other machine has its identity. Of two that have, one takes the turns of the other:
    /// what they do until they are told apart is not judged here.
    pub(crate) fn is_alone(&self, vm: usize) -> bool {
        let guest = self.agents[vm].id;
        self.agents.iter().filter(|it| it.id == guest).count() == 1
    }

    fn live_gate(&self, vm: usize) -> Option<Gate> {
        let mut gates = self.gates.iter();
        gates.find(|it| it.vm == vm && it.is_live()).cloned()
    }

    /// An agent asks for its next certificate.
    pub(crate) fn renew(&mut self, vm: usize) {
        let Some(gate) = self.live_gate(vm).filter(|gate| self.is_answered(gate.via)) else {
            return;
        };
        let known = self.disk.members.get(gate.guest);
        let next = self.truth.fresh();
        let judged = self.with_stream(gate.via, |core, clock, _| {
            core.may_renew(clock, gate.guest, Some(gate.key), &gate.machine, &known)
        });
        match judged {
            Some(Ok(())) => {
                self.disk.members.renewed(gate.guest, gate.key, next);
                // Some answers are lost.
                if !self.random.chance(20) {
                    self.agents[vm].key = next;
                }
            }
            // It gets one that counts nowhere.
            Some(Err(copy)) => {
                self.agents[vm].key = next;
                self.order_rekey(&gate, &copy.to_string());
            }
            None => {}
        }
    }

    /// Whether a question through this appliance is answered now.
    fn is_answered(&mut self, via: usize) -> bool {
        let is_paused = self.controller.as_ref().is_none_or(|it| it.is_paused);
        !is_paused && self.with_stream(via, |_, _, _| ()).is_some()
    }

    /// The controller says that a session is a copy's. One that is dead tells nobody.
    pub(crate) fn order_rekey(&mut self, gate: &Gate, why: &str) {
        if !gate.is_live() {
            return;
        }
        let told = (gate.vm, gate.guest);
        if self.is_copy(gate) {
            self.truth.told.insert(told);
        } else if !self.truth.told.contains(&told) {
            let broken = format!("v{} is told to re-key and is no copy: {why}", gate.vm);
            self.truth.broken.get_or_insert(broken);
        }
        self.send_rekey(gate);
    }

    /// It shows another machine's identity, or another one shows the same and nobody can say whose
    /// it is.
    fn is_copy(&self, gate: &Gate) -> bool {
        let uuid = gate.machine.system_uuid;
        let is_twin = |it: &Gate| {
            it.guest == gate.guest && it.vm != gate.vm && it.machine.system_uuid == uuid
        };
        self.truth.homes.get(&gate.guest) != Some(&uuid) || self.gates.iter().any(is_twin)
    }

    /// The session that is meant, if it is still there.
    pub(crate) fn gate_of(
        &self,
        via: usize,
        guest: GuestId,
        key: Option<Key>,
        machine: &Machine,
    ) -> Option<Gate> {
        let mut gates = self.gates.iter();
        let is_it = |it: &&Gate| {
            it.via == via && it.guest == guest && Some(it.key) == key && it.machine == *machine
        };
        gates.find(is_it).cloned()
    }

    /// An agent hears that it is a copy.
    pub(crate) fn told_to_rekey(&mut self, gate: &Gate) {
        let mut gates = self.gates.iter();
        let is_there = gates
            .any(|it| it.is_live() && (it.vm, it.via, it.guest) == (gate.vm, gate.via, gate.guest));
        self.agents[gate.vm].is_told |= is_there;
    }

    /// Those who were told ask until they are answered.
    pub(crate) fn rekey_told(&mut self) {
        for vm in 0..self.vms.len() {
            let at = self.agents[vm].at.filter(|_| self.agents[vm].is_told);
            let Some(at) = at.filter(|at| self.is_answered(*at)) else {
                continue;
            };
            self.truth.rekeyed += 1;
            self.join(vm);
            self.go(vm, at);
        }
    }

    /// Once everything is healed each machine is a guest of its own, and may go on as it.
    pub(crate) fn check_identities(&mut self) -> Result<(), String> {
        let mut guests: BTreeMap<GuestId, usize> = BTreeMap::new();
        let all: Vec<usize> = (0..self.vms.len()).filter(|vm| self.runs(*vm)).collect();
        for vm in all {
            let guest = self.agents[vm].id;
            if let Some(other) = guests.insert(guest, vm) {
                return Err(format!("v{other} and v{vm} are both guest {guest}"));
            }
            let gate = self.live_gate(vm).ok_or("a machine without a session")?;
            let known = self.disk.members.get(guest);
            let judged = self.with_stream(gate.via, |core, clock, _| {
                core.may_renew(clock, guest, Some(gate.key), &gate.machine, &known)
            });
            if judged != Some(Ok(())) {
                return Err(format!("v{vm} may not renew: {judged:?}"));
            }
        }
        Ok(())
    }
}
