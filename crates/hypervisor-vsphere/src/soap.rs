//! SOAP calls of the vim25 API.

use std::time::Duration;

use hypervisor::ConnectorError;
use hypervisor_transport::{Answer, HttpClient, Method, StatusCode, header};
use roxmltree::{Document, Node, ParsingOptions};

/// Elements of one answer: some hundreds for each object, and answers are asked for in pages.
const NODES_MAX: u32 = 4_000_000;
const PATH: &str = "/sdk";

/// A session's calls.
pub(crate) struct Soap {
    http: HttpClient,
}

/// A fault, by the type of its detail (`InvalidLogin`, `NotAuthenticated`…) and its text.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: String,
    pub(crate) text: String,
}

impl Soap {
    pub(crate) fn new(http: HttpClient) -> Self {
        Self { http }
    }

    pub(crate) fn endpoint(&self) -> String {
        self.http.endpoint().to_string()
    }

    /// Calls a method of an object; `arguments` are elements after `_this`. `read` gets the
    /// answer's `returnval`s.
    pub(crate) async fn call<T>(
        &mut self,
        method: &str,
        this: Ref<'_>,
        arguments: &str,
        limit: Duration,
        read: impl FnOnce(&[Node<'_, '_>]) -> Option<T>,
    ) -> Result<T, ConnectorError> {
        let Ref { kind, id } = this;
        let id = escape(id);
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
             <soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
             xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\"><soapenv:Body>\
             <{method} xmlns=\"urn:vim25\"><_this type=\"{kind}\">{id}</_this>{arguments}</{method}>\
             </soapenv:Body></soapenv:Envelope>"
        );
        let headers = [
            (header::CONTENT_TYPE, "text/xml; charset=utf-8"),
            (
                header::HeaderName::from_static("soapaction"),
                "urn:vim25/6.7",
            ),
        ];
        let answer = self
            .http
            .send(Method::POST, PATH, &headers, body, limit)
            .await?;
        self.keep_cookie(&answer)?;
        let text = answer.text();
        let garbled = |what: &str| ConnectorError::Answer {
            endpoint: self.http.endpoint().to_string(),
            what: format!("{method}: {what}"),
        };
        let is_soap = [StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR].contains(&answer.status);
        if !is_soap {
            return Err(garbled(&format!("HTTP status {}", answer.status)));
        }
        let options = ParsingOptions {
            allow_dtd: false,
            nodes_limit: NODES_MAX,
            ..ParsingOptions::default()
        };
        let document = Document::parse_with_options(&text, options)
            .map_err(|error| garbled(&error.to_string()))?;
        let body = child(document.root_element(), "Body").ok_or_else(|| garbled("no body"))?;
        let content = body.first_element_child();
        let content = content.ok_or_else(|| garbled("an empty body"))?;
        if content.has_tag_name((content.tag_name().namespace().unwrap_or_default(), "Fault")) {
            return Err(self.explain(method, &read_fault(content)));
        }
        let values: Vec<Node<'_, '_>> = children(content, "returnval").collect();
        read(&values).ok_or_else(|| garbled("an answer without what was asked for"))
    }

    /// A session is a cookie.
    fn keep_cookie(&mut self, answer: &Answer) -> Result<(), ConnectorError> {
        let set = answer.headers.get(header::SET_COOKIE);
        let cookie = set
            .and_then(|cookie| cookie.to_str().ok())
            .and_then(|cookie| cookie.split(';').next());
        match cookie {
            Some(cookie) => self.http.set_header(header::COOKIE, cookie),
            None => Ok(()),
        }
    }

    fn explain(&self, method: &str, fault: &Fault) -> ConnectorError {
        let endpoint = self.endpoint();
        match &*fault.kind {
            "InvalidLogin" | "NotAuthenticated" if method == "Login" => {
                ConnectorError::Credentials {
                    endpoint,
                    reason: fault.text.clone(),
                }
            }
            "NoPermission" => ConnectorError::Forbidden {
                endpoint,
                what: method.to_owned(),
            },
            kind => ConnectorError::Answer {
                endpoint,
                what: format!("{method}: {kind}: {}", fault.text),
            },
        }
    }
}

/// A managed object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ref<'a> {
    pub(crate) kind: &'a str,
    pub(crate) id: &'a str,
}

fn read_fault(fault: Node<'_, '_>) -> Fault {
    let text = child(fault, "faultstring").and_then(|node| node.text());
    let detail = child(fault, "detail").and_then(|detail| detail.first_element_child());
    let kind = detail.map(|detail| {
        let named = xsi_type(detail).unwrap_or(detail.tag_name().name());
        named.trim_end_matches("Fault").to_owned()
    });
    Fault {
        kind: kind.unwrap_or_default(),
        text: text.unwrap_or_default().to_owned(),
    }
}

/// The type that an element says it has, without a prefix.
pub(crate) fn xsi_type<'a>(node: Node<'a, '_>) -> Option<&'a str> {
    let named = node.attribute(("http://www.w3.org/2001/XMLSchema-instance", "type"))?;
    Some(named.rsplit(':').next().unwrap_or(named))
}

/// Child elements of this name, whatever their namespace.
pub(crate) fn children<'a, 'i>(
    node: Node<'a, 'i>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children()
        .filter(move |child| child.is_element() && child.tag_name().name() == name)
}

/// The first child element of this name.
pub(crate) fn child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// Text for an element or attribute.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
