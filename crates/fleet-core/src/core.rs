//! The state and what all its parts share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use model::{GuestId, Machine};
use placement::{
    Admission, ApplianceId, Availability, BootPolicy, BootStorms, Epoch, Fleet, HostId, LeaseId,
    Settings, StormPolicy, VmId,
};

use crate::channels::Channels;
use crate::guests::Guest;
use crate::identity::{Key, Note};
use crate::rows::{Event, Row, StoredAppliance, StoredHost, StoredPlacement, StoredVm};
use crate::sessions::Sessions;
use crate::sites::SiteRules;
use crate::turns::{TurnAnswer, Turns};

/// The load of an average VM; every VM counts as one.
pub(crate) const WEIGHT: u64 = 1000;

/// The time, twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Since any fixed moment, never going back: for every decision.
    pub now: Duration,
    /// Milliseconds since 1970 UTC: for people, and for what was said to count until then.
    pub wall_ms: u64,
}

/// The numbers, each with its default.
#[derive(Debug, Clone, Default)]
pub struct CoreSettings {
    /// Of placement.
    pub placement: Settings,
    /// Of storm control.
    pub storm: StormPolicy,
    /// When starts are a storm.
    pub boot: BootPolicy,
    /// How the fleet's parts are reached and how long they may be silent.
    pub silence: SilenceLimits,
}

/// How long parts of the fleet may be silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilenceLimits {
    /// An appliance whose stream broke is down after this. 5 s.
    pub appliance: Duration,
    /// After a start of the controller appliances have so long to come back. 30 s.
    pub appliance_after_start: Duration,
    /// A guest that no connector knows counts as off after this. 900 s.
    pub guest: Duration,
    /// Events that are kept. 10,000.
    pub events_max: usize,
}

impl Default for SilenceLimits {
    fn default() -> Self {
        Self {
            appliance: Duration::from_secs(5),
            appliance_after_start: Duration::from_secs(30),
            guest: Duration::from_secs(900),
            events_max: 10_000,
        }
    }
}

/// What was written down before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Hosts.
    pub hosts: Vec<StoredHost>,
    /// VMs.
    pub vms: Vec<StoredVm>,
    /// Appliances.
    pub appliances: Vec<StoredAppliance>,
    /// Lists.
    pub placements: Vec<StoredPlacement>,
    /// The latest events, oldest first.
    pub events: Vec<Event>,
    /// Seconds that turns which were given may still last.
    pub turns_out_s: u32,
}

/// What is to be sent once everything before it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// A guest's list, through the appliance that it is connected to.
    Place {
        /// That appliance.
        via: ApplianceId,
        /// Whose list.
        guest: GuestId,
        /// Its epoch.
        epoch: u64,
        /// How the appliances are reached, first the best.
        appliances: Vec<String>,
    },
    /// What an appliance knows of a guest's contents goes to where the guest will be.
    Warm {
        /// Who knows.
        from: ApplianceId,
        /// Who shall.
        to: ApplianceId,
        /// Of whom.
        guest: GuestId,
    },
    /// The answer to a guest that asked for a turn.
    Turn {
        /// The appliance that asked for it.
        via: ApplianceId,
        /// What that calls the question.
        ticket: u64,
        /// When the guest may work.
        answer: TurnAnswer,
    },
    /// A guest's turn is over before its end: its VM is where there is no room for it.
    TurnOver {
        /// An appliance that the guest is connected to.
        via: ApplianceId,
        /// Whose.
        guest: GuestId,
        /// Which.
        turn: LeaseId,
    },
    /// A session is a copy's: it is told to ask for an identity of its own.
    Rekey {
        /// The appliance that has it.
        via: ApplianceId,
        /// The guest that it is a copy of.
        guest: GuestId,
        /// The key that it shows.
        key: Option<Key>,
        /// What its machine says of itself.
        machine: Machine,
        /// Why, for people.
        reason: String,
    },
}

