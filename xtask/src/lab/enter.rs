//! Running a program inside the lab host: its namespaces, a control group of its own, our streams or a terminal there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, kill_process, pidfd_open, setrlimit, umask};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::cgroup::{self, Hierarchies};
use crate::child::{Program, shell_code};
use crate::progress::note;

/// What to run.
#[derive(Debug)]
pub(crate) struct Request {
    /// A user of the lab host, by name or number; root if absent.
    pub(crate) user: Option<String>,
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
}

/// Signals passed on to the program. SIGCHLD tells us that it ended, SIGWINCH that our window changed.
const PASSED_ON: &[Signal] =
    &[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// The group of these programs, beside the machine's own `init.scope` and slices.
const GROUP: &str = "lab-exec";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Joins the machine of this leader for good, runs the program there and returns its status: its exit code or 128 + signal;
/// 127 if there is no such program, 126 if it cannot be run.
///
/// The calling process must have a single thread; afterwards it sees the machine's files.
pub(super) fn run(leader: u32, request: &Request) -> Result<u8> {
    let signals = block_signals()?;
    let groups = open_groups(leader)?;
    join_namespaces(leader)?;
    take_standard_limits()?;
    let account = Account::find(request.user.as_deref().unwrap_or("0"))?;
    let terminal = if io::stdin().is_terminal() && io::stdout().is_terminal() { Some(Pty::open()?) } else { None };
    let program = program(request, &account, terminal.is_some()).in_groups_with_all_signals(groups);
    let child = match &terminal {
        None => program.inherit(),
        Some(pty) => {
            let end = || pty.program_end.try_clone().map(Stdio::from).context("duplicate the terminal's descriptor");
            let stderr = if io::stderr().is_terminal() { end()? } else { Stdio::inherit() };
            program.with_streams(end()?, end()?, stderr)
        }
    };
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return cannot_start(request, &error),
    };
    match terminal {
        None => wait(&mut child, &signals),
        Some(pty) => pty.relay(&mut child, &signals),
    }
}

