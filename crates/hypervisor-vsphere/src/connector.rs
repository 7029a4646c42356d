//! Login, filter, updates.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{
    Connect, ConnectorError, HostId, Inventory, Locate, Observation, Pace, Session, Snapshot, VmId,
    Watch,
};
use hypervisor_transport::{Endpoint, HttpClient, REQUEST_TIME};

use crate::config::VsphereConfig;
use crate::soap::{Ref, Soap, child, children, escape, xsi_type};
use crate::updates::{Objects, Page, WATCHED};

/// Seconds that `WaitForUpdatesEx` waits for an update.
const WAIT_S: u32 = 50;
/// The same while it is asked what a new VM was cloned from.
const WAIT_FOR_ORIGIN_S: u32 = 1;
/// Objects in one answer.
const PAGE_OBJECTS_MAX: u32 = 200;
/// Times that the events are asked for a new VM's origin: the event comes after the VM.
const ORIGIN_TRIES: u8 = 5;

/// Connector to a vCenter.
pub struct VsphereConnector {
    config: VsphereConfig,
    endpoint: Endpoint,
    pace: Arc<Pace>,
}

impl VsphereConnector {
    /// Checks the configuration.
    ///
    /// # Errors
    /// [`ConnectorError::Config`].
    pub fn new(config: VsphereConfig, pace: Arc<Pace>) -> Result<Self, ConnectorError> {
        let endpoint = config.endpoint()?;
        Ok(Self {
            config,
            endpoint,
            pace,
        })
    }

    pub(crate) async fn login(&self) -> Result<VsphereSession, ConnectorError> {
        let http = HttpClient::new(self.endpoint.clone(), Arc::clone(&self.pace));
        let mut soap = Soap::new(http);
        let instance = Ref {
            kind: "ServiceInstance",
            id: "ServiceInstance",
        };
        let services = soap
            .call(
                "RetrieveServiceContent",
                instance,
                "",
                REQUEST_TIME,
                |values| {
                    let content = *values.first()?;
                    let text = |name| Some(child(content, name)?.text()?.to_owned());
                    Some(Services {
                        root: text("rootFolder")?,
                        collector: text("propertyCollector")?,
                        views: text("viewManager")?,
                        sessions: text("sessionManager")?,
                        events: text("eventManager").unwrap_or_default(),
                    })
                },
            )
            .await?;
        let password = self.config.password.read()?;
        let login = format!(
            "<userName>{}</userName><password>{}</password>",
            escape(&self.config.user),
            escape(password.reveal())
        );
        let sessions = Ref {
            kind: "SessionManager",
            id: &services.sessions,
        };
        soap.call("Login", sessions, &login, REQUEST_TIME, |_| Some(()))
            .await?;
        Ok(VsphereSession {
            soap,
            services,
            version: String::new(),
            objects: Objects::default(),
            fresh: Vec::new(),
        })
    }
}

#[async_trait]
impl Connect for VsphereConnector {
    fn kind(&self) -> &'static str {
        "vsphere"
    }

    async fn connect(&self) -> Result<Box<dyn Session>, ConnectorError> {
        let mut session = self.login().await?;
        session.create_filter().await?;
        Ok(Box::new(session))
    }
}

pub(crate) struct Services {
    pub(crate) root: String,
    collector: String,
    views: String,
    sessions: String,
    events: String,
}

pub(crate) struct VsphereSession {
    pub(crate) soap: Soap,
    pub(crate) services: Services,
    version: String,
    objects: Objects,
    /// New VMs whose origin is not known yet, with the tries that are left.
    fresh: Vec<(VmId, u8)>,
}

impl VsphereSession {
    async fn create_filter(&mut self) -> Result<(), ConnectorError> {
        let types: String = WATCHED
            .iter()
            .map(|(kind, _)| format!("<type>{kind}</type>"))
            .collect();
        let root = escape(&self.services.root);
        let arguments = format!(
            "<container type=\"Folder\">{root}</container>{types}<recursive>true</recursive>"
        );
        let views = Ref {
            kind: "ViewManager",
            id: &self.services.views,
        };
        let view = self
            .soap
            .call(
                "CreateContainerView",
                views,
                &arguments,
                REQUEST_TIME,
                |values| Some(values.first()?.text()?.to_owned()),
            )
            .await?;
        let properties: String = WATCHED.iter().map(property_set).collect();
        let view = escape(&view);
        let spec = format!(
            "<spec>{properties}<objectSet><obj type=\"ContainerView\">{view}</obj>\
             <skip>true</skip><selectSet xsi:type=\"TraversalSpec\"><name>view</name>\
             <type>ContainerView</type><path>view</path><skip>false</skip></selectSet>\
             </objectSet></spec><partialUpdates>false</partialUpdates>"
        );
        let collector = Ref {
            kind: "PropertyCollector",
            id: &self.services.collector,
        };
        self.soap
            .call("CreateFilter", collector, &spec, REQUEST_TIME, |_| Some(()))
            .await
    }

