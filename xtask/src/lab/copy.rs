//! Copying files and folders into the lab host.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Lab;
use crate::child::Program;

/// Copies `source` to `target`, owned by root, modes kept. A target that ends with `/` or is a folder there gets the file
/// inside it; a folder's content is merged into the target.
pub(super) fn put(lab: &Lab, source: &Path, target: &str) -> Result<()> {
    ensure!(target.starts_with('/'), "the target `{target}` must be an absolute path in the lab host");
    let meta = std::fs::metadata(source).with_context(|| format!("read {}", source.display()))?;
    // The lab host may hold anything; so the copy is made by programs inside it, never by path from here.
    if meta.is_dir() {
        let pack = Program::new("tar").arg("--create").arg("--directory").arg(source).arg(".");
        let script = r#"mkdir -p -- "$1" && exec tar --extract --no-same-owner --same-permissions --directory "$1""#;
        return pack.pipe_into(lab.inside(["sh", "-c", script, "sh", target]));
    }
    ensure!(meta.is_file(), "{} is neither a file nor a folder", source.display());
    let name = source.file_name().context("the source has no file name")?;
    let is_folder = lab.inside(["test", "-d", target]).output()?.status.success();
    let mode = meta.permissions().mode() & 0o7777;
    if is_folder || target.ends_with('/') {
        let name = name.to_str().context("the source's file name is not UTF-8")?;
        return put_file(lab, source, &format!("{}/{name}", target.trim_end_matches('/')), mode);
    }
    put_file(lab, source, target, mode)
}

/// Copies one file to exactly this path, making the folders above it. A program that runs from the path keeps its old file.
pub(super) fn put_file(lab: &Lab, source: &Path, target: &str, mode: u32) -> Result<()> {
    let mode = format!("--mode={mode:o}");
    let install = lab.inside(["install", "-D", &mode, "--", "/dev/stdin", target]);
    Program::new("cat").arg("--").arg(source).pipe_into(install)
}
