//! Requests as the official runner writes them, and as nobody should.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use runner_model::create_options;
use runner_model::image_ref::Reference;
use runner_model::protocol::{
    Command, Container, ImageSource, MAX_BYTES, MAX_DEPTH, MAX_VALUES, Mount, Request, RequestError, StateHint, parse,
};
use runner_model::words::recover;
use serde_json::{Value, json};

fn samples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/protocol");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("readable folder").path())
        .filter(|path| path.to_string_lossy().ends_with(".request.json"))
        .collect();
    files.sort();
    assert!(files.len() >= 28, "only {} request files in {}", files.len(), folder.display());
    files
}

fn sample(name: &str) -> Request {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/protocol/{name}.request.json"));
    parse(&std::fs::read(&path).expect("sample")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn job_container(request: Request) -> Container {
    let Command::PrepareJob(job) = request.command else { panic!("{request:?}") };
    job.container.expect("a job container")
}

fn error(text: &str) -> RequestError {
    parse(text.as_bytes()).expect_err(text)
}

#[test]
fn every_sample_parses_as_its_command() {
    for path in samples() {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let parsed = parse(&std::fs::read(&path).expect("sample"));
        if name.starts_with("unknown-command") {
            assert_eq!(parsed, Err(RequestError::UnknownCommand));
            continue;
        }
        let request = parsed.unwrap_or_else(|error| panic!("{name}: {error}"));
        let spelled = request.command.name().replace('_', "-");
        assert!(name.contains(&spelled) || name.starts_with("future"), "{name} is a {spelled}");
        let containers: Vec<&Container> = match &request.command {
            Command::PrepareJob(job) => job.container.iter().chain(&job.services).collect(),
            Command::RunContainerStep(container) => vec![container],
            _ => vec![],
        };
        for container in containers {
            if let Some(reference) = container.image.reference() {
                Reference::parse(reference).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
        if let Command::PrepareJob(job) = &request.command
            && let Some(options) = job.container.as_ref().and_then(|container| container.create_options.as_deref())
        {
            create_options::parse(options).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn a_job_container_with_everything() {
    let request = sample("prepare-job.container-with-options");
    assert_eq!(request.state, StateHint::Absent);
    assert!(request.response_file.as_deref().is_some_and(|path| path.ends_with("1b1c0002.json")));
    let container = job_container(request);
    assert_eq!(container.image, ImageSource::Reference("registry.example.com/team/build:2026.1".into()));
    assert_eq!(container.working_directory.as_deref(), Some("/__w/widgets/widgets"));
    let registry = container.registry.expect("credentials");
    assert_eq!((registry.username.as_str(), registry.server_url.as_str()), ("robot", "registry.example.com"));
    assert_eq!(registry.password.expect("a password").expose(), "***");
    let names: Vec<&str> = container.environment.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["NODE_ENV", "EMPTY", "GREETING", "HTTP_PROXY", "http_proxy", "HOME"]);
    assert_eq!(container.environment.get("GREETING"), Some("hello \"world\" $HOME"));
    assert_eq!(container.port_mappings, ["8080:80", "127.0.0.1:5000:5000/tcp", "9000"]);
    let system: Vec<(&str, bool)> = container.system_mounts.iter().map(|m| (m.target.as_str(), m.read_only)).collect();
    assert_eq!(system.len(), 8);
    assert_eq!(system[2], ("/__e", true));
    let mount = |value: &str, source: Option<&str>, target: &str, read_only| Mount {
        user_provided_value: Some(value.into()),
        source: source.map(String::from),
        target: target.into(),
        read_only,
    };
    assert_eq!(
        container.user_mounts,
        [
            mount("my_docker_volume:/volume_mount", Some("my_docker_volume"), "/volume_mount", false),
            mount("/etc/ssl/certs:/etc/ssl/certs:ro", Some("/etc/ssl/certs"), "/etc/ssl/certs", true),
            mount("/srv/data:/data:z", Some("/srv/data"), "/data", false),
            mount("/scratch", None, "/scratch", false),
            mount("/anon-ro:ro", None, "/anon-ro", true),
        ]
    );
}

#[test]
fn omitted_null_and_empty_are_the_same() {
    let bare = r#"{"image":"busybox"}"#;
    let nulls = r#"{"image":"busybox","dockerfile":null,"entryPointArgs":null,"entryPoint":null,"workingDirectory":null,
        "createOptions":null,"registry":null,"environmentVariables":null,"portMappings":null,"systemMountVolumes":null,
        "userMountVolumes":null,"contextName":null,"unheardOf":[{"x":[]}]}"#;
    let empty = r#"{"image":"busybox","dockerfile":"","entryPointArgs":[],"entryPoint":"","workingDirectory":"",
        "createOptions":"","registry":{},"environmentVariables":{},"portMappings":[],"systemMountVolumes":[],
        "userMountVolumes":[],"contextName":"","registry2":{}}"#;
    let parsed: Vec<Container> = [bare, nulls, empty]
        .map(|container| {
            job_container(
                parse(format!(r#"{{"command":"prepare_job","args":{{"container":{container}}}}}"#).as_bytes()).unwrap(),
            )
        })
        .into();
    assert_eq!(parsed[0], parsed[1]);
    assert_eq!(parsed[0], parsed[2]);
    assert_eq!(parsed[0], job_container(sample("prepare-job.everything-omitted-or-null")));
}

#[test]
fn services_keep_their_order_and_both_spellings_work() {
    let Command::PrepareJob(job) = sample("prepare-job.services-only").command else { panic!() };
    assert_eq!(job.container, None);
    let images: Vec<_> = job.services.iter().filter_map(|service| service.image.reference()).collect();
    assert_eq!(images, ["postgres:16", "redis:7"]);
    assert_eq!(job.services[0].working_directory, None);

    let Command::PrepareJob(job) = sample("published-quirks.prepare-job").command else { panic!() };
    let service = &job.services[0];
    assert_eq!(
        (service.entry_point.as_deref(), service.context_name.as_deref()),
        (Some("redis-server"), Some("redis"))
    );
}

#[test]
fn step_environments_arrive_byte_for_byte() {
    let Command::RunScriptStep(step) = sample("run-script-step.env-torture").command else { panic!() };
    for (name, value) in [
        ("EMPTY", ""),
        ("SPACES", "  two  spaces  "),
        ("NEWLINES", "line1\nline2\n"),
        ("CRLF", "a\r\nb"),
        ("BACKSLASH", "C:\\temp\\"),
        ("DOLLAR", "$HOME ${HOME} $(id)"),
        ("UNICODE", "héllo ✓ 日本語"),
        ("INPUT_FETCH-DEPTH", "1"),
        ("INPUT_WITH.DOT", "x"),
        ("NULLISH", ""),
    ] {
        assert_eq!(step.environment.get(name), Some(value), "{name}");
    }
    assert_eq!(step.environment.len(), 21);
}

#[test]
fn script_steps_recover_their_arguments() {
    let words = |name: &str| {
        let Command::RunScriptStep(step) = sample(name).command else { panic!() };
        recover(&step.entry_point_args).words
    };
    assert_eq!(
        words("run-script-step.custom-shell")[1],
        "set -eu; . /__w/_temp/0c9d2f0e-93a5-4a2e-8a63-6d3f2f5f0b10.sh"
    );
    let pwsh = words("run-script-step.pwsh-split-quotes");
    assert_eq!(pwsh.len(), 2, "{pwsh:?}");
    assert!(pwsh[1].starts_with(". '/__w/_temp/"), "{pwsh:?}");
}

#[test]
fn prepend_path_is_an_array_or_one_string() {
    let path = |json: &str| {
        let text = format!(r#"{{"command":"run_script_step","args":{{"entryPoint":"sh","prependPath":{json}}}}}"#);
        let Command::RunScriptStep(step) = parse(text.as_bytes()).unwrap().command else { panic!() };
        step.prepend_path
    };
    assert_eq!(path(r#"["/a b","/c=d"]"#), ["/a b", "/c=d"]);
    assert_eq!(path(r#""/old:/way""#), ["/old:/way"]);
    assert_eq!(path("null"), [""; 0]);
    assert_eq!(path(r#""""#), [""; 0]);
}

#[test]
fn container_steps_prefer_the_image() {
    let Command::RunContainerStep(container) = sample("run-container-step.image-and-dockerfile").command else {
        panic!()
    };
    assert_eq!(container.image, ImageSource::Reference("node:22".into()));
    let Command::RunContainerStep(container) = sample("run-container-step.dockerfile").command else { panic!() };
    assert!(
        matches!(&container.image, ImageSource::Dockerfile(path) if path.ends_with("/Dockerfile")),
        "{container:?}"
    );
}

#[test]
fn any_state_is_only_a_hint() {
    for (state, expected) in [
        (r#"{"v":1,"job":"k3v9"}"#, Some("k3v9")),
        (r#"{"v":1,"job":"k3v9 "}"#, None),
        (r#"{"container":"c"}"#, None),
        ("[1,2.5,-3,1e300]", None),
        ("\"text\\u0000\"", None),
    ] {
        let request = parse(format!(r#"{{"command":"cleanup_job","state":{state}}}"#).as_bytes()).unwrap();
        assert_eq!(request.command, Command::CleanupJob);
        assert_eq!(request.state.job().map(ToString::to_string).as_deref(), expected, "{state}");
        assert_ne!(request.state, StateHint::Absent);
    }
    assert_eq!(parse(br#"{"command":"cleanup_job"}"#).unwrap().state, StateHint::Absent);
}

#[test]
fn a_byte_order_mark_and_white_space_are_tolerated() {
    let request = parse(b"\xef\xbb\xbf \r\n{\"command\":\"cleanup_job\",\"args\":{}}\n\n").unwrap();
    assert_eq!(request.command, Command::CleanupJob);
}

#[test]
fn each_fault_has_its_own_message() {
    let long_name = "N".repeat(300);
    for (text, message) in [
        ("", "request: empty; expected one JSON object on standard input, as the official runner writes it".to_owned()),
        ("\u{feff} \n", "request: empty; expected one JSON object on standard input, as the official runner writes it".to_owned()),
        ("hello", "request: not JSON: expected value at line 1 column 1".to_owned()),
        ("{'command':1}", "request: not JSON: key must be a string at line 1 column 2".to_owned()),
        ("{\"command\":NaN}", "request: not JSON: expected value at line 1 column 12".to_owned()),
        ("{\"a\":\"\u{1}\"}", "request: not JSON: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 7".to_owned()),
        (r#"{"a":"\ud800"}"#, "request: not JSON: unexpected end of hex escape at line 1 column 13".to_owned()),
        (r#"{"command":"cleanup_job"#, "request: ends before its JSON object is complete; the writer stopped early".to_owned()),
        (r#"{"command":"cleanup_job","#, "request: ends before its JSON object is complete; the writer stopped early".to_owned()),
        ("{}{}", "request: more text after the first JSON document, at column 3; expected exactly one document".to_owned()),
        ("{} trailing", "request: more text after the first JSON document, at column 4; expected exactly one document".to_owned()),
        ("[]", "request: expected an object, found an array".to_owned()),
        ("null", "request: expected an object, found null".to_owned()),
        ("\"prepare_job\"", "request: expected an object, found a string".to_owned()),
        ("{}", "command: missing or empty; expected the name of a command".to_owned()),
        (r#"{"command":7}"#, "command: expected a string, found a number".to_owned()),
        (r#"{"command":"PREPARE_JOB"}"#, "command: not known; expected one of prepare_job, run_script_step, run_container_step, cleanup_job".to_owned()),
        (r#"{"command":"cleanup_job","responseFile":[]}"#, "responseFile: expected a string, found an array".to_owned()),
        (r#"{"command":"cleanup_job","responseFile":"/a\u0000b"}"#, "responseFile: contains a NUL character, which no argument, variable or path can hold".to_owned()),
        (r#"{"command":"cleanup_job","args":[]}"#, "args: expected an object, found an array".to_owned()),
        (r#"{"command":"cleanup_job","command":"cleanup_job"}"#, "command: given twice; expected each member once".to_owned()),
        (r#"{"command":"cleanup_job","x":[{},{"a":1,"b":{"c d":0,"c d":1}}]}"#, "x[1].b[\"c d\"]: given twice; expected each member once".to_owned()),
        (r#"{"command":"run_script_step"}"#, "args.entryPoint: missing or empty; expected the program to run in the job container".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","entryPointArgs":["-e",5]}}"#, "args.entryPointArgs[1]: expected a string, found a number".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","entryPointArgs":"-e"}}"#, "args.entryPointArgs: expected an array, found a string".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","prependPath":{"a":1}}}"#, "args.prependPath: expected an array, found an object".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","workingDirectory":"work"}}"#, "args.workingDirectory: expected an absolute path in the container, found a relative one".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"s\u0000h"}}"#, "args.entryPoint: contains a NUL character, which no argument, variable or path can hold".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","environmentVariables":{"FOO":"a\u0000b"}}}"#, "args.environmentVariables.FOO: contains a NUL character, which no argument, variable or path can hold".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","environmentVariables":{"INPUT_A.B":1}}}"#, "args.environmentVariables[\"INPUT_A.B\"]: expected a string, found a number".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","environmentVariables":{"A":"1","A":"2"}}}"#, "args.environmentVariables.A: given twice; expected each member once".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","environmentVariables":{"":"1"}}}"#, "args.environmentVariables[\"\"]: the variable's name is empty; rename it in the workflow".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","environmentVariables":{"A=hunter2":"1"}}}"#, "args.environmentVariables[\"A=…\"]: the variable's name contains `=`; rename it in the workflow".to_owned()),
        (r#"{"command":"run_script_step","args":{"entryPoint":"sh","environmentVariables":{"A\u0000\n":"1"}}}"#, "args.environmentVariables[\"A\\0\\n\"]: the variable's name contains a NUL character; rename it in the workflow".to_owned()),
        (&format!(r#"{{"command":"run_script_step","args":{{"entryPoint":"sh","environmentVariables":{{"{long_name}":[]}}}}}}"#), format!("args.environmentVariables[\"{}…\"]: expected a string, found an array", "N".repeat(64))),
        (r#"{"command":"prepare_job","args":{"container":"node"}}"#, "args.container: expected an object, found a string".to_owned()),
        (r#"{"command":"prepare_job","args":{"container":{}}}"#, "args.container.image: missing or empty; expected an image".to_owned()),
        (r#"{"command":"prepare_job","args":{"container":{"dockerfile":"/x/Dockerfile"}}}"#, "args.container.image: missing or empty; expected an image".to_owned()),
        (r#"{"command":"prepare_job","args":{"services":[{"image":"a"},null]}}"#, "args.services[1].image: missing or empty; expected an image".to_owned()),
        (r#"{"command":"prepare_job","args":{"services":{"redis":{}}}}"#, "args.services: expected an array, found an object".to_owned()),
        (r#"{"command":"prepare_job","args":{"container":{"image":"a","portMappings":[80]}}}"#, "args.container.portMappings[0]: expected a string, found a number".to_owned()),
        (r#"{"command":"prepare_job","args":{"container":{"image":"a","entryPoint":"x","entrypoint":"y"}}}"#, "args.container.entryPoint: given twice; expected each member once".to_owned()),
        (r#"{"command":"prepare_job","args":{"container":{"image":"a","registry":{"username":"u","password":true}}}}"#, "args.container.registry.password: expected a string, found a boolean".to_owned()),
        (r#"{"command":"prepare_job","args":{"container":{"image":"a","userMountVolumes":[{"sourceVolumePath":"/a"}]}}}"#, "args.container.userMountVolumes[0].targetVolumePath: missing or empty; expected an absolute path in the container".to_owned()),
        (r#"{"command":"prepare_job","args":{"container":{"image":"a","userMountVolumes":[{"targetVolumePath":"a:b:c:d"}]}}}"#, "args.container.userMountVolumes[0].targetVolumePath: expected an absolute path in the container, found a relative one".to_owned()),
        (r#"{"command":"prepare_job","args":{"container":{"image":"a","systemMountVolumes":[{"targetVolumePath":"/a","readOnly":"yes"}]}}}"#, "args.container.systemMountVolumes[0].readOnly: expected true or false, found a string".to_owned()),
        (r#"{"command":"run_container_step","args":{}}"#, "args.image: missing or empty; expected an image or a dockerfile".to_owned()),
        (r#"{"command":"run_container_step","args":{"dockerfile":"Dockerfile"}}"#, "args.dockerfile: expected an absolute host path, found a relative one".to_owned()),
    ] {
        assert_eq!(error(text).to_string(), message, "{text}");
    }
}

#[test]
fn bytes_that_are_no_text_are_located() {
    assert_eq!(parse(b"{\"command\":\"\xff\"}"), Err(RequestError::NotUtf8 { offset: 12 }));
    assert_eq!(parse(b"{\0}"), Err(RequestError::NotJson { reason: "key must be a string at line 1 column 2".into() }));
}

#[test]
fn size_depth_and_number_of_values_are_limited() {
    let mut large = br#"{"command":"cleanup_job"}"#.to_vec();
    large.resize(MAX_BYTES, b' ');
    assert!(parse(&large).is_ok());
    large.push(b' ');
    assert_eq!(parse(&large), Err(RequestError::TooLarge));

    let nested =
        |levels: usize| format!(r#"{{"command":"cleanup_job","x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    assert!(parse(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
    let error = parse(nested(MAX_DEPTH).as_bytes()).unwrap_err();
    assert!(matches!(&error, RequestError::TooDeep { path } if path.starts_with("x[0][0]")), "{error}");

    let values = |count: usize| format!(r#"{{"command":"cleanup_job","x":[{}0]}}"#, "0,".repeat(count));
    // The document, the command, the array and the zero written out.
    assert!(parse(values(MAX_VALUES - 4).as_bytes()).is_ok());
    assert_eq!(parse(values(MAX_VALUES - 3).as_bytes()), Err(RequestError::TooManyValues));
}

/// Nesting that is never closed must not exhaust even a small stack, nor make a message that is more than a line.
#[test]
fn deep_nesting_fits_a_small_stack() {
    let work = || {
        for opening in ["[", "{\"a\":", "[{\"a\":", "{\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\":["] {
            for text in
                [opening.repeat(200_000), format!(r#"{{"command":"cleanup_job","args":{}"#, opening.repeat(200_000))]
            {
                let error = parse(text.as_bytes()).unwrap_err();
                assert!(matches!(error, RequestError::TooDeep { .. }), "{error}");
                let message = error.to_string();
                assert!(message.chars().count() < 300 && !message.contains('\n'), "{message}");
            }
        }
    };
    std::thread::Builder::new().stack_size(512 * 1024).spawn(work).expect("a thread").join().expect("no overflow");
}

#[test]
fn a_large_environment_parses() {
    let mut text = r#"{"command":"run_script_step","args":{"entryPoint":"sh","environmentVariables":{"#.to_owned();
    for index in 0..20_000 {
        text.push_str(&format!(r#""V{index}":"{}","#, "x".repeat(1000)));
    }
    text.push_str(r#""LAST":"1"}}}"#);
    let Command::RunScriptStep(step) = parse(text.as_bytes()).unwrap().command else { panic!() };
    assert_eq!((step.environment.len(), step.environment.get("LAST")), (20_001, Some("1")));
}

#[test]
fn debug_output_shows_no_value() {
    const MARK: &str = "hunter2";
    let container = json!({
        "image": "node", "entryPointArgs": [MARK], "createOptions": format!("--env T={MARK}"),
        "registry": {"username": "u", "password": MARK, "serverUrl": ""}, "environmentVariables": {"T": MARK},
    });
    for request in [
        json!({"command": "prepare_job", "args": {"container": container, "services": [container]}}),
        json!({"command": "run_container_step", "args": container}),
        json!({"command": "run_script_step", "args": {"entryPoint": "sh", "entryPointArgs": [MARK], "environmentVariables": {"T": MARK}}}),
    ] {
        let shown = format!("{:#?}", parse(request.to_string().as_bytes()).unwrap());
        assert!(!shown.contains(MARK), "{shown}");
        assert!(shown.contains("\"T\""), "names are shown: {shown}");
    }
}

/// Every JSON pointer in `value`, deepest first is not needed: all of them.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                pointers(value, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(elements) => {
            for (index, value) in elements.iter().enumerate() {
                pointers(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// Each value of each sample replaced by each kind of wrong value: parse decides without panicking, in one line, and
/// without repeating any text of the request but member names.
#[test]
fn no_single_wrong_value_breaks_the_parser_or_leaks() {
    const MARK: &str = "hunter2";
    let mut refused = 0;
    for path in samples() {
        let document: Value = serde_json::from_slice(&std::fs::read(&path).expect("sample")).expect("JSON");
        let mut found = Vec::new();
        pointers(&document, "", &mut found);
        for pointer in found {
            for wrong in [
                json!(null),
                json!(7),
                json!(true),
                json!(MARK),
                json!([MARK]),
                json!({MARK: MARK}),
                json!(format!("{MARK}\0")),
            ] {
                let mut changed = document.clone();
                *changed.pointer_mut(&pointer).expect("found above") = wrong;
                if let Err(error) = parse(changed.to_string().as_bytes()) {
                    refused += 1;
                    let message = error.to_string();
                    // As a name the mark may be shown, as a value never.
                    let as_name =
                        matches!(error, RequestError::Unexpected { .. }) && message.contains(&format!(".{MARK}:"));
                    assert!(as_name || !message.contains(MARK), "{}{pointer}: {message}", path.display());
                    assert!(!message.contains('\n') && message.len() < 300, "{message}");
                }
            }
        }
    }
    assert!(refused > 1000, "only {refused} refusals: the test does not test");
}

#[test]
fn every_truncation_of_a_sample_is_an_error() {
    for name in ["prepare-job.container-and-two-services", "run-script-step.env-torture"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/protocol/{name}.request.json"));
        let bytes = std::fs::read(path).expect("sample");
        let text = bytes.trim_ascii();
        for end in 0..text.len() {
            let error = parse(&text[..end]).expect_err("cut short");
            let expected =
                matches!(error, RequestError::Empty | RequestError::Truncated | RequestError::NotUtf8 { .. });
            assert!(expected, "{name} cut at {end}: {error}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn any_json_like_text_is_handled(text in r#"[\[\]{}",:0-9a-e\\ nulltrue.\-]{0,120}"#) {
        if let Err(error) = parse(text.as_bytes()) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn damaged_samples_are_handled(
        index in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), remove in 0usize..4
    ) {
        let files = samples();
        let mut bytes = std::fs::read(index.get(&files)).expect("sample");
        let at = at.index(bytes.len());
        let end = (at + remove).min(bytes.len());
        bytes.splice(at..end, [byte]);
        let _ = parse(&bytes);
    }

    #[test]
    fn environments_come_through_unchanged(
        variables in proptest::collection::btree_map("[A-Za-z0-9_.-]{1,12}", "[^\0]{0,40}", 0..20)
    ) {
        let text = json!({"command": "run_script_step", "args": {"entryPoint": "sh", "environmentVariables": variables}});
        let request = parse(text.to_string().as_bytes()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let Command::RunScriptStep(step) = request.command else { panic!("a step") };
        let found: Vec<(String, String)> = step.environment.into();
        prop_assert_eq!(found, variables.into_iter().collect::<Vec<_>>());
    }
}
