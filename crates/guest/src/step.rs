//! A program in a guest: a transient unit of the guest's PID 1.
//!
//! The exit status comes from that PID 1 and from nowhere else. What cannot be learnt is an error, never a success: a
//! stream that closed, a connection that broke, a unit that is no longer there say nothing about the program.

use std::os::fd::OwnedFd;
use std::time::Duration;

use runner_inside::exec::{NOT_STARTED, STATUS_PREFIX};
use runner_model::exit;
use runner_model::unit::{Property, step_properties};
use thiserror::Error;
use zbus::{Fd, Variant};
use zbus_systemd::systemd1::{ServiceProxy, UnitProxy};

use crate::guest::Guest;
use crate::systemd::{UnitError, UnitJob, owned, to_dbus};

/// How long a guest's manager may take to answer when a step is to be killed. A manager that is stopped or frozen by
/// its own root never answers, and the caller then kills the guest.
const KILL_DEADLINE: Duration = Duration::from_secs(1);

/// `si_code` values of the main process's end, as systemd reports them (wait(2): CLD_*).
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const CLD_DUMPED: i32 = 3;

/// The program's standard streams: descriptors made for this one step.
#[derive(Debug)]
pub(crate) struct Streams {
    /// What `guest-exec` reads: the program's block, then perhaps the program's input.
    pub stdin: OwnedFd,
    /// Write end of a pipe.
    pub stdout: OwnedFd,
    /// Write end of a pipe.
    pub stderr: OwnedFd,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran and ended like this.
    Ended(exit::Outcome),
    /// It was never executed: the field at fault and the reason, as the guest put it.
    NotStarted(String),
}

/// Why nothing is known about a program's end.
#[derive(Debug, Error)]
pub enum StepError {
    /// The guest's manager did not take the unit.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// The program's standard streams could not be set up; nothing was started.
    #[error("the program's standard streams cannot be set up: {0}")]
    Streams(std::io::Error),
    /// The manager's answer is missing or makes no sense.
    #[error("the guest's systemd does not say: {0}")]
    Unknown(String),
}

/// A program under way.
#[derive(Debug)]
pub struct Step {
    guest: Guest,
    unit: String,
    job: UnitJob,
}

impl Step {
    pub(crate) async fn start(guest: &Guest, description: &str, streams: Streams) -> Result<Self, StepError> {
        let unit = format!("step-{}.service", guest.next_step());
        let properties: Vec<Property> = step_properties(description, guest.launcher());
        let mut properties = to_dbus(properties);
        for (name, descriptor) in [
            ("StandardInputFileDescriptor", streams.stdin),
            ("StandardOutputFileDescriptor", streams.stdout),
            ("StandardErrorFileDescriptor", streams.stderr),
        ] {
            properties.push((name.to_owned(), owned(Variant::Fd(Fd::Owned(descriptor)))));
        }
        let job = guest.systemd().start(&unit, properties).await?;
        Ok(Self { guest: guest.clone(), unit, job })
    }

    /// Something to signal the step with while [`Step::wait`] is under way.
    pub fn handle(&self) -> StepHandle {
        StepHandle { guest: self.guest.clone(), unit: self.unit.clone() }
    }

    /// Waits for the program's end. Programs that it left in the background live on.
    pub async fn wait(self) -> Result<Outcome, StepError> {
        let Self { guest, unit, job } = self;
        let result = job.result().await?;
        let outcome = read_outcome(&guest, &unit).await;
        let manager = guest.systemd().manager().clone();
        tokio::spawn(async move {
            // The status is read; the unit may go. A failed one stays loaded until it is reset.
            let _ = manager.unref_unit(unit.clone()).await;
            let _ = manager.reset_failed_unit(unit).await;
        });
        let outcome = outcome?;
        // "skipped", "dependency" and the like: the unit never ran, whatever its properties say.
        if result != "done" && result != "failed" && result != "canceled" {
            return Err(StepError::Unknown(format!("its unit job ended as '{result}'")));
        }
        Ok(outcome)
    }
}

