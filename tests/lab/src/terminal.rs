//! `ci-nspawn-run` at a person's terminal. The terminal is one of python3's, in the lab host.

use crate::fixture;
use crate::host::run;
use crate::lab::{Test, tests};
use crate::leftovers;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        the_program_has_a_terminal_of_the_same_size,
        keys_reach_the_program_and_its_answers_come_back,
        control_c_reaches_the_program_and_not_us,
        a_new_window_size_reaches_the_program,
        the_terminal_is_as_it_was_afterwards,
        a_program_at_a_terminal_that_cannot_start_is_named,
    ]
}

/// Runs the program with its three streams on a new terminal of 33 rows and 111 columns, whose other side follows this
/// Python script: `expect(text)` reads until it comes, `send(text)` types. Prints all that came, then the status.
const HARNESS: &str = r#"
import os, pty, select, struct, sys, fcntl, termios, signal, time
words = sys.argv[2:]
pid, master = pty.fork()
if pid == 0:
    size = struct.pack('HHHH', 33, 111, 0, 0)
    fcntl.ioctl(0, termios.TIOCSWINSZ, size)
    os.execvp(words[0], words)
came = b''
seen = 0
end = time.time() + 30
def more():
    global came
    ready, _, _ = select.select([master], [], [], max(0, end - time.time()))
    if not ready:
        sys.exit('no more came: %r' % came)
    try:
        data = os.read(master, 4096)
    except OSError:
        data = b''
    came += data
    return bool(data)
def expect(text):
    global seen
    while text.encode() not in came[seen:]:
        if not more():
            sys.exit('no %r in %r' % (text, came))
    seen = came.index(text.encode(), seen) + len(text)
def send(text):
    os.write(master, text.encode())
def resize(rows, columns):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
exec(sys.argv[1])
while more():
    pass
_, status = os.waitpid(pid, 0)
sys.stdout.write(came.decode())
print('status', os.waitstatus_to_exitcode(status))
"#;

/// The script's words and the status line.
#[track_caller]
fn at_terminal(script: &str, command: &str) -> String {
    let words =
        ["python3", "-c", HARNESS, script, "ci-nspawn-run", "--image", fixture::debian(), "--", "bash", "-c", command];
    run(words).expect(0).text().replace('\r', "")
}

fn the_program_has_a_terminal_of_the_same_size() {
    let said = at_terminal(
        "",
        "tty() { readlink /proc/self/fd/$1; }; tty 0; tty 1; tty 2; stty size 2>/dev/null || busybox stty size; exit 7",
    );
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() == 5 && lines[..3].iter().all(|line| line.starts_with("/dev/pts/")), "{said}");
    assert_eq!(lines[3..], ["33 111", "status 7"], "{said}");
    let said = at_terminal("", "echo this is </dev/tty >/dev/tty the controlling terminal");
    assert!(said.starts_with("this is the controlling terminal\n"), "{said}");
}

fn keys_reach_the_program_and_its_answers_come_back() {
    let script = "expect('name? '); send('Mona\\r'); expect('hello Mona'); send('\\x04')";
    let said = at_terminal(script, "printf 'name? '; read name; echo hello $name; cat; echo end of input");
    assert!(said.contains("hello Mona\n") && said.contains("end of input\nstatus 0"), "{said}");
}

fn control_c_reaches_the_program_and_not_us() {
    let said = at_terminal(
        "expect('up'); send('\\x03')",
        "trap 'echo caught SIGINT; exit 9' INT; echo up; while :; do sleep 0.05; done",
    );
    assert!(said.contains("caught SIGINT\n") && said.ends_with("status 9\n"), "{said}");
    let said = at_terminal("expect('up'); send('\\x03')", "echo up; exec sleep 555555");
    assert!(said.ends_with("status 130\n"), "{said}");
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_new_window_size_reaches_the_program() {
    let script = "expect('up'); resize(44, 77); expect('44 77')";
    let said = at_terminal(script, "trap 'busybox stty size; exit 0' WINCH; echo up; while :; do sleep 0.05; done");
    assert!(said.ends_with("status 0\n"), "{said}");
}

fn the_terminal_is_as_it_was_afterwards() {
    let script = "stty -a >/tmp/lab-before; ci-nspawn-run --image lab/debian:13 -- true; stty -a >/tmp/lab-after; cmp /tmp/lab-before /tmp/lab-after; \
                  ci-nspawn-run --image lab/debian:13 -- no-such-program; stty -a >/tmp/lab-after; cmp /tmp/lab-before /tmp/lab-after && echo the same";
    fixture::debian();
    let said = run(["python3", "-c", HARNESS, "", "sh", "-c", script]).expect(0).text().replace('\r', "");
    assert!(said.ends_with("the same\nstatus 0\n"), "{said}");
    run(["rm", "/tmp/lab-before", "/tmp/lab-after"]).expect(0);
}

fn a_program_at_a_terminal_that_cannot_start_is_named() {
    let words = ["python3", "-c", HARNESS, "", "ci-nspawn-run", "--image", fixture::debian(), "--", "no-such-program"];
    let said = run(words).expect(0).text().replace('\r', "");
    assert!(said.contains("ci-nspawn-run: ") && said.contains("no-such-program"), "{said}");
    assert!(said.ends_with("status 125\n"), "{said}");
}
