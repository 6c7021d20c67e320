//! `cleanup_job`: nothing of the job stays.

use anyhow::bail;
use runner_model::message;
use runner_model::protocol::Response;
use runner_wire::Finished;

use crate::broker::Broker;
use crate::call::{Output, success};
use crate::caller::Caller;

impl Broker {
    /// Removes every job of this runner, whatever the state says. There may be none.
    pub(crate) async fn cleanup_job(&self, caller: &Caller, output: Output) -> anyhow::Result<Finished> {
        let mut left = Vec::new();
        let jobs = self.jobs.ids_of(&caller.runner);
        for job in &jobs {
            left.extend(self.destroy(job).await);
        }
        if caller.debug {
            output.say(&message::debug(&format!("removed {} job(s); left over: {}", jobs.len(), left.len())));
        }
        if !left.is_empty() {
            bail!("the job could not be removed whole: {}", left.join("; "));
        }
        Ok(success(Response::Empty.to_json()))
    }
}
