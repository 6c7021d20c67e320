//! Getting into the lab host, and what a test is.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// A test: a promise, what the lab must have for it, and the proof. The proof panics if the promise is broken.
#[derive(Clone)]
pub(crate) struct Test {
    pub(crate) path: &'static str,
    pub(crate) needs: &'static [Need],
    pub(crate) body: fn(),
}

/// Something not every lab host has. A test whose need is unmet is skipped, and counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    /// The official runner's stand-in.
    Simulator,
}

impl Test {
    /// `module::promise`.
    pub(crate) fn name(&self) -> &'static str {
        self.path.split_once("::").map_or(self.path, |(_, name)| name)
    }
}

/// Lists functions of the calling module as tests: `tests![one, two [Need::Simulator]]`.
macro_rules! tests {
    ($($name:ident $([$($need:expr),*])?),* $(,)?) => {
        vec![$(crate::lab::Test {
            path: concat!(module_path!(), "::", stringify!($name)),
            needs: &[$($($need),*)?],
            body: $name,
        }),*]
    };
}
pub(crate) use tests;

/// Set for the process in the lab host.
const INSIDE: &str = "RUNNER_LAB_INSIDE";

/// Our files in the lab host.
pub(crate) const FOLDER: &str = "/var/tmp/runner-lab-tests";

/// Whether this process runs in the lab host.
pub(crate) fn inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Runs this program again, in the lab host, with the same arguments. Returns its status.
pub(crate) fn run_inside() -> Result<u8> {
    let xtask = env::var_os("XTASK").context("XTASK is not set: these tests are started by `cargo xtask test`")?;
    let suite = env::var("RUNNER_LAB_SUITE").unwrap_or_else(|_| "trixie".to_owned());
    let lab = |verb: &str| {
        let mut command = Command::new(&xtask);
        command.args(["lab", verb, "--suite", &suite]);
        command
    };
    // `cargo run` says where the package is now; the compiled-in path is where it was.
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let tests = Path::new(&package).parent().context("the package has a parent folder")?.to_owned();
    let program = env::current_exe().context("find this program")?;
    let copies: [(PathBuf, &str); 3] =
        [(program, "program"), (tests.join("protocol"), "protocol"), (tests.join("workflows"), "workflows")];
    for (source, name) in copies {
        let status = lab("put").arg(&source).arg(format!("{FOLDER}/{name}")).status().context("start xtask")?;
        ensure!(status.success(), "{} cannot be copied into the lab host", source.display());
    }
    let status = lab("exec")
        .args(["--", "env", &format!("{INSIDE}={suite}"), &format!("{FOLDER}/program")])
        .args(env::args_os().skip(1))
        .status()
        .context("start xtask")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Says why there are no tests.
pub(crate) fn complain(text: &str) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr(), "error: {text}");
}
