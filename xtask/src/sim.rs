//! `cargo xtask sim`: a workflow's job, driven by the official runner's stand-in in the lab host.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path};

use anyhow::{Context, Result, ensure};

use crate::child::shell_code;
use crate::lab::Lab;

/// Installed in the lab only.
const RUNNER_SIM: &str = "/usr/lib/runner/testbed/runner-sim";

/// Copies the workflow into the lab host and runs the stand-in there as user `runner`. The local actions the workflow
/// names, looked for in its folder, are the stand-in's checkout. Returns its exit status.
pub(crate) fn run(lab: &Lab, workflow: &Path, job: Option<&str>, args: &[OsString]) -> Result<u8> {
    let text = fs::read_to_string(workflow).with_context(|| format!("read {}", workflow.display()))?;
    let name = workflow.file_name().and_then(|name| name.to_str()).context("the workflow's name is not UTF-8")?;
    let beside = workflow.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Two runs at a time must not see each other's copies.
    let folder = format!("/var/tmp/runner-sim-{}", std::process::id());
    let (copy, checkout) = (format!("{folder}/{name}"), format!("{folder}/checkout"));
    let actions = local_actions(&text);
    let status = (|| {
        lab.put(workflow, &copy)?;
        for action in &actions {
            let source = beside.join(action);
            let inner = Path::new(action).components().all(|part| matches!(part, Component::Normal(_)));
            ensure!(inner, "{}: the local action `./{action}` lies outside the workflow's folder", workflow.display());
            ensure!(source.is_dir(), "{}: the local action `./{action}` is not a folder here", workflow.display());
            lab.put(&source, &format!("{checkout}/{action}"))?;
        }
        let mut sim = lab.inside_as("runner", [RUNNER_SIM, &copy]).args(job);
        if !actions.is_empty() && !args.iter().any(|arg| arg == "--checkout") {
            sim = sim.args(["--checkout", &checkout]);
        }
        sim.args(args).show()
    })();
    lab.inside(["rm", "--recursive", "--force", "--", &folder]).run()?;
    Ok(shell_code(status?))
}

/// Paths of `uses: ./PATH`, without the `./`. The stand-in parses the file; here it is enough to find what it will need.
fn local_actions(workflow: &str) -> BTreeSet<String> {
    let value = |line: &str| {
        let line = line.trim_start().trim_start_matches("- ").trim_start();
        let value = line.strip_prefix("uses:")?.trim();
        let value = value.split(" #").next()?.trim().trim_matches(['"', '\'']);
        Some(value.strip_prefix("./")?.trim_end_matches('/').to_owned())
    };
    workflow.lines().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_actions_are_found_wherever_a_step_names_them() {
        let workflow = "steps:\n  - uses: ./greet/\n  - name: x\n    uses: './a/b' \n  - uses: docker://x\n\
                        \x20 - uses: ./greet # again\n  - run: echo uses:./no\n";
        assert_eq!(local_actions(workflow), BTreeSet::from(["a/b".to_owned(), "greet".to_owned()]));
    }
}
