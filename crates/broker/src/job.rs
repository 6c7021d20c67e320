//! What is remembered of a job between its calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use runner_guest::{Guest, IdRange};
use runner_model::environ::Environment;
use runner_model::names::JobId;
use runner_model::passwd::User;
use runner_store::Lease;
use serde::Serialize;

use crate::caller::{Labels, RunnerKey};

/// A prepared job.
#[derive(Debug)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub runner: RunnerKey,
    /// What it is called.
    pub labels: Labels,
    /// When it was prepared.
    pub since: Instant,
    /// The ids on disk of all users of its containers but the one that is the runner.
    pub ids: Arc<IdRange>,
    /// The container its steps run in.
    pub container: Container,
}

/// A container: a guest and how programs run in it.
#[derive(Debug)]
pub struct Container {
    /// The guest.
    pub guest: Guest,
    /// Image reference, as asked for.
    pub image: String,
    /// Digest that says exactly which image that was.
    pub digest: String,
    /// Environment of every program.
    pub environment: Environment,
    /// Who programs run as.
    pub user: User,
    /// Where they start when a request does not say.
    pub directory: String,
    /// Keeps the image in the store.
    pub lease: Option<Lease>,
}

/// All jobs there are. Only this process makes them, so this is the truth.
#[derive(Debug, Default)]
pub struct Jobs(Mutex<HashMap<JobId, Entry>>);

#[derive(Debug)]
enum Entry {
    /// The id is taken, the job not yet there.
    Reserved(RunnerKey),
    Ready(Arc<Job>),
}

/// One job, for people.
#[derive(Debug, Serialize)]
pub struct JobSummary {
    /// Job id.
    pub id: String,
    /// Machine name of its container.
    pub machine: String,
    /// Image reference.
    pub image: String,
    /// Digest of the image: the registry's, else the manifest's, else the image's id.
    pub digest: String,
    /// Repository.
    pub repository: String,
    /// Workflow.
    pub workflow: String,
    /// Run id.
    pub run_id: String,
    /// Job name.
    pub job: String,
    /// Seconds since it was prepared.
    pub seconds: u64,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new id, out of random numbers.
    pub fn reserve(&self, runner: &RunnerKey, mut random: impl FnMut() -> u32) -> JobId {
        let mut jobs = self.lock();
        loop {
            let id = JobId::from_random(random());
            if !jobs.contains_key(&id) {
                jobs.insert(id.clone(), Entry::Reserved(runner.clone()));
                return id;
            }
        }
    }

    /// The job is there. `false` if somebody removed it meanwhile: then it must be destroyed.
    pub fn ready(&self, job: Arc<Job>) -> bool {
        match self.lock().get_mut(&job.id) {
            Some(entry @ Entry::Reserved(_)) => {
                *entry = Entry::Ready(job);
                true
            }
            _ => false,
        }
    }

    /// The job is gone.
    pub fn remove(&self, id: &JobId) {
        self.lock().remove(id);
    }

    /// The prepared job of a runner.
    pub fn of(&self, runner: &RunnerKey) -> Option<Arc<Job>> {
        self.lock().values().find_map(|entry| match entry {
            Entry::Ready(job) if job.runner == *runner => Some(Arc::clone(job)),
            _ => None,
        })
    }

    /// Every job of a runner, prepared or not.
    pub fn ids_of(&self, runner: &RunnerKey) -> Vec<JobId> {
        self.lock()
            .iter()
            .filter(|(_, entry)| match entry {
                Entry::Reserved(owner) => owner == runner,
                Entry::Ready(job) => job.runner == *runner,
            })
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// The job's ids on disk, if it got that far.
    pub fn disk_ids(&self, id: &JobId) -> Option<Arc<IdRange>> {
        match self.lock().get(id) {
            Some(Entry::Ready(job)) => Some(Arc::clone(&job.ids)),
            _ => None,
        }
    }

    /// All prepared jobs, for people.
    pub fn summaries(&self) -> Vec<JobSummary> {
        let mut all: Vec<_> = self
            .lock()
            .values()
            .filter_map(|entry| match entry {
                Entry::Ready(job) => Some(JobSummary {
                    id: job.id.to_string(),
                    machine: job.container.guest.id().machine(),
                    image: job.container.image.clone(),
                    digest: job.container.digest.clone(),
                    repository: job.labels.repository.clone(),
                    workflow: job.labels.workflow.clone(),
                    run_id: job.labels.run_id.clone(),
                    job: job.labels.job.clone(),
                    seconds: job.since.elapsed().as_secs(),
                }),
                Entry::Reserved(_) => None,
            })
            .collect();
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_in_use_is_not_given_again() {
        let jobs = Jobs::default();
        let runner = RunnerKey { uid: 1, name: "a".into() };
        let other = RunnerKey { uid: 1, name: "b".into() };
        let mut numbers = [7, 7, 8].into_iter();
        let first = jobs.reserve(&runner, || numbers.next().expect("enough"));
        let second = jobs.reserve(&other, || numbers.next().expect("enough"));
        assert_ne!(first, second);
        assert_eq!(jobs.ids_of(&runner), std::slice::from_ref(&first));
        jobs.remove(&first);
        assert!(jobs.ids_of(&runner).is_empty());
        assert!(jobs.of(&other).is_none(), "a reserved job is not a prepared one");
    }
}