/// The fleet as the controller sees it.
#[derive(Debug)]
pub struct Core {
    pub(crate) silence: SilenceLimits,
    pub(crate) sites: SiteRules,
    pub(crate) fleet: Fleet,
    pub(crate) admission: Admission,
    pub(crate) turns: Turns,
    pub(crate) storms: BootStorms,
    pub(crate) hosts: BTreeMap<HostId, StoredHost>,
    pub(crate) host_ids: BTreeMap<(String, String), HostId>,
    pub(crate) vms: BTreeMap<VmId, StoredVm>,
    pub(crate) vm_ids: BTreeMap<(String, String), VmId>,
    pub(crate) by_uuid: BTreeMap<[u8; 16], BTreeSet<VmId>>,
    pub(crate) unseen_hosts: BTreeSet<HostId>,
    pub(crate) unseen_vms: BTreeSet<VmId>,
    /// VMs on a host that no connector has told of.
    pub(crate) hostless: BTreeSet<VmId>,
    pub(crate) appliances: BTreeMap<ApplianceId, StoredAppliance>,
    pub(crate) appliance_ids: BTreeMap<String, ApplianceId>,
    pub(crate) by_address: BTreeMap<String, ApplianceId>,
    /// Appliances whose stream is up.
    pub(crate) connected: BTreeSet<ApplianceId>,
    /// When those without a stream are down.
    pub(crate) down_at: BTreeMap<ApplianceId, Duration>,
    pub(crate) guests: BTreeMap<GuestId, Guest>,
    pub(crate) channels: Channels,
    pub(crate) vm_of_guest: BTreeMap<GuestId, VmId>,
    /// Guests without a connector that are not connected, and since when.
    pub(crate) absent: BTreeMap<GuestId, Duration>,
    /// Sessions of each guest, to tell a copy's from its own.
    pub(crate) sessions: BTreeMap<GuestId, Sessions>,
    /// When sessions that overlap are looked at again.
    pub(crate) suspects: BTreeSet<(Duration, GuestId)>,
    pub(crate) conflicts: u64,
    pub(crate) notes: Vec<Note>,
    pub(crate) events: VecDeque<Event>,
    last_event: u64,
    last_id: u64,
    writes: Vec<Row>,
    pub(crate) orders: Vec<Order>,
}

impl Core {
    /// Goes on from what was written down. `seed` must be the same over restarts and `term`
    /// higher than any before.
    #[must_use]
    pub fn new(
        clock: Clock,
        settings: CoreSettings,
        sites: SiteRules,
        (seed, term): (u64, u32),
        loaded: Loaded,
    ) -> Self {
        let mut fleet = Fleet::new(settings.placement, seed, term);
        fleet.set_rules(clock.now, sites.rules.clone());
        let mut core = Self {
            silence: settings.silence,
            sites,
            fleet,
            admission: Admission::new(settings.storm, seed, term),
            turns: Turns::default(),
            storms: BootStorms::new(settings.boot),
            hosts: BTreeMap::new(),
            host_ids: BTreeMap::new(),
            vms: BTreeMap::new(),
            vm_ids: BTreeMap::new(),
            by_uuid: BTreeMap::new(),
            unseen_hosts: BTreeSet::new(),
            unseen_vms: BTreeSet::new(),
            hostless: BTreeSet::new(),
            appliances: BTreeMap::new(),
            appliance_ids: BTreeMap::new(),
            by_address: BTreeMap::new(),
            connected: BTreeSet::new(),
            down_at: BTreeMap::new(),
            guests: BTreeMap::new(),
            channels: Channels::default(),
            vm_of_guest: BTreeMap::new(),
            absent: BTreeMap::new(),
            sessions: BTreeMap::new(),
            suspects: BTreeSet::new(),
            conflicts: 0,
            notes: Vec::new(),
            events: VecDeque::new(),
            last_event: 0,
            last_id: 0,
            writes: Vec::new(),
            orders: Vec::new(),
        };
        core.load(clock, loaded);
        core
    }

