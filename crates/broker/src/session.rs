//! One connection: the interface of `runner-wire`, served to one peer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runner_model::plan;
use runner_model::protocol::{self, Command};
use runner_wire::{Begun, Finished, RunRequest, Running};
use tokio::sync::oneshot;
use tracing::Instrument;
use zbus::fdo;

use crate::broker::Broker;
use crate::call::{Cancellation, Canceller, Output, cancellation, finished};
use crate::caller::{Caller, Peer};

/// Calls one connection may have under way. A hook process has one.
const CALLS: usize = 8;

/// The served object. Calls end when it does.
#[derive(Debug)]
pub struct Session {
    broker: Arc<Broker>,
    peer: Peer,
    calls: Arc<Calls>,
}

/// The calls of one connection.
#[derive(Debug, Default)]
pub struct Calls(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    abandoned: bool,
    last: u32,
    under_way: HashMap<u32, Call>,
}

#[derive(Debug)]
struct Call {
    canceller: Canceller,
    outcome: Option<oneshot::Receiver<Finished>>,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer is gone: everything it asked for stops at once.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        for call in state.under_way.values() {
            call.canceller.now();
        }
    }
}

impl Session {
    /// For a peer that may use the broker.
    pub fn new(broker: Arc<Broker>, peer: Peer) -> (Self, Arc<Calls>) {
        let calls = Arc::new(Calls::default());
        (Self { broker, peer, calls: Arc::clone(&calls) }, calls)
    }

    fn add(&self, canceller: Canceller, outcome: oneshot::Receiver<Finished>) -> fdo::Result<u32> {
        let mut calls = self.calls.lock();
        if calls.under_way.len() >= CALLS {
            return Err(fdo::Error::LimitsExceeded("too many calls on one connection".into()));
        }
        if calls.abandoned {
            return Err(failed("the caller is gone"));
        }
        calls.last += 1;
        let number = calls.last;
        calls.under_way.insert(number, Call { canceller, outcome: Some(outcome) });
        Ok(number)
    }

    fn only_root(&self) -> fdo::Result<()> {
        if self.peer.uid == 0 { Ok(()) } else { Err(fdo::Error::AccessDenied("only root may do this".into())) }
    }
}

fn failed(error: impl std::fmt::Display) -> fdo::Error {
    fdo::Error::Failed(format!("{error:#}"))
}

#[zbus::interface(name = "io.github.runner_appliance.Broker1")]
impl Session {
    async fn hook(&self, request: Vec<u8>, environment: HashMap<String, String>) -> fdo::Result<Begun> {
        let caller = Caller::new(self.peer.uid, &environment);
        let parsed = protocol::parse(&request).map_err(|error| {
            tracing::warn!(pid = self.peer.pid, "refused a request: {error}");
            failed(error)
        })?;
        drop(request);
        let response_file =
            plan::response_file(&self.broker.settings, parsed.response_file.as_deref()).map_err(failed)?;
        let (output, stdout, stderr) = Output::new().map_err(failed)?;
        let (canceller, cancellation) = cancellation();
        let (sender, outcome) = oneshot::channel();
        let call = self.add(canceller, outcome)?;

        let broker = Arc::clone(&self.broker);
        let span = broker.span(&caller, parsed.command.name());
        tokio::spawn(
            async move {
                let outcome = finished(hook_command(&broker, &caller, &parsed, output, cancellation).await);
                for message in &outcome.messages {
                    tracing::warn!("told the job: {message}");
                }
                // A caller that went away is not told.
                let _ = sender.send(outcome);
            }
            .instrument(span),
        );
        Ok(Begun { call, stdout: stdout.into(), stderr: stderr.into(), response_file })
    }

    async fn run(&self, request: RunRequest) -> fdo::Result<Running> {
        self.only_root()?;
        let (canceller, cancellation) = cancellation();
        let (sender, outcome) = oneshot::channel();
        // Known before the guest boots, so that a caller that goes away meanwhile stops it.
        let call = self.add(canceller, outcome)?;
        let broker = Arc::clone(&self.broker);
        let uid = self.peer.uid;
        let (begun, ends) = oneshot::channel();
        // A task of its own: this method's future is dropped when the connection closes, and what was begun must be
        // finished all the same.
        tokio::spawn(async move {
            match broker.begin_run(uid, &request, cancellation.clone()).await {
                Ok((started, ends)) => {
                    drop(begun.send(Ok(ends)));
                    drop(sender.send(finished(broker.finish_run(started, cancellation).await)));
                }
                Err(error) => drop(begun.send(Err(error))),
            }
        });
        let ends = match ends.await {
            Ok(Ok(ends)) => ends,
            outcome => {
                self.calls.lock().under_way.remove(&call);
                return Err(match outcome {
                    Ok(Err(error)) => failed(format!("{error:#}")),
                    _ => failed("the broker dropped the call"),
                });
            }
        };
        Ok(Running { call, stdin: ends.stdin.into(), stdout: ends.stdout.into(), stderr: ends.stderr.into() })
    }

    async fn finish(&self, call: u32) -> fdo::Result<Finished> {
        let outcome = self.calls.lock().under_way.get_mut(&call).and_then(|call| call.outcome.take());
        let outcome = outcome.ok_or_else(|| fdo::Error::InvalidArgs("no such call".into()))?;
        let finished = outcome.await.map_err(|_| failed("the broker dropped the call; its outcome is not known"));
        self.calls.lock().under_way.remove(&call);
        finished
    }

    fn cancel(&self, call: u32) -> fdo::Result<()> {
        match self.calls.lock().under_way.get(&call) {
            Some(call) => {
                call.canceller.step_up();
                Ok(())
            }
            // It has finished meanwhile.
            None => Ok(()),
        }
    }

    fn jobs(&self) -> fdo::Result<String> {
        self.only_root()?;
        serde_json::to_string(&self.broker.jobs.summaries()).map_err(failed)
    }
}

async fn hook_command(
    broker: &Broker,
    caller: &Caller,
    request: &protocol::Request,
    output: Output,
    cancellation: Cancellation,
) -> anyhow::Result<Finished> {
    match &request.command {
        Command::PrepareJob(prepare) => broker.prepare_job(caller, prepare, output, cancellation).await,
        Command::RunScriptStep(step) => {
            broker.run_script_step(caller, step, &request.state, output, cancellation).await
        }
        Command::RunContainerStep(_) => Err(anyhow::anyhow!(
            "container actions ('uses: docker://…' and actions with a Dockerfile) are not supported yet; run this job \
             on another runner"
        )),
        Command::CleanupJob => broker.cleanup_job(caller, output).await,
    }
}
