//! What steps leave for each other, and whose the files in the workspace are.

use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use crate::fixture;
use crate::hook::{Runner, TEMP, exists, make_file, runner_ids};
use crate::host::{self, sh};
use crate::lab::{Test, tests};
use crate::request::{self, Step};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_step_finds_what_the_step_before_left,
        nothing_of_a_job_is_found_by_the_next,
        files_of_root_belong_to_the_runner_at_once,
        files_of_the_runner_belong_to_root_inside,
        files_of_other_users_belong_to_the_runner_after_the_job,
        a_user_of_the_image_can_write_where_the_runner_can,
        a_set_user_id_file_is_nobodys_weapon_on_the_host,
        devices_and_odd_files_do_no_harm,
        externals_cannot_be_changed,
    ]
}

fn owner(path: &str) -> (u32, u32) {
    let status = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    (status.uid(), status.gid())
}

fn a_step_finds_what_the_step_before_left() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let folders = "/tmp /var/tmp /opt / /root /github/home /__w/_temp /__w/_tool /__w/widgets/widgets /dev/shm";
    runner.sh(&format!("for folder in {folders}; do echo $folder >$folder/trace; done")).expect(0);
    runner.sh(&format!("for folder in {folders}; do test \"$(cat $folder/trace)\" = $folder; done")).expect(0);
    runner.sh("mkfifo /tmp/pipe; (read line </tmp/pipe; echo \"$line\" >/tmp/answer) >/dev/null 2>&1 &").expect(0);
    runner.sh("echo hello >/tmp/pipe; until test -s /tmp/answer; do sleep 0.02; done; test \"$(cat /tmp/answer)\" = hello").expect(0);
    runner.sh("setsid sleep 464646 & echo $! >/tmp/pid").expect(0);
    runner.sh("kill -0 $(cat /tmp/pid)").expect(0);
    runner.cleanup();
    assert_eq!(host::processes_with("sleep 464646"), Vec::<u32>::new());
}

fn nothing_of_a_job_is_found_by_the_next() {
    let runner = Runner::new("runner 01");
    let folders = ["/tmp", "/var/tmp", "/opt", "/", "/etc", "/root", "/usr/bin", "/dev/shm", "/run"];
    runner.prepare(fixture::debian());
    runner
        .sh(&format!("for folder in {}; do mkdir -p $folder; echo x >$folder/trace-of-a-job; done", folders.join(" ")))
        .expect(0);
    runner.sh("rm /etc/os-release; chmod 0 /usr/bin/env").expect(0);
    runner.cleanup();
    runner.prepare(fixture::debian());
    let seen = runner
        .sh(&format!("for folder in {}; do ls -a $folder | grep trace || true; done", folders.join(" ")))
        .expect(0);
    assert_eq!(seen.text(), "");
    runner.sh("test -e /etc/os-release && test -x /usr/bin/env").expect(0);
    runner.cleanup();
}

fn files_of_root_belong_to_the_runner_at_once() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    runner
        .sh("id -u; mkdir -p made/deep; echo x >made/deep/file; ln -s /etc/shadow made/link; mkfifo made/fifo")
        .expect(0);
    runner.sh("echo KEY=value >/__w/_temp/_runner_file_commands/set_env_1; echo y >/github/home/.config").expect(0);
    let work = runner.workspace();
    for path in [
        format!("{work}/made"),
        format!("{work}/made/deep/file"),
        format!("{work}/made/link"),
        format!("{work}/made/fifo"),
        format!("{TEMP}/_runner_file_commands/set_env_1"),
        format!("{TEMP}/_github_home/.config"),
    ] {
        assert_eq!(owner(&path), runner_ids(), "{path}");
    }
    let removed = host::run([
        "setpriv",
        "--reuid=runner",
        "--regid=runner",
        "--clear-groups",
        "rm",
        "-r",
        &format!("{work}/made"),
    ]);
    removed.expect(0);
    runner.cleanup();
}

fn files_of_the_runner_belong_to_root_inside() {
    let runner = Runner::new("runner 01");
    make_file(&format!("{}/checked-out", runner.workspace()), b"x");
    runner.prepare(fixture::debian());
    // git refuses a repository that belongs to somebody else.
    let seen = runner.sh("stat -c %u:%g checked-out . /github/home /__w /__w/_temp").expect(0);
    assert_eq!(seen.text(), "0:0\n".repeat(5));
    runner.cleanup();
    runner.prepare(fixture::node());
    assert_eq!(runner.sh("stat -c %u:%g checked-out /github/home").expect(0).text(), "1000:1000\n1000:1000\n");
    runner.cleanup();
}

