//! What there is, and the messages on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use fleet_core::{
    ApplianceHello, Clock, Core, HostRecord, InventoryChange, Order, Power, TurnAnswer, VmRecord,
};
use model::{GuestId, Machine};
use placement::{ApplianceId, Lease, LeaseId};

use crate::controller::Controller;
use crate::disk::Disk;
use crate::guests::{Agent, address, appliance_of, host_of};
use crate::identity::Truth;
use crate::random::Random;
use crate::sessions::Gate;
use crate::work::{Books, Work};

pub(crate) const HOSTS: usize = 9;
pub(crate) const APPLIANCES: usize = 5;
pub(crate) const VMS: usize = 27;
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
    /// What its firmware says.
    pub(crate) machine: Machine,
    /// The agent in it, as it was once.
    pub(crate) snapshot: Option<Agent>,
}

impl Vm {
    pub(crate) fn new(host: usize, machine: Machine) -> Self {
        Self {
            host,
            running: true,
            exists: true,
            machine,
            snapshot: None,
        }
    }
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
        vm: usize,
        turn: LeaseId,
    },
    Rekey(Gate),
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
    /// Sessions as appliances see them, in the order they began.
    pub(crate) gates: Vec<Gate>,
    pub(crate) truth: Truth,
    /// Pairs of VM and appliance that cannot reach each other.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) work: Work,
    on_the_way: BTreeMap<(u64, u64), Message>,
    next_message: u64,
    /// When the last word about turns reaches each guest: they do not overtake each other.
    last_word: BTreeMap<usize, u64>,
    pub(crate) connector_up: bool,
    pub(crate) moves: u64,
    /// VMs that measured round trips alone brought to the appliance on their host.
    pub(crate) corrected: u64,
}

impl World {
    /// A small fleet, all of it up.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut disk = Disk::default();
        let controller = Some(Controller::lead(&mut disk, 0));
        let mut world = Self {
            random: Random::new(seed),
            now_ms: 0,
            wall_jump_ms: 0,
            disk,
            controller,
            deposed: None,
            hosts_in_maintenance: BTreeSet::new(),
            vms: Vec::new(),
            appliances: vec![
                Appliance {
                    up: true,
                    hears: true,
                    stream: None,
                };
                APPLIANCES
            ],
            agents: vec![Agent::default(); VMS],
            gates: Vec::new(),
            truth: Truth::default(),
            cut: BTreeSet::new(),
            work: Work::default(),
            on_the_way: BTreeMap::new(),
            next_message: 0,
            last_word: BTreeMap::new(),
            connector_up: true,
            moves: 0,
            corrected: 0,
        };
        for vm in 0..VMS {
            let machine = Machine {
                system_uuid: Some(world.truth.fresh()),
                generation_id: Some(world.truth.fresh()),
                ..Machine::default()
            };
            world.vms.push(Vm::new(vm % HOSTS, machine));
        }
        world.join_all();
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

