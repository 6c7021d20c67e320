//! The root of every guest: a few generated files. Its `/usr` is the host's own, so there is no guest image to build,
//! to download or to patch.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use runner_inside::enter::CONTAINER_ROOT;
use runner_model::unit::{GUEST_GENERATORS, GUEST_UNITS};

/// Empty directories of the tree: mount points, and what systemd expects to be there.
const DIRECTORIES: [&str; 13] = [
    "/etc/dbus-1",
    "/usr",
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/root",
    "/var/log",
    "/var/tmp",
    "/var/lib",
    "/etc/pam.d",
    "/etc/systemd",
];

const LINKS: [(&str, &str); 7] = [
    ("usr/bin", "/bin"),
    ("usr/sbin", "/sbin"),
    ("usr/lib", "/lib"),
    ("usr/lib64", "/lib64"),
    // machinectl(1) and systemd-run(1) look for the guest's bus below /var/run.
    ("../run", "/var/run"),
    ("/run/lock", "/var/lock"),
    ("runner-guest.target", "/etc/runner-guest/units/default.target"),
];

/// What PID 1 is allowed to start. Everything else of the host's units does not exist for it, which is most of the
/// difference between 25 ms and 200 ms. The bus is started with the guest but not waited for: it comes up while the host
/// puts the container's root together, and who connects earlier waits at its socket.
const UNITS: [(&str, &str); 7] = [
    (
        "runner-guest.target",
        "[Unit]\nDescription=Guest of the runner\nRequires=dbus.socket\nWants=dbus.service \
         systemd-journald.socket\nAfter=dbus.socket systemd-journald.socket\nAllowIsolate=yes\n",
    ),
    ("sysinit.target", "[Unit]\nDefaultDependencies=no\n"),
    ("basic.target", "[Unit]\nDefaultDependencies=no\n"),
    (
        "dbus.socket",
        "[Unit]\nDescription=D-Bus\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    ),
    (
        "dbus.service",
        "[Unit]\nDescription=D-Bus\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\n\
         ExecStart=/usr/bin/dbus-daemon --config-file=/etc/dbus-1/guest.conf --address=systemd: --nofork --nopidfile \
         --systemd-activation --syslog-only\n",
    ),
    (
        "systemd-journald.socket",
        "[Unit]\nDescription=Journal\nDefaultDependencies=no\n[Socket]\nListenStream=/run/systemd/journal/stdout\n\
         ListenDatagram=/run/systemd/journal/socket\nListenDatagram=/run/systemd/journal/dev-log\nPassCredentials=yes\n\
         PassSecurity=yes\nSocketMode=0666\nReceiveBuffer=8M\n",
    ),
    (
        "systemd-journald.service",
        "[Unit]\nDescription=Journal\nDefaultDependencies=no\nRequires=systemd-journald.socket\n\
         After=systemd-journald.socket\n[Service]\nType=notify\nSockets=systemd-journald.socket\n\
         ExecStart=/usr/lib/systemd/systemd-journald\nStandardOutput=null\nRestart=always\nRestartSec=0\n",
    ),
];

/// Units of the host's systemd that PID 1 needs by name when it is asked to stop or to isolate a target.
const HOST_UNITS: [&str; 6] =
    ["shutdown.target", "final.target", "umount.target", "exit.target", "slices.target", "sockets.target"];

/// For `machinectl shell`, whose unit opens a PAM session: whoever may ask for a shell here is root on the host.
const PAM: &str = "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\n\
    session optional pam_permit.so\npassword requisite pam_deny.so\n";

/// The bus's whole configuration. The host's own would have the daemon read dozens of files, most of its start.
const BUS: &str = include_str!("guest-bus.conf");

const FILES: [(&str, &str); 9] = [
    ("/etc/dbus-1/guest.conf", BUS),
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nmessagebus:x:101:101::/nonexistent:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("/etc/group", "root:x:0:\ntty:x:5:\nmessagebus:x:101:\nsystemd-journal:x:102:\nnogroup:x:65534:\n"),
    ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("/etc/systemd/journald.conf", "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nReadKMsg=no\nAudit=no\n"),
    ("/etc/pam.d/login", PAM),
    ("/etc/pam.d/other", PAM),
    // A mount point: each guest gets its own machine id.
    ("/etc/machine-id", ""),
    ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
];

/// Writes the tree to `folder`, beside an older one if there is one, and swaps it in.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    let staging = sibling(folder, "new");
    remove(&staging)?;
    fs::create_dir_all(&staging)?;
    for directory in DIRECTORIES.into_iter().chain([GUEST_UNITS, GUEST_GENERATORS, CONTAINER_ROOT]) {
        fs::create_dir_all(inside(&staging, directory))?;
    }
    for (target, link) in LINKS {
        symlink(target, inside(&staging, link))?;
    }
    for (path, content) in FILES {
        fs::write(inside(&staging, path), content)?;
    }
    for (name, content) in UNITS {
        fs::write(inside(&staging, GUEST_UNITS).join(name), content)?;
    }
    for name in HOST_UNITS {
        symlink(Path::new("/usr/lib/systemd/system").join(name), inside(&staging, GUEST_UNITS).join(name))?;
    }
    // nspawn refuses a tree without one, and looks at it before it mounts /usr.
    fs::copy("/usr/lib/os-release", staging.join("etc/os-release"))?;
    // So that the dynamic linker finds libraries in the folders this host's packages configure.
    if Path::new("/etc/ld.so.cache").exists() {
        fs::copy("/etc/ld.so.cache", staging.join("etc/ld.so.cache"))?;
    }

    let old = sibling(folder, "old");
    remove(&old)?;
    if folder.exists() {
        fs::rename(folder, &old)?;
    }
    fs::rename(&staging, folder)?;
    remove(&old)
}

fn sibling(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn inside(tree: &Path, path: &str) -> PathBuf {
    tree.join(path.trim_start_matches('/'))
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_can_be_written_twice() {
        let place = std::env::temp_dir().join(format!("guest-root-test-{}", std::process::id()));
        write(&place).unwrap();
        fs::write(place.join("left-over"), "").unwrap();
        write(&place).unwrap();
        assert!(!place.join("left-over").exists());
        assert!(place.join("etc/runner-guest/units/dbus.socket").is_file());
        assert_eq!(fs::read_link(place.join("var/run")).unwrap(), Path::new("../run"));
        assert_eq!(fs::read_dir(inside(&place, GUEST_GENERATORS)).unwrap().count(), 0);
        assert!(!sibling(&place, "old").exists() && !sibling(&place, "new").exists());
        fs::remove_dir_all(&place).unwrap();
    }
}
