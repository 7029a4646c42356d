//! WS-Management: enumerations with a WQL filter.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hypervisor::ConnectorError;
use hypervisor_transport::{Answer, HttpClient, Method, REQUEST_TIME, Secret, StatusCode, header};
use roxmltree::{Document, Node, ParsingOptions};
use sha2::{Digest, Sha256};

use crate::ntlm::{Account, Fresh, authenticate, negotiate};

const PATH: &str = "/wsman";
/// Elements of one answer: WinRM sends at most 500 KiB.
const NODES_MAX: u32 = 1_000_000;
/// Pages of one enumeration, 100 instances each.
const PAGES_MAX: usize = 1000;
const ENUMERATE: &str = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/Enumerate";
const PULL: &str = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/Pull";
/// 100 ns from 1601 to 1970.
const UNIX_EPOCH_100NS: u64 = 116_444_736_000_000_000;

/// An instance of a class: its properties that have a value.
pub(crate) type Instance = BTreeMap<String, String>;

/// Name and password.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) domain: String,
    pub(crate) user: String,
    pub(crate) password: Secret,
}

/// One host's WMI.
pub(crate) struct Wsman {
    http: HttpClient,
    login: Login,
    is_authenticated: bool,
}

/// One answer of an enumeration.
struct Page {
    instances: Vec<Instance>,
    /// How to go on; `None` at the end.
    context: Option<String>,
}

impl Wsman {
    pub(crate) fn new(http: HttpClient, login: Login) -> Self {
        Self {
            http,
            login,
            is_authenticated: false,
        }
    }

    /// All instances that a WQL query finds.
    pub(crate) async fn query(
        &mut self,
        namespace: &str,
        wql: &str,
    ) -> Result<Vec<Instance>, ConnectorError> {
        let start = format!(
            "<n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>100</w:MaxElements>\
             <w:Filter Dialect=\"http://schemas.microsoft.com/wbem/wsman/1/WQL\">{}</w:Filter>\
             </n:Enumerate>",
            escape(wql)
        );
        let mut page = self.page(namespace, ENUMERATE, &start).await?;
        let mut all = std::mem::take(&mut page.instances);
        for _ in 0..PAGES_MAX {
            let Some(context) = page.context else {
                return Ok(all);
            };
            let pull = format!(
                "<n:Pull><n:EnumerationContext>{}</n:EnumerationContext>\
                 <n:MaxElements>100</n:MaxElements></n:Pull>",
                escape(&context)
            );
            page = self.page(namespace, PULL, &pull).await?;
            all.append(&mut page.instances);
        }
        Err(ConnectorError::TooMuch {
            endpoint: self.endpoint(),
            what: "an enumeration's pages",
            limit: PAGES_MAX,
        })
    }

    pub(crate) fn endpoint(&self) -> String {
        self.http.endpoint().to_string()
    }

    async fn page(
        &mut self,
        namespace: &str,
        action: &str,
        body: &str,
    ) -> Result<Page, ConnectorError> {
        let envelope = envelope(&self.endpoint(), namespace, action, body);
        let answer = self.authenticated(envelope).await?;
        let text = answer.text();
        match answer.status {
            StatusCode::OK => {}
            StatusCode::INTERNAL_SERVER_ERROR => return Err(self.explain(&text)),
            status => return Err(self.garbled(&format!("HTTP status {status}"))),
        }
        read_page(&text).map_err(|what| self.garbled(&what))
    }

