//! `ci-nspawn-run`: one program in a guest of its own.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::fixture;
use crate::host::{self, kill, processes_with, run, run_with, sh, until};
use crate::lab::{Test, tests};
use crate::leftovers;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        the_status_is_the_programs,
        standard_streams_go_through,
        without_an_image_it_is_the_hosts_own_userland_read_only,
        the_images_entry_point_runs_without_a_command,
        variables_directory_and_user_are_as_asked,
        a_bind_of_a_users_folder_keeps_its_owner,
        a_writable_bind_of_roots_files_is_refused,
        what_cannot_run_is_said_in_one_line,
        an_interrupt_ends_the_program_and_the_guest,
        a_killed_caller_takes_the_guest_along,
        two_at_once_are_apart,
    ]
}

fn in_image(words: &[&str]) -> host::Ran {
    run([&["ci-nspawn-run", "--image", fixture::debian(), "--"], words].concat())
}

#[track_caller]
fn nothing_left() {
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn the_status_is_the_programs() {
    for status in [0, 1, 42, 125, 203, 255] {
        let ran = in_image(&["sh", "-c", &format!("exit {status}")]).expect(status);
        assert_eq!((ran.text(), ran.errors()), (String::new(), String::new()));
    }
    let ran = in_image(&["sh", "-c", "kill -KILL $$"]).expect(137);
    assert!(ran.errors().contains("SIGKILL"), "{}", ran.errors());
    // Not one moment later is anything left.
    let left: Vec<_> = leftovers::now().into_iter().filter(|line| !line.starts_with("machine ")).collect();
    assert!(left.is_empty(), "{left:#?}");
}

fn standard_streams_go_through() {
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[(number % 3) as usize]).collect();
    let words = ["ci-nspawn-run", "--image", fixture::debian(), "--", "sh", "-c", "cat; echo problem >&2"];
    let ran = run_with(words, &sent).expect(0);
    assert!(ran.stdout == sent, "{} of {} bytes", ran.stdout.len(), sent.len());
    assert_eq!(ran.errors(), "problem\n");
    // A program that does not read, and one that ends before its input.
    in_image(&["true"]).expect(0);
    let ran = run_with(["ci-nspawn-run", "--image", fixture::debian(), "--", "head", "-c", "3"], &sent).expect(0);
    assert_eq!(ran.stdout, &sent[..3]);
}

fn without_an_image_it_is_the_hosts_own_userland_read_only() {
    let ran = run(["ci-nspawn-run", "--", "python3", "-c", "print(6*7)"]).expect(0);
    assert_eq!(ran.text(), "42\n");
    let ran = run(["ci-nspawn-run", "--", "touch", "/usr/lab-trace"]);
    assert!(ran.status == 1 && ran.errors().contains("Read-only file system"), "{ran:?}");
    let ran = run([
        "ci-nspawn-run",
        "--",
        "sh",
        "-c",
        "ls /home /var/lib/runner /etc/runner /etc/shadow 2>/dev/null; cat /proc/1/comm",
    ])
    .expect(0);
    assert_eq!(ran.text().lines().last(), Some("systemd"), "{ran:?}");
    assert!(!ran.text().contains("images") && !ran.text().contains("shadow"), "{ran:?}");
}

fn the_images_entry_point_runs_without_a_command() {
    let ran = run(["ci-nspawn-run", "--image", fixture::configured()]).expect(0);
    assert_eq!(ran.text(), "entry cmd\n");
    let ran = run(["ci-nspawn-run"]);
    assert!(ran.status == 125 && ran.errors().lines().count() == 1 && ran.errors().contains("program"), "{ran:?}");
}

fn variables_directory_and_user_are_as_asked() {
    let image = fixture::configured();
    let words = ["--env", "A=two words\n$X", "-e", "FROM_IMAGE=", "--workdir", "/tmp", "--user", "node:extra"];
    let words = [
        &["ci-nspawn-run", "--image", image],
        &words[..],
        &["--", "sh", "-c", "pwd; id -u; id -g; cat /proc/self/environ"],
    ]
    .concat();
    let ran = run(words).expect(0);
    let text = ran.text();
    assert!(text.starts_with("/tmp\n1000\n2000\n"), "{text:?}");
    let variables: Vec<_> = text["/tmp\n1000\n2000\n".len()..].split('\0').collect();
    for wanted in ["A=two words\n$X", "FROM_IMAGE=", "PATH=/opt/image/bin:/bin"] {
        assert!(variables.contains(&wanted), "{wanted:?} in {variables:?}");
    }
    assert_eq!(run(["ci-nspawn-run", "--image", image, "--", "pwd"]).expect(0).text(), "/srv/app\n");
    let ran = run(["ci-nspawn-run", "--image", image, "--env", "NAME_ONLY", "--", "true"]);
    assert!(ran.status == 125 && ran.errors().contains("--env NAME_ONLY"), "{ran:?}");
}

