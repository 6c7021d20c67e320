//! Other container tools, for the lab host of a benchmark that compares with them. They are no part of the root tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use super::overlay::Overlay;
use super::suite::Suite;
use super::{CACHE, Lab, tree};
use crate::child::Program;
use crate::progress::Phase;

/// Packages added to the root tree.
const PACKAGES: &[&str] = &["podman", "skopeo", "umoci"];

/// Change it when how the archive is made changes.
const RECIPE: u32 = 1;

/// Installs the tools in the running lab host unless they are there.
pub(crate) fn ensure(lab: &Lab) -> Result<()> {
    let there = lab.inside(["sh", "-c", "command -v podman skopeo umoci"]).output()?;
    if there.status.success() {
        return Ok(());
    }
    let archive = {
        let _lock = Lab::lock()?;
        archive(Path::new(CACHE), lab.suite())?
    };
    let phase = Phase::start("tools", "installing");
    Program::new("cat").arg("--").arg(&archive).pipe_into(lab.inside([
        "tar",
        "--extract",
        "--file",
        "-",
        "--directory",
        "/",
    ]))?;
    phase.end(&format!("installed {}", PACKAGES.join(", ")));
    Ok(())
}

/// What the packages add to the cached root tree, as an archive; cached as well.
fn archive(cache: &Path, suite: Suite) -> Result<PathBuf> {
    let words = words(suite);
    let hash = Sha256::digest(format!("{RECIPE}\n{}", words.join("\n")));
    let digest: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let archive = cache.join(format!("{}-tools-{digest}.tar", suite.tree_name()));
    if archive.exists() {
        return Ok(archive);
    }
    let base = tree::cached(cache, suite)?;
    let phase = Phase::start("tools", "making an archive of podman, skopeo and umoci");
    let aside = cache.join(format!("{}-tools{}{}", suite.tree_name(), tree::UNFINISHED, std::process::id()));
    let upper = aside.join("upper");
    Overlay { lower: vec![base], upper: &upper, scratch: &aside }.run(&words, "", |program| program)?;
    let packed = aside.join("tar");
    // Whiteouts of the package manager's own files mean nothing where they are unpacked; device nodes have no names here.
    let whiteouts = Program::new("find").arg(&upper).args(["-type", "c", "-delete"]);
    whiteouts.run()?;
    let pack = Program::new("tar").args(["--create", "--numeric-owner", "--xattrs", "--directory"]).arg(&upper);
    pack.arg("--file").arg(&packed).arg(".").run()?;
    fs::rename(&packed, &archive).with_context(|| format!("rename {}", packed.display()))?;
    tree::remove(&aside)?;
    phase.end(&format!("{} made in {}", archive.file_name().unwrap_or_default().display(), cache.display()));
    Ok(archive)
}

/// mmdebstrap on top of the suite's root tree.
fn words(suite: Suite) -> Vec<String> {
    let mut words = vec!["mmdebstrap".to_owned(), "--mode=root".to_owned(), "--variant=custom".to_owned()];
    words.push("--skip=check/empty".to_owned());
    words.push(format!("--include={}", PACKAGES.join(",")));
    words.push(r#"--aptopt=Acquire::Languages "none""#.to_owned());
    words.extend(["--quiet", suite.name()].map(str::to_owned));
    words
}
