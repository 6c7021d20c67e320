//! `runner-bench`: the driver of `cargo xtask bench`, inside the lab.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use runner_testbed::bench::{Plan, run};

/// Measure the hook from the outside, as the official runner sees it. Prints JSON.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The hook's entry file
    #[arg(long, default_value = "/usr/lib/runner/container-hooks.sh")]
    hook: PathBuf,
    /// Image of the job container
    #[arg(long)]
    image: String,
    /// Jobs measured one by one
    #[arg(long, default_value_t = 30)]
    jobs: usize,
}

fn main() -> ExitCode {
    let Arguments { hook, image, jobs } = Arguments::parse();
    let plan = Plan { hook, image, jobs, whole_jobs: jobs.div_ceil(3), rounds: jobs.div_ceil(10) };
    let mut errors = std::io::stderr();
    // Nobody reads the progress then, and nobody the results.
    let outcome = run(&plan, &mut |line| drop(writeln!(std::io::stderr(), "  {line}")));
    match outcome {
        Ok(results) => {
            let _ = writeln!(std::io::stdout(), "{}", results.line());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(errors, "runner-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
