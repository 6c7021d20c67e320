//! Booting, rebooting and killing the nested machine.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::{self, Hierarchies};
use super::enter::take_standard_limits;
use super::state::{ProcessId, State, boot_id};
use super::{Lab, timespec, tree};
use crate::child::Program;

/// From the start of systemd-nspawn to the machine's READY: about 2 s when nothing else runs.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// From the reboot command to the end of nspawn; a unit that does not stop is killed after 90 s.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(120);
/// From SIGKILL to the last process gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// Where systemd-nspawn keeps what it would remove itself if it were not killed.
const NSPAWN_RUN: &str = "/run/systemd/nspawn";

/// Starts the machine on `lab.root()` and returns when its PID 1 says it is ready.
pub(crate) fn boot(lab: &Lab, tree: String, registry: String) -> Result<State> {
    let dir = lab.run_dir();
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let readiness = Readiness::listen(&lab.notify_socket())?;
    let pid = if systemd_is_pid_1() { start_as_unit(lab)? } else { start_in_own_group(lab)? };
    let nspawn = ProcessId::of(pid).with_context(|| died(lab))?;
    let mut state = State { boot_id: boot_id()?, nspawn, tree, registry, ready: false };
    state.save(&lab.state_file())?;
    readiness.wait(lab, nspawn)?;
    state.ready = true;
    state.save(&lab.state_file())?;
    Ok(state)
}

/// How [`reboot`] ends the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By its own PID 1, all units stopped in order.
    Clean,
    /// All processes killed at once, as if the power had gone.
    PowerCut,
}

/// Ends the machine and boots it again on the same tree.
///
/// nspawn under `--keep-unit` does not start a machine again that reboots: it ends, and leaves that to whoever started it.
pub(crate) fn reboot(lab: &Lab, state: &State, ending: Ending) -> Result<State> {
    if ending == Ending::Clean {
        let process = pidfd(state.nspawn.pid)?;
        lab.inside(["systemctl", "--no-block", "reboot"]).run()?;
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        if poll(&mut ended, Some(&timespec(SHUTDOWN_LIMIT)))? == 0 {
            let limit = SHUTDOWN_LIMIT.as_secs();
            bail!("the lab host still shuts down after {limit} s: read {}", lab.log_file().display());
        }
    }
    stop(lab)?;
    boot(lab, state.tree.clone(), state.registry.clone())
}

/// Kills the machine if it runs, and removes all of it. Works from names alone, whatever state it was left in.
pub(crate) fn remove(lab: &Lab) -> Result<()> {
    stop(lab)?;
    tree::remove(&lab.root())?;
    tree::remove(&lab.run_dir())
}

/// Kills every process of the machine and removes what nspawn left on this one.
fn stop(lab: &Lab) -> Result<()> {
    if systemd_is_pid_1() {
        kill_unit(&lab.unit())?;
    } else {
        let groups = Hierarchies::mounted()?.directories(&lab.name());
        cgroup::kill(&groups[0], KILL_LIMIT)?;
        groups.iter().try_for_each(|group| cgroup::remove(group))?;
    }
    for path in nspawn_leftovers(lab) {
        // From systemd 255 on some of them are mount points; most are none, or are not there.
        let _ = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        tree::remove(&path)?;
    }
    Ok(())
}

/// sd_booted(3).
fn systemd_is_pid_1() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// systemd-nspawn's arguments; `files` is the hard limit of open files.
fn nspawn(lab: &Lab, files: u64) -> Vec<String> {
    let root = lab.root();
    let root = root.to_str().expect("our own paths are UTF-8");
    let mut words = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"].map(str::to_owned).to_vec();
    words.push(format!("--machine={}", lab.name()));
    words.push(format!("--directory={root}"));
    // It stands for a real machine: root there is root, with a network of its own.
    words.extend(["--capability=all", "--private-users=no", "--private-network"].map(str::to_owned));
    // Nothing of this machine reaches it, and `pipe` would print nothing.
    words
        .extend(["--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only"].map(str::to_owned));
    words.extend([format!("--rlimit=NOFILE=1024:{files}"), "--notify-ready=yes".to_owned()]);
    words
}

fn nspawn_environment(lab: &Lab) -> Vec<(&'static str, String)> {
    let socket = lab.notify_socket().into_os_string().into_string().expect("our own paths are UTF-8");
    // What a guest may call must be decided by the guest's own filter, not by one around the lab host.
    vec![("NOTIFY_SOCKET", socket), ("SYSTEMD_SECCOMP", "0".to_owned())]
}

