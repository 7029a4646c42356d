//! A course of events by seed.

use crate::controller::Controller;
use crate::world::{APPLIANCES, HOSTS, World};

/// Events in one course.
const EVENTS: usize = 120;

/// What a course came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Times that agents went from one appliance to another.
    pub moves: u64,
    /// Opens that were answered without a verdict; all of them were paid back.
    pub unscanned: u64,
    /// Work done in turns.
    pub work: u64,
    /// Work that stopped since its guest moved to where there was no room for it.
    pub stopped: u64,
    /// Guests that nobody told the move of, and that measuring brought to their host's appliance.
    pub corrected: u64,
    /// Copies of machines that got an identity of their own.
    pub rekeyed: u64,
    /// Machines that were set back to a snapshot.
    pub restored: u64,
    /// Terms of controllers.
    pub terms: u32,
}

/// Plays the course of a seed.
///
/// # Errors
/// What did not hold, and after which event.
pub fn run(seed: u64) -> Result<Outcome, String> {
    let mut world = World::new(seed);
    for number in 0..EVENTS {
        let what = happen(&mut world);
        let time = 500 + world.random.next() % 15_000;
        world.step(time);
        world
            .check()
            .map_err(|broken| format!("event {number}, {what}: {broken}"))?;
    }
    world
        .settle()
        .map_err(|broken| format!("at the end: {broken}"))?;
    Ok(Outcome {
        moves: world.moves,
        unscanned: world.agents.iter().map(|agent| agent.unscanned).sum(),
        work: world.work.done,
        stopped: world.work.stopped,
        corrected: world.corrected,
        rekeyed: world.truth.rekeyed,
        restored: world.truth.restored,
        terms: world.disk.term,
    })
}

/// Something happens; what, for people.
fn happen(world: &mut World) -> &'static str {
    match world.random.below(26) {
        0..=4 => migrate(world),
        20 => lose_an_event(world),
        5 => evacuate(world),
        6 | 7 => appliance(world),
        8 => stream(world),
        9 => partition(world),
        10 => controller(world),
        11 => connector(world),
        12 => clock_jump(world),
        13 => boot_storm(world),
        14 => power(world),
        15 | 16 => opens(world),
        17 => maintenance(world),
        21 => copy(world),
        22 => set_back(world),
        23 => snapshots(world),
        24 => renewals(world),
        25 => {
            world.delete_copy();
            "a copy is deleted"
        }
        _ => work(world),
    }
}

fn migrate(world: &mut World) -> &'static str {
    let (vm, host) = (
        world.random.below(world.vms.len()),
        world.random.below(HOSTS),
    );
    world.vms[vm].host = host;
    world.tell_vm(vm);
    "a migration"
}

/// Some VMs move, and their connector tells nothing.
fn lose_an_event(world: &mut World) -> &'static str {
    for _ in 0..3 {
        let vm = world.random.below(world.vms.len());
        world.vms[vm].host = world.random.below(HOSTS);
    }
    "migrations that nobody tells of"
}

fn evacuate(world: &mut World) -> &'static str {
    let host = world.random.below(HOSTS);
    for vm in 0..world.vms.len() {
        if world.vms[vm].host == host {
            world.vms[vm].host = (host + 1 + world.random.below(HOSTS - 1)) % HOSTS;
            world.tell_vm(vm);
        }
    }
    "an evacuation"
}

fn appliance(world: &mut World) -> &'static str {
    let number = world.random.below(APPLIANCES);
    world.appliances[number].up = !world.appliances[number].up;
    "an appliance dies or returns"
}

fn stream(world: &mut World) -> &'static str {
    let number = world.random.below(APPLIANCES);
    world.appliances[number].hears = !world.appliances[number].hears;
    "a stream is lost or had again"
}

fn partition(world: &mut World) -> &'static str {
    if world.random.chance(40) {
        world.cut.clear();
        return "the network heals";
    }
    for _ in 0..20 {
        let pair = (
            world.random.below(world.vms.len()),
            world.random.below(APPLIANCES),
        );
        world.cut.insert(pair);
    }
    "a partition"
}

/// Killed, paused for long, or taken over from while it goes on.
fn controller(world: &mut World) -> &'static str {
    let now_ms = world.now_ms;
    match world.random.below(4) {
        0 => {
            world.controller = None;
            "the controller is killed"
        }
        1 => {
            if let Some(controller) = &mut world.controller {
                controller.is_paused = !controller.is_paused;
            }
            "the controller is paused or goes on"
        }
        _ => {
            world.deposed = world.controller.take();
            world.controller = Some(Controller::lead(&mut world.disk, now_ms));
            world.resync();
            "another controller takes over"
        }
    }
}

fn connector(world: &mut World) -> &'static str {
    if world.connector_up {
        world.connector_up = false;
        "the connector loses its hypervisor"
    } else {
        world.resync();
        "the connector is back"
    }
}

fn clock_jump(world: &mut World) -> &'static str {
    let hours = i64::try_from(world.random.below(200)).unwrap_or(0) - 100;
    world.wall_jump_ms = hours * 3_600_000;
    "the clock jumps"
}

/// Half the fleet starts at once.
fn boot_storm(world: &mut World) -> &'static str {
    for vm in 0..world.vms.len() {
        if world.random.chance(50) {
            (world.vms[vm].exists, world.vms[vm].running) = (true, true);
            world.tell_vm(vm);
        }
    }
    "a storm of starts"
}

fn power(world: &mut World) -> &'static str {
    let vm = world.random.below(world.vms.len());
    if world.random.chance(30) {
        world.vms[vm].exists = !world.vms[vm].exists;
    } else {
        world.vms[vm].running = !world.vms[vm].running;
    }
    world.tell_vm(vm);
    "a VM starts, stops, comes or goes"
}

fn opens(world: &mut World) -> &'static str {
    for _ in 0..30 {
        let vm = world.random.below(world.vms.len());
        if world.runs(vm) {
            world.agents[vm].open();
        }
    }
    "files are opened"
}

fn copy(world: &mut World) -> &'static str {
    let from = world.random.below(world.vms.len());
    let keeps_uuid = world.random.chance(50);
    world.copy(from, keeps_uuid);
    if keeps_uuid {
        "a machine is copied with its UUID"
    } else {
        "a machine is copied"
    }
}

fn snapshots(world: &mut World) -> &'static str {
    for _ in 0..10 {
        let vm = world.random.below(world.vms.len());
        world.take_snapshot(vm);
    }
    "snapshots are made"
}

fn set_back(world: &mut World) -> &'static str {
    for _ in 0..3 {
        let vm = world.random.below(world.vms.len());
        world.restore(vm);
    }
    "machines are set back to snapshots"
}

fn renewals(world: &mut World) -> &'static str {
    for _ in 0..15 {
        let vm = world.random.below(world.vms.len());
        world.renew(vm);
    }
    "certificates are renewed"
}

fn maintenance(world: &mut World) -> &'static str {
    let host = world.random.below(HOSTS);
    if !world.hosts_in_maintenance.remove(&host) {
        world.hosts_in_maintenance.insert(host);
    }
    world.tell_host(host);
    "a host goes into maintenance or comes back"
}

fn work(world: &mut World) -> &'static str {
    let now = world.now();
    for _ in 0..10 {
        let vm = world.random.below(world.vms.len());
        if world.runs(vm) && world.is_alone(vm) {
            world.work.wish(&mut world.random, now, vm);
        }
    }
    world.give_back();
    "guests have work to do"
}
