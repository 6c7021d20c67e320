//! Whole jobs of `tests/workflows`, driven by the official runner's stand-in. What a workflow must show is in the file:
//! its first line says how the job ends, its steps check what they see.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::fixture;
use crate::hook::Runner;
use crate::host::{Ran, run, sh};
use crate::lab::{FOLDER, Need, Test, tests};
use crate::registry::Configured;

/// The official runner's stand-in.
pub(crate) const SIMULATOR: &str = "/usr/lib/runner/testbed/runner-sim";

pub(crate) fn tests() -> Vec<Test> {
    tests![
        every_workflow_ends_as_its_first_line_says[Need::Simulator],
        a_hundred_thousand_lines_reach_the_runner[Need::Simulator],
        every_exit_status_reaches_the_runner[Need::Simulator],
        a_missing_image_fails_the_job_with_one_line[Need::Simulator],
        a_cancelled_job_is_over_in_time[Need::Simulator],
    ]
}

/// Workflows about what later parts bring: services and container actions.
const LATER: [&str; 2] = ["services.yml", "container-actions.yml"];

/// Runs a workflow as the runner's user; the second part is the stand-in's own account of the job.
fn simulate(name: &str, options: &[&str]) -> (Ran, Value) {
    fixture::debian();
    // The stand-in wipes and fills the work folder itself.
    Runner::new("runner 01");
    sh(
        "rm -rf /home/runner/_work/widgets; rm -f /var/tmp/lab-job.json; install -o runner -g runner /dev/null /var/tmp/lab-job.json",
    );
    let file = format!("{FOLDER}/workflows/{name}");
    let checkout = format!("{FOLDER}/workflows/checkout");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut words =
        vec!["setpriv", "--reuid=runner", "--regid=runner", "--clear-groups", "env", "-C", "/home/runner", SIMULATOR];
    words.extend(["--json", "/var/tmp/lab-job.json"]);
    words.extend(options);
    if text.contains("# Options: --checkout") {
        words.extend(["--checkout", &checkout]);
    }
    words.push(&file);
    let ran = run(words);
    let account = fs::read("/var/tmp/lab-job.json").expect("it was made above");
    let account = serde_json::from_slice(&account).unwrap_or(Value::Null);
    sh("rm /var/tmp/lab-job.json");
    (ran, account)
}

fn workflows() -> Vec<String> {
    let folder = format!("{FOLDER}/workflows");
    let mut names: Vec<String> = fs::read_dir(Path::new(&folder))
        .expect("it was copied")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".yml") && !LATER.contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

fn every_workflow_ends_as_its_first_line_says() {
    let names = workflows();
    assert!(names.len() >= 10, "{names:?}");
    let mut wrong = Vec::new();
    for name in names {
        let text = fs::read_to_string(format!("{FOLDER}/workflows/{name}")).expect("it was listed");
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# Result: ")).expect("a first line");
        let (ran, account) = simulate(&name, &[]);
        let result = account["result"].as_str().unwrap_or("none");
        let status = i32::from(expected != "success");
        if ran.status != status || result != expected {
            wrong.push(format!(
                "{name}: expected {expected}, got {result}, status {}\n{}{}",
                ran.status,
                ran.text(),
                ran.errors()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn a_hundred_thousand_lines_reach_the_runner() {
    let (ran, _) = simulate("many-lines.yml", &["--log", "/var/tmp/lab-job.log"]);
    let _ = fs::remove_file("/var/tmp/lab-job.log");
    let ran = ran.expect(0);
    let text = ran.text();
    let lines: Vec<_> = text.lines().map(str::trim_start).filter(|line| line.starts_with("line ")).collect();
    assert_eq!(lines.len(), 100_000);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {:06} of a hundred thousand", index + 1));
    }
}

fn every_exit_status_reaches_the_runner() {
    let (ran, account) = simulate("exit-status.yml", &[]);
    assert_eq!(ran.status, 1, "{}", ran.text());
    let steps = account["steps"].as_array().unwrap_or_else(|| panic!("no steps: {account}"));
    for (name, code) in [
        ("status 42", 42),
        ("status 255", 255),
        ("killed by SIGKILL is 137", 137),
        ("killed by SIGTERM is 143", 143),
        ("no such command is 127", 127),
        ("the failure", 3),
    ] {
        let step =
            steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name:?}: {account}"));
        assert_eq!(step["exit_code"], code, "{step}");
    }
}

fn a_missing_image_fails_the_job_with_one_line() {
    let _offline = Configured::with(&[("RUNNER_IMAGE_PULL", "never")]);
    let (ran, _) = simulate("missing-image.yml", &[]);
    assert_eq!(ran.status, 1, "{}", ran.text());
    let text = ran.text() + &ran.errors();
    let lines: Vec<_> =
        text.lines().filter(|line| line.contains("runnerctl image pull docker.io/library/no-such-image")).collect();
    assert_eq!(lines.len(), 1, "{text}");
}

fn a_cancelled_job_is_over_in_time() {
    let (ran, account) = simulate("step-timeout.yml", &[]);
    assert_eq!(ran.status, 1, "{}", ran.text());
    let steps = account["steps"].as_array().unwrap_or_else(|| panic!("no steps: {account}"));
    let step = steps.iter().find(|step| step["name"] == "too long").expect("the step");
    // SIGINT was enough: neither SIGTERM nor SIGKILL was sent to the hook, and nothing held its output.
    let signals: Vec<_> =
        step["signals_sent"].as_array().expect("a list").iter().map(|sent| sent["number"].as_i64()).collect();
    assert_eq!((signals, &step["output_held_open"]), (vec![Some(2)], &Value::Bool(false)), "{step}");
    // And the one who cancels the whole job: the cleanup runs all the same.
    let (ran, account) = simulate("job-timeout.yml", &["--cancel-on-line", "never printed"]);
    assert_eq!(ran.status, 1, "{}", ran.text());
    assert_eq!(account["not_removed"].as_array().map(Vec::len), Some(0), "{account}");
}