    /// NTLM authenticates a connection: the first request of each is shown who we are.
    async fn authenticated(&mut self, envelope: String) -> Result<Answer, ConnectorError> {
        if self.is_authenticated && self.http.is_connected() {
            let answer = self.send(envelope.clone(), None).await?;
            if answer.status != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
        }
        self.is_authenticated = false;
        let first = format!("Negotiate {}", BASE64.encode(negotiate()));
        let challenged = self.send(String::new(), Some(&first)).await?;
        let challenge = challenged
            .headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok()?.strip_prefix("Negotiate "))
            .find_map(|token| BASE64.decode(token).ok());
        let challenge = challenge.ok_or_else(|| self.refused("it does not take NTLM"))?;
        let last = self.last_message(&challenge)?;
        let last = format!("Negotiate {}", BASE64.encode(last));
        let answer = self.send(envelope, Some(&last)).await?;
        match answer.status {
            StatusCode::UNAUTHORIZED => Err(self.refused("name or password is wrong")),
            StatusCode::FORBIDDEN => Err(ConnectorError::Forbidden {
                endpoint: self.endpoint(),
                what: "remote management".to_owned(),
            }),
            _ => {
                self.is_authenticated = true;
                Ok(answer)
            }
        }
    }

    fn last_message(&self, challenge: &[u8]) -> Result<Vec<u8>, ConnectorError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| ConnectorError::Config(format!("no random bytes: {error}")))?;
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let certificate = self.http.certificate();
        let fresh = Fresh {
            challenge: random,
            time: UNIX_EPOCH_100NS + (since.as_nanos() / 100) as u64,
            certificate_sha256: certificate.map(|cert| Sha256::digest(cert).into()),
        };
        let account = Account {
            domain: &self.login.domain,
            user: &self.login.user,
            password: self.login.password.reveal(),
        };
        authenticate(&account, &fresh, challenge)
            .map_err(|_| self.garbled("an NTLM challenge that makes no sense"))
    }

    async fn send(
        &mut self,
        body: String,
        authorization: Option<&str>,
    ) -> Result<Answer, ConnectorError> {
        let kind = (header::CONTENT_TYPE, "application/soap+xml;charset=UTF-8");
        let shown = authorization.map(|shown| (header::AUTHORIZATION, shown));
        let headers: Vec<_> = [kind].into_iter().chain(shown).collect();
        self.http
            .send(Method::POST, PATH, &headers, body, REQUEST_TIME)
            .await
    }

    fn explain(&self, text: &str) -> ConnectorError {
        let reason = parse(text).ok().and_then(|document| {
            let mut nodes = document.descendants();
            let text = nodes.find(|node| is_named(*node, "Text"))?;
            Some(text.text()?.trim().to_owned())
        });
        let reason = reason.unwrap_or_else(|| "a fault without a text".to_owned());
        if reason.contains("Access is denied") {
            return ConnectorError::Forbidden {
                endpoint: self.endpoint(),
                what: reason,
            };
        }
        self.garbled(&reason)
    }

    fn refused(&self, reason: &str) -> ConnectorError {
        ConnectorError::Credentials {
            endpoint: self.endpoint(),
            reason: reason.to_owned(),
        }
    }

    fn garbled(&self, what: &str) -> ConnectorError {
        ConnectorError::Answer {
            endpoint: self.endpoint(),
            what: what.to_owned(),
        }
    }
}

fn envelope(endpoint: &str, namespace: &str, action: &str, body: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
         xmlns:w=\"http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd\" \
         xmlns:n=\"http://schemas.xmlsoap.org/ws/2004/09/enumeration\"><s:Header>\
         <a:To>https://{endpoint}{PATH}</a:To>\
         <w:ResourceURI s:mustUnderstand=\"true\">\
         http://schemas.microsoft.com/wbem/wsman/1/wmi/{namespace}/*</w:ResourceURI>\
         <a:ReplyTo><a:Address s:mustUnderstand=\"true\">\
         http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo>\
         <a:Action s:mustUnderstand=\"true\">{action}</a:Action>\
         <w:MaxEnvelopeSize s:mustUnderstand=\"true\">512000</w:MaxEnvelopeSize>\
         <a:MessageID>uuid:00000000-0000-4000-8000-{number:012x}</a:MessageID>\
         <w:OperationTimeout>PT20S</w:OperationTimeout></s:Header>\
         <s:Body>{body}</s:Body></s:Envelope>"
    )
}

fn parse(text: &str) -> Result<Document<'_>, String> {
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: NODES_MAX,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(text, options).map_err(|error| error.to_string())
}

fn read_page(text: &str) -> Result<Page, String> {
    let document = parse(text)?;
    let response = document
        .descendants()
        .find(|node| is_named(*node, "EnumerateResponse") || is_named(*node, "PullResponse"))
        .ok_or("an answer without instances")?;
    let children = |name| {
        response
            .children()
            .filter(move |node| is_named(*node, name))
    };
    let items = children("Items").flat_map(|items| items.children());
    let instances = items.filter(Node::is_element).map(read_instance).collect();
    let is_end = children("EndOfSequence").next().is_some();
    let context = children("EnumerationContext").find_map(|node| node.text());
    Ok(Page {
        instances,
        context: context.filter(|_| !is_end).map(str::to_owned),
    })
}

fn read_instance(item: Node<'_, '_>) -> Instance {
    let properties = item.children().filter(Node::is_element);
    properties
        .filter_map(|node| Some((node.tag_name().name().to_owned(), node.text()?.to_owned())))
        .collect()
}

fn is_named(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().name() == name
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
