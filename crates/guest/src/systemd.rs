//! A service manager, the host's or a guest's: start a transient unit, wait for what its unit job comes to, stop it.
//!
//! systemd sends job signals only to clients that subscribed, and a unit job may be over before the caller has looked
//! at the reply that names it. So one task reads every `JobRemoved` signal of the connection from before the first
//! call on, and keeps results that nobody has asked for yet.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use runner_model::unit::{Property, Value};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};
use zbus_systemd::systemd1::ManagerProxy;

/// Why a unit did not do as it was told.
#[derive(Debug, Error)]
pub enum UnitError {
    /// The manager refused the call.
    #[error("systemd refused {unit}: {reason}")]
    Refused {
        /// The unit.
        unit: String,
        /// What systemd said.
        reason: zbus::Error,
    },
    /// The unit job ended, but not with `done`.
    #[error("{unit}: unit job ended as '{result}'")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `canceled`, `timeout`, `dependency`, `skipped` (org.freedesktop.systemd1(5)).
        result: String,
    },
    /// The connection to the manager ended first. What became of the unit is not known.
    #[error("the connection to systemd ended before {unit} did")]
    Gone {
        /// The unit.
        unit: String,
    },
}

/// How many results are kept for those who ask late. Far more than unit jobs can end between a reply and its reading.
const KEPT_RESULTS: usize = 256;

#[derive(Debug, Default)]
struct Jobs {
    /// Several may wait for one: stopping a unit twice is one unit job.
    waiting: HashMap<OwnedObjectPath, Vec<oneshot::Sender<String>>>,
    ended: VecDeque<(OwnedObjectPath, String)>,
    closed: bool,
}

/// A connection to a service manager.
#[derive(Debug, Clone)]
pub(crate) struct Systemd {
    connection: Connection,
    manager: ManagerProxy<'static>,
    jobs: Arc<Mutex<Jobs>>,
    lost: watch::Receiver<bool>,
}

impl Systemd {
    /// Subscribes to the manager at the other end of a bus connection.
    pub(crate) async fn new(connection: Connection) -> zbus::Result<Self> {
        // Property caching would cost a match rule and a GetAll of some two hundred values, and we read each property
        // at one known moment anyway.
        let manager =
            ManagerProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
        let mut removed = manager.receive_job_removed().await?;
        manager.subscribe().await?;
        let jobs = Arc::new(Mutex::new(Jobs::default()));
        let shared = Arc::clone(&jobs);
        let (gone, lost) = watch::channel(false);
        tokio::spawn(async move {
            while let Some(signal) = removed.next().await {
                let Ok(arguments) = signal.args() else { continue };
                lock(&shared).ended(arguments.job().clone(), arguments.result().clone());
            }
            let mut jobs = lock(&shared);
            jobs.closed = true;
            jobs.waiting.clear();
            drop(jobs);
            gone.send_replace(true);
        });
        Ok(Self { connection, manager, jobs, lost })
    }

    /// The bus connection, for other interfaces on it.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The manager's interface.
    pub(crate) fn manager(&self) -> &ManagerProxy<'static> {
        &self.manager
    }

    /// Waits until the connection has ended.
    pub(crate) async fn lost(&self) {
        // An error means that the watching task is gone, which is the same.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Starts a transient unit; the result is a unit job to wait for.
    pub(crate) async fn start(
        &self,
        unit: &str,
        properties: Vec<(String, OwnedVariant)>,
    ) -> Result<UnitJob, UnitError> {
        self.manager
            .start_transient_unit(unit.to_owned(), "fail".to_owned(), properties, Vec::new())
            .await
            .map(|path| self.job(unit, path))
            .map_err(|reason| UnitError::Refused { unit: unit.to_owned(), reason })
    }

    /// Stops a unit; `None` when there is no such unit.
    pub(crate) async fn stop(&self, unit: &str) -> Result<Option<UnitJob>, UnitError> {
        match self.manager.stop_unit(unit.to_owned(), "replace".to_owned()).await {
            Ok(path) => Ok(Some(self.job(unit, path))),
            Err(zbus::Error::MethodError(name, _, _)) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" => {
                Ok(None)
            }
            Err(reason) => Err(UnitError::Refused { unit: unit.to_owned(), reason }),
        }
    }

    fn job(&self, unit: &str, path: OwnedObjectPath) -> UnitJob {
        UnitJob { unit: unit.to_owned(), ended: lock(&self.jobs).wait_for(path) }
    }
}

impl Jobs {
    fn ended(&mut self, path: OwnedObjectPath, result: String) {
        for waiter in self.waiting.remove(&path).into_iter().flatten() {
            // The waiter may have gone away; then nobody wants the result.
            drop(waiter.send(result.clone()));
        }
        if self.ended.len() == KEPT_RESULTS {
            self.ended.pop_front();
        }
        self.ended.push_back((path, result));
    }

