//! `container-hooks`, started by the official runner through `container-hooks.sh`.

use std::path::PathBuf;
use std::process::ExitCode;

use runner_hook::relay::{Surroundings, run};
use runner_model::exit;

fn main() -> ExitCode {
    if let Some(argument) = std::env::args().nth(1) {
        return usage(&argument);
    }
    // One call, mostly waiting: one thread is enough, and starts fastest.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::from(exit::OWN_FAILURE) };
    let status = runtime.block_on(run(&Surroundings::from_process(PathBuf::from(runner_wire::SOCKET))));
    // The broker's connection may still have tasks; nothing they do matters any more.
    runtime.shutdown_background();
    ExitCode::from(status)
}

#[expect(clippy::print_stdout, reason = "this is the program's answer to a person")]
fn usage(argument: &str) -> ExitCode {
    match argument {
        "--version" | "-V" => println!("container-hooks {}", env!("CARGO_PKG_VERSION")),
        _ => println!(
            "container-hooks {}\n\nStarted by the official runner, not by hand: it reads one request as JSON from \
             standard input.\nPoint ACTIONS_RUNNER_CONTAINER_HOOKS at /usr/lib/runner/container-hooks.sh.\nTo run a \
             program in a guest by hand, use ci-nspawn-run(1).",
            env!("CARGO_PKG_VERSION")
        ),
    }
    ExitCode::SUCCESS
}
