//! What policy refuses: host paths, options that would widen the sandbox, answers outside the runner's folders.

use serde_json::{Value, json};

use crate::fixture;
use crate::hook::{Runner, TEMP, WORK, exists, make_file, new_response_file};
use crate::host::{self, run, sh};
use crate::lab::{Test, tests};
use crate::leftovers;
use crate::request::{self, Step, mount};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        host_paths_are_no_volumes,
        links_do_not_lead_a_mount_out_of_the_work_folder,
        options_that_widen_the_sandbox_are_refused_by_name,
        services_and_container_steps_are_refused_for_now,
        an_answer_outside_the_temporary_folder_is_refused,
        a_response_file_that_a_step_replaced_is_not_written,
        a_stopped_broker_is_named_with_the_way_to_look,
        an_administrator_can_allow_a_path,
    ]
}

#[track_caller]
fn refused(runner: &Runner, container: Value, words: &[&str]) {
    runner.call(request::prepare(container)).end().own_failure(words);
    let left = leftovers::now();
    assert!(left.is_empty(), "left over: {left:#?}");
}

fn host_paths_are_no_volumes() {
    let runner = Runner::new("runner 01");
    let user = |source: &str, target: &str| {
        let mut container = request::container(fixture::alpine(), &runner);
        container["userMountVolumes"] = json!([mount(Some(source), target, false)]);
        container
    };
    let field = "args.container.userMountVolumes[0]";
    for source in [
        "/",
        "/etc",
        "/etc/ssl/certs",
        "/home/runner",
        "/home/runner/.ssh",
        "/home/runner/_workshop",
        "/var/lib/runner",
        "/root",
        "/proc",
        "/dev",
    ] {
        refused(&runner, user(source, "/x"), &[field, source, "RUNNER_VOLUMES_ALLOW"]);
    }
    for (source, target, words) in [
        ("/home/runner/_work/../.ssh", "/x", ".."),
        ("/home/runner/_work//../../../etc", "/x", ".."),
        ("name with space", "/x", "volume name"),
        ("../etc", "/x", "volume name"),
        ("volume", "relative", "absolute"),
        ("volume", "/", "root"),
        ("volume", "/a/../../b", ".."),
        ("volume", "/proc/1", "belongs to the guest"),
        ("volume", "/sys", "belongs to the guest"),
        ("volume", "/dev/shm", "belongs to the guest"),
    ] {
        refused(&runner, user(source, target), &[field, words]);
    }
    let system = |source: &str| {
        let mut container = request::container(fixture::alpine(), &runner);
        container["systemMountVolumes"][1]["sourceVolumePath"] = json!(source);
        container
    };
    for source in ["/etc", "/", "/home/runner", "/home/runner/.credentials", "/var/lib/runner/images"] {
        refused(
            &runner,
            system(source),
            &["args.container.systemMountVolumes[1].sourceVolumePath", source, "RUNNER_ROOT"],
        );
    }
    let mut container = request::container(fixture::alpine(), &runner);
    container["createOptions"] = json!("-v /etc:/host-etc");
    refused(&runner, container, &["--volume", "/etc", "RUNNER_VOLUMES_ALLOW"]);
    // Externals stay read-only whatever the request says; docker.sock is dropped.
    let mut container = request::container(fixture::alpine(), &runner);
    container["systemMountVolumes"][2]["readOnly"] = json!(false);
    runner.prepare_with(container);
    let seen =
        runner.sh("touch /__e/x 2>/dev/null && echo written; ls /var/run/docker.sock 2>/dev/null || true").expect(0);
    assert_eq!(seen.text(), "");
    runner.cleanup();
}

fn links_do_not_lead_a_mount_out_of_the_work_folder() {
    let runner = Runner::new("runner 01");
    let work = runner.workspace();
    sh(&format!("ln -s /etc {work}/out; ln -s /var/lib/runner {work}/state; mkdir {work}/real; ln -s real {work}/in"));
    for name in ["out", "out/ssl", "state/images", "in"] {
        let mut container = request::container(fixture::alpine(), &runner);
        container["userMountVolumes"] = json!([mount(Some(&format!("{work}/{name}")), "/x", false)]);
        refused(&runner, container, &["/x", "symbolic link"]);
    }
    // The temporary folder itself, replaced by a link.
    sh(&format!("mkfifo {work}/fifo"));
    let mut container = request::container(fixture::alpine(), &runner);
    container["userMountVolumes"] = json!([mount(Some(&format!("{work}/fifo")), "/x", false)]);
    refused(&runner, container, &["neither a file nor a directory"]);
    sh(&format!("rmdir {TEMP}/_github_home && ln -s /root {TEMP}/_github_home"));
    refused(&runner, request::container(fixture::alpine(), &runner), &["/github/home", "symbolic link"]);
    sh(&format!("rm {TEMP}/_github_home"));
}

