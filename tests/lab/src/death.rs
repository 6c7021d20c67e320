//! Sudden ends: of the hook, the broker, the guest and its parts, at any moment. Each is a clear error, never a success,
//! and afterwards nothing is left.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::fixture;
use crate::hook::{Call, Runner};
use crate::host::{self, kill, leader, processes_with, run, sh, until};
use crate::lab::{Test, tests};
use crate::leftovers;
use crate::request;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_killed_hook_takes_its_step_along,
        a_hook_killed_while_preparing_leaves_nothing,
        a_killed_broker_is_a_clear_error_and_its_next_life_reaps,
        a_broker_killed_at_any_moment_of_preparing_leaves_nothing,
        a_stopped_broker_takes_its_jobs_along,
        a_broker_killed_between_steps_is_named,
        a_killed_guest_is_a_clear_error,
        a_guest_that_powers_itself_off_is_no_success,
        a_killed_bus_of_the_guest_is_a_clear_error,
        a_killed_journal_of_the_guest_changes_nothing,
        a_guest_whose_pid_1_is_stopped_can_be_cancelled_and_removed,
        a_step_that_kills_everything_it_can_is_no_success,
        a_killed_machined_does_not_end_a_job,
        a_job_after_any_sudden_end_works,
    ]
}

/// Whether a stage of preparing has been reached.
type Reached = fn() -> bool;

const SLEEP: &str = "echo up; sleep 505050";

