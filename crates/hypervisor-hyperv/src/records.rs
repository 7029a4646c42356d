//! Instances of Hyper-V's classes as records.

use std::collections::{BTreeMap, BTreeSet};

use hypervisor::{HostId, Mac, Migration, Power, Vm, VmId};

use crate::wsman::Instance;

pub(crate) const NAMESPACE: &str = "root/virtualization/v2";
pub(crate) const COMPUTERS: &str = "SELECT * FROM Msvm_ComputerSystem";
pub(crate) const SETTINGS: &str = "SELECT * FROM Msvm_VirtualSystemSettingData \
     WHERE VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'";
pub(crate) const PORTS: &str = "SELECT * FROM Msvm_SyntheticEthernetPortSettingData";
/// Job state 4: running.
pub(crate) const MIGRATIONS: &str = "SELECT * FROM Msvm_MigrationJob WHERE JobState = 4";

/// What rarely changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hardware {
    smbios_uuids: BTreeMap<String, [u8; 16]>,
    macs: BTreeMap<String, BTreeSet<Mac>>,
}

impl Hardware {
    pub(crate) fn read(settings: &[Instance], ports: &[Instance]) -> Self {
        let mut found = Self::default();
        for setting in settings {
            let uuid = setting.get("BIOSGUID").and_then(|text| parse_uuid(text));
            if let (Some(vm), Some(uuid)) = (setting.get("VirtualSystemIdentifier"), uuid) {
                found.smbios_uuids.insert(vm.to_uppercase(), uuid);
            }
        }
        for port in ports {
            // `Microsoft:<the VM's GUID>\<the port's GUID>`
            let id = port.get("InstanceID").map_or("", String::as_str);
            let vm = id.trim_start_matches("Microsoft:").split('\\').next();
            let mac = port.get("Address").and_then(|text| text.parse().ok());
            if let (Some(vm), Some(mac)) = (vm, mac) {
                let macs = found.macs.entry(vm.to_uppercase()).or_default();
                macs.insert(mac);
            }
        }
        found
    }
}

/// The VMs of one host; whether each waits there for a move to be done.
pub(crate) fn vms(
    computers: &[Instance],
    migrations: &[Instance],
    hardware: &Hardware,
) -> Vec<(Vm, bool)> {
    let mut moving = BTreeMap::new();
    for job in migrations {
        let to = job
            .get("DestinationHost")
            .and_then(|to| HostId::new(to).ok());
        if let Some(vm) = job.get("VirtualSystemName") {
            moving.insert(vm.to_uppercase(), to);
        }
    }
    let vm = |instance: &Instance| {
        // The host itself is the instance whose name is no GUID.
        let guid = instance.get("Name")?.to_uppercase();
        parse_uuid(&guid)?;
        let name = instance.get("ElementName").map_or("", String::as_str);
        let mut vm = Vm::new(VmId::new(&guid).ok()?, name);
        let state = instance.get("EnabledState").map_or("", String::as_str);
        vm.power = power(state);
        vm.smbios_uuid = hardware.smbios_uuids.get(&guid).copied();
        vm.macs = hardware.macs.get(&guid).cloned().unwrap_or_default();
        vm.migration = moving.get(&guid).cloned().map(|to| Migration { to });
        // In migration: at the destination the guest does not run yet.
        let operational = instance.get("OperationalStatus").map(String::as_str);
        let is_incoming = vm.power != Power::Running && operational == Some("32774");
        Some((vm, is_incoming))
    };
    computers.iter().filter_map(vm).collect()
}

/// `EnabledState`, with the older numbers too.
fn power(state: &str) -> Power {
    match state {
        "2" => Power::Running,
        "3" => Power::Off,
        // Saved; saving.
        "6" | "32769" | "32773" => Power::Suspended,
        // Paused (quiesced); pausing; resuming.
        "9" | "32768" | "32776" | "32777" => Power::Paused,
        "10" | "32770" => Power::Starting,
        // Stopping still runs.
        "4" | "32774" => Power::Running,
        _ => Power::Unknown,
    }
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let text = text.trim_start_matches('{').trim_end_matches('}');
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    (digits.len() == 32).then(|| number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(pairs: &[(&str, &str)]) -> Instance {
        let owned = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        owned.collect()
    }

    #[test]
    fn the_host_is_no_vm_and_ids_are_one_spelling() {
        let guid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        let computers = [
            instance(&[("Name", "HV1"), ("EnabledState", "2")]),
            instance(&[
                ("Name", guid),
                ("ElementName", "web"),
                ("EnabledState", "32768"),
            ]),
        ];
        let port = format!("Microsoft:{}\\0", guid.to_uppercase());
        let ports = [instance(&[
            ("InstanceID", &port),
            ("Address", "00155D010203"),
        ])];
        let settings = [instance(&[
            ("VirtualSystemIdentifier", guid),
            ("BIOSGUID", "{00000000-0000-0000-0000-0000000000FF}"),
        ])];
        let jobs = [instance(&[
            ("VirtualSystemName", guid),
            ("DestinationHost", "HV2"),
        ])];
        let found = vms(&computers, &jobs, &Hardware::read(&settings, &ports));
        let [(vm, false)] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(vm.power, Power::Paused);
        assert_eq!(vm.macs.len(), 1);
        assert_eq!(vm.smbios_uuid.expect("a uuid")[15], 255);
        let to = vm
            .migration
            .as_ref()
            .and_then(|migration| migration.to.as_ref());
        assert_eq!(to.map(HostId::as_str), Some("HV2"));
    }
}
