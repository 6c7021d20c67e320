//! One hook call: ask the broker, move the output, write the answer.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use runner_model::{exit, message};
use runner_wire::{CallError, Finished, HOOK_VARIABLES, connect};
use tokio::signal::unix::{SignalKind, signal};

use crate::output::Mover;
use crate::response_file;

/// More than the broker takes, so that it and not we say that a request is too large.
const MAX_REQUEST: u64 = 33 * 1024 * 1024;

/// How long a cancelled call may take: the official runner sends SIGTERM 7.5 s after SIGINT, and nobody should need it.
const CONFIRMED: Duration = Duration::from_millis(6_900);

/// The call's surroundings: read once, passed down.
#[derive(Debug)]
pub struct Surroundings {
    /// The broker's socket.
    pub socket: PathBuf,
    /// The process's environment, as far as the broker may know it.
    pub environment: HashMap<&'static str, String>,
}

impl Surroundings {
    /// From the process's environment.
    pub fn from_process(socket: PathBuf) -> Self {
        let environment =
            HOOK_VARIABLES.into_iter().filter_map(|name| std::env::var(name).ok().map(|value| (name, value))).collect();
        Self { socket, environment }
    }
}

/// Relays the request on standard input. The result is the process's exit status; everything a person should know has
/// been printed by then.
pub async fn run(surroundings: &Surroundings) -> u8 {
    // Whether a line of ours may come in the middle of one of the program's.
    let mut after_output = false;
    match relay(surroundings, &mut after_output).await {
        Ok(status) => status,
        Err(error) => {
            print_last(&[message::error(&format!("{error:#}"))], after_output);
            exit::OWN_FAILURE
        }
    }
}

async fn relay(surroundings: &Surroundings, after_output: &mut bool) -> anyhow::Result<u8> {
    // Listened for before anything is started: a signal that comes now must not end us with the call under way.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let mut request = Vec::new();
    io::stdin().lock().take(MAX_REQUEST).read_to_end(&mut request).context("cannot read the request")?;

    let beginning = async {
        let broker = connect(&surroundings.socket).await?;
        let begun = broker.hook(&request, surroundings.environment.clone()).await?;
        Ok::<_, CallError>((broker, begun))
    };
    // Until the call has begun, hanging up is all it takes to cancel it.
    let (broker, begun) = tokio::select! {
        begun = beginning => begun?,
        _ = interrupt.recv() => bail!("cancelled before the broker had begun"),
        _ = terminate.recv() => bail!("cancelled before the broker had begun"),
    };
    drop(request);

    *after_output = true;
    let stdout = Mover::start(begun.stdout.into(), io::stdout().as_fd().try_clone_to_owned()?)?;
    let stderr = Mover::start(begun.stderr.into(), io::stderr().as_fd().try_clone_to_owned()?)?;
    let finish = broker.finish(begun.call);
    tokio::pin!(finish);
    let given_up = tokio::time::sleep(Duration::MAX / 2);
    tokio::pin!(given_up);
    let mut cancelled = false;
    let finished = loop {
        tokio::select! {
            finished = &mut finish => break finished.map_err(CallError::from),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            // Hanging up kills the step; a broker that works has done so long ago.
            () = &mut given_up, if cancelled => bail!("cancelled, and the broker did not confirm it in time"),
        }
        if !cancelled {
            cancelled = true;
            given_up.as_mut().reset(tokio::time::Instant::now() + CONFIRMED);
        }
        // Not waited for: the broker's answer to it says nothing.
        let cancelling = broker.clone();
        tokio::spawn(async move { cancelling.cancel(begun.call).await });
    };
    let (written, errors) = tokio::task::spawn_blocking(move || (stdout.drain(), stderr.drain())).await?;
    let written = written.context("cannot write to standard output")?;
    errors.context("cannot write to standard error")?;
    *after_output = written > 0;
    let Finished { exit_status, response, messages } = finished?;
    print_last(&messages, *after_output);
    if exit_status == exit::SUCCESS && !response.is_empty() {
        write_response(surroundings, &begun.response_file, &response)?;
    }
    Ok(exit_status)
}

fn write_response(surroundings: &Surroundings, path: &str, response: &str) -> anyhow::Result<()> {
    // The published samples have no response file for steps; then nobody waits for an answer.
    if path.is_empty() {
        return Ok(());
    }
    let temp = surroundings
        .environment
        .get("RUNNER_TEMP")
        .context("responseFile: RUNNER_TEMP is not set, so there is nowhere to write it")?;
    response_file::write(Path::new(temp), Path::new(path), response).map_err(|text| anyhow!(text))
}

/// Prints our own lines after the program's output. They must start a line, and where that output ended is not known:
/// nobody looked at it.
fn print_last(messages: &[String], after_output: bool) {
    if messages.is_empty() {
        return;
    }
    let mut text = String::new();
    if after_output {
        text.push('\n');
    }
    for message in messages {
        text.push_str(message.trim_end_matches('\n'));
        text.push('\n');
    }
    // Nobody is left to tell if this fails.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}
