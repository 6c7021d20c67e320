//! `cargo xtask bench`: the figures the design promises, measured from the outside.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::image;
use crate::lab::Lab;
use crate::progress::{note, result};
use crate::workspace::{Profile, Workspace};

/// Installed in the lab only.
const RUNNER_BENCH: &str = "/usr/lib/runner/testbed/runner-bench";

/// Measures release builds in the lab, prints a table, and writes the JSON document if asked to.
pub(crate) fn run(workspace: &Workspace, lab: &Lab, jobs: usize, json: Option<&Path>) -> Result<u8> {
    lab.up(workspace, Profile::Release, false)?;
    image::ensure(lab, image::BENCH)?;
    note("measuring");
    let arguments = [RUNNER_BENCH, "--image", image::BENCH, "--jobs", &jobs.to_string()];
    let document = lab.inside_as("runner", arguments).read()?;
    let results: Value = serde_json::from_str(&document).context("the driver's results")?;
    print(&results);
    if let Some(path) = json {
        fs::write(path, &document).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(0)
}

fn print(results: &Value) {
    result(&format!("{:<26} {:>5} {:>10} {:>10} {:>10}", "case", "n", "median ms", "p95 ms", "max ms"));
    for (name, case) in results.get("cases").and_then(Value::as_object).into_iter().flatten() {
        let number = |key: &str| case.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        result(&format!(
            "{name:<26} {:>5} {:>10.2} {:>10.2} {:>10.2}",
            number("n"),
            number("median_ms"),
            number("p95_ms"),
            number("max_ms")
        ));
    }
    for (name, rate) in results.get("rates").and_then(Value::as_object).into_iter().flatten() {
        result(&format!("{name:<26} {:>38.1}", rate.as_f64().unwrap_or(0.0)));
    }
}
