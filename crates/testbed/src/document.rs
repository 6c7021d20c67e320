//! Reading a checked document: every value knows its path and line, unknown keys and expressions are refused by name.

use std::fmt;

use crate::yaml::{Kind, Node};

/// Pairs in the order they were written.
pub type Pairs = Vec<(String, String)>;

/// A file that cannot be used: where and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line in the file, from 1.
    pub line: usize,
    /// Place in the document, such as `jobs.build.steps[0].run`.
    pub place: String,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            write!(f, "line {}: {}", self.line, self.what)
        } else {
            write!(f, "line {}: {}: {}", self.line, self.place, self.what)
        }
    }
}

impl std::error::Error for Mistake {}

/// A node and its place.
#[derive(Debug, Clone)]
pub struct At<'a> {
    node: &'a Node,
    place: String,
}

/// A mapping whose keys have been checked.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    at: At<'a>,
    pairs: Vec<(&'a str, At<'a>)>,
}

impl<'a> At<'a> {
    /// The top of a document.
    #[must_use]
    pub fn root(node: &'a Node) -> Self {
        Self { node, place: String::new() }
    }

    /// Its line.
    #[must_use]
    pub fn line(&self) -> usize {
        self.node.line
    }

    /// A complaint about this value.
    #[must_use]
    pub fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake { line: self.node.line, place: self.place.clone(), what: what.into() }
    }

    /// Whether it is a scalar (the short form of several keys).
    #[must_use]
    pub fn is_scalar(&self) -> bool {
        matches!(self.node.kind, Kind::Scalar { .. })
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.node.is_null()
    }

    fn below(&self, node: &'a Node, name: &str) -> Self {
        let place = if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) };
        Self { node, place }
    }

    /// Text without expressions.
    ///
    /// # Errors
    /// Not a scalar, or `${{` in it.
    pub fn text(&self) -> Result<String, Mistake> {
        let text = self.node.text().ok_or_else(|| self.mistake("text is expected here, not a list or a mapping"))?;
        if text.contains("${{") {
            return Err(self.mistake("expressions (`${{ }}`) are not evaluated by this program; write the value"));
        }
        Ok(text)
    }

    /// A plain boolean.
    ///
    /// # Errors
    /// Anything but `true` or `false`.
    pub fn boolean(&self) -> Result<bool, Mistake> {
        match self.text()?.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(self.mistake(format!("`{other}` is neither true nor false"))),
        }
    }

    /// A length of time in minutes, fractions allowed.
    ///
    /// # Errors
    /// Not a positive number.
    pub fn minutes(&self) -> Result<std::time::Duration, Mistake> {
        let text = self.text()?;
        text.parse::<f64>()
            .ok()
            .filter(|minutes| *minutes > 0.0)
            .and_then(|minutes| std::time::Duration::try_from_secs_f64(minutes * 60.0).ok())
            .ok_or_else(|| self.mistake(format!("`{text}` is not a positive number of minutes")))
    }

    /// Items of a list; nothing written is an empty list.
    ///
    /// # Errors
    /// Not a list.
    pub fn items(&self) -> Result<Vec<Self>, Mistake> {
        match &self.node.kind {
            Kind::Sequence(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Self { node, place: format!("{}[{index}]", self.place) })
                .collect()),
            _ if self.is_null() => Ok(Vec::new()),
            _ => Err(self.mistake("a list is expected here")),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// Not a list, or an item that is not text.
    pub fn texts(&self) -> Result<Vec<String>, Mistake> {
        self.items()?.iter().map(Self::text).collect()
    }

    /// Pairs of a mapping with free keys; nothing written is an empty mapping.
    ///
    /// # Errors
    /// Not a mapping.
    pub fn entries(&self) -> Result<Vec<(&'a str, Self)>, Mistake> {
        match &self.node.kind {
            Kind::Mapping(pairs) => {
                Ok(pairs.iter().map(|(key, node)| (key.name.as_str(), self.below(node, &key.name))).collect())
            }
            _ if self.is_null() => Ok(Vec::new()),
            _ => Err(self.mistake("a mapping is expected here")),
        }
    }

    /// Names and texts, such as `env`.
    ///
    /// # Errors
    /// Not a mapping, a value that is not text, an empty name or one with `=`.
    pub fn pairs(&self) -> Result<Pairs, Mistake> {
        self.entries()?
            .into_iter()
            .map(|(name, value)| {
                if name.is_empty() || name.contains('=') || name.contains("${{") {
                    return Err(value.mistake("this is not a name"));
                }
                Ok((name.to_owned(), value.text()?))
            })
            .collect()
    }

    /// A mapping with these keys and no others.
    ///
    /// # Errors
    /// Not a mapping, or another key; the message lists the ones that are read.
    pub fn fields(&self, known: &[&str]) -> Result<Fields<'a>, Mistake> {
        let pairs = self.entries()?;
        if let Kind::Mapping(nodes) = &self.node.kind {
            for (key, _) in nodes {
                if !known.contains(&key.name.as_str()) {
                    let what = format!("unknown key `{}` (this program reads {})", key.name, known.join(", "));
                    return Err(Mistake { line: key.line, place: self.place.clone(), what });
                }
            }
        }
        Ok(Fields { at: self.clone(), pairs })
    }
}

impl<'a> Fields<'a> {
    /// The value of a key that was written with a value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&At<'a>> {
        self.pairs.iter().find(|(key, value)| *key == name && !value.is_null()).map(|(_, value)| value)
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn need(&self, name: &str) -> Result<&At<'a>, Mistake> {
        self.get(name).ok_or_else(|| self.at.mistake(format!("key `{name}` is missing")))
    }

    /// The text of a key, if it is there.
    ///
    /// # Errors
    /// It is not text.
    pub fn text(&self, name: &str) -> Result<Option<String>, Mistake> {
        self.get(name).map(At::text).transpose()
    }

    /// Names and texts of a key; none when it is not there.
    ///
    /// # Errors
    /// See [`At::pairs`].
    pub fn pairs(&self, name: &str) -> Result<Pairs, Mistake> {
        self.get(name).map_or(Ok(Vec::new()), At::pairs)
    }

    /// Texts of a key; none when it is not there.
    ///
    /// # Errors
    /// See [`At::texts`].
    pub fn texts(&self, name: &str) -> Result<Vec<String>, Mistake> {
        self.get(name).map_or(Ok(Vec::new()), At::texts)
    }

    /// The mapping itself.
    #[must_use]
    pub fn at(&self) -> &At<'a> {
        &self.at
    }
}
