//! The serving side of a connection without a bus.

use std::os::unix::net::UnixStream;

use futures_util::StreamExt;
use zbus::object_server::Interface;
use zbus::{Guid, MessageStream};

/// Serves `object` at `path` to the peer at the other end of `stream`, until the peer hangs up.
///
/// # Errors
/// When `stream` is no connection on which D-Bus is spoken.
pub async fn serve(stream: UnixStream, path: &'static str, object: impl Interface) -> zbus::Result<()> {
    let connection = zbus::connection::Builder::unix_stream(stream)
        .server(Guid::generate())
        .p2p()
        .serve_at(path, object)
        .build()
        .await?;
    let mut messages = MessageStream::from(&connection);
    while let Some(message) = messages.next().await {
        if message.is_err() {
            break;
        }
    }
    Ok(())
}
