//! `runnerctl jobs`: what is running.

use std::io::Write;
use std::path::Path;

use serde_json::Value;

use runner_wire::{CallError, SOCKET, connect};

/// Prints the jobs there are.
pub async fn run(as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let text = connect(Path::new(SOCKET)).await?.jobs().await.map_err(CallError::from)?;
    if as_json {
        writeln!(out, "{text}")?;
        return Ok(());
    }
    let jobs: Vec<Value> = serde_json::from_str(&text)?;
    if jobs.is_empty() {
        writeln!(out, "No jobs.")?;
        return Ok(());
    }
    writeln!(out, "{:4}  {:12}  {:24}  {:16}  {:>7}  IMAGE", "JOB", "MACHINE", "REPOSITORY", "NAME", "SECONDS")?;
    for job in jobs {
        let text = |name: &str| job.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
        let seconds = job.get("seconds").and_then(Value::as_u64).unwrap_or(0);
        writeln!(
            out,
            "{:4}  {:12}  {:24}  {:16}  {seconds:>7}  {}",
            text("id"),
            text("machine"),
            text("repository"),
            text("job"),
            text("image")
        )?;
    }
    Ok(())
}