/// A job with a step under way; calls `end_it`, and demands that the step fails with one line of ours with these words,
/// that nothing runs on, and that the next job finds nothing.
#[track_caller]
fn mid_step(end_it: impl FnOnce(&str, &Call<'_>), words: &[&str]) {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let call = runner.begin_until(SLEEP, "up");
    let before = Instant::now();
    end_it(&machine, &call);
    let ended = call.end();
    let took = before.elapsed();
    ended.own_failure(words);
    assert!(took < Duration::from_secs(10), "the error came after {took:?}");
    until("the step's processes are gone", || processes_with("sleep 505050").is_empty().then_some(()));
    host::started_broker();
    runner.prepare(fixture::debian());
    runner.sh("true").expect(0);
    runner.cleanup();
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

/// Processes of a guest with this name.
fn in_guest(machine: &str, name: &str) -> u32 {
    let unit = machine.replace("runner-", "runner-guest-");
    let group = host::property(&format!("{unit}.service"), "ControlGroup");
    let script = format!(
        "for pid in $(find /sys/fs/cgroup{group} -name cgroup.procs -exec cat {{}} +); do \
         test \"$(cat /proc/$pid/comm)\" != {name} || echo $pid; done"
    );
    sh(&script).lines().next().and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no {name} in {machine}"))
}

fn a_killed_hook_takes_its_step_along() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let call = runner.begin_until("trap '' TERM; setsid sleep 505050 & echo up; sleep 505050; sleep 505050", "up");
    call.signal(Signal::KILL);
    assert_eq!(call.end().status, 128 + 9);
    until("the step's processes are gone", || processes_with("sleep 505050").is_empty().then_some(()));
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn a_hook_killed_while_preparing_leaves_nothing() {
    let runner = Runner::new("runner 01");
    let image = fixture::debian();
    let something = || leftovers::now().iter().any(|line| line.starts_with("folder "));
    let mut call = runner.call(request::prepare(request::container(image, &runner)));
    until("something exists", || (something() || !call.is_running()).then_some(()));
    call.signal(Signal::KILL);
    call.end();
    // Nobody will call cleanup_job: the broker has noticed by itself, or the next prepare_job does it.
    runner.prepare(image);
    runner.cleanup();
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_killed_broker_is_a_clear_error_and_its_next_life_reaps() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let guest = leader(&machine);
    let call = runner.begin_until(SLEEP, "up");
    let broker = host::broker().expect("it runs");
    kill(broker, Signal::KILL);
    call.end().own_failure(&["broker", "outcome is not known", "journalctl"]);
    host::broker_after(broker);
    assert!(host::is_gone(guest), "the new broker is ready, and the guest of the old one lives");
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
    runner.sh("true").own_failure(&["no job container", "restarted"]);
    runner.cleanup();
    runner.prepare(fixture::debian());
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn a_broker_killed_at_any_moment_of_preparing_leaves_nothing() {
    let runner = Runner::new("runner 01");
    let image = fixture::debian();
    let stages: [(&str, Reached); 5] = [
        ("at once", || true),
        ("a folder of the job", || leftovers::now().iter().any(|line| line.starts_with("folder /var"))),
        ("a folder of the guest", || leftovers::now().iter().any(|line| line.starts_with("folder /run"))),
        ("a unit", || leftovers::now().iter().any(|line| line.starts_with("unit "))),
        ("a guest", || leftovers::now().iter().any(|line| line.starts_with("machine "))),
    ];
    for (stage, reached) in stages {
        let broker = host::started_broker();
        let mut call = runner.call(request::prepare(request::container(image, &runner)));
        until(stage, || (reached() || !call.is_running()).then_some(()));
        kill(broker, Signal::KILL);
        let ended = call.end();
        host::broker_after(broker);
        if ended.status == 0 {
            // It connected to the next broker already.
            runner.cleanup();
        } else {
            let error = ended.own_failure(&["broker"]);
            assert!(error.contains("systemctl") || error.contains("journalctl"), "{stage}: {error}");
        }
        let left = leftovers::look();
        assert!(left.is_empty(), "{stage}: {left:#?}");
    }
    runner.forge_state(serde_json::Value::Null);
    runner.prepare(image);
    runner.cleanup();
}

fn a_stopped_broker_takes_its_jobs_along() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let call = runner.begin_until(SLEEP, "up");
    run(["systemctl", "stop", "runner-guestd.service"]).expect(0);
    call.end().own_failure(&["broker"]);
    // The socket is there: the next call starts it, and its start reaps.
    runner.sh("true").own_failure(&["no job container"]);
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_broker_killed_between_steps_is_named() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let broker = host::broker().expect("it runs");
    kill(broker, Signal::KILL);
    host::broker_after(broker);
    runner.sh("true").own_failure(&["no job container", "broker was restarted"]);
    runner.cleanup();
}

fn a_killed_guest_is_a_clear_error() {
    mid_step(|machine, _| kill(leader(machine), Signal::KILL), &["is not known"]);
    mid_step(|machine, _| drop(run(["machinectl", "terminate", machine])), &["is not known"]);
    let whole = |machine: &str| format!("{}.service", machine.replace("runner-", "runner-guest-"));
    mid_step(|machine, _| drop(run(["systemctl", "kill", "--signal=KILL", &whole(machine)])), &["is not known"]);
}

fn a_guest_that_powers_itself_off_is_no_success() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let call = runner.begin_until(SLEEP, "up");
    // As root of the guest can: SIGRTMIN+4 and SIGRTMIN+14 are "power off" to systemd.
    run(["systemctl", "-M", &machine, "--no-block", "--force", "poweroff"]);
    let ended = call.end();
    assert!(ended.status != 0, "{}", ended.story());
    ended.own_failure(&[]);
    runner.cleanup();
    // From within, by a step.
    runner.prepare(fixture::debian());
    let call = runner.begin_until("echo up; kill -KILL 1; kill -s RTMIN+14 1; sleep 505050", "up");
    let ended = call.end();
    assert_eq!(ended.status, 125, "{}", ended.story());
    runner.cleanup();
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_killed_bus_of_the_guest_is_a_clear_error() {
    mid_step(|machine, _| kill(in_guest(machine, "dbus-daemon"), Signal::KILL), &["is not known"]);
    // Between two steps: the next one says so, and is no success.
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let bus = in_guest(&machine, "dbus-daemon");
    kill(bus, Signal::KILL);
    until("the bus is gone", || host::is_gone(bus).then_some(()));
    runner.sh("true").own_failure(&["is not known"]);
    runner.cleanup();
}

fn a_killed_journal_of_the_guest_changes_nothing() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let call = runner.begin_until("echo up; until test -e /tmp/go; do sleep 0.02; done; echo after; exit 4", "up");
    let journal = in_guest(&machine, "systemd-journal");
    kill(journal, Signal::KILL);
    until("it is gone", || host::is_gone(journal).then_some(()));
    runner.sh("touch /tmp/go").expect(0);
    assert_eq!(call.end().expect(4).text(), "up\nafter\n");
    runner.cleanup();
}

fn a_guest_whose_pid_1_is_stopped_can_be_cancelled_and_removed() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let call = runner.begin_until(SLEEP, "up");
    kill(leader(&machine), Signal::STOP);
    let sent = Instant::now();
    call.signal(Signal::INT);
    let ended = call.end();
    let took = sent.elapsed();
    ended.own_failure(&["cancelled"]);
    assert!(took < Duration::from_millis(6_900), "{took:?}");
    assert_eq!(processes_with("sleep 505050"), Vec::<u32>::new());
    runner.cleanup();
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");

    // Without a cancel: a step cannot start, and cleaning up needs nobody's help.
    let machine = runner.prepare(fixture::debian());
    kill(leader(&machine), Signal::STOP);
    let began = Instant::now();
    runner.cleanup();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_step_that_kills_everything_it_can_is_no_success() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner.sh("for place in -a /__w /proc '-l /' /__e; do umount $place 2>/dev/null || true; done; ls /__w/_temp >/dev/null; echo still there").expect(0);
    assert_eq!(ended.text(), "still there\n");
    let ended = runner.sh("echo up; kill -KILL -1; sleep 505050");
    assert!(ended.status != 0, "{}", ended.story());
    let ended = runner.sh("true");
    // Its bus was among those it killed, so the container is over, or systemd brought it back.
    assert!(ended.status == 0 || ended.status == 125, "{}", ended.story());
    runner.cleanup();
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_killed_machined_does_not_end_a_job() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let call = runner.begin_until("echo up; until test -e /tmp/go; do sleep 0.02; done; exit 4", "up");
    run(["systemctl", "kill", "--signal=KILL", "systemd-machined.service"]).expect(0);
    runner.sh("touch /tmp/go").expect(0);
    call.end().expect(4);
    runner.cleanup();
    runner.prepare(fixture::debian());
    runner.cleanup();
}

fn a_job_after_any_sudden_end_works() {
    let runner = Runner::new("runner 01");
    for _ in 0..3 {
        let machine = runner.prepare(fixture::alpine());
        kill(leader(&machine), Signal::KILL);
        runner.forge_state(serde_json::Value::Null);
    }
    runner.prepare(fixture::debian());
    runner.sh("true").expect(0);
    runner.cleanup();
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}