    fn load(&mut self, clock: Clock, loaded: Loaded) {
        let now = clock.now;
        let ids = loaded.hosts.iter().map(|host| host.id);
        let ids = ids.chain(loaded.vms.iter().map(|vm| vm.id));
        let ids = ids.chain(loaded.appliances.iter().map(|appliance| appliance.id));
        self.last_id = ids.max().unwrap_or(0);
        self.load_turns(now, loaded.turns_out_s);
        self.last_event = loaded
            .events
            .iter()
            .map(|event| event.id)
            .max()
            .unwrap_or(0);
        self.events = loaded.events.into();
        for mut host in loaded.hosts {
            let id = HostId(host.id);
            host.site = self
                .sites
                .site_of(&host.connector, host.record.cluster.as_deref());
            self.fleet
                .put_host(now, id, crate::inventory::host_facts(&host));
            let key = (host.connector.clone(), host.record.id.clone());
            self.host_ids.insert(key, id);
            self.unseen_hosts.insert(id);
            self.hosts.insert(id, host);
        }
        for stored in loaded.appliances {
            let id = ApplianceId(stored.id);
            self.appliance_ids.insert(stored.name.clone(), id);
            self.by_address.insert(stored.address.clone(), id);
            let to = if stored.draining {
                Availability::Draining
            } else {
                Availability::Up
            };
            self.appliances.insert(id, stored);
            self.tell_of_appliance(clock, id);
            // Presumed to be there: a controller that starts must not move the fleet.
            self.fleet.set_availability(now, id, to);
            self.down_at
                .insert(id, now + self.silence.appliance_after_start);
        }
        let mut lists: BTreeMap<u64, StoredPlacement> = loaded
            .placements
            .into_iter()
            .map(|list| (list.vm, list))
            .collect();
        for vm in loaded.vms {
            let list = lists.remove(&vm.id);
            self.load_vm(clock, vm, list);
        }
    }

    fn load_vm(&mut self, clock: Clock, vm: StoredVm, list: Option<StoredPlacement>) {
        let id = VmId(vm.id);
        let key = (vm.connector.clone(), vm.record.id.clone());
        self.vm_ids.insert(key, id);
        if vm.connector == crate::guests::NO_CONNECTOR {
            // Its agent says whether it is still there.
            self.absent.extend(vm.guest.map(|guest| (guest, clock.now)));
        } else {
            self.unseen_vms.insert(id);
        }
        if let Some(uuid) = vm.record.uuid {
            self.by_uuid.entry(uuid).or_default().insert(id);
        }
        if let Some(guest) = vm.guest {
            self.vm_of_guest.insert(guest, id);
        }
        let facts = self.facts_of(&vm);
        let is_hostless = facts.host.is_none() && vm.record.host.is_some();
        self.note_hostless(id, is_hostless);
        let list = list
            .map(|list| (list.appliances, list.epoch))
            .unwrap_or_default();
        let appliances: Vec<ApplianceId> = list.0.into_iter().map(ApplianceId).collect();
        self.fleet
            .restore(clock.now, id, facts, &appliances, Epoch(list.1));
        self.vms.insert(id, vm);
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn write(&mut self, row: Row) {
        self.writes.push(row);
    }

    pub(crate) fn event(&mut self, clock: Clock, kind: &str, text: String) {
        self.last_event += 1;
        let event = Event {
            id: self.last_event,
            at_ms: clock.wall_ms,
            kind: kind.to_owned(),
            text,
        };
        if self.events.len() >= self.silence.events_max {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        self.write(Row::Event(event));
    }

    /// Goes on with what time does. True: there is more to do right now.
    pub fn tick(&mut self, clock: Clock) -> bool {
        self.silent_appliances(clock);
        self.silent_guests(clock);
        self.overlapping(clock);
        self.forget_turns(clock.now);
        self.fleet.tick(clock.now)
    }

    /// What has to be written down before anything that [`Self::take_orders`] gave is sent. An
    /// earlier row of the same thing is replaced by a later one.
    pub fn take_writes(&mut self) -> Vec<Row> {
        self.note_changes();
        std::mem::take(&mut self.writes)
    }

    /// What is to be sent, in order; to be called after [`Self::take_writes`].
    pub fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// Placement as it is.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }
}
