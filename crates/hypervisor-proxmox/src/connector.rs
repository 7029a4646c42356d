//! Polls.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use hypervisor::{
    Connect, ConnectorError, HostId, Inventory, Locate, Observation, Pace, Session, Snapshot, Tag,
    VmId, Watch,
};
use hypervisor_transport::{Endpoint, HttpClient, header};

use crate::api::{Api, Detail, Resource};
use crate::config::ProxmoxConfig;
use crate::records::{Hardware, Poll, hardware, tags};

/// Connector to a Proxmox cluster.
pub struct ProxmoxConnector {
    config: ProxmoxConfig,
    endpoint: Endpoint,
    pace: Arc<Pace>,
}

impl ProxmoxConnector {
    /// Checks the configuration.
    ///
    /// # Errors
    /// [`ConnectorError::Config`].
    pub fn new(config: ProxmoxConfig, pace: Arc<Pace>) -> Result<Self, ConnectorError> {
        let endpoint = config.endpoint()?;
        Ok(Self {
            config,
            endpoint,
            pace,
        })
    }
}

#[async_trait]
impl Connect for ProxmoxConnector {
    fn kind(&self) -> &'static str {
        "proxmox"
    }

    async fn connect(&self) -> Result<Box<dyn Session>, ConnectorError> {
        let mut http = HttpClient::new(self.endpoint.clone(), Arc::clone(&self.pace));
        let secret = self.config.secret.read()?;
        let shown = format!("PVEAPIToken={}={}", self.config.token, secret.reveal());
        http.set_header(header::AUTHORIZATION, &shown)?;
        let mut api = Api { http };
        // There is no login: the first answer says whether the token counts.
        api.resources().await?;
        Ok(Box::new(ProxmoxSession {
            api,
            config: self.config.clone(),
            hardware: BTreeMap::new(),
            last: Snapshot::default(),
        }))
    }
}

struct ProxmoxSession {
    api: Api,
    config: ProxmoxConfig,
    hardware: BTreeMap<u32, Hardware>,
    last: Snapshot,
}

impl ProxmoxSession {
    async fn poll(&mut self) -> Result<Snapshot, ConnectorError> {
        let resources = self.api.resources().await?;
        let tasks = self.api.tasks().await?;
        let details = self.details(&resources).await?;
        self.look_at_hardware(&resources).await?;
        let poll = Poll {
            resources: &resources,
            tasks: &tasks,
            details: &details,
            hardware: &self.hardware,
        };
        Ok(poll.snapshot())
    }

    /// What QEMU says of every VM, from the nodes that answer.
    async fn details(
        &mut self,
        resources: &[Resource],
    ) -> Result<BTreeMap<u32, Detail>, ConnectorError> {
        let online =
            |row: &&Resource| row.kind == "node" && row.status.as_deref() == Some("online");
        let mut all = BTreeMap::new();
        for node in resources
            .iter()
            .filter(online)
            .filter_map(|row| row.node.as_deref())
        {
            match self.api.details(node).await {
                Ok(details) => all.extend(details.into_iter().map(|found| (found.vmid, found))),
                // A node that has just gone: the cluster says so soon.
                Err(ConnectorError::Answer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Asks for the settings of VMs that have not been seen.
    async fn look_at_hardware(&mut self, resources: &[Resource]) -> Result<(), ConnectorError> {
        let vms = || resources.iter().filter(|row| row.kind == "qemu");
        self.hardware
            .retain(|vmid, _| vms().any(|row| row.vmid == Some(*vmid)));
        for row in vms() {
            let (Some(vmid), Some(node)) = (row.vmid, row.node.as_deref()) else {
                continue;
            };
            if self.hardware.contains_key(&vmid) {
                continue;
            }
            match self.api.settings(node, vmid).await {
                Ok(settings) => {
                    self.hardware.insert(vmid, hardware(&settings));
                }
                // It has just moved, or is gone: the next poll asks again.
                Err(ConnectorError::Answer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn find(&mut self, vm: &VmId) -> Result<Option<Resource>, ConnectorError> {
        let resources = self.api.resources().await?;
        let is_it = |row: &Resource| {
            let vmid = row.vmid.map(|vmid| vmid.to_string());
            row.kind == "qemu" && vmid.as_deref() == Some(vm.as_str())
        };
        Ok(resources.into_iter().find(is_it))
    }
}

#[async_trait]
impl Inventory for ProxmoxSession {
    async fn inventory(&mut self) -> Result<Snapshot, ConnectorError> {
        // Network cards are looked at again with each whole inventory.
        self.hardware.clear();
        self.last = self.poll().await?;
        Ok(self.last.clone())
    }
}

#[async_trait]
impl Watch for ProxmoxSession {
    async fn next(&mut self) -> Result<Vec<Observation>, ConnectorError> {
        tokio::time::sleep(self.config.poll_every()).await;
        let now = self.poll().await?;
        let seen = now.observations_since(&self.last);
        self.last = now;
        Ok(seen)
    }
}

#[async_trait]
impl Locate for ProxmoxSession {
    async fn locate(&mut self, vm: &VmId) -> Result<Option<HostId>, ConnectorError> {
        let found = self.find(vm).await?;
        let node = found.and_then(|row| row.node);
        Ok(node.and_then(|node| HostId::new(&node).ok()))
    }
}

#[async_trait]
impl Tag for ProxmoxSession {
    async fn tag(&mut self, vm: &VmId, tag: &str, is_on: bool) -> Result<(), ConnectorError> {
        let found = self.find(vm).await?;
        let place = found.and_then(|row| Some((row.node?, row.vmid?, row.tags)));
        let (node, vmid, old) = place.ok_or_else(|| ConnectorError::Answer {
            endpoint: self.api.endpoint(),
            what: format!("no VM {vm}"),
        })?;
        let mut all = tags(old.as_deref().unwrap_or_default());
        if is_on {
            all.insert(tag.to_owned());
        } else {
            all.remove(tag);
        }
        let all: Vec<String> = all.into_iter().collect();
        self.api.set_tags(&node, vmid, &all.join(";")).await
    }
}

impl Session for ProxmoxSession {
    fn tagger(&mut self) -> Option<&mut (dyn Tag + Send)> {
        if self.config.allow_tags {
            Some(self)
        } else {
            None
        }
    }
}
