//! Requests as the official runner writes them (protocol text, sections 4 to 8 and 11).

use serde_json::{Map, Value, json};

use crate::hook::{ROOT, Runner, TEMP, WORK};

/// A job container with the runner's eight mounts.
pub(crate) fn container(image: &str, runner: &Runner) -> Value {
    json!({
        "image": image, "dockerfile": null, "entryPointArgs": [], "entryPoint": null,
        "workingDirectory": runner.workspace_inside(), "createOptions": null, "registry": null,
        "environmentVariables": {"HOME": "/github/home"},
        "portMappings": [], "systemMountVolumes": system_mounts(), "userMountVolumes": [],
    })
}

/// A mount.
pub(crate) fn mount(source: Option<&str>, target: &str, read_only: bool) -> Value {
    json!({
        "userProvidedValue": null, "sourceVolumePath": source, "targetVolumePath": target, "readOnly": read_only,
    })
}

fn system_mounts() -> Vec<Value> {
    vec![
        mount(Some("/var/run/docker.sock"), "/var/run/docker.sock", false),
        mount(Some(WORK), "/__w", false),
        mount(Some(&format!("{ROOT}/externals")), "/__e", true),
        mount(Some(TEMP), "/__w/_temp", false),
        mount(Some(&format!("{WORK}/_actions")), "/__w/_actions", false),
        mount(Some(&format!("{WORK}/_tool")), "/__w/_tool", false),
        mount(Some(&format!("{TEMP}/_github_home")), "/github/home", false),
        mount(Some(&format!("{TEMP}/_github_workflow")), "/github/workflow", false),
    ]
}

/// `prepare_job` of this container.
pub(crate) fn prepare(container: impl Into<Value>) -> Value {
    let container: Value = container.into();
    json!({"command": "prepare_job", "args": {"container": container, "services": []}})
}

/// `cleanup_job`.
pub(crate) fn cleanup() -> Value {
    json!({"command": "cleanup_job", "args": {}})
}

/// A `run_script_step` in the making.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    entry_point: String,
    arguments: Vec<String>,
    environment: Map<String, Value>,
    prepend_path: Vec<String>,
    directory: Option<String>,
}

impl Step {
    /// This program with these argument pieces.
    pub(crate) fn program(entry_point: &str, arguments: &[&str]) -> Self {
        Self {
            entry_point: entry_point.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: Map::new(),
            prepend_path: Vec::new(),
            directory: None,
        }
    }

    /// A script for this shell, `-e` as the official runner has it.
    pub(crate) fn script(runner: &Runner, shell: &str, text: &str) -> Self {
        Self::program(shell, &["-e", &runner.script(text)])
    }

    /// With this variable.
    pub(crate) fn env(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// With entries of `GITHUB_PATH`, the latest first.
    pub(crate) fn path(mut self, entries: &[&str]) -> Self {
        self.prepend_path = entries.iter().map(|&entry| entry.to_owned()).collect();
        self
    }

    /// In this directory instead of the workspace.
    pub(crate) fn directory(mut self, directory: &str) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// As the official runner sends it.
    pub(crate) fn request(&self, runner: &Runner) -> Value {
        json!({
            "command": "run_script_step",
            "args": {
                "entryPointArgs": self.arguments, "entryPoint": self.entry_point,
                "environmentVariables": self.environment, "prependPath": self.prepend_path,
                "workingDirectory": self.directory.clone().unwrap_or_else(|| runner.workspace_inside()),
            },
        })
    }
}
