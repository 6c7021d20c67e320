//! `image-fetch`, started by `runner-image-fetch.socket` for each image.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use runner_fetch::Patience;
use tracing_subscriber::filter::EnvFilter;

/// Talks to the registry of one image, for the broker of the runner appliance.
///
/// Started by systemd through runner-image-fetch.socket, with a connection as its standard input; there is nothing to do
/// by hand. `runnerctl image pull` fetches an image.
#[derive(Debug, Parser)]
#[command(version, after_help = "Example:\n  journalctl -u 'runner-image-fetch@*' -f")]
struct Arguments {}

fn main() -> ExitCode {
    Arguments::parse();
    let filter = EnvFilter::try_from_env("RUNNER_LOG").unwrap_or_else(|_| EnvFilter::new("info,zbus=warn"));
    // The journal knows the time and shows no colours.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let stream = std::io::stdin().as_fd().try_clone_to_owned().context("standard input cannot be used")?;
    rustix::net::sockopt::socket_type(&stream)
        .context("standard input is not a connection; runner-image-fetch.socket starts this program")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let outcome = runtime.block_on(runner_fetch::serve(UnixStream::from(stream), Patience::default()));
    // A look-up of a name cannot be cancelled; nobody waits for it any more.
    runtime.shutdown_background();
    outcome.context("the connection failed")
}
