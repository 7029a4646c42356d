//! What there is, and the messages on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fleet_core::{
    ApplianceHello, GuestFacts, HostRecord, InventoryChange, Order, Power, TurnAnswer, VmRecord,
};
use model::GuestId;
use placement::{ApplianceId, Availability, Lease};

use crate::controller::Controller;
use crate::disk::Disk;
use crate::guests::{Agent, address, appliance_of};
use crate::random::Random;
use crate::work::Work;

pub(crate) const HOSTS: usize = 9;
pub(crate) const APPLIANCES: usize = 5;
const VMS: usize = 27;
/// VMs that one appliance carries.
const CAPACITY: u64 = 12;
const CONNECTOR: &str = "sim";

#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) host: usize,
    pub(crate) running: bool,
    pub(crate) exists: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Appliance {
    pub(crate) up: bool,
    /// Its stream to the controller can be had.
    pub(crate) hears: bool,
    /// What the controller that it has a stream to calls it, and that controller's term.
    stream: Option<(u32, ApplianceId)>,
}

/// What is on its way and when it arrives.
#[derive(Debug, Clone)]
enum Message {
    Place {
        via: usize,
        guest: GuestId,
        epoch: u64,
        appliances: Vec<String>,
    },
    Inventory(InventoryChange),
    Turn {
        ticket: u64,
        answer: TurnAnswer,
        lease: Option<Lease>,
    },
}

/// The fleet and everything around it.
pub struct World {
    pub(crate) random: Random,
    pub(crate) now_ms: u64,
    pub(crate) wall_jump_ms: i64,
    pub(crate) disk: Disk,
    pub(crate) controller: Option<Controller>,
    /// One that was the placer, and does not know that it is no more.
    pub(crate) deposed: Option<Controller>,
    pub(crate) hosts_in_maintenance: BTreeSet<usize>,
    pub(crate) vms: Vec<Vm>,
    pub(crate) appliances: Vec<Appliance>,
    pub(crate) agents: Vec<Agent>,
    /// Pairs of VM and appliance that cannot reach each other.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) work: Work,
    on_the_way: BTreeMap<(u64, u64), Message>,
    next_message: u64,
    pub(crate) connector_up: bool,
    /// Every list that was ever obeyed, by guest and epoch.
    obeyed: BTreeMap<(GuestId, u64), Vec<String>>,
    pub(crate) moves: u64,
}

