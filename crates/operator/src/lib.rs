//! What an operator types: `runnerctl` looks at and operates the appliance, `ci-nspawn-run` runs one program in a guest.

pub mod image;
pub mod jobs;
pub mod run;
pub mod terminal;

/// How a command ended that printed all there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As asked.
    Success,
    /// Not, or not in whole.
    Failure,
}
