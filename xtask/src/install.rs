//! `cargo xtask install`: the product onto this machine, by the same table as the package.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::child::Program;
use crate::lab::require_root;
use crate::manifest::{Installed, Source};
use crate::progress::{Phase, note};
use crate::workspace::{Binaries, Profile, Workspace};

/// Builds and installs everything but what only the lab gets, then starts the units.
pub(crate) fn run(workspace: &Workspace) -> Result<u8> {
    require_root()?;
    ensure!(
        Path::new("/run/systemd/system").is_dir(),
        "systemd does not run this machine: try the product in the lab, with `cargo xtask demo`"
    );
    for (program, package) in [("systemd-nspawn", "systemd-container"), ("nft", "nftables"), ("ip", "iproute2")] {
        if Program::new(program).arg("--version").output().is_err() {
            bail!("{program} is missing: run `apt-get install {package}`");
        }
    }
    let binaries = workspace.build(Profile::Release)?;

    let phase = Phase::start("install", "copying");
    let mut changed = Vec::new();
    for file in workspace.manifest().files.iter().filter(|file| !file.lab_only) {
        if place(file, &source(file, workspace, &binaries)?).with_context(|| format!("install {}", file.path))? {
            changed.push(file);
        }
    }
    phase.end(&format!("{} files, {} of them new", workspace.manifest().files.len(), changed.len()));

    for (program, arguments) in [
        ("systemd-sysusers", &[][..]),
        ("systemd-tmpfiles", &["--create", "runner-appliance.conf"][..]),
        ("/usr/lib/systemd/systemd-sysctl", &["50-runner-appliance.conf"][..]),
        ("systemctl", &["daemon-reload"][..]),
    ] {
        Program::new(program).args(arguments).run()?;
    }
    for unit in &workspace.manifest().enabled {
        Program::new("systemctl").args(["enable", "--quiet", "--now", unit]).run()?;
    }
    let running: Vec<&str> = changed.iter().filter_map(|file| file.unit.as_deref()).collect();
    if running.iter().any(|unit| unit.ends_with(".service")) {
        // Jobs under way would lose their containers: that is for the administrator to decide.
        note(
            "A broker that was running still runs the old program: `systemctl restart runner-guestd.service` changes \
              that, and ends the jobs under way.",
        );
    }
    Ok(0)
}

fn source(file: &Installed, workspace: &Workspace, binaries: &Binaries) -> Result<PathBuf> {
    match &file.source {
        Source::Program { name, .. } => {
            binaries.get(name).cloned().with_context(|| format!("the workspace has no binary `{name}`"))
        }
        Source::File(path) => Ok(workspace.root().join(path)),
    }
}

/// Writes the file beside its place and renames it, unless it is there already. Whether it was written.
fn place(file: &Installed, source: &Path) -> Result<bool> {
    let target = Path::new(&file.path);
    let bytes = fs::read(source).with_context(|| format!("read {}", source.display()))?;
    let same = fs::read(target).is_ok_and(|old| old == bytes)
        && fs::metadata(target)?.permissions().mode() & 0o7777 == file.mode;
    if same {
        return Ok(false);
    }
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    let aside = PathBuf::from(format!("{}.new", file.path));
    fs::write(&aside, bytes)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(file.mode))?;
    fs::rename(&aside, target)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once() {
        let folder = std::env::temp_dir().join(format!("xtask-install-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let source = folder.join("source");
        fs::write(&source, "content").unwrap();
        let file = Installed {
            source: Source::File("source".into()),
            path: folder.join("a/b/target").display().to_string(),
            mode: 0o755,
            unit: None,
            lab_only: false,
        };
        assert!(place(&file, &source).unwrap());
        assert!(!place(&file, &source).unwrap());
        fs::set_permissions(&file.path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(place(&file, &source).unwrap());
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "content");
        assert_eq!(fs::metadata(&file.path).unwrap().permissions().mode() & 0o7777, 0o755);
        fs::remove_dir_all(folder).unwrap();
    }
}
