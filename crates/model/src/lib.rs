//! Everything that can be decided without looking at the machine: protocol, configuration, planning, rendering.
//!
//! Nothing here performs I/O, reads a clock or the environment, or knows D-Bus. Input is bytes, text and facts; output
//! is data. Whatever arrives from a workflow is untrusted: every function is total, bounded, and keeps values (they
//! may be secrets) out of its messages.

#![forbid(unsafe_code)]

pub mod config;
pub mod create_options;
pub mod environ;
pub mod exit;
pub mod image_policy;
pub mod image_ref;
pub mod message;
pub mod musl;
pub mod names;
pub mod network;
pub mod passwd;
pub mod plan;
pub mod protocol;
pub mod registry;
pub mod registry_auth;
pub mod secret;
pub mod time_span;
pub mod unit;
pub mod words;
