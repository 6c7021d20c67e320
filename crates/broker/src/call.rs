//! One call under way.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use runner_model::{exit, message};
use runner_wire::Finished;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::sync::watch;

/// Room in each output pipe. A program that prints a lot is then woken less often; more brought nothing.
const PIPE_BYTES: usize = 256 * 1024;

/// How far a caller has gone in asking a call to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Go on.
    No,
    /// Ask the program to stop; it has a while.
    Ask,
    /// Stop at once.
    Now,
}

/// The side of a call that watches for its cancellation.
#[derive(Debug, Clone)]
pub struct Cancellation(watch::Receiver<Stop>);

/// The side that cancels.
#[derive(Debug)]
pub struct Canceller(watch::Sender<Stop>);

/// Both sides.
pub fn cancellation() -> (Canceller, Cancellation) {
    let (sender, receiver) = watch::channel(Stop::No);
    (Canceller(sender), Cancellation(receiver))
}

impl Canceller {
    /// First time: ask. Second time: now.
    pub fn step_up(&self) {
        self.0.send_modify(|stop| *stop = if *stop == Stop::No { Stop::Ask } else { Stop::Now });
    }

    /// The caller is gone.
    pub fn now(&self) {
        self.0.send_modify(|stop| *stop = Stop::Now);
    }
}

impl Cancellation {
    /// Waits until the caller has gone this far. If the caller forgets the call, it never will.
    pub async fn reached(&mut self, stop: Stop) {
        if self.0.wait_for(|now| *now >= stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The write ends of a call's output. Whoever holds a copy can write; the caller's side ends when all are closed.
#[derive(Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

impl Output {
    /// Fresh pipes; the second part are the read ends, standard output first.
    pub fn new() -> std::io::Result<(Self, OwnedFd, OwnedFd)> {
        let (stdout_read, stdout) = fresh_pipe()?;
        let (stderr_read, stderr) = fresh_pipe()?;
        Ok((Self { stdout, stderr }, stdout_read, stderr_read))
    }

    /// Says something to the person who reads the log, in its place in the output.
    pub fn say(&self, line: &str) {
        if let Ok(copy) = self.stdout.as_fd().try_clone_to_owned() {
            // A caller that went away is noticed elsewhere.
            let _ = std::fs::File::from(copy).write_all(format!("{line}\n").as_bytes());
        }
    }
}

/// A pipe with room for [`PIPE_BYTES`].
pub fn fresh_pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // A smaller pipe works as well.
    let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
    Ok((read, write))
}

/// A call's verdict.
pub fn finished(outcome: anyhow::Result<Finished>) -> Finished {
    outcome.unwrap_or_else(|error| Finished {
        exit_status: exit::OWN_FAILURE,
        response: String::new(),
        messages: vec![message::error(&format!("{error:#}"))],
    })
}

/// A success without anything to say.
pub fn success(response: String) -> Finished {
    Finished { exit_status: exit::SUCCESS, response, messages: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn cancelling_twice_means_now() {
        let (canceller, mut cancellation) = cancellation();
        canceller.step_up();
        cancellation.reached(Stop::Ask).await;
        assert_eq!(*cancellation.0.borrow(), Stop::Ask);
        canceller.step_up();
        cancellation.reached(Stop::Now).await;
        canceller.step_up();
        assert_eq!(*cancellation.0.borrow(), Stop::Now);
    }

    #[test]
    fn a_failure_of_ours_is_one_line_and_its_own_exit_status() {
        let outcome = finished(Err(anyhow::anyhow!("disk\nfull").context("image 'x'")));
        assert_eq!(outcome.exit_status, exit::OWN_FAILURE);
        assert_eq!(outcome.messages.len(), 1);
        assert_eq!(outcome.messages[0].lines().count(), 1, "{:?}", outcome.messages);
        assert!(outcome.messages[0].starts_with("::error::image 'x': disk"), "{:?}", outcome.messages);
    }
}
