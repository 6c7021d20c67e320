//! Requests that are no requests, or ask for something that is not there. Each gets one line that names the field and
//! the remedy, the reserved status, and leaves nothing; that nothing is left is checked after every row.

use serde_json::{Value, json};

use crate::fixture;
use crate::hook::{Ended, Runner, new_response_file};
use crate::lab::{Test, tests};
use crate::leftovers;
use crate::request::{self, Step};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        what_is_no_request_is_refused_in_one_line,
        members_of_the_wrong_type_are_named,
        deep_nesting_and_many_values_are_bounded,
        nul_characters_are_named_by_their_field,
        twenty_megabytes_of_environment_are_refused_by_name,
        a_request_larger_than_the_limit_is_refused,
        what_the_image_lacks_is_named,
        a_step_that_cannot_start_is_no_failed_program,
        secrets_of_a_refused_request_are_not_repeated,
        unknown_members_are_ignored,
    ]
}

/// Sends bytes to the hook and demands that nothing exists afterwards that did not before.
#[track_caller]
fn refused(runner: &Runner, bytes: &[u8], words: &[&str]) {
    let response = new_response_file();
    runner.raw(bytes, Some(response)).end().own_failure(words);
    nothing_left();
}

#[track_caller]
fn nothing_left() {
    let left = leftovers::now();
    assert!(left.is_empty(), "left over: {left:#?}");
}

