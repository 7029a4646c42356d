//! What must hold, at any moment and once everything is healed.

use std::collections::BTreeSet;

use fleet_core::TurnRow;
use placement::{Availability, VmId};

use crate::controller::Controller;
use crate::guests::{appliance_of, host_of};
use crate::world::{APPLIANCES, World};

/// Times of 20 s in which agents measure, with nobody telling of moves.
const NEARNESS_STEPS: usize = 24;

/// How far a host is from another.
fn tier(from: usize, to: usize) -> u8 {
    if from == to {
        0
    } else if from / 3 == to / 3 {
        1
    } else {
        2
    }
}

impl World {
    /// What must hold at any moment.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        self.work.check()?;
        self.check_charges()?;
        if let Some(broken) = &self.truth.broken {
            return Err(broken.clone());
        }
        for (vm, agent) in self.agents.iter().enumerate() {
            if agent.unscanned != agent.paid + agent.debt {
                return Err(format!("v{vm}: the ledger has lost an open: {agent:?}"));
            }
            let runs = self.runs(vm);
            let reachable = (0..APPLIANCES).any(|it| self.reaches(vm, it));
            if runs && reachable && agent.at.is_none_or(|at| !self.reaches(vm, at)) {
                return Err(format!(
                    "v{vm} reaches an appliance and is connected to none"
                ));
            }
        }
        Ok(())
    }

    /// Heals everything and lets time pass; then all is as it should be.
    ///
    /// # Errors
    /// What is not.
    pub fn settle(&mut self) -> Result<(), String> {
        self.cut.clear();
        self.hosts_in_maintenance.clear();
        for appliance in &mut self.appliances {
            (appliance.up, appliance.hears) = (true, true);
        }
        match &mut self.controller {
            Some(controller) => controller.is_paused = false,
            None => self.controller = Some(Controller::lead(&mut self.disk, self.now_ms)),
        }
        self.pass(NEARNESS_STEPS)?;
        self.check_nearness()?;
        self.resync();
        self.pass(60)?;
        for agent in &mut self.agents {
            if agent.at.is_some() {
                agent.open();
            }
        }
        self.check_identities()?;
        self.check_settled()
    }

    fn pass(&mut self, steps: usize) -> Result<(), String> {
        for _ in 0..steps {
            self.step(20_000);
            self.check()?;
        }
        Ok(())
    }

    /// Turns are charged to where their VMs are, as far as the controller knows.
    fn check_charges(&self) -> Result<(), String> {
        let Some(controller) = &self.controller else {
            return Ok(());
        };
        let core = &controller.core;
        let now = controller.clock(self.now_ms, self.wall_jump_ms).now;
        let turns = core.turn_rows(now, None);
        if turns.is_empty() {
            return Ok(());
        }
        let rows = core.vm_rows(None, 0, usize::MAX);
        let places: BTreeSet<_> = rows
            .iter()
            .filter_map(|row| Some((row.stored.record.name.as_str(), row.host.as_deref()?)))
            .collect();
        let is_astray = |turn: &&TurnRow| !places.contains(&(&turn.vm[..], &turn.host[..]));
        match turns.iter().find(is_astray) {
            Some(astray) => Err(format!("a turn is charged to another host: {astray:?}")),
            None => Ok(()),
        }
    }

    /// Nobody told of some moves; agents have measured. Whoever has the appliance of its own host in
    /// its list, and is believed to be where another one is nearer, is at the one of its host.
    fn check_nearness(&mut self) -> Result<(), String> {
        let Some(controller) = &self.controller else {
            return Ok(());
        };
        let core = &controller.core;
        let appliances = core.appliance_rows();
        for row in core.vm_rows(None, 0, usize::MAX) {
            let name = row.stored.record.name.as_str();
            let vm = name
                .strip_prefix('v')
                .and_then(|it| it.parse::<usize>().ok());
            let told = row.host.as_deref().and_then(|host| host.strip_prefix('h'));
            let told = told.and_then(|host| host.parse::<usize>().ok());
            let (Some(vm), Some(told)) = (vm, told) else {
                continue;
            };
            let (host, agent) = (self.vms[vm].host, &self.agents[vm]);
            let is_there = row.stored.guest == Some(agent.id) && agent.at.is_some();
            if told == host || !is_there || !self.runs(vm) {
                continue;
            }
            let list: Vec<usize> = row
                .appliances
                .iter()
                .filter_map(|name| name.strip_prefix('a')?.parse().ok())
                .collect();
            let own = list.iter().copied().find(|it| host_of(*it) == host);
            let tier = |it: usize| tier(told, host_of(it));
            let Some(own) = own.filter(|own| list.iter().any(|it| tier(*it) < tier(*own))) else {
                continue;
            };
            let load = appliances
                .iter()
                .find(|row| row.stored.name == format!("a{own}"));
            // It may be drained for a maintenance whose end nobody told of either.
            let has_room = load.is_some_and(|row| {
                row.availability == Availability::Up && row.load + 1000 <= row.bound * 9 / 10
            });
            if agent.at == Some(own) {
                self.corrected += 1;
            } else if has_room {
                return Err(format!(
                    "{name} runs on h{host}, is believed on h{told}, and is at {:?} of {list:?}",
                    agent.at
                ));
            }
        }
        Ok(())
    }

    fn check_settled(&self) -> Result<(), String> {
        let controller = self.controller.as_ref().ok_or("nobody places")?;
        let core = &controller.core;
        let rows = core.vm_rows(None, 0, usize::MAX);
        for (vm, agent) in self.agents.iter().enumerate() {
            if !self.runs(vm) {
                continue;
            }
            if agent.debt > 0 {
                return Err(format!("v{vm}: {} opens are not paid back", agent.debt));
            }
            // Which of two VMs with one UUID a guest is in, is a guess.
            if self.has_twin(vm) {
                continue;
            }
            let own = rows.iter().filter(|row| row.stored.guest == Some(agent.id));
            let own: Vec<_> = own.collect();
            let [row] = own[..] else {
                return Err(format!("v{vm} is not in one VM: {own:?}"));
            };
            if row.stored.record.name != format!("v{vm}") {
                return Err(format!("v{vm} is taken to be in {:?}", row.stored.record));
            }
            let id = VmId(row.stored.id);
            let list = core.fleet().placement(id).ok_or("a VM without a list")?;
            let names = list
                .appliances
                .iter()
                .filter_map(|id| core.appliance_name(*id));
            let names: Vec<String> = names.map(|name| format!("{name}:7443")).collect();
            if agent.route.appliances() != names || agent.route.epoch() != list.epoch.0 {
                return Err(format!(
                    "v{vm} follows {:?}, and its list is {names:?} {}",
                    agent.route, list.epoch
                ));
            }
            let first = names.first().and_then(|name| appliance_of(name));
            if agent.at != first || first.is_none() {
                return Err(format!(
                    "v{vm} is at {:?} and should be at {first:?}",
                    agent.at
                ));
            }
            let written = self.disk.placements.get(&id.0).map(|list| list.epoch);
            if written != Some(list.epoch.0) {
                return Err(format!("v{vm}: what it follows is not written down"));
            }
        }
        self.check_bounds(core)
    }

    /// Some machine has, or had, the same UUID.
    fn has_twin(&self, vm: usize) -> bool {
        let uuid = self.vms[vm].machine.system_uuid;
        let same = self.vms.iter().filter(|it| it.machine.system_uuid == uuid);
        same.count() > 1
    }

    fn check_bounds(&self, core: &fleet_core::Core) -> Result<(), String> {
        let rows = core.appliance_rows();
        let up = rows
            .iter()
            .filter(|row| row.availability == Availability::Up);
        let up: Vec<_> = up.collect();
        let has_room = up.iter().any(|row| row.load + 1000 <= row.bound);
        match up.iter().find(|row| row.load > row.bound) {
            Some(over) if has_room => Err(format!("{over:?} is over its bound, others are not")),
            _ => Ok(()),
        }
    }
}