async fn read_outcome(guest: &Guest, unit: &str) -> Result<Outcome, StepError> {
    let unknown = |error: zbus::Error| StepError::Unknown(error.to_string());
    let path = format!("/org/freedesktop/systemd1/unit/{}", zbus_systemd::bus_label_escape(unit));
    let connection = guest.systemd().connection();
    let service = ServiceProxy::builder(connection)
        .path(path.clone())
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .map_err(unknown)?;
    let loaded = UnitProxy::builder(connection)
        .path(path)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .map_err(unknown)?;
    let (state, code, status, text) = tokio::try_join!(
        loaded.load_state(),
        service.exec_main_code(),
        service.exec_main_status(),
        service.status_text()
    )
    .map_err(unknown)?;
    judge(&state, code, status, &text)
}

/// What the manager's properties say. A unit that is not loaded reads as "success, 0" (org.freedesktop.systemd1(5) gives
/// defaults), so the load state is part of the proof.
fn judge(load_state: &str, code: i32, status: i32, text: &str) -> Result<Outcome, StepError> {
    if load_state != "loaded" {
        return Err(StepError::Unknown(format!("its unit is {load_state}")));
    }
    let number = u8::try_from(status);
    match (code, number) {
        (CLD_EXITED, Ok(NOT_STARTED)) if text.starts_with(STATUS_PREFIX) => {
            Ok(Outcome::NotStarted(text[STATUS_PREFIX.len()..].to_owned()))
        }
        (CLD_EXITED, Ok(status)) => Ok(Outcome::Ended(exit::Outcome::Exited(status))),
        (CLD_KILLED | CLD_DUMPED, Ok(signal)) => Ok(Outcome::Ended(exit::Outcome::Signaled(signal))),
        (0, _) => Err(StepError::Unknown("its main process never ran".into())),
        _ => Err(StepError::Unknown(format!("code {code}, status {status}"))),
    }
}

/// Signals a step from beside the one who waits for it.
#[derive(Debug, Clone)]
pub struct StepHandle {
    guest: Guest,
    unit: String,
}

impl StepHandle {
    /// Sends a signal to every process of the step. `false` when the guest's manager does not answer in time.
    pub async fn kill(&self, signal: i32) -> bool {
        let call = self.guest.systemd().manager().kill_unit(self.unit.clone(), "all".to_owned(), signal);
        // "No such unit" and "no process": it has ended, which is what was wanted.
        !matches!(tokio::time::timeout(KILL_DEADLINE, call).await, Err(_) | Ok(Err(zbus::Error::InputOutput(_))))
    }

    /// Whether any process of the step is alive, as the host's kernel says.
    pub fn populated(&self) -> bool {
        let events = self.guest.payload().join("system.slice").join(&self.unit).join("cgroup.events");
        // The guest's PID 1 removes the control group of a unit that has no process left.
        std::fs::read_to_string(events).is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// The guest the step runs in.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_proof_is_a_success() {
        assert_eq!(judge("loaded", CLD_EXITED, 0, "").unwrap(), Outcome::Ended(exit::Outcome::Exited(0)));
        for (state, code, status) in [
            ("not-found", CLD_EXITED, 0),
            ("not-found", 0, 0),
            ("loaded", 0, 0),
            ("loaded", 7, 0),
            ("loaded", CLD_EXITED, -1),
            ("loaded", CLD_EXITED, 256),
        ] {
            let outcome = judge(state, code, status, "");
            assert!(matches!(outcome, Err(StepError::Unknown(_))), "{state} {code} {status}: {outcome:?}");
        }
    }

    #[test]
    fn a_programs_own_status_is_kept() {
        assert_eq!(judge("loaded", CLD_EXITED, 203, "").unwrap(), Outcome::Ended(exit::Outcome::Exited(203)));
        assert_eq!(judge("loaded", CLD_KILLED, 9, "").unwrap(), Outcome::Ended(exit::Outcome::Signaled(9)));
        assert_eq!(judge("loaded", CLD_DUMPED, 11, "").unwrap(), Outcome::Ended(exit::Outcome::Signaled(11)));
    }

    #[test]
    fn a_program_that_exits_like_the_launcher_is_not_the_launcher() {
        assert_eq!(judge("loaded", CLD_EXITED, 125, "").unwrap(), Outcome::Ended(exit::Outcome::Exited(125)));
        assert_eq!(
            judge("loaded", CLD_EXITED, 125, "runner-guest-exec: entryPoint: 'x' is not there").unwrap(),
            Outcome::NotStarted("entryPoint: 'x' is not there".into())
        );
        assert_eq!(
            judge("loaded", CLD_EXITED, 1, "runner-guest-exec: x").unwrap(),
            Outcome::Ended(exit::Outcome::Exited(1))
        );
    }
}