    /// One page of what changed since the version that is known.
    async fn wait(&mut self, wait_s: u32) -> Result<Page, ConnectorError> {
        let arguments = format!(
            "<version>{}</version><options><maxWaitSeconds>{wait_s}</maxWaitSeconds>\
             <maxObjectUpdates>{PAGE_OBJECTS_MAX}</maxObjectUpdates></options>",
            escape(&self.version)
        );
        let collector = Ref {
            kind: "PropertyCollector",
            id: &self.services.collector,
        };
        let limit = REQUEST_TIME + Duration::from_secs(wait_s.into());
        let objects = &mut self.objects;
        let page = self
            .soap
            .call("WaitForUpdatesEx", collector, &arguments, limit, |values| {
                match values.first() {
                    // Nothing has happened.
                    None => Some(None),
                    Some(set) => objects.take(*set).map(Some),
                }
            })
            .await?;
        let page = page.unwrap_or_else(|| Page {
            version: self.version.clone(),
            ..Page::default()
        });
        self.version.clone_from(&page.version);
        Ok(page)
    }

    /// Asks the events what new VMs were cloned from.
    async fn find_origins(&mut self) -> Result<Vec<Observation>, ConnectorError> {
        let mut seen = Vec::new();
        for (id, tries) in std::mem::take(&mut self.fresh) {
            let origin = self.origin(&id).await?;
            match (origin, self.objects.vms.get_mut(&id)) {
                (Some(origin), Some(vm)) => {
                    vm.cloned_from = Some(origin);
                    seen.push(Observation::Vm(vm.clone()));
                }
                (None, Some(_)) if tries > 1 => self.fresh.push((id, tries - 1)),
                _ => {}
            }
        }
        Ok(seen)
    }

    async fn origin(&mut self, vm: &VmId) -> Result<Option<VmId>, ConnectorError> {
        if self.services.events.is_empty() {
            return Ok(None);
        }
        let filter = format!(
            "<filter><entity><entity type=\"VirtualMachine\">{}</entity>\
             <recursion>self</recursion></entity><eventTypeId>VmClonedEvent</eventTypeId></filter>",
            escape(vm.as_str())
        );
        let events = Ref {
            kind: "EventManager",
            id: &self.services.events,
        };
        let read = |values: &[roxmltree::Node<'_, '_>]| {
            let cloned = values
                .iter()
                .filter(|event| xsi_type(**event) == Some("VmClonedEvent"));
            let origins = cloned.filter_map(|event| child(child(*event, "sourceVm")?, "vm"));
            let mut ids = origins.filter_map(|vm| VmId::new(vm.text()?).ok());
            Some(ids.find(|origin| origin != vm))
        };
        self.soap
            .call("QueryEvents", events, &filter, REQUEST_TIME, read)
            .await
    }
}

fn property_set((kind, paths): &(&str, &[&str])) -> String {
    let paths: String = paths
        .iter()
        .map(|path| format!("<pathSet>{path}</pathSet>"))
        .collect();
    format!("<propSet><type>{kind}</type><all>false</all>{paths}</propSet>")
}

#[async_trait]
impl Inventory for VsphereSession {
    async fn inventory(&mut self) -> Result<Snapshot, ConnectorError> {
        // An empty version: everything again, as it is.
        self.version.clear();
        let before = std::mem::take(&mut self.objects);
        while self.wait(WAIT_S).await?.is_truncated {}
        for (id, vm) in &mut self.objects.vms {
            let known = before.vms.get(id);
            vm.cloned_from = known.and_then(|known| known.cloned_from.clone());
        }
        Ok(self.objects.snapshot())
    }
}

#[async_trait]
impl Watch for VsphereSession {
    async fn next(&mut self) -> Result<Vec<Observation>, ConnectorError> {
        let wait_s = if self.fresh.is_empty() {
            WAIT_S
        } else {
            WAIT_FOR_ORIGIN_S
        };
        let page = self.wait(wait_s).await?;
        let mut seen = page.seen;
        let new = page.new_vms.into_iter();
        self.fresh.extend(new.map(|vm| (vm, ORIGIN_TRIES)));
        seen.extend(self.find_origins().await?);
        Ok(seen)
    }
}

#[async_trait]
impl Locate for VsphereSession {
    async fn locate(&mut self, vm: &VmId) -> Result<Option<HostId>, ConnectorError> {
        let spec = format!(
            "<specSet><propSet><type>VirtualMachine</type><pathSet>runtime.host</pathSet></propSet>\
             <objectSet><obj type=\"VirtualMachine\">{}</obj></objectSet></specSet><options/>",
            escape(vm.as_str())
        );
        let collector = Ref {
            kind: "PropertyCollector",
            id: &self.services.collector,
        };
        self.soap
            .call(
                "RetrievePropertiesEx",
                collector,
                &spec,
                REQUEST_TIME,
                |values| {
                    let objects = values.iter().flat_map(|page| children(*page, "objects"));
                    let properties = objects.flat_map(|object| children(object, "propSet"));
                    let host = properties
                        .filter_map(|property| child(property, "val")?.text())
                        .next();
                    Some(host.and_then(|id| HostId::new(id).ok()))
                },
            )
            .await
    }
}

impl Session for VsphereSession {}
