//! What exists on the lab host that belongs to a job. Between jobs it must be nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::host;

/// Ids of guests begin here.
const GUEST_IDS: u32 = 524_288;

/// machined and the kernel forget a killed machine a moment after its last process is gone.
const A_MOMENT: Duration = Duration::from_secs(3);

/// What an idle host has of the kinds that are not ours alone.
static IDLE: OnceLock<BTreeSet<String>> = OnceLock::new();

/// Makes the host idle and remembers what it has then.
pub(crate) fn settle() {
    remove();
    IDLE.get_or_init(shared);
}

/// Looks until nothing is left or a moment has passed; each line names one thing.
pub(crate) fn look() -> BTreeSet<String> {
    let deadline = Instant::now() + A_MOMENT;
    loop {
        let mut left = now();
        left.extend(shared().difference(IDLE.get().expect("settled")).cloned());
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes everything by force: what a broker finds when it starts, it reaps.
pub(crate) fn remove() {
    host::run(["systemctl", "stop", "runner-guestd.service"]);
    host::run(["systemctl", "kill", "--signal=KILL", "runner-guests.slice"]);
    host::run(["systemctl", "reset-failed"]);
    host::run([
        "sh",
        "-c",
        "for folder in /run/systemd/nspawn/*/runner-?????; do umount -l $folder; rmdir $folder; done",
    ]);
    host::run(["find", "/home/runner", "-uid", "+524287", "-exec", "chown", "-h", "runner:runner", "{}", "+"]);
    host::run(["systemctl", "start", "runner-guestd.socket"]).expect(0);
    host::run(["systemctl", "start", "runner-guestd.service"]).expect(0);
}

/// What is ours, at this moment.
pub(crate) fn now() -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    let mut add = |kind: &str, what: &str| {
        left.insert(format!("{kind} {what}"));
    };
    for line in host::sh("machinectl list --no-legend --no-pager").lines() {
        add("machine", line.split_whitespace().next().unwrap_or(line));
    }
    let units = "systemctl list-units --all --plain --no-legend --no-pager 'runner-guest-*' 'runner-guests-*' \
                 'runner-image-fetch@*'";
    for line in host::sh(units).lines() {
        add("unit", line);
    }
    directories(Path::new("/sys/fs/cgroup/runner.slice/runner-guests.slice"), &mut |path| add("control group", path));
    for folder in ["/run/runner/guests", "/var/lib/runner/jobs"] {
        entries(folder, &mut |path| add("folder", path));
    }
    for folder in ["/run/systemd/nspawn/propagate", "/run/systemd/nspawn/unix-export"] {
        entries(folder, &mut |path| add("folder of systemd-nspawn", path));
    }
    for (whose, pid) in [("host", Some(1)), ("broker", host::broker())] {
        let Some(pid) = pid else { continue };
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in mounts.lines().filter(|line| is_our_mount(line)) {
            add(&format!("mount of the {whose}"), line);
        }
    }
    processes(&mut |process| add("process", process));
    for line in host::sh("find /home/runner -uid +524287 -o -gid +524287").lines() {
        add("file of a guest's user", line);
    }
    left
}

/// Links, rules, named network namespaces.
fn shared() -> BTreeSet<String> {
    let script = "ip -o link | cut -d: -f2 | sed 's/^ */link/; s/@.*//'; nft -s list ruleset | sed 's/^/rule /'; \
                  ip netns list | sed 's/^/network namespace /'";
    host::sh(script).lines().map(str::to_owned).collect()
}

fn is_our_mount(line: &str) -> bool {
    // proc_pid_mountinfo(5): the fifth field is the mount point.
    let place = line.split(' ').nth(4).unwrap_or_default();
    let ours = ["/run/runner/", "/var/lib/runner/jobs", "/run/systemd/nspawn/propagate/", "/container"];
    ours.iter().any(|folder| place.starts_with(folder)) || line.contains(" - overlay ") && place.contains("runner")
}

fn entries(folder: &str, add: &mut dyn FnMut(&str)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        add(&entry.path().display().to_string());
    }
}

fn directories(folder: &Path, add: &mut dyn FnMut(&str)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add(&entry.path().display().to_string());
            directories(&entry.path(), add);
        }
    }
}

/// Processes with a guest's id, and programs of ours that serve a guest.
fn processes(add: &mut dyn FnMut(&str)) {
    for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let ours = [
            "systemd-nspawn ",
            "/usr/lib/runner/guest-",
            "/usr/lib/runner/container-hooks",
            "/usr/lib/runner/image-fetch",
            "/usr/lib/runner/layer-unpack",
        ];
        if uid.is_some_and(|uid: u32| uid >= GUEST_IDS) || ours.iter().any(|program| line.starts_with(program)) {
            add(&format!("{pid} uid {} {line}", uid.unwrap_or_default()));
        }
    }
}
