//! The image of the demo and of the benchmark: a small Debian, made on the spot, since no public registry is needed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::child::Program;
use crate::lab::{CACHE, Lab};
use crate::progress::Phase;

/// Its name for the demo's workflow.
pub(crate) const HELLO: &str = "hello-runner:latest";
/// Its name for the benchmark, which nothing else gives to another image.
pub(crate) const BENCH: &str = "bench-runner:latest";

/// Another release than the lab's default, so that one sees whose userland a step runs on.
const RELEASE: &str = "bookworm";

/// Bump when the recipe below changes.
const RECIPE: u32 = 1;

/// Puts the image into the lab's store by this name unless the name is there.
pub(crate) fn ensure(lab: &Lab, reference: &str) -> Result<()> {
    let listed = lab.inside(["runnerctl", "image", "ls", "--json"]).read()?;
    let images: Vec<serde_json::Value> = serde_json::from_str(&listed).context("runnerctl image ls --json")?;
    let name = format!("docker.io/library/{reference}");
    if images.iter().any(|image| image.get("reference").and_then(serde_json::Value::as_str) == Some(&name)) {
        return Ok(());
    }
    let tar = tree()?;
    let phase = Phase::start("image", &format!("importing {reference}"));
    lab.put(&tar, "/var/tmp/hello-runner.tar")?;
    let imported = lab.inside(["runnerctl", "image", "import", reference, "/var/tmp/hello-runner.tar"]).read();
    lab.inside(["rm", "--force", "/var/tmp/hello-runner.tar"]).run()?;
    imported?;
    phase.end(&format!("imported {reference}"));
    Ok(())
}

/// The image's root tree as a tar, cached.
fn tree() -> Result<PathBuf> {
    let folder = Path::new(CACHE).join("images");
    let tar = folder.join(format!("hello-runner-{RELEASE}-{RECIPE}.tar"));
    if tar.exists() {
        return Ok(tar);
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let phase = Phase::start("image", &format!("making a small Debian {RELEASE} with mmdebstrap"));
    let aside = tar.with_extension("unfinished.tar");
    let excludes = ["doc", "info", "locale", "man"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*"));
    Program::new("mmdebstrap")
        .args(["--variant=essential", "--include=busybox", r#"--aptopt=Acquire::Languages "none""#, "--quiet"])
        .args(excludes)
        .arg(RELEASE)
        .arg(&aside)
        .run()
        .context("make the image")?;
    fs::rename(&aside, &tar).with_context(|| format!("rename {}", aside.display()))?;
    phase.end("made the image's root tree");
    Ok(tar)
}
