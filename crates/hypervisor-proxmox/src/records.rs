//! Proxmox's rows as records.

use std::collections::{BTreeMap, BTreeSet};

use hypervisor::{
    Host, HostId, HostState, Mac, Migration, Power, Snapshot, Vm, VmId, bounded_name,
};

use crate::api::{Detail, Resource, Task, VmSettings};

/// What only a VM's settings tell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hardware {
    macs: BTreeSet<Mac>,
    smbios_uuid: Option<[u8; 16]>,
}

/// Everything that one poll found.
pub(crate) struct Poll<'a> {
    pub(crate) resources: &'a [Resource],
    pub(crate) tasks: &'a [Task],
    pub(crate) details: &'a BTreeMap<u32, Detail>,
    pub(crate) hardware: &'a BTreeMap<u32, Hardware>,
}

impl Poll<'_> {
    /// The inventory; rows that make no sense are left out.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let hosts = self.resources.iter().filter_map(host);
        hosts.for_each(|host| snapshot.add_host(host));
        let vms = self.resources.iter().filter_map(|row| self.vm(row));
        vms.for_each(|vm| snapshot.add_vm(vm));
        snapshot
    }

    fn vm(&self, row: &Resource) -> Option<Vm> {
        // Containers share their host's kernel: it is the host that is guarded.
        if row.kind != "qemu" {
            return None;
        }
        let vmid = row.vmid?;
        let id = VmId::new(&vmid.to_string()).ok()?;
        let detail = self.details.get(&vmid);
        let mut vm = Vm::new(id, row.name.as_deref().unwrap_or_default());
        vm.host = row.node.as_deref().and_then(|node| HostId::new(node).ok());
        vm.power = power(row, detail);
        vm.is_template = row.template != 0;
        vm.tags = tags(row.tags.as_deref().unwrap_or_default());
        if self.is_moving(vmid, detail) {
            vm.migration = Some(Migration { to: None });
        }
        if let Some(hardware) = self.hardware.get(&vmid) {
            vm.macs.clone_from(&hardware.macs);
            vm.smbios_uuid = hardware.smbios_uuid;
        }
        Some(vm)
    }

    fn is_moving(&self, vmid: u32, detail: Option<&Detail>) -> bool {
        let is_locked = detail.is_some_and(|detail| detail.lock.as_deref() == Some("migrate"));
        let vmid = vmid.to_string();
        let is_task = |task: &Task| {
            task.kind == "qmigrate" && task.endtime.is_none() && task.id.as_deref() == Some(&*vmid)
        };
        is_locked || self.tasks.iter().any(is_task)
    }
}

fn host(row: &Resource) -> Option<Host> {
    if row.kind != "node" {
        return None;
    }
    let name = row.node.as_deref()?;
    Some(Host {
        id: HostId::new(name).ok()?,
        name: bounded_name(name),
        cluster: None,
        state: match row.status.as_deref() {
            Some("online") => HostState::Up,
            _ => HostState::Unreachable,
        },
    })
}

fn power(row: &Resource, detail: Option<&Detail>) -> Power {
    let said = detail.and_then(|detail| detail.qmpstatus.as_deref());
    match (row.status.as_deref(), said) {
        (_, Some("paused" | "suspended")) => Power::Paused,
        (_, Some("prelaunch")) => Power::Starting,
        (Some("running"), _) => Power::Running,
        (Some("paused"), _) => Power::Paused,
        (Some("stopped"), _) => Power::Off,
        _ => Power::Unknown,
    }
}

/// Tags are separated by `;`, and by `,` or blanks in older versions.
pub(crate) fn tags(text: &str) -> BTreeSet<String> {
    text.split([';', ',', ' '])
        .filter(|tag| !tag.is_empty())
        .map(bounded_name)
        .collect()
}

/// Reads `net0: virtio=BC:24:11:…,bridge=vmbr0` and `smbios1: uuid=…`.
pub(crate) fn hardware(settings: &VmSettings) -> Hardware {
    let mut found = Hardware::default();
    for (key, value) in settings {
        let Some(text) = value.as_str() else {
            continue;
        };
        let values = text.split(',').filter_map(|pair| pair.split_once('='));
        if key.starts_with("net") {
            let macs = values.filter_map(|(_, value)| value.parse::<Mac>().ok());
            found.macs.extend(macs);
        } else if key == "smbios1" {
            let mut uuids = values.filter(|(key, _)| *key == "uuid");
            found.smbios_uuid = uuids.find_map(|(_, uuid)| parse_uuid(uuid));
        }
    }
    found
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    (digits.len() == 32).then(|| number.to_be_bytes())
}