/// As a service of the machine's own systemd.
fn start_as_unit(lab: &Lab) -> Result<u32> {
    let files = take_standard_limits()?;
    let log = lab.log_file();
    let mut run = Program::new("systemd-run")
        .args(["--quiet", "--collect", "--service-type=exec", "--slice=machine.slice"])
        .arg(format!("--unit={}", lab.unit()))
        .args(["--property=Delegate=yes", "--property=KillMode=mixed", "--property=TasksMax=infinity"])
        .arg(format!("--property=StandardOutput=append:{}", log.display()))
        .arg(format!("--property=StandardError=append:{}", log.display()));
    for (name, value) in nspawn_environment(lab) {
        run = run.arg(format!("--setenv={name}={value}"));
    }
    run.arg("--").args(nspawn(lab, files)).run()?;
    let pid = Program::new("systemctl").args(["show", "--property=MainPID", "--value", &lab.unit()]).read()?;
    pid.trim().parse().ok().filter(|pid| *pid != 0).with_context(|| died(lab))
}

fn kill_unit(unit: &str) -> Result<()> {
    let loaded = Program::new("systemctl").args(["show", "--property=ControlGroup", "--value", unit]).read()?;
    let group = loaded.trim();
    if !group.is_empty() {
        let directories = Hierarchies::mounted()?.directories(group);
        cgroup::kill(&directories[0], KILL_LIMIT)?;
        Program::new("systemctl").args(["stop", unit]).output()?;
    }
    // `--collect` lets the unit go by itself; a failed one of an earlier version may be left.
    Program::new("systemctl").args(["reset-failed", unit]).output()?;
    Ok(())
}

/// In a session and a control group of its own, so that neither a closed terminal nor another machine's end takes it along.
fn start_in_own_group(lab: &Lab) -> Result<u32> {
    let files = take_standard_limits()?;
    let groups = Hierarchies::mounted()?.directories(&lab.name());
    for group in &groups {
        fs::create_dir_all(group).with_context(|| format!("create {}", group.display()))?;
    }
    // The shell moves itself before it becomes nspawn: we must not move, and nothing of nspawn may run outside.
    let script = "until [ \"$1\" = -- ]; do echo $$ >\"$1/cgroup.procs\"; shift; done; shift; exec setsid \"$@\"";
    let log = File::options().create(true).append(true).open(lab.log_file()).context("open the lab host's log")?;
    let mut program = Program::new("sh").args(["-ec", script, "sh"]).args(&groups).arg("--").args(nspawn(lab, files));
    for (name, value) in nspawn_environment(lab) {
        program = program.env(name, value);
    }
    // Otherwise nspawn hands this machine's v1 hierarchies on, which no current systemd boots with.
    program = program.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").dir("/");
    let errors = log.try_clone().context("duplicate the log's descriptor")?;
    let child = program.with_streams(Stdio::null(), Stdio::from(log), Stdio::from(errors))?;
    Ok(child.id())
}

/// Files and directories a killed nspawn leaves: its propagation directory and its locks on the root directory.
fn nspawn_leftovers(lab: &Lab) -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let root = lab.root();
    let run = Path::new(NSPAWN_RUN);
    let mut paths = vec![run.join("propagate").join(lab.name()), run.join("unix-export").join(lab.name())];
    if let (Some(parent), Some(name)) = (root.parent(), root.file_name()) {
        paths.push(parent.join(format!(".#{}.lck", name.to_string_lossy())));
    }
    if let Ok(meta) = fs::metadata(&root) {
        paths.push(run.join(format!("locks/inode-{}:{}", meta.dev(), meta.ino())));
    }
    paths
}

/// The socket nspawn tells about the machine's start (sd_notify(3)).
struct Readiness {
    socket: UnixDatagram,
}

impl Readiness {
    fn listen(path: &Path) -> Result<Self> {
        tree::remove(path)?;
        let socket = UnixDatagram::bind(path).with_context(|| format!("bind {}", path.display()))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Waits for `READY=1`. Fails when nspawn ends or takes too long.
    fn wait(&self, lab: &Lab, nspawn: ProcessId) -> Result<()> {
        let process = pidfd(nspawn.pid).with_context(|| died(lab))?;
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!("the lab host is not ready after {} s: read {}", BOOT_LIMIT.as_secs(), lab.log_file().display());
            };
            let (message, ended) = {
                let mut fds = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
                poll(&mut fds, Some(&timespec(left)))?;
                (fds[0].revents().contains(PollFlags::IN), fds[1].revents().contains(PollFlags::IN))
            };
            if message {
                let mut buffer = [0; 4096];
                let length = self.socket.recv(&mut buffer).context("read nspawn's notification")?;
                if buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    return Ok(());
                }
            } else if ended {
                bail!(died(lab));
            }
        }
    }
}

fn pidfd(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process number")?;
    pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("open process {}", pid.as_raw_nonzero()))
}

/// Why nspawn ended, as far as its log tells.
fn died(lab: &Lab) -> String {
    let log = lab.log_file();
    let text = fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it wrote nothing").to_owned();
    format!("systemd-nspawn ended before the lab host was ready ({last}): read {}", log.display())
}
