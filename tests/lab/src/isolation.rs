//! What a step cannot do and cannot see (threat model, P3 to P8 and P12).

use std::collections::BTreeSet;
use std::fs;

use crate::fixture;
use crate::hook::{Runner, exists, make_file};
use crate::host::{self, leader, run, sh};
use crate::lab::{Test, tests};
use crate::request::{self, Step};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        root_of_a_guest_is_nobody_on_the_host,
        jobs_of_two_runners_do_not_touch_each_other,
        no_host_descriptor_enters_a_guest,
        nothing_of_the_host_is_visible_beyond_the_mounts,
        a_step_can_neither_mount_nor_make_namespaces,
        the_kernel_is_not_the_guests_to_change,
        what_only_the_hosts_root_may_read_stays_unread,
        the_guest_sees_no_process_of_the_host,
        the_broker_refuses_strangers,
        the_broker_gives_operators_calls_to_root_only,
        a_guests_console_cannot_forge_the_hosts_journal,
        an_image_with_hostile_links_harms_nobody,
        no_user_namespace_gives_rights_back,
        set_group_id_bits_are_kept_in_the_container,
        folders_nested_without_end_are_removed,
        flushed_rules_open_nothing_for_the_next_guest,
    ]
}

fn root_of_a_guest_is_nobody_on_the_host() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let pid = leader(&machine);
    for table in ["uid_map", "gid_map"] {
        let map = sh(&format!("cat /proc/{pid}/{table}"));
        let words: Vec<u64> = map.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        assert_eq!((words.len(), words[0], words[2]), (3, 0, 65_536), "{table}: {map}");
        assert!(words[1] >= 524_288 && words[1].is_multiple_of(65_536), "{table}: {map}");
    }
    let call = runner.begin_until("echo up; until test -e /tmp/go; do sleep 0.515151; done", "up");
    let found = host::processes_with("sleep 0.515151");
    if let Some(process) = found.first() {
        let uid = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let uid = uid.lines().find(|line| line.starts_with("Uid:")).unwrap_or("Uid: 524288").to_owned();
        assert!(!uid.contains("\t0\t"), "a process of the guest is root of the host: {uid}");
    }
    runner.sh("touch /tmp/go").expect(0);
    call.end().expect(0);
    // Not one file on the host belongs to the guest but its own writable layer.
    runner.cleanup();
}

fn jobs_of_two_runners_do_not_touch_each_other() {
    let (one, two) = (Runner::new("runner 01"), Runner::with_repository("runner 02", "gadgets"));
    let machines = (one.prepare(fixture::debian()), two.prepare(fixture::debian()));
    let base = |machine: &str| sh(&format!("cat /proc/{}/uid_map", leader(machine)));
    assert_ne!(base(&machines.0), base(&machines.1));
    let namespaces = |machine: &str| {
        ["net", "pid", "mnt", "ipc", "uts", "user", "cgroup"]
            .map(|kind| sh(&format!("readlink /proc/{}/ns/{kind}", leader(machine))))
    };
    let (first, second) = (namespaces(&machines.0), namespaces(&machines.1));
    let host =
        ["net", "pid", "mnt", "ipc", "uts", "user", "cgroup"].map(|kind| sh(&format!("readlink /proc/1/ns/{kind}")));
    for index in 0..first.len() {
        let three: BTreeSet<_> = [&first[index], &second[index], &host[index]].into();
        assert_eq!(three.len(), 3, "{three:?}");
    }
    one.sh("echo mine >/tmp/secret; setsid sleep 525252 >/dev/null 2>&1 &").expect(0);
    two.sh("! test -e /tmp/secret; ! grep -qs sleep.525252 /proc/[0-9]*/cmdline").expect(0);
    // A new job of the one leaves the other's alone.
    one.prepare(fixture::alpine());
    two.sh("true").expect(0);
    one.cleanup();
    two.sh("true").expect(0);
    two.cleanup();
}

fn no_host_descriptor_enters_a_guest() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner.step(&Step::program("busybox", &["ls", "-l", "/proc/self/fd"])).expect(0);
    let text = ended.text();
    let descriptors: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        .map(|(left, target)| (left.rsplit(' ').next(), target))
        .collect();
    assert_eq!(descriptors.len(), 3, "{text}");
    for (number, target) in descriptors {
        match number {
            Some("0") => assert_eq!(target, "/dev/null"),
            Some("1" | "2") => assert!(target.starts_with("pipe:["), "{text}"),
            _ => panic!("{text}"),
        }
    }
    // The directory that is being listed is closed when it is looked at.
    assert!(text.ends_with(" 3\n") && text.lines().count() == 5, "{text}");
    // The write end of a pipe gives nothing back, and the hook's own streams are not it.
    let reopened = runner.sh("echo before; timeout 1 cat /proc/self/fd/1 </dev/null >/dev/null; echo after").expect(0);
    assert!(reopened.text().starts_with("before\n") && reopened.text().ends_with("after\n"), "{}", reopened.story());
    runner.cleanup();
}