fn files_of_other_users_belong_to_the_runner_after_the_job() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let script = "mkdir -m 777 open; setpriv --reuid=1001 --regid=1001 --clear-groups sh -c 'mkdir open/mine; echo x >open/mine/file'
        echo y >given; chown 1001:1001 given; echo z >group; chown :1001 group; mkdir -m 700 closed; chown 65534:65534 closed
        stat -c %u:%g given open/mine/file";
    assert_eq!(runner.sh(script).expect(0).text(), "1001:1001\n1001:1001\n");
    let work = runner.workspace();
    let (uid, _) = owner(&format!("{work}/open/mine/file"));
    assert!(uid >= 524_288, "while the job runs it is in the job's own range: {uid}");
    runner.cleanup();
    for path in ["open/mine", "open/mine/file", "given", "group", "closed"] {
        assert_eq!(owner(&format!("{work}/{path}")), runner_ids(), "{path}");
    }
}

fn a_user_of_the_image_can_write_where_the_runner_can() {
    let runner = Runner::new("runner 01");
    make_file(&format!("{TEMP}/_runner_file_commands/set_env_7"), b"");
    runner.prepare(fixture::node());
    let script = "id -u; echo A=1 >>\"$GITHUB_ENV\"; echo x >\"$HOME/.npmrc\"; mkdir node_modules; echo y >node_modules/z; echo t >/__w/_temp/t";
    let step = Step::script(&runner, "sh", script).env("GITHUB_ENV", "/__w/_temp/_runner_file_commands/set_env_7");
    assert_eq!(runner.step(&step).expect(0).text(), "1000\n");
    assert_eq!(sh(&format!("cat {TEMP}/_runner_file_commands/set_env_7")), "A=1");
    assert_eq!(owner(&format!("{}/node_modules/z", runner.workspace())), runner_ids(), "at once, like root's");
    runner.cleanup();

    let mut container = request::container(fixture::debian(), &runner);
    container["createOptions"] = json!("--user 1001:1001");
    runner.prepare_with(container);
    runner.sh("echo B=2 >>/__w/_temp/_runner_file_commands/set_env_7; echo z >/github/home/z").expect(0);
    runner.cleanup();
}

fn a_set_user_id_file_is_nobodys_weapon_on_the_host() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let script = "cp /usr/bin/id suid; chmod 6755 suid; cp /usr/bin/id theirs; chown 1001:1001 theirs; chmod 6755 theirs; stat -c %a suid theirs";
    assert_eq!(runner.sh(script).expect(0).text(), "6755\n6755\n");
    let work = runner.workspace();
    let nobody_runs = |file: &str| {
        let ran =
            host::run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &format!("{work}/{file}"), "-u"]);
        (ran.status == 0).then(|| ran.text())
    };
    for file in ["suid", "theirs"] {
        let (uid, gid) = owner(&format!("{work}/{file}"));
        assert!(uid != 0 && gid != 0, "{file} belongs to {uid}:{gid}");
        assert_ne!(nobody_runs(file).as_deref(), Some("0\n"), "{file}");
    }
    // Inside it means nothing either: the mount is nosuid.
    let inside = runner.sh("setpriv --reuid=1001 --regid=1001 --clear-groups ./suid -u").expect(0);
    assert_eq!(inside.text(), "1001\n");
    runner.cleanup();
    let mode = |file: &str| std::fs::symlink_metadata(format!("{work}/{file}")).expect("it is there").mode() & 0o6000;
    assert_eq!(mode("theirs"), 0, "a changed owner takes the bits away");
    sh(&format!("rm {work}/suid {work}/theirs"));
}

fn devices_and_odd_files_do_no_harm() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let script = r#"if busybox mknod disk b 8 0 2>/dev/null; then echo made; fi; if busybox mknod mem c 1 1 2>/dev/null; then echo made; fi
        mkfifo pipe; ln -s /etc/passwd link; ln -s / root; ln -s link/link loop; busybox mknod fifo p
        mkdir deep; cd deep; for n in $(seq 200); do mkdir d; cd d; done; chown 1001 ."#;
    assert_eq!(runner.sh(script).expect(0).text(), "", "a device was made");
    runner.cleanup();
    assert_eq!(sh("stat -c %u:%g /etc/passwd"), "0:0", "a link was followed");
    sh(&format!("rm -r {}/deep", runner.workspace()));
}

fn externals_cannot_be_changed() {
    let runner = Runner::new("runner 01");
    make_file("/home/runner/externals/program", b"#!/bin/sh\necho original\n");
    sh("chmod 755 /home/runner/externals/program");
    runner.prepare(fixture::debian());
    for script in [
        "echo x >/__e/new",
        "echo x >/__e/program",
        "rm -f /__e/program",
        "chmod 777 /__e/program",
        "mv /__e/program /__e/x",
    ] {
        let ended = runner.sh(script);
        assert!(ended.status != 0, "{script}: {}", ended.story());
        assert!(ended.error_text().contains("Read-only file system"), "{script}: {}", ended.story());
    }
    assert_eq!(runner.step(&Step::program("/__e/program", &[])).expect(0).line(), "original");
    runner.cleanup();
    assert!(!exists("/home/runner/externals/new"));
    sh("rm /home/runner/externals/program");
}
