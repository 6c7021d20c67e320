//! Child processes. Every program xtask starts is described by a [`Program`] and started by [`Program::start`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::SigSet;

/// A program to run, its arguments, environment and directory.
pub(crate) struct Program {
    command: Command,
    line: Vec<OsString>,
}

/// The stream of a child that [`Program::observe`] reads and passes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Program {
    /// A program found through PATH, or by its path.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        Self { command: Command::new(program), line: vec![program.to_owned()] }
    }

    /// The same, killed when we are: what it writes would get in the way of our successor.
    pub(crate) fn tied(program: impl AsRef<OsStr>) -> Self {
        Self::new("setpriv").args(["--pdeathsig", "KILL", "--"]).arg(program)
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line.push(arg.as_ref().to_owned());
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets one environment variable.
    pub(crate) fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts from an empty environment. Call it before [`Program::env`].
    pub(crate) fn env_clear(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Sets the working directory.
    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Between fork and exec, lets the program get every signal, although this thread blocks some, and moves it into
    /// control groups, given as their opened `cgroup.procs`.
    #[expect(unsafe_code, reason = "neither the mask nor the group can be set from outside without losing signals")]
    pub(crate) fn in_groups_with_all_signals(mut self, groups: Vec<File>) -> Self {
        let prepare = move || {
            groups.iter().try_for_each(|mut group| group.write_all(b"0"))?;
            SigSet::empty().thread_set_mask().map_err(io::Error::from)
        };
        // SAFETY: the closure only calls write(2) and pthread_sigmask(3), which are async-signal-safe, and allocates nothing.
        unsafe { self.command.pre_exec(prepare) };
        self
    }

    /// The command line as a person would type it.
    pub(crate) fn line(&self) -> String {
        command_line(&self.line)
    }

    /// Runs quietly; a failure carries the last lines of standard error.
    pub(crate) fn run(self) -> Result<()> {
        self.read().map(drop)
    }

    /// Runs quietly and returns standard output.
    pub(crate) fn read(self) -> Result<String> {
        let line = self.line();
        let output = self.output()?;
        if !output.status.success() {
            bail!(failure(&line, output.status, &output.stderr));
        }
        String::from_utf8(output.stdout).with_context(|| format!("output of `{line}`"))
    }

    /// Runs quietly and returns everything, whatever the exit status.
    pub(crate) fn output(mut self) -> Result<Output> {
        let line = self.line();
        self.command.stdin(Stdio::null());
        let child = self.start(Stdio::piped(), Stdio::piped())?;
        child.wait_with_output().with_context(|| format!("wait for `{line}`"))
    }

    /// Runs with our own terminal and streams and returns the status.
    pub(crate) fn show(self) -> Result<ExitStatus> {
        let line = self.line();
        self.inherit()?.wait().with_context(|| format!("wait for `{line}`"))
    }

    /// Starts with our own streams; the caller waits.
    pub(crate) fn inherit(mut self) -> Result<Child> {
        self.command.stdin(Stdio::inherit());
        self.start(Stdio::inherit(), Stdio::inherit())
    }

    /// Starts with the given streams; the caller waits.
    pub(crate) fn with_streams(mut self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        self.command.stdin(stdin);
        self.start(stdout, stderr)
    }

    /// Runs with our own streams and lets `each` see every line of one of them as well, without its line end.
    pub(crate) fn observe(mut self, stream: Stream, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
        let line = self.line();
        self.command.stdin(Stdio::null());
        let (out, err) = match stream {
            Stream::Out => (Stdio::piped(), Stdio::inherit()),
            Stream::Err => (Stdio::inherit(), Stdio::piped()),
        };
        let mut child = self.start(out, err)?;
        let source: Box<dyn Read> = match stream {
            Stream::Out => Box::new(child.stdout.take().expect("stdout is piped")),
            Stream::Err => Box::new(child.stderr.take().expect("stderr is piped")),
        };
        let mut sink: Box<dyn Write> = match stream {
            Stream::Out => Box::new(io::stdout()),
            Stream::Err => Box::new(io::stderr()),
        };
        let mut source = BufReader::new(source);
        let mut bytes = Vec::new();
        while source.read_until(b'\n', &mut bytes).with_context(|| format!("read from `{line}`"))? > 0 {
            sink.write_all(&bytes)?;
            sink.flush()?;
            each(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
            bytes.clear();
        }
        child.wait().with_context(|| format!("wait for `{line}`"))
    }

    /// Connects our standard output to the input of `consumer`, runs both, and fails with the first that failed.
    pub(crate) fn pipe_into(mut self, mut consumer: Program) -> Result<()> {
        let (producer_line, consumer_line) = (self.line(), consumer.line());
        self.command.stdin(Stdio::null());
        let mut producer = self.start(Stdio::piped(), Stdio::piped())?;
        consumer.command.stdin(Stdio::from(producer.stdout.take().expect("stdout is piped")));
        let consumer = consumer.start(Stdio::piped(), Stdio::piped())?;
        let consumed = consumer.wait_with_output().with_context(|| format!("wait for `{consumer_line}`"))?;
        let produced = producer.wait_with_output().with_context(|| format!("wait for `{producer_line}`"))?;
        if !consumed.status.success() {
            bail!(failure(&consumer_line, consumed.status, &consumed.stderr));
        }
        if !produced.status.success() {
            bail!(failure(&producer_line, produced.status, &produced.stderr));
        }
        Ok(())
    }

    /// The one place where a process is started.
    fn start(mut self, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        self.command.stdout(stdout).stderr(stderr);
        self.command.spawn().map_err(|source| {
            let advice = if source.kind() == io::ErrorKind::NotFound { " (is it installed?)" } else { "" };
            anyhow::Error::new(source).context(format!("start `{}`{advice}", self.line()))
        })
    }
}

/// Why a program failed, on one line: its command line, its status and what it said last.
fn failure(line: &str, status: ExitStatus, stderr: &[u8]) -> anyhow::Error {
    let text = String::from_utf8_lossy(stderr);
    let mut tail: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).rev().take(4).collect();
    tail.reverse();
    if tail.is_empty() {
        anyhow!("`{line}` failed: {status}")
    } else {
        anyhow!("`{line}` failed: {status}: {}", tail.join(" | "))
    }
}

/// Quotes for a POSIX shell what needs it and leaves the rest readable.
pub(crate) fn command_line<S: AsRef<OsStr>>(words: &[S]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(|word| quote(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// A child's status as a shell gives it: its exit code, or 128 + the signal that ended it.
pub(crate) fn shell_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_can_be_pasted() {
        assert_eq!(command_line(&["tar", "-C", "/a b", "it's", ""]), r"tar -C '/a b' 'it'\''s' ''");
        assert_eq!(command_line(&["A=b", "--x=/y:z", "$HOME"]), "A=b --x=/y:z '$HOME'");
    }

    #[test]
    fn a_failure_names_command_status_and_last_words() {
        let error = Program::new("sh").args(["-c", "echo one >&2; echo two >&2; exit 3"]).run().unwrap_err();
        assert_eq!(error.to_string(), "`sh -c 'echo one >&2; echo two >&2; exit 3'` failed: exit status: 3: one | two");
    }

    #[test]
    fn a_missing_program_says_so() {
        let error = Program::new("no-such-program-here").run().unwrap_err();
        assert_eq!(error.to_string(), "start `no-such-program-here` (is it installed?)");
    }

    #[test]
    fn signals_become_128_plus_n() {
        let status = Program::new("sh").args(["-c", "kill -TERM $$"]).output().unwrap().status;
        assert_eq!(shell_code(status), 143);
        let status = Program::new("sh").args(["-c", "exit 42"]).output().unwrap().status;
        assert_eq!(shell_code(status), 42);
    }

    #[test]
    fn piped_failures_name_the_side_that_failed() {
        let error = Program::new("true").pipe_into(Program::new("false")).unwrap_err();
        assert_eq!(error.to_string(), "`false` failed: exit status: 1");
        Program::new("echo").arg("hello").pipe_into(Program::new("grep").args(["-qx", "hello"])).unwrap();
    }
}
