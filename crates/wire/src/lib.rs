//! The broker's private D-Bus interface, as both ends see it.
//!
//! Peer to peer over [`SOCKET`]: no bus daemon lies between, and the runner's user needs no bus at all. A caller makes
//! one call on one connection: it *begins* it and gets descriptors to read the program's output from, then waits for it
//! to *finish*. When the connection closes before that, what the call started is stopped.

mod client;
pub mod fetch;
mod serve;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use zbus::{OwnedFd, Type};

pub use client::{CallError, connect};
pub use serve::serve;

/// Where the broker listens.
pub const SOCKET: &str = "/run/runner/guestd.sock";

/// The interface's name, also used as the destination, which means nothing without a bus.
pub const INTERFACE: &str = "io.github.runner_appliance.Broker1";

/// The one object.
pub const PATH: &str = "/io/github/runner_appliance/Broker1";

/// Variables of the hook process that the broker may know. All else of its environment stays where it is.
pub const HOOK_VARIABLES: [&str; 12] = [
    "RUNNER_NAME",
    "RUNNER_TEMP",
    "RUNNER_DEBUG",
    "GITHUB_REPOSITORY",
    "GITHUB_WORKFLOW",
    "GITHUB_RUN_ID",
    "GITHUB_RUN_NUMBER",
    "GITHUB_RUN_ATTEMPT",
    "GITHUB_JOB",
    "GITHUB_ACTION",
    "GITHUB_EVENT_NAME",
    "GITHUB_REF",
];

/// How a call ended.
#[derive(Debug, Clone, Serialize, Deserialize, Type, PartialEq, Eq)]
pub struct Finished {
    /// Exit status for the caller's process.
    pub exit_status: u8,
    /// What belongs into the response file; empty if nothing does.
    pub response: String,
    /// Lines to print after the program's output.
    pub messages: Vec<String>,
}

/// A call under way: its number and the descriptors the caller reads the output from.
#[derive(Debug, Serialize, Deserialize, Type)]
pub struct Begun {
    /// Names the call in later calls on the same connection.
    pub call: u32,
    /// Read end of the program's standard output.
    pub stdout: OwnedFd,
    /// Read end of the program's standard error.
    pub stderr: OwnedFd,
    /// Where the request wants its answer, judged by policy; empty if nowhere.
    pub response_file: String,
}

/// One program in a guest of its own, as an operator asks for it.
#[derive(Debug, Clone, Serialize, Deserialize, Type, PartialEq, Eq)]
pub struct RunRequest {
    /// Image reference; empty for the host's own userland.
    pub image: String,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Working directory; empty for the image's.
    pub directory: String,
    /// User as `docker run --user` takes it; empty for the image's.
    pub user: String,
    /// `SRC:DST[:ro]`.
    pub binds: Vec<String>,
    /// Program and arguments; empty for the image's own.
    pub arguments: Vec<String>,
    /// Whether the program gets a terminal.
    pub terminal: bool,
}

/// An operator's program under way.
#[derive(Debug, Serialize, Deserialize, Type)]
pub struct Running {
    /// Names the call in later calls on the same connection.
    pub call: u32,
    /// With a terminal: its master side. Without: write end of the program's standard input.
    pub stdin: OwnedFd,
    /// Without a terminal: read end of standard output.
    pub stdout: OwnedFd,
    /// Without a terminal: read end of standard error.
    pub stderr: OwnedFd,
}

/// The interface, as its callers use it.
#[zbus::proxy(
    interface = "io.github.runner_appliance.Broker1",
    default_service = "io.github.runner_appliance.Broker1",
    default_path = "/io/github/runner_appliance/Broker1"
)]
pub trait Broker {
    /// Begins a hook call: the request as it came on standard input, and the variables named in [`HOOK_VARIABLES`].
    fn hook(&self, request: &[u8], environment: HashMap<&str, String>) -> zbus::Result<Begun>;

    /// Begins an operator's program. For root only.
    fn run(&self, request: &RunRequest) -> zbus::Result<Running>;

    /// Waits for the end of a call.
    fn finish(&self, call: u32) -> zbus::Result<Finished>;

    /// Asks a call to stop. Said twice, it stops at once.
    fn cancel(&self, call: u32) -> zbus::Result<()>;

    /// The appliance's jobs as JSON. For root only.
    fn jobs(&self) -> zbus::Result<String>;
}
