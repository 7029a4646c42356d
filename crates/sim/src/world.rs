//! What there is, and the messages on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fleet_core::{
    ApplianceHello, GuestFacts, HostRecord, InventoryChange, KnownGuest, Order, Power, TurnAnswer,
    VmRecord,
};
use model::{GuestId, Machine};
use placement::{ApplianceId, Lease, LeaseId};

use crate::controller::Controller;
use crate::disk::Disk;
use crate::guests::{Agent, address, appliance_of, host_of};
use crate::random::Random;
use crate::work::{Books, Work};

pub(crate) const HOSTS: usize = 9;
pub(crate) const APPLIANCES: usize = 5;
const VMS: usize = 27;
/// VMs that one appliance carries.
const CAPACITY: u64 = 12;
const CONNECTOR: &str = "sim";
/// How often an agent measures.
const MEASURE_MS: u64 = 60_000;

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
    TurnOver {
        via: usize,
        guest: GuestId,
        turn: LeaseId,
    },
}

/// A round trip between two hosts, as an agent measures it: never exact.
fn rtt_us(from: usize, to: usize, random: &mut Random) -> u32 {
    let about = if from == to {
        100
    } else if from / 3 == to / 3 {
        400
    } else {
        2000
    };
    about + (random.next() % (u64::from(about) / 4)) as u32
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
    /// When the last word about turns reaches each guest: they do not overtake each other.
    last_word: BTreeMap<usize, u64>,
    pub(crate) connector_up: bool,
    /// Every list that was ever obeyed, by guest and epoch.
    obeyed: BTreeMap<(GuestId, u64), Vec<String>>,
    pub(crate) moves: u64,
    /// VMs that measured round trips alone brought to the appliance on their host.
    pub(crate) corrected: u64,
    /// A guest that was taken for a copy. Here are none.
    pub(crate) rekeyed: Option<GuestId>,
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
            last_word: BTreeMap::new(),
            connector_up: true,
            obeyed: BTreeMap::new(),
            moves: 0,
            rekeyed: None,
            corrected: 0,
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
        self.send_at(at, message);
    }

    /// A word about a guest's turns comes after those that were said before.
    fn send_word(&mut self, vm: usize, message: Message) {
        let at = self.now_ms + self.random.next() % 8000;
        let last = self.last_word.entry(vm).or_default();
        *last = at.max(*last);
        let at = *last;
        self.send_at(at, message);
    }

    fn send_at(&mut self, at: u64, message: Message) {
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
            let before_ms = self.now_ms;
            self.now_ms = until.min(before_ms + 500);
            self.deliver();
            self.keep_streams();
            self.keep_links();
            let now = self.now();
            let vms = &self.vms;
            self.work.step(now, |vm| vms[vm].running && vms[vm].exists);
            self.ask_turns();
            self.measure(before_ms);
            self.settle_controllers();
            self.follow_leases(Duration::from_millis(self.now_ms - before_ms));
        }
    }

    /// What the controller's books say of the work that is under way.
    fn follow_leases(&mut self, elapsed: Duration) {
        let controller = self.controller.as_ref();
        let books = |vm: usize, turn: LeaseId| {
            let Some(controller) = controller.filter(|it| u64::from(it.term) == turn.0 >> 32)
            else {
                return Books::Unknown;
            };
            let at = self.agents[vm].at.and_then(|at| self.appliances[at].stream);
            let hears =
                !controller.is_paused && at.is_some_and(|(term, _)| term == controller.term);
            let lease = controller.core.turn(turn).copied();
            lease.map_or(Books::Taken { hears }, Books::Charged)
        };
        self.work.follow(elapsed, books);
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
                Message::TurnOver { via, guest, turn } => {
                    let vm = self.agents.iter().position(|agent| agent.id == guest);
                    if let Some(vm) = vm.filter(|vm| self.agents[*vm].at == Some(via)) {
                        self.work.taken_back(vm, turn);
                    }
                }
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
        let machine = Machine {
            system_uuid: Some(uuid),
            generation_id: Some(uuid),
            macs: Vec::new(),
            boot_id: Some(uuid),
        };
        let facts = GuestFacts {
            uuid: Some(uuid),
            address: [10, 0, 0, 1].into(),
            hostname: format!("v{vm}"),
            epoch: agent.route.epoch(),
            channel: None,
            key: Some(uuid),
            machine: machine.clone(),
            known: Some(KnownGuest {
                key: Some(uuid),
                issued: Vec::new(),
                machine,
            }),
            vm: None,
        };
        let stream = agent.at.and_then(|at| self.appliances[at].stream);
        if let (Some(controller), Some((term, id))) = (&mut self.controller, stream)
            && term == controller.term
        {
            let clock = controller.clock(now_ms, jump);
            controller.core.guest_up(clock, id, agent.id, facts);
        }
    }

    pub(crate) fn reaches(&self, vm: usize, appliance: usize) -> bool {
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

    /// Once a minute each agent measures the appliances of its list, wherever it is said to be.
    fn measure(&mut self, before_ms: u64) {
        let (now_ms, jump) = (self.now_ms, self.wall_jump_ms);
        for vm in 0..VMS {
            let agent = &self.agents[vm];
            let stream = agent.at.and_then(|at| self.appliances[at].stream);
            // A fleet does not measure in step.
            let round = |ms: u64| (ms + vm as u64 * 2000) / MEASURE_MS;
            let is_due = round(now_ms) != round(before_ms);
            let (Some(controller), Some((term, _)), true) = (&mut self.controller, stream, is_due)
            else {
                continue;
            };
            if term != controller.term {
                continue;
            }
            for name in agent.route.appliances() {
                let to = appliance_of(name);
                let to = to.filter(|to| self.appliances[*to].up && !self.cut.contains(&(vm, *to)));
                if let Some(to) = to {
                    let rtt_us = rtt_us(self.vms[vm].host, host_of(to), &mut self.random);
                    let clock = controller.clock(now_ms, jump);
                    controller.core.measured(clock, agent.id, name, rtt_us);
                }
            }
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
                // Who is told nothing any more asks no more.
                if let Some(vm) = self.work.asker(ticket) {
                    self.send_word(vm, message);
                }
            }
            Order::TurnOver { via, guest, turn } => {
                let is_it = |it: &Appliance| it.stream.is_some_and(|(_, id)| id == via);
                let via = self.appliances.iter().position(is_it);
                let vm = self.agents.iter().position(|agent| agent.id == guest);
                if let (Some(via), Some(vm)) = (via, vm) {
                    self.send_word(vm, Message::TurnOver { via, guest, turn });
                }
            }
            Order::Warm { .. } => {}
            Order::Rekey { guest, .. } => self.rekeyed = Some(guest),
        }
    }
}

fn hello(number: usize) -> ApplianceHello {
    ApplianceHello {
        name: format!("a{number}"),
        address: address(number),
        host_name: Some(format!("h{}", host_of(number))),
        cluster: None,
        site: None,
        capacity: CAPACITY,
        labels: Vec::new(),
    }
}
