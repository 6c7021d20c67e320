//! A job from beginning to end, as the runner and as an administrator of the host sees it.

use serde_json::{Value, json};

use crate::fixture;
use crate::hook::{Runner, exists};
use crate::host::{self, run, sh, until};
use crate::lab::{Test, tests};
use crate::leftovers;
use crate::request::{self, Step};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_job_runs_in_its_image_and_nothing_is_left,
        the_answers_are_what_the_runner_expects,
        an_image_with_musl_is_alpine_and_others_are_not,
        pid_1_of_the_guest_is_systemd,
        the_host_sees_a_machine_it_can_work_with,
        journal_lines_carry_the_names_of_the_job,
        a_second_prepare_removes_the_first_job,
        cleanup_works_without_state_and_twice,
        a_step_without_a_job_fails_fast,
        a_forged_state_neither_helps_nor_harms,
        a_runner_name_may_contain_anything,
        a_missing_actions_folder_is_no_failure,
        the_broker_keeps_nothing_of_jobs_that_are_over,
        two_steps_at_once_do_not_disturb_each_other,
    ]
}

fn a_job_runs_in_its_image_and_nothing_is_left() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let step = runner.step(&Step::program("cat", &["/etc/os-release"])).expect(0);
    assert!(step.text().contains("PRETTY_NAME=\"Lab Debian\"\n"), "{}", step.story());
    assert_eq!(step.stderr, b"", "{}", step.story());
    assert_eq!(runner.sh("pwd; id -u").expect(0).text(), "/__w/widgets/widgets\n0\n");
    runner.cleanup();
    let left = leftovers::now();
    // machined hears of a machine's end by a signal; everything else is gone when the hook has ended.
    let left: Vec<_> = left.iter().filter(|line| !line.starts_with("machine ")).collect();
    assert!(left.is_empty(), "{left:#?}");
}

fn the_answers_are_what_the_runner_expects() {
    let runner = Runner::new("runner 01");
    let container = request::container(fixture::debian(), &runner);
    let prepared = runner.call(request::prepare(container)).end().expect(0);
    let response = prepared.answer();
    let machine = response["context"]["container"]["id"].as_str().expect("an id").to_owned();
    let job = response["state"]["job"].as_str().expect("a job").to_owned();
    assert_eq!(response["isAlpine"], json!(false), "{response}");
    assert_eq!(response["state"], json!({"v": 1, "job": job}), "{response}");
    assert_eq!(machine, format!("runner-{job}0"));
    let services = response["context"].get("services");
    assert!(services.is_none_or(|services| *services == json!([])), "{response}");
    assert!(response["context"]["container"]["ports"].as_object().is_none_or(serde_json::Map::is_empty), "{response}");
    assert_eq!((prepared.text(), prepared.error_text()), (String::new(), String::new()));

    let step = runner.sh("true").expect(0);
    assert_eq!(step.answer(), json!({}), "a step answers with an empty object");
    let cleanup = runner.call(request::cleanup()).end().expect(0);
    assert_eq!(cleanup.answer(), json!({}));
    assert!(!exists(format!("/var/lib/runner/jobs/{job}")));
}

fn an_image_with_musl_is_alpine_and_others_are_not() {
    for (image, alpine) in [(fixture::alpine(), true), (fixture::debian(), false), (fixture::node(), false)] {
        let runner = Runner::new("runner 01");
        let ended = runner.call(request::prepare(request::container(image, &runner))).end().expect(0);
        assert_eq!(ended.answer()["isAlpine"], json!(alpine), "{image}");
        runner.cleanup();
    }
}

fn pid_1_of_the_guest_is_systemd() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    assert_eq!(runner.sh("cat /proc/1/comm").expect(0).text(), "systemd\n");
    let leader = host::leader(&machine);
    let inside = sh(&format!("grep NSpid: /proc/{leader}/status"));
    assert!(inside.ends_with("\t1"), "{inside}");
    runner.cleanup();
    assert!(host::is_gone(leader));
}

