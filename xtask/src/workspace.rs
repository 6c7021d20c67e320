//! The cargo workspace: where it is, and its binaries.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::child::Program;
use crate::manifest::{Manifest, Source};
use crate::progress::Phase;

/// Packages whose binaries are neither installed nor run in the lab.
const NOT_PRODUCT: [&str; 2] = ["xtask", "runner-lab-tests"];

/// The checkout.
pub(crate) struct Workspace {
    root: PathBuf,
    manifest: Manifest,
}

/// How binaries are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// `dev`.
    Dev,
    /// `release`.
    Release,
}

/// Built binaries by name.
pub(crate) type Binaries = BTreeMap<String, PathBuf>;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// A line of `cargo build --message-format=json`.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

impl Workspace {
    /// The checkout this program belongs to.
    pub(crate) fn find() -> Result<Self> {
        // `cargo run` says where the package is now; the compiled-in path is where it was.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&package).parent().context("xtask has no parent folder")?.to_owned();
        let manifest = Manifest::read(&root)?;
        Ok(Self { root, manifest })
    }

    /// The repository's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What is installed where.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// `cargo` in the checkout.
    pub(crate) fn cargo(&self) -> Program {
        Program::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).dir(&self.root)
    }

    /// Builds all binaries of the product and of the testbed.
    pub(crate) fn build(&self, profile: Profile) -> Result<Binaries> {
        let mut phase = Phase::start("build", "compiling");
        if std::io::stderr().is_terminal() {
            // cargo draws its own progress.
            phase.yield_terminal();
        }
        let metadata = self.cargo().args(["metadata", "--no-deps", "--format-version", "1"]).read()?;
        let metadata: Metadata = serde_json::from_str(&metadata).context("read the output of cargo metadata")?;
        let statically = self.static_packages(&metadata);

        let mut build = vec!["build", "--workspace", "--bins"];
        let apart: BTreeSet<&str> = statically.iter().map(|(package, _)| *package).chain(NOT_PRODUCT).collect();
        for package in apart {
            build.extend(["--exclude", package]);
        }
        let mut binaries = self.compile(&build, &[], profile)?;
        for (package, name) in &statically {
            let rustc = ["rustc", "--package", package, "--bin", name];
            binaries.extend(self.compile(&rustc, &["-C", "target-feature=+crt-static"], profile)?);
        }
        phase.end(&format!("{} binaries", binaries.len()));
        Ok(binaries)
    }

    /// Every binary of a package that has one the manifest wants linked statically: (package, binary). One package is
    /// compiled in one way only, or its two forms would replace each other in the target folder.
    fn static_packages<'a>(&self, metadata: &'a Metadata) -> BTreeSet<(&'a str, &'a str)> {
        let wanted = |name: &str| {
            let source = Source::Program { name: name.to_owned(), linked_statically: true };
            self.manifest.files.iter().any(|file| file.source == source)
        };
        let packages = metadata.packages.iter().filter(|package| package.binaries().any(wanted));
        packages.flat_map(|package| package.binaries().map(|name| (package.name.as_str(), name))).collect()
    }

    fn compile(&self, command: &[&str], rustc_args: &[&str], profile: Profile) -> Result<Binaries> {
        let quiet = !std::io::stderr().is_terminal();
        let mut cargo = self.cargo().args(command).arg("--message-format=json-render-diagnostics");
        if profile == Profile::Release {
            cargo = cargo.arg("--release");
        }
        if quiet {
            cargo = cargo.arg("--quiet");
        }
        if !rustc_args.is_empty() {
            cargo = cargo.arg("--").args(rustc_args);
        }
        let line = cargo.line();
        let mut child = cargo.with_streams(Stdio::null(), Stdio::piped(), Stdio::inherit())?;
        let mut messages = String::new();
        let mut stdout = child.stdout.take().expect("stdout is piped");
        stdout.read_to_string(&mut messages).with_context(|| format!("read from `{line}`"))?;
        let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed: {status}; the compiler's messages are above");
        }
        executables(&messages)
    }
}

impl Package {
    fn binaries(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().filter(|target| target.is_binary()).map(|target| target.name.as_str())
    }
}

impl Target {
    fn is_binary(&self) -> bool {
        self.kind.iter().any(|kind| kind == "bin")
    }
}

fn executables(messages: &str) -> Result<Binaries> {
    let mut binaries = Binaries::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("read cargo's messages")?;
        if message.reason != "compiler-artifact" {
            continue;
        }
        if let (Some(target), Some(path)) = (message.target, message.executable)
            && target.is_binary()
        {
            binaries.insert(target.name, path);
        }
    }
    Ok(binaries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_binaries_of_finished_artifacts_count() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"lib","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"runnerctl","kind":["bin"]},"executable":"/t/debug/runnerctl"}
{"reason":"compiler-artifact","target":{"name":"build-script-build","kind":["custom-build"]},"executable":"/t/x"}
{"reason":"build-finished","success":true}
"#;
        let expected = Binaries::from([("runnerctl".to_owned(), PathBuf::from("/t/debug/runnerctl"))]);
        assert_eq!(executables(messages).unwrap(), expected);
        assert!(executables("{broken").is_err());
    }
}
