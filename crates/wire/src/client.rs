//! The caller's side: connecting, and what a failed call means.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use zbus::fdo;

use crate::BrokerProxy;

/// How long the broker may take to come up: it is started by the first connection, and may have much to remove then.
const START: Duration = Duration::from_secs(60);

/// Why a call has no result. Each is one line for a person, with where to look.
#[derive(Debug, Error)]
pub enum CallError {
    /// The socket is not for this user.
    #[error("broker: this user may not use {}: it belongs to root and the group 'runner'", .0.display())]
    Denied(PathBuf),
    /// Nobody listens.
    #[error(
        "broker: not running ({}: {reason}); see 'systemctl status runner-guestd.socket runner-guestd.service'",
        .socket.display()
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// What connecting to it said.
        reason: io::Error,
    },
    /// Somebody listens, but the broker does not come up.
    #[error("broker: it does not answer; see 'journalctl -u runner-guestd.service'")]
    Silent,
    /// It hung up before it was asked anything: that is how it treats strangers.
    #[error(
        "broker: it hung up at once, as it does on users other than root and RUNNER_USER; see 'journalctl -u \
         runner-guestd.service'"
    )]
    HungUp,
    /// The broker said no, and why.
    #[error("{0}")]
    Refused(String),
    /// The broker ended during the call. What became of the call is not known.
    #[error(
        "broker: it went away during the call, so the outcome is not known ({0}); see 'journalctl -u runner-guestd'"
    )]
    Gone(zbus::Error),
}

impl From<zbus::Error> for CallError {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(_, Some(text), _) => Self::Refused(text),
            zbus::Error::FDO(error) => match *error {
                fdo::Error::Failed(text)
                | fdo::Error::AccessDenied(text)
                | fdo::Error::InvalidArgs(text)
                | fdo::Error::LimitsExceeded(text) => Self::Refused(text),
                error => Self::Gone(zbus::Error::FDO(Box::new(error))),
            },
            error => Self::Gone(error),
        }
    }
}

/// Connects to the broker as this process's user.
pub async fn connect(socket: &Path) -> Result<BrokerProxy<'static>, CallError> {
    let stream = UnixStream::connect(socket).map_err(|reason| match reason.kind() {
        io::ErrorKind::PermissionDenied => CallError::Denied(socket.to_owned()),
        _ => CallError::NotRunning { socket: socket.to_owned(), reason },
    })?;
    let connection = zbus::connection::Builder::unix_stream(stream).p2p().build();
    let connection =
        tokio::time::timeout(START, connection).await.map_err(|_| CallError::Silent)?.map_err(|_| CallError::HungUp)?;
    Ok(BrokerProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No).build().await?)
}
