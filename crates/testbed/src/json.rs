//! JSON as the official runner reads and writes it (protocol sections 3, 9 and 10).
//!
//! A value of our own, because the runner keeps the order and case of keys, echoes integers of any size, sends other
//! numbers through a double, escapes U+0085, U+2028 and U+2029, and reads a response more leniently than the standard:
//! comments, single quotes, bare names and a trailing comma pass; more than 64 levels do not.

use std::fmt::Write as _;

/// Levels of nesting the runner's reader accepts.
const MAX_DEPTH: usize = 64;

/// One JSON value; objects keep their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer of any size, as its digits.
    Integer(String),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    Array(Vec<Value>),
    /// Members in order; a name that came twice holds the last value.
    Object(Vec<(String, Value)>),
}

/// Why a document could not be read; `at` is a byte offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct JsonError {
    /// What is wrong.
    pub what: String,
    /// Byte offset in the document.
    pub at: usize,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Integer(value.to_string())
    }
}
impl From<u128> for Value {
    fn from(value: u128) -> Self {
        Self::Integer(value.to_string())
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        Self::Array(values.into_iter().map(Into::into).collect())
    }
}

/// An object from its members, in order.
#[must_use]
pub fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// An object of strings, in order.
#[must_use]
pub fn string_map<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Value {
    Value::Object(pairs.into_iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect())
}

impl Value {
    /// The member called `name`, upper and lower case being one, as the runner binds a response.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Object(members) => {
                members.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// What kind of value it is, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }

    /// The value on one line, without spaces, as it goes to a hook.
    #[must_use]
    pub fn line(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, None, 0);
        out
    }

    /// The value over several lines, for a file that people open.
    #[must_use]
    pub fn pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Some("  "), 0);
        out.push('\n');
        out
    }

    fn write(&self, out: &mut String, indent: Option<&str>, depth: usize) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Integer(digits) => out.push_str(digits),
            Self::Float(value) => {
                let _ = write!(out, "{value:?}");
            }
            Self::String(text) => write_string(out, text),
            Self::Array(values) => {
                write_list(out, indent, depth, ['[', ']'], values, |out, value| value.write(out, indent, depth + 1));
            }
            Self::Object(members) => {
                write_list(out, indent, depth, ['{', '}'], members, |out, (name, value)| {
                    write_string(out, name);
                    out.push_str(if indent.is_some() { ": " } else { ":" });
                    value.write(out, indent, depth + 1);
                });
            }
        }
    }

    /// Reads one document and nothing after it but white space and comments. White space alone is `None`.
    ///
    /// # Errors
    /// Anything the runner's reader refuses, a second document included.
    pub fn parse(text: &str) -> Result<Option<Self>, JsonError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = Reader { text, at: 0 };
        reader.space()?;
        if reader.peek().is_none() {
            return Ok(None);
        }
        let value = reader.value(0)?;
        reader.space()?;
        match reader.peek() {
            None => Ok(Some(value)),
            Some(_) => Err(reader.error("additional text after the end of the document")),
        }
    }
}

