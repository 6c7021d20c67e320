//! Cancellation (protocol text, 15.4): SIGINT to the hook alone, 7.5 s later SIGTERM, 2.5 s later SIGKILL. By then nothing
//! of the step may run, and the hook must be gone well before.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::fixture;
use crate::hook::{Call, Ended, Runner};
use crate::host::{processes_with, until};
use crate::lab::{Test, tests};
use crate::leftovers;
use crate::request::{self, Step};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_program_that_traps_sigterm_has_its_time,
        every_process_of_the_step_is_ended,
        a_program_that_ignores_sigterm_is_killed_in_time,
        a_second_signal_kills_at_once,
        background_processes_of_other_steps_live_on,
        a_cancelled_step_is_never_a_success,
        a_job_cancelled_while_it_is_prepared_leaves_nothing,
        a_signal_before_the_request_is_read_does_no_harm,
        a_cancelled_step_that_prints_without_end_is_over,
        cleanup_after_a_cancelled_step_removes_everything,
    ]
}

/// The official runner's patience, less what the issue asks of us.
const WELL_BELOW: Duration = Duration::from_millis(6_900);

/// Whether a stage of preparing has been reached.
type Reached = fn() -> bool;

/// Sends SIGINT and waits for the end.
#[track_caller]
fn interrupted(call: Call<'_>) -> (Ended, Duration) {
    let sent = Instant::now();
    call.signal(Signal::INT);
    let ended = call.end();
    (ended, sent.elapsed())
}

#[track_caller]
fn cancelled(ended: &Ended) {
    assert_eq!(ended.status, 125, "{}", ended.story());
    let errors = ended.errors();
    assert_eq!(errors.len(), 1, "{}", ended.story());
    assert!(errors[0].contains("cancelled"), "{}", errors[0]);
    assert!(!ended.held_open, "{}", ended.story());
}

fn a_program_that_traps_sigterm_has_its_time() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let script = "trap 'echo caught; sleep 0.3; echo tidied up; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let (ended, took) = interrupted(runner.begin_until(script, "ready"));
    cancelled(&ended);
    assert!(ended.text().contains("ready\ncaught\ntidied up\n"), "{}", ended.story());
    assert!(took < Duration::from_secs(3), "it was ready to go after 0.3 s, and took {took:?}");
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn every_process_of_the_step_is_ended() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let script = "setsid sleep 474747 & (sleep 474747 & sleep 474747) & nohup sleep 474747 >/dev/null 2>&1 & echo ready; sleep 474747";
    let (ended, _) = interrupted(runner.begin_until(script, "ready"));
    cancelled(&ended);
    // At once, not some time later.
    assert_eq!(processes_with("sleep 474747"), Vec::<u32>::new());
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn a_program_that_ignores_sigterm_is_killed_in_time() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let script = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.484848; done";
    let (ended, took) = interrupted(runner.begin_until(script, "ready"));
    cancelled(&ended);
    assert!(took > Duration::from_secs(2), "no time was given: {took:?}");
    assert!(took < WELL_BELOW, "{took:?}");
    assert_eq!(processes_with("sleep 0.484848"), Vec::<u32>::new());
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn a_second_signal_kills_at_once() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    for second in [Signal::TERM, Signal::INT] {
        let script = "trap 'echo caught' TERM; echo ready; while :; do sleep 0.05; done";
        let call = runner.begin_until(script, "ready");
        call.signal(Signal::INT);
        call.wait_for("caught");
        let sent = Instant::now();
        call.signal(second);
        let ended = call.end();
        cancelled(&ended);
        assert!(sent.elapsed() < Duration::from_secs(2), "{:?}", sent.elapsed());
    }
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn background_processes_of_other_steps_live_on() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    runner.sh("setsid sleep 494949 >/dev/null 2>&1 &").expect(0);
    let other = runner.begin_until("echo up; until test -e /tmp/go; do sleep 0.02; done; exit 5", "up");
    let (ended, _) = interrupted(runner.begin_until("echo ready; sleep 500000", "ready"));
    cancelled(&ended);
    assert_eq!(processes_with("sleep 494949").len(), 1, "a process of an earlier step was ended too");
    runner.sh("touch /tmp/go").expect(0);
    other.end().expect(5);
    runner.cleanup();
}

