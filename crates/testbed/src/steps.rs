//! What a step does: scripts, container actions, JavaScript actions, in a job container or on the host (protocol
//! sections 6, 7, 12 and 13).

use std::fs;
use std::path::Path;

use crate::action::{Action, Image, Runs};
use crate::arguments::{self, Place};
use crate::cancel::Cause;
use crate::context::Variables;
use crate::document::Pairs;
use crate::hook;
use crate::job::{Bounds, JobRun};
use crate::log_commands::Look;
use crate::process::{Launch, which};
use crate::report::{Ended, Record};
use crate::request;
use crate::response::Expect;
use crate::workflow::{Step, Work};

/// PowerShell's own errors do not fail a script, and its exit code is not that of the last program.
const PWSH_PROLOGUE: &str = "$ErrorActionPreference = 'stop'\n";
const PWSH_EPILOGUE: &str = "\nif (Test-Path -LiteralPath variable:LASTEXITCODE) { exit $LASTEXITCODE }\n";

impl JobRun<'_> {
    /// A `run:` step.
    #[expect(clippy::too_many_arguments, reason = "the fields of one step; a struct would only repeat `Work::Run`")]
    pub(crate) fn script(
        &mut self,
        id: &str,
        step: &Step,
        script: &str,
        named: Option<&str>,
        directory: Option<&str>,
        record: &mut Record,
        bounds: Bounds,
    ) -> Ended {
        let env = self.step_variables(id, step);
        let host_path = hook::path_with(&self.paths, env.get("PATH").or(hook::lookup(&self.settings.worker, "PATH")));
        let inside = self.job.container.is_some();
        let place = match (inside, which("bash", &host_path)) {
            (true, _) => Place::Container,
            (false, Some(_)) => Place::HostWithBash,
            (false, None) => Place::HostWithoutBash,
        };
        let shell = match arguments::shell(named, place) {
            Ok(shell) => shell,
            Err(error) => return self.refuse(record, &error.to_string()),
        };
        let layout = &self.settings.layout;
        let content = match shell.extension {
            ".ps1" => format!("{PWSH_PROLOGUE}{script}{PWSH_EPILOGUE}"),
            _ => script.to_owned(),
        };
        let written = hook::guid().and_then(|name| {
            let path = layout.temp().join(format!("{name}{}", shell.extension));
            fs::write(&path, content)?;
            Ok(path)
        });
        let path = match written {
            Ok(path) => path,
            Err(error) => return self.refuse(record, &format!("cannot write the step's script: {error}")),
        };
        self.announce(record, step, script, &format!("{} {}", shell.program, shell.format));
        let directory = layout.workspace().join(directory.unwrap_or_default());
        // Joining an empty path leaves a slash at the end, which the runner does not have.
        let directory = directory.display().to_string();
        let directory = if directory.len() > 1 { directory.trim_end_matches('/') } else { &directory };
        let path = path.display().to_string();
        if inside {
            let names = layout.job_container();
            let line = shell.format.replace("{0}", &names.apply(&path));
            let directory = names.apply(directory);
            return self.script_call(&shell.program, &line, env, &directory, record, bounds);
        }
        let words = arguments::host_words(&shell.format.replace("{0}", &path));
        self.on_host(&shell.program, words, &env, directory, &host_path, record, bounds)
    }

    /// A call of `run_script_step`; program, arguments and directory are names in the container already.
    fn script_call(
        &mut self,
        program: &str,
        line: &str,
        env: Variables,
        directory: &str,
        record: &mut Record,
        bounds: Bounds,
    ) -> Ended {
        let context = self.call_variables(&env);
        let names = self.settings.layout.job_container();
        let mut inside = env;
        inside.map_values(|value| names.value(value));
        let latest_first = self.paths.iter().rev().cloned().collect();
        let arguments = request::run_script_step(program, line, &inside, latest_first, directory);
        self.call(record, bounds, "run_script_step", arguments, Expect::State, &context).0
    }

    /// A step of a job without a container: its program runs here.
    #[expect(clippy::too_many_arguments, reason = "what a process needs, each from another place")]
    fn on_host(
        &mut self,
        program: &str,
        words: Vec<String>,
        env: &Variables,
        directory: &str,
        path: &str,
        record: &mut Record,
        bounds: Bounds,
    ) -> Ended {
        record.command = Some("host");
        let found = if program.contains('/') { Some(program.into()) } else { which(program, path) };
        let Some(found) = found else {
            return self.refuse(record, &format!("{program}: command not found"));
        };
        let launch = Launch {
            program: found,
            arguments: words.into_iter().map(Into::into).collect(),
            environment: self.process_environment(env),
            directory: directory.into(),
            input: Vec::new(),
        };
        match self.launch(record, bounds, &launch) {
            Err(cause) => self.refuse(record, &cause),
            Ok((exit, refused)) => match exit.cause {
                Some(cause @ Cause::StepTimeout) => self.refuse(record, cause.text()),
                Some(_) => {
                    self.console.say(record, Look::Error, "The operation was canceled.");
                    Ended::Cancelled
                }
                None if exit.code != 0 => {
                    self.refuse(record, &format!("Process completed with exit code {}.", exit.code))
                }
                None if refused => Ended::Failure,
                None => Ended::Success,
            },
        }
    }

    /// `uses: docker://IMAGE`.
    pub(crate) fn image(
        &mut self,
        id: &str,
        step: &Step,
        image: &str,
        with: &Pairs,
        record: &mut Record,
        bounds: Bounds,
    ) -> Ended {
        let mut env = self.step_variables(id, step);
        inputs(&mut env, &[], with);
        let image = Image::Reference(image.to_owned());
        let line = input(with, "args").unwrap_or_default();
        self.container_call(&image, input(with, "entrypoint"), line, env, record, bounds)
    }

    /// One stage of an action.
    pub(crate) fn action(
        &mut self,
        id: &str,
        step: &Step,
        action: &Action,
        stage: &'static str,
        record: &mut Record,
        bounds: Bounds,
    ) -> Ended {
        let with = match &step.work {
            Work::Local { with, .. } | Work::Repository { with, .. } | Work::Image { with, .. } => with.as_slice(),
            Work::Run { .. } => &[],
        };
        let mut env = self.step_variables(id, step);
        inputs(&mut env, &action.inputs, with);
        for (name, value) in self.saved.get(id).into_iter().flatten() {
            env.set(&format!("STATE_{name}"), value);
        }
        match &action.runs {
            Runs::Docker { image, pre, main, post, arguments, env: own } => {
                env.extend(own);
                let entry_point = match stage {
                    "pre" => pre.as_deref(),
                    "post" => post.as_deref(),
                    _ => main.as_deref().or_else(|| input(with, "entrypoint")),
                };
                let line = match arguments {
                    Some(items) => arguments::manifest_arguments(items),
                    None => input(with, "args").unwrap_or_default().to_owned(),
                };
                self.container_call(image, entry_point, &line, env, record, bounds)
            }
            Runs::Node { version, pre, main, post } => {
                let script = match stage {
                    "pre" => pre.as_ref(),
                    "post" => post.as_ref(),
                    _ => Some(main),
                };
                // A stage is only planned where the manifest has a script for it.
                let Some(script) = script else { return Ended::Success };
                self.node(version, &action.folder.join(script), env, record, bounds)
            }
        }
    }

    fn container_call(
        &mut self,
        image: &Image,
        entry_point: Option<&str>,
        line: &str,
        env: Variables,
        record: &mut Record,
        bounds: Bounds,
    ) -> Ended {
        let context = self.call_variables(&env);
        let layout = &self.settings.layout;
        let names = layout.container_action();
        let mut inside = env;
        inside.map_values(|value| names.value(value));
        inside.set("HOME", "/github/home");
        let arguments = request::run_container_step(image, entry_point, line, &inside, layout);
        self.call(record, bounds, "run_container_step", arguments, Expect::State, &context).0
    }

    fn node(&mut self, version: &str, script: &Path, env: Variables, record: &mut Record, bounds: Bounds) -> Ended {
        let layout = &self.settings.layout;
        let script = script.display().to_string();
        let workspace = layout.workspace().display().to_string();
        if self.job.container.is_some() {
            if self.is_alpine == Some(true) && std::env::consts::ARCH != "x86_64" {
                return self.refuse(record, "JavaScript actions in Alpine containers are only supported on x64");
            }
            let names = layout.job_container();
            let (line, directory) = (names.apply(&script), names.apply(&workspace));
            let program = self.node_in_container(version);
            return self.script_call(&program, &line, env, &directory, record, bounds);
        }
        let program = layout.externals().join(version).join("bin/node").display().to_string();
        self.on_host(&program, arguments::host_words(&script), &env, &workspace, "", record, bounds)
    }

    /// The node build for this job's container.
    pub(crate) fn node_in_container(&self, version: &str) -> String {
        let libc = if self.is_alpine == Some(true) { "_alpine" } else { "" };
        format!("/__e/{version}{libc}/bin/node")
    }

    /// A step's variables with host paths: `env` blocks, what earlier steps added, context, files.
    fn step_variables(&self, id: &str, step: &Step) -> Variables {
        let mut env = self.env.clone();
        env.extend(&step.env);
        env.extend(self.run.variables(&self.settings.layout).pairs());
        let (repository, reference) = match &step.work {
            Work::Repository { repository, reference, .. } => (repository.as_str(), reference.as_str()),
            _ => ("", ""),
        };
        env.set("GITHUB_ACTION", id);
        env.set("GITHUB_ACTION_REF", reference);
        env.set("GITHUB_ACTION_REPOSITORY", repository);
        for (name, path) in self.files.variables() {
            env.set(name, &path.display().to_string());
        }
        env
    }

    /// The part of a step's variables that the hook's own process gets: the context, never the workflow's `env`.
    fn call_variables(&self, env: &Variables) -> Variables {
        let mut context = self.run.variables(&self.settings.layout);
        let of_the_step = ["GITHUB_ACTION", "GITHUB_ACTION_REF", "GITHUB_ACTION_REPOSITORY"];
        for name in of_the_step.into_iter().chain(self.files.variables().map(|(name, _)| name)) {
            if let Some(value) = env.get(name) {
                context.set(name, value);
            }
        }
        context
    }

    /// The head of a `run:` step's log.
    fn announce(&mut self, record: &mut Record, step: &Step, script: &str, shell: &str) {
        let first = script.trim().lines().next().unwrap_or_default();
        let mut lines: Vec<String> = script.trim_end().lines().map(str::to_owned).collect();
        lines.push(format!("shell: {shell}"));
        let mut shown = self.env.clone();
        shown.extend(&step.env);
        if !shown.pairs().is_empty() {
            lines.push("env:".to_owned());
        }
        lines.extend(shown.pairs().iter().map(|(name, value)| format!("  {name}: {value}")));
        // Repeating the step's own title would only be noise.
        let title = format!("Run {first}");
        let named = step.name.is_some();
        self.console.fold(record, &title, &lines, self.run.debug, named);
    }

    fn refuse(&mut self, record: &mut Record, why: &str) -> Ended {
        self.console.say(record, Look::Error, why);
        Ended::Failure
    }
}

/// `INPUT_*` variables: an action's defaults, then the step's `with`.
fn inputs(env: &mut Variables, declared: &[(String, Option<String>)], with: &[(String, String)]) {
    let name = |name: &str| format!("INPUT_{}", name.replace(' ', "_").to_uppercase());
    for (input, default) in declared {
        env.set(&name(input), default.as_deref().unwrap_or_default());
    }
    for (input, value) in with {
        env.set(&name(input), value);
    }
}

/// An input by name, in any case.
fn input<'a>(with: &'a [(String, String)], name: &str) -> Option<&'a str> {
    with.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}
