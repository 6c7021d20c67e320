//! Requests that were really sent: the files of `tests/protocol`, through the real hook.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::fixture;
use crate::hook::{Ended, Runner, TEMP, WORK, make_file, make_folder, new_response_file};
use crate::host::sh;
use crate::lab::{FOLDER, Test, tests};
use crate::leftovers;
use crate::registry::Configured;

pub(crate) fn tests() -> Vec<Test> {
    tests![every_published_request_is_understood, what_our_images_can_serve_runs]
}

fn example(name: &str) -> Value {
    let path = format!("{FOLDER}/protocol/{name}.request.json");
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Sends a request as it is, but with a response file of today and this state.
fn send(runner: &Runner, mut request: Value, state: Value) -> Ended {
    let response = new_response_file();
    request["responseFile"] = json!(response.display().to_string());
    request["state"] = state;
    runner.raw(request.to_string().as_bytes(), Some(response)).end()
}

fn every_published_request_is_understood() {
    let folder = format!("{FOLDER}/protocol");
    let mut names: Vec<PathBuf> =
        fs::read_dir(&folder).expect("it was copied").flatten().map(|entry| entry.path()).collect();
    names.sort();
    // Their images are at registries all over the Internet, which the lab does not reach.
    let _offline = Configured::with(&[("RUNNER_IMAGE_PULL", "never")]);
    let mut seen = 0;
    for path in names.iter().filter(|path| path.to_string_lossy().ends_with(".request.json")) {
        let name = path.display();
        let bytes = fs::read(path).expect("it is there");
        let request: Value = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let runner = Runner::new("runner 01");
        let ended = send(&runner, request.clone(), request["state"].clone());
        let errors = ended.errors();
        if request["command"] == "cleanup_job" {
            assert_eq!(ended.status, 0, "{name}: {}", ended.story());
        } else if ended.status != 0 {
            assert_eq!((ended.status, errors.len()), (125, 1), "{name}: {}", ended.story());
            let understood = [
                "not in the store",
                "not supported yet",
                "no job container",
                "not known",
                "RUNNER_VOLUMES_ALLOW",
                "RUNNER_TOOL_CACHE",
            ];
            assert!(understood.iter().any(|words| errors[0].contains(words)), "{name}: {}", errors[0]);
        }
        runner.cleanup();
        seen += 1;
    }
    assert!(seen >= 30, "only {seen} requests in {folder}");
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn what_our_images_can_serve_runs() {
    // Tagged as node:22 by the fixture.
    fixture::debian();
    fixture::alpine();
    let runner = Runner::new("runner 01");
    let prepared = send(&runner, example("prepare-job.minimal"), Value::Null).expect(0);
    let state = prepared.answer()["state"].clone();
    make_folder(&format!("{}/sub dir", runner.workspace()));

    let script = "/__w/_temp/0c9d2f0e-93a5-4a2e-8a63-6d3f2f5f0b10.sh";
    make_file(
        &script.replace("/__w", WORK),
        b"echo \"$0 in $PWD with $CI_JOB_LEVEL\"\nprintf 'KEY=value\\n' >>\"$GITHUB_ENV\"\n",
    );
    let commands = format!("{TEMP}/_runner_file_commands/set_env_9d1f6a6e-2b5d-4c0e-8d26-7a5c2f4be111");
    for (name, said) in [
        ("run-script-step.default-shell", format!("{script} in /__w/widgets/widgets with from-job-env\n")),
        ("run-script-step.bash-prepend-path", format!("{script} in /__w/widgets/widgets/sub dir with from-job-env\n")),
        ("run-script-step.custom-shell", "bash in /__w/widgets/widgets with from-job-env\n".to_owned()),
    ] {
        make_file(&commands, b"");
        let ended = send(&runner, example(name), state.clone()).expect(0);
        assert_eq!(ended.text(), said, "{name}: {}", ended.story());
        assert_eq!(ended.answer(), json!({}), "{name}");
        assert_eq!(sh(&format!("cat {commands}")), "KEY=value", "{name}");
    }
    // PATH of the one with GITHUB_PATH entries, in their order.
    make_file(&script.replace("/__w", WORK), b"echo \"$PATH\"\n");
    let ended = send(&runner, example("run-script-step.bash-prepend-path"), state.clone()).expect(0);
    assert!(ended.text().starts_with("/opt/tools/bin:/__w/_tool/node/22.0.0/x64/bin:/"), "{}", ended.story());

    // A stand-in for node prints what it was called with.
    let node = "/home/runner/externals/node20/bin/node";
    make_folder("/home/runner/externals/node20/bin");
    make_file(node, b"#!/bin/sh\necho node \"$@\"; busybox env | grep '^INPUT_NODE-VERSION='\n");
    sh(&format!("chmod 755 {node}"));
    let ended = send(&runner, example("run-script-step.node-action"), state.clone()).expect(0);
    assert_eq!(ended.text(), "node /__w/_actions/actions/setup-node/v4/dist/setup/index.js\nINPUT_NODE-VERSION=22\n");
    sh("rm -r /home/runner/externals/node20");

    send(&runner, example("run-script-step.pwsh-split-quotes"), state.clone())
        .own_failure(&["args.entryPoint", "pwsh"]);
    send(&runner, example("run-script-step.null-state"), Value::Null).expect(0);
    send(&runner, example("unknown-command"), state.clone()).own_failure(&["command"]);
    send(&runner, example("cleanup-job"), state).expect(0);
    send(&runner, example("cleanup-job.null-state"), Value::Null).expect(0);

    // Everything omitted but the image.
    crate::host::run(["runnerctl", "image", "import", "busybox", &format!("{FOLDER}/images/alpine")]).expect(0);
    let prepared = send(&runner, example("prepare-job.everything-omitted-or-null"), Value::Null).expect(0);
    assert_eq!(prepared.answer()["isAlpine"], json!(true));
    send(&runner, example("cleanup-job.null-state"), Value::Null).expect(0);
    crate::host::run(["runnerctl", "image", "rm", "busybox"]).expect(0);
}
