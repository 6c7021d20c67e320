//! What a program sees: variables byte for byte, `PATH`, arguments as their author wrote them (protocol text, sections
//! 12 and 13).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::fixture;
use crate::hook::Runner;
use crate::lab::{FOLDER, Test, tests};
use crate::request::{self, Step};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_step_has_the_containers_variables_and_its_own_and_no_others,
        hostile_values_arrive_byte_for_byte,
        the_published_hostile_example_arrives_byte_for_byte,
        image_container_and_step_win_in_that_order,
        ci_is_true_unless_the_workflow_says_otherwise,
        github_path_comes_before_the_containers_path,
        the_hooks_own_variables_do_not_leak_in,
        values_are_not_on_any_command_line_of_the_host,
        arguments_are_what_their_author_wrote,
        an_unclosed_quote_is_a_warning_and_not_a_failure,
        a_working_directory_may_have_spaces_and_dots,
        standard_input_is_empty,
    ]
}

type Variables = BTreeMap<String, String>;

/// The environment block of a program, exactly.
#[track_caller]
fn block(runner: &Runner, step: &Step) -> Variables {
    let ended = runner.step(step).expect(0);
    assert!(ended.stderr.is_empty(), "{}", ended.story());
    let entries = ended.stdout.strip_suffix(b"\0").unwrap_or(&ended.stdout).split(|byte| *byte == 0);
    let mut variables = Variables::new();
    for entry in entries {
        let entry = String::from_utf8(entry.to_vec()).expect("UTF-8 went in");
        let (name, value) = entry.split_once('=').unwrap_or_else(|| panic!("no '=' in {entry:?}"));
        let old = variables.insert(name.to_owned(), value.to_owned());
        assert_eq!(old, None, "{name} is there twice");
    }
    variables
}

fn environ() -> Step {
    Step::program("cat", &["/proc/self/environ"])
}

fn variables(pairs: &[(&str, &str)]) -> Variables {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn a_step_has_the_containers_variables_and_its_own_and_no_others() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::bare());
    let expected = variables(&[
        ("CI", "true"),
        ("GITHUB_ACTIONS", "true"),
        ("HOME", "/github/home"),
        ("PATH", DEFAULT_PATH),
        ("STEP", "1"),
    ]);
    assert_eq!(block(&runner, &environ().env("STEP", "1")), expected);
    runner.cleanup();
}

fn hostile_values_arrive_byte_for_byte() {
    let runner = Runner::new("runner 01");
    let all_bytes: String = (1..=0x7f_u8).map(char::from).collect();
    let hostile = [
        ("EMPTY", ""),
        ("SPACES", "  two  spaces  "),
        ("NEWLINES", "line1\nline2\n\n"),
        ("ONLY_NEWLINE", "\n"),
        ("CRLF", "a\r\nb\rc"),
        ("BACKSLASH_AT_END", "C:\\temp\\"),
        ("QUOTES", "say \"hi\" it's `id`"),
        ("EXPANSIONS", "$HOME ${HOME} $(id) %h %n %% $$ %i"),
        ("UNICODE", "héllo ✓ 日本語 😀 \u{feff}\u{2028}\u{202e}"),
        ("ASCII", &all_bytes),
        ("EQUALS", "=a=b="),
        ("INPUT_FETCH-DEPTH", "1"),
        ("INPUT_WITH.DOT", "x"),
        ("INPUT_with space", "y"),
        ("0STARTS_WITH_DIGIT", "z"),
        ("ünïcode", "name"),
        ("a;rm -rf /", "shell"),
        ("LD_PRELOAD", "/no/such/library.so"),
        ("DOCKER_HOST", "tcp://203.0.113.1:2375"),
        ("NOTIFY_SOCKET", "/run/systemd/notify"),
        ("LISTEN_FDS", "3"),
        ("INVOCATION_ID", "mine"),
        ("PREFIX-::error::", "::error::not ours"),
    ];
    let mut container = request::container(fixture::alpine(), &runner);
    for (name, value) in hostile {
        container["environmentVariables"][format!("C_{name}")] = json!(value);
    }
    runner.prepare_with(container);
    let step = hostile.iter().fold(environ(), |step, (name, value)| step.env(name, *value));
    let mut expected = variables(&hostile);
    expected.extend(hostile.map(|(name, value)| (format!("C_{name}"), value.to_owned())));
    expected.extend(variables(&[
        ("CI", "true"),
        ("GITHUB_ACTIONS", "true"),
        ("HOME", "/github/home"),
        ("PATH", DEFAULT_PATH),
    ]));
    assert_eq!(block(&runner, &step), expected);
    runner.cleanup();
}

