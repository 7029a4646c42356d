//! XAPI's objects as records.

use std::collections::{BTreeMap, BTreeSet};

use hypervisor::{
    Host, HostId, HostState, Mac, Migration, Observation, Power, Snapshot, Vm, VmId, bounded_name,
};

use crate::xmlrpc::Value;

/// Classes whose events are asked for.
pub(crate) const CLASSES: [&str; 4] = ["pool", "host", "vif", "vm"];
const NOTHING: &str = "OpaqueRef:NULL";
/// Operations during which a VM moves.
const MOVES: [&str; 2] = ["pool_migrate", "migrate_send"];

/// All objects, by their references.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pool: Option<String>,
    hosts: BTreeMap<String, Host>,
    vms: BTreeMap<String, Found>,
    vifs: BTreeMap<String, Vif>,
}

#[derive(Debug)]
struct Vif {
    vm: String,
    mac: Mac,
}

/// A VM, and references that are resolved when hosts are known.
#[derive(Debug)]
struct Found {
    vm: Vm,
    resident_on: String,
    is_moving: bool,
    moves_to: String,
}

impl Objects {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for host in self.hosts.values() {
            snapshot.add_host(self.resolve_host(host));
        }
        for (reference, found) in &self.vms {
            snapshot.add_vm(self.resolve(reference, found));
        }
        snapshot
    }

    /// Takes an answer of `event.from` in; the next token. `None` where it makes no sense.
    pub(crate) fn take(&mut self, answer: &Value, seen: &mut Vec<Observation>) -> Option<String> {
        let mut touched = BTreeSet::new();
        for event in answer.get("events")?.list()? {
            let class = event.text_of("class")?;
            let reference = event.text_of("ref")?;
            let is_gone = event.text_of("operation")? == "del";
            let snapshot = event.get("snapshot").filter(|_| !is_gone);
            match class {
                "host" => self.take_host(reference, snapshot, seen),
                "vm" => {
                    self.take_vm(reference, snapshot, seen);
                    touched.insert(reference.to_owned());
                }
                "vif" => touched.extend(self.take_vif(reference, snapshot)),
                "pool" => self.pool = snapshot.and_then(pool_name).or(self.pool.take()),
                _ => {}
            }
        }
        // A host may come after a VM that is on it, a network card after its VM.
        for reference in touched {
            if let Some(found) = self.vms.get(&reference) {
                seen.push(Observation::Vm(self.resolve(&reference, found)));
            }
        }
        Some(answer.text_of("token")?.to_owned())
    }

    fn take_host(
        &mut self,
        reference: &str,
        snapshot: Option<&Value>,
        seen: &mut Vec<Observation>,
    ) {
        let Some(snapshot) = snapshot else {
            if let Some(host) = self.hosts.remove(reference) {
                seen.push(Observation::HostGone(host.id));
            }
            return;
        };
        let Some(id) = snapshot.text_of("uuid").and_then(|id| HostId::new(id).ok()) else {
            return;
        };
        let host = Host {
            id,
            name: bounded_name(snapshot.text_of("name_label").unwrap_or_default()),
            cluster: None,
            state: if snapshot.is("enabled") {
                HostState::Up
            } else {
                HostState::Maintenance
            },
        };
        seen.push(Observation::Host(self.resolve_host(&host)));
        self.hosts.insert(reference.to_owned(), host);
    }

    fn take_vm(&mut self, reference: &str, snapshot: Option<&Value>, seen: &mut Vec<Observation>) {
        let Some(snapshot) = snapshot else {
            if let Some(found) = self.vms.remove(reference) {
                seen.push(Observation::VmGone(found.vm.id));
            }
            return;
        };
        // Dom0 is the host; a snapshot is no machine.
        if snapshot.is("is_control_domain") || snapshot.is("is_a_snapshot") {
            return;
        }
        if let Some(found) = read_vm(snapshot) {
            self.vms.insert(reference.to_owned(), found);
        }
    }

    /// The VM whose network cards are others now.
    fn take_vif(&mut self, reference: &str, snapshot: Option<&Value>) -> Option<String> {
        let Some(snapshot) = snapshot else {
            return Some(self.vifs.remove(reference)?.vm);
        };
        let vm = snapshot.text_of("VM")?.to_owned();
        let mac = snapshot.text_of("MAC")?.parse().ok()?;
        let vif = Vif {
            vm: vm.clone(),
            mac,
        };
        self.vifs.insert(reference.to_owned(), vif);
        Some(vm)
    }

    fn resolve_host(&self, host: &Host) -> Host {
        Host {
            cluster: self.pool.clone(),
            ..host.clone()
        }
    }

    fn resolve(&self, reference: &str, found: &Found) -> Vm {
        let host = |reference: &str| Some(self.hosts.get(reference)?.id.clone());
        let mut vm = found.vm.clone();
        vm.host = host(&found.resident_on);
        if found.is_moving {
            let to = host(&found.moves_to).filter(|to| vm.host.as_ref() != Some(to));
            vm.migration = Some(Migration { to });
        }
        let cards = self.vifs.values().filter(|vif| vif.vm == reference);
        vm.macs = cards.map(|vif| vif.mac).collect();
        vm
    }

    /// The reference of a VM.
    pub(crate) fn vm_reference(&self, vm: &VmId) -> Option<&str> {
        let mut all = self.vms.iter();
        let (reference, _) = all.find(|(_, found)| found.vm.id == *vm)?;
        Some(reference)
    }
}

fn pool_name(snapshot: &Value) -> Option<String> {
    let name = snapshot.text_of("name_label")?;
    (!name.is_empty()).then(|| bounded_name(name))
}

fn read_vm(snapshot: &Value) -> Option<Found> {
    let uuid = snapshot.text_of("uuid")?;
    let name = snapshot.text_of("name_label").unwrap_or_default();
    let mut vm = Vm::new(VmId::new(uuid).ok()?, name);
    vm.power = match snapshot.text_of("power_state")? {
        "Running" => Power::Running,
        "Halted" => Power::Off,
        "Paused" => Power::Paused,
        "Suspended" => Power::Suspended,
        _ => Power::Unknown,
    };
    vm.smbios_uuid = parse_uuid(uuid);
    vm.is_template = snapshot.is("is_a_template");
    let tags = snapshot.get("tags").and_then(Value::list);
    let tags = tags.unwrap_or_default().iter().filter_map(Value::text);
    vm.tags = tags.map(bounded_name).collect();
    let operations = snapshot.get("current_operations").and_then(Value::map);
    let mut running = operations.into_iter().flat_map(BTreeMap::values);
    let reference = |key| snapshot.text_of(key).unwrap_or(NOTHING).to_owned();
    Some(Found {
        vm,
        resident_on: reference("resident_on"),
        is_moving: running.any(|operation| operation.text().is_some_and(|op| MOVES.contains(&op))),
        moves_to: reference("scheduled_to_be_resident_on"),
    })
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    (digits.len() == 32).then(|| number.to_be_bytes())
}
