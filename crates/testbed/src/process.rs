//! Runs one child the way the runner does: input, both outputs line by line, the cancel ladder, the wait for the end of
//! the outputs (protocol sections 2.2, 15.4 and 15.5).

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, SigSet, Signal as NixSignal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cancel::{Cancel, Cause, Moment, Trigger};
use crate::output::Lines;

/// Score the runner gives its children so that the kernel's out-of-memory killer prefers them.
const OOM_SCORE_ADJ: &str = "500";
/// Bytes taken from a stream before the other one has its turn.
const BATCH: usize = 1024 * 1024;

/// The runner's waiting times.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// From SIGINT to SIGTERM.
    pub interrupt: Duration,
    /// From SIGTERM to SIGKILL.
    pub terminate: Duration,
    /// For the end of the outputs after the child is gone.
    pub end_of_output: Duration,
}

/// Which output a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// `stdout` or `stderr`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// What to start.
#[derive(Debug)]
pub struct Launch {
    /// Program, absolute or as found.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory.
    pub directory: PathBuf,
    /// What it reads, then end of file.
    pub input: Vec<u8>,
}

/// What may end it early.
pub struct Control<'a> {
    /// Waiting times.
    pub timings: Timings,
    /// The step's own time limit.
    pub deadline: Option<Instant>,
    /// The job's cancellation; noticed even when it does not concern this child.
    pub cancel: &'a mut Cancel,
    /// Whether a cancelled job cancels this child.
    pub cancellable: bool,
    /// Signals a test wants delivered.
    pub triggers: &'a mut Vec<Trigger>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// Exit code; 128 plus the signal's number for a child that a signal ended.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Signals sent, in order, with the time since the start.
    pub sent: Vec<(Signal, Duration)>,
    /// Why the ladder was climbed.
    pub cause: Option<Cause>,
    /// Somebody still held an output when the wait for its end was over.
    pub output_held: bool,
    /// From start to exit, without the wait for the outputs.
    pub wall: Duration,
}

/// Receives output as it comes.
pub trait Sink {
    /// Bytes as read.
    fn bytes(&mut self, stream: Stream, bytes: &[u8]);
    /// A line, decoded, without its ending.
    fn line(&mut self, stream: Stream, line: &str);
}

/// A signal's number.
#[must_use]
pub fn signal_number(signal: Signal) -> i32 {
    signal.as_raw()
}