impl World {
    /// A small fleet, all of it up.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut disk = Disk::default();
        let controller = Some(Controller::lead(&mut disk, 0));
        let all: Vec<String> = (0..APPLIANCES).map(address).collect();
        let mut world = Self {
            random: Random::new(seed),
            now_ms: 0,
            wall_jump_ms: 0,
            disk,
            controller,
            deposed: None,
            hosts_in_maintenance: BTreeSet::new(),
            vms: (0..VMS)
                .map(|vm| Vm {
                    host: vm % HOSTS,
                    running: true,
                    exists: true,
                })
                .collect(),
            appliances: vec![
                Appliance {
                    up: true,
                    hears: true,
                    stream: None,
                };
                APPLIANCES
            ],
            agents: (0..VMS).map(|vm| Agent::new(vm, all.clone())).collect(),
            cut: BTreeSet::new(),
            work: Work::default(),
            on_the_way: BTreeMap::new(),
            next_message: 0,
            connector_up: true,
            obeyed: BTreeMap::new(),
            moves: 0,
        };
        world.resync();
        world.step(1000);
        world
    }

    /// The simulated time.
    pub(crate) fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms)
    }

    fn send(&mut self, delay_ms_max: u64, message: Message) {
        let at = self.now_ms + self.random.next() % delay_ms_max.max(1);
        self.next_message += 1;
        self.on_the_way.insert((at, self.next_message), message);
    }

    // ---- The connector.

    fn host_record(&self, host: usize) -> HostRecord {
        HostRecord {
            id: format!("h{host}"),
            name: format!("h{host}"),
            cluster: Some(format!("c{}", host / 3)),
            maintenance: self.hosts_in_maintenance.contains(&host),
            reachable: true,
        }
    }

    fn vm_record(&self, number: usize) -> VmRecord {
        let vm = &self.vms[number];
        let mut uuid = [7; 16];
        uuid[..8].copy_from_slice(&(number as u64).to_be_bytes());
        VmRecord {
            id: format!("v{number}"),
            name: format!("v{number}"),
            host: Some(format!("h{}", vm.host)),
            power: if vm.running {
                Power::Running
            } else {
                Power::Off
            },
            migrating: false,
            uuid: Some(uuid),
            addresses: BTreeSet::new(),
            tags: BTreeSet::new(),
            pool: Some("sim".to_owned()),
        }
    }

    /// A VM changed: its connector says so, unless the connection is lost.
    pub(crate) fn tell_vm(&mut self, vm: usize) {
        if !self.connector_up {
            return;
        }
        let change = if self.vms[vm].exists {
            InventoryChange::Vm(self.vm_record(vm))
        } else {
            InventoryChange::VmGone(format!("v{vm}"))
        };
        // In order: a connector's events do not overtake each other.
        self.send(1, Message::Inventory(change));
    }

    pub(crate) fn tell_host(&mut self, host: usize) {
        if self.connector_up {
            let change = InventoryChange::Host(self.host_record(host));
            self.send(1, Message::Inventory(change));
        }
    }

    /// The whole inventory, as after a connection.
    pub(crate) fn resync(&mut self) {
        self.connector_up = true;
        for host in 0..HOSTS {
            self.tell_host(host);
        }
        for vm in 0..VMS {
            self.tell_vm(vm);
        }
        self.send(1, Message::Inventory(InventoryChange::Synced));
    }

    // ---- Time.

    /// So much time passes: messages arrive, agents look round, everybody ticks.
    pub(crate) fn step(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            self.now_ms = until.min(self.now_ms + 500);
            self.deliver();
            self.keep_streams();
            self.keep_links();
            let now = self.now();
            let vms = &self.vms;
            self.work.step(now, |vm| vms[vm].running && vms[vm].exists);
            self.ask_turns();
            self.settle_controllers();
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.on_the_way.first_entry() {
            if entry.key().0 > self.now_ms {
                return;
            }
            match entry.remove() {
                Message::Place {
                    via,
                    guest,
                    epoch,
                    appliances,
                } => self.place(via, guest, epoch, &appliances),
                Message::Turn {
                    ticket,
                    answer,
                    lease,
                } => self.work.answered(self.now(), ticket, answer, lease),
                Message::Inventory(change) => {
                    let (now_ms, jump) = (self.now_ms, self.wall_jump_ms);
                    if let Some(controller) = &mut self.controller {
                        let clock = controller.clock(now_ms, jump);
                        controller.core.inventory(clock, CONNECTOR, change);
                    }
                }
            }
        }
    }

    /// A list arrives at an agent that is still connected there.
    fn place(&mut self, via: usize, guest: GuestId, epoch: u64, appliances: &[String]) {
        let Some(number) = self.agents.iter().position(|agent| agent.id == guest) else {
            return;
        };
        let agent = &mut self.agents[number];
        if agent.at != Some(via) || agent.route.offer(epoch, appliances).is_err() {
            return;
        }
        let same = self.obeyed.insert((guest, epoch), appliances.to_vec());
        assert!(
            same.is_none_or(|same| same == appliances),
            "guest {guest} obeys two lists of the epoch {epoch}"
        );
    }

    /// Appliances without a stream get one where they can; one of a controller that has gone ends.
    fn keep_streams(&mut self) {
        let (now_ms, jump) = (self.now_ms, self.wall_jump_ms);
        for number in 0..APPLIANCES {
            let hears = self.appliances[number].up && self.appliances[number].hears;
            let stream = self.appliances[number].stream;
            let Some(controller) = &mut self.controller else {
                self.appliances[number].stream = None;
                continue;
            };
            let clock = controller.clock(now_ms, jump);
            match stream {
                Some((term, id)) if term == controller.term && !hears => {
                    controller.core.appliance_lost(clock, id, false);
                    self.appliances[number].stream = None;
                }
                Some((term, _)) if term == controller.term => {}
                _ if hears => {
                    let id = controller.core.appliance_up(clock, hello(number));
                    self.appliances[number].stream = Some((controller.term, id));
                    for vm in 0..VMS {
                        if self.agents[vm].at == Some(number) {
                            self.say_guest_up(vm);
                        }
                    }
                }
                _ => self.appliances[number].stream = None,
            }
        }
    }

    fn say_guest_up(&mut self, vm: usize) {
        let (now_ms, jump) = (self.now_ms, self.wall_jump_ms);
        let agent = &self.agents[vm];
        let mut uuid = [7; 16];
        uuid[..8].copy_from_slice(&(vm as u64).to_be_bytes());
        let facts = GuestFacts {
            uuid: Some(uuid),
            address: [10, 0, 0, 1].into(),
            hostname: format!("v{vm}"),
            epoch: agent.route.epoch(),
        };
        let stream = agent.at.and_then(|at| self.appliances[at].stream);
        if let (Some(controller), Some((term, id))) = (&mut self.controller, stream)
            && term == controller.term
        {
            let clock = controller.clock(now_ms, jump);
            controller.core.guest_up(clock, id, agent.id, facts);
        }
    }

    fn reaches(&self, vm: usize, appliance: usize) -> bool {
        self.appliances[appliance].up && !self.cut.contains(&(vm, appliance))
    }

    /// Agents fail over by themselves, down their list; and go to the first of a newer list.
    fn keep_links(&mut self) {
        for vm in 0..VMS {
            if !self.vms[vm].running || !self.vms[vm].exists {
                self.leave(vm);
                continue;
            }
            let at = self.agents[vm].at.filter(|at| self.reaches(vm, *at));
            if at.is_none() {
                self.leave(vm);
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
                // The new link is up before the old one is left.
                let old = self.agents[vm].at.replace(to);
                self.moves += u64::from(old.is_some());
                self.say_guest_up(vm);
                if let Some(old) = old {
                    self.say_guest_down(vm, old);
                }
            }
        }
    }

    fn leave(&mut self, vm: usize) {
        if let Some(old) = self.agents[vm].at.take() {
            self.say_guest_down(vm, old);
        }
    }

    fn say_guest_down(&mut self, vm: usize, appliance: usize) {
        let (now_ms, jump) = (self.now_ms, self.wall_jump_ms);
        let stream = self.appliances[appliance].stream;
        if let (Some(controller), Some((term, id))) = (&mut self.controller, stream)
            && term == controller.term
        {
            let clock = controller.clock(now_ms, jump);
            controller.core.guest_down(clock, id, self.agents[vm].id);
        }
    }

    /// Agents ask through the appliance that they are connected to.
    fn ask_turns(&mut self) {
        let (now_ms, jump) = (self.now_ms, self.wall_jump_ms);
        for question in self.work.questions(self.now()) {
            let agent = &self.agents[question.vm];
            let stream = agent.at.and_then(|at| self.appliances[at].stream);
            if let (Some(controller), Some((term, id))) = (&mut self.controller, stream)
                && term == controller.term
            {
                let (clock, from) = (controller.clock(now_ms, jump), (id, question.ticket));
                controller
                    .core
                    .order_turn(clock, from, agent.id, question.ask);
            }
        }
    }

    /// A guest is done before its turn ends.
    pub(crate) fn give_back(&mut self) {
        let (now_ms, jump) = (self.now_ms, self.wall_jump_ms);
        let done = self.work.done_early(&mut self.random);
        if let (Some((vm, turn)), Some(controller)) = (done, &mut self.controller) {
            let clock = controller.clock(now_ms, jump);
            controller.core.turn_over(clock, self.agents[vm].id, turn);
        }
    }

    fn settle_controllers(&mut self) {
        let (now_ms, jump) = (self.now_ms, self.wall_jump_ms);
        // Deposed, and still at work: the disk refuses it, so it says nothing.
        if let Some(deposed) = &mut self.deposed {
            let clock = deposed.clock(now_ms, jump);
            if deposed.settle(&mut self.disk, clock).is_none() {
                self.deposed = None;
            }
        }
        let Some(controller) = self.controller.as_mut().filter(|it| !it.is_paused) else {
            return;
        };
        let clock = controller.clock(now_ms, jump);
        match controller.settle(&mut self.disk, clock) {
            Some(orders) => {
                for order in orders {
                    self.carry_out(order);
                }
            }
            None => self.controller = None,
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Place {
                via,
                guest,
                epoch,
                appliances,
            } => {
                let is_it = |it: &Appliance| it.stream.is_some_and(|(_, id)| id == via);
                if let Some(via) = self.appliances.iter().position(is_it) {
                    // It may come long after, when another controller places.
                    let message = Message::Place {
                        via,
                        guest,
                        epoch,
                        appliances,
                    };
                    self.send(8000, message);
                }
            }
            Order::Turn { ticket, answer, .. } => {
                let turn = match answer {
                    TurnAnswer::Begin { turn, .. } => turn,
                    TurnAnswer::Wait { .. } | TurnAnswer::Refused { .. } => None,
                };
                let core = self.controller.as_ref().map(|it| &it.core);
                let lease = turn.and_then(|turn| core?.turn(turn).copied());
                let message = Message::Turn {
                    ticket,
                    answer,
                    lease,
                };
                self.send(8000, message);
            }
            Order::Warm { .. } => {}
        }
    }

    // ---- What must hold.

    /// What must hold at any moment.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        self.work.check()?;
        for (vm, agent) in self.agents.iter().enumerate() {
            if agent.unscanned != agent.paid + agent.debt {
                return Err(format!("v{vm}: the ledger has lost an open: {agent:?}"));
            }
            let runs = self.vms[vm].running && self.vms[vm].exists;
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
        self.resync();
        for _ in 0..60 {
            self.step(20_000);
            self.check()?;
        }
        for agent in &mut self.agents {
            if agent.at.is_some() {
                agent.open();
            }
        }
        self.check_settled()
    }

    fn check_settled(&self) -> Result<(), String> {
        let controller = self.controller.as_ref().ok_or("nobody places")?;
        let core = &controller.core;
        for (vm, agent) in self.agents.iter().enumerate() {
            if !self.vms[vm].running || !self.vms[vm].exists {
                continue;
            }
            if agent.debt > 0 {
                return Err(format!("v{vm}: {} opens are not paid back", agent.debt));
            }
            let [id] = core.find_vms(&format!("v{vm}"))[..] else {
                return Err(format!(
                    "v{vm} is not one VM: {:?}",
                    core.find_vms(&format!("v{vm}"))
                ));
            };
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

fn hello(number: usize) -> ApplianceHello {
    ApplianceHello {
        name: format!("a{number}"),
        address: address(number),
        host_name: Some(format!("h{}", number * 2 % HOSTS)),
        cluster: None,
        site: None,
        capacity: CAPACITY,
        labels: Vec::new(),
    }
}
