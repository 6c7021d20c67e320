//! Output: every byte, live, in order within a stream, whoever reads it how slowly.

use std::sync::Arc;

use crate::fixture;
use crate::hook::{Gate, Runner, exists, new_response_file};
use crate::host::{self, until};
use crate::lab::{Test, tests};
use crate::request::Step;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_hundred_thousand_lines_arrive_on_either_stream,
        every_byte_value_arrives_unchanged,
        output_comes_while_the_program_runs,
        a_line_of_ours_starts_a_line,
        workflow_commands_pass_untouched,
        a_daemon_that_holds_the_output_delays_nothing,
        last_words_before_a_sudden_end_arrive,
        a_slow_reader_gets_everything,
        a_reader_that_goes_away_ends_the_call,
        a_closed_output_is_no_failure,
    ]
}

fn a_hundred_thousand_lines_arrive_on_either_stream() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let expected: String = (1..=100_000).map(|number| format!("line {number:06} of a hundred thousand\n")).collect();
    let print = "seq -f 'line %06.0f of a hundred thousand' 100000";
    let ended = runner.sh(print).expect(0);
    assert!(ended.text() == expected && ended.stderr.is_empty(), "{} bytes of {}", ended.stdout.len(), expected.len());
    let ended = runner.sh(&format!("{print} >&2")).expect(0);
    assert!(
        ended.error_text() == expected && ended.stdout.is_empty(),
        "{} bytes of {}",
        ended.stderr.len(),
        expected.len()
    );
    let ended = runner.sh(&format!("{print} & {print} >&2; wait")).expect(0);
    assert!(
        ended.text() == expected && ended.error_text() == expected,
        "{} {}",
        ended.stdout.len(),
        ended.stderr.len()
    );
    runner.cleanup();
}

fn every_byte_value_arrives_unchanged() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let all: Vec<u8> = (0..=255).collect();
    let octal: String = all.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let ended = runner.sh(&format!("printf '{octal}'; printf '{octal}' >&2")).expect(0);
    assert_eq!((ended.stdout, ended.stderr), (all.clone(), all));
    // More than any pipe holds, and no line feed anywhere.
    let ended = runner.sh("head -c 5000000 /dev/zero | tr '\\0' '\\377'").expect(0);
    assert!(ended.stdout.len() == 5_000_000 && ended.stdout.iter().all(|byte| *byte == 0xff), "{}", ended.stdout.len());
    runner.cleanup();
}

fn output_comes_while_the_program_runs() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let mut call = runner.begin(&Step::script(
        &runner,
        "sh",
        "printf 'no line feed yet'; until test -e /tmp/go; do sleep 0.02; done",
    ));
    call.wait_for("no line feed yet");
    assert!(call.is_running());
    runner.sh("touch /tmp/go").expect(0);
    assert_eq!(call.end().expect(0).text(), "no line feed yet");
    runner.cleanup();
}

fn a_line_of_ours_starts_a_line() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    for print in ["printf 'no line feed'", "printf 'with one\\n'"] {
        let ended = runner.sh(&format!("{print}; kill -KILL $$")).expect(137);
        let text = ended.text();
        let last = text.lines().last().expect("a line");
        assert!(last.starts_with("::error::"), "{text:?}");
        assert!(text.starts_with("no line feed\n") || text.starts_with("with one\n"), "{text:?}");
    }
    runner.cleanup();
}

fn workflow_commands_pass_untouched() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let text = "::add-mask::hunter2\n::group::x\n##[error]y\n::stop-commands::token\n::error::no\x1b[31m\n";
    assert_eq!(runner.sh(&format!("cat <<'E_O_F'\n{text}E_O_F")).expect(0).text(), text);
    // In our own words nothing of the request becomes a command: one line, and no `##[` in it.
    for name in ["/no/::set-env name=A::b", "##[error]x", "x\n::warning::x", "\u{1b}[31m::warning::x"] {
        let error = runner.step(&Step::program(name, &[])).own_failure(&["args.entryPoint"]);
        assert!(!error.contains("##[") && !error.chars().any(char::is_control), "{error:?}");
    }
    runner.cleanup();
}

fn a_daemon_that_holds_the_output_delays_nothing() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner.sh("setsid sleep 434343 & echo started").expect(0);
    assert_eq!(ended.text(), "started\n");
    // The daemon lives, and still has the pipe; the hook is over, and so is its output.
    until("the daemon runs", || (host::processes_with("sleep 434343").len() == 1).then_some(()));
    runner.sh("true").expect(0);
    assert_eq!(host::processes_with("sleep 434343").len(), 1);
    runner.cleanup();
    assert_eq!(host::processes_with("sleep 434343"), Vec::<u32>::new());
}

fn last_words_before_a_sudden_end_arrive() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    for _ in 0..10 {
        let ended = runner.sh("seq 20000; kill -KILL $$").expect(137);
        assert!(ended.text().contains("\n20000\n"), "cut after {} bytes", ended.stdout.len());
        let ended = runner.sh("printf last >&2; exit 3").expect(3);
        assert_eq!(ended.error_text(), "last");
    }
    runner.cleanup();
}

fn a_slow_reader_gets_everything() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let gate = Arc::new(Gate::default());
    let script = "touch /__w/_temp/begun; head -c 8000000 /dev/zero | tr '\\0' x; touch /__w/_temp/ended; exit 6";
    let mut request = Step::script(&runner, "sh", script).request(&runner);
    request["state"] = runner.state();
    let response = new_response_file();
    request["responseFile"] = response.display().to_string().into();
    let mut call = runner.raw_read_when(request.to_string().as_bytes(), Some(response), Some(Arc::clone(&gate)));
    until("the program writes", || exists("/home/runner/_work/_temp/begun").then_some(()));
    // Another step comes and goes; the program still waits for its reader.
    runner.sh("true").expect(0);
    assert!(call.is_running() && !exists("/home/runner/_work/_temp/ended"), "8 MB went nowhere");
    gate.open();
    let ended = call.end().expect(6);
    assert!(ended.stdout.len() == 8_000_000 && ended.stdout.iter().all(|byte| *byte == b'x'), "{}", ended.stdout.len());
    runner.cleanup();
}

fn a_reader_that_goes_away_ends_the_call() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    // As the runner does when it dies: nobody reads any more, and the process is killed.
    let call = runner.begin_until("echo up; sleep 454545", "up");
    call.signal(rustix::process::Signal::KILL);
    call.end();
    until("the step's processes are gone", || host::processes_with("sleep 454545").is_empty().then_some(()));
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn a_closed_output_is_no_failure() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner.sh("echo before; exec >&- 2>&-; sleep 0.05; exit 8").expect(8);
    assert_eq!(ended.text(), "before\n");
    runner.cleanup();
}