fn the_host_sees_a_machine_it_can_work_with() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let list = sh("machinectl list --no-legend");
    assert!(list.lines().any(|line| line.starts_with(&machine)), "{list}");
    let unit = machine.replace("runner-", "runner-guest-");
    assert!(host::property(&format!("{unit}.service"), "Description").contains("build of octo/widgets (run 4711)"));

    let said = run(["systemd-run", "--quiet", "-M", &machine, "--pipe", "--wait", "echo", "from the guest"]).expect(0);
    assert_eq!(said.text(), "from the guest\n");
    let said = run(["systemd-run", "--quiet", "-M", &machine, "--pipe", "--wait", "sh", "-c", "exit 7"]);
    assert_eq!(said.status, 7, "{said:?}");

    // machinectl shell wants a terminal.
    let shell = format!("machinectl --quiet shell root@{machine} /usr/bin/echo from the shell");
    let said = sh(&format!("script -qec '{shell}' /dev/null </dev/null"));
    assert!(said.contains("from the shell"), "{said:?}");

    let journal = run(["journalctl", "--no-pager", "-M", &machine, "-n", "1"]);
    assert_eq!(journal.status, 0, "journalctl -M: {}", journal.errors());
    runner.cleanup();
    until("machined forgets the machine", || (!sh("machinectl list --no-legend").contains(&machine)).then_some(()));
}

fn journal_lines_carry_the_names_of_the_job() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let job = runner.state()["job"].as_str().expect("a job").to_owned();
    runner.step(&Step::script(&runner, "sh", "exit 3").env("GITHUB_ACTION", "__run_2")).expect(3);
    runner.cleanup();
    let lines = || -> Vec<Value> {
        let text =
            sh(&format!("journalctl --sync; journalctl --no-pager -o json -u runner-guestd RUNNER_JOB_ID={job}"));
        text.lines().map(|line| serde_json::from_str(line).expect("journalctl prints JSON")).collect()
    };
    let lines = lines();
    assert!(lines.len() >= 3, "prepared, step ended, nothing left: {lines:#?}");
    for line in &lines {
        for (field, value) in [
            ("RUNNER_REPOSITORY", "octo/widgets"),
            ("RUNNER_WORKFLOW", "lab tests"),
            ("RUNNER_RUN_ID", "4711"),
            ("RUNNER_JOB", "build"),
            ("RUNNER_NAME", "runner 01"),
            ("RUNNER_JOB_ID", &job),
        ] {
            assert_eq!(line[field], value, "{field} of {}", line["MESSAGE"]);
        }
    }
    let step = lines.iter().find(|line| line["RUNNER_STEP"] == "__run_2").expect("a line about the step");
    assert_eq!(step["RUNNER_EXIT_STATUS"], "3", "{step}");
    // The guest's own console lines carry them too.
    let console = sh(&format!("journalctl --no-pager -o json _SYSTEMD_UNIT=runner-guest-{job}0.service | head -n 1"));
    if !console.is_empty() {
        let line: Value = serde_json::from_str(&console).expect("journalctl prints JSON");
        assert_eq!(line["RUNNER_REPOSITORY"], "octo/widgets", "{line}");
    }
}

fn a_second_prepare_removes_the_first_job() {
    let runner = Runner::new("runner 01");
    let first = runner.prepare(fixture::debian());
    runner.begin_until("touch /tmp/first; setsid sleep 424242 >/dev/null 2>&1 & echo up", "up").end().expect(0);
    let leader = host::leader(&first);
    runner.forge_state(Value::Null);
    let second = runner.prepare(fixture::debian());
    assert_ne!(first, second);
    assert!(host::is_gone(leader), "the first guest lives");
    assert_eq!(host::processes_with("sleep 424242"), Vec::<u32>::new());
    let jobs = sh("ls /var/lib/runner/jobs /run/runner/guests");
    assert!(!jobs.contains(first.trim_start_matches("runner-")), "{jobs}");
    assert_eq!(runner.sh("ls /tmp").expect(0).text(), "", "the second job sees files of the first");
    runner.cleanup();
}

