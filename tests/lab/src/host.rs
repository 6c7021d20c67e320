//! Programs, processes and conditions of the lab host.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long something that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Exit status, or 128 + signal.
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Demands this status.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.text(), self.errors());
        self
    }
}

/// Runs a program as root and waits for it.
#[track_caller]
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>) -> Ran {
    run_with(words, b"")
}

/// The same with bytes on standard input.
#[track_caller]
pub(crate) fn run_with<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>, input: &[u8]) -> Ran {
    let mut words = words.into_iter();
    let program = words.next().expect("a program");
    let mut child = Command::new(program.as_ref())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.as_ref().display()));
    let mut stdin = child.stdin.take().expect("it is a pipe");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A program that does not read its input is no failure.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("our own child can be waited for");
    writer.join().expect("writing does not panic");
    Ran { status: status_of(output.status), stdout: output.stdout, stderr: output.stderr }
}

/// As a shell gives it.
pub(crate) fn status_of(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Standard output of a shell script of root that must succeed, without the last line feed.
#[track_caller]
pub(crate) fn sh(script: &str) -> String {
    let ran = run(["sh", "-ec", script]).expect(0);
    ran.text().trim_end_matches('\n').to_owned()
}

/// Looks again and again until it is so. The condition is what is waited for, never a length of time.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A property of a unit of the host.
pub(crate) fn property(unit: &str, name: &str) -> String {
    sh(&format!("systemctl show --property={name} --value {unit}"))
}

/// The broker's process, if it runs.
pub(crate) fn broker() -> Option<u32> {
    property("runner-guestd.service", "MainPID").parse().ok().filter(|pid| *pid != 0)
}

/// The broker's process, started if need be.
pub(crate) fn started_broker() -> u32 {
    run(["systemctl", "start", "runner-guestd.service"]).expect(0);
    broker().expect("a started service has a process")
}

/// Waits until a broker runs that is not this one, and is ready.
#[track_caller]
pub(crate) fn broker_after(old: u32) -> u32 {
    until("a new broker is ready", || {
        let active = property("runner-guestd.service", "ActiveState") == "active";
        broker().filter(|pid| active && *pid != old)
    })
}

/// Sends a signal to a process.
#[track_caller]
pub(crate) fn kill(pid: u32, signal: rustix::process::Signal) {
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process number");
    rustix::process::kill_process(raw, signal).unwrap_or_else(|error| panic!("kill {pid}: {error}"));
}

/// A process is gone or a zombie.
pub(crate) fn is_gone(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Processes of this host (guests included) whose command line, joined by spaces, contains this text.
pub(crate) fn processes_with(text: &str) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("/proc is there").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id() && !is_gone(*pid))
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
        })
        .collect()
}

/// PID 1 of a machine, as the host numbers it.
#[track_caller]
pub(crate) fn leader(machine: &str) -> u32 {
    sh(&format!("machinectl show --property=Leader --value {machine}")).parse().expect("machined knows the leader")
}
