//! `options:`, `volumes:` and the image's own configuration of a job container.

use serde_json::json;

use crate::fixture;
use crate::hook::{Runner, WORK};
use crate::host::sh;
use crate::lab::{Test, tests};
use crate::request::{self, Step, mount};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        user_of_the_options_and_of_the_image,
        host_name_and_working_directory,
        named_volumes_last_as_long_as_the_job,
        folders_of_the_work_folder_can_be_volumes,
        volumes_and_targets_may_have_odd_names,
        ignored_options_are_said_once_and_do_no_harm,
        a_users_groups_are_those_of_the_image,
    ]
}

fn options(image: &str, runner: &Runner, options: &str) -> serde_json::Value {
    let mut container = request::container(image, runner);
    container["createOptions"] = json!(options);
    container
}

fn user_of_the_options_and_of_the_image() {
    for (image, text, expected) in [
        (fixture::alpine(), "", "0:0"),
        (fixture::alpine(), "--user node", "1000:1000"),
        (fixture::alpine(), "--user=node:extra", "1000:2000"),
        (fixture::alpine(), "-u 1234", "1234:0"),
        (fixture::alpine(), "-u1234:567", "1234:567"),
        (fixture::node(), "", "1000:1000"),
        (fixture::node(), "--user root", "0:0"),
        (fixture::bare(), "--user 4321:8765", "4321:8765"),
    ] {
        let runner = Runner::new("runner 01");
        runner.prepare_with(options(image, &runner, text));
        let seen = runner.step(&Step::program("busybox", &["grep", "-E", "'^[UG]id:'", "/proc/self/status"])).expect(0);
        let ids: Vec<_> =
            seen.text().lines().map(|line| line.split('\t').nth(1).unwrap_or_default().to_owned()).collect();
        assert_eq!(ids.join(":"), expected, "{image} {text}");
        runner.cleanup();
    }
}

fn a_users_groups_are_those_of_the_image() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::node());
    assert_eq!(runner.sh("id -G").expect(0).line(), "1000 2000");
    runner.cleanup();
    runner.prepare_with(options(fixture::node(), &runner, "--user root"));
    assert_eq!(runner.sh("id -G").expect(0).line(), "0");
    runner.cleanup();
}

fn host_name_and_working_directory() {
    let runner = Runner::new("runner 01");
    runner.prepare_with(options(fixture::debian(), &runner, "--hostname builder --workdir /opt"));
    assert_eq!(runner.sh("cat /proc/sys/kernel/hostname /etc/hostname").expect(0).text(), "builder\nbuilder\n");
    assert_eq!(runner.step(&Step::program("pwd", &[]).directory("")).expect(0).line(), "/opt");
    assert_eq!(runner.step(&Step::program("pwd", &[])).expect(0).line(), "/__w/widgets/widgets");
    runner.cleanup();

    let machine = runner.prepare(fixture::debian());
    assert_eq!(runner.sh("cat /proc/sys/kernel/hostname").expect(0).line(), machine);
    assert!(runner.sh("cat /etc/hosts").expect(0).text().contains(&machine));
    runner.cleanup();

    // Without a directory in the request the image's counts.
    let mut container = request::container(fixture::configured(), &runner);
    container["workingDirectory"] = json!(null);
    runner.prepare_with(container);
    assert_eq!(runner.step(&Step::program("pwd", &[]).directory("")).expect(0).line(), "/srv/app");
    runner.cleanup();
}

fn named_volumes_last_as_long_as_the_job() {
    let runner = Runner::new("runner 01");
    let mut container = options(fixture::alpine(), &runner, "-v shared:/three");
    container["userMountVolumes"] = json!([
        mount(Some("shared"), "/one", false),
        mount(Some("shared"), "/two", true),
        mount(None, "/scratch", false),
    ]);
    runner.prepare_with(container.clone());
    runner.sh("echo data >/one/file; echo data >/scratch/file; cat /two/file /three/file").expect(0);
    let refused = runner.sh("echo x >/two/other").expect(1);
    assert!(refused.error_text().contains("Read-only file system"), "{}", refused.story());
    runner.cleanup();
    runner.prepare_with(container);
    assert_eq!(runner.sh("ls /one /scratch /three").expect(0).text(), "/one:\n\n/scratch:\n\n/three:\n");
    runner.cleanup();
}

fn folders_of_the_work_folder_can_be_volumes() {
    let runner = Runner::new("runner 01");
    let source = format!("{WORK}/widgets/cache/new");
    let mut container = request::container(fixture::alpine(), &runner);
    container["userMountVolumes"] = json!([
        mount(Some(&source), "/cache", false),
        // A place inside another mount.
        mount(Some("inner"), "/__w/widgets/widgets/inner", false),
    ]);
    runner.prepare_with(container);
    runner.sh("echo x >/cache/file; echo y >inner/file").expect(0);
    assert_eq!(sh(&format!("stat -c %U:%G {source} {source}/file")), "runner:runner\nrunner:runner");
    assert_eq!(sh(&format!("ls {}/inner", runner.workspace())), "", "the volume's file is in the workspace");
    runner.cleanup();
}

fn volumes_and_targets_may_have_odd_names() {
    let runner = Runner::new("runner 01");
    let mut container = request::container(fixture::alpine(), &runner);
    let target = "/with space/and ünicode/$(id)/a:b";
    container["userMountVolumes"] = json!([mount(Some("x.y_z-1"), target, false), mount(None, "/deep/er/est", false)]);
    runner.prepare_with(container);
    runner.sh("echo x >'/with space/and ünicode/$(id)/a:b/file'; echo y >/deep/er/est/file").expect(0);
    runner.cleanup();
}

fn ignored_options_are_said_once_and_do_no_harm() {
    let runner = Runner::new("runner 01");
    let text =
        "--shm-size 1g --health-cmd \"test -e /ready\" --ulimit nofile=1 --ulimit nproc=2 --init --rm --label a=b";
    let prepared = runner.call(request::prepare(options(fixture::alpine(), &runner, text))).end().expect(0);
    let warnings: Vec<_> = prepared.text().lines().map(str::to_owned).collect();
    assert_eq!(warnings.len(), 3, "{}", prepared.story());
    for (warning, option) in warnings.iter().zip(["--shm-size", "--health-cmd", "--ulimit"]) {
        assert!(warning.starts_with("::warning::createOptions: ") && warning.contains(option), "{warning}");
    }
    runner.sh("true").expect(0);
    runner.cleanup();
}
