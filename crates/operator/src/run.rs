//! `ci-nspawn-run`: one program in a fresh guest.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use runner_hook::output::Mover;
use runner_model::exit;
use runner_wire::{CallError, Finished, RunRequest, Running, SOCKET, connect};
use rustix::event::{EventfdFlags, eventfd};
use tokio::signal::unix::{SignalKind, signal};

use crate::terminal::{Raw, copy_size, join};

/// Runs the program; the result is this process's exit status. Everything a person should know has been printed.
pub async fn run(mut request: RunRequest) -> anyhow::Result<u8> {
    request.terminal = io::stdin().is_terminal();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let broker = connect(Path::new(SOCKET)).await?;
    let running = tokio::select! {
        running = broker.run(&request) => running.map_err(CallError::from)?,
        // Dropping the connection stops what was begun.
        _ = interrupt.recv() => return Ok(exit::Outcome::Signaled(2).exit_code()),
        _ = terminate.recv() => return Ok(exit::Outcome::Signaled(15).exit_code()),
    };
    let call = running.call;
    let finish = async {
        let finish = broker.finish(call);
        tokio::pin!(finish);
        loop {
            tokio::select! {
                finished = &mut finish => break finished.map_err(|error| CallError::from(error).into()),
                _ = interrupt.recv() => broker.cancel(call).await.map_err(CallError::from)?,
                _ = terminate.recv() => broker.cancel(call).await.map_err(CallError::from)?,
            }
        }
    };
    let finished =
        if request.terminal { with_terminal(running, finish).await? } else { with_pipes(running, finish).await? };
    for message in &finished.messages {
        // The broker words its lines for a workflow's log; here a person reads them.
        let text = message.strip_prefix("::error::").unwrap_or(message);
        writeln!(io::stderr(), "ci-nspawn-run: {text}")?;
    }
    Ok(finished.exit_status)
}

async fn with_pipes(
    running: Running,
    finish: impl Future<Output = anyhow::Result<Finished>>,
) -> anyhow::Result<Finished> {
    let stdout = Mover::start(running.stdout.into(), io::stdout().as_fd().try_clone_to_owned()?)?;
    let stderr = Mover::start(running.stderr.into(), io::stderr().as_fd().try_clone_to_owned()?)?;
    // Not waited for: it may sit in a read that never ends, and goes when this process does. A program that does not
    // read its input is no failure.
    let _stdin = Mover::start(io::stdin().as_fd().try_clone_to_owned()?, running.stdin.into())?;
    let finished = finish.await;
    tokio::task::spawn_blocking(move || stdout.drain().and(stderr.drain())).await??;
    finished
}

async fn with_terminal(
    running: Running,
    finish: impl Future<Output = anyhow::Result<Finished>>,
) -> anyhow::Result<Finished> {
    let master = OwnedFd::from(running.stdin);
    let stdin = io::stdin();
    let raw = Raw::enter(stdin.as_fd())?;
    copy_size(stdin.as_fd(), master.as_fd());
    let resized = master.try_clone()?;
    let mut window = signal(SignalKind::window_change())?;
    let follow = tokio::spawn(async move {
        while window.recv().await.is_some() {
            copy_size(io::stdin().as_fd(), resized.as_fd());
        }
    });
    let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
    let stopped = stop.try_clone()?;
    let joined = tokio::task::spawn_blocking(move || join(&master, &stopped));
    let finished = finish.await;
    rustix::io::write(&stop, &1_u64.to_ne_bytes())?;
    joined.await??;
    follow.abort();
    drop(raw);
    finished
}