fn the_published_hostile_example_arrives_byte_for_byte() {
    let text =
        std::fs::read(format!("{FOLDER}/protocol/run-script-step.env-torture.request.json")).expect("it is there");
    let example: Value = serde_json::from_slice(&text).expect("an example");
    let given = example["args"]["environmentVariables"].as_object().expect("an object");
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::alpine());
    let step = given.iter().fold(environ(), |step, (name, value)| step.env(name, value.clone()));
    let mut expected = variables(&[("GITHUB_ACTIONS", "true"), ("HOME", "/github/home")]);
    // A null is an empty value.
    expected.extend(given.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap_or("").to_owned())));
    assert_eq!(expected["PATH"], "/custom/bin:/usr/bin:/bin");
    assert_eq!(expected["CI"], "false");
    assert_eq!(block(&runner, &step), expected);
    runner.cleanup();
}

fn image_container_and_step_win_in_that_order() {
    let runner = Runner::new("runner 01");
    let mut container = request::container(fixture::configured(), &runner);
    container["environmentVariables"] = json!({"FROM_IMAGE": "container", "A": "container", "HOME": "/github/home"});
    container["createOptions"] = json!("--env A=options --env=B=options -e \"C=two words\"");
    runner.prepare_with(container);
    let expected = variables(&[
        ("FROM_IMAGE", "container"),
        ("PATH", "/opt/image/bin:/bin"),
        ("HOME", "/github/home"),
        ("A", "step"),
        ("B", "options"),
        ("C", "two words"),
        ("CI", "true"),
        ("GITHUB_ACTIONS", "true"),
    ]);
    assert_eq!(block(&runner, &environ().env("A", "step")), expected);
    runner.cleanup();

    // Without a HOME in the request the image's stands.
    let mut container = request::container(fixture::configured(), &runner);
    container["environmentVariables"] = json!({});
    runner.prepare_with(container);
    let seen = block(&runner, &environ());
    assert_eq!((seen["HOME"].as_str(), seen["FROM_IMAGE"].as_str()), ("/image-home", "yes"));
    runner.cleanup();
}

fn ci_is_true_unless_the_workflow_says_otherwise() {
    for (given, expected) in [(json!(null), "true"), (json!("false"), "false"), (json!(""), "")] {
        let runner = Runner::new("runner 01");
        let mut container = request::container(fixture::alpine(), &runner);
        if !given.is_null() {
            container["environmentVariables"]["CI"] = given;
        }
        container["environmentVariables"]["GITHUB_ACTIONS"] = json!("forged");
        runner.prepare_with(container);
        let seen = block(&runner, &environ());
        assert_eq!((seen["CI"].as_str(), seen["GITHUB_ACTIONS"].as_str()), (expected, "true"));
        runner.cleanup();
    }
}