fn nothing_of_the_host_is_visible_beyond_the_mounts() {
    make_file("/home/runner/.credentials", b"secret of the runner\n");
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let script = "for path in /var/lib/runner /run/runner /home/runner /run/systemd /run/dbus /etc/runner /etc/shadow \
        /var/run/docker.sock /run/docker.sock /container /lost+found /usr/lib/runner; do ! test -e $path || echo $path; done; ls -A /home /run /var 2>/dev/null";
    let seen = runner.sh(script);
    assert!(!seen.text().contains("runner") && !seen.text().contains("docker"), "{}", seen.story());
    // Every mount in the container, by its file system and place.
    let mounts = runner.sh("cat /proc/self/mountinfo").expect(0).text();
    for line in mounts.lines() {
        let place = line.split(' ').nth(4).unwrap_or_default();
        let known = ["/", "/proc", "/sys", "/dev", "/__w", "/__e", "/github"];
        assert!(known.iter().any(|known| place == *known || place.starts_with(&format!("{known}/"))), "{line}");
    }
    runner.sh("! grep -rs 'secret of the runner' /__w /__e /github /proc/1/root/home 2>/dev/null").expect(0);
    // Neither by PID 1's own tree.
    let root = runner
        .sh("ls /proc/1/root/var/lib/runner /proc/1/root/home/runner /proc/1/root/run/runner 2>/dev/null || true")
        .expect(0);
    assert!(
        !root.text().contains("images") && !root.text().contains(".credentials") && !root.text().contains("guestd"),
        "{}",
        root.story()
    );
    runner.cleanup();
    sh("rm /home/runner/.credentials");
}

fn a_step_can_neither_mount_nor_make_namespaces() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    for command in [
        "mount -t tmpfs none /mnt",
        "mount --bind / /opt",
        "mount -o remount,rw /__e",
        "mount -t proc none /opt",
        "umount /__w",
        "umount -l /proc",
        "unshare -m true",
        "unshare -U true",
        "unshare -Ur true",
        "unshare -n true",
        "unshare -p true",
        "busybox nsenter -t 1 -m true",
        "busybox mknod /tmp/kmsg c 1 11",
        "busybox mknod /tmp/disk b 8 0",
        "busybox hostname another",
        "busybox insmod x",
        "busybox swapon /tmp/x",
        "busybox reboot -f",
        "busybox chroot /proc/1/root/proc/1/root busybox mount -t tmpfs none /opt",
    ] {
        let ended = runner.sh(&format!("mkdir -p /mnt; {command}"));
        assert!(ended.status != 0, "{command} worked: {}", ended.story());
    }
    for (command, words) in
        [("mount -t tmpfs none /mnt", "permission denied"), ("unshare -U true", "Operation not permitted")]
    {
        let ended = runner.sh(command);
        let said = ended.error_text();
        assert!(
            said.contains(words) || said.contains("must be superuser") || said.contains("No space left"),
            "{command}: {}",
            ended.story()
        );
    }
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn the_kernel_is_not_the_guests_to_change() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/fs/cgroup/cgroup.procs",
    ] {
        // Opening without writing is enough to tell, and does no harm if it works.
        let ended = runner.sh(&format!("! test -e {path} || ! (: >>{path}) 2>/dev/null"));
        if path != "/sys/fs/cgroup/cgroup.procs" {
            assert_eq!(ended.status, 0, "{path} can be written: {}", ended.story());
        }
    }
    let capabilities = runner.step(&Step::program("grep", &["CapEff", "/proc/self/status"])).expect(0).text();
    let mask = u64::from_str_radix(capabilities.trim().rsplit('\t').next().unwrap_or_default(), 16).expect("a mask");
    // capability.h: SYS_MODULE 16, SYS_RAWIO 17, SYS_PTRACE stays, SYS_ADMIN 21, SYS_BOOT 22, SYS_TIME 25, MKNOD 27, NET_RAW 13.
    for (number, name) in [
        (13, "NET_RAW"),
        (16, "SYS_MODULE"),
        (17, "SYS_RAWIO"),
        (21, "SYS_ADMIN"),
        (22, "SYS_BOOT"),
        (25, "SYS_TIME"),
        (27, "MKNOD"),
        (24, "SYS_RESOURCE"),
    ] {
        assert_eq!(mask & (1 << number), 0, "a step has CAP_{name}: {capabilities}");
    }
    runner.cleanup();
}