fn write_list<T>(
    out: &mut String,
    indent: Option<&str>,
    depth: usize,
    brackets: [char; 2],
    items: &[T],
    mut item: impl FnMut(&mut String, &T),
) {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    out.push(brackets[0]);
    for (index, value) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        line(out, depth + 1);
        item(out, value);
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(brackets[1]);
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn error(&self, what: impl Into<String>) -> JsonError {
        JsonError { what: what.into(), at: self.at }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn space(&mut self) -> Result<(), JsonError> {
        loop {
            if self.peek().is_some_and(char::is_whitespace) {
                self.next();
            } else if self.rest().starts_with("//") {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            } else if self.rest().starts_with("/*") {
                let end = self.rest().find("*/").ok_or_else(|| self.error("a comment that does not end"))?;
                self.at += end + 2;
            } else {
                return Ok(());
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return Err(self.error(format!("more than {MAX_DEPTH} levels")));
        }
        match self.peek() {
            Some('{') => self.object(depth),
            Some('[') => self.array(depth),
            Some('"' | '\'') => self.string().map(Value::String),
            Some(c) if c == '-' || c.is_ascii_digit() => self.number(),
            Some(c) if c.is_ascii_alphabetic() => {
                let word = self.word();
                match word.as_str() {
                    "null" | "undefined" => Ok(Value::Null),
                    "true" => Ok(Value::Bool(true)),
                    "false" => Ok(Value::Bool(false)),
                    _ => Err(self.error(format!("unexpected word `{word}`"))),
                }
            }
            Some(c) => Err(self.error(format!("unexpected character `{}`", c.escape_default()))),
            None => Err(self.error("unexpected end of the document")),
        }
    }

    fn word(&mut self) -> String {
        let end =
            self.rest().find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$'))).unwrap_or(self.rest().len());
        let word = self.rest()[..end].to_owned();
        self.at += end;
        word
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let end = self
            .rest()
            .find(|c: char| !(c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E')))
            .unwrap_or(self.rest().len());
        let text = self.rest()[..end].to_owned();
        let digits = text.strip_prefix('-').unwrap_or(&text);
        let value = if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            Value::Integer(text)
        } else {
            match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Value::Float(number),
                _ => return Err(self.error(format!("`{text}` is not a number"))),
            }
        };
        self.at += end;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let quote = self.next();
        let mut out = String::new();
        loop {
            match self.next() {
                None => return Err(self.error("unterminated string")),
                c if c == quote => return Ok(out),
                Some('\\') => match self.next() {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('b') => out.push('\u{8}'),
                    Some('f') => out.push('\u{c}'),
                    Some(c @ ('"' | '\'' | '\\' | '/')) => out.push(c),
                    Some('u') => out.push(self.unicode_escape()?),
                    _ => return Err(self.error("bad escape sequence")),
                },
                Some(c) => out.push(c),
            }
        }
    }

    fn four_hex(&mut self) -> Result<u32, JsonError> {
        let hex = self.rest().get(..4).and_then(|text| u32::from_str_radix(text, 16).ok());
        let code = hex.ok_or_else(|| self.error("bad \\u escape"))?;
        self.at += 4;
        Ok(code)
    }

    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = self.four_hex()?;
        if (0xD800..0xDC00).contains(&first) && self.rest().starts_with("\\u") {
            let mark = self.at;
            self.at += 2;
            let second = self.four_hex()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or('\u{fffd}'));
            }
            self.at = mark;
        }
        // Half a surrogate pair has no UTF-8 form; the runner would write the replacement character too.
        Ok(char::from_u32(first).unwrap_or('\u{fffd}'))
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.next();
        let mut values = Vec::new();
        loop {
            self.space()?;
            if self.peek() == Some(']') {
                self.next();
                return Ok(Value::Array(values));
            }
            values.push(self.value(depth + 1)?);
            self.separator(']')?;
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.next();
        let mut members: Vec<(String, Value)> = Vec::new();
        loop {
            self.space()?;
            let name = match self.peek() {
                Some('}') => {
                    self.next();
                    return Ok(Value::Object(members));
                }
                Some('"' | '\'') => self.string()?,
                Some(c) if c.is_alphanumeric() || matches!(c, '_' | '$') => self.word(),
                None => return Err(self.error("unexpected end of the document")),
                Some(c) => return Err(self.error(format!("unexpected character `{}`", c.escape_default()))),
            };
            self.space()?;
            if self.next() != Some(':') {
                return Err(self.error(format!("no `:` after `{name}`")));
            }
            self.space()?;
            let value = self.value(depth + 1)?;
            match members.iter_mut().find(|(known, _)| *known == name) {
                Some(slot) => slot.1 = value,
                None => members.push((name, value)),
            }
            self.separator('}')?;
        }
    }

    /// A comma, or the closing bracket left in place.
    fn separator(&mut self, close: char) -> Result<(), JsonError> {
        self.space()?;
        match self.peek() {
            Some(',') => {
                self.next();
                Ok(())
            }
            Some(c) if c == close => Ok(()),
            None => Err(self.error("unexpected end of the document")),
            Some(c) => Err(self.error(format!("unexpected character `{}`", c.escape_default()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(text: &str) -> String {
        Value::parse(text).unwrap().unwrap().line()
    }

    #[test]
    fn state_survives_the_round_trip_as_the_runner_keeps_it() {
        for (sent, echoed) in [
            (r#"{"Key":1,"key":2}"#, r#"{"Key":1,"key":2}"#),
            (r#"{"z":1,"a":[true,null]}"#, r#"{"z":1,"a":[true,null]}"#),
            (r#"{"n":123456789012345678901234567890}"#, r#"{"n":123456789012345678901234567890}"#),
            (r#"{"n":1.10,"m":2.0}"#, r#"{"n":1.1,"m":2.0}"#),
            (r#"{"when":"2026-01-01T00:00:00Z"}"#, r#"{"when":"2026-01-01T00:00:00Z"}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"u":"\u00e9\ud83d\ude00</&>"}"#, r#"{"u":"é😀</&>"}"#),
        ] {
            assert_eq!(echo(sent), echoed);
        }
    }

    #[test]
    fn control_and_line_separators_are_escaped_so_a_document_is_one_line() {
        let value = Value::String("a\nb\u{2028}c\u{85}d\u{1}\"\\".to_owned());
        assert_eq!(value.line(), r#""a\nb\u2028c\u0085d\u0001\"\\""#);
    }

    #[test]
    fn reading_is_as_lenient_as_the_runner() {
        assert_eq!(echo("\u{feff} {'a':1, /* b */ c: 'x',} // end"), r#"{"a":1,"c":"x"}"#);
        assert_eq!(Value::parse(" \n").unwrap(), None);
        let upper = Value::parse(r#"{"ISALPINE":true}"#).unwrap().unwrap();
        assert_eq!(upper.member("isAlpine"), Some(&Value::Bool(true)));
    }

    #[test]
    fn what_the_runner_refuses_is_refused() {
        let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
        for text in ["{} {}", "{}x", "{\"a\":", "{\"a\" 1}", "[1 2]", "{\"a\":01x}", "'abc", "{,}", deep.as_str()] {
            assert!(Value::parse(text).is_err(), "{text} was accepted");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_comes_back_and_stays_on_one_line(text: String) {
            let value = Value::String(text);
            let line = value.line();
            proptest::prop_assert!(!line.contains('\n'));
            proptest::prop_assert_eq!(Value::parse(&line), Ok(Some(value)));
        }

        #[test]
        fn no_input_panics(text: String) {
            let _ = Value::parse(&text);
        }
    }
}