fn options_that_widen_the_sandbox_are_refused_by_name() {
    let runner = Runner::new("runner 01");
    for (options, name) in [
        ("--privileged", "--privileged"),
        ("--privileged=true", "--privileged"),
        ("--network host", "--network"),
        ("--net=host", "--network"),
        ("--pid host", "--pid"),
        ("--ipc=host", "--ipc"),
        ("--uts host", "--uts"),
        ("--userns host", "--userns"),
        ("--cgroupns host", "--cgroupns"),
        ("--cap-add SYS_ADMIN", "--cap-add"),
        ("--cap-add=ALL --cpus 1", "--cap-add"),
        ("--device /dev/kvm", "--device"),
        ("--gpus all", "--gpus"),
        ("--security-opt seccomp=unconfined", "--security-opt"),
        ("--mount type=bind,src=/,dst=/host", "--mount"),
        ("--volumes-from x", "--volumes-from"),
        ("--env-file /etc/shadow", "--env-file"),
        ("--env HOME_OF_HOST", "--env"),
        ("--entrypoint /bin/sh", "--entrypoint"),
        ("--sysctl kernel.x=1", "--sysctl"),
        ("--runtime runc", "--runtime"),
        ("--frobnicate 7", "--frobnicate"),
        ("-Z", "-Z"),
        ("--user", "--user"),
        ("--cpus lots", "--cpus"),
        ("--memory -1x", "--memory"),
        ("image-in-the-wrong-place", "word 1"),
        ("--hostname \"a b\"", "--hostname"),
        ("--workdir relative", "--workdir"),
    ] {
        let mut container = request::container(fixture::alpine(), &runner);
        container["createOptions"] = json!(options);
        refused(&runner, container, &["args.container.createOptions", name]);
    }
}

