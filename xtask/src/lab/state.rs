//! What is known about a lab host between two commands, and whether it is still true.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Written when a host is started, removed when it is taken down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The machine's boot id: processes of another boot are gone.
    pub(crate) boot_id: String,
    /// systemd-nspawn on this machine.
    pub(crate) nspawn: ProcessId,
    /// The cached tree the host was copied from.
    pub(crate) tree: String,
    /// The cached storage folder its registries were given.
    #[serde(default)]
    pub(crate) registry: String,
    /// Its PID 1 has said that it is ready. Otherwise the command that booted it was cut short.
    pub(crate) ready: bool,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number.
    pub(crate) pid: u32,
    /// Its start, in clock ticks after boot.
    pub(crate) started: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let started = start_time(&text).with_context(|| format!("{path} has no start time"))?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(self) -> bool {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        text.is_ok_and(|text| start_time(&text) == Some(self.started) && !is_zombie(&text))
    }

    /// Its child that is PID 1 of a PID namespace of its own: the machine's leader.
    pub(crate) fn leader(self) -> Result<Option<u32>> {
        let pid = self.pid;
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(children.split_whitespace().filter_map(|word| word.parse().ok()).find(|child| {
            // A child that is gone by now is not the leader.
            fs::read_to_string(format!("/proc/{child}/status")).is_ok_and(|status| is_namespace_init(&status))
        }))
    }
}

/// proc_pid_stat(5), field 22; the second field is in parentheses and may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Whether the last of the process's numbers, the one in its own PID namespace, is 1, and it has more than one.
fn is_namespace_init(status: &str) -> bool {
    let Some(numbers) = status.lines().find_map(|line| line.strip_prefix("NSpid:")) else { return false };
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

/// This boot of the machine.
pub(crate) fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).with_context(|| format!("read {path}"))?.trim().to_owned())
}

impl State {
    /// Reads the file; `None` when there is none, or none that this version wrote.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Writes the file whole or not at all.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let aside = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self).expect("the state has only plain fields");
        fs::write(&aside, text).with_context(|| format!("write {}", aside.display()))?;
        fs::rename(&aside, path).with_context(|| format!("rename {}", aside.display()))
    }

    /// Whether the host's nspawn still runs.
    pub(crate) fn is_running(&self) -> Result<bool> {
        Ok(self.boot_id == boot_id()? && self.nspawn.is_alive())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_name() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000 10 18446744073709551615";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time("7 (short) S 1"), None);
        assert!(!is_zombie(stat));
        assert!(is_zombie("7 (x) Z 1 7"));
    }

    #[test]
    fn we_run_and_a_later_process_with_our_number_is_not_us() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { started: me.started + 1, ..me }.is_alive());
    }

    #[test]
    fn a_leader_is_pid_1_of_an_inner_namespace() {
        assert!(is_namespace_init("Name:\tsystemd\nNSpid:\t4711\t1\n"));
        assert!(!is_namespace_init("NSpid:\t1\n"));
        assert!(!is_namespace_init("NSpid:\t4711\t12\n"));
        assert!(!is_namespace_init("Name:\tx\n"));
    }

    #[test]
    fn state_survives_the_file_and_foreign_content_is_none() {
        let dir = std::env::temp_dir().join(format!("xtask-state-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("state.json");
        assert_eq!(State::load(&path).unwrap(), None);
        let state = State {
            boot_id: boot_id().unwrap(),
            nspawn: ProcessId::of(std::process::id()).unwrap(),
            tree: "t".into(),
            registry: "r".into(),
            ready: true,
        };
        state.save(&path).unwrap();
        assert_eq!(State::load(&path).unwrap(), Some(state.clone()));
        assert!(state.is_running().unwrap());
        assert!(!State { boot_id: "earlier".into(), ..state }.is_running().unwrap());
        fs::write(&path, "{").unwrap();
        assert_eq!(State::load(&path).unwrap(), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
