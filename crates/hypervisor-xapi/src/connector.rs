//! Events.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{
    Connect, ConnectorError, HostId, Inventory, Locate, Observation, Pace, Session, Snapshot, Tag,
    VmId, Watch,
};
use hypervisor_transport::{Endpoint, HttpClient, REQUEST_TIME};

use crate::api::Api;
use crate::config::XapiConfig;
use crate::records::{CLASSES, Objects};
use crate::xmlrpc::Value;

/// Seconds that `event.from` waits for an event.
const WAIT_S: u16 = 50;

/// Connector to a pool.
pub struct XapiConnector {
    config: XapiConfig,
    endpoint: Endpoint,
    pace: Arc<Pace>,
}

impl XapiConnector {
    /// Checks the configuration.
    ///
    /// # Errors
    /// [`ConnectorError::Config`].
    pub fn new(config: XapiConfig, pace: Arc<Pace>) -> Result<Self, ConnectorError> {
        let endpoint = config.endpoint()?;
        Ok(Self {
            config,
            endpoint,
            pace,
        })
    }
}

#[async_trait]
impl Connect for XapiConnector {
    fn kind(&self) -> &'static str {
        "xapi"
    }

    async fn connect(&self) -> Result<Box<dyn Session>, ConnectorError> {
        let http = HttpClient::new(self.endpoint.clone(), Arc::clone(&self.pace));
        let password = self.config.password.read()?;
        Ok(Box::new(XapiSession {
            api: Api::login(http, &self.config.user, &password).await?,
            allow_tags: self.config.allow_tags,
            token: String::new(),
            objects: Objects::default(),
        }))
    }
}

struct XapiSession {
    api: Api,
    allow_tags: bool,
    token: String,
    objects: Objects,
}

impl XapiSession {
    async fn events(&mut self, wait_s: u16) -> Result<Vec<Observation>, ConnectorError> {
        let method = "event.from";
        let params = [
            Value::List(CLASSES.map(Value::from).into()),
            Value::from(&*self.token),
            Value::Double(wait_s.into()),
        ];
        let limit = REQUEST_TIME + Duration::from_secs(wait_s.into());
        let answer = self.api.call(method, &params, limit).await?;
        let mut seen = Vec::new();
        let token = self.objects.take(&answer, &mut seen);
        self.token = token.ok_or_else(|| self.api.garbled(method, "events that make no sense"))?;
        Ok(seen)
    }

    async fn reference(&mut self, vm: &VmId) -> Result<String, ConnectorError> {
        if let Some(known) = self.objects.vm_reference(vm) {
            return Ok(known.to_owned());
        }
        let method = "VM.get_by_uuid";
        let params = [Value::from(vm.as_str())];
        let found = self.api.call(method, &params, REQUEST_TIME).await?;
        let found = found.text().map(str::to_owned);
        found.ok_or_else(|| self.api.garbled(method, "no reference"))
    }
}

#[async_trait]
impl Inventory for XapiSession {
    async fn inventory(&mut self) -> Result<Snapshot, ConnectorError> {
        // An empty token: everything again, as it is.
        self.token.clear();
        self.objects = Objects::default();
        self.events(WAIT_S).await?;
        Ok(self.objects.snapshot())
    }
}

#[async_trait]
impl Watch for XapiSession {
    async fn next(&mut self) -> Result<Vec<Observation>, ConnectorError> {
        self.events(WAIT_S).await
    }
}

#[async_trait]
impl Locate for XapiSession {
    async fn locate(&mut self, vm: &VmId) -> Result<Option<HostId>, ConnectorError> {
        let reference = Value::from(&*self.reference(vm).await?);
        let resident = [reference];
        let host = self
            .api
            .call("VM.get_resident_on", &resident, REQUEST_TIME)
            .await?;
        if host.text().is_none_or(|host| host.ends_with(":NULL")) {
            return Ok(None);
        }
        let uuid = self
            .api
            .call("host.get_uuid", &[host], REQUEST_TIME)
            .await?;
        Ok(uuid.text().and_then(|uuid| HostId::new(uuid).ok()))
    }
}

#[async_trait]
impl Tag for XapiSession {
    async fn tag(&mut self, vm: &VmId, tag: &str, is_on: bool) -> Result<(), ConnectorError> {
        let reference = self.reference(vm).await?;
        let method = if is_on {
            "VM.add_tags"
        } else {
            "VM.remove_tags"
        };
        let params = [Value::from(&*reference), Value::from(tag)];
        self.api.call(method, &params, REQUEST_TIME).await.map(drop)
    }
}

impl Session for XapiSession {
    fn tagger(&mut self) -> Option<&mut (dyn Tag + Send)> {
        if self.allow_tags { Some(self) } else { None }
    }
}
