//! Talks to registries, for whoever has the store.
//!
//! A process of its own, without privilege and without the store, has the network and the credentials of one image. It
//! speaks the distribution protocol (OCI distribution-spec 1.1) and hands over bytes; whoever asked checks their digests
//! again. The interface is [`runner_wire::fetch`].
//!
//! Pure parts: `challenge`, `site`, `text`. The rest, from the outside in: `service` (D-Bus), `repository` (which server is
//! asked), `endpoint` (one server: paths and what its answers mean), `blob` (bytes that go on after a broken connection),
//! `login` (tokens), `http` (one request with its redirects), `body`, `retry`.

mod blob;
mod body;
mod challenge;
mod endpoint;
mod failure;
mod http;
mod login;
mod repository;
mod retry;
mod service;
mod site;
mod text;

pub use retry::Patience;
pub use service::serve;
