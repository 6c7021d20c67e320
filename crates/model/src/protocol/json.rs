//! A bounded JSON tree: depth, number of values and duplicate members are checked while reading, so that whatever a
//! tree holds has been seen to be harmless in shape.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::error::RequestError;
use crate::environ::display_name;

/// The largest accepted document in bytes.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;
/// The deepest accepted nesting of arrays and objects; the document itself is level 1.
pub const MAX_DEPTH: usize = 64;
/// The most values (of any type, at any level) in a document. Bounds memory: a byte of input can otherwise become
/// tens of bytes of tree.
pub const MAX_VALUES: usize = 1_000_000;

/// A JSON value.
pub(crate) enum Node {
    Null,
    Bool(bool),
    /// `Some` if it is a non-negative integer.
    Number(Option<u64>),
    String(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    /// The type with its article, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// Where a value is, as a chain of borrowed steps up to the document: paths cost nothing until a message needs one.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    Document,
    Member(&'a Path<'a>, &'a str),
    Element(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => f.write_str("request"),
            Self::Element(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Member(parent, name) => {
                let plain = !name.is_empty()
                    && name.len() <= 64
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
                match (parent, plain) {
                    (Self::Document, true) => f.write_str(name),
                    (_, true) => write!(f, "{parent}.{name}"),
                    (_, false) => {
                        // What follows a `=` in a name is somebody's value in the wrong place.
                        let (shown, cut) = name.split_once('=').map_or((*name, ""), |(shown, _)| (shown, "=…"));
                        write!(f, "{parent}[\"{}{cut}\"]", display_name(shown))
                    }
                }
            }
        }
    }
}

/// Reads exactly one document.
pub(crate) fn read(bytes: &[u8]) -> Result<Node, RequestError> {
    if bytes.len() > MAX_BYTES {
        return Err(RequestError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| RequestError::NotUtf8 { offset: error.valid_up_to() })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_ascii().is_empty() {
        return Err(RequestError::Empty);
    }
    let reading = Reading { values: Cell::new(0), refusal: RefCell::new(None) };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let seed = NodeSeed { reading: &reading, path: Path::Document, depth: 0 };
    let node = seed.deserialize(&mut deserializer).map_err(|error| {
        reading.refusal.take().unwrap_or_else(|| match error.classify() {
            serde_json::error::Category::Eof => RequestError::Truncated,
            // Syntax messages of the parser name tokens and places, never content.
            _ => RequestError::NotJson { reason: error.to_string() },
        })
    })?;
    deserializer.end().map_err(|error| RequestError::SecondDocument { column: error.column() })?;
    Ok(node)
}

/// What all seeds of one document share.
struct Reading {
    values: Cell<usize>,
    /// The typed form of an error on its way up through serde, which only carries text.
    refusal: RefCell<Option<RequestError>>,
}

impl Reading {
    fn refuse<E: serde::de::Error>(&self, error: RequestError) -> E {
        *self.refusal.borrow_mut() = Some(error);
        E::custom("refused")
    }
}

#[derive(Clone, Copy)]
struct NodeSeed<'a> {
    reading: &'a Reading,
    path: Path<'a>,
    /// Of the surrounding arrays and objects.
    depth: usize,
}

impl NodeSeed<'_> {
    fn enter<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.depth == MAX_DEPTH {
            return Err(self.reading.refuse(RequestError::TooDeep { path: self.short_path() }));
        }
        Ok(self.depth + 1)
    }

    /// The path, cut at a length that still fits a line: 64 levels of long names would not.
    fn short_path(&self) -> String {
        const SHOWN: usize = 200;
        let path = self.path.to_string();
        match path.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &path[..end]),
            None => path,
        }
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let seen = self.reading.values.get() + 1;
        if seen > MAX_VALUES {
            return Err(self.reading.refuse(RequestError::TooManyValues));
        }
        self.reading.values.set(seen);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(Some(value)))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Number(None))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Number(None))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::String(value.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Node, E> {
        Ok(Node::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Node, A::Error> {
        let depth = self.enter()?;
        let mut nodes = Vec::new();
        while let Some(node) = elements.next_element_seed(NodeSeed {
            reading: self.reading,
            path: Path::Element(&self.path, nodes.len()),
            depth,
        })? {
            nodes.push(node);
        }
        Ok(Node::Array(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let depth = self.enter()?;
        let mut nodes: Vec<(String, Node)> = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            let path = Path::Member(&self.path, &name);
            let node = members.next_value_seed(NodeSeed { reading: self.reading, path, depth })?;
            nodes.push((name, node));
        }
        if let Some(name) = first_duplicate(&nodes) {
            let path = Path::Member(&self.path, name);
            let error = NodeSeed { path, ..self }.short_path();
            return Err(self.reading.refuse(RequestError::Duplicate { path: error }));
        }
        Ok(Node::Object(nodes))
    }
}

fn first_duplicate(members: &[(String, Node)]) -> Option<&str> {
    let mut seen = HashSet::with_capacity(members.len());
    members.iter().map(|(name, _)| name.as_str()).find(|name| !seen.insert(*name))
}
