//! The calls that are made, and what of their answers is read.

use std::collections::BTreeMap;

use hypervisor::ConnectorError;
use hypervisor_transport::{Answer, HttpClient, Method, REQUEST_TIME, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A row of `/cluster/resources`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Resource {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) node: Option<String>,
    pub(crate) vmid: Option<u32>,
    pub(crate) name: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) tags: Option<String>,
    #[serde(default)]
    pub(crate) template: u8,
}

/// A row of `/cluster/tasks`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Task {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) id: Option<String>,
    pub(crate) endtime: Option<serde_json::Value>,
}

/// A row of `/nodes/{node}/qemu?full=1`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Detail {
    pub(crate) vmid: u32,
    pub(crate) qmpstatus: Option<String>,
    pub(crate) lock: Option<String>,
}

/// `/nodes/{node}/qemu/{vmid}/config`: keys with numbers in them, so a map.
pub(crate) type VmSettings = BTreeMap<String, serde_json::Value>;

#[derive(Deserialize)]
struct Wrapped<T> {
    data: T,
}

/// The API of one cluster.
pub(crate) struct Api {
    pub(crate) http: HttpClient,
}

impl Api {
    pub(crate) fn endpoint(&self) -> String {
        self.http.endpoint().to_string()
    }

    /// The whole cluster: nodes and VMs.
    pub(crate) async fn resources(&mut self) -> Result<Vec<Resource>, ConnectorError> {
        self.get("cluster/resources").await
    }

    /// Tasks, running and recent.
    pub(crate) async fn tasks(&mut self) -> Result<Vec<Task>, ConnectorError> {
        self.get("cluster/tasks").await
    }

    /// What QEMU itself says of a node's VMs.
    pub(crate) async fn details(&mut self, node: &str) -> Result<Vec<Detail>, ConnectorError> {
        let node = segment(node);
        self.get(&format!("nodes/{node}/qemu?full=1")).await
    }

    /// A VM's settings.
    pub(crate) async fn settings(
        &mut self,
        node: &str,
        vmid: u32,
    ) -> Result<VmSettings, ConnectorError> {
        let node = segment(node);
        self.get(&format!("nodes/{node}/qemu/{vmid}/config")).await
    }

    /// Sets all tags of a VM.
    pub(crate) async fn set_tags(
        &mut self,
        node: &str,
        vmid: u32,
        tags: &str,
    ) -> Result<(), ConnectorError> {
        let path = format!("/api2/json/nodes/{}/qemu/{vmid}/config", segment(node));
        let form = [(header::CONTENT_TYPE, "application/x-www-form-urlencoded")];
        let body = format!("tags={}", segment(tags));
        let answer = self
            .http
            .send(Method::PUT, &path, &form, body, REQUEST_TIME)
            .await?;
        self.check(&path, &answer)
    }

    async fn get<T: DeserializeOwned>(&mut self, what: &str) -> Result<T, ConnectorError> {
        let path = format!("/api2/json/{what}");
        let answer = self
            .http
            .send(Method::GET, &path, &[], "", REQUEST_TIME)
            .await?;
        self.check(what, &answer)?;
        let wrapped = serde_json::from_slice::<Wrapped<T>>(&answer.body);
        wrapped
            .map(|wrapped| wrapped.data)
            .map_err(|error| ConnectorError::Answer {
                endpoint: self.endpoint(),
                what: format!("{what}: {error}"),
            })
    }

    fn check(&self, what: &str, answer: &Answer) -> Result<(), ConnectorError> {
        let endpoint = self.endpoint();
        match answer.status {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED => Err(ConnectorError::Credentials {
                endpoint,
                reason: "the API token is not accepted".to_owned(),
            }),
            StatusCode::FORBIDDEN => Err(ConnectorError::Forbidden {
                endpoint,
                what: what.to_owned(),
            }),
            status => Err(ConnectorError::Answer {
                endpoint,
                what: format!("{what}: HTTP status {status}"),
            }),
        }
    }
}

/// Text inside a path or a form: whatever is not plain is encoded.
fn segment(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