fn a_bind_of_a_users_folder_keeps_its_owner() {
    sh(
        "rm -rf /var/tmp/lab-bind; mkdir -p /var/tmp/lab-bind/in; echo x >/var/tmp/lab-bind/in/file; chown -R runner:runner /var/tmp/lab-bind",
    );
    let script = "stat -c %u /data/in/file; echo y >/data/new; chmod 4755 /data/new";
    let words =
        ["ci-nspawn-run", "--image", fixture::debian(), "--bind", "/var/tmp/lab-bind:/data", "--", "sh", "-c", script];
    assert_eq!(run(words).expect(0).text(), "0\n");
    assert_eq!(sh("stat -c %U:%G /var/tmp/lab-bind/new"), "runner:runner");
    // As the image's user they belong to that user.
    let script = "id -u; stat -c %u /data/in/file; echo z >/data/by-node";
    let words =
        ["ci-nspawn-run", "--image", fixture::node(), "--bind", "/var/tmp/lab-bind:/data", "--", "sh", "-c", script];
    assert_eq!(run(words).expect(0).text(), "1000\n1000\n");
    assert_eq!(sh("stat -c %U:%G /var/tmp/lab-bind/by-node"), "runner:runner");
    // Read-only, and a single file.
    let words = [
        "ci-nspawn-run",
        "--image",
        fixture::debian(),
        "-b",
        "/var/tmp/lab-bind:/data:ro",
        "-b",
        "/etc/debian_version:/version:ro",
        "--",
        "sh",
        "-c",
        "cat /version; echo x >/data/no",
    ];
    let ran = run(words);
    assert!(ran.status != 0 && ran.errors().contains("Read-only file system"), "{ran:?}");
    assert_eq!(ran.text(), format!("{}\n", sh("cat /etc/debian_version")));
    sh("rm -r /var/tmp/lab-bind");
}

fn a_writable_bind_of_roots_files_is_refused() {
    for bind in ["/etc:/data", "/:/data", "/var/tmp:/data", "/root:/data"] {
        let ran = run(["ci-nspawn-run", "--image", fixture::debian(), "--bind", bind, "--", "true"]);
        assert!(ran.status == 125 && ran.errors().lines().count() == 1, "{bind}: {ran:?}");
        assert!(ran.errors().contains("belongs to root") && ran.errors().contains(":ro"), "{bind}: {ran:?}");
    }
    for bind in [
        "relative:/data",
        "/etc",
        "/etc:data:ro",
        "/etc:/data:rw",
        "/etc:/a/../b:ro",
        "/etc:/data:ro:more",
        "/no/such:/data:ro",
    ] {
        let ran = run(["ci-nspawn-run", "--image", fixture::debian(), "--bind", bind, "--", "true"]);
        assert!(
            ran.status == 125 && ran.errors().contains("--bind") && ran.errors().lines().count() == 1,
            "{bind}: {ran:?}"
        );
    }
    nothing_left();
}

fn what_cannot_run_is_said_in_one_line() {
    let image = fixture::debian();
    for (words, said) in [
        (&["--image", image, "--", "no-such-program"][..], "no-such-program"),
        (&["--image", image, "--workdir", "/no/such", "--", "true"], "/no/such"),
        (&["--image", image, "--user", "nobody-here", "--", "true"], "nobody-here"),
        (&["--image", "127.0.0.1:5000/no/such:image", "--", "true"], "no/such:image"),
        (&["--image", "NO SUCH", "--", "true"], "--image"),
    ] {
        let ran = run([&["ci-nspawn-run"], words].concat());
        assert_eq!((ran.status, ran.stdout.len(), ran.errors().lines().count()), (125, 0, 1), "{words:?}: {ran:?}");
        assert!(
            ran.errors().starts_with("ci-nspawn-run: ") && ran.errors().contains(said),
            "{words:?}: {}",
            ran.errors()
        );
        nothing_left();
    }
}

/// A program under way that has printed "up".
fn begun(script: &str) -> (std::process::Child, std::process::ChildStdout) {
    let mut child = Command::new("ci-nspawn-run")
        .args(["--image", fixture::debian(), "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdout = child.stdout.take().expect("it is a pipe");
    let mut line = [0; 3];
    stdout.read_exact(&mut line).expect("it says that it is up");
    assert_eq!(&line, b"up\n");
    (child, stdout)
}

fn an_interrupt_ends_the_program_and_the_guest() {
    for signal in [Signal::INT, Signal::TERM] {
        let (child, mut stdout) = begun("trap 'echo caught; exit 0' TERM; echo up; while :; do sleep 0.05; done");
        let sent = Instant::now();
        kill(child.id(), signal);
        let output = child.wait_with_output().expect("our own child");
        assert!(sent.elapsed() < Duration::from_secs(4), "{:?}", sent.elapsed());
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).expect("UTF-8");
        assert_eq!(rest, "caught\n");
        assert_ne!(host::status_of(output.status), 0);
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
        nothing_left();
    }
    // While the guest boots.
    let child = Command::new("ci-nspawn-run")
        .args(["--", "sleep", "535353"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = child.expect("it starts");
    until("there is something", || leftovers::now().iter().any(|line| line.starts_with("folder ")).then_some(()));
    kill(child.id(), Signal::INT);
    let output = child.wait_with_output().expect("our own child");
    assert_ne!(host::status_of(output.status), 0);
    nothing_left();
}

fn a_killed_caller_takes_the_guest_along() {
    let (child, _stdout) = begun("setsid sleep 545454 & trap '' TERM; echo up; sleep 545454; sleep 545454");
    kill(child.id(), Signal::KILL);
    child.wait_with_output().expect("our own child");
    until("its processes are gone", || processes_with("sleep 545454").is_empty().then_some(()));
    nothing_left();
}

fn two_at_once_are_apart() {
    let start = || {
        Command::new("ci-nspawn-run")
            .args([
                "--image",
                fixture::debian(),
                "--",
                "sh",
                "-c",
                "echo up; read line; ls /tmp; cat /proc/self/uid_map; touch /tmp/x; exit 3",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts")
    };
    let mut pair = [start(), start()];
    for child in &mut pair {
        let mut up = [0; 3];
        child.stdout.as_mut().expect("it is a pipe").read_exact(&mut up).expect("it says that it is up");
    }
    let mut maps = Vec::new();
    for mut child in pair {
        child.stdin.take().expect("it is a pipe").write_all(b"go\n").expect("it reads");
        let output = child.wait_with_output().expect("our own child");
        assert_eq!(host::status_of(output.status), 3);
        maps.push(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    assert_ne!(maps[0], maps[1]);
}
