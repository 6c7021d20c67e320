//! The connection to the broker.

use std::os::unix::net::UnixStream;

use anyhow::anyhow;
use runner_wire::{BrokerProxy, SOCKET};

/// Connects as this process's user.
pub async fn connect() -> anyhow::Result<BrokerProxy<'static>> {
    let stream = UnixStream::connect(SOCKET).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => anyhow!("{SOCKET}: {error}; try again as root"),
        _ => anyhow!("the broker is not running ({SOCKET}: {error}); see 'systemctl status runner-guestd.socket'"),
    })?;
    let connection =
        zbus::connection::Builder::unix_stream(stream).p2p().build().await.map_err(|error| {
            anyhow!("the broker does not answer ({error}); see 'journalctl -u runner-guestd.service'")
        })?;
    Ok(BrokerProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No).build().await?)
}

/// What the broker said, without D-Bus's words around it.
pub fn explain(error: zbus::Error) -> anyhow::Error {
    match error {
        zbus::Error::MethodError(_, Some(text), _) => anyhow!("{text}"),
        error => anyhow!("the broker went away ({error}); see 'journalctl -u runner-guestd.service'"),
    }
}