fn cleanup_works_without_state_and_twice() {
    let runner = Runner::new("runner 01");
    runner.cleanup();
    runner.prepare(fixture::alpine());
    runner.forge_state(Value::Null);
    runner.cleanup();
    runner.cleanup();
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_step_without_a_job_fails_fast() {
    let runner = Runner::new("runner 01");
    runner.sh("true").own_failure(&["no job container", "Initialize containers"]);
    runner.prepare(fixture::alpine());
    runner.cleanup();
    runner.sh("true").own_failure(&["no job container"]);
}

fn a_forged_state_neither_helps_nor_harms() {
    let (mine, other) = (Runner::new("runner 01"), Runner::with_repository("runner 02", "gadgets"));
    mine.prepare(fixture::alpine());
    other.prepare(fixture::alpine());
    let real = mine.state();
    mine.forge_state(other.state());
    mine.sh("touch /tmp/intruder").own_failure(&["state", "another job"]);
    for state in [json!({}), json!({"v": 99, "job": "x"}), json!({"v": 1, "job": "../../etc"}), json!({"a": [1, "x"]})]
    {
        mine.forge_state(state);
        mine.sh("true").expect(0);
    }
    // Cleaning up with the other's state removes one's own job and not the other's.
    mine.forge_state(other.state());
    mine.cleanup();
    other.sh("! test -e /tmp/intruder").expect(0);
    mine.forge_state(real);
    mine.sh("true").own_failure(&["no job container"]);
    other.cleanup();
}

fn a_runner_name_may_contain_anything() {
    for name in ["", "Läufer № 1 / \"x\" $(id) \\", "../../etc", "-M", &"n".repeat(5_000)] {
        let runner = Runner::new(name);
        runner.prepare(fixture::alpine());
        runner.sh("true").expect(0);
        runner.cleanup();
    }
}

fn a_missing_actions_folder_is_no_failure() {
    let runner = Runner::new("runner 01");
    sh("rm -rf /home/runner/_work/_actions");
    runner.prepare(fixture::alpine());
    // An action that is downloaded later must be seen.
    sh(
        "install -d -o runner -g runner /home/runner/_work/_actions/octo; echo here >/home/runner/_work/_actions/octo/x",
    );
    assert_eq!(runner.sh("cat /__w/_actions/octo/x").expect(0).text(), "here\n");
    runner.cleanup();
    assert!(!exists("/var/run/docker.sock"), "no folder was made in place of Docker's socket");
    sh("rm -rf /home/runner/_work/_actions");
}

fn the_broker_keeps_nothing_of_jobs_that_are_over() {
    let runner = Runner::new("runner 01");
    let cycle = || {
        runner.prepare(fixture::alpine());
        runner.sh("true").expect(0);
        runner.cleanup();
    };
    cycle();
    let broker = host::started_broker();
    let open = || sh(&format!("ls /proc/{broker}/fd | wc -l")).parse::<u32>().expect("a number");
    let before = open();
    for _ in 0..5 {
        cycle();
    }
    until("the broker closes what belongs to its callers", || (open() <= before).then_some(()));
    assert_eq!(host::broker(), Some(broker), "the broker was restarted");
    // Ids go round: no lease is lost by six jobs out of a pool of 256.
    assert!(sh("runnerctl jobs --json").contains("[]"), "{}", sh("runnerctl jobs --json"));
}

fn two_steps_at_once_do_not_disturb_each_other() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let first = runner.begin_until("echo first; until test -e /tmp/go; do sleep 0.02; done; exit 4", "first\n");
    let second = runner.begin_until("echo second; until test -e /tmp/go; do sleep 0.02; done; exit 5", "second\n");
    runner.sh("touch /tmp/go").expect(0);
    assert_eq!(first.end().expect(4).text(), "first\n");
    assert_eq!(second.end().expect(5).text(), "second\n");
    runner.cleanup();
}
