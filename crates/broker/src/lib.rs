//! `runner-guestd`: the privileged broker, and the only thing that makes guests.
//!
//! Data on its way: a caller's request comes in by `session`; `caller` says who asks and for which job; `prepare`, `step`
//! and `cleanup` do the three commands of a hook, `run` an operator's program, and `image` has their images; `job` is what
//! is remembered between calls; `call` is one call under way, with its output and its cancellation. What is allowed and
//! what it means is decided in `runner-model`; what is done to the host is done in `runner-guest`.

pub mod broker;
pub mod call;
pub mod caller;
mod cleanup;
mod image;
pub mod job;
pub mod logging;
mod prepare;
mod run;
pub mod server;
pub mod session;
mod step;
