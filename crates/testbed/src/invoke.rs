//! The processes of a job: a hook call with its request and response, a program on the host (protocol sections 2, 9 and
//! 15).

use std::ffi::OsString;
use std::fs;
use std::io;

use crate::context::Variables;
use crate::hook;
use crate::job::{Bounds, JobRun};
use crate::json::Value;
use crate::log_commands::{Interpreter, Look};
use crate::process::{self, Control, Exit, Launch};
use crate::report::{Ended, Record, StepSink};
use crate::request;
use crate::response::{self, Expect, Response};

/// The line every failed hook call ends with in the real runner's log.
const GENERIC: &str =
    "Executing the custom container implementation failed. Please contact your self hosted runner administrator.";

impl JobRun<'_> {
    /// One call of the hook.
    pub(crate) fn call(
        &mut self,
        record: &mut Record,
        bounds: Bounds,
        command: &'static str,
        arguments: Value,
        expect: Expect,
        context: &Variables,
    ) -> (Ended, Option<Response>) {
        record.command = Some(command);
        record.request = Some(arguments.clone());
        let settings = self.settings;
        let environment = hook::environment(&settings.worker, context, &self.tracking_id, &self.paths);
        let path = hook::lookup(&environment, "PATH").unwrap_or_default();
        let prepared = hook::interpreter(&settings.hook, path, &settings.layout.externals())
            .map_err(|error| error.to_string())
            .and_then(|interpreter| {
                let file = hook::new_response_file(&settings.layout)
                    .map_err(|error| format!("cannot make a response file: {error}"))?;
                Ok((interpreter, file))
            });
        let (interpreter, response_file) = match prepared {
            Ok(prepared) => prepared,
            Err(cause) => return (self.hook_failed(record, cause), None),
        };
        let lines = [format!("shell: {} -e {{0}}", interpreter.program.display())];
        let title = format!("Run '{}'", settings.hook.display());
        self.console.fold(record, &title, &lines, self.run.debug, false);
        let request = request::envelope(command, &response_file, arguments, self.state.clone());
        let launch = Launch {
            program: interpreter.program,
            arguments: interpreter.arguments.into_iter().map(Into::into).collect(),
            environment,
            directory: settings.layout.workspace(),
            input: hook::input(&request),
        };
        let (exit, refused) = match self.launch(record, bounds, &launch) {
            Ok(result) => result,
            Err(cause) => return (self.hook_failed(record, cause), None),
        };
        if let Some(cause) = exit.cause {
            return (self.hook_failed(record, cause.text().to_owned()), None);
        }
        if exit.code != 0 {
            self.console.say(record, Look::Error, &format!("Process completed with exit code {}.", exit.code));
            self.console.say(record, Look::Error, GENERIC);
            return (Ended::Failure, None);
        }
        let bytes = match fs::read(&response_file) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let cause = format!("cannot read the response file {}: {error}", response_file.display());
                return (self.hook_failed(record, cause), None);
            }
        };
        // Read once, then gone, as the runner does; a file that was replaced by a directory stays for the job's end.
        let _ = fs::remove_file(&response_file);
        let read = response::read(bytes.as_deref(), expect);
        record.response = read.document;
        if let Some(state) = read.state {
            self.state = state;
        }
        match read.result {
            Err(cause) => (self.hook_failed(record, cause), None),
            Ok(response) if refused => (Ended::Failure, Some(response)),
            Ok(response) => (Ended::Success, Some(response)),
        }
    }

    /// The runner keeps the inner cause to itself; a person testing a hook needs it.
    fn hook_failed(&mut self, record: &mut Record, cause: String) -> Ended {
        self.console.say(record, Look::Note, &cause);
        self.console.say(record, Look::Error, GENERIC);
        record.cause = Some(cause);
        Ended::Failure
    }

    /// Starts a process for a step. The flag tells whether a workflow command in its output was refused.
    pub(crate) fn launch(
        &mut self,
        record: &mut Record,
        bounds: Bounds,
        launch: &Launch,
    ) -> Result<(Exit, bool), String> {
        let mut interpreter = Interpreter::new(self.run.debug);
        let mut control = Control {
            timings: self.settings.timings,
            deadline: bounds.deadline,
            cancel: &mut self.cancel,
            cancellable: bounds.cancellable,
            triggers: &mut self.triggers,
        };
        let mut sink = StepSink { console: &mut self.console, record, interpreter: &mut interpreter };
        let result = process::run(launch, &mut control, &mut sink);
        if let Some(error) = self.console.raw_error() {
            self.console.say(record, Look::Warning, &format!("the raw log is incomplete: {error}"));
        }
        let exit = result.map_err(|error| {
            format!("cannot start {} in {}: {error}", launch.program.display(), launch.directory.display())
        })?;
        if exit.output_held {
            let wait = self.settings.timings.end_of_output.as_secs_f64();
            let text = format!(
                "the process ended but something it started keeps its output open; went on after waiting {wait} s"
            );
            self.console.say(record, Look::Note, &text);
        }
        for (name, value) in interpreter.outputs {
            record.outputs.push((name, value));
        }
        if let Some(id) = &record.id {
            self.saved.entry(id.clone()).or_default().extend(interpreter.state);
        }
        record.exit = Some(exit.clone());
        Ok((exit, interpreter.failed))
    }

    /// The environment of a step on the host.
    pub(crate) fn process_environment(&self, env: &Variables) -> Vec<(OsString, OsString)> {
        hook::environment(&self.settings.worker, env, &self.tracking_id, &self.paths)
    }
}