    pub(crate) fn send_rekey(&mut self, gate: &Gate) {
        self.send(8000, Message::Rekey(gate.clone()));
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
            uuid: vm.machine.system_uuid,
            addresses: BTreeSet::from([address_of(number)]),
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
        for vm in 0..self.vms.len() {
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
            self.rekey_told();
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
            // Of several sessions of a guest, one may be a copy's or a dead one's.
            let own = self
                .gates
                .iter()
                .filter(|it| it.guest == self.agents[vm].id);
            let hears = !controller.is_paused
                && at.is_some_and(|(term, _)| term == controller.term)
                && own.count() == 1;
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
                Message::TurnOver { via, vm, turn } => {
                    if self.agents[vm].at == Some(via) {
                        self.work.taken_back(vm, turn);
                    }
                }
                Message::Rekey(gate) => self.told_to_rekey(&gate),
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

    /// A list arrives at an agent that is still connected there: at the first of a guest's sessions.
    fn place(&mut self, via: usize, guest: GuestId, epoch: u64, appliances: &[String]) {
        let mut gates = self.gates.iter();
        let first = gates.find(|it| it.via == via && it.guest == guest);
        let Some(gate) = first.filter(|it| it.is_live()) else {
            return;
        };
        let (vm, is_alone) = (gate.vm, self.is_alone(gate.vm));
        let agent = &mut self.agents[vm];
        // What is not later is refused; that there are two of one epoch is wrong all the same.
        let _refused = agent.route.offer(epoch, appliances);
        if !is_alone {
            return;
        }
        let same = agent.told.insert(epoch, appliances.to_vec());
        if same.is_some_and(|same| same != appliances) {
            let broken = format!("guest {guest} is told two lists of the epoch {epoch}");
            self.truth.broken.get_or_insert(broken);
        }
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
                    self.say_all_up(number);
                }
                _ => self.appliances[number].stream = None,
            }
        }
    }

    /// The appliance that the controller calls so on its stream.
    fn with_this_stream(&self, id: ApplianceId) -> Option<usize> {
        let is_it = |it: &Appliance| it.stream.is_some_and(|(_, its)| its == id);
        self.appliances.iter().position(is_it)
    }

    /// Tells the controller something through an appliance's stream; `None`: there is none.
    pub(crate) fn with_stream<T>(
        &mut self,
        via: usize,
        tell: impl FnOnce(&mut Core, Clock, ApplianceId) -> T,
    ) -> Option<T> {
        let (term, id) = self.appliances[via].stream?;
        let controller = self.controller.as_mut().filter(|it| it.term == term)?;
        let clock = controller.clock(self.now_ms, self.wall_jump_ms);
        Some(tell(&mut controller.core, clock, id))
    }

    pub(crate) fn runs(&self, vm: usize) -> bool {
        self.vms[vm].running && self.vms[vm].exists
    }

    /// Once a minute each agent measures the appliances of its list, wherever it is said to be.
    fn measure(&mut self, before_ms: u64) {
        for vm in 0..self.vms.len() {
            // A fleet does not measure in step.
            let round = |ms: u64| (ms + vm as u64 * 2000) / MEASURE_MS;
            let is_due = round(self.now_ms) != round(before_ms);
            let Some(at) = self.agents[vm].at.filter(|_| is_due) else {
                continue;
            };
            let guest = self.agents[vm].id;
            for name in self.agents[vm].route.appliances().to_vec() {
                let to = appliance_of(&name).filter(|to| self.reaches(vm, *to));
                if let Some(to) = to {
                    let rtt_us = rtt_us(self.vms[vm].host, host_of(to), &mut self.random);
                    self.with_stream(at, |core, clock, _| {
                        core.measured(clock, guest, &name, rtt_us)
                    });
                }
            }
        }
    }

    /// Agents ask through the appliance that they are connected to.
    fn ask_turns(&mut self) {
        for question in self.work.questions(self.now()) {
            let agent = &self.agents[question.vm];
            let (guest, at) = (agent.id, agent.at);
            if let Some(at) = at {
                self.with_stream(at, |core, clock, id| {
                    core.order_turn(clock, (id, question.ticket), guest, question.ask);
                });
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
                if let Some(via) = self.with_this_stream(via) {
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
                let via = self.with_this_stream(via);
                let told = self.gates.iter();
                let told = told.filter(|it| Some(it.via) == via && it.guest == guest);
                for gate in told.filter(|it| it.is_live()).cloned().collect::<Vec<_>>() {
                    let (via, vm) = (gate.via, gate.vm);
                    self.send_word(vm, Message::TurnOver { via, vm, turn });
                }
            }
            Order::Warm { .. } => {}
            Order::Rekey {
                via,
                guest,
                key,
                machine,
                reason,
            } => {
                let via = self.with_this_stream(via);
                let gate = via.and_then(|via| self.gate_of(via, guest, key, &machine));
                if let Some(gate) = gate {
                    self.order_rekey(&gate, &reason);
                }
            }
        }
    }
}

/// Where a VM is reached.
pub(crate) fn address_of(vm: usize) -> IpAddr {
    let [.., high, low] = vm.to_be_bytes();
    [10, 0, high, low].into()
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
