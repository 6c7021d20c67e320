//! Removes what systemd-nspawn leaves behind on the host when its whole control group is killed: two folders under
//! `/run/systemd/nspawn`, one of them a mount point. Runs as `ExecStopPost=` of a guest's unit, so also when the broker
//! is not there to do it. (`systemd-nspawn --cleanup` does the same from systemd 257 on.)

use std::path::Path;
use std::process::ExitCode;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

const FOLDERS: [&str; 2] = ["/run/systemd/nspawn/unix-export", "/run/systemd/nspawn/propagate"];

fn main() -> ExitCode {
    let Some(machine) = std::env::args().nth(1).filter(|name| is_ours(name)) else {
        return ExitCode::FAILURE;
    };
    let mut clean = true;
    for folder in FOLDERS {
        let path = Path::new(folder).join(&machine);
        match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // EINVAL: not a mount point.
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
            Err(_) => clean = false,
        }
        match rustix::fs::rmdir(&path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(_) => clean = false,
        }
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether this is the name of one of our machines, and nothing that could lead out of the folders.
fn is_ours(name: &str) -> bool {
    name.strip_prefix("runner-")
        .is_some_and(|id| id.len() == 5 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn only_our_machines_are_swept() {
        assert!(is_ours("runner-k7q20"));
        for name in ["", "runner-", "runner-../x", "runner-k7q2", "runner-k7q200", "web", "runner-K7Q20"] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
