//! `cargo xtask bench`: the figures the design promises, measured from the outside.

mod pull;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::image;
use crate::lab::Lab;
use crate::progress::{note, result};
use crate::workspace::{Profile, Workspace};

/// Installed in the lab only.
const RUNNER_BENCH: &str = "/usr/lib/runner/testbed/runner-bench";

/// How often each thing is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct Amounts {
    /// Jobs measured one by one; 0 leaves everything about jobs out
    #[arg(long, default_value_t = 30)]
    jobs: usize,
    /// Pulls of an image each way: ours, podman, skopeo with umoci; 0 leaves them out
    #[arg(long, default_value_t = 5)]
    pulls: usize,
}

/// Measures release builds in the lab, prints a table, and writes the JSON document if asked to.
pub(crate) fn run(workspace: &Workspace, lab: &Lab, amounts: &Amounts, json: Option<&Path>) -> Result<u8> {
    lab.up(workspace, Profile::Release, false)?;
    let mut results = json!({});
    if amounts.jobs > 0 {
        image::ensure(lab, image::BENCH)?;
        note("measuring");
        let arguments = [RUNNER_BENCH, "--image", image::BENCH, "--jobs", &amounts.jobs.to_string()];
        let document = lab.inside_as("runner", arguments).read()?;
        results = serde_json::from_str(&document).context("the driver's results")?;
    }
    if amounts.pulls > 0 {
        merge(&mut results, pull::present(lab)?);
        merge(&mut results, pull::run(lab, amounts.pulls)?);
    }
    print(&results);
    if let Some(path) = json {
        fs::write(path, format!("{results}\n")).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(0)
}

/// Adds what `more` has, into objects both have; a value that is there already stays unless both are objects.
fn merge(results: &mut Value, more: Value) {
    let (Value::Object(results), Value::Object(more)) = (results, more) else { return };
    for (key, value) in more {
        match results.get_mut(&key) {
            Some(known) => merge(known, value),
            None => drop(results.insert(key, value)),
        }
    }
}

fn print(results: &Value) {
    result(&format!("{:<27} {:>5} {:>10} {:>10} {:>10}", "case", "n", "median ms", "p95 ms", "max ms"));
    for (name, case) in results.get("cases").and_then(Value::as_object).into_iter().flatten() {
        let number = |key: &str| case.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        result(&format!(
            "{name:<27} {:>5} {:>10.2} {:>10.2} {:>10.2}",
            number("n"),
            number("median_ms"),
            number("p95_ms"),
            number("max_ms")
        ));
    }
    for section in ["rates", "ratios", "memory_mib"] {
        for (name, figure) in results.get(section).and_then(Value::as_object).into_iter().flatten() {
            if let Some(figure) = figure.as_f64() {
                let label = if section == "memory_mib" { format!("{name} MiB") } else { name.clone() };
                result(&format!("{label:<27} {figure:>37.2}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_both_results_are_kept() {
        let mut results = json!({ "cases": { "a": 1 }, "rates": { "r": 2 } });
        merge(&mut results, json!({ "cases": { "b": 3, "a": 9 }, "ratios": { "q": 4 } }));
        assert_eq!(results, json!({ "cases": { "a": 1, "b": 3 }, "rates": { "r": 2 }, "ratios": { "q": 4 } }));
    }
}
