//! The calls that the connector makes, typed.

use hypervisor::ConnectorError;

use crate::rpc::{CallError, Rpc, ServerError};
use crate::xdr::{Reader, Writer, XdrError};

mod procedure {
    pub(super) const OPEN: u32 = 1;
    pub(super) const DOMAIN_XML: u32 = 14;
    pub(super) const HOSTNAME: u32 = 59;
    pub(super) const DOMAIN_STATE: u32 = 212;
    pub(super) const SET_METADATA: u32 = 264;
    pub(super) const LIST_ALL_DOMAINS: u32 = 273;
    pub(super) const REGISTER_CALLBACK: u32 = 316;
    pub(super) const LIFECYCLE_EVENT: u32 = 318;
}

const OPEN_READ_ONLY: u32 = 1;
/// `VIR_DOMAIN_EVENT_ID_*`.
const EVENT_LIFECYCLE: i32 = 0;
const EVENT_DEVICE_REMOVED: i32 = 15;
const EVENT_DEVICE_ADDED: i32 = 19;
const EVENT_METADATA_CHANGE: i32 = 23;
/// `VIR_DOMAIN_METADATA_ELEMENT`.
const METADATA_ELEMENT: i32 = 2;

const ERROR_NO_SUPPORT: i32 = 3;
const ERROR_INVALID_ARGUMENT: i32 = 8;
const ERROR_OPERATION_DENIED: i32 = 29;
const ERROR_NO_DOMAIN: i32 = 42;
const ERROR_AUTH_FAILED: i32 = 45;
const ERROR_AUTH_CANCELLED: i32 = 79;
const ERROR_AUTH_UNAVAILABLE: i32 = 80;
const ERROR_ACCESS_DENIED: i32 = 88;

/// A domain, as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainRef {
    pub(crate) name: String,
    pub(crate) uuid: [u8; 16],
    /// -1 where it is not active.
    pub(crate) number: i32,
}

/// `virDomainState` with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DomainState {
    pub(crate) state: i32,
    pub(crate) reason: i32,
}

/// What a lifecycle event says (`virDomainEventType` and its detail).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifecycle {
    pub(crate) event: i32,
    pub(crate) detail: i32,
}

/// An event of a domain; without a lifecycle it means that something of it changed.
#[derive(Debug)]
pub(crate) struct DomainEvent {
    pub(crate) domain: DomainRef,
    pub(crate) lifecycle: Option<Lifecycle>,
}

impl DomainRef {
    fn write(&self, writer: Writer) -> Writer {
        writer.string(&self.name).fixed(&self.uuid).i32(self.number)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            name: reader.string()?.to_owned(),
            uuid: reader.uuid()?,
            number: reader.i32()?,
        })
    }
}

impl DomainEvent {
    /// Every domain event that is registered for begins with the callback's number and the domain.
    pub(crate) fn read(procedure: u32, body: &[u8]) -> Result<Self, XdrError> {
        let mut reader = Reader::new(body);
        let _callback = reader.i32()?;
        let domain = DomainRef::read(&mut reader)?;
        let lifecycle = if procedure == procedure::LIFECYCLE_EVENT {
            Some(Lifecycle {
                event: reader.i32()?,
                detail: reader.i32()?,
            })
        } else {
            None
        };
        Ok(Self { domain, lifecycle })
    }
}

impl Rpc {
    async fn ask(
        &self,
        what: &str,
        procedure: u32,
        body: Writer,
    ) -> Result<Vec<u8>, ConnectorError> {
        let answer = self.call(procedure, body).await;
        answer.map_err(|error| self.explain(what, error))
    }

    /// What a failed call means.
    pub(crate) fn explain(&self, what: &str, error: CallError) -> ConnectorError {
        let endpoint = self.endpoint().to_owned();
        let error = match error {
            CallError::Broken(error) => return error,
            CallError::Server(error) => error,
        };
        match error.code {
            ERROR_AUTH_FAILED | ERROR_AUTH_CANCELLED | ERROR_AUTH_UNAVAILABLE => {
                ConnectorError::Credentials {
                    endpoint,
                    reason: error.message,
                }
            }
            ERROR_OPERATION_DENIED | ERROR_ACCESS_DENIED => ConnectorError::Forbidden {
                endpoint,
                what: format!("{what} ({})", error.message),
            },
            _ => ConnectorError::Answer {
                endpoint,
                what: format!("{what}: {}", error.message),
            },
        }
    }

