//! Installing the product in the lab host, by the same table as the package.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Lab, copy};
use crate::child::Program;
use crate::manifest::{Installed, Source};
use crate::progress::Phase;
use crate::workspace::{Binaries, Workspace};

/// The official runner's folders below its root, which in the lab is the user's home (protocol text, section 11.1).
const RUNNER_FOLDERS: &[&str] = &[
    "/home/runner",
    "/home/runner/_work",
    "/home/runner/externals",
    "/home/runner/externals/node20",
    "/home/runner/externals/node20/bin",
    "/home/runner/externals/node20_alpine",
    "/home/runner/externals/node20_alpine/bin",
    "/home/runner/externals/node24",
    "/home/runner/externals/node24/bin",
    "/home/runner/externals/node24_alpine",
    "/home/runner/externals/node24_alpine/bin",
];

/// Prints one line for each argument: the mode and the digest of that file, or `absent`.
const DIGESTS: &str = r#"for path do
  if [ -f "$path" ]; then echo "$(stat -c %a "$path") $(sha256sum <"$path")"; else echo absent; fi
done"#;

/// Copies what differs, makes users and directories, restarts the units concerned and starts the enabled ones.
pub(super) fn install(lab: &Lab, workspace: &Workspace, binaries: &Binaries) -> Result<()> {
    let phase = Phase::start("install", "comparing");
    let files = sources(workspace, binaries)?;
    let changed = changed(lab, &files)?;
    let units: Vec<&str> = changed.iter().filter_map(|(file, _)| file.unit.as_deref()).collect();
    // A socket unit cannot be restarted under its service: stop first, the service before the socket.
    let mut stopped = units.clone();
    stopped.sort_by_key(|unit| unit.ends_with(".socket"));
    stopped.dedup();
    for unit in &stopped {
        lab.inside(["sh", "-c", r#"! systemctl --quiet is-active "$1" || exec systemctl stop "$1""#, "sh", unit])
            .run()?;
    }
    for (file, source) in &changed {
        copy::put_file(lab, source, &file.path, file.mode)?;
    }
    if !changed.is_empty() {
        lab.inside([
            "sh",
            "-ec",
            "systemd-sysusers; systemd-tmpfiles --create; \
                    /usr/lib/systemd/systemd-sysctl 50-runner-appliance.conf; systemctl daemon-reload",
        ])
        .run()?;
        lab.inside(["install", "-d", "-o", "runner", "-g", "runner", "-m", "0755"]).args(RUNNER_FOLDERS).run()?;
    }
    for unit in &workspace.manifest().enabled {
        start(lab, unit)?;
    }
    let names: Vec<&str> = changed.iter().filter_map(|(file, _)| file.path.rsplit('/').next()).collect();
    let outcome = match names.len() {
        0 => "nothing changed".to_owned(),
        1..=4 => names.join(", "),
        many => format!("{many} files"),
    };
    phase.end(&outcome);
    Ok(())
}

/// Every row with the file that has its bytes.
fn sources<'a>(workspace: &'a Workspace, binaries: &Binaries) -> Result<Vec<(&'a Installed, PathBuf)>> {
    let source = |file: &'a Installed| match &file.source {
        Source::Program { name, .. } => {
            let binary = binaries.get(name).cloned();
            Ok((file, binary.with_context(|| format!("packaging/files: the workspace has no binary `{name}`"))?))
        }
        Source::File(path) => Ok((file, workspace.root().join(path))),
    };
    workspace.manifest().files.iter().map(source).collect()
}

/// The rows whose file in the lab host is not as it should be.
fn changed<'a>(lab: &Lab, files: &[(&'a Installed, PathBuf)]) -> Result<Vec<(&'a Installed, PathBuf)>> {
    let here = Program::new("sha256sum").arg("--").args(files.iter().map(|(_, source)| source)).read()?;
    let there = lab.inside(["sh", "-c", DIGESTS, "sh"]).args(files.iter().map(|(file, _)| &file.path)).read()?;
    let (here, there): (Vec<_>, Vec<_>) = (here.lines().collect(), there.lines().collect());
    ensure!(here.len() == files.len() && there.len() == files.len(), "sha256sum printed fewer lines than it got files");
    let mut changed = Vec::new();
    for (index, (file, source)) in files.iter().enumerate() {
        // sha256sum puts a backslash before the digest of a file whose name it had to escape.
        let digest = here[index].trim_start_matches('\\').split(' ').next().context("a line without digest")?;
        if !is_same(there[index], file.mode, digest) {
            changed.push((*file, source.clone()));
        }
    }
    Ok(changed)
}

fn is_same(line: &str, mode: u32, digest: &str) -> bool {
    let mut words = line.split(' ');
    words.next() == Some(format!("{mode:o}").as_str()) && words.next() == Some(digest)
}

fn start(lab: &Lab, unit: &str) -> Result<()> {
    let enable = lab.inside(["systemctl", "enable", "--quiet", "--now", unit]);
    enable.run().with_context(|| format!("see why with `cargo xtask lab exec -- systemctl status {unit}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_when_mode_and_digest_are() {
        assert!(is_same("755 abc  -", 0o755, "abc"));
        assert!(!is_same("755 abd  -", 0o755, "abc"));
        assert!(!is_same("644 abc  -", 0o755, "abc"));
        assert!(!is_same("absent", 0o755, "abc"));
    }
}
