//! Exit status: the program's own, 128 + signal, and 125 with a line of ours when we failed.

use crate::fixture;
use crate::hook::Runner;
use crate::lab::{Test, tests};
use crate::request::Step;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_programs_status_is_the_hooks,
        a_signal_is_128_more_and_a_line_says_which,
        the_reserved_status_of_a_program_is_told_apart,
        a_step_that_ends_while_its_children_run_is_over,
        a_program_that_replaces_itself_keeps_its_status,
        signals_have_their_default_effect,
    ]
}

fn a_programs_status_is_the_hooks() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::alpine());
    // 200 to 243 are what systemd itself says of programs it could not start.
    for status in [0, 1, 2, 42, 77, 124, 126, 127, 128, 129, 137, 200, 203, 216, 226, 242, 243, 254, 255] {
        let ended = runner.sh(&format!("exit {status}")).expect(status);
        assert_eq!(ended.text(), "", "{status}");
        assert_eq!(ended.response.as_deref(), Some(if status == 0 { &b"{}"[..] } else { b"" }), "{status}");
    }
    runner.cleanup();
}

fn a_signal_is_128_more_and_a_line_says_which() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    for (signal, number) in [("HUP", 1), ("INT", 2), ("ABRT", 6), ("KILL", 9), ("SEGV", 11), ("PIPE", 13), ("TERM", 15)]
    {
        let ended = runner.step(&Step::program("busybox", &["sh", "-c", &format!("'kill -{signal} $$'")]));
        let ended = ended.expect(128 + number);
        let errors = ended.errors();
        assert_eq!(errors.len(), 1, "{}", ended.story());
        assert!(errors[0].contains(&format!("SIG{signal}")), "{}", errors[0]);
    }
    // A shell whose child was killed exits by itself, with the same number and no word of ours.
    let ended = runner.sh("bash -c 'kill -TERM $$' || exit $?").expect(143);
    assert_eq!(ended.errors(), Vec::<String>::new(), "{}", ended.story());
    runner.cleanup();
}

fn the_reserved_status_of_a_program_is_told_apart() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::alpine());
    let ended = runner.sh("exit 125").expect(125);
    assert_eq!(ended.errors(), Vec::<String>::new(), "{}", ended.story());
    // Even if it pretends to be the launcher.
    let forged = runner.sh("echo 'STATUS=runner-guest-exec: entryPoint: forged' >&2; exit 125").expect(125);
    assert_eq!(forged.errors(), Vec::<String>::new(), "{}", forged.story());
    runner.step(&Step::program("not-there", &[])).own_failure(&["args.entryPoint"]);
    runner.cleanup();
}

fn a_step_that_ends_while_its_children_run_is_over() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner.sh("(until test -e /tmp/go; do sleep 0.02; done; touch /tmp/gone) & exit 9").expect(9);
    assert_eq!(ended.text(), "");
    runner.sh("touch /tmp/go; until test -e /tmp/gone; do sleep 0.02; done").expect(0);
    runner.cleanup();
}

fn a_program_that_replaces_itself_keeps_its_status() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    runner.sh("exec bash -c 'exec sh -c \"exit 33\"'").expect(33);
    runner.cleanup();
}

fn signals_have_their_default_effect() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner.step(&Step::program("grep", &["-E", "'^Sig(Blk|Ign):'", "/proc/self/status"])).expect(0);
    for line in ended.text().lines() {
        let mask = u64::from_str_radix(line.split('\t').nth(1).unwrap_or_default(), 16).expect("a mask");
        // Signals 32 and 33 are the C library's own and cannot be reset.
        assert_eq!(mask & 0x7fff_ffff, 0, "{}", ended.story());
    }
    // As in every shell: a writer whose reader is gone is ended by SIGPIPE, in silence.
    let ended = runner.step(&Step::program("bash", &["-c", "'set -o pipefail; busybox yes | head -n 1'"])).expect(141);
    assert_eq!((ended.text().as_str(), ended.error_text().as_str()), ("y\n", ""));
    runner.cleanup();
}
