//! `cargo xtask demo`: everything from nothing to a job in a guest, and the receipt that nothing is left.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::image;
use crate::lab::Lab;
use crate::progress::{Phase, note, result};
use crate::sim;
use crate::workspace::{Profile, Workspace};

/// Sets everything up, runs `docs/examples/hello.yml`, and shows what is left of it on the lab host.
pub(crate) fn run(workspace: &Workspace, lab: &Lab) -> Result<u8> {
    lab.up(workspace, Profile::Dev, false)?;
    image::ensure(lab, image::HELLO)?;

    note("");
    let workflow = workspace.root().join("docs/examples/hello.yml");
    let code = sim::run(lab, &workflow, None, &[])?;
    ensure!(
        code == 0,
        "the job failed with status {code}; look at `cargo xtask lab exec -- journalctl -u runner-guestd`"
    );

    note("");
    let phase = Phase::start("host", "looking at the file the job wrote");
    // The runner empties its temporary folder at the end of a job, not the workspace.
    let file = "/home/runner/_work/widgets/widgets/written-by-root.txt";
    let owner = lab.inside(["stat", "--format", "%U:%G %a", file]).read().context("the job's file")?;
    let owner = owner.trim();
    ensure!(owner.starts_with("runner:runner "), "{file} belongs to {owner}");
    phase.end(&format!("{} belongs to {owner}", Path::new(file).file_name().unwrap_or_default().display()));

    let phase = Phase::start("receipt", "counting what is left of the job");
    let left = left_over(lab)?;
    phase.end(if left.is_empty() { "nothing is left" } else { "something is left" });
    for (what, count, rows) in &left {
        note(&format!("  {what}: {count}\n{rows}"));
    }
    ensure!(left.is_empty(), "the job left something behind");
    result(
        "The job ran in a systemd-nspawn guest, and nothing of it is left: no machine, unit, control group, mount, \
            folder or process.",
    );
    note(
        "Next: `cargo xtask sim WORKFLOW` runs a workflow of yours, `cargo xtask lab exec -- bash` looks around, \
          `cargo xtask lab down` removes the lab.",
    );
    Ok(0)
}

/// What the lab host still has of any guest: kind, number and rows.
fn left_over(lab: &Lab) -> Result<Vec<(&'static str, usize, String)>> {
    let questions: [(&str, &str); 6] = [
        ("machines", "machinectl list --no-legend | grep runner- || true"),
        ("units", "systemctl list-units --all --plain --no-legend 'runner-guest-*' 'runner-guests-*.slice'"),
        ("control groups", "find /sys/fs/cgroup/runner.slice -name 'runner-guest*-*' 2>/dev/null || true"),
        ("mounts", "grep -E 'runner-|/var/lib/runner/jobs' /proc/self/mounts || true"),
        (
            "folders",
            "find /run/runner/guests /var/lib/runner/jobs /run/systemd/nspawn/propagate /run/systemd/nspawn/unix-export -mindepth 1 -maxdepth 1 2>/dev/null || true",
        ),
        ("processes", "ps -eo uid=,pid=,args= | awk '$1 >= 524288'"),
    ];
    let mut left = Vec::new();
    for (what, question) in questions {
        let rows = lab.inside(["sh", "-c", question]).read()?;
        let count = rows.lines().count();
        if count > 0 {
            left.push((what, count, rows));
        }
    }
    Ok(left)
}
