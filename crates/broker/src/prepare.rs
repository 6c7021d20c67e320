//! `prepare_job`: from a request to a container that waits for its steps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use runner_guest::{BootSpec, BoundSource, IdRange, Owner, Source, open_below};
use runner_model::create_options::{self, CreateOptions};
use runner_model::environ::{self, Environment};
use runner_model::message;
use runner_model::musl::LibcFacts;
use runner_model::names::JobId;
use runner_model::passwd::{self, User};
use runner_model::plan::{self, MountSource, PlannedMount};
use runner_model::protocol::{self, ContainerContext, JobContainer, PrepareJob, Prepared, Response, State};
use runner_store::{ImageConfig, Lease};
use runner_wire::Finished;

use crate::broker::{Broker, random};
use crate::call::{Cancellation, Output, Stop, success};
use crate::caller::{Caller, Labels};
use crate::image::{Asked, exact_digest};
use crate::job::{Container, Job};

impl Broker {
    pub(crate) async fn prepare_job(
        &self,
        caller: &Caller,
        request: &PrepareJob,
        output: Output,
        mut cancellation: Cancellation,
    ) -> anyhow::Result<Finished> {
        // Only this runner's: another one's job may be under way.
        for left_over in self.jobs.ids_of(&caller.runner) {
            tracing::warn!(job_id = %left_over, "removing job {left_over}, which this runner never cleaned up");
            let left = self.destroy(&left_over).await;
            if !left.is_empty() {
                bail!("an earlier job of this runner cannot be removed: {}", left.join("; "));
            }
        }
        if !request.services.is_empty() {
            bail!(
                "args.services: services are not supported yet; start what the job needs in a step, or run this job on \
                 another runner"
            );
        }
        let Some(container) = &request.container else {
            bail!("args.container: this job has neither a container nor a service");
        };

        let id = self.jobs.reserve(&caller.runner, random);
        let making = self.prepare_container(&id, caller, container, &output, cancellation.clone());
        let prepared = self.unless_cancelled(&id, &mut cancellation, making).await;
        match prepared {
            Ok((job, is_alpine)) => {
                let response = Response::Prepared(Prepared {
                    state: State { job: id.clone() },
                    container: Some(JobContainer {
                        is_alpine,
                        context: ContainerContext {
                            id: Some(job.container.guest.id().machine()),
                            ..Default::default()
                        },
                    }),
                    services: Vec::new(),
                });
                let machine = job.container.guest.id().machine();
                tracing::info!(job_id = %id, machine, image = %job.container.image, digest = %job.container.digest, "prepared job {id} in {machine}");
                if !self.jobs.ready(Arc::new(job)) {
                    self.destroy(&id).await;
                    bail!("another call of this runner removed the job while it was being prepared");
                }
                Ok(success(response.to_json()))
            }
            Err(error) => {
                self.destroy(&id).await;
                Err(error)
            }
        }
    }

    /// Waits for a guest that is being made, or for its end when the call is cancelled. The making itself is never
    /// dropped half-way: it would go on in other threads and leave behind what nobody knows of.
    pub(crate) async fn unless_cancelled<T>(
        &self,
        job: &JobId,
        cancellation: &mut Cancellation,
        making: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::pin!(making);
        tokio::select! {
            biased;
            outcome = &mut making => outcome,
            () = cancellation.reached(Stop::Ask) => {
                // What is killed under its hands ends it soon.
                self.engine.destroy(job).await;
                drop(making.await);
                Err(anyhow!("cancelled while the container was being prepared"))
            }
        }
    }