fn services_and_container_steps_are_refused_for_now() {
    let runner = Runner::new("runner 01");
    let mut request = request::prepare(request::container(fixture::alpine(), &runner));
    request["args"]["services"] = json!([request::container("redis:7", &runner)]);
    runner.call(request.clone()).end().own_failure(&["args.services", "not supported yet"]);
    request["args"]["container"] = Value::Null;
    runner.call(request).end().own_failure(&["args.services", "not supported yet"]);
    let step = json!({"command": "run_container_step", "args": request::container(fixture::alpine(), &runner)});
    runner.call(step.clone()).end().own_failure(&["container actions", "not supported yet"]);
    runner.prepare(fixture::alpine());
    runner.call(step).end().own_failure(&["not supported yet"]);
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn an_answer_outside_the_temporary_folder_is_refused() {
    let runner = Runner::new("runner 01");
    let call = |path: &str| {
        let mut request = request::prepare(request::container(fixture::alpine(), &runner));
        request["responseFile"] = json!(path);
        request["state"] = Value::Null;
        runner.raw(request.to_string().as_bytes(), None).end()
    };
    make_file(&format!("{WORK}/victim"), b"untouched");
    for path in [
        "/etc/cron.d/answer",
        "/home/runner/_work/victim",
        "/home/runner/_work/_temp",
        "/home/runner/_work/_temp/../victim",
        "/home/runner/_work/_temporary/x",
        "relative.json",
    ] {
        call(path).own_failure(&["responseFile", path]);
        let left = leftovers::now();
        assert!(left.is_empty(), "{path}: {left:#?}");
    }
    assert_eq!(sh(&format!("cat {WORK}/victim; rm {WORK}/victim")), "untouched");
    assert!(!exists("/etc/cron.d/answer"));
}

fn a_response_file_that_a_step_replaced_is_not_written() {
    let runner = Runner::new("runner 01");
    make_file(&format!("{WORK}/victim"), b"untouched");
    runner.prepare(fixture::debian());
    for (what, replace) in [
        ("a link to a file of the runner", "ln -s /home/runner/_work/victim $FILE"),
        ("a link to nothing", "ln -s /home/runner/_work/made $FILE"),
        ("a FIFO", "mkfifo $FILE"),
        ("a folder", "mkdir $FILE"),
        ("a second name", "echo x >/__w/_temp/other; ln /__w/_temp/other $FILE"),
    ] {
        let response = new_response_file();
        let inside = response.display().to_string().replace(WORK, "/__w");
        let step = Step::script(&runner, "sh", &format!("rm $FILE; {replace}")).env("FILE", inside);
        let mut request = step.request(&runner);
        request["state"] = runner.state();
        request["responseFile"] = json!(response.display().to_string());
        // The file's content is looked at by its owner elsewhere: reading a FIFO would wait.
        let ended = runner.raw(request.to_string().as_bytes(), None).end();
        let errors = ended.errors();
        assert_eq!((ended.status, errors.len()), (125, 1), "{what}: {}", ended.story());
        assert!(errors[0].contains("responseFile"), "{what}: {}", errors[0]);
        assert_eq!(sh(&format!("cat {WORK}/victim")), "untouched", "{what}");
        assert!(!exists(format!("{WORK}/made")), "{what}");
        sh(&format!("rm -rf {} {TEMP}/other", response.display()));
    }
    // What a step wrote into it is overwritten.
    let response = new_response_file();
    let inside = response.display().to_string().replace(WORK, "/__w");
    let forged = r#"{"state":{"v":1,"job":"aaaa"},"isAlpine":true,"padding":"longer than what follows"}"#;
    let mut request =
        Step::script(&runner, "sh", &format!("echo '{forged}' >$FILE")).env("FILE", inside).request(&runner);
    request["state"] = runner.state();
    request["responseFile"] = json!(response.display().to_string());
    let ended = runner.raw(request.to_string().as_bytes(), Some(response)).end().expect(0);
    assert_eq!(ended.answer(), json!({}));
    runner.cleanup();
    sh(&format!("rm {WORK}/victim"));
}

fn a_stopped_broker_is_named_with_the_way_to_look() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::alpine());
    run(["systemctl", "stop", "runner-guestd.socket", "runner-guestd.service"]).expect(0);
    for request in [
        request::cleanup(),
        Step::program("true", &[]).request(&runner),
        request::prepare(request::container("x", &runner)),
    ] {
        runner.call(request).end().own_failure(&["broker", "not running", "systemctl status runner-guestd"]);
    }
    let ran = run(["ci-nspawn-run", "--", "true"]);
    assert_eq!(ran.status, 125, "{}", ran.errors());
    assert!(ran.errors().contains("systemctl status runner-guestd"), "{}", ran.errors());
    run(["systemctl", "start", "runner-guestd.socket"]).expect(0);
    // The next call starts the broker, which has reaped what its earlier life left.
    runner.sh("true").own_failure(&["no job container", "restarted"]);
    host::started_broker();
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
    runner.prepare(fixture::alpine());
    runner.cleanup();
}

fn an_administrator_can_allow_a_path() {
    let runner = Runner::new("runner 01");
    sh("mkdir -p /srv/lab-data/in /srv/lab-database /etc/runner; echo shared >/srv/lab-data/in/file");
    let saved = std::fs::read("/etc/runner/config.env").ok();
    let mut text = saved.clone().unwrap_or_default();
    text.extend_from_slice(b"\nRUNNER_VOLUMES_ALLOW=\"/srv/lab-data:ro\"\n");
    std::fs::write("/etc/runner/config.env", text).expect("we are root");
    run(["systemctl", "restart", "runner-guestd.service"]).expect(0);
    let with = |source: &str, read_only: bool| {
        let mut container = request::container(fixture::alpine(), &runner);
        container["userMountVolumes"] = json!([mount(Some(source), "/data", read_only)]);
        container
    };
    runner.prepare_with(with("/srv/lab-data/in", true));
    assert_eq!(runner.sh("cat /data/file").expect(0).line(), "shared");
    assert_ne!(runner.sh("echo x >/data/file").status, 0);
    runner.cleanup();
    refused(&runner, with("/srv/lab-data", false), &["read-only", "RUNNER_VOLUMES_ALLOW"]);
    refused(&runner, with("/srv/lab-database", true), &["RUNNER_VOLUMES_ALLOW"]);
    match saved {
        Some(text) => std::fs::write("/etc/runner/config.env", text),
        None => std::fs::remove_file("/etc/runner/config.env"),
    }
    .expect("we are root");
    run(["systemctl", "restart", "runner-guestd.service"]).expect(0);
}