fn cannot_start(request: &Request, error: &anyhow::Error) -> Result<u8> {
    let name = request.command[0].to_string_lossy();
    let Some(cause) = error.downcast_ref::<io::Error>() else {
        bail!("cannot run `{name}` in the lab host: {error:#}")
    };
    note(&format!("lab exec: cannot run `{name}` in the lab host: {cause}"));
    Ok(if cause.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    PASSED_ON.iter().for_each(|signal| set.add(*signal));
    set.add(Signal::SIGCHLD);
    set.add(Signal::SIGWINCH);
    set.thread_block().context("block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("make a signal descriptor")
}

/// The group of the programs run here, opened before this machine's hierarchies are out of sight.
///
/// Only the programs join it. We are outside the machine's PID namespace: in one of its groups we would be process 0
/// there, which systemd 252 takes for an I/O error when it lists the group.
fn open_groups(leader: u32) -> Result<Vec<File>> {
    let path = cgroup::of_process(leader)?;
    let payload = path.strip_suffix("/init.scope").unwrap_or(&path);
    let directories = Hierarchies::mounted()?.directories(&format!("{payload}/{GROUP}"));
    let open = |directory: PathBuf| {
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let procs = directory.join("cgroup.procs");
        File::options().write(true).open(&procs).with_context(|| format!("open {}", procs.display()))
    };
    directories.into_iter().map(open).collect()
}

fn join_namespaces(leader: u32) -> Result<()> {
    let pid = i32::try_from(leader).ok().and_then(Pid::from_raw).context("not a process number")?;
    let leader = pidfd_open(pid, PidfdFlags::empty()).context("open the lab host's PID 1")?;
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK;
    move_into_thread_name_spaces(leader.as_fd(), namespaces).context("join the lab host's namespaces")
}

/// Takes the limit of open files and the mask systemd gives a service, whatever our caller has. Returns the hard limit.
pub(super) fn take_standard_limits() -> Result<u64> {
    umask(Mode::from_raw_mode(0o022));
    let limit = |maximum| Rlimit { current: Some(1024), maximum: Some(maximum) };
    let standard = 524_288;
    if setrlimit(Resource::Nofile, limit(standard)).is_ok() {
        return Ok(standard);
    }
    // Root without CAP_SYS_RESOURCE, as in some containers and VMs.
    let ours = getrlimit(Resource::Nofile).maximum.unwrap_or(standard).min(standard);
    setrlimit(Resource::Nofile, limit(ours)).context("set the limit of open files")?;
    Ok(ours)
}

fn program(request: &Request, account: &Account, terminal: bool) -> Program {
    let mut words: Vec<OsString> = Vec::new();
    if terminal {
        words.extend(["setsid", "--ctty"].map(OsString::from));
    }
    if account.uid != 0 {
        words.extend(["setpriv", "--init-groups"].map(OsString::from));
        words.push(format!("--reuid={}", account.uid).into());
        words.push(format!("--regid={}", account.gid).into());
        words.push("--".into());
    }
    words.extend(request.command.iter().cloned());
    let home = if fs::metadata(&account.home).is_ok_and(|meta| meta.is_dir()) { &account.home } else { "/" };
    Program::new(&words[0])
        .args(&words[1..])
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", &account.home)
        .env("USER", &account.name)
        .env("LOGNAME", &account.name)
        .env("SHELL", "/bin/bash")
        .env("LANG", "C.UTF-8")
        .env("TERM", std::env::var_os("TERM").unwrap_or_else(|| "dumb".into()))
        .dir(home)
}

/// A line of passwd(5).
#[derive(Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

impl Account {
    /// Looks into the lab host's own file: we have joined its mount namespace.
    fn find(user: &str) -> Result<Self> {
        let text = fs::read_to_string("/etc/passwd").context("read the lab host's /etc/passwd")?;
        Self::parse(&text, user).with_context(|| format!("the lab host has no user `{user}`"))
    }

    fn parse(passwd: &str, user: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let [name, _, uid, gid, _, home, _] = line.split(':').collect::<Vec<_>>()[..] else { return None };
            let account = Self {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: if home.is_empty() { "/".to_owned() } else { home.to_owned() },
            };
            (name == user || uid == user).then_some(account)
        })
    }
}

/// What the signals so far ask for.
#[derive(Default)]
struct Received {
    ended: bool,
    resized: bool,
}

fn take_signals(signals: &SignalFd, child: &Child) -> Result<Received> {
    let mut received = Received::default();
    while let Some(info) = signals.read_signal().context("read signals")? {
        let number = i32::try_from(info.ssi_signo).unwrap_or(0);
        match Signal::try_from(number) {
            Ok(Signal::SIGCHLD) => received.ended = true,
            Ok(Signal::SIGWINCH) => received.resized = true,
            // What the terminal driver sends, it sends to the program too: both are in the foreground group.
            Ok(_) if info.ssi_code == nix::libc::SI_KERNEL => {}
            Ok(_) => {
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("not a process number")?;
                let signal = rustix::process::Signal::from_named_raw(number).context("not a signal")?;
                // It may have ended a moment ago.
                let _ = kill_process(pid, signal);
            }
            Err(_) => {}
        }
    }
    Ok(received)
}

fn wait(child: &mut Child, signals: &SignalFd) -> Result<u8> {
    loop {
        poll(&mut [PollFd::new(signals, PollFlags::IN)], None)?;
        if take_signals(signals, child)?.ended
            && let Some(status) = child.try_wait().context("wait for the program")?
        {
            return Ok(shell_code(status));
        }
    }
}

/// A terminal of the lab host: one of ours would have no name there.
struct Pty {
    our_end: OwnedFd,
    program_end: OwnedFd,
}

