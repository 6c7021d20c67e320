//! `ci-nspawn-run`: run one program in a fresh guest.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use runner_model::exit;
use runner_operator::run;
use runner_wire::RunRequest;

/// Run one program in a fresh systemd-nspawn guest and return its exit status.
///
/// Without --image the guest has the host's own userland, read-only. The guest and everything in it is gone afterwards.
/// With a terminal on standard input the program gets one too.
///
/// Exit status: the program's own, 128+N if signal N ended it, 125 if the appliance failed.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  ci-nspawn-run -- id\n  ci-nspawn-run --image node:22 -- npm --version\n  \
    ci-nspawn-run --image debian:trixie --bind /srv/src:/src:ro --workdir /src -- make -n"
)]
struct Arguments {
    /// Image to run in, by its name in the store
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory in the guest
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// User to run as: name or id, with an optional group after a colon
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Mount a file or folder of the host
    #[arg(long, short, value_name = "SRC:DST[:ro]")]
    bind: Vec<String>,
    /// Program and arguments; without, the image's own
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let request = RunRequest {
        image: arguments.image.unwrap_or_default(),
        environment: arguments.env,
        directory: arguments.workdir.unwrap_or_default(),
        user: arguments.user.unwrap_or_default(),
        binds: arguments.bind,
        arguments: arguments.command,
        terminal: false,
    };
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from).and_then(
            |runtime| {
                let outcome = runtime.block_on(run::run(request));
                runtime.shutdown_background();
                outcome
            },
        );
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "ci-nspawn-run: {error:#}");
            ExitCode::from(exit::OWN_FAILURE)
        }
    }
}
