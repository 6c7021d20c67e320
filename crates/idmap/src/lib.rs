//! Idmapped mounts: the same files, with other owners.
//!
//! An idmapped mount takes its mapping from a user namespace. Read as a table of a mount, a line of `uid_map` says: the
//! id stored on disk (left) appears as this id of the host (right); see mount_setattr(2). The kernel gives no other way
//! to write such a table than a process in a new user namespace, so one is started, described and ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

/// One line of the table: `count` ids from `disk` on appear as those from `host` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// First id on disk.
    pub disk: u32,
    /// First id of the host it appears as.
    pub host: u32,
    /// How many.
    pub count: u32,
}

/// The table for the layers of an image: disk ids 0 to 65,535 are the guest's own.
pub fn image(base: u32) -> Vec<Line> {
    vec![Line { disk: 0, host: base, count: 65_536 }]
}

/// The table for the runner's files in a guest.
///
/// The runner's user on disk is `primary` in the guest, the user the container runs as, so that the container can
/// write what the runner made and the runner owns what the container made. Every other id of the guest is stored as an
/// id of the job's own range, which no user of the host has.
pub fn workspace(owner: u32, primary: u32, guest_base: u32, job_base: u32) -> Vec<Line> {
    let mut lines = Vec::with_capacity(3);
    if primary > 0 {
        lines.push(Line { disk: job_base, host: guest_base, count: primary });
    }
    lines.push(Line { disk: owner, host: guest_base + primary, count: 1 });
    if primary < 65_535 {
        lines.push(Line { disk: job_base + primary + 1, host: guest_base + primary + 1, count: 65_535 - primary });
    }
    lines
}

/// A user namespace that holds a table for users and one for groups.
///
/// # Errors
/// Those of clone(2) and of writing `/proc/PID/uid_map` (user_namespaces(7)): `CAP_SETUID` and `CAP_SETGID` are needed.
pub fn namespace(users: &[Line], groups: &[Line]) -> io::Result<OwnedFd> {
    let child = Parked::start()?;
    let folder = format!("/proc/{}", child.0);
    fs::write(format!("{folder}/uid_map"), table(users))?;
    fs::write(format!("{folder}/gid_map"), table(groups))?;
    Ok(rustix::fs::open(format!("{folder}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn table(lines: &[Line]) -> String {
    lines.iter().map(|line| format!("{} {} {}\n", line.disk, line.host, line.count)).collect()
}

/// A process that does nothing but hold a user namespace.
struct Parked(libc::pid_t);

impl Parked {
    #[expect(unsafe_code, reason = "clone(2) has no safe form")]
    fn start() -> io::Result<Self> {
        let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
        // SAFETY: without CLONE_VM the child has its own copy of everything; it calls nothing but pause(2) and
        // _exit(2), which are safe after a clone of a process with threads.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        match libc::pid_t::try_from(pid) {
            Ok(0) => loop {
                // SAFETY: no arguments. The parent ends this process by SIGKILL; should the parent die, the death
                // signal set here does. Both take no memory of ours.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::pause();
                }
            },
            Ok(pid) if pid > 0 => Ok(Self(pid)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0) {
            // It is our child and not yet waited for, so the id cannot be anybody else's.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
    }
}

/// A detached copy of the mount at `tree`, or of the part of it below `tree`, with the owners of `namespace` and these
/// `MOUNT_ATTR_*` flags (mount_setattr(2)). It goes with the last descriptor unless it is moved somewhere.
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2); `EINVAL` where the file system has no idmapped mounts.
pub fn detached(tree: &impl AsFd, namespace: Option<&OwnedFd>, attributes: u64) -> io::Result<OwnedFd> {
    let mount = open_tree(
        tree,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    set_attributes(&mount, namespace, attributes)?;
    Ok(mount)
}

#[expect(unsafe_code, reason = "no library has mount_setattr(2) yet")]
fn set_attributes(mount: &OwnedFd, namespace: Option<&OwnedFd>, attributes: u64) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes | if namespace.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0)),
    };
    // SAFETY: the path is a C string, the structure is of the size given, and both outlive the call.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The id a disk id appears as, by a table.
    fn appears(lines: &[Line], disk: u32) -> Option<u32> {
        lines.iter().find_map(|line| {
            let offset = disk.checked_sub(line.disk)?;
            (offset < line.count).then(|| line.host + offset)
        })
    }

    #[test]
    fn the_runner_is_the_user_the_container_runs_as() {
        for primary in [0, 1, 1_000, 65_534, 65_535] {
            let lines = workspace(998, primary, 600_000, 700_000);
            assert_eq!(appears(&lines, 998), Some(600_000 + primary), "{primary}");
            assert_eq!(lines.iter().map(|line| line.count).sum::<u32>(), 65_536, "{primary}");
            // Every id of the guest is stored as exactly one id.
            let mut hosts: Vec<u32> = lines.iter().flat_map(|line| line.host..line.host + line.count).collect();
            hosts.sort_unstable();
            assert_eq!(hosts, (600_000..665_536).collect::<Vec<_>>(), "{primary}");
        }
    }

    #[test]
    fn nobody_else_of_the_host_is_in_the_table() {
        let lines = workspace(998, 0, 600_000, 700_000);
        for id in [0, 1, 997, 999, 65_534] {
            assert_eq!(appears(&lines, id), None, "{id}");
        }
        assert_eq!(appears(&lines, 700_001), Some(600_001));
    }
}
