//! `run_script_step`: one program in the job's container.

use std::time::Duration;

use anyhow::{anyhow, bail};
use runner_guest::{Guest, Outcome, Program, Stdin, Step, StepHandle};
use runner_model::exit;
use runner_model::message;
use runner_model::protocol::{Response, RunScriptStep, StateHint};
use runner_model::{environ, words};
use runner_wire::Finished;

use crate::broker::Broker;
use crate::call::{Cancellation, Output, Stop};
use crate::caller::Caller;
use crate::prepare::program;

/// How often a cancelled step is looked at until nothing of it is left.
const LOOK: Duration = Duration::from_millis(20);

/// How long what was killed may take to be gone. Only a process in an uninterruptible wait takes longer.
const GONE: Duration = Duration::from_secs(1);

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

impl Broker {
    pub(crate) async fn run_script_step(
        &self,
        caller: &Caller,
        request: &RunScriptStep,
        state: &StateHint,
        output: Output,
        mut cancellation: Cancellation,
    ) -> anyhow::Result<Finished> {
        let Some(job) = self.jobs.of(&caller.runner) else {
            bail!(
                "there is no job container for this step: it was not prepared, or the broker was restarted since; see \
                 the step 'Initialize containers'"
            );
        };
        // The state travels through files the job can write. It finds nothing and allows nothing; but if it names
        // another job, something is wrong that nobody should overlook.
        if state.job().is_some_and(|named| *named != job.id) {
            bail!("state: it names another job than the one this runner prepared");
        }
        let recovered = words::recover(&request.entry_point_args);
        if let Some(warning) = &recovered.warning {
            output.say(&message::warning(&format!("args.entryPointArgs: {warning}")));
        }
        let mut arguments = vec![request.entry_point.clone()];
        arguments.extend(recovered.words);
        let container = &job.container;
        let environment =
            environ::step_environment(&container.environment, &request.environment, &request.prepend_path);
        environ::check_exec_size(&arguments, &environment)?;
        let directory = request.working_directory.as_deref().filter(|path| !path.is_empty());
        let directory = directory.unwrap_or(&container.directory);
        let program = program(&container.user, directory, &environment, arguments, Stdin::Null);

        let description = format!("Step of {}", caller.labels.describe());
        tracing::debug!(job_id = %job.id, "step starts: {}", request.entry_point);
        let outcome = self.run_program(&container.guest, &description, &program, output, &mut cancellation).await?;
        let finished = verdict(outcome, "args.")?;
        tracing::info!(
            job_id = %job.id,
            step = %step_name(request),
            exit_status = finished.exit_status,
            "step ended with status {}", finished.exit_status
        );
        Ok(finished)
    }

    /// Runs a program to its end or to its cancellation.
    pub(crate) async fn run_program(
        &self,
        guest: &Guest,
        description: &str,
        program: &Program,
        output: Output,
        cancellation: &mut Cancellation,
    ) -> anyhow::Result<Outcome> {
        let step = guest
            .start(description, program, None, output.stdout, output.stderr)
            .await
            .map_err(|error| gone(guest, &error.to_string()))?;
        self.attend(step, cancellation).await
    }

    /// Waits for a started program, or ends it when the call is cancelled.
    pub(crate) async fn attend(&self, step: Step, cancellation: &mut Cancellation) -> anyhow::Result<Outcome> {
        let handle = step.handle();
        let guest = handle.guest().clone();
        let waiting = step.wait();
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            outcome = &mut waiting => outcome.map_err(|error| gone(&guest, &error.to_string())),
            () = cancellation.reached(Stop::Ask) => {
                self.stop(&handle, cancellation).await;
                // The connection to a guest that was killed ends, so this does too.
                match tokio::time::timeout(GONE, &mut waiting).await {
                    Ok(Ok(_)) | Ok(Err(_)) => Err(anyhow!("the step was cancelled")),
                    Err(_) => {
                        kill_guest(&guest);
                        Err(anyhow!("the step was cancelled, and its guest had to be killed for it"))
                    }
                }
            }
        }
    }

    /// SIGTERM to every process of the step, SIGKILL to those that are left after the grace period or when the caller
    /// asks again. A guest whose systemd does not answer is killed whole.
    async fn stop(&self, step: &StepHandle, cancellation: &mut Cancellation) {
        let mut answers = step.kill(SIGTERM).await;
        if answers {
            let left = async {
                let mut look = tokio::time::interval(LOOK);
                while step.populated() {
                    look.tick().await;
                }
            };
            tokio::select! {
                () = left => return,
                () = cancellation.reached(Stop::Now) => {}
                () = tokio::time::sleep(self.settings.stop_grace) => {}
            }
            answers = step.kill(SIGKILL).await;
        }
        if !answers {
            tracing::warn!(machine = step.guest().id().machine(), "the guest's systemd does not answer");
            kill_guest(step.guest());
        }
    }
}

fn kill_guest(guest: &Guest) {
    if let Err(error) = guest.kill()
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::error!(machine = guest.id().machine(), "the guest cannot be killed: {error}");
    }
}

/// Nothing is known about the program. It must not go on unwatched, and nothing in this guest can be trusted to end it.
fn gone(guest: &Guest, reason: &str) -> anyhow::Error {
    kill_guest(guest);
    anyhow!("how the step ended is not known: {reason}; the job's container was stopped, so later steps will fail too")
}

/// From a program's end to the hook's exit status. Never 0 but for a program that exited with 0.
pub(crate) fn verdict(outcome: Outcome, fields: &str) -> anyhow::Result<Finished> {
    match outcome {
        Outcome::Ended(ended) => Ok(Finished {
            exit_status: ended.exit_code(),
            response: Response::Empty.to_json(),
            messages: match ended {
                exit::Outcome::Signaled(signal) => {
                    vec![message::error(&format!("the program was ended by signal {signal} ({})", signal_name(signal)))]
                }
                exit::Outcome::Exited(_) => Vec::new(),
            },
        }),
        // The guest's words: a program can say anything there.
        Outcome::NotStarted(reason) => bail!("{fields}{}", message::neutralise(&reason)),
    }
}

fn signal_name(signal: u8) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL: it was killed, perhaps for lack of memory",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS: it made a system call that guests may not make",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

/// What the official runner calls the step.
fn step_name(request: &RunScriptStep) -> String {
    let name = request.environment.get("GITHUB_ACTION").unwrap_or_default();
    name.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_that_exited_with_zero_is_a_success() {
        for (outcome, status) in [
            (exit::Outcome::Exited(0), 0),
            (exit::Outcome::Exited(42), 42),
            (exit::Outcome::Exited(255), 255),
            (exit::Outcome::Signaled(9), 137),
            (exit::Outcome::Signaled(0), 128),
        ] {
            let finished = verdict(Outcome::Ended(outcome), "").unwrap();
            assert_eq!(finished.exit_status, status, "{outcome:?}");
            assert_eq!(finished.response, "{}");
        }
    }

    #[test]
    fn a_guest_cannot_put_commands_into_our_words() {
        let error = verdict(Outcome::NotStarted("entryPoint: 'x'\n::set-env name=A::b".into()), "args.").unwrap_err();
        let line = message::error(&error.to_string());
        assert_eq!(line.lines().count(), 1, "{line}");
        // The official runner turns %0A back into a line end.
        assert!(!line.contains("%0A::"), "{line}");
    }
}