fn what_only_the_hosts_root_may_read_stays_unread() {
    sh(
        "echo secret-of-root >/usr/share/lab-secret; chmod 600 /usr/share/lab-secret; cp /usr/bin/id /usr/share/lab-suid; chmod 4755 /usr/share/lab-suid",
    );
    let ran = run(["ci-nspawn-run", "--", "cat", "/usr/share/lab-secret"]);
    assert!(ran.status != 0 && !ran.text().contains("secret-of-root"), "{ran:?}");
    let ran = run(["ci-nspawn-run", "--user", "1000", "--", "/usr/share/lab-suid", "-u"]).expect(0);
    assert_eq!(ran.text(), "1000\n", "a set-user-id bit of the host counts");
    sh("rm /usr/share/lab-secret /usr/share/lab-suid");
}

fn the_guest_sees_no_process_of_the_host() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let names = runner.sh("cat /proc/[0-9]*/comm | sort -u").expect(0).text();
    for name in ["runner-guestd", "systemd-machine", "systemd-nspawn", "systemd-logind", "container-hooks"] {
        assert!(!names.contains(name), "{names}");
    }
    let broker = host::started_broker();
    runner.sh(&format!("! kill -0 {broker}")).expect(0);
    runner.cleanup();
}

const CALL: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect('/run/runner/guestd.sock')
except PermissionError:
    print('may not connect'); sys.exit()
try:
    s.sendall(b'\\0AUTH EXTERNAL ' + str(__import__('os').getuid()).encode().hex().encode() + b'\\r\\n')
    print('answer', s.recv(100))
except OSError:
    print('answer', b'')
";

fn the_broker_refuses_strangers() {
    host::started_broker();
    let as_user = |arguments: &[&str]| {
        let words = [&["setpriv", "--clear-groups"], arguments, &["python3", "-c", CALL]].concat();
        run(words).expect(0).text()
    };
    // Neither runner nor root, without the group: the socket's mode says no.
    assert_eq!(as_user(&["--reuid=65534", "--regid=65534"]), "may not connect\n");
    // With the group: the broker itself looks, and hangs up without a word.
    let group = sh("id -g runner");
    assert_eq!(as_user(&["--reuid=65534", &format!("--regid={group}")]), "answer b''\n");
    let uid = sh("id -u runner");
    let served = as_user(&[&format!("--reuid={uid}"), &format!("--regid={group}")]);
    assert!(served.starts_with("answer b'OK "), "{served}");
    let lines = sh(
        "journalctl --sync; journalctl --no-pager -o cat -u runner-guestd | grep 'may not use the broker' | tail -n 1",
    );
    assert!(lines.contains("65534"), "{lines}");
    // The real hook as a stranger.
    let script =
        format!("echo '{{}}' | setpriv --reuid=65534 --regid={group} --clear-groups /usr/lib/runner/container-hooks");
    let ran = run(["sh", "-c", &script]);
    assert!(ran.status == 125 && ran.text().trim_start().starts_with("::error::broker"), "{}", ran.text());
}

fn the_broker_gives_operators_calls_to_root_only() {
    for words in [&["ci-nspawn-run", "--", "true"][..], &["runnerctl", "jobs"], &["runnerctl", "image", "ls"]] {
        let ran = run([&["setpriv", "--reuid=runner", "--regid=runner", "--clear-groups"], words].concat());
        assert!(ran.status == 125 || ran.status == 1, "{words:?}: {ran:?}");
        assert_eq!(ran.stdout, b"", "{words:?}");
        assert_eq!(ran.errors().lines().count(), 1, "{words:?}: {}", ran.errors());
    }
    // The runner's user reaches neither images nor jobs by path, nor the system bus's privileged calls.
    for path in ["/var/lib/runner/images", "/var/lib/runner/jobs"] {
        let ran = run(["setpriv", "--reuid=runner", "--regid=runner", "--clear-groups", "ls", path]);
        assert!(ran.status != 0, "{path}: {ran:?}");
    }
    let ran = run([
        "setpriv",
        "--reuid=runner",
        "--regid=runner",
        "--clear-groups",
        "systemctl",
        "--no-ask-password",
        "stop",
        "runner-guestd",
    ]);
    assert!(ran.status != 0, "{ran:?}");
}

