//! The lab host: a nested machine with its own systemd, where the product is installed and tested.

mod cgroup;
mod copy;
mod enter;
mod host;
mod install;
mod overlay;
mod packages;
mod registry;
mod state;
mod suite;
pub(crate) mod tools;
mod tree;

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub(crate) use enter::Request;
pub(crate) use packages::require_root;
pub(crate) use registry::PUBLIC_ADDRESS as PUBLIC_REGISTRY;
pub(crate) use suite::Suite;

use crate::child::Program;
use crate::progress::{Phase, note, result};
use crate::workspace::{Profile, Workspace};
use host::Ending;
use state::State;

/// Root trees; kept by `down`.
pub(crate) const CACHE: &str = "/var/cache/runner-appliance-lab";
/// Writable trees of lab hosts.
const HOSTS: &str = "/var/lib/runner-appliance-lab";
/// State of running lab hosts.
const RUN: &str = "/run/runner-appliance-lab";

/// One lab host; there is at most one per suite and instance.
#[derive(Debug, Clone)]
pub(crate) struct Lab {
    suite: Suite,
    instance: Option<Instance>,
}

/// Tells several lab hosts of one suite apart: one to a checkout, or to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance(String);

impl FromStr for Instance {
    type Err = anyhow::Error;

    /// It becomes part of a machine name, a host name and paths.
    fn from_str(text: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        ensure!(
            (1..=16).contains(&text.len()) && text.chars().all(allowed),
            "an instance name is 1 to 16 characters from a-z and 0-9"
        );
        Ok(Self(text.to_owned()))
    }
}

/// Held by a command that changes a lab host.
struct Lock {
    _file: File,
}

impl Lab {
    /// The lab host of this suite and instance.
    pub(crate) fn new(suite: Suite, instance: Option<Instance>) -> Self {
        Self { suite, instance }
    }

    /// Its Debian release.
    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    /// Its instance's name, empty for the one that has none.
    pub(crate) fn instance(&self) -> &str {
        self.instance.as_ref().map_or("", |Instance(name)| name)
    }

    /// What its folders are called.
    fn key(&self) -> String {
        match &self.instance {
            None => self.suite.name().to_owned(),
            Some(Instance(instance)) => format!("{}-{instance}", self.suite.name()),
        }
    }

    /// Its machine name.
    fn name(&self) -> String {
        format!("runner-lab-{}", self.key())
    }

    /// The options that name it on a command line.
    fn options(&self) -> Vec<String> {
        let instance = self.instance.iter().flat_map(|Instance(name)| ["--instance", name]);
        ["--suite", self.suite.name()].into_iter().chain(instance).map(str::to_owned).collect()
    }

    /// Its unit, where PID 1 is systemd.
    fn unit(&self) -> String {
        format!("{}.service", self.name())
    }

    fn root(&self) -> PathBuf {
        Path::new(HOSTS).join(self.key()).join("root")
    }

    fn run_dir(&self) -> PathBuf {
        Path::new(RUN).join(self.key())
    }

    fn state_file(&self) -> PathBuf {
        self.run_dir().join("state.json")
    }

    fn log_file(&self) -> PathBuf {
        self.run_dir().join("console.log")
    }

    fn notify_socket(&self) -> PathBuf {
        self.run_dir().join("notify")
    }

    /// The state of the running host, or `None`.
    fn running(&self) -> Result<Option<State>> {
        let Some(state) = State::load(&self.state_file())? else { return Ok(None) };
        Ok(state.is_running()?.then_some(state))
    }

    /// The state of the running host, or an error that says how to start it.
    fn require_running(&self) -> Result<State> {
        require_root()?;
        let options = self.options().join(" ");
        self.running()?.with_context(|| format!("{} is not running: run `cargo xtask lab up {options}`", self.name()))
    }

    /// PID 1 of the host, as this machine numbers it.
    fn leader(&self, state: &State) -> Result<u32> {
        state.nspawn.leader()?.context("the lab host has no PID 1 at the moment: try again, or `cargo xtask lab down`")
    }