    /// Opens a driver, such as `qemu:///system`.
    pub(crate) async fn open(&self, name: &str, read_only: bool) -> Result<(), ConnectorError> {
        let flags = if read_only { OPEN_READ_ONLY } else { 0 };
        let body = Writer::default().optional_string(Some(name)).u32(flags);
        self.ask("opening the driver", procedure::OPEN, body)
            .await?;
        Ok(())
    }

    /// Asks whether the other side still lives, whatever the pace is.
    pub(crate) async fn ping(&self) -> Result<(), ConnectorError> {
        let answer = self.call_now(procedure::HOSTNAME, Writer::default()).await;
        answer
            .map(drop)
            .map_err(|error| self.explain("a sign of life", error))
    }

    /// Asks for events: lifecycle, metadata, devices. What the driver does not have is left out.
    pub(crate) async fn register_events(&self) -> Result<(), ConnectorError> {
        let register = |event| {
            let body = Writer::default().i32(event).u32(0);
            self.call(procedure::REGISTER_CALLBACK, body)
        };
        register(EVENT_LIFECYCLE)
            .await
            .map_err(|error| self.explain("lifecycle events", error))?;
        for event in [
            EVENT_METADATA_CHANGE,
            EVENT_DEVICE_ADDED,
            EVENT_DEVICE_REMOVED,
        ] {
            match register(event).await {
                Ok(_) => {}
                Err(CallError::Server(error))
                    if [ERROR_NO_SUPPORT, ERROR_INVALID_ARGUMENT].contains(&error.code) => {}
                Err(error) => return Err(self.explain("events", error)),
            }
        }
        Ok(())
    }

    /// All domains, active or not.
    pub(crate) async fn domains(&self) -> Result<Vec<DomainRef>, ConnectorError> {
        let body = Writer::default().i32(1).u32(0);
        let answer = self
            .ask("the list of domains", procedure::LIST_ALL_DOMAINS, body)
            .await?;
        let mut reader = Reader::new(&answer);
        let mut read = || -> Result<_, XdrError> {
            let count = reader.u32()?;
            (0..count).map(|_| DomainRef::read(&mut reader)).collect()
        };
        read().map_err(|error| self.garbled(error))
    }

    /// A domain's state; `None` where it is gone.
    pub(crate) async fn state(
        &self,
        domain: &DomainRef,
    ) -> Result<Option<DomainState>, ConnectorError> {
        let body = domain.write(Writer::default()).u32(0);
        let answer = self.call(procedure::DOMAIN_STATE, body).await;
        let Some(answer) = self.unless_gone("a domain's state", answer)? else {
            return Ok(None);
        };
        let mut reader = Reader::new(&answer);
        let mut read = || -> Result<_, XdrError> {
            let (state, reason) = (reader.i32()?, reader.i32()?);
            Ok(DomainState { state, reason })
        };
        read().map(Some).map_err(|error| self.garbled(error))
    }

    /// A domain's description in XML; `None` where it is gone.
    pub(crate) async fn xml(&self, domain: &DomainRef) -> Result<Option<String>, ConnectorError> {
        let body = domain.write(Writer::default()).u32(0);
        let answer = self.call(procedure::DOMAIN_XML, body).await;
        let Some(answer) = self.unless_gone("a domain's description", answer)? else {
            return Ok(None);
        };
        let text = Reader::new(&answer).string().map(str::to_owned);
        text.map(Some).map_err(|error| self.garbled(error))
    }

    /// Sets an element of a domain's metadata, or takes it away.
    pub(crate) async fn set_metadata(
        &self,
        domain: &DomainRef,
        prefix: &str,
        namespace: &str,
        element: Option<&str>,
    ) -> Result<(), ConnectorError> {
        let body = domain
            .write(Writer::default())
            .i32(METADATA_ELEMENT)
            .optional_string(element)
            .optional_string(Some(prefix))
            .optional_string(Some(namespace))
            .u32(0);
        self.ask("setting metadata", procedure::SET_METADATA, body)
            .await?;
        Ok(())
    }

    fn unless_gone(
        &self,
        what: &str,
        answer: Result<Vec<u8>, CallError>,
    ) -> Result<Option<Vec<u8>>, ConnectorError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(CallError::Server(ServerError { code, .. })) if code == ERROR_NO_DOMAIN => Ok(None),
            Err(error) => Err(self.explain(what, error)),
        }
    }
}
