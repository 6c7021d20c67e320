//! `cargo xtask soak`: pulling, running and collecting many images in the lab, with the broker and its helpers killed.

use anyhow::Result;

use crate::child::shell_code;
use crate::lab::Lab;
use crate::workspace::{Profile, Workspace};

/// Installed in the lab only.
const RUNNER_SOAK: &str = "/usr/lib/runner/testbed/runner-soak";

/// How much, and which.
#[derive(Debug, clap::Args)]
pub(crate) struct Amounts {
    /// Images to pull and run
    #[arg(long, default_value_t = 200)]
    images: usize,
    /// Decides about the images and about what is killed when; a random one is chosen, and printed, if there is none
    #[arg(long)]
    seed: Option<u64>,
}

/// Brings the lab up and runs the soak there. Returns its exit status.
pub(crate) fn run(workspace: &Workspace, lab: &Lab, amounts: &Amounts) -> Result<u8> {
    lab.up(workspace, Profile::Dev, false)?;
    let (images, seed) = (amounts.images.to_string(), amounts.seed.unwrap_or_else(random).to_string());
    let status = lab.inside([RUNNER_SOAK, "--images", &images, "--seed", &seed]).show()?;
    Ok(shell_code(status))
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    // Small enough to be typed.
    std::hash::RandomState::new().build_hasher().finish() % 1_000_000
}
