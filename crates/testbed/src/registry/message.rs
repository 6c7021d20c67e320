//! As much of HTTP/1.1 as a registry needs (RFC 9112).

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use super::Request;

/// Bytes of a request's head and of its body that are read.
const LIMIT: usize = 64 << 10;

/// What is to be sent.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Arc<Vec<u8>>,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Arc<Vec<u8>>>) -> Answer {
        Answer { status, headers: Vec::new(), body: body.into() }
    }

    /// An error as the distribution protocol writes it.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
        let body = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"{message}\"}}]}}");
        Answer::new(status, body.into_bytes()).with("Content-Type", "application/json")
    }

    /// With this header field instead of the one it has.
    pub(super) fn with(mut self, name: &str, value: &str) -> Answer {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    }

    /// Writes status line and header fields.
    pub(super) fn write_head(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Test\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())
    }
}

/// What a server says to a client that begins with TLS where none is spoken.
pub(super) const NOT_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";

/// Whether what has been read so far cannot become a request: methods are upper-case words.
pub(super) fn is_not_http(kept: &[u8]) -> bool {
    kept.first().is_some_and(|byte| !byte.is_ascii_uppercase())
}

/// Reads one request; `None` at the end of the connection or if it is none. `kept` holds bytes read too far.
pub(super) fn read_request(stream: &mut impl Read, kept: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(at) = kept.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if is_not_http(kept) {
            return None;
        }
        more(stream, kept)?;
    };
    let rest = kept.split_off(end + 4);
    let head = String::from_utf8(std::mem::replace(kept, rest)).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let mut request =
        Request { method: words.next()?.to_owned(), path: words.next()?.to_owned(), ..Request::default() };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length: usize = request.header("content-length").map_or(Some(0), |text| text.parse().ok())?;
    while kept.len() < length {
        more(stream, kept)?;
    }
    let rest = kept.split_off(length);
    request.body = String::from_utf8(std::mem::replace(kept, rest)).ok()?;
    Some(request)
}

fn more(stream: &mut impl Read, kept: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).ok()?;
    kept.extend_from_slice(&buffer[..count]);
    (count > 0 && kept.len() <= LIMIT).then_some(())
}

/// The fields of a query or of a form's body (`application/x-www-form-urlencoded`).
pub(super) fn fields(text: &str) -> HashMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (byte, escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