impl Pty {
    fn open() -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let our_end = openpt(flags).context("open a terminal in the lab host")?;
        grantpt(&our_end)?;
        unlockpt(&our_end)?;
        let program_end = ioctl_tiocgptpeer(&our_end, flags).context("open a terminal in the lab host")?;
        Ok(Self { our_end, program_end })
    }

    fn copy_size(&self) {
        // A terminal without a size leaves the program with its default.
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            let _ = tcsetwinsize(&self.our_end, size);
        }
    }

    /// Carries bytes between our terminal and the program's until the program has ended.
    fn relay(self, child: &mut Child, signals: &SignalFd) -> Result<u8> {
        self.copy_size();
        let Self { our_end, program_end } = self;
        // Only the program may hold its end, or its output would never end.
        drop(program_end);
        let _raw = Raw::enter(io::stdin().as_fd())?;
        let pty = File::from(our_end);
        rustix::io::ioctl_fionbio(&pty, true)?;
        let mut typed: Vec<u8> = Vec::new();
        let (mut typing, mut writing) = (true, true);
        loop {
            let stdin = io::stdin();
            let mut want = PollFlags::IN;
            want.set(PollFlags::OUT, !typed.is_empty());
            // After its last writer has gone the terminal is always ready, with an error: then only the end is waited for.
            let source = if writing { pty.as_fd() } else { signals.as_fd() };
            let mut fds = vec![PollFd::new(signals, PollFlags::IN), PollFd::from_borrowed_fd(source, want)];
            if typing && typed.is_empty() {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            poll(&mut fds, None)?;
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready.get(2) == Some(&true) {
                typing = read_into(stdin.as_fd(), &mut typed)?;
            }
            if !typed.is_empty() {
                write_some(&pty, &mut typed)?;
            }
            if writing && ready[1] {
                writing = pass_on(&pty)?;
            }
            if ready[0] {
                let received = take_signals(signals, child)?;
                if received.resized
                    && let Ok(size) = tcgetwinsize(io::stdin())
                {
                    let _ = tcsetwinsize(&pty, size);
                }
                if received.ended
                    && let Some(status) = child.try_wait().context("wait for the program")?
                {
                    pass_on(&pty)?;
                    return Ok(shell_code(status));
                }
            }
        }
    }
}

fn read_into(source: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> Result<bool> {
    let mut buffer = [0; 4096];
    let length = rustix::io::read(source, &mut buffer).context("read from the terminal")?;
    bytes.extend_from_slice(&buffer[..length]);
    Ok(length > 0)
}

fn write_some(mut pty: &File, bytes: &mut Vec<u8>) -> Result<()> {
    match pty.write(bytes) {
        Ok(length) => drop(bytes.drain(..length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        // Nobody reads any more: the program is about to end.
        Err(_) => bytes.clear(),
    }
    Ok(())
}

/// Prints what the program has written so far. False when nobody holds its end any more (EIO).
fn pass_on(mut pty: &File) -> Result<bool> {
    let mut buffer = [0; 16384];
    let open = loop {
        match pty.read(&mut buffer) {
            Ok(0) => break false,
            Ok(length) => io::stdout().write_all(&buffer[..length])?,
            Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
        }
    };
    io::stdout().flush()?;
    Ok(open)
}

/// Our terminal in raw mode, for as long as this lives.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter(terminal: BorrowedFd<'_>) -> Result<Self> {
        let before = tcgetattr(terminal).context("read the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw).context("set the terminal's modes")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_by_name_and_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbad line\nrunner:x:998:997:A, B:/home/runner:/usr/sbin/nologin\n\
                      nohome:x:5:6:::\n";
        let runner = Account::parse(passwd, "runner").unwrap();
        assert_eq!(runner, Account { name: "runner".into(), uid: 998, gid: 997, home: "/home/runner".into() });
        assert_eq!(Account::parse(passwd, "998").unwrap(), runner);
        assert_eq!(Account::parse(passwd, "5").unwrap().home, "/");
        assert_eq!(Account::parse(passwd, "0").unwrap().name, "root");
        assert_eq!(Account::parse(passwd, "nobody"), None);
    }
}
