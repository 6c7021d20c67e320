//! `cargo xtask test`: format, lints, unit tests, lab tests, and one line that counts them.

use std::io::{self, IsTerminal as _};
use std::ops::AddAssign;

use anyhow::Result;

use crate::child::{Program, Stream};
use crate::lab::Lab;
use crate::progress::{Phase, note, result};
use crate::workspace::{Profile, Workspace};

/// What to check.
pub(crate) struct Plan {
    /// Only tests whose name contains this.
    pub(crate) filter: Option<String>,
    /// Leave the lab tests out; they count as one skipped.
    pub(crate) no_lab: bool,
    /// Where the lab tests run.
    pub(crate) lab: Lab,
}

/// Tests by outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs everything, whatever fails, and returns the exit code: 0 if nothing failed and, in CI, nothing was skipped.
pub(crate) fn run(workspace: &Workspace, plan: &Plan) -> Result<u8> {
    let mut counts = Counts::default();
    counts += check(workspace, "format", &["fmt", "--all", "--check"])?;
    counts +=
        check(workspace, "clippy", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    counts += unit_tests(workspace, plan)?;
    counts += if plan.no_lab {
        note("lab tests  left out (--no-lab)");
        Counts { skipped: 1, ..Counts::default() }
    } else {
        lab_tests(workspace, plan)?
    };
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    if in_ci && counts.skipped > 0 {
        note("error: a skipped test is a failure here, because CI=true");
    }
    result(&format!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped));
    Ok(u8::from(counts.failed > 0 || (in_ci && counts.skipped > 0)))
}

/// One check by cargo, counted as one test.
fn check(workspace: &Workspace, name: &'static str, args: &[&str]) -> Result<Counts> {
    let mut phase = Phase::start(name, "checking");
    phase.yield_terminal();
    let ok = workspace.cargo().args(args).show()?.success();
    phase.end(if ok { "clean" } else { "failed; what is wrong is above" });
    Ok(Counts { passed: u64::from(ok), failed: u64::from(!ok), skipped: 0 })
}

fn unit_tests(workspace: &Workspace, plan: &Plan) -> Result<Counts> {
    let mut phase = Phase::start("unit tests", "compiling and running");
    phase.yield_terminal();
    let mut counts = Counts::default();
    let nextest = workspace.cargo().args(["nextest", "--version"]).output()?.status.success();
    let status = if nextest {
        let color = if io::stderr().is_terminal() { "always" } else { "never" };
        let args = ["nextest", "run", "--profile", "ci", "--no-tests", "pass", "--color", color];
        let tests = workspace.cargo().args(args).args(&plan.filter);
        tests.observe(Stream::Err, |line| counts += nextest_counts(line).unwrap_or_default())?
    } else {
        note("unit tests cargo-nextest is not installed: using cargo test");
        let tests = workspace.cargo().args(["test", "--no-fail-fast", "--lib", "--bins", "--tests"]).args(&plan.filter);
        tests.observe(Stream::Out, |line| counts += libtest_counts(line).unwrap_or_default())?
    };
    if plan.filter.is_some() {
        // nextest counts what the filter left out as skipped.
        counts.skipped = 0;
    }
    Ok(ended(phase, status.success(), counts))
}

fn lab_tests(workspace: &Workspace, plan: &Plan) -> Result<Counts> {
    if let Err(error) = plan.lab.up(workspace, Profile::Dev, false) {
        note(&format!("error: {error:#}"));
        return Ok(Counts { failed: 1, ..Counts::default() });
    }
    let mut phase = Phase::start("lab tests", "compiling and running");
    phase.yield_terminal();
    let mut counts = Counts::default();
    let tests = lab_test_program(workspace, plan);
    let status = tests.observe(Stream::Out, |line| counts += libtest_counts(line).unwrap_or_default())?;
    Ok(ended(phase, status.success(), counts))
}

/// The tests call this program, by its path, to reach the lab host these variables name.
fn lab_test_program(workspace: &Workspace, plan: &Plan) -> Program {
    let me = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    workspace
        .cargo()
        .args(["run", "--quiet", "--package", "runner-lab-tests", "--"])
        .args(&plan.filter)
        .env("XTASK", me)
        .env("RUNNER_LAB_SUITE", plan.lab.suite().name())
        .env("RUNNER_LAB_INSTANCE", plan.lab.instance())
}

/// A run that failed without a failed test, for instance because it did not compile, is one failure.
fn ended(phase: Phase, success: bool, mut counts: Counts) -> Counts {
    if !success && counts.failed == 0 {
        counts.failed = 1;
    }
    phase.end(&format!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped));
    counts
}

/// `Summary [   1.2s] 5 tests run: 3 passed (1 slow), 1 failed, 1 timed out, 2 skipped`, maybe in colours.
fn nextest_counts(line: &str) -> Option<Counts> {
    let line = without_colours(line);
    let (_, outcomes) = line.trim_start().strip_prefix("Summary [")?.split_once(" run: ")?;
    let mut counts = Counts::default();
    let mut parenthesised = false;
    let outcomes: String = outcomes
        .chars()
        .filter(|c| {
            parenthesised |= *c == '(';
            let keep = !parenthesised;
            parenthesised &= *c != ')';
            keep
        })
        .collect();
    for outcome in outcomes.split(',') {
        let (number, what) = outcome.trim().split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match what.trim() {
            "passed" => counts.passed += number,
            "skipped" => counts.skipped += number,
            _ => counts.failed += number,
        }
    }
    Some(counts)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s`
fn libtest_counts(line: &str) -> Option<Counts> {
    let line = without_colours(line);
    let (_, outcomes) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for outcome in outcomes.split("; ") {
        match outcome.split_once(' ') {
            Some((number, "passed")) => counts.passed = number.parse().ok()?,
            Some((number, "failed")) => counts.failed = number.parse().ok()?,
            Some((number, "ignored")) => counts.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

/// Takes ECMA-48 colour sequences out.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.find('m').map_or("", |end| &after[end + 1..]);
    }
    plain + rest
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts { passed, failed, skipped }
    }

    #[test]
    fn summaries_of_nextest() {
        let cases = [
            ("     Summary [   0.005s] 3 tests run: 3 passed, 1 skipped", Some(counts(3, 0, 1))),
            (
                "Summary [ 60.0s] 7 tests run: 4 passed (1 slow, 1 flaky), 2 failed, 1 timed out, 0 skipped",
                Some(counts(4, 3, 0)),
            ),
            (
                "\x1b[32;1m     Summary\x1b[0m [   0.1s] \x1b[1m2\x1b[0m tests run: \x1b[1m2\x1b[0m \x1b[32;1mpassed\x1b[0m, \x1b[1m0\x1b[0m \x1b[33;1mskipped\x1b[0m",
                Some(counts(2, 0, 0)),
            ),
            ("        PASS [   0.005s] xtask tests::x", None),
        ];
        for (line, expected) in cases {
            assert_eq!(nextest_counts(line), expected, "{line}");
        }
    }

    #[test]
    fn results_of_libtest() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 5 filtered out; finished in 0.00s";
        assert_eq!(libtest_counts(line), Some(counts(3, 1, 2)));
        assert_eq!(libtest_counts("test a ... ok"), None);
    }
}
