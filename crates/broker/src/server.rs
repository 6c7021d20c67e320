//! Accepts connections and serves each its own session.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::Context;
use runner_wire::PATH;
use rustix::net::sockopt::socket_peercred;
use tokio::net::UnixListener;

use crate::broker::Broker;
use crate::caller::Peer;
use crate::session::Session;

/// Serves until the process ends.
pub async fn serve(broker: Arc<Broker>, listener: OwnedFd) -> anyhow::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener).context("the broker's socket is unusable")?;
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many descriptors, most likely; connections that end make room.
                tracing::error!("cannot accept a connection: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let broker = Arc::clone(&broker);
        tokio::spawn(async move {
            let outcome = match stream.into_std() {
                Ok(stream) => connection(broker, stream).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = outcome {
                tracing::warn!("a connection failed: {error:#}");
            }
        });
    }
}

async fn connection(broker: Arc<Broker>, stream: UnixStream) -> anyhow::Result<()> {
    let credentials = socket_peercred(&stream)?;
    let peer = Peer { pid: credentials.pid.as_raw_nonzero().get(), uid: credentials.uid.as_raw() };
    if !broker.may_call(peer) {
        anyhow::bail!("process {} of user {} may not use the broker", peer.pid, peer.uid);
    }
    let (session, calls) = Session::new(broker, peer);
    let served = runner_wire::serve(stream, PATH, session).await;
    calls.abandon();
    Ok(served?)
}