    fn wait_for(&mut self, path: OwnedObjectPath) -> oneshot::Receiver<String> {
        let (sender, receiver) = oneshot::channel();
        // Kept for others who may ask for the same; systemd does not use a unit job's path twice.
        if let Some((_, result)) = self.ended.iter().find(|(ended, _)| *ended == path) {
            drop(sender.send(result.clone()));
        } else if !self.closed {
            self.waiting.entry(path).or_default().push(sender);
        }
        receiver
    }
}

fn lock(jobs: &Mutex<Jobs>) -> MutexGuard<'_, Jobs> {
    // The maps are consistent between any two statements, whoever panicked.
    jobs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A unit job under way.
#[derive(Debug)]
pub(crate) struct UnitJob {
    unit: String,
    ended: oneshot::Receiver<String>,
}

impl UnitJob {
    /// Waits until it is over, whatever the result: `done`, `failed`, …
    pub(crate) async fn result(self) -> Result<String, UnitError> {
        self.ended.await.map_err(|_| UnitError::Gone { unit: self.unit })
    }

    /// Waits until it is over and demands `done`.
    pub(crate) async fn done(self) -> Result<(), UnitError> {
        let unit = self.unit.clone();
        match self.result().await? {
            result if result == "done" => Ok(()),
            result => Err(UnitError::Job { unit, result }),
        }
    }
}

/// Unit properties as D-Bus values.
pub(crate) fn to_dbus(properties: Vec<Property>) -> Vec<(String, OwnedVariant)> {
    properties.into_iter().map(|(name, value)| (name.to_owned(), variant(value))).collect()
}

fn variant(value: Value) -> OwnedVariant {
    let value = match value {
        Value::Text(text) => Variant::new(text),
        Value::Texts(texts) => Variant::new(texts),
        Value::Truth(truth) => Variant::new(truth),
        Value::Signed(number) => Variant::new(number),
        Value::Number(number) => Variant::new(number),
        Value::Bytes(fields) => Variant::new(fields),
        Value::Filter(allowed, names) => Variant::new((allowed, names)),
        Value::Commands(commands) => Variant::new(commands),
    };
    owned(value)
}

/// A value without borrowed parts.
pub(crate) fn owned(value: Variant<'_>) -> OwnedVariant {
    OwnedVariant::try_from(value).expect("only duplicating a descriptor can fail, and these values hold none or own it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: u32) -> OwnedObjectPath {
        OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{number}")).unwrap()
    }

    #[test]
    fn a_job_that_ended_before_it_was_waited_for_is_not_lost() {
        let mut jobs = Jobs::default();
        jobs.ended(path(1), "done".into());
        assert_eq!(jobs.wait_for(path(1)).try_recv(), Ok("done".into()));
        assert_eq!(jobs.wait_for(path(1)).try_recv(), Ok("done".into()), "the second to ask");
    }

    #[test]
    fn two_may_wait_for_one_job() {
        let mut jobs = Jobs::default();
        let (mut first, mut second) = (jobs.wait_for(path(1)), jobs.wait_for(path(1)));
        jobs.ended(path(1), "done".into());
        assert_eq!((first.try_recv(), second.try_recv()), (Ok("done".into()), Ok("done".into())));
    }

    #[test]
    fn a_job_that_ends_later_wakes_its_waiter_only() {
        let mut jobs = Jobs::default();
        let mut first = jobs.wait_for(path(1));
        let mut second = jobs.wait_for(path(2));
        jobs.ended(path(2), "failed".into());
        assert_eq!(second.try_recv(), Ok("failed".into()));
        assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }

    #[test]
    fn after_the_connection_ended_nobody_waits_forever() {
        let mut jobs = Jobs { closed: true, ..Jobs::default() };
        assert_eq!(jobs.wait_for(path(1)).try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn results_nobody_asks_for_are_bounded() {
        let mut jobs = Jobs::default();
        for number in 0..1_000 {
            jobs.ended(path(number), "done".into());
        }
        assert_eq!(jobs.ended.len(), KEPT_RESULTS);
    }

    #[test]
    fn properties_have_the_types_systemd_expects() {
        let signature = |value| variant(value).value_signature().to_string();
        assert_eq!(signature(Value::Text(String::new())), "s");
        assert_eq!(signature(Value::Texts(vec![])), "as");
        assert_eq!(signature(Value::Truth(true)), "b");
        assert_eq!(signature(Value::Signed(1)), "i");
        assert_eq!(signature(Value::Number(1)), "t");
        assert_eq!(signature(Value::Bytes(vec![])), "aay");
        assert_eq!(signature(Value::Filter(true, vec![])), "(bas)");
        assert_eq!(signature(Value::Commands(vec![])), "a(sasb)");
    }
}