    async fn prepare_container(
        &self,
        id: &JobId,
        caller: &Caller,
        container: &protocol::Container,
        output: &Output,
        cancellation: Cancellation,
    ) -> anyhow::Result<(Job, bool)> {
        let options = create_options::parse(container.create_options.as_deref().unwrap_or_default())
            .context("args.container.createOptions")?;
        for warning in &options.warnings {
            output.say(&message::warning(&format!("createOptions: {warning}")));
        }
        if !container.port_mappings.is_empty() {
            output.say(&message::warning("ports: ports of a job container are not published yet; they are ignored"));
        }
        let mounts = plan::mounts(
            &self.settings,
            "args.container",
            &container.system_mounts,
            &container.user_mounts,
            &options.volumes,
        )?;
        let asked =
            Asked { field: "args.container.image", image: &container.image, registry: container.registry.as_ref() };
        let lease = self.image(asked, Some(output), cancellation).await?;
        let digest = exact_digest(&lease);

        let guest_id = id.guest(0).context("a job has a first guest")?;
        let (ids, job_ids) = (self.engine.lease()?, self.engine.lease()?);
        let layers: Vec<PathBuf> = lease.layers().to_vec();
        let (root, facts) = self.engine.assemble(&guest_id, &ids, layers).await?;

        let asked = options.user.as_deref().unwrap_or(&lease.config().user);
        let user = passwd::resolve(asked, &facts.passwd, &facts.group).context(match options.user {
            Some(_) => "args.container.createOptions: --user",
            None => "args.container.image: its user",
        })?;
        let is_alpine = LibcFacts {
            has_musl_loader: facts.musl_loader,
            has_glibc_loader: facts.glibc_loader,
            os_release_texts: facts.releases,
        }
        .is_alpine();
        let mut environment =
            environ::container_environment(&lease.config().env, &container.environment, &options.environment)
                .context("args.container.environmentVariables")?;
        environ::set_default_home(&mut environment, &user.home);

        let hostname = options.hostname.clone().unwrap_or_else(|| guest_id.machine());
        let (bound, directories) = self.bind(id, &ids, mounts)?;
        let directory = directory(container, &options, lease.config());
        let spec = BootSpec {
            id: guest_id,
            description: format!("Container of {}", caller.labels.describe()),
            hostname: hostname.clone(),
            limits: options.limits,
            log_fields: log_fields(&caller.labels, id, &lease),
            mounts: bound,
            directories,
            files: files(&hostname),
            owner: self.owner,
            primary: Owner { uid: user.uid, gid: user.gid },
            job_ids: Arc::clone(&job_ids),
        };
        let guest = self.engine.boot(spec, ids, root).await.context("the guest did not start")?;
        let job = Job {
            id: id.clone(),
            runner: caller.runner.clone(),
            labels: caller.labels.clone(),
            since: Instant::now(),
            ids: job_ids,
            container: Container {
                guest,
                image: lease.reference().to_owned(),
                digest,
                environment,
                user,
                directory,
                lease: Some(lease),
            },
        };
        Ok((job, is_alpine))
    }

    /// Opens what the planned mounts are about. The second part are directories to make in the container.
    pub(crate) fn bind(
        &self,
        job: &JobId,
        ids: &IdRange,
        mounts: Vec<PlannedMount>,
    ) -> anyhow::Result<(Vec<BoundSource>, Vec<PathBuf>)> {
        let mut bound = Vec::with_capacity(mounts.len());
        let mut directories = Vec::new();
        for PlannedMount { source, target, read_only } in mounts {
            let (source, of_host): (Source, bool) = match source {
                MountSource::Fresh => {
                    directories.push(target);
                    continue;
                }
                MountSource::Volume(name) => (self.engine.volume(job, &name, ids)?, false),
                MountSource::Below { root, path, create } => {
                    let source = open_below(&root, &path, create.then_some(self.owner))
                        .with_context(|| format!("the source of the mount at '{}' cannot be used", target.display()))?;
                    (source, true)
                }
            };
            bound.push(BoundSource { source, target, read_only, of_host });
        }
        Ok((bound, directories))
    }
}

/// Journal fields for a guest: whose it is and exactly what runs in it.
pub(crate) fn log_fields(labels: &Labels, job: &JobId, lease: &Lease) -> Vec<String> {
    let mut fields = labels.journal_fields(job.as_str());
    fields.push(format!("RUNNER_IMAGE={}", lease.reference()));
    fields.push(format!("RUNNER_IMAGE_DIGEST={}", exact_digest(lease)));
    fields
}

/// Where programs start: what the options say, else the request, else the image.
fn directory(container: &protocol::Container, options: &CreateOptions, config: &ImageConfig) -> String {
    [options.working_directory.as_deref(), container.working_directory.as_deref(), Some(&config.working_dir)]
        .into_iter()
        .flatten()
        .find(|directory| !directory.is_empty())
        .unwrap_or("/")
        .to_owned()
}

/// Files of the container that are about the guest and not about the image. The engine adds those about its network.
pub(crate) fn files(hostname: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    vec![(b"/etc/hostname".to_vec(), format!("{hostname}\n").into_bytes())]
}

/// The pieces of a program to run in a container.
pub(crate) fn program(
    user: &User,
    directory: &str,
    environment: &Environment,
    arguments: Vec<String>,
    stdin: runner_guest::Stdin,
) -> runner_guest::Program {
    runner_guest::Program {
        root: runner_guest::CONTAINER_ROOT.into(),
        directory: directory.into(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        stdin,
        arguments: arguments.into_iter().map(String::into_bytes).collect(),
        environment: environment.to_strings().into_iter().map(String::into_bytes).collect(),
    }
}
