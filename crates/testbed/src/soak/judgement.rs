//! What must be so when a soak is over.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::chaos::{BROKER, systemctl};

/// The store's folder.
const STORE: &str = "/var/lib/runner/images";
/// The kernel and machined forget what was killed a moment later.
const A_MOMENT: Duration = Duration::from_secs(5);

/// Looks at the machine and gives a line for each thing that must not be. The store must not be empty, or it proves
/// nothing.
pub(super) fn judge(images: usize) -> Result<Vec<String>> {
    // A broker that starts removes what an earlier life left, which is its promise; it is alive at this moment.
    systemctl(&["start", BROKER])?;
    let deadline = Instant::now() + A_MOMENT;
    let mut faults = loop {
        let left = left_over()?;
        if left.is_empty() || Instant::now() > deadline {
            break left;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (verified, said) = run("runnerctl", &["image", "verify", "--quiet"])?;
    if verified != Some(0) {
        faults.push(format!("runnerctl image verify: exit status {verified:?}: {said}"));
    }
    if images > 0 && entries(&format!("{STORE}/layers")).is_empty() {
        faults.push("the store has no layer left to look at".to_owned());
    }
    // This sweeps, and removes no image.
    let (pruned, said) = run("runnerctl", &["image", "prune"])?;
    if pruned != Some(0) {
        faults.push(format!("runnerctl image prune: exit status {pruned:?}: {said}"));
    }
    faults.extend(entries(&format!("{STORE}/tmp")).into_iter().map(|name| format!("not swept: {name}")));
    // And the store can be emptied.
    let (pruned, said) = run("runnerctl", &["image", "prune", "--all"])?;
    if pruned != Some(0) {
        faults.push(format!("runnerctl image prune --all: exit status {pruned:?}: {said}"));
    }
    for folder in ["layers", "refs", "images", "blobs/sha256"] {
        let left = entries(&format!("{STORE}/{folder}"));
        faults.extend(left.into_iter().map(|name| format!("in the store after everything was removed: {name}")));
    }
    Ok(faults)
}

/// Guests, jobs, mounts and processes.
fn left_over() -> Result<Vec<String>> {
    let mut left = Vec::new();
    let mut lines = |kind: &str, program: &str, arguments: &[&str]| -> Result<()> {
        let (_, text) = run(program, arguments)?;
        left.extend(text.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{kind} {line}")));
        Ok(())
    };
    lines("machine", "machinectl", &["list", "--no-legend", "--no-pager"])?;
    let patterns = ["runner-guest-*", "runner-guests-*", "runner-image-fetch@*"];
    let units = [&["list-units", "--all", "--plain", "--no-legend", "--no-pager"][..], &patterns].concat();
    lines("unit", "systemctl", &units)?;
    let (status, jobs) = run("runnerctl", &["jobs", "--json"])?;
    if status != Some(0) || jobs.trim() != "[]" {
        left.push(format!("jobs {jobs}"));
    }
    for folder in ["/run/runner/guests", "/var/lib/runner/jobs", "/run/systemd/nspawn/propagate"] {
        left.extend(entries(folder).into_iter().map(|path| format!("folder {path}")));
    }
    let mounts = fs::read_to_string("/proc/1/mountinfo").context("read the mounts of PID 1")?;
    left.extend(mounts.lines().filter(|line| is_of_a_guest(line)).map(|line| format!("mount {line}")));
    for entry in fs::read_dir("/proc")?.flatten() {
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if ["image-fetch", "layer-unpack", "guest-enter", "systemd-nspawn"].contains(&comm.trim_end()) {
            left.push(format!("process {} {}", entry.file_name().display(), comm.trim_end()));
        }
    }
    Ok(left)
}

/// proc_pid_mountinfo(5): the fifth field is the mount point.
fn is_of_a_guest(line: &str) -> bool {
    let place = line.split(' ').nth(4).unwrap_or_default();
    ["/run/runner/", "/var/lib/runner/"].iter().any(|folder| place.starts_with(folder))
}

/// Paths of what is in a folder; nothing if there is none.
fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// Exit status, and both outputs.
fn run(program: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("start {program}"))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_by_where_they_are() {
        assert!(is_of_a_guest("1 2 0:3 / /run/runner/guests/aaaa0 rw - overlay overlay rw"));
        assert!(!is_of_a_guest("1 2 0:3 /run/runner /mnt rw - tmpfs tmpfs rw"));
        assert!(!is_of_a_guest("1 2 0:3 / /run/runner-other rw - tmpfs tmpfs rw"));
    }
}
