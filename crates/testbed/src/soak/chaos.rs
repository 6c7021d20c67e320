//! What is killed and collected while images are pulled and run.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Dice;

/// The broker's unit.
pub(super) const BROKER: &str = "runner-guestd.service";
/// How long to look for a helper to kill; most pulls are over sooner.
const HELPER_LIMIT: Duration = Duration::from_millis(500);

/// How often each thing was done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kills {
    pub(super) brokers: usize,
    pub(super) fetchers: usize,
    pub(super) unpackers: usize,
    pub(super) collections: usize,
}

/// Kills and collects.
#[derive(Debug)]
pub(super) struct Chaos {
    dice: Mutex<Dice>,
    kills: Mutex<Kills>,
    /// Counts the begin and the end of each killing, so it is odd while one is under way.
    disturbances: AtomicUsize,
}

impl Chaos {
    pub(super) fn new(seed: u64) -> Chaos {
        // Images are made from the seed itself.
        Chaos { dice: Mutex::new(Dice::new(!seed)), kills: Mutex::default(), disturbances: AtomicUsize::new(0) }
    }

    /// For [`Chaos::disturbed_since`], at the beginning of what may be disturbed.
    pub(super) fn disturbances(&self) -> usize {
        self.disturbances.load(Ordering::SeqCst)
    }

    /// Whether something was killed since, or was being killed even then.
    pub(super) fn disturbed_since(&self, before: usize) -> bool {
        !before.is_multiple_of(2) || self.disturbances() != before
    }

    pub(super) fn kills(&self) -> Kills {
        *self.kills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn below(&self, end: usize) -> usize {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner).below(end)
    }

    fn count(&self, what: impl FnOnce(&mut Kills)) {
        what(&mut self.kills.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Kills something every few successes and collects in between, until it is `over`.
    pub(super) fn run(&self, successes: &AtomicUsize, over: &AtomicBool) {
        while self.wait_for(successes.load(Ordering::Relaxed) + 2 + self.below(4), successes, over) {
            // A random moment is the point of it.
            std::thread::sleep(Duration::from_millis(self.below(1000) as u64));
            match self.below(10) {
                0..5 => self.kill_broker(),
                5..7 => self.kill_helper("image-fetch"),
                7..8 => self.kill_helper("layer-unpack"),
                8 => self.collect(&["--all"]),
                _ => self.collect(&["--until", "10s"]),
            }
        }
    }

    /// False if it is over before.
    fn wait_for(&self, wanted: usize, successes: &AtomicUsize, over: &AtomicBool) -> bool {
        // Something that fails for ever must not keep everything else alive for ever.
        while successes.load(Ordering::Relaxed) < wanted {
            if over.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        !over.load(Ordering::Relaxed)
    }

    fn kill_broker(&self) {
        self.disturbances.fetch_add(1, Ordering::SeqCst);
        let killed = systemctl(&["kill", "--signal=KILL", BROKER]).is_ok();
        // Until its successor has removed what it left, runs that began before may still end.
        let started = systemctl(&["start", BROKER]).is_ok();
        self.disturbances.fetch_add(1, Ordering::SeqCst);
        if killed && started {
            self.count(|kills| kills.brokers += 1);
        }
    }

    fn kill_helper(&self, name: &str) {
        let deadline = Instant::now() + HELPER_LIMIT;
        while Instant::now() < deadline {
            self.disturbances.fetch_add(1, Ordering::SeqCst);
            let killed = named(name).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
            self.disturbances.fetch_add(1, Ordering::SeqCst);
            if killed {
                self.count(|kills| match name {
                    "image-fetch" => kills.fetchers += 1,
                    _ => kills.unpackers += 1,
                });
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn collect(&self, scope: &[&str]) {
        let words = [&["image", "prune"], scope].concat();
        let status = Command::new("runnerctl").args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if status.is_ok_and(|status| status.success()) {
            self.count(|kills| kills.collections += 1);
        }
    }
}

/// A process with this name.
fn named(name: &str) -> Option<Pid> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim_end() == name).then(|| Pid::from_raw(pid))?
    })
}

/// `systemctl` with these arguments.
///
/// # Errors
/// When it cannot be started or fails.
pub(super) fn systemctl(arguments: &[&str]) -> Result<()> {
    let output = Command::new("systemctl").args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "systemctl {}: {errors}", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_while_something_is_being_killed_is_disturbed() {
        let chaos = Chaos::new(1);
        let before = chaos.disturbances();
        assert!(!chaos.disturbed_since(before));
        chaos.disturbances.fetch_add(1, Ordering::SeqCst);
        assert!(chaos.disturbed_since(before));
        let during = chaos.disturbances();
        assert!(chaos.disturbed_since(during));
        chaos.disturbances.fetch_add(1, Ordering::SeqCst);
        assert!(chaos.disturbed_since(before) && chaos.disturbed_since(during));
        assert!(!chaos.disturbed_since(chaos.disturbances()));
    }
}
