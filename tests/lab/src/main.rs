//! Tests of the installed product against the real systemd, in the lab host.
//!
//! The program runs twice. Started by `cargo xtask test` it copies itself and its data into the lab host and starts
//! itself there, through the very `xtask` that called it (`XTASK`, `RUNNER_LAB_SUITE`). There it is root of a machine
//! of its own: it calls the hook as the official runner does, looks at processes, mounts and units directly, and after
//! each test demands that nothing of it is left.

mod bad_input;
mod cancel;
mod death;
mod environment;
mod examples;
mod fixture;
mod hook;
mod host;
mod images;
mod isolation;
mod lab;
mod leftovers;
mod lifecycle;
mod network;
mod nspawn_run;
mod options;
mod output;
mod pulls;
mod refusals;
mod registry;
mod request;
mod status;
mod terminal;
mod workflows;
mod workspace;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::lab::{Need, Test};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // What is left is looked for on the whole host, so one test at a time.
    arguments.test_threads.get_or_insert(1);
    let inside = lab::inside();
    if !inside && !arguments.list {
        return match lab::run_inside() {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                lab::complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        };
    }
    if inside {
        leftovers::settle();
    }
    libtest_mimic::run(&arguments, tests().into_iter().map(trial).collect()).exit_code()
}

fn tests() -> Vec<Test> {
    [
        lifecycle::tests(),
        options::tests(),
        environment::tests(),
        status::tests(),
        output::tests(),
        workspace::tests(),
        bad_input::tests(),
        refusals::tests(),
        cancel::tests(),
        death::tests(),
        isolation::tests(),
        network::tests(),
        nspawn_run::tests(),
        terminal::tests(),
        examples::tests(),
        workflows::tests(),
        // Last: names that other tests give to images of their own are pulled here.
        pulls::tests(),
        images::tests(),
    ]
    .concat()
}

fn trial(test: Test) -> Trial {
    let unmet = lab::inside() && test.needs.iter().any(|need| !need.is_met());
    Trial::test(test.name(), move || run(&test)).with_ignored_flag(unmet)
}

/// The test, then the proof that it left nothing; what it left is removed, so that the next test starts clean.
fn run(test: &Test) -> Result<(), Failed> {
    hook::empty_temp();
    let outcome = std::panic::catch_unwind(test.body);
    let left = leftovers::look();
    if outcome.is_err() || !left.is_empty() {
        leftovers::remove();
    }
    match outcome {
        Err(payload) => {
            let said = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
            // A test that broke off has not cleaned up; what is left then says nothing.
            Err(said.unwrap_or("panicked").into())
        }
        Ok(()) if !left.is_empty() => Err(format!("left over: {left:#?}").into()),
        Ok(()) => Ok(()),
    }
}

impl Need {
    fn is_met(&self) -> bool {
        match self {
            Self::Simulator => std::path::Path::new(workflows::SIMULATOR).exists(),
        }
    }
}