fn what_is_no_request_is_refused_in_one_line() {
    let runner = Runner::new("runner 01");
    let cleanup = r#"{"command":"cleanup_job","args":{},"state":null}"#;
    let rows: &[(&[u8], &[&str])] = &[
        (b"", &["request", "empty"]),
        (b" \n\t\n", &["request", "empty"]),
        (b"hello", &["request", "not JSON"]),
        (b"{command: 'cleanup_job'}", &["request", "not JSON"]),
        (br#"{"command":"cleanup_job","args":{"#, &["request", "ends before"]),
        (br#"{"command":"cleanup_job","args":{},"state":null"#, &["request", "ends before"]),
        (b"[]", &["request", "object"]),
        (b"null", &["request", "object"]),
        (b"7", &["request", "object"]),
        (b"\xff\xfe{\x00}\x00", &["request", "UTF-8"]),
        (b"{\"command\":\"cleanup\xff_job\"}", &["request", "UTF-8", "byte"]),
        (br#"{"command":"remove_everything","args":{}}"#, &["command", "cleanup_job"]),
        (br#"{"command":"Prepare_Job","args":{}}"#, &["command", "prepare_job"]),
        (br#"{"command":null,"args":{}}"#, &["command"]),
        (br#"{"command":7,"args":{}}"#, &["command", "string"]),
        (br#"{"args":{}}"#, &["command", "missing"]),
        (br#"{"command":"cleanup_job","command":"prepare_job","args":{}}"#, &["command", "twice"]),
    ];
    for (bytes, words) in rows {
        refused(&runner, bytes, words);
    }
    for second in ["{}", "x", cleanup] {
        refused(&runner, format!("{cleanup}\n{second}").as_bytes(), &["request", "after the first JSON document"]);
    }
}

fn members_of_the_wrong_type_are_named() {
    let runner = Runner::new("runner 01");
    let prepare = |change: &dyn Fn(&mut Value)| {
        let mut request = request::prepare(request::container(fixture::alpine(), &runner));
        change(&mut request["args"]);
        request
    };
    let step = |change: &dyn Fn(&mut Value)| {
        let mut request = Step::program("true", &[]).request(&runner);
        change(&mut request["args"]);
        request
    };
    let rows: Vec<(Value, &[&str])> = vec![
        (prepare(&|args| *args = json!([])), &["args", "object"]),
        (prepare(&|args| args["container"] = json!("alpine")), &["args.container", "object"]),
        (prepare(&|args| args["container"]["image"] = json!(["alpine"])), &["args.container.image", "string"]),
        (prepare(&|args| args["container"]["image"] = json!(null)), &["args.container.image"]),
        (prepare(&|args| args["container"]["createOptions"] = json!(["--cpus"])), &["args.container.createOptions"]),
        (prepare(&|args| args["container"]["systemMountVolumes"] = json!({})), &["args.container.systemMountVolumes"]),
        (
            prepare(&|args| args["container"]["systemMountVolumes"][1]["targetVolumePath"] = json!(7)),
            &["args.container.systemMountVolumes[1].targetVolumePath", "string"],
        ),
        (
            prepare(&|args| args["container"]["environmentVariables"]["A"] = json!({"b": "c"})),
            &["args.container.environmentVariables.A", "string"],
        ),
        (
            prepare(&|args| args["container"]["environmentVariables"]["A=B"] = json!("c")),
            &["args.container.environmentVariables", "name"],
        ),
        (prepare(&|args| args["services"] = json!("postgres")), &["args.services", "array"]),
        (prepare(&|args| args["container"] = json!(null)), &["args.container"]),
        (step(&|args| args["entryPoint"] = json!(null)), &["args.entryPoint"]),
        (step(&|args| args["entryPoint"] = json!("")), &["args.entryPoint"]),
        (step(&|args| args["entryPointArgs"] = json!("-e x")), &["args.entryPointArgs", "array"]),
        (step(&|args| args["entryPointArgs"] = json!(["-e", 7])), &["args.entryPointArgs[1]", "string"]),
        (step(&|args| args["environmentVariables"] = json!([])), &["args.environmentVariables", "object"]),
        (step(&|args| args["workingDirectory"] = json!({})), &["args.workingDirectory", "string"]),
    ];
    for (request, words) in rows {
        runner.call(request).end().own_failure(words);
        nothing_left();
    }
    let mut request = request::cleanup();
    request["responseFile"] = json!(["x"]);
    refused(&runner, request.to_string().as_bytes(), &["responseFile", "string"]);
}

fn deep_nesting_and_many_values_are_bounded() {
    let runner = Runner::new("runner 01");
    let deep =
        |levels: usize| format!("{{\"command\":\"cleanup_job\",\"x\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    runner.raw(deep(60).as_bytes(), None).end().expect(0);
    for levels in [64, 1_000, 1_000_000] {
        refused(&runner, deep(levels).as_bytes(), &["nested deeper than 64"]);
    }
    refused(&runner, "[".repeat(1_000_000).as_bytes(), &["nested deeper than 64"]);
    let many = format!("{{\"command\":\"cleanup_job\",\"x\":[{}0]}}", "0,".repeat(1_500_000));
    refused(&runner, many.as_bytes(), &["request", "values"]);
}

fn nul_characters_are_named_by_their_field() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::alpine());
    for (step, field) in [
        (Step::program("tr\0ue", &[]), "args.entryPoint"),
        (Step::program("echo", &["a\0b"]), "args.entryPointArgs[0]"),
        (Step::program("true", &[]).env("VARIABLE", "a\0b"), "args.environmentVariables.VARIABLE"),
        (Step::program("true", &[]).directory("/tmp\0"), "args.workingDirectory"),
        (Step::program("true", &[]).path(&["/a\0"]), "args.prependPath[0]"),
    ] {
        runner.step(&step).own_failure(&[field, "NUL"]);
    }
    runner.cleanup();
    let mut container = request::container(fixture::alpine(), &runner);
    container["image"] = json!("alpine\0:latest");
    runner.call(request::prepare(container)).end().own_failure(&["args.container.image", "NUL"]);
    nothing_left();
}

fn twenty_megabytes_of_environment_are_refused_by_name() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::alpine());
    let large = "x".repeat(20 * 1024 * 1024);
    runner.step(&Step::program("true", &[]).env("LARGE_VALUE", large)).own_failure(&["LARGE_VALUE"]);
    // Linux takes 128 KiB in one string: the largest that fits works, one byte more is named.
    let fits = 128 * 1024 - 1 - "LARGE=".len();
    let step = |length: usize| Step::script(&runner, "sh", "echo ${#LARGE}").env("LARGE", "y".repeat(length));
    assert_eq!(runner.step(&step(fits)).expect(0).line(), fits.to_string());
    runner.step(&step(fits + 1)).own_failure(&["LARGE"]);
    // Many that fit one by one, and not together.
    let many = (0..300)
        .fold(Step::program("true", &[]), |step, number| step.env(&format!("MANY_{number}"), "z".repeat(64 * 1024)));
    runner.step(&many).own_failure(&["environment"]);
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn a_request_larger_than_the_limit_is_refused() {
    let runner = Runner::new("runner 01");
    let large = format!("{{\"command\":\"cleanup_job\",\"x\":\"{}\"}}", "x".repeat(34 * 1024 * 1024));
    refused(&runner, large.as_bytes(), &["request", "larger than 32 MiB"]);
    // Spaces alone must not fill memory either.
    refused(&runner, &vec![b' '; 40 * 1024 * 1024], &["request"]);
}

fn what_the_image_lacks_is_named() {
    let runner = Runner::new("runner 01");
    let prepare = |image: &str, options: &str| {
        let mut container = request::container(image, &runner);
        container["createOptions"] = json!(options);
        runner.call(request::prepare(container)).end()
    };
    let rows: Vec<(Ended, &[&str])> = vec![
        (prepare("127.0.0.1:5000/nowhere/nothing:1", ""), &["args.container.image", "nowhere/nothing:1", "404"]),
        (prepare("UPPER CASE", ""), &["args.container.image"]),
        (prepare("../../etc/passwd", ""), &["args.container.image"]),
        (prepare("", ""), &["args.container.image"]),
        (prepare(fixture::alpine(), "--user nobody-here"), &["--user", "nobody-here"]),
        (prepare(fixture::alpine(), "--user node:no-group"), &["--user", "no-group"]),
        (prepare(fixture::alpine(), "--user 70000"), &["--user"]),
        (prepare(fixture::bare(), "--user node"), &["--user", "node"]),
    ];
    for (ended, words) in rows {
        ended.own_failure(words);
        nothing_left();
    }
}

fn a_step_that_cannot_start_is_no_failed_program() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    runner
        .sh("printf '#!/no/such/interpreter\n' >/tmp/script; chmod +x /tmp/script; touch /tmp/plain; mkdir /tmp/folder")
        .expect(0);
    let rows: &[(Step, &[&str])] = &[
        (Step::program("no-such-program", &[]), &["args.entryPoint", "'no-such-program'", "not in the container"]),
        (Step::program("/no/such/program", &[]), &["args.entryPoint", "/no/such/program"]),
        (Step::program("/tmp/script", &[]), &["args.entryPoint", "/tmp/script", "interpreter"]),
        (Step::program("/tmp/plain", &[]), &["args.entryPoint", "/tmp/plain", "may not be executed"]),
        (Step::program("/tmp/folder", &[]), &["args.entryPoint", "/tmp/folder"]),
        (Step::program("pwsh", &["-command", "\".", "'/x.ps1'\""]), &["args.entryPoint", "pwsh"]),
        (Step::program("true", &[]).directory("/no/such/folder"), &["args.workingDirectory", "'/no/such/folder'"]),
        (Step::program("true", &[]).directory("/etc/os-release"), &["args.workingDirectory"]),
        (Step::program("true", &[]).directory("relative/folder"), &["args.workingDirectory"]),
    ];
    for (step, words) in rows {
        runner.step(step).own_failure(words);
    }
    // The job goes on.
    runner.sh("true").expect(0);
    runner.cleanup();
}

fn secrets_of_a_refused_request_are_not_repeated() {
    let runner = Runner::new("runner 01");
    let secret = "hunter2-and-more";
    let mut container = request::container(fixture::alpine(), &runner);
    container["environmentVariables"]["TOKEN"] = json!([secret]);
    let error = runner.call(request::prepare(container.clone())).end().own_failure(&["TOKEN"]);
    assert!(!error.contains(secret), "{error}");
    container["environmentVariables"] = json!({});
    container["registry"] = json!({"username": "robot", "password": secret, "serverUrl": ""});
    container["createOptions"] = json!(format!("--env TOKEN={secret} --privileged"));
    let error = runner.call(request::prepare(container)).end().own_failure(&["--privileged"]);
    assert!(!error.contains(secret), "{error}");
    let journal =
        crate::host::sh(&format!("journalctl --sync; journalctl --no-pager -o cat -b | grep -c -- {secret} || true"));
    assert_eq!(journal, "0", "a secret is in the journal");
}

fn unknown_members_are_ignored() {
    let runner = Runner::new("runner 01");
    let mut container = request::container(fixture::alpine(), &runner);
    container["contextName"] = json!("job");
    container["future"] = json!({"deep": [{"er": null}]});
    let mut request = request::prepare(container);
    request["protocolVersion"] = json!(2);
    request["args"]["network"] = json!("x");
    runner.call(request).end().expect(0);
    runner.cleanup();
}
