//! `runner-sim` against small hooks written in bash: what it sends, what it makes of answers, signals and outputs.

#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on has failed the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use runner_testbed::json::Value;

/// Start of every hook: reads the request, keeps it, and offers `$command`, `$response` and `$sim`.
const PREAMBLE: &str = r#"
IFS= read -r request
rest=$(cat)
sim=${0%/*}
[ -z "$rest" ] || echo "more than one line" >> "$sim/faults"
printf '%s\n' "$request" >> "$sim/requests"
command=${request#*\"command\":\"} command=${command%%\"*}
response=${request#*\"responseFile\":\"} response=${response%%\"*}
if [ ! -f "$response" ] || [ -s "$response" ]; then echo "$command: no empty response file" >> "$sim/faults"; fi
"#;

/// Answers `prepare_job` well and does nothing else.
const WELL: &str = r#"case $command in prepare_job) echo '{"isAlpine":false}' > "$response" ;; esac"#;

struct Sim {
    folder: tempfile::TempDir,
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    report: Value,
}

impl Sim {
    fn new(hook: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("hook.sh"), format!("{PREAMBLE}\n{hook}\n")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runner-sim"));
        for name in
            ["CI", "GITHUB_ENV", "RUNNER_DEBUG", "ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER", "HTTP_PROXY", "http_proxy"]
        {
            command.env_remove(name);
        }
        for name in ["RUNNER_TOOL_CACHE", "RUNNER_TOOLSDIRECTORY", "AGENT_TOOLSDIRECTORY"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        command
    }

    fn common(&self) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        vec![
            "--allow-root".into(),
            "--root".into(),
            text(self.path("root")),
            "--hook".into(),
            text(self.path("hook.sh")),
        ]
    }

    fn run(&self, workflow: &str, options: &[&str]) -> Ran {
        let file = self.path("workflow.yml");
        fs::write(&file, workflow).unwrap();
        let _ = fs::remove_file(self.path("requests"));
        let result = self.path("result.json");
        let output =
            self.command().args(self.common()).arg("--json").arg(&result).args(options).arg(&file).output().unwrap();
        let report = fs::read_to_string(&result).ok().and_then(|text| Value::parse(&text).unwrap());
        let ran = Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            report: report.unwrap_or(Value::Null),
        };
        assert!(!self.path("faults").exists(), "{}", fs::read_to_string(self.path("faults")).unwrap());
        ran
    }

    fn call(&self, request: &[u8], options: &[&str]) -> Value {
        let file = self.path("request.json");
        fs::write(&file, request).unwrap();
        let output =
            self.command().arg("call").args(self.common()).arg("--request").arg(&file).args(options).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        Value::parse(std::str::from_utf8(&output.stdout).unwrap()).unwrap().unwrap()
    }

    fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("requests")).unwrap_or_default();
        text.lines().map(|line| Value::parse(line).unwrap().unwrap()).collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn root(&self, name: &str) -> String {
        self.path("root").join(name).display().to_string()
    }
}

/// The value at a path such as `steps.0.name`.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    let mut here = value;
    for part in path.split('.') {
        here = match (here, part.parse::<usize>()) {
            (Value::Array(items), Ok(index)) => {
                items.get(index).unwrap_or_else(|| panic!("no {path} in {}", value.pretty()))
            }
            _ => here.member(part).unwrap_or_else(|| panic!("no {path} in {}", value.pretty())),
        };
    }
    here
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    match at(value, path) {
        Value::String(text) => text,
        other => panic!("{path} is {}", other.line()),
    }
}

fn line(value: &Value, path: &str) -> String {
    at(value, path).line()
}

impl Ran {
    fn step(&self, name: &str) -> &Value {
        let Value::Array(steps) = at(&self.report, "steps") else { panic!("no steps: {}{}", self.stdout, self.stderr) };
        steps
            .iter()
            .find(|step| text(step, "name") == name)
            .unwrap_or_else(|| panic!("no step {name} in\n{}", self.stdout))
    }

    fn outcome(&self, name: &str) -> &str {
        text(self.step(name), "outcome")
    }

    fn log(&self, name: &str) -> Vec<String> {
        let Value::Array(lines) = at(self.step(name), "log") else { panic!("no log") };
        lines.iter().map(|line| if let Value::String(text) = line { text.clone() } else { panic!("no text") }).collect()
    }

    fn output(&self, name: &str) -> Vec<String> {
        let Value::Array(lines) = at(self.step(name), "output") else { panic!("no output") };
        lines.iter().map(|line| text(line, "text").to_owned()).collect()
    }
}

fn steps(steps: &str) -> String {
    format!("on: push\njobs:\n  build:\n    container: node:22\n    steps:\n{steps}")
}

#[test]
fn a_job_is_prepared_stepped_and_cleaned_up_with_the_state_handed_on() {
    let sim = Sim::new(
        r#"case $command in
prepare_job) echo '{"isAlpine":true,"state":{"Big":123456789012345678901234567890,"list":[1.10,null]},"context":{"container":{"id":"c1","network":"n1"},"services":[{"id":"s1","network":"n1","ports":{"5432":49154}}]}}' > "$response" ;;
run_script_step) echo '{"state":null}' > "$response"; echo "hello from the hook" ;;
esac"#,
    );
    let ran = sim.run(
        "name: ci
on: push
jobs:
  build:
    container: {image: 'node:22', ports: [80]}
    services:
      none: ''
      db: {image: 'registry.example.com/db:1', command: -c  'a b', credentials: {username: me}}
    steps:
      - {name: one, run: echo hi, working-directory: ./sub dir}
      - {name: two, run: echo ho, shell: pwsh}
",
        &[],
    );
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let requests = sim.requests();
    let commands: Vec<&str> = requests.iter().map(|request| text(request, "command")).collect();
    assert_eq!(commands, ["prepare_job", "run_script_step", "run_script_step", "cleanup_job"]);
    let states: Vec<String> = requests.iter().map(|request| line(request, "state")).collect();
    let kept = r#"{"Big":123456789012345678901234567890,"list":[1.1,null]}"#;
    assert_eq!(states, ["null", kept, kept, kept]);

    let prepare = at(&requests[0], "args");
    assert_eq!(text(prepare, "container.workingDirectory"), "/__w/widgets/widgets");
    assert_eq!(line(prepare, "container.environmentVariables"), r#"{"HOME":"/github/home"}"#);
    assert_eq!(line(prepare, "container.portMappings"), r#"["80"]"#);
    let Value::Array(mounts) = at(prepare, "container.systemMountVolumes") else { panic!("no mounts") };
    let mounts: Vec<String> = mounts
        .iter()
        .map(|mount| {
            let source = text(mount, "sourceVolumePath").replace(&sim.root(""), "R/");
            format!("{source}>{}>{}", text(mount, "targetVolumePath"), line(mount, "readOnly"))
        })
        .collect();
    assert_eq!(
        mounts,
        [
            "/var/run/docker.sock>/var/run/docker.sock>false",
            "R/_work>/__w>false",
            "R/externals>/__e>true",
            "R/_work/_temp>/__w/_temp>false",
            "R/_work/_actions>/__w/_actions>false",
            "R/_work/_tool>/__w/_tool>false",
            "R/_work/_temp/_github_home>/github/home>false",
            "R/_work/_temp/_github_workflow>/github/workflow>false",
        ]
    );
    assert_eq!(line(prepare, "services.0.entryPointArgs"), r#"["-c","'a","b'"]"#);
    assert_eq!(line(prepare, "services.0.workingDirectory"), "null");
    assert_eq!(
        line(prepare, "services.0.registry"),
        r#"{"username":"me","password":null,"serverUrl":"registry.example.com"}"#
    );

    let script = at(&requests[1], "args");
    assert_eq!(text(script, "entryPoint"), "sh");
    assert_eq!(text(script, "workingDirectory"), "/__w/widgets/widgets/./sub dir");
    let Value::Array(arguments) = at(script, "entryPointArgs") else { panic!("no arguments") };
    assert_eq!(arguments[0], Value::from("-e"));
    assert!(arguments[1].line().starts_with("\"/__w/_temp/"), "{}", arguments[1].line());
    for (name, value) in [
        ("GITHUB_WORKSPACE", "/__w/widgets/widgets"),
        ("RUNNER_TEMP", "/__w/_temp"),
        ("GITHUB_EVENT_PATH", "/github/workflow/event.json"),
        ("GITHUB_ACTION", "__run"),
        ("GITHUB_ACTION_REF", ""),
    ] {
        assert_eq!(text(script, &format!("environmentVariables.{name}")), value);
    }
    assert!(text(script, "environmentVariables.GITHUB_ENV").starts_with("/__w/_temp/_runner_file_commands/set_env_"));
    assert_eq!(text(&requests[2], "args.entryPointArgs.1"), "\".");
    assert_eq!(text(&requests[2], "args.environmentVariables.GITHUB_ACTION"), "__run_2");
    assert_eq!(line(&requests[3], "args"), "{}");

    assert_eq!(line(&ran.report, "services"), r#"{"db":{"id":"s1","network":"n1","ports":{"5432":"49154"}}}"#);
    assert_eq!(text(&ran.report, "node"), "/__e/node20_alpine/bin/node");
    assert_eq!(ran.output("one"), ["hello from the hook"]);
    assert!(ran.stdout.contains("✓ one ("), "{}", ran.stdout);
    assert_eq!(fs::read_dir(sim.path("root/_work/_temp")).unwrap().count(), 0);
}

#[test]
fn the_hook_gets_the_runners_environment_not_the_workflows() {
    let sim = Sim::new(&format!(
        "{WELL}\nif [ $command = run_script_step ]; then env > \"$sim/env\"; pwd > \"$sim/pwd\"; echo $# > \"$sim/count\"; \
         cat /proc/self/oom_score_adj > \"$sim/oom\"; fi"
    ));
    let ran = sim.run(
        "on: push\nenv: {OF_WORKFLOW: x}\njobs:\n  build:\n    container: {image: a, env: {OF_CONTAINER: x}}\n    steps: [{run: x, env: {OF_STEP: x}}]\n",
        &["--runner-name", "runner ä 1", "--run-id", "77", "--debug"],
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    let env = sim.read("env");
    let has = |line: &str| env.lines().any(|known| known == line);
    let work = sim.root("_work");
    for line in [
        "GITHUB_ACTIONS=true".to_owned(),
        "CI=true".to_owned(),
        "RUNNER_DEBUG=1".to_owned(),
        "RUNNER_NAME=runner ä 1".to_owned(),
        "GITHUB_RUN_ID=77".to_owned(),
        "GITHUB_REPOSITORY=octo/widgets".to_owned(),
        format!("GITHUB_WORKSPACE={work}/widgets/widgets"),
        format!("RUNNER_WORKSPACE={work}/widgets"),
        format!("RUNNER_TEMP={work}/_temp"),
        format!("RUNNER_TOOL_CACHE={work}/_tool"),
    ] {
        assert!(has(&line), "{line} is not in\n{env}");
    }
    assert!(env.contains("\nRUNNER_TRACKING_ID=github_") || env.starts_with("RUNNER_TRACKING_ID=github_"), "{env}");
    assert!(env.contains(&format!("GITHUB_ENV={work}/_temp/_runner_file_commands/set_env_")), "{env}");
    assert!(!env.contains("OF_WORKFLOW") && !env.contains("OF_CONTAINER") && !env.contains("OF_STEP"), "{env}");
    assert_eq!(sim.read("pwd").trim(), format!("{work}/widgets/widgets"));
    assert_eq!((sim.read("count").trim(), sim.read("oom").trim()), ("0", "500"));
}

/// Every row of the protocol's table of responses, end to end.
#[test]
fn responses_fail_where_the_runner_fails() {
    let sim = Sim::new(
        r#"answer() { if [ -f "$sim/row" ]; then cat "$sim/row" > "$response"; else rm "$response"; fi; }
case $command:$(cat "$sim/column") in
prepare_job:prepare) answer ;;
prepare_job:*) echo '{"isAlpine":false,"state":{"of":"prepare"}}' > "$response" ;;
run_script_step:step | cleanup_job:cleanup) answer ;;
esac"#,
    );
    let one = |text: &str| Some(format!("{{\"isAlpine\":false,\"context\":{text}}}"));
    let plain = |text: &str| Some(text.to_owned());
    let rows = [
        (None, [false, false, true]),
        (plain(""), [false, false, true]),
        (plain("null"), [false, false, true]),
        (plain("{}"), [false, true, true]),
        (plain(r#"{"isAlpine":false}"#), [true, true, true]),
        (plain(r#"{"isAlpine":null}"#), [false, true, true]),
        (plain(r#"{"alpine":true,"is_alpine":true}"#), [false, true, true]),
        (plain(r#"{"isAlpine":false}{"isAlpine":false}"#), [false, false, false]),
        (plain(r#"{"isAlpine":"#), [false, false, false]),
        (plain("[]"), [false, false, false]),
        (plain("7"), [false, false, false]),
        (plain(r#"{"isAlpine":false,"state":"x"}"#), [false, false, false]),
        (plain(r#"{"isAlpine":false,"state":null}"#), [true, true, true]),
        (plain(r#"{"isAlpine":false,"state":{}}"#), [true, true, true]),
        (one(r#"{"services":{"db":{"ports":{}}}}"#), [false, false, true]),
        (one(r#"{"services":null}"#), [false, false, true]),
        (one(r#"{"services":[{"ports":{}},{"ports":{}}]}"#), [false, false, true]),
        (one(r#"{"services":[{"id":"x"}]}"#), [false, false, true]),
        (one(r#"{"services":[{"ports":[]}]}"#), [false, false, true]),
        (one(r#"{"container":{"id":"x"}}"#), [true, false, true]),
    ];
    let with_container = "    container: a\n    services: {db: b}\n";
    let services_only = "    services: {db: b}\n";
    for (row, expected) in rows {
        let _ = fs::remove_file(sim.path("row"));
        if let Some(text) = &row {
            fs::write(sim.path("row"), text).unwrap();
        }
        for (column, head, step, passes) in [
            ("prepare", with_container, "Initialize containers", expected[0]),
            ("prepare", services_only, "Initialize containers", expected[1]),
            ("step", with_container, "one", expected[2]),
            ("cleanup", with_container, "Stop containers", expected[2]),
        ] {
            fs::write(sim.path("column"), column).unwrap();
            let ran =
                sim.run(&format!("on: push\njobs:\n  build:\n{head}    steps: [{{name: one, run: 'true'}}]\n"), &[]);
            let outcome = if passes { "success" } else { "failure" };
            let at_work = format!("{row:?} in {column} of\n{head}\n{}", ran.stdout);
            assert_eq!(ran.outcome(step), outcome, "{at_work}");
            assert_eq!(ran.code, Some(i32::from(!passes)), "{at_work}");
            let generic = ran
                .log(step)
                .last()
                .is_some_and(|line| line.starts_with("##[error]Executing the custom container implementation failed"));
            assert_eq!(generic, !passes, "{at_work}");
            // Whatever became of preparing, cleaning up was tried.
            assert_eq!(text(sim.requests().last().unwrap(), "command"), "cleanup_job", "{at_work}");
            if column == "step" {
                let state = match row.as_deref() {
                    Some(text) if text.contains(r#""state":{}"#) => "{}",
                    _ => r#"{"of":"prepare"}"#,
                };
                assert_eq!(line(sim.requests().last().unwrap(), "state"), state, "{at_work}");
            }
        }
    }
}

#[test]
fn an_exit_code_is_reported_and_the_response_of_a_failed_call_is_not_read() {
    let sim = Sim::new(&format!(
        "{WELL}\nif [ $command = run_script_step ]; then echo '{{\"state\":{{\"forged\":1}}}}' > \"$response\"; echo last words; exit 42; fi"
    ));
    let ran = sim.run(
        &steps(
            "      - {name: fails, run: x, continue-on-error: true}
      - {name: goes on, run: x}
      - {name: skipped, run: x}
      - {name: on failure, run: x, if: failure(), continue-on-error: true}
      - {name: not cancelled, run: x, if: cancelled()}
",
        ),
        &[],
    );
    assert_eq!(ran.code, Some(1));
    assert_eq!((ran.outcome("fails"), text(ran.step("fails"), "conclusion")), ("failure", "success"));
    assert_eq!(line(ran.step("fails"), "exit_code"), "42");
    let log = ran.log("fails");
    let end: Vec<&str> = log[log.len() - 3..].iter().map(String::as_str).collect();
    assert_eq!(end[..2], ["last words", "##[error]Process completed with exit code 42."]);
    assert!(end[2].starts_with("##[error]Executing the custom container implementation failed"), "{end:?}");
    assert!(log.iter().any(|line| line.ends_with("hook.sh'") && line.starts_with("##[group]Run '")), "{log:?}");
    assert!(log.iter().any(|line| line.starts_with("shell: /") && line.ends_with("bash -e {0}")), "{log:?}");
    assert_eq!((ran.outcome("skipped"), ran.outcome("on failure")), ("skipped", "failure"));
    assert_eq!(ran.outcome("not cancelled"), "skipped");
    assert_eq!(line(&ran.report, "state"), "null");
}

/// Says when it is ready, then survives SIGINT and SIGTERM. A trap runs when a short child ends: a signal that comes
/// just before `wait` would be seen too late. The long sleeper must not hold the outputs.
const STUBBORN: &str = r#"
if [ $command = run_script_step ] && [ ! -e "$sim/once" ]; then
  touch "$sim/once"
  trap 'echo got INT' INT
  trap 'echo got TERM' TERM
  sleep 1000 < /dev/null > /dev/null 2>&1 &
  echo ready
  while :; do sleep 0.02 < /dev/null > /dev/null 2>&1; done
fi"#;

#[test]
fn cancelling_climbs_the_ladder_and_the_job_still_ends_properly() {
    let sim = Sim::new(&format!("{WELL}\n{STUBBORN}"));
    let ran = sim.run(
        &steps(
            "      - {name: stubborn, run: x}
      - {name: skipped, run: x}
      - {name: no failure, run: x, if: failure()}
      - {name: always, run: x, if: always()}
      - {name: cancelled, run: x, if: cancelled()}
",
        ),
        &["--cancel-on-line", "ready", "--interrupt-grace", "0.3", "--terminate-grace", "0.2"],
    );
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    let step = ran.step("stubborn");
    let Value::Array(sent) = at(step, "signals_sent") else { panic!("no signals") };
    let numbers: Vec<String> = sent.iter().map(|signal| line(signal, "number")).collect();
    assert_eq!(numbers, ["2", "15", "9"]);
    let after: Vec<f64> = sent.iter().map(|signal| line(signal, "after_ms").parse().unwrap()).collect();
    assert!(after[1] - after[0] >= 300.0 && after[2] - after[1] >= 200.0, "{after:?}");
    assert_eq!(ran.output("stubborn"), ["ready", "got INT", "got TERM"]);
    assert_eq!(line(step, "exit_code"), "137");
    assert_eq!(ran.outcome("stubborn"), "failure");
    assert!(ran.log("stubborn").iter().all(|line| !line.contains("Process completed")), "{:?}", ran.log("stubborn"));
    for (name, outcome) in [
        ("skipped", "skipped"),
        ("no failure", "skipped"),
        ("always", "success"),
        ("cancelled", "success"),
        ("Stop containers", "success"),
    ] {
        assert_eq!(ran.outcome(name), outcome, "{name}");
    }
    assert_eq!(text(&ran.report, "result"), "cancelled");
    // The child that was left behind carried the job's tracking id.
    assert_eq!(text(&ran.report, "orphans.0.name"), "sleep");
}

#[test]
fn a_step_over_its_time_fails_and_only_it() {
    let sim = Sim::new(&format!("{WELL}\n{STUBBORN}"));
    let ran = sim.run(
        &steps("      - {name: slow, run: x, timeout-minutes: 0.002}\n      - {name: always, run: x, if: always()}\n"),
        &["--interrupt-grace", "0.05", "--terminate-grace", "0.05"],
    );
    assert_eq!((ran.outcome("slow"), ran.outcome("always")), ("failure", "success"));
    assert_eq!(text(&ran.report, "result"), "failure");
    assert!(text(ran.step("slow"), "cause").contains("timeout-minutes"));
}

#[test]
fn an_always_step_is_not_interrupted_by_a_cancelled_job() {
    let sim =
        Sim::new(&format!("{WELL}\nif [ $command = run_script_step ]; then trap 'echo got INT' INT; echo ready; fi"));
    let ran = sim.run(
        &steps("      - {name: always, run: x, if: always()}\n      - {name: skipped, run: x}\n"),
        &["--cancel-on-line", "ready"],
    );
    assert_eq!((ran.outcome("always"), ran.outcome("skipped")), ("success", "skipped"));
    assert_eq!(line(ran.step("always"), "signals_sent"), "[]");
    assert_eq!(text(&ran.report, "result"), "cancelled");
}

#[test]
fn a_cancelled_preparation_is_cleaned_up_with_a_null_state() {
    let sim = Sim::new("if [ $command = prepare_job ]; then echo ready; exec sleep 1000; fi");
    let ran = sim.run(&steps("      - {name: skipped, run: x}\n"), &["--cancel-on-line", "ready"]);
    assert_eq!(ran.outcome("Initialize containers"), "failure");
    assert_eq!(line(ran.step("Initialize containers"), "signal"), "2");
    let requests = sim.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!((text(&requests[1], "command"), line(&requests[1], "state")), ("cleanup_job", "null".to_owned()));
}

#[test]
fn a_stopping_runner_skips_everything_cleanup_included() {
    let sim =
        Sim::new(&format!("{WELL}\nif [ $command = run_script_step ]; then kill -TERM $PPID; exec sleep 1000; fi"));
    let ran =
        sim.run(&steps("      - {name: one, run: x, if: always()}\n      - {name: two, run: x, if: always()}\n"), &[]);
    assert_eq!((ran.code, ran.outcome("one"), ran.outcome("two")), (Some(1), "failure", "skipped"));
    assert_eq!(ran.outcome("Stop containers"), "skipped");
}

#[test]
fn an_output_held_open_costs_the_wait_and_the_holder_ends_with_the_job() {
    let sim = Sim::new(&format!("{WELL}\nif [ $command = run_script_step ]; then sleep 1000 & echo done; fi"));
    let ran = sim.run(&steps("      - {name: leaves, run: x}\n"), &["--output-wait", "0.3"]);
    let step = ran.step("leaves");
    assert_eq!((ran.code, line(step, "output_held_open").as_str()), (Some(0), "true"), "{}", ran.stdout);
    assert!(line(step, "duration_ms").parse::<u32>().unwrap() >= 300);
    assert!(line(step, "hook_wall_ms").parse::<f64>().unwrap() < 300.0, "{}", line(step, "hook_wall_ms"));
    assert!(ran.stdout.contains("keeps its output open"), "{}", ran.stdout);
    assert_eq!(ran.output("leaves"), ["done"]);
    assert_eq!(text(&ran.report, "orphans.0.name"), "sleep");
}

#[test]
fn github_path_comes_first_and_steers_the_search_for_bash() {
    let sim = Sim::new(&format!(
        "{WELL}\nif [ $command = run_script_step ]; then\n  echo \"$PATH\"\n  echo \"$sim/first\" >> \"$GITHUB_PATH\"\n  \
         echo \"$sim/second\" >> \"$GITHUB_PATH\"\nfi"
    ));
    for (name, word) in [("first", "first"), ("second", "second")] {
        fs::create_dir(sim.path(name)).unwrap();
        let file = sim.path(name).join("bash");
        fs::write(&file, format!("#!/bin/sh\necho started by {word}\nexec /bin/bash \"$@\"\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let ran = sim.run(&steps("      - {name: one, run: x}\n      - {name: two, run: x}\n"), &[]);
    let (first, second) = (sim.path("first").display().to_string(), sim.path("second").display().to_string());
    assert!(!ran.output("one")[0].contains(&first));
    assert_eq!(ran.output("two")[0], "started by second");
    assert!(ran.output("two")[1].starts_with(&format!("{second}:{first}:")), "{:?}", ran.output("two"));
    let request = &sim.requests()[2];
    assert_eq!(line(request, "args.prependPath"), format!("[\"{second}\",\"{first}\"]"));
    // Not in the environment of the step: the hook joins it with the container's own.
    assert!(at(request, "args.environmentVariables").member("PATH").is_none());
}

#[test]
fn files_of_a_step_are_read_after_it_also_when_it_failed() {
    let sim = Sim::new(&format!(
        "{WELL}\nif [ $command = run_script_step ] && [ ! -e \"$sim/once\" ]; then\n  touch \"$sim/once\"\n  stat -c %a \"$GITHUB_ENV\"\n  \
         printf 'ADDED<<X\\none\\ntwo\\nX\\nLEVEL=added\\n' >> \"$GITHUB_ENV\"\n  echo answer=42 >> \"$GITHUB_OUTPUT\"\n  \
         echo '# Done' >> \"$GITHUB_STEP_SUMMARY\"\n  exit 3\nfi\nif [ $command = run_script_step ]; then echo nonsense >> \"$GITHUB_ENV\"; fi"
    ));
    let ran = sim.run(
        "on: push\nenv: {LEVEL: workflow}\njobs:\n  build:\n    container: a\n    env: {LEVEL: job, HOST: /nowhere}\n    steps:
      - {name: one, run: x, continue-on-error: true}
      - {name: two, run: x}
",
        &[],
    );
    assert_eq!(ran.output("one"), ["644"]);
    assert_eq!(line(ran.step("one"), "outputs"), r#"{"answer":"42"}"#);
    assert_eq!(text(ran.step("one"), "summary"), "# Done\n");
    let env = at(&sim.requests()[2], "args.environmentVariables").clone();
    assert_eq!((text(&env, "ADDED"), text(&env, "LEVEL"), text(&env, "HOST")), ("one\ntwo", "added", "/nowhere"));
    assert_eq!(ran.outcome("two"), "failure");
    assert!(ran.log("two").last().unwrap().contains("nonsense"), "{:?}", ran.log("two"));
}

#[test]
fn commands_in_the_output_take_effect_and_masks_last() {
    let sim = Sim::new(&format!(
        "{WELL}\nif [ $command = run_script_step ]; then\n  echo '::add-mask::hunter2'\n  echo '::group::G'\n  echo 'a hunter2'\n  \
         echo '::endgroup::'\n  echo '::error::bad%0Aworse'\n  echo '::debug::secret'\n  printf 'x\\r\\ny\\rz'\nelse\n  echo hunter2\nfi"
    ));
    let ran = sim.run(&steps("      - {name: one, run: x}\n"), &["--log", &sim.path("raw").display().to_string()]);
    assert_eq!(ran.outcome("one"), "success");
    let log = ran.log("one");
    let from = log.iter().position(|line| line == "##[group]G").unwrap();
    assert_eq!(log[from..], ["##[group]G", "a ***", "##[endgroup]", "##[error]bad\nworse", "x", "y", "z"]);
    assert_eq!(ran.output("Stop containers"), ["***"]);
    assert!(!ran.stdout.contains("secret") && ran.stdout.contains("Error: bad"), "{}", ran.stdout);
    assert!(sim.read("raw").contains("a hunter2\n") && sim.read("raw").contains("x\r\ny\rz"), "{}", sim.read("raw"));
    assert!(!ran.stdout.contains('\u{1b}'), "colours without a terminal");
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn container_and_node_actions_become_calls() {
    let sim = Sim::new(
        r#"case $command in prepare_job) echo '{"isAlpine":true}' > "$response" ;;
*) if [ "${GITHUB_STATE:-}" ]; then echo "stage=$(wc -l < "$sim/requests")" >> "$GITHUB_STATE"; fi ;; esac"#,
    );
    write(
        &sim.path("tree/.github/actions/lint/action.yml"),
        "runs: {using: docker, image: Dockerfile.ci, pre-entrypoint: /never, post-entrypoint: /post, args: [Mona the Octocat, '']}\n",
    );
    write(
        &sim.path("actions/octo/act/v1/sub/action.yml"),
        "inputs: {fetch-depth: {default: 1}, who me: {}}\nruns: {using: docker, image: 'docker://a:1', pre-entrypoint: /pre, entrypoint: /main}\n",
    );
    write(
        &sim.path("actions/octo/js/v2/action.yml"),
        "runs: {using: node24, main: dist/main.js, post: dist/post.js}\n",
    );
    let ran = sim.run(
        &steps(
            "      - {uses: 'docker://alpine:3.20', with: {entrypoint: /bin/sh, args: -c \"a  b\" }, env: {LIST: 'x:/y'}}
      - {uses: ./.github/actions/lint}
      - {uses: octo/act/sub@v1, with: {who me: x}}
      - {uses: octo/js@v2}
",
        ),
        &["--checkout", &sim.path("tree").display().to_string(), "--actions", &sim.path("actions").display().to_string()],
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    let requests = sim.requests();
    let seen: Vec<String> = requests
        .iter()
        .map(|request| {
            let entry = at(request, "args").member("entryPoint").map_or(String::new(), Value::line);
            format!("{} {entry}", text(request, "command"))
        })
        .collect();
    assert_eq!(
        seen,
        [
            "prepare_job ",
            r#"run_container_step "/pre""#,
            r#"run_container_step "/bin/sh""#,
            "run_container_step null",
            r#"run_container_step "/main""#,
            r#"run_script_step "/__e/node24_alpine/bin/node""#,
            r#"run_script_step "/__e/node24_alpine/bin/node""#,
            r#"run_container_step "/post""#,
            "cleanup_job ",
        ]
    );
    let image = at(&requests[2], "args");
    assert_eq!(line(image, "entryPointArgs"), r#"["-c","\"a","b\""]"#);
    assert_eq!(text(image, "environmentVariables.GITHUB_WORKSPACE"), "/github/workspace");
    assert_eq!(text(image, "environmentVariables.GITHUB_ACTION"), "__alpine_3_20");
    assert_eq!(text(image, "environmentVariables.INPUT_ARGS"), "-c \"a  b\"");
    assert_eq!(text(image, "environmentVariables.HOME"), "/github/home");
    assert_eq!(text(image, "environmentVariables.RUNNER_WORKSPACE"), sim.root("_work/widgets"));
    assert!(text(image, "environmentVariables.GITHUB_ENV").starts_with("/github/file_commands/set_env_"));
    let Value::Array(mounts) = at(image, "systemMountVolumes") else { panic!("no mounts") };
    let targets: Vec<&str> = mounts.iter().map(|mount| text(mount, "targetVolumePath")).collect();
    assert_eq!(
        targets,
        [
            "/var/run/docker.sock",
            "/github/runner_temp",
            "/github/home",
            "/github/workflow",
            "/github/file_commands",
            "/github/workspace"
        ]
    );
    let local = at(&requests[3], "args");
    assert_eq!(text(local, "dockerfile"), sim.root("_work/widgets/widgets/./.github/actions/lint/Dockerfile.ci"));
    assert_eq!(line(local, "image"), "null");
    assert_eq!(line(local, "entryPointArgs"), r#"["\"Mona","the","Octocat\"","\"\""]"#);
    assert!(ran.stdout.contains("does not run `pre` of a local action"), "{}", ran.stdout);
    let post = at(&requests[7], "args");
    assert_eq!(line(post, "entryPointArgs"), line(local, "entryPointArgs"));
    assert_eq!(text(post, "environmentVariables.STATE_stage"), "4");
    let main = at(&requests[4], "args.environmentVariables");
    assert_eq!((text(main, "INPUT_FETCH-DEPTH"), text(main, "INPUT_WHO_ME")), ("1", "x"));
    assert_eq!((text(main, "GITHUB_ACTION_REPOSITORY"), text(main, "GITHUB_ACTION_REF")), ("octo/act", "v1"));
    assert_eq!(text(main, "STATE_stage"), "2");
    assert_eq!(line(&requests[5], "args.entryPointArgs"), r#"["/__w/_actions/octo/js/v2/dist/main.js"]"#);
}

#[test]
fn a_job_without_containers_calls_no_hook_for_scripts() {
    let sim = Sim::new("exit 99");
    let workflow = "on: push\nenv: {A: '1'}\njobs:\n  build:\n    steps:
      - {name: one, run: 'echo \"$BASH_VERSION\" | grep -q . && echo \"$A $GITHUB_JOB $PWD\" && echo B=2 >> \"$GITHUB_ENV\"'}
      - {name: two, run: 'test \"$B\" = 2; exit 7', shell: 'sh -x {0}', continue-on-error: true}
";
    let ran = sim.run(workflow, &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    assert_eq!(ran.output("one"), [format!("1 build {}", sim.root("_work/widgets/widgets"))]);
    assert_eq!(ran.log("two").last().unwrap(), "##[error]Process completed with exit code 7.");
    assert!(sim.requests().is_empty());
    let refused = sim.run(workflow, &["--require-job-container"]);
    assert_eq!((refused.code, refused.outcome("Set up job"), refused.outcome("one")), (Some(1), "failure", "skipped"));
}

#[test]
fn a_workspace_that_is_gone_stops_every_later_call() {
    let sim = Sim::new(&format!("{WELL}\nif [ $command = run_script_step ]; then rm -r \"$GITHUB_WORKSPACE\"; fi"));
    let ran = sim.run(&steps("      - {name: one, run: x}\n"), &[]);
    assert_eq!((ran.outcome("one"), ran.outcome("Stop containers")), ("success", "failure"));
    assert!(text(ran.step("Stop containers"), "cause").contains("cannot start"), "{}", ran.stdout);
    assert_eq!(sim.requests().len(), 2);
}

#[test]
fn a_hook_that_cannot_be_started_is_named() {
    let sim = Sim::new(WELL);
    fs::write(sim.path("hook"), "").unwrap();
    for (hook, cause) in [("nowhere.sh", "File not found"), ("hook", "Invalid file extension")] {
        let ran = sim.run(&steps("      - {run: x}\n"), &["--hook", &sim.path(hook).display().to_string()][..0]);
        assert_eq!(ran.code, Some(0));
        let mut command = sim.command();
        command
            .args(["--allow-root", "--root", &sim.root(""), "--hook"])
            .arg(sim.path(hook))
            .arg(sim.path("workflow.yml"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains(cause) && stdout.contains("Executing the custom container"), "{stdout}");
    }
}

#[test]
fn bad_workflows_and_options_exit_with_2_and_say_where() {
    let sim = Sim::new(WELL);
    for (workflow, options, words) in [
        (steps("      - {run: x, shel: y}\n"), vec![], vec!["workflow.yml", "line 6", "jobs.build.steps[0]", "shel"]),
        (steps("      - run: echo ${{ github.sha }}\n"), vec![], vec!["line 6", "steps[0].run", "expressions"]),
        ("on: [push\n".to_owned(), vec![], vec!["line"]),
        (steps("      - {run: x}\n"), vec!["--repository", "widgets"], vec!["--repository"]),
        (steps("      - {run: x}\n"), vec!["--signal", "FOO@1"], vec!["unknown signal"]),
    ] {
        let ran = sim.run(&workflow, &options);
        assert_eq!(ran.code, Some(2), "{workflow}: {}", ran.stderr);
        for word in words {
            assert!(ran.stderr.contains(word), "`{word}` is not in: {}", ran.stderr);
        }
        assert!(sim.requests().is_empty());
    }
    fs::write(sim.path("workflow.yml"), steps("      - {run: x}\n")).unwrap();
    let output = sim.command().args(sim.common()).arg(sim.path("workflow.yml")).arg("nobody").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no job `nobody`; there is build"));
}

#[test]
fn root_is_refused_without_the_option() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let sim = Sim::new(WELL);
    fs::write(sim.path("workflow.yml"), steps("      - {run: x}\n")).unwrap();
    let output = sim.command().arg(sim.path("workflow.yml")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("must not run as root"));
}

#[test]
fn a_call_sends_one_document_and_shows_everything() {
    let sim = Sim::new("echo '{\"state\":{\"a\":1}}' > \"$response\"; echo out; echo err >&2; exit 5");
    let result = sim.call(
        b"{\n  \"command\": \"run_script_step\",\n  \"args\": {\"A\": \"\xe2\x80\xa8\"},\n  \"state\": null\n}\n",
        &["--fresh-response"],
    );
    assert_eq!(line(&result, "exit_code"), "5");
    assert_eq!(line(&result, "response"), r#"{"state":{"a":1}}"#);
    assert!(line(&result, "output").contains(r#"{"stream":"stderr","text":"err"}"#), "{}", result.pretty());
    assert!(sim.read("requests").contains(r#""args":{"A":"\u2028"}"#), "{}", sim.read("requests"));
    assert!(!sim.path("faults").exists(), "{}", sim.read("faults"));
}

#[test]
fn a_raw_call_sends_the_bytes_as_they_are() {
    let sim = Sim::new("");
    fs::write(sim.path("hook.sh"), "cat > \"${0%/*}/bytes\"\n").unwrap();
    let mut large = vec![b'x'; 3_000_000];
    large.extend(b"\0\xff{\"responseFile\":");
    for bytes in [&b""[..], b"{} {}", b"\xff\xfe\0", large.as_slice()] {
        let result = sim.call(bytes, &["--raw"]);
        assert_eq!(line(&result, "exit_code"), "0");
        assert!(fs::read(sim.path("bytes")).unwrap() == bytes, "{} bytes changed", bytes.len());
        assert_eq!(line(&result, "response_file"), "null");
    }
    // A hook that does not read its input at all is no reason to wait.
    fs::write(sim.path("hook.sh"), "exit 3\n").unwrap();
    assert_eq!(line(&sim.call(&large, &["--raw"]), "exit_code"), "3");
}

#[test]
fn signals_arrive_when_a_line_appears() {
    let sim = Sim::new("trap 'echo got TERM; exit 9' TERM\necho ready\nwhile :; do sleep 0.02; done");
    let result = sim.call(b"{\"command\":\"x\"}", &["--fresh-response", "--signal", "TERM@line:ready"]);
    let Value::Array(output) = at(&result, "output") else { panic!("no output") };
    let texts: Vec<&str> = output.iter().map(|line| text(line, "text")).collect();
    assert_eq!(texts, ["ready", "got TERM"]);
    assert_eq!((line(&result, "exit_code").as_str(), text(&result, "output.0.stream")), ("9", "stdout"));
    assert_eq!(line(&result, "signals_sent.0.number"), "15");
}

#[test]
fn the_published_workflows_are_all_understood() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut seen = 0;
    for folder in ["docs/examples", "tests/workflows"] {
        for entry in fs::read_dir(top.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yml") {
                let text = fs::read_to_string(&path).unwrap();
                runner_testbed::workflow::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                if folder == "tests/workflows" {
                    let first = text.lines().next().unwrap_or_default();
                    let result =
                        first.strip_prefix("# Result: ").unwrap_or_else(|| panic!("{}: {first}", path.display()));
                    assert!(["success", "failure", "cancelled"].contains(&result), "{}: {first}", path.display());
                }
                seen += 1;
            }
        }
    }
    assert!(seen >= 10, "{seen}");
    let greet = top.join("tests/workflows/checkout/.github/actions/greet");
    runner_testbed::action::load(&greet).unwrap();
}

#[test]
fn a_workflow_of_host_steps_runs() {
    let sim = Sim::new("exit 99");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/workflows/host.yml");
    let ran = sim.run(&fs::read_to_string(file).unwrap(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
}
