//! `runner-guestd`, started by `runner-guestd.socket`.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::ensure;
use clap::Parser;
use runner_broker::broker::{Broker, Folders};
use runner_broker::{logging, server};

/// The privileged broker of the runner appliance: makes the guests that jobs run in.
///
/// Started by systemd through runner-guestd.socket; there is nothing to do by hand.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  systemctl status runner-guestd.service\n  journalctl -u runner-guestd.service -f"
)]
struct Arguments {
    /// Configuration, in the grammar of systemd's EnvironmentFile=
    #[arg(long, default_value = runner_pull::CONFIG_FILE)]
    config: PathBuf,
    /// Where guest-enter, guest-exec and guest-sweep are
    #[arg(long, default_value = "/usr/lib/runner")]
    programs: PathBuf,
    /// Images, jobs and the root of the guests
    #[arg(long, default_value = "/var/lib/runner")]
    state: PathBuf,
    /// Run-time data
    #[arg(long, default_value = "/run/runner")]
    run: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logging::start();
    // Waiting is most of what it does, and one thread keeps it small; what blocks goes to threads of its own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(arguments));
    // Pulls that nobody waits for any more are cut off, as by a crash.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let listener = inherited_socket()?;
    let settings = runner_pull::settings(&arguments.config)?;
    let folders = Folders { programs: arguments.programs, state: arguments.state, run: arguments.run };
    let broker = Arc::new(Broker::start(settings, &folders).await?);
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    tracing::info!("ready");
    tokio::select! {
        outcome = server::serve(Arc::clone(&broker), listener) => outcome,
        () = broker.lost() => Err(anyhow::anyhow!("the connection to the system bus was lost")),
    }
}

/// The listening socket systemd passes (sd_listen_fds(3)).
fn inherited_socket() -> anyhow::Result<OwnedFd> {
    let ours = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok()) == Some(std::process::id());
    let count: u32 = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    ensure!(ours && count == 1, "not started by its socket; use 'systemctl start runner-guestd.socket'");
    let descriptor = 3;
    // SAFETY: systemd says that descriptor 3 is ours, and nothing else has taken it.
    #[expect(unsafe_code, reason = "a number from the environment is turned into a descriptor")]
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    Ok(socket)
}
