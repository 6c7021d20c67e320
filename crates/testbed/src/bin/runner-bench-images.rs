//! `runner-bench-images`: the part of `cargo xtask bench` about images in the store, inside the lab.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use runner_testbed::bench_images::{Plan, run};

/// Measure finding images and putting their roots together, as the broker does. Needs root. Prints JSON.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The store's folder
    #[arg(long, default_value = "/var/lib/runner/images")]
    store: PathBuf,
    /// An image in the store, in canonical form, with a tag
    #[arg(long)]
    tag: String,
    /// An image in the store, in canonical form, with a digest
    #[arg(long)]
    digest: String,
    /// A folder to be made, on the store's file system
    #[arg(long, default_value = "/var/lib/runner/bench-images")]
    scratch: PathBuf,
    /// How often each is measured
    #[arg(long, default_value_t = 100)]
    times: usize,
}

fn main() -> ExitCode {
    let Arguments { store, tag, digest, scratch, times } = Arguments::parse();
    match run(&Plan { store, tag, digest, scratch, times }) {
        Ok(results) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stdout(), "{}", results.line());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "runner-bench-images: {error:#}");
            ExitCode::FAILURE
        }
    }
}
