//! What the property collector pushes, as records.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hypervisor::{
    Host, HostId, HostState, Mac, Observation, Power, Snapshot, Vm, VmId, bounded_name,
};
use roxmltree::Node;

use crate::soap::{child, children};

/// Properties that are watched, by type.
pub(crate) const WATCHED: [(&str, &[&str]); 3] = [
    ("ComputeResource", &["name"]),
    (
        "HostSystem",
        &[
            "name",
            "parent",
            "runtime.connectionState",
            "runtime.inMaintenanceMode",
        ],
    ),
    (
        "VirtualMachine",
        &[
            "name",
            "runtime.host",
            "runtime.powerState",
            "config.uuid",
            "config.template",
            "config.hardware.device",
            "guest.net",
        ],
    ),
];

/// Everything that the filter has told, by object.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    clusters: BTreeMap<String, String>,
    hosts: BTreeMap<HostId, Host>,
    /// The compute resource that a host belongs to.
    parents: BTreeMap<HostId, String>,
    pub(crate) vms: BTreeMap<VmId, Vm>,
}

/// One page of updates.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) version: String,
    /// More is to be had at once.
    pub(crate) is_truncated: bool,
    pub(crate) seen: Vec<Observation>,
    /// VMs that were not known.
    pub(crate) new_vms: Vec<VmId>,
}

impl Objects {
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            hosts: self.hosts.clone(),
            vms: self.vms.clone(),
        }
    }

    /// Takes an `UpdateSet` in; `None` where it makes no sense.
    pub(crate) fn take(&mut self, set: Node<'_, '_>) -> Option<Page> {
        let text = |name| child(set, name).and_then(|node| node.text());
        let mut page = Page {
            version: text("version")?.to_owned(),
            is_truncated: text("truncated") == Some("true"),
            ..Page::default()
        };
        for object in children(set, "filterSet").flat_map(|set| children(set, "objectSet")) {
            self.take_object(object, &mut page)?;
        }
        Some(page)
    }

    fn take_object(&mut self, object: Node<'_, '_>, page: &mut Page) -> Option<()> {
        let reference = child(object, "obj")?;
        let id = reference.text()?;
        let is_gone = child(object, "kind")?.text()? == "leave";
        let changes: Vec<(&str, Option<Node<'_, '_>>)> = children(object, "changeSet")
            .filter_map(|change| Some((child(change, "name")?.text()?, child(change, "val"))))
            .collect();
        match reference.attribute("type")? {
            "VirtualMachine" if is_gone => {
                let id = VmId::new(id).ok()?;
                self.vms.remove(&id);
                page.seen.push(Observation::VmGone(id));
            }
            "VirtualMachine" => self.take_vm(VmId::new(id).ok()?, &changes, page),
            "HostSystem" if is_gone => {
                let id = HostId::new(id).ok()?;
                self.hosts.remove(&id);
                self.parents.remove(&id);
                page.seen.push(Observation::HostGone(id));
            }
            "HostSystem" => self.take_host(HostId::new(id).ok()?, &changes, page),
            _ => self.take_cluster(id, &changes, page),
        }
        Some(())
    }

    fn take_vm(&mut self, id: VmId, changes: &[(&str, Option<Node<'_, '_>>)], page: &mut Page) {
        if !self.vms.contains_key(&id) {
            page.new_vms.push(id.clone());
        }
        let vm = self
            .vms
            .entry(id)
            .or_insert_with_key(|id| Vm::new(id.clone(), ""));
        for (name, value) in changes {
            set_vm(vm, name, *value);
        }
        page.seen.push(Observation::Vm(vm.clone()));
    }

    fn take_host(&mut self, id: HostId, changes: &[(&str, Option<Node<'_, '_>>)], page: &mut Page) {
        let host = self.hosts.entry(id).or_insert_with_key(|id| Host {
            id: id.clone(),
            name: String::new(),
            cluster: None,
            state: HostState::Up,
        });
        for (name, value) in changes {
            let text = value.and_then(|value| value.text()).unwrap_or_default();
            match *name {
                "name" => host.name = bounded_name(text),
                "parent" => {
                    self.parents.insert(host.id.clone(), text.to_owned());
                }
                "runtime.connectionState" if text != "connected" => {
                    host.state = HostState::Unreachable;
                }
                "runtime.connectionState" if host.state == HostState::Unreachable => {
                    host.state = HostState::Up;
                }
                "runtime.inMaintenanceMode" if host.state != HostState::Unreachable => {
                    host.state = if text == "true" {
                        HostState::Maintenance
                    } else {
                        HostState::Up
                    };
                }
                _ => {}
            }
        }
        let parent = self.parents.get(&host.id);
        host.cluster = parent.and_then(|parent| self.clusters.get(parent)).cloned();
        page.seen.push(Observation::Host(host.clone()));
    }

    fn take_cluster(
        &mut self,
        id: &str,
        changes: &[(&str, Option<Node<'_, '_>>)],
        page: &mut Page,
    ) {
        let name = changes.iter().find(|(name, _)| *name == "name");
        let Some(name) = name.and_then(|(_, value)| value.as_ref()?.text()) else {
            return;
        };
        self.clusters.insert(id.to_owned(), bounded_name(name));
        for (host, parent) in &self.parents {
            if parent == id
                && let Some(host) = self.hosts.get_mut(host)
            {
                host.cluster = self.clusters.get(id).cloned();
                page.seen.push(Observation::Host(host.clone()));
            }
        }
    }
}

/// A property that was taken away has no value.
fn set_vm(vm: &mut Vm, name: &str, value: Option<Node<'_, '_>>) {
    let text = value.and_then(|value| value.text());
    match name {
        "name" => vm.name = bounded_name(text.unwrap_or_default()),
        "runtime.host" => vm.host = text.and_then(|id| HostId::new(id).ok()),
        "runtime.powerState" => {
            vm.power = match text {
                Some("poweredOn") => Power::Running,
                Some("poweredOff") => Power::Off,
                Some("suspended") => Power::Suspended,
                _ => Power::Unknown,
            };
        }
        "config.uuid" => vm.smbios_uuid = text.and_then(parse_uuid),
        "config.template" => vm.is_template = text == Some("true"),
        "config.hardware.device" => {
            let devices = value.into_iter().flat_map(|value| value.children());
            vm.macs = devices
                .filter_map(|device| child(device, "macAddress")?.text()?.parse::<Mac>().ok())
                .collect();
        }
        "guest.net" => {
            let cards = value.into_iter().flat_map(|value| value.children());
            vm.addresses = cards
                .flat_map(|card| children(card, "ipAddress"))
                .filter_map(|address| address.text()?.parse::<IpAddr>().ok())
                .collect();
        }
        _ => {}
    }
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    (digits.len() == 32).then(|| number.to_be_bytes())
}