    /// Inode of the host's PID namespace: what processes inside have as `/proc/PID/ns/pid` here.
    pub(crate) fn process_namespace(&self) -> Result<u64> {
        let path = format!("/proc/{}/ns/pid", self.leader(&self.require_running()?)?);
        Ok(fs::metadata(&path).with_context(|| format!("look at {path}"))?.ino())
    }

    /// A program run inside the host as root. It goes through this very program, even if its file was rebuilt meanwhile.
    pub(crate) fn inside<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Program {
        self.inside_as("root", words)
    }

    /// The same as another user of the host.
    pub(crate) fn inside_as<S: AsRef<std::ffi::OsStr>>(
        &self,
        user: &str,
        words: impl IntoIterator<Item = S>,
    ) -> Program {
        let program = Program::new("/proc/self/exe").args(["lab", "exec", "--user", user]).args(self.options());
        program.arg("--").args(words)
    }

    /// One command at a time changes the lab hosts of a machine.
    fn lock() -> Result<Lock> {
        let path = Path::new(CACHE).join("lock");
        loop {
            fs::create_dir_all(CACHE).with_context(|| format!("create {CACHE}"))?;
            let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let phase = Phase::start("lock", "waiting for another lab command");
                    file.lock().with_context(|| format!("lock {}", path.display()))?;
                    phase.end("another lab command has ended");
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
            }
            // `down --purge` may have removed the file before we got the lock.
            let ours = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|meta| meta.ino() == ours) {
                return Ok(Lock { _file: file });
            }
        }
    }

    /// Boots the host unless it runs, then builds and installs the product there.
    pub(crate) fn up(&self, workspace: &Workspace, profile: Profile, host_only: bool) -> Result<()> {
        packages::ensure()?;
        let lock = Self::lock()?;
        self.ensure_booted()?;
        // Compiling takes minutes; others may use the host meanwhile.
        drop(lock);
        if host_only {
            return Ok(());
        }
        let binaries = workspace.build(profile)?;
        let _lock = Self::lock()?;
        self.require_running()?;
        install::install(self, workspace, &binaries)
    }

    fn ensure_booted(&self) -> Result<()> {
        if let Some(state) = self.running()? {
            if state.tree == self.suite.tree_name() && state.registry == registry::storage_name() {
                let phase = Phase::start("lab host", "waiting for it");
                if !state.ready {
                    host::reboot(self, &state, Ending::PowerCut)?;
                }
                let condition = self.wait_until_started()?;
                phase.end(&format!("{} is up ({condition})", self.name()));
                return Ok(());
            }
            note("lab host   runs an older root tree or registry: starting anew");
        }
        let tree = tree::cached(Path::new(CACHE), self.suite)?;
        let images = registry::cached(Path::new(CACHE))?;
        let phase = Phase::start("lab host", "booting");
        host::remove(self)?;
        tree::copy(&tree, &self.root(), &self.name())?;
        registry::install(&images, &self.root())?;
        let state = host::boot(self, self.suite.tree_name(), registry::storage_name())?;
        let condition = self.wait_until_started()?;
        phase.end(&format!("{} booted ({condition}), leader {}", self.name(), self.leader(&state)?));
        Ok(())
    }

    /// Waits until PID 1 has no start jobs left; `running`, or `degraded` with the units that failed.
    fn wait_until_started(&self) -> Result<String> {
        let output = self.inside(["timeout", "60", "systemctl", "is-system-running", "--wait"]).output()?;
        let condition = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match condition.as_str() {
            "running" => Ok(condition),
            "degraded" => {
                let failed = self.inside(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).read()?;
                let units: Vec<&str> = failed.lines().filter_map(|line| line.split_whitespace().next()).collect();
                Ok(format!("degraded: {}", units.join(" ")))
            }
            _ => bail!(
                "the lab host is not up after 60 s (`{condition}` {}): read {}, or start anew after `cargo xtask lab down`",
                String::from_utf8_lossy(&output.stderr).trim(),
                self.log_file().display()
            ),
        }
    }

    /// Removes the host and all it left on this machine; the cached root trees only with `purge`.
    pub(crate) fn down(&self, purge: bool) -> Result<()> {
        require_root()?;
        let _lock = Self::lock()?;
        let phase = Phase::start("lab host", "removing");
        let was_running = self.running()?.is_some();
        host::remove(self)?;
        if purge {
            tree::purge(Path::new(CACHE), self.suite)?;
        }
        let parents = [Path::new(HOSTS).join(self.key()), HOSTS.into(), RUN.into()];
        parents.iter().for_each(|dir| remove_if_empty(dir));
        let outcome = if was_running { "killed and removed" } else { "was not running; nothing is left of it" };
        phase.end(&format!("{} {outcome}", self.name()));
        if purge && only_entry(Path::new(CACHE), "lock")? {
            tree::remove(Path::new(CACHE))?;
        }
        Ok(())
    }

    /// Reboots the host on its tree as it is and waits until it runs again.
    pub(crate) fn reboot(&self, power_cut: bool) -> Result<()> {
        let ending = if power_cut { Ending::PowerCut } else { Ending::Clean };
        require_root()?;
        let _lock = Self::lock()?;
        let state = self.require_running()?;
        let phase = Phase::start("lab host", "rebooting");
        let state = host::reboot(self, &state, ending)?;
        let condition = self.wait_until_started()?;
        phase.end(&format!("{} rebooted ({condition}), leader {}", self.name(), self.leader(&state)?));
        Ok(())
    }

    /// Runs a program in the host with our streams and returns its status as a shell gives it.
    pub(crate) fn exec(&self, request: &Request) -> Result<u8> {
        let state = self.require_running()?;
        enter::run(self.leader(&state)?, request)
    }

    /// Copies a file or a folder into the host.
    pub(crate) fn put(&self, source: &Path, target: &str) -> Result<()> {
        self.require_running()?;
        copy::put(self, source, target)
    }

    /// Prints what is known about the host. True if it runs.
    pub(crate) fn status(&self, json: bool) -> Result<bool> {
        let state = self.running()?;
        let leader = state.as_ref().map(|state| state.nspawn.leader()).transpose()?.flatten();
        let condition = match leader {
            Some(_) if rustix::process::geteuid().is_root() => {
                let output = self.inside(["systemctl", "is-system-running"]).output()?;
                let condition = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                if condition.is_empty() { "booting".to_owned() } else { condition }
            }
            Some(_) => "running".to_owned(),
            None if State::load(&self.state_file())?.is_some() => "dead".to_owned(),
            None => "absent".to_owned(),
        };
        let cached = Path::new(CACHE).join(self.suite.tree_name()).is_dir();
        if json {
            let status = serde_json::json!({
                "suite": self.suite, "instance": self.instance.as_ref().map(|Instance(name)| name), "name": self.name(), "state": condition, "leader": leader,
                "nspawn": state.as_ref().map(|state| state.nspawn.pid),
                "root": self.root(), "log": self.log_file(), "tree": self.suite.tree_name(), "tree_cached": cached,
            });
            result(&status.to_string());
        } else {
            let leader = leader.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let cached = if cached { "cached" } else { "not made yet" };
            result(&format!("{:<20} {condition:<10} leader {leader:<8} root tree {cached}", self.name()));
        }
        Ok(state.is_some())
    }
}

fn remove_if_empty(dir: &Path) {
    // Another suite's host may be in there; then it stays.
    let _ = fs::remove_dir(dir);
}

fn only_entry(dir: &Path, name: &str) -> Result<bool> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    Ok(names.len() == 1 && names[0] == name)
}

/// A time limit as poll(2) takes it.
fn timespec(duration: Duration) -> rustix::event::Timespec {
    duration.try_into().expect("limits are minutes, not centuries")
}