/// Starts the child and stays until it is over. Its descendants are not touched.
///
/// # Errors
/// The child could not be started (no such program or working directory, for example), or a system call that cannot fail here did.
pub fn run(launch: &Launch, control: &mut Control<'_>, sink: &mut dyn Sink) -> io::Result<Exit> {
    let start = Instant::now();
    let mut command = Command::new(&launch.program);
    reset_signals(&mut command);
    let mut child = command
        .args(&launch.arguments)
        .env_clear()
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&launch.directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let result = attend(launch, control, sink, &mut child, start);
    if result.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

/// This program blocks the signals it reads from a descriptor, and whoever started it in the background made it ignore
/// SIGINT; children would inherit both and the ladder would not reach them. The real runner's children start clean.
#[expect(unsafe_code, reason = "a child's signal state can only be set between fork and exec")]
fn reset_signals(command: &mut Command) {
    // SAFETY: the closure runs in the forked child and only sets signal dispositions and the mask, which is
    // async-signal-safe; it allocates nothing, takes no lock, and installs no handler.
    unsafe {
        command.pre_exec(|| {
            for signal in [NixSignal::SIGINT, NixSignal::SIGQUIT, NixSignal::SIGTERM] {
                nix::sys::signal::signal(signal, SigHandler::SigDfl)?;
            }
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
}

/// One output being read.
struct Output<R> {
    stream: Stream,
    reader: Option<R>,
    lines: Lines,
}

impl<R: io::Read + AsFd> Output<R> {
    fn new(stream: Stream, reader: Option<R>) -> io::Result<Self> {
        if let Some(reader) = &reader {
            nonblocking(reader.as_fd())?;
        }
        Ok(Self { stream, reader, lines: Lines::default() })
    }

    /// Takes what is there; lines go to `line`, the end of the stream closes it.
    fn drain(&mut self, buffer: &mut [u8], sink: &mut dyn Sink, seen: &mut dyn FnMut(&str)) -> io::Result<()> {
        let mut taken = 0;
        while taken < BATCH
            && let Some(reader) = &mut self.reader
        {
            let count = match reader.read(buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let stream = self.stream;
            if count == 0 {
                self.reader = None;
                self.finish(sink, seen);
            } else {
                taken += count;
                sink.bytes(stream, &buffer[..count]);
                self.lines.feed(&buffer[..count], |line| {
                    sink.line(stream, line);
                    seen(line);
                });
            }
        }
        Ok(())
    }

    fn finish(&mut self, sink: &mut dyn Sink, seen: &mut dyn FnMut(&str)) {
        let stream = self.stream;
        self.lines.end(|line| {
            sink.line(stream, line);
            seen(line);
        });
    }
}

fn nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // Only this end: the other end of a pipe has its own flags, so the child notices nothing.
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// The steps of the ladder that are still to come.
#[derive(Clone, Copy)]
enum Rung {
    Idle,
    Terminate(Instant),
    Kill(Instant),
    Done,
}

/// Signals and their reasons during one call.
struct Ladder {
    rung: Rung,
    cause: Option<Cause>,
    sent: Vec<(Signal, Duration)>,
    start: Instant,
}

impl Ladder {
    fn send(&mut self, pidfd: BorrowedFd<'_>, signal: Signal) {
        // The child may have gone in between; then there is nobody to tell.
        if pidfd_send_signal(pidfd, signal).is_ok() {
            self.sent.push((signal, self.start.elapsed()));
        }
    }

    fn begin(&mut self, pidfd: BorrowedFd<'_>, cause: Cause, timings: Timings) {
        if self.cause.is_none() {
            self.cause = Some(cause);
            self.send(pidfd, Signal::INT);
            self.rung = Rung::Terminate(Instant::now() + timings.interrupt);
        }
    }

    fn climb(&mut self, pidfd: BorrowedFd<'_>, now: Instant, timings: Timings) {
        match self.rung {
            Rung::Terminate(due) if now >= due => {
                self.send(pidfd, Signal::TERM);
                self.rung = Rung::Kill(now + timings.terminate);
            }
            Rung::Kill(due) if now >= due => {
                self.send(pidfd, Signal::KILL);
                self.rung = Rung::Done;
            }
            _ => {}
        }
    }

    fn due(&self) -> Option<Instant> {
        match self.rung {
            Rung::Terminate(due) | Rung::Kill(due) => Some(due),
            Rung::Idle | Rung::Done => None,
        }
    }
}

fn attend(
    launch: &Launch,
    control: &mut Control<'_>,
    sink: &mut dyn Sink,
    child: &mut Child,
    start: Instant,
) -> io::Result<Exit> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    // Before the input, so that whoever has read it has the score. A child already gone has none.
    let score = std::env::var("PIPELINE_JOB_OOMSCOREADJ").unwrap_or_else(|_| OOM_SCORE_ADJ.to_owned());
    let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), score);

    let mut input = Input::new(child.stdin.take(), &launch.input)?;
    let mut stdout: Output<ChildStdout> = Output::new(Stream::Stdout, child.stdout.take())?;
    let mut stderr: Output<ChildStderr> = Output::new(Stream::Stderr, child.stderr.take())?;
    let mut ladder = Ladder { rung: Rung::Idle, cause: None, sent: Vec::new(), start };
    let mut buffer = vec![0; 64 * 1024];
    let mut exited: Option<(ExitStatus, Instant)> = None;
    let mut output_held = false;

    loop {
        let open = stdout.reader.is_some() || stderr.reader.is_some();
        let now = Instant::now();
        if let Some((_, at)) = exited {
            if !open {
                break;
            }
            if now >= at + control.timings.end_of_output {
                output_held = true;
                break;
            }
        } else {
            step_back(control, &mut ladder, pidfd.as_fd(), now);
        }
        let due = match exited {
            Some((_, at)) => Some(at + control.timings.end_of_output),
            None => [ladder.due(), control.deadline, control.cancel.due(), next_trigger(control.triggers, start)]
                .into_iter()
                .flatten()
                .filter(|due| *due > now)
                .min(),
        };
        wait(&stdout, &stderr, &input, exited.is_none().then(|| pidfd.as_fd()), control.cancel.interrupts(), due)?;

        control.cancel.check(Instant::now());
        input.write();
        let mut seen = Vec::new();
        let mut notice = |line: &str| seen.extend(noticed(line, control.cancel, control.triggers));
        stderr.drain(&mut buffer, sink, &mut notice)?;
        stdout.drain(&mut buffer, sink, &mut notice)?;
        for signal in seen {
            ladder.send(pidfd.as_fd(), signal);
        }
        if exited.is_none()
            && let Some(status) = child.try_wait()?
        {
            exited = Some((status, Instant::now()));
            input.close();
        }
    }
    stderr.finish(sink, &mut |_| {});
    stdout.finish(sink, &mut |_| {});
    let (status, at) = exited.expect("the loop ends only after the exit");
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(Exit { code, signal: status.signal(), sent: ladder.sent, cause: ladder.cause, output_held, wall: at - start })
}

/// What the time asks for: a cancelled job, an expired step, the next rung, a signal a test wants now.
fn step_back(control: &mut Control<'_>, ladder: &mut Ladder, pidfd: BorrowedFd<'_>, now: Instant) {
    control.cancel.check(now);
    if let Some(cause) = control.cancel.cause()
        && (control.cancellable || cause == Cause::Shutdown)
    {
        ladder.begin(pidfd, cause, control.timings);
    }
    if control.deadline.is_some_and(|due| now >= due) {
        ladder.begin(pidfd, Cause::StepTimeout, control.timings);
    }
    ladder.climb(pidfd, now, control.timings);
    let elapsed = now - ladder.start;
    control.triggers.retain(|trigger| match &trigger.moment {
        Moment::After(due) if elapsed >= *due => {
            ladder.send(pidfd, trigger.signal);
            false
        }
        _ => true,
    });
}

fn next_trigger(triggers: &[Trigger], start: Instant) -> Option<Instant> {
    triggers
        .iter()
        .filter_map(|trigger| match trigger.moment {
            Moment::After(due) => Some(start + due),
            Moment::Line(_) => None,
        })
        .min()
}

/// Signals to deliver because of a line; each trigger fires once.
fn noticed(line: &str, cancel: &mut Cancel, triggers: &mut Vec<Trigger>) -> Vec<Signal> {
    cancel.line(line);
    let mut due = Vec::new();
    triggers.retain(|trigger| match &trigger.moment {
        Moment::Line(text) if line.contains(text.as_str()) => {
            due.push(trigger.signal);
            false
        }
        _ => true,
    });
    due
}

fn wait(
    stdout: &Output<ChildStdout>,
    stderr: &Output<ChildStderr>,
    input: &Input<'_>,
    pidfd: Option<BorrowedFd<'_>>,
    interrupts: Option<BorrowedFd<'_>>,
    due: Option<Instant>,
) -> io::Result<()> {
    let mut fds = Vec::with_capacity(5);
    let readable =
        [stdout.reader.as_ref().map(AsFd::as_fd), stderr.reader.as_ref().map(AsFd::as_fd), pidfd, interrupts];
    fds.extend(readable.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    fds.extend(input.stdin.as_ref().map(|stdin| PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT)));
    let timeout = due.map(|due| {
        let left = due.saturating_duration_since(Instant::now());
        // A duration that does not fit is as good as for ever.
        Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The child's input, written as it takes it.
struct Input<'a> {
    stdin: Option<ChildStdin>,
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn new(stdin: Option<ChildStdin>, rest: &'a [u8]) -> io::Result<Self> {
        if let Some(stdin) = &stdin {
            nonblocking(stdin.as_fd())?;
        }
        let mut input = Self { stdin, rest };
        input.write();
        Ok(input)
    }

    fn write(&mut self) {
        while let Some(stdin) = &mut self.stdin {
            if self.rest.is_empty() {
                return self.close();
            }
            match stdin.write(self.rest) {
                Ok(count) => self.rest = &self.rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A child that does not read its input to the end is its own business.
                Err(_) => return self.close(),
            }
        }
    }

    fn close(&mut self) {
        self.stdin = None;
    }
}

/// The first file of that name in the directories of a `PATH`, without a look at its permissions, as the runner does.
#[must_use]
pub fn which(name: &str, path: &str) -> Option<PathBuf> {
    path.split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(name))
        .find(|file| file.is_file())
}
