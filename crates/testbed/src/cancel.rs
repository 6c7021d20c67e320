//! What cancels a job or a step, and the signals a test asks for.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::Signal;

/// Why something was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody cancelled the job.
    User,
    /// The job's `timeout-minutes` is over; the service cancels it.
    JobTimeout,
    /// The step's `timeout-minutes` is over.
    StepTimeout,
    /// The runner itself is told to stop: nothing runs after the current step, cleanup included.
    Shutdown,
}

impl Cause {
    /// For people and for the result file.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::User => "the job was cancelled",
            Self::JobTimeout => "the job ran longer than its timeout-minutes",
            Self::StepTimeout => "the step ran longer than its timeout-minutes",
            Self::Shutdown => "the runner is shutting down",
        }
    }
}

/// When and how the job is cancelled.
#[derive(Debug, Default)]
pub struct Cancel {
    at: Vec<(Instant, Cause)>,
    line: Option<String>,
    interrupts: Option<SignalFd>,
    cause: Option<Cause>,
}

impl Cancel {
    /// Nothing cancels yet.
    #[must_use]
    pub fn never() -> Self {
        Self::default()
    }

    /// Cancels at a moment.
    pub fn at(&mut self, when: Instant, cause: Cause) {
        self.at.push((when, cause));
    }

    /// Cancels when a line of output contains the text.
    pub fn on_line(&mut self, text: Option<String>) {
        self.line = text;
    }

    /// From now on SIGINT cancels the job and SIGTERM stops the runner. A second SIGINT is a shutdown.
    ///
    /// # Errors
    /// The signals cannot be blocked or watched.
    pub fn watch_signals(&mut self) -> nix::Result<()> {
        let mut set = SigSet::empty();
        set.add(NixSignal::SIGINT);
        set.add(NixSignal::SIGTERM);
        // Children would inherit the block: `process` gives them an empty mask.
        set.thread_block()?;
        self.interrupts = Some(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?);
        Ok(())
    }

    /// The descriptor that tells of signals.
    #[must_use]
    pub fn interrupts(&self) -> Option<BorrowedFd<'_>> {
        self.interrupts.as_ref().map(SignalFd::as_fd)
    }

    /// Notices what has become due.
    pub fn check(&mut self, now: Instant) {
        while let Some(Ok(Some(signal))) = self.interrupts.as_ref().map(SignalFd::read_signal) {
            let interrupt = signal.ssi_signo == NixSignal::SIGINT as u32;
            self.cause = Some(if interrupt && self.cause.is_none() { Cause::User } else { Cause::Shutdown });
        }
        if self.cause.is_none() {
            self.cause = self.at.iter().filter(|(when, _)| now >= *when).map(|(_, cause)| *cause).next();
        }
    }

    /// A line of output was seen.
    pub fn line(&mut self, line: &str) {
        if self.cause.is_none() && self.line.as_ref().is_some_and(|text| line.contains(text.as_str())) {
            self.cause = Some(Cause::User);
        }
    }

    /// The next moment at which [`Self::check`] may find something.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        if self.cause.is_some() { None } else { self.at.iter().map(|(when, _)| *when).min() }
    }

    /// Why the job is cancelled, if it is.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }
}

/// When a test's signal is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// This long after the child's start.
    After(Duration),
    /// When a line of output contains the text.
    Line(String),
}

/// A signal for the direct child: `INT@2.5` or `TERM@line:TEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// The signal.
    pub signal: Signal,
    /// Its moment.
    pub moment: Moment,
}

impl FromStr for Trigger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (signal, moment) = text.split_once('@').ok_or("no `@`: write SIGNAL@SECONDS or SIGNAL@line:TEXT")?;
        let signal = match signal.strip_prefix("SIG").unwrap_or(signal) {
            "INT" => Signal::INT,
            "TERM" => Signal::TERM,
            "KILL" => Signal::KILL,
            "HUP" => Signal::HUP,
            "QUIT" => Signal::QUIT,
            "STOP" => Signal::STOP,
            "CONT" => Signal::CONT,
            other => return Err(format!("unknown signal `{other}`: INT, TERM, KILL, HUP, QUIT, STOP or CONT")),
        };
        let moment = match moment.strip_prefix("line:") {
            Some("") => return Err("no text after `line:`".to_owned()),
            Some(text) => Moment::Line(text.to_owned()),
            None => Moment::After(seconds(moment)?),
        };
        Ok(Self { signal, moment })
    }
}

/// Seconds, fractions allowed.
///
/// # Errors
/// Not a number, negative, or too large.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Duration::try_from_secs_f64(number).map_err(|_| format!("`{text}` is not a length of time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers() {
        for (text, signal, moment) in [
            ("INT@2.5", Signal::INT, Moment::After(Duration::from_millis(2500))),
            ("SIGTERM@line:ready @ 1", Signal::TERM, Moment::Line("ready @ 1".to_owned())),
            ("KILL@0", Signal::KILL, Moment::After(Duration::ZERO)),
        ] {
            assert_eq!(text.parse(), Ok(Trigger { signal, moment }));
        }
        for bad in ["INT", "FOO@1", "INT@", "INT@-1", "INT@line:", "INT@nan", "INT@inf"] {
            assert!(bad.parse::<Trigger>().is_err(), "{bad}");
        }
    }
}