fn a_cancelled_step_is_never_a_success() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    // A program that ends with 0 when it is asked to.
    let (ended, _) =
        interrupted(runner.begin_until("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done", "ready"));
    cancelled(&ended);
    assert_eq!(ended.response.as_deref(), Some(&b""[..]), "a response was written");
    // One that does not notice: its own status stands, or the cancellation does; a race that the program wins is fine.
    let call = runner.begin_until("echo ready; exit 3", "ready");
    call.signal(Signal::INT);
    let ended = call.end();
    assert!(ended.status == 3 || ended.status == 125 || ended.status == 128 + 2, "{}", ended.story());
    runner.cleanup();
}

fn a_job_cancelled_while_it_is_prepared_leaves_nothing() {
    let runner = Runner::new("runner 01");
    let image = fixture::debian();
    // At every stage: when it begins, when there is a folder, a unit, a machine.
    let stages: [(&str, Reached); 4] = [
        ("at once", || true),
        ("a folder", || leftovers::now().iter().any(|line| line.starts_with("folder "))),
        ("a unit", || leftovers::now().iter().any(|line| line.starts_with("unit "))),
        ("processes", || leftovers::now().iter().any(|line| line.contains("/usr/lib/systemd/systemd "))),
    ];
    for (stage, reached) in stages {
        let mut call = runner.call(request::prepare(request::container(image, &runner)));
        until(stage, || (reached() || !call.is_running()).then_some(()));
        if call.is_running() {
            call.signal(Signal::INT);
        }
        let ended = call.end();
        if ended.status == 0 {
            // It was quicker than we were.
            runner.cleanup();
        } else if ended.status != 130 {
            // 130: the signal came before the hook listened for it, so before it asked for anything.
            cancelled(&ended);
        }
        let left = leftovers::look();
        assert!(left.is_empty(), "{stage}: {left:#?}");
    }
    runner.prepare(image);
    runner.cleanup();
}

fn a_signal_before_the_request_is_read_does_no_harm() {
    let runner = Runner::new("runner 01");
    for _ in 0..5 {
        let call = runner.call(request::prepare(request::container(fixture::alpine(), &runner)));
        call.signal(Signal::TERM);
        let ended = call.end();
        assert_ne!(ended.status, 0, "{}", ended.story());
        let left = leftovers::look();
        assert!(left.is_empty(), "{left:#?}");
    }
}

fn a_cancelled_step_that_prints_without_end_is_over() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let step = Step::program("busybox", &["yes", "output-without-end"]);
    let call = runner.begin(&step);
    call.wait_for("output-without-end\noutput-without-end\n");
    let (ended, took) = interrupted(call);
    assert_eq!(ended.status, 125, "{} bytes", ended.stdout.len());
    assert!(took < Duration::from_secs(5), "{took:?}");
    let tail = String::from_utf8_lossy(&ended.stdout[ended.stdout.len().saturating_sub(200)..]).into_owned();
    let last = tail.lines().last().unwrap_or_default();
    assert!(last.starts_with("::error::") && last.contains("cancelled"), "{tail:?}");
    runner.cleanup();
}

fn cleanup_after_a_cancelled_step_removes_everything() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let call = runner.begin_until("trap '' TERM; echo ready; while :; do sleep 0.1; done", "ready");
    call.signal(Signal::INT);
    // The runner does not wait for an abandoned step (protocol text, 16.7).
    runner.cleanup();
    let ended = call.end();
    assert_eq!(ended.status, 125, "{}", ended.story());
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}
