//! A person's terminal and a program's terminal, joined.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// Puts a terminal into raw mode, and back when dropped.
#[derive(Debug)]
pub struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    /// Every key goes to the program from now on.
    pub fn enter(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // A terminal that went away needs no settings.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Gives the program's terminal the size of ours.
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(from) {
        // A program that ended does not care about its size.
        let _ = tcsetwinsize(to, size);
    }
}

/// Copies keys to the program and its output to us until the program's side is closed or `stop` says so. What the
/// program wrote before it ended has all been copied then.
pub fn join(master: &OwnedFd, stop: &OwnedFd) -> io::Result<()> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut keys = true;
    loop {
        let mut waited = vec![PollFd::new(master, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        if keys {
            waited.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut waited, None) {
            Err(Errno::INTR) => continue,
            outcome => outcome?,
        };
        let ready: Vec<bool> = waited.iter().map(|descriptor| !descriptor.revents().is_empty()).collect();
        if ready.first() == Some(&true) {
            // EIO: every process that had the terminal open has closed it.
            if !copy(master.as_fd(), stdout.as_fd())? {
                return Ok(());
            }
        } else if ready.get(1) == Some(&true) {
            return Ok(());
        }
        if ready.get(2) == Some(&true) {
            keys = copy(stdin.as_fd(), master.as_fd())?;
        }
    }
}

/// One read and its write; `false` at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let mut buffer = [0; 8 * 1024];
    let count = match rustix::io::read(from, &mut buffer) {
        Ok(0) | Err(Errno::IO) => return Ok(false),
        Ok(count) => count,
        Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let mut rest = buffer.get(..count).unwrap_or_default();
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(to, rest))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(true)
}
