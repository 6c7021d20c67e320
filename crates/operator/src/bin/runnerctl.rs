//! `runnerctl`: look at and operate the appliance.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runner_operator::{image, jobs};

/// Look at and operate the runner appliance.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  runnerctl image import node:22 node.tar\n  runnerctl image ls\n  runnerctl jobs --json"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Manage the image store
    Image {
        /// The store's folder
        #[arg(long, global = true, default_value = "/var/lib/runner/images", hide = true)]
        store: PathBuf,
        #[command(subcommand)]
        command: image::ImageCommand,
    },
    /// List running jobs
    Jobs {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "runnerctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let out = &mut std::io::stdout().lock();
    match &arguments.command {
        Command::Image { store, command } => image::run(command, store, out),
        Command::Jobs { json } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(jobs::run(*json, out))
        }
    }
}
