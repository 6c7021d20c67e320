//! The Debian packages the lab needs on the machine it runs on.

use std::path::Path;

use anyhow::{Result, bail};

use crate::child::{Program, command_line};
use crate::progress::Phase;

/// A program the lab calls, and the package that has it.
const NEEDED: &[(&str, &str)] = &[
    ("systemd-nspawn", "systemd-container"),
    ("mmdebstrap", "mmdebstrap"),
    ("setsid", "util-linux"),
    ("setpriv", "util-linux"),
    ("sha256sum", "coreutils"),
    ("tar", "tar"),
    ("unshare", "util-linux"),
    ("zstd", "zstd"),
];

/// Installs what is missing. Needs root, as everything the lab does.
pub(crate) fn ensure() -> Result<()> {
    require_root()?;
    let missing = missing(&|program| installed(program));
    if missing.is_empty() {
        return Ok(());
    }
    let install = [&["apt-get", "install", "--yes", "--no-install-recommends"][..], &missing].concat();
    if !installed("apt-get") {
        bail!("this machine lacks {}: install what Debian calls by these names and try again", missing.join(", "));
    }
    let phase = Phase::start("packages", &format!("installing {}", missing.join(", ")));
    Program::new("apt-get").args(["update", "--quiet=2"]).run()?;
    Program::new(install[0]).args(&install[1..]).env("DEBIAN_FRONTEND", "noninteractive").run()?;
    phase.end(&format!("installed {}", missing.join(", ")));
    Ok(())
}

/// Fails with the command to run when we are not root.
pub(crate) fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    bail!("the lab needs root to boot a machine: run `sudo env \"PATH=$PATH\" cargo xtask {}`", command_line(&words))
}

fn missing(installed: &dyn Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<&str> = Vec::new();
    for (program, package) in NEEDED {
        if !installed(program) && !packages.contains(package) {
            packages.push(package);
        }
    }
    packages
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Into::into);
    std::env::split_paths(&path).chain(standard).any(|dir: std::path::PathBuf| Path::new(&dir).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_of_missing_programs_are_installed() {
        assert_eq!(missing(&|_| true), Vec::<&str>::new());
        assert_eq!(missing(&|program| program != "mmdebstrap"), ["mmdebstrap"]);
        assert_eq!(missing(&|program| program == "tar").len(), 5);
    }
}
