//! The broker: what all calls share.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use runner_guest::{Engine, IdRange, Leases, Owner, Places, Restored, restore};
use runner_model::config::Settings;
use runner_model::names::JobId;
use runner_model::passwd;
use runner_pull::Puller;
use runner_store::{Store, Unpacker};

use crate::caller::{Caller, Peer};
use crate::job::Jobs;

/// What all calls share.
#[derive(Debug)]
pub struct Broker {
    pub(crate) engine: Engine,
    pub(crate) store: Arc<Store>,
    pub(crate) puller: Puller,
    pub(crate) settings: Settings,
    pub(crate) jobs: Jobs,
    /// The official runner's user.
    pub(crate) owner: Owner,
}

/// Where the broker keeps things.
#[derive(Debug, Clone)]
pub struct Folders {
    /// Our programs.
    pub programs: PathBuf,
    /// Images, jobs and the guests' root.
    pub state: PathBuf,
    /// Run-time data.
    pub run: PathBuf,
}

impl Broker {
    /// Connects, and removes whatever an earlier life of this process left behind.
    pub async fn start(settings: Settings, folders: &Folders) -> anyhow::Result<Self> {
        let owner = owner(&settings.user)?;
        let places = Places {
            programs: folders.programs.clone(),
            tree: folders.state.join("guest-root"),
            run: folders.run.clone(),
            jobs: folders.state.join("jobs"),
        };
        let ids = settings.uid_range;
        let leases = Leases::new(ids.base, ids.guest_ids());
        anyhow::ensure!(
            !ids.contains(owner.uid) && !ids.contains(owner.gid),
            "RUNNER_UID_RANGE: the ids of user '{}' lie in it, so guests could be that user; choose another range",
            settings.user
        );
        let engine = Engine::new(places, leases).await?;
        let store = Store::open(&folders.state.join("images")).context("the image store cannot be opened")?;
        let program = folders.programs.join("layer-unpack");
        let store = Arc::new(store.with_unpacker(Unpacker::Sandboxed { program, base: ids.unpack_base() }));
        let puller = Puller::new(Arc::clone(&store), &settings);
        let broker = Self { engine, store, puller, settings, jobs: Jobs::default(), owner };
        broker.reap().await?;
        let store = Arc::clone(&broker.store);
        // Nothing waits for it: it is beside pulls as it is beside those of other processes.
        tokio::task::spawn_blocking(move || match store.sweep() {
            Ok(swept) => tracing::debug!(?swept, "swept the image store"),
            Err(error) => tracing::error!("the image store cannot be swept: {error}"),
        });
        Ok(broker)
    }

    async fn reap(&self) -> anyhow::Result<()> {
        let reaped = self.engine.reap().await?;
        for (job, receipt) in &reaped {
            if receipt.left.is_empty() {
                tracing::info!(job_id = %job, guests = receipt.guests, "reaped the leftovers of job {job}");
            } else {
                tracing::error!(job_id = %job, "job {job} could not be reaped whole: {}", receipt.left.join("; "));
            }
        }
        if !reaped.is_empty() {
            let leases = self.engine.leases().clone();
            for folder in self.written() {
                let leases = leases.clone();
                restore_owner(folder, self.owner, move |id| leases.contains(id)).await;
            }
        }
        Ok(())
    }

    /// Kills and removes a job, gives its files in the workspace to the runner, and forgets it if nothing is left. What is
    /// left, as sentences.
    pub(crate) async fn destroy(&self, job: &JobId) -> Vec<String> {
        let ids = self.jobs.disk_ids(job);
        let receipt = self.engine.destroy(job).await;
        if let Some(ids) = ids {
            for folder in self.written() {
                bring_home(folder, self.owner, &ids).await;
            }
        }
        if receipt.left.is_empty() {
            self.jobs.remove(job);
            tracing::info!(job_id = %job, guests = receipt.guests, "nothing is left of job {job}");
        } else {
            // It stays known, with its ids, so that this runner's next job tries again before it starts.
            tracing::error!(job_id = %job, "left of job {job}: {}", receipt.left.join("; "));
        }
        receipt.left
    }

    /// Folders of the host that containers may write to.
    fn written(&self) -> impl Iterator<Item = &Path> {
        let settings = &self.settings;
        let tools = (!settings.tool_cache.starts_with(&settings.work)).then_some(settings.tool_cache.as_path());
        let volumes =
            settings.volumes_allow.iter().filter(|volume| !volume.read_only).map(|volume| volume.path.as_path());
        std::iter::once(settings.work.as_path()).chain(tools).chain(volumes)
    }

    /// Waits until the host's systemd is lost. Nothing can be made or removed then, and only a new start helps.
    pub async fn lost(&self) {
        self.engine.lost().await;
    }

    /// Whether a process may use the broker at all.
    pub(crate) fn may_call(&self, peer: Peer) -> bool {
        peer.uid == 0 || peer.uid == self.owner.uid
    }

    /// A span that puts the job's names on every line logged within.
    pub(crate) fn span(&self, caller: &Caller, command: &'static str) -> tracing::Span {
        let labels = &caller.labels;
        tracing::info_span!(
            "call",
            command,
            repository = %labels.repository,
            workflow = %labels.workflow,
            run_id = %labels.run_id,
            job = %labels.job,
            name = %labels.runner,
        )
    }
}

/// Gives what a job's containers made in a folder to its owner.
pub(crate) async fn bring_home(folder: &Path, owner: Owner, ids: &IdRange) {
    let base = ids.base();
    restore_owner(folder, owner, move |id| id.checked_sub(base).is_some_and(|offset| offset < 65_536)).await;
}

async fn restore_owner(folder: &Path, owner: Owner, foreign: impl Fn(u32) -> bool + Send + 'static) {
    let shown = folder.display();
    let path = folder.to_owned();
    match tokio::task::spawn_blocking(move || restore(&path, owner, &foreign)).await {
        Ok(Ok(Restored { seen, changed, skipped: 0 })) => {
            tracing::debug!(seen, changed, "gave the job's files in {shown} to their owner");
        }
        Ok(Ok(Restored { skipped, .. })) => {
            tracing::error!(
                "{skipped} folders in {shown} are nested too deeply; files there may still belong to a job"
            );
        }
        // A file, or nothing: there is nothing below it.
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Ok(Err(error)) => tracing::error!("files in {shown} may still belong to a job: {error}"),
        Err(error) => tracing::error!("files in {shown} may still belong to a job: {error}"),
    }
}

/// User and group id of the official runner's user.
fn owner(user: &str) -> anyhow::Result<Owner> {
    let read = |path: &str| std::fs::read(Path::new(path)).with_context(|| format!("cannot read {path}"));
    let found = passwd::resolve(user, &read("/etc/passwd")?, &read("/etc/group")?).map_err(|_| {
        anyhow::anyhow!("RUNNER_USER: there is no user '{user}' on this host; see sysusers.d/runner-appliance.conf")
    })?;
    Ok(Owner { uid: found.uid, gid: found.gid })
}

/// A random number from the kernel.
pub(crate) fn random() -> u32 {
    let mut bytes = [0; 4];
    // Four bytes are never short once the pool is initialised, which it is long before this runs.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes)
}
