//! `image-fetch` as its callers know it: D-Bus over a pair of sockets, and a registry on the loopback that fails as told.

#![expect(clippy::unwrap_used, reason = "what a test could not do is told by the panic")]

mod answers;
mod blobs;
mod logins;
mod mirrors;
mod program;
mod redirects;
mod setting;
mod tls;