fn github_path_comes_before_the_containers_path() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::configured());
    let path = |step: Step| block(&runner, &step)["PATH"].clone();
    let image = "/opt/image/bin:/bin";
    assert_eq!(path(environ()), image);
    assert_eq!(
        path(environ().path(&["/new", "/old with space", "/a=b"])),
        format!("/new:/old with space:/a=b:{image}")
    );
    // A step's own PATH stands alone, and loses against GITHUB_PATH.
    assert_eq!(path(environ().env("PATH", "/bin:/mine")), "/bin:/mine");
    assert_eq!(path(environ().env("PATH", "/mine").path(&["/new"])), format!("/new:{image}"));
    // Programs are looked up there, first entry first.
    let script = r#"mkdir -p /opt/one /opt/two; printf '#!/bin/sh\necho one\n' >/opt/one/tool
        printf '#!/bin/sh\necho two\n' >/opt/two/tool; chmod +x /opt/*/tool"#;
    runner.sh(script).expect(0);
    for (entries, said) in
        [(["/opt/one", "/opt/two"], "one"), (["/opt/two", "/opt/one"], "two"), (["/none", "/opt/two"], "two")]
    {
        assert_eq!(runner.step(&Step::program("tool", &[]).path(&entries)).expect(0).line(), said);
    }
    runner.cleanup();

    // An image without PATH has a usable one.
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::bare());
    assert_eq!(block(&runner, &environ().path(&["/x"]))["PATH"], format!("/x:{DEFAULT_PATH}"));
    runner.cleanup();
}

fn the_hooks_own_variables_do_not_leak_in() {
    let runner = Runner::new("runner 01");
    for name in ["SECRET_OF_THE_RUNNER", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "LD_LIBRARY_PATH", "DBUS_SYSTEM_BUS_ADDRESS"]
    {
        runner.set(name, "/nowhere/leaked");
    }
    // A workflow's PATH steers nothing of ours.
    runner.set("PATH", "/home/runner/_work/widgets/widgets:/usr/bin:/bin");
    runner.prepare(fixture::alpine());
    let seen = block(&runner, &environ());
    assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), ["CI", "GITHUB_ACTIONS", "HOME", "PATH"]);
    runner.cleanup();
}

fn values_are_not_on_any_command_line_of_the_host() {
    let runner = Runner::new("runner 01");
    let mut container = request::container(fixture::alpine(), &runner);
    container["environmentVariables"]["TOKEN"] = json!("hunter2-container");
    runner.prepare_with(container);
    let step =
        Step::script(&runner, "sh", "echo up; until test -e /tmp/go; do sleep 0.02; done").env("T", "hunter2-step");
    let call = runner.begin(&step);
    call.wait_for("up");
    assert_eq!(crate::host::processes_with("hunter2"), Vec::<u32>::new());
    let units = crate::host::sh("systemctl show 'runner-guest*' | grep -c hunter2 || true");
    assert_eq!(units, "0", "a value is in a property of a unit, which everybody may read");
    runner.sh("touch /tmp/go").expect(0);
    call.end().expect(0);
    runner.cleanup();
}

fn arguments_are_what_their_author_wrote() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let rows: &[(&[&str], &[&str])] = &[
        (&["-e", "/__w/_temp/x.sh"], &["-e", "/__w/_temp/x.sh"]),
        (&["-command", "\".", "'/__w/_temp/x.ps1'\""], &["-command", ". '/__w/_temp/x.ps1'"]),
        (&["-c", "\"set", "-eu;", ".", "/__w/_temp/x.sh\"", ""], &["-c", "set -eu; . /__w/_temp/x.sh"]),
        (&["\"-c\"", "\"echo", "\\\"hi", "there\\\"\"", "\"\""], &["-c", "echo \"hi there\"", ""]),
        (&["--channel", "#general", "#"], &["--channel", "#general", "#"]),
        (&["''", "\"\"", "", "x"], &["", "", "x"]),
        (&["'if", "[[", "-z", "$X", "]];", "then", "exit", "1;", "fi'"], &["if [[ -z $X ]]; then exit 1; fi"]),
        (&["\"a\\\\b\"", "\"a\\b\"", "a\\b"], &["a\\b", "a\\b", "ab"]),
        (
            &["$HOME", "\"$(id)\"", "*", "~", "%h", "a;b", "|", ">x", "&"],
            &["$HOME", "$(id)", "*", "~", "%h", "a;b", "|", ">x", "&"],
        ),
        (&["\"cd", "/x\nls\""], &["cd /x\nls"]),
        (&["é漢", "'😀", "\u{a0}'"], &["é漢", "😀 \u{a0}"]),
    ];
    for (pieces, words) in rows {
        let pieces = [&["'%s\\0'"], *pieces].concat();
        let ended = runner.step(&Step::program("printf", &pieces)).expect(0);
        let seen: Vec<_> =
            ended.stdout.strip_suffix(b"\0").expect("a NUL after each").split(|byte| *byte == 0).collect();
        let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
        assert_eq!(seen, words, "{pieces:?}: {}", ended.story());
    }
    let script = runner.script("echo \"from the script: $0\"");
    let custom = Step::program("bash", &["-c", "\"set", "-eu;", ".", &format!("{script}\""), ""]);
    assert_eq!(runner.step(&custom).expect(0).line(), "from the script: bash");
    runner.cleanup();
}

fn an_unclosed_quote_is_a_warning_and_not_a_failure() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner.step(&Step::program("printf", &["%s|", "\"a", "", "it's"])).expect(0);
    let text = ended.text();
    assert!(text.ends_with("\"a|it's|"), "{}", ended.story());
    assert!(text.starts_with("::warning::args.entryPointArgs: "), "{}", ended.story());
    assert_eq!(text.lines().count(), 2, "{}", ended.story());
    runner.cleanup();
}

fn a_working_directory_may_have_spaces_and_dots() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    runner.sh("mkdir -p 'sub dir/ü'").expect(0);
    for (directory, seen) in [
        ("/__w/widgets/widgets/./sub dir", "/__w/widgets/widgets/sub dir"),
        ("/__w/widgets/widgets/sub dir/../sub dir/ü/", "/__w/widgets/widgets/sub dir/ü"),
        ("/", "/"),
        ("", "/__w/widgets/widgets"),
    ] {
        assert_eq!(runner.step(&Step::program("pwd", &["-P"]).directory(directory)).expect(0).line(), seen);
    }
    runner.cleanup();
}

fn standard_input_is_empty() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = runner.sh("wc -c; readlink /proc/self/fd/0").expect(0);
    assert_eq!(ended.text(), "0\n/dev/null\n");
    runner.cleanup();
}
