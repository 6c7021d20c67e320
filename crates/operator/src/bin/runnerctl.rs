//! `runnerctl`: look at and operate the appliance.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runner_operator::{Status, image, jobs};

/// Look at and operate the runner appliance.
///
/// Exit status: 0 if all went well, 1 if something failed or was found damaged, 2 for a command line that makes no sense.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  runnerctl image pull node:22\n  runnerctl image import ci/base base.tar\n  runnerctl image ls\n  runnerctl jobs --json"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Manage the image store
    Image {
        #[command(flatten)]
        places: image::Places,
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
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from).and_then(
            |runtime| {
                let outcome = runtime.block_on(run(Arguments::parse()));
                runtime.shutdown_background();
                outcome
            },
        );
    match outcome {
        Ok(Status::Success) => ExitCode::SUCCESS,
        Ok(Status::Failure) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "runnerctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<Status> {
    let out = &mut std::io::stdout().lock();
    match arguments.command {
        Command::Image { places, command } => image::run(command, &places, out).await,
        Command::Jobs { json } => jobs::run(json, out).await.map(|()| Status::Success),
    }
}
