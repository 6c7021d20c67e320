//! The control group a lab host lives in, on machines where no systemd makes one.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};

use super::timespec;

/// Where the hierarchies are mounted that a nested systemd uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// cgroup v2.
    pub(crate) unified: PathBuf,
    /// The v1 hierarchy called `systemd`, on machines that still mount v1 controllers: nspawn makes a group there too.
    pub(crate) named: Option<PathBuf>,
}

impl Hierarchies {
    /// Reads our own mount table.
    pub(crate) fn mounted() -> Result<Self> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        Self::parse(&text).context("no cgroup2 file system is mounted: run `mount -t cgroup2 cgroup2 /sys/fs/cgroup`")
    }

    /// proc_pid_mountinfo(5): field 5 is the mount point; after a lone `-` come type, source and super options.
    fn parse(mountinfo: &str) -> Option<Self> {
        let (mut unified, mut named) = (None, None);
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(point) = before.split(' ').nth(4) else { continue };
            let after: Vec<&str> = after.split(' ').collect();
            match after[..] {
                ["cgroup2", ..] => unified = unified.or(Some(PathBuf::from(point))),
                ["cgroup", _, options] if options.split(',').any(|option| option == "name=systemd") => {
                    named = named.or(Some(PathBuf::from(point)));
                }
                _ => {}
            }
        }
        Some(Self { unified: unified?, named })
    }

    /// The directories of a group in every hierarchy; `path` is as /proc/PID/cgroup gives it.
    pub(crate) fn directories(&self, path: &str) -> Vec<PathBuf> {
        let path = path.trim_start_matches('/');
        std::iter::once(&self.unified).chain(&self.named).map(|mount| mount.join(path)).collect()
    }
}

/// The path of a process in the cgroup v2 hierarchy.
pub(crate) fn of_process(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    unified_path(&text).map(str::to_owned).with_context(|| format!("{path} names no cgroup2 group"))
}

fn unified_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Kills every process of a group and its descendants, and waits until they are gone.
pub(crate) fn kill(group: &Path, limit: Duration) -> Result<()> {
    let path = group.join("cgroup.events");
    match fs::write(group.join("cgroup.kill"), "1") {
        Err(error) if is_gone(&error) && !group.exists() => return Ok(()),
        outcome => outcome.with_context(|| format!("write {}/cgroup.kill (needs Linux 5.14)", group.display()))?,
    }
    let deadline = Instant::now() + limit;
    loop {
        // A change after the last read of this descriptor is an exceptional condition of it (cgroups(7)).
        let (events, text) = match read_events(&path) {
            Err(error) if is_gone(&error) => return Ok(()),
            outcome => outcome.with_context(|| format!("read {}", path.display()))?,
        };
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            bail!("processes in {} survive SIGKILL", group.display());
        };
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timespec(left)))?;
    }
}

fn read_events(path: &Path) -> io::Result<(File, String)> {
    let mut file = File::open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((file, text))
}

/// No such file, or (ENODEV) an open one whose group was removed: systemd removes a unit's group as soon as it is empty.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// Removes a group and its descendants, which must be empty; what is not there is fine.
pub(crate) fn remove(group: &Path) -> Result<()> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", group.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", group.display()))?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("remove {}", group.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
30 23 0:25 / /sys/fs/cgroup rw,relatime - tmpfs cgroup rw,mode=755\n\
31 30 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
38 30 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
39 30 0:34 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw\n";

    #[test]
    fn hierarchies_of_a_hybrid_and_of_a_unified_machine() {
        let hybrid = Hierarchies::parse(HYBRID).unwrap();
        assert_eq!(
            hybrid.directories("/lab"),
            [PathBuf::from("/sys/fs/cgroup/unified/lab"), PathBuf::from("/sys/fs/cgroup/systemd/lab")]
        );
        let unified = "30 23 0:25 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let unified = Hierarchies::parse(unified).unwrap();
        assert_eq!(unified.directories("lab"), [PathBuf::from("/sys/fs/cgroup/lab")]);
        assert_eq!(Hierarchies::parse("27 1 254:0 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn the_unified_path_of_a_process() {
        assert_eq!(unified_path("9:name=systemd:/x\n0::/lab/payload/init.scope\n"), Some("/lab/payload/init.scope"));
        assert_eq!(unified_path("9:name=systemd:/x\n"), None);
    }
}
