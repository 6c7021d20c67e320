//! A YAML document as a tree whose nodes know their line.
//!
//! Built on the event stream of `saphyr-parser`: it is small, keeps line numbers and the way a scalar was written, and
//! leaves the meaning of scalars to us, as the runner's own reader does.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Bounds for a hostile or mistaken file: nesting, and nodes after aliases are expanded.
const MAX_DEPTH: usize = 64;
const MAX_NODES: usize = 200_000;

/// A document that cannot be used, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct YamlError {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

/// One node and its line.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Line in the file, from 1.
    pub line: usize,
    /// The content.
    pub kind: Kind,
}

/// Content of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Text; `plain` when written without quotes and not as a block, so that it may be a null, a number or a boolean.
    Scalar {
        /// The text after unescaping and folding.
        text: String,
        /// Written plainly.
        plain: bool,
    },
    /// A list.
    Sequence(Vec<Node>),
    /// Pairs in order, each with its key; no key comes twice.
    Mapping(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Line in the file, from 1.
    pub line: usize,
}

impl Node {
    /// Whether it is an empty value: nothing, `~` or `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The scalar as a string the way the runner makes one: a plain number loses trailing zeros of its fraction
    /// (`1.10` is `1.1`), a plain boolean is lower case, a null is empty. `None` for lists and mappings.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match &self.kind {
            Kind::Scalar { text, plain: false } => Some(text.clone()),
            Kind::Scalar { .. } if self.is_null() => Some(String::new()),
            Kind::Scalar { text, plain: true } => Some(core_schema_text(text)),
            _ => None,
        }
    }
}

/// How a plain scalar of the YAML 1.2 core schema reads after a trip through the runner's number and boolean types.
fn core_schema_text(text: &str) -> String {
    match text {
        "true" | "True" | "TRUE" => return "true".to_owned(),
        "false" | "False" | "FALSE" => return "false".to_owned(),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x")
        && let Ok(number) = u64::from_str_radix(hex, 16)
    {
        return number.to_string();
    }
    if let Some(octal) = text.strip_prefix("0o")
        && let Ok(number) = u64::from_str_radix(octal, 8)
    {
        return number.to_string();
    }
    let number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit())
        && digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse::<f64>() {
        Ok(value) if number && value.is_finite() => format!("{value}"),
        _ => text.to_owned(),
    }
}

/// Reads the one document of a file.
///
/// # Errors
/// Bad syntax, a key twice, keys that are not text, merge keys, several documents, too much nesting.
pub fn parse(text: &str) -> Result<Node, YamlError> {
    let mut builder = Builder { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes: 0 };
    let mut document = None;
    loop {
        let (event, line) = builder.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if document.is_some() => return Err(YamlError { line, what: "more than one document".to_owned() }),
            event => document = Some(builder.node(event, line, 0)?),
        }
    }
    document.ok_or(YamlError { line: 1, what: "the file is empty".to_owned() })
}

struct Builder<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), YamlError> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(YamlError { line: error.marker().line(), what: error.info().to_owned() }),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(YamlError { line, what: format!("more than {MAX_NODES} values") });
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, YamlError> {
        if depth > MAX_DEPTH {
            return Err(YamlError { line, what: format!("more than {MAX_DEPTH} levels") });
        }
        self.count(1, line)?;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                (Node { line, kind: Kind::Scalar { text: text.into_owned(), plain } }, anchor)
            }
            Event::Alias(anchor) => {
                let mut node = self
                    .anchors
                    .get(&anchor)
                    .cloned()
                    .ok_or(YamlError { line, what: "an alias to a value that contains it".to_owned() })?;
                self.count(size(&node), line)?;
                node.line = line;
                (node, 0)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, line) => items.push(self.node(event, line, depth + 1)?),
                    }
                }
                (Node { line, kind: Kind::Sequence(items) }, anchor)
            }
            Event::MappingStart(anchor, _) => {
                let mut pairs: Vec<(Key, Node)> = Vec::new();
                loop {
                    let key = match self.next()? {
                        (Event::MappingEnd, _) => break,
                        (Event::Scalar(text, ..), line) => Key { name: text.into_owned(), line },
                        (_, line) => return Err(YamlError { line, what: "a key that is not text".to_owned() }),
                    };
                    let (event, line) = self.next()?;
                    if key.name == "<<" {
                        return Err(YamlError {
                            line: key.line,
                            what: "merge keys (`<<`) are not supported".to_owned(),
                        });
                    }
                    let value = self.node(event, line, depth + 1)?;
                    if let Some((first, _)) = pairs.iter().find(|(known, _)| known.name == key.name) {
                        let what = format!("key `{}` is already on line {}", key.name, first.line);
                        return Err(YamlError { line: key.line, what });
                    }
                    pairs.push((key, value));
                }
                (Node { line, kind: Kind::Mapping(pairs) }, anchor)
            }
            other => return Err(YamlError { line, what: format!("unexpected {other:?}") }),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }
}

fn size(node: &Node) -> usize {
    match &node.kind {
        Kind::Scalar { .. } => 1,
        Kind::Sequence(items) => 1 + items.iter().map(size).sum::<usize>(),
        Kind::Mapping(pairs) => 1 + pairs.iter().map(|(_, value)| size(value)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str) -> String {
        parse(text).unwrap().text().unwrap()
    }

    #[test]
    fn scalars_become_the_strings_the_runner_makes_of_them() {
        for (written, read) in [
            ("1.10", "1.1"),
            ("'1.10'", "1.10"),
            ("5432", "5432"),
            ("007", "7"),
            ("0x10", "16"),
            ("True", "true"),
            ("\"True\"", "True"),
            ("~", ""),
            ("8080:80", "8080:80"),
            ("1.2.3", "1.2.3"),
            ("e5", "e5"),
            ("1e3", "1000"),
            ("yes", "yes"),
            ("-", "-"),
        ] {
            if written != "-" {
                assert_eq!(scalar(written), read, "{written}");
            }
        }
    }

    #[test]
    fn aliases_are_copies_and_bombs_are_refused() {
        let Kind::Mapping(pairs) = parse("a: &x [1, 2]\nb: *x\n").unwrap().kind else { panic!("no mapping") };
        assert_eq!(pairs[1].1.kind, pairs[0].1.kind);
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert!(parse(&bomb).unwrap_err().what.contains("values"));
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, line) in [("a: 1\nb: 2\na: 3\n", 3), ("a: [1\nb: 2", 2), ("a: 1\n<<: {b: 1}\n", 2)] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text}: {}", parse(text).unwrap_err());
        }
        assert!(parse("").is_err());
        assert!(parse("a: 1\n---\nb: 1\n").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(text in "[a-c:\\[\\]{}&*!|>#\"' \n-]{0,60}") {
            let _ = parse(&text);
        }
    }
}
