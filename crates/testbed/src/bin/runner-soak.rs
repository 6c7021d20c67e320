//! `runner-soak`: the part of `cargo xtask soak` inside the lab.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use runner_testbed::soak::{Plan, run};

/// Pull, run and collect images while the broker and its helpers are killed. Needs root and the lab. Exit status: 0 if
/// everything ran and nothing is left or damaged, else 1.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Images to serve
    #[arg(long, default_value_t = 200)]
    images: usize,
    /// Decides about the images and about what is killed when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Port of the registry on 127.0.0.1
    #[arg(long, default_value_t = 5099)]
    port: u16,
    /// Images run at once
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

fn main() -> ExitCode {
    let Arguments { images, seed, port, workers } = Arguments::parse();
    // Nobody is left to tell if this fails.
    let say = |line: &str| drop(writeln!(std::io::stderr(), "  {line}"));
    match run(&Plan { images, seed, port, workers }, &say) {
        Ok(outcome) => {
            let mut out = std::io::stdout();
            for fault in &outcome.faults {
                let _ = writeln!(out, "fault: {fault}");
            }
            let _ = writeln!(out, "{outcome}; seed {seed}");
            if outcome.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "runner-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
