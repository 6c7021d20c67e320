//! Development only: a stand-in for the official runner in hook mode.
//!
//! `runner-sim` reads a workflow file, lays out the host as the runner does and calls a hook program exactly as the
//! protocol of container hooks says, so that a hook can be driven by real workflows where the runner itself is not to be
//! had. Section numbers in this crate are those of the protocol text.
//!
//! Pure parts: [`json`], [`yaml`], [`document`], [`workflow`], [`action`], [`arguments`], [`request`], [`response`],
//! [`output`], [`log_commands`], [`context`]. Parts with effects: [`layout`], [`file_commands`], [`hook`], [`process`],
//! [`cancel`], [`report`], [`job`], [`call`].
//!
//! Beside it, [`registry`]: a registry that fails as it is told to; and [`soak`]: images pulled, run and collected while
//! things are killed.

pub mod action;
pub mod arguments;
pub mod bench;
pub mod bench_images;
pub mod call;
pub mod cancel;
pub mod context;
pub mod document;
pub mod file_commands;
pub mod hook;
mod invoke;
pub mod job;
pub mod json;
pub mod layout;
pub mod log_commands;
pub mod output;
pub mod process;
pub mod registry;
pub mod report;
pub mod request;
pub mod response;
pub mod soak;
mod steps;
pub mod workflow;
pub mod yaml;
