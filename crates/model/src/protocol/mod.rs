//! The container-hook protocol as the official runner speaks it (protocol text, sections 3 to 10).
//!
//! [`parse`] turns the bytes of one hook call into a [`Request`]: tolerant where runners differ (missing, `null` and
//! empty are the same, unknown members are ignored), strict everywhere else. Its errors name the member by its JSON
//! path and never show a value. [`Response`] is what goes into the response file; [`State`] is the part of it that the
//! runner keeps and sends back, where it is only a hint, since a step can forge it.

mod error;
pub(crate) mod json;
mod request;
mod response;
mod state;

pub use error::RequestError;
pub use json::{MAX_BYTES, MAX_DEPTH, MAX_VALUES};
pub use request::{
    Command, Container, ImageSource, KNOWN_COMMANDS, Mount, PrepareJob, Registry, Request, RunScriptStep, parse,
};
pub use response::{ContainerContext, JobContainer, Prepared, Response};
pub use state::{State, StateHint};
