//! XML-RPC values, as XAPI writes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use roxmltree::{Document, Node, ParsingOptions};

/// Elements of one answer: about 400 for each VM.
const NODES_MAX: u32 = 20_000_000;
/// Values inside values; XAPI's have five levels.
const DEPTH_MAX: usize = 32;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// XAPI writes integers as strings too.
    Text(String),
    Bool(bool),
    Double(f64),
    List(Vec<Self>),
    Map(BTreeMap<String, Self>),
}

/// XML that is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an answer in XML-RPC: {0}")]
pub(crate) struct NotXmlRpc(String);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Value {
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    pub(crate) fn map(&self) -> Option<&BTreeMap<String, Self>> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// A field of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.map()?.get(key)
    }

    /// A field that is text.
    pub(crate) fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key)?.text()
    }

    /// A field that is true.
    pub(crate) fn is(&self, key: &str) -> bool {
        self.get(key) == Some(&Self::Bool(true))
    }

    fn write(&self, out: &mut String) {
        out.push_str("<value>");
        let _infallible = match self {
            Self::Text(text) => write!(out, "<string>{}</string>", escape(text)),
            Self::Bool(value) => write!(out, "<boolean>{}</boolean>", u8::from(*value)),
            Self::Double(value) => write!(out, "<double>{value:?}</double>"),
            Self::List(list) => {
                out.push_str("<array><data>");
                list.iter().for_each(|value| value.write(out));
                write!(out, "</data></array>")
            }
            Self::Map(map) => {
                out.push_str("<struct>");
                for (key, value) in map {
                    let _infallible = write!(out, "<member><name>{}</name>", escape(key));
                    value.write(out);
                    out.push_str("</member>");
                }
                write!(out, "</struct>")
            }
        };
        out.push_str("</value>");
    }

    fn read(value: Node<'_, '_>, depth: usize) -> Result<Self, NotXmlRpc> {
        let bad = |what: &str| NotXmlRpc(what.to_owned());
        if depth > DEPTH_MAX {
            return Err(bad("values too deep inside values"));
        }
        let Some(typed) = value.first_element_child() else {
            return Ok(Self::Text(value.text().unwrap_or_default().to_owned()));
        };
        let text = typed.text().unwrap_or_default();
        match typed.tag_name().name() {
            "boolean" => Ok(Self::Bool(text == "1")),
            "double" => text
                .parse()
                .map(Self::Double)
                .map_err(|_| bad("a number that is none")),
            "array" => {
                let data = child(typed, "data").ok_or_else(|| bad("an array without data"))?;
                let values = children(data, "value").map(|value| Self::read(value, depth + 1));
                values.collect::<Result<_, _>>().map(Self::List)
            }
            "struct" => children(typed, "member")
                .map(|member| {
                    let name = child(member, "name").and_then(|name| name.text());
                    let value = child(member, "value").ok_or_else(|| bad("no value"))?;
                    let name = name.unwrap_or_default().to_owned();
                    Ok((name, Self::read(value, depth + 1)?))
                })
                .collect::<Result<_, _>>()
                .map(Self::Map),
            // string, int, i4, dateTime.iso8601, nil
            _ => Ok(Self::Text(text.to_owned())),
        }
    }
}

/// A call.
pub(crate) fn call(method: &str, params: &[Value]) -> String {
    let mut out = format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>{}</methodName><params>",
        escape(method)
    );
    for param in params {
        out.push_str("<param>");
        param.write(&mut out);
        out.push_str("</param>");
    }
    out + "</params></methodCall>"
}

/// The value that an answer holds; XAPI reports failures inside it.
pub(crate) fn answer(xml: &str) -> Result<Value, NotXmlRpc> {
    let bad = |what: &str| NotXmlRpc(what.to_owned());
    let document = parse(xml)?;
    let params = child(document.root_element(), "params").ok_or_else(|| bad("a fault"))?;
    let value = child(params, "param").and_then(|param| child(param, "value"));
    Value::read(value.ok_or_else(|| bad("no value"))?, 0)
}

fn parse(xml: &str) -> Result<Document<'_>, NotXmlRpc> {
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: NODES_MAX,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(xml, options).map_err(|error| NotXmlRpc(error.to_string()))
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children()
        .filter(move |child| child.has_tag_name(name))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The server's side, for the fake.
#[cfg(test)]
pub(crate) mod server {
    use super::{NotXmlRpc, Value, child, children, parse};

    /// A call's method and parameters.
    pub(crate) fn read_call(xml: &str) -> Result<(String, Vec<Value>), NotXmlRpc> {
        let document = parse(xml)?;
        let root = document.root_element();
        let method = child(root, "methodName").and_then(|name| name.text());
        let params = child(root, "params").into_iter();
        let params = params.flat_map(|params| children(params, "param"));
        let values = params.filter_map(|param| child(param, "value"));
        let values: Result<Vec<Value>, _> = values.map(|value| Value::read(value, 0)).collect();
        Ok((method.unwrap_or_default().to_owned(), values?))
    }

    /// An answer that holds this value.
    pub(crate) fn write_answer(value: &Value) -> String {
        let mut out = "<?xml version=\"1.0\"?><methodResponse><params><param>".to_owned();
        value.write(&mut out);
        out + "</param></params></methodResponse>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_written() {
        let value = Value::Map(BTreeMap::from([
            ("a<b".to_owned(), Value::from("x & y")),
            (
                "list".to_owned(),
                Value::List(vec![Value::Bool(true), Value::Double(1.5)]),
            ),
        ]));
        let xml = server::write_answer(&value);
        assert_eq!(answer(&xml), Ok(value));
    }

    #[test]
    fn what_is_no_answer() {
        let deep = "<value><array><data>".repeat(40) + &"</data></array></value>".repeat(40);
        let deep = format!("<r><params><param>{deep}</param></params></r>");
        for xml in ["", "<methodResponse><fault/></methodResponse>", &deep] {
            answer(xml).expect_err("refused");
        }
        let bare = "<r><params><param><value>bare</value></param></params></r>";
        assert_eq!(answer(bare), Ok(Value::from("bare")));
    }
}
