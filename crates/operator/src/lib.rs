//! What an operator types: `runnerctl` looks at and operates the appliance, `ci-nspawn-run` runs one program in a guest.

pub mod image;
pub mod jobs;
pub mod run;
pub mod terminal;