fn a_guests_console_cannot_forge_the_hosts_journal() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    runner.sh("{ echo '<0>forged emergency'; printf '\\n<1>second\\033[31m\\n'; } >/dev/console || true").expect(0);
    runner.cleanup();
    let unit = machine.replace("runner-", "runner-guest-");
    let forged =
        sh(&format!("journalctl --sync; journalctl --no-pager -o cat -p 0..4 _SYSTEMD_UNIT={unit}.service || true"));
    assert!(!forged.contains("forged"), "{forged}");
    // Nor can a label of the job add fields.
    runner.set("GITHUB_JOB", "build\nPRIORITY=0\nMESSAGE=forged by a label");
    runner.prepare(fixture::alpine());
    runner.cleanup();
    let forged = sh("journalctl --sync; journalctl --no-pager -o cat -p 0 | grep -c 'forged by a label' || true");
    assert_eq!(forged, "0");
}

fn an_image_with_hostile_links_harms_nobody() {
    let folder = format!("{}/images/hostile", crate::lab::FOLDER);
    sh(&format!(
        r#"rm -rf {folder}; mkdir -p {folder}/bin {folder}/etc {folder}/github; cp "$(command -v busybox)" {folder}/bin/busybox
        ln -s busybox {folder}/bin/sh; ln -s busybox {folder}/bin/ls; ln -s busybox {folder}/bin/cat
        ln -s /etc/lab-victim {folder}/etc/hosts; ln -s ../../../../../etc/lab-victim {folder}/etc/hostname
        mkfifo {folder}/etc/os-release; ln -s /etc/shadow {folder}/etc/passwd; mkfifo {folder}/etc/group
        ln -s /var/tmp/lab-outside {folder}/__w; ln -s ../../../var/tmp/lab-outside {folder}/github/home
        ln -s / {folder}/dev; ln -s /etc {folder}/sys; ln -s loop {folder}/loop
        mkdir -p /var/tmp/lab-outside; echo untouched >/etc/lab-victim
        runnerctl image import lab/hostile:latest {folder}"#
    ));
    let runner = Runner::new("runner 01");
    let ended = runner.call(request::prepare(request::container("lab/hostile:latest", &runner))).end();
    match ended.status {
        // It boots, and every link led to a place in the container.
        0 => {
            runner
                .step(&Step::program("/bin/sh", &["-c", "'echo in >/__w/_temp/x; cat /__w/_temp/x'"]).directory("/"))
                .expect(0);
            runner.cleanup();
        }
        _ => drop(ended.own_failure(&[])),
    }
    assert_eq!(sh("cat /etc/lab-victim; ls -A /var/tmp/lab-outside"), "untouched");
    assert!(!exists("/var/tmp/lab-outside/_temp"));
    sh(&format!("rm -rf {folder} /etc/lab-victim /var/tmp/lab-outside; runnerctl image rm lab/hostile:latest"));
}

fn no_user_namespace_gives_rights_back() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    // Beside PID 1, where no chroot is in the way: what a guest's root reaches that leaves its container's root.
    let tried =
        run(["systemd-run", "--quiet", "-M", &machine, "--pipe", "--wait", "unshare", "--map-root-user", "true"]);
    assert_ne!(tried.status, 0, "{}", tried.text());
    let limit =
        ["systemd-run", "--quiet", "-M", &machine, "--pipe", "--wait", "cat", "/proc/sys/user/max_user_namespaces"];
    assert_eq!(run(limit).expect(0).text().trim(), "0");
    let raised = runner.sh("echo 100 > /proc/sys/user/max_user_namespaces");
    assert_ne!(raised.status, 0, "{}", raised.story());
    runner.cleanup();
}

fn set_group_id_bits_are_kept_in_the_container() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner
        .sh("mkdir /shared; chmod 2775 /shared; stat -c %a /shared; : >/tool; chmod 6755 /tool; stat -c %a /tool")
        .expect(0);
    assert_eq!(ended.text(), "2775\n6755\n");
    runner.cleanup();
}

fn folders_nested_without_end_are_removed() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let before = host::started_broker();
    // A hundred levels around what is there, three hundred times: no path is ever long.
    let nest = "mkdir /d; levels=$(printf 'a/%.0s' $(seq 100)); cd /; \
        for round in $(seq 300); do mkdir -p $levels; mv d ${levels}d; mv a d; done";
    runner.sh(nest).expect(0);
    runner.cleanup();
    assert_eq!(host::broker(), Some(before), "the broker ended over {machine}'s folders");
}

fn flushed_rules_open_nothing_for_the_next_guest() {
    let runner = Runner::new("runner 01");
    run(["nft", "flush", "ruleset"]).expect(0);
    runner.prepare(fixture::debian());
    let rules = run(["nft", "list", "table", "inet", "runner_guests"]).expect(0);
    assert!(rules.text().contains("chain from_guest"), "{}", rules.text());
    runner.cleanup();
}
