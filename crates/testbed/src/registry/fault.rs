//! What goes wrong, and when.

use std::time::Duration;

/// Which requests a [`Fault`] hits: all of them until the methods below narrow it.
#[derive(Debug, Clone)]
pub struct When {
    method: Option<String>,
    path: String,
    skip: usize,
    times: usize,
}

impl When {
    /// Every request.
    pub fn always() -> When {
        When::path("")
    }

    /// Requests whose path or query contains `part`.
    pub fn path(part: &str) -> When {
        When { method: None, path: part.to_owned(), skip: 0, times: usize::MAX }
    }

    /// Of these, those with this method.
    #[must_use]
    pub fn method(self, method: &str) -> When {
        When { method: Some(method.to_owned()), ..self }
    }

    /// Of these, not the first `count`.
    #[must_use]
    pub fn skip(self, count: usize) -> When {
        When { skip: count, ..self }
    }

    /// Of what is left, only the first `count`.
    #[must_use]
    pub fn times(self, count: usize) -> When {
        When { times: count, ..self }
    }
}

/// What goes wrong. Judged before credentials are, so that whoever has none is hit too.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status, with an error body of the protocol whose code is `FAULT`.
    Status(u16),
    /// This status and `Retry-After`.
    RetryAfter(u16, String),
    /// This status and this body.
    Answer(u16, Vec<u8>),
    /// Nothing, not even a status, as long as the registry lives.
    Hang,
    /// The connection is closed without an answer.
    Close,
    /// The body stops after so many bytes, and the connection stays open.
    HangAfter(usize),
    /// The connection is closed after so many bytes of the body.
    DropAfter(usize),
    /// The body arrives in pieces of so many bytes, one each time that passes.
    Drip(usize, Duration),
    /// The body has its size, but not its bytes.
    WrongBytes,
    /// Only so many bytes of the body exist, and the header fields say so.
    Truncate(usize),
    /// Bytes without an announced length: `Transfer-Encoding: chunked`, of the body and then this.
    Longer(Vec<u8>),
    /// The answer as if no `Range` had been asked for.
    IgnoreRange,
    /// A header field of the answer is replaced, or left out. A wrong `Content-Length` closes the connection afterwards.
    Header(String, Option<String>),
    /// 307 to this address.
    Redirect(String),
}

impl Fault {
    /// A header field replaced.
    pub fn header(name: &str, value: &str) -> Fault {
        Fault::Header(name.to_owned(), Some(value.to_owned()))
    }

    /// A header field left out.
    pub fn without(name: &str) -> Fault {
        Fault::Header(name.to_owned(), None)
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(When, Fault)>);

impl Faults {
    pub(super) fn add(&mut self, when: When, fault: Fault) {
        self.0.push((when, fault));
    }

    /// The fault of this request; counts it.
    pub(super) fn next(&mut self, method: &str, path: &str) -> Option<Fault> {
        for (when, fault) in &mut self.0 {
            let method_fits = when.method.as_deref().is_none_or(|wanted| wanted == method);
            if !method_fits || !path.contains(&when.path) || when.times == 0 {
                continue;
            }
            if when.skip > 0 {
                when.skip -= 1;
                continue;
            }
            when.times -= 1;
            return Some(fault.clone());
        }
        None
    }
}
