//! Why something could not be fetched, and whether another try makes sense.

use std::time::Duration;

use runner_wire::fetch::FetchError;

/// What the caller learns; see [`FetchError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    NotFound,
    Unauthorized,
    Denied,
    RateLimited,
    Unavailable,
    Refused,
    BadAnswer,
    Full,
    Local,
}

/// Whether the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It would fail in the same way.
    Never,
    /// After a pause of our choice.
    Soon,
    /// After the pause the registry asked for.
    After(Duration),
}

/// One failure; `text` is a whole line.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    pub(crate) again: Again,
}

impl Failure {
    /// One that another try does not mend.
    pub(crate) fn lasting(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), again: Again::Never }
    }

    /// One that another try may mend.
    pub(crate) fn passing(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), again: Again::Soon }
    }
}

impl From<Failure> for FetchError {
    fn from(failure: Failure) -> FetchError {
        let make = match failure.kind {
            Kind::NotFound => FetchError::NotFound,
            Kind::Unauthorized => FetchError::Unauthorized,
            Kind::Denied => FetchError::Denied,
            Kind::RateLimited => FetchError::RateLimited,
            Kind::Unavailable => FetchError::Unavailable,
            Kind::Refused => FetchError::Refused,
            Kind::BadAnswer => FetchError::BadAnswer,
            Kind::Full => FetchError::Full,
            Kind::Local => FetchError::Local,
        };
        make(failure.text)
    }
}
