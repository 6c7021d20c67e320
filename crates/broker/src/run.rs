//! An operator's program in a guest of its own: `ci-nspawn-run`.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use runner_guest::{BootSpec, BoundSource, IdRange, Owner, Stdin, Step, open_below};
use runner_model::environ::{self, Environment};
use runner_model::names::{GuestId, JobId};
use runner_model::passwd;
use runner_model::protocol::ImageSource;
use runner_store::Lease;
use runner_wire::{Finished, RunRequest};

use crate::broker::{Broker, bring_home, random};
use crate::call::{Cancellation, Output, fresh_pipe};
use crate::caller::{Labels, RunnerKey};
use crate::image::Asked;
use crate::prepare::{files, log_fields, program};
use crate::step::verdict;

/// The operator's end of a program: a terminal's master three times, or three pipes.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// An operator's program under way.
#[derive(Debug)]
pub(crate) struct Started {
    job: JobId,
    step: Step,
    /// Folders the program may have written to, and who owns them.
    written: Vec<(PathBuf, Owner)>,
    /// Whose ids files of other users there have.
    ids: Arc<IdRange>,
    /// Keeps the image in the store.
    _lease: Option<Lease>,
}

impl Broker {
    /// Boots a guest and starts the program in it. [`Broker::finish_run`] must follow.
    pub(crate) async fn begin_run(
        &self,
        uid: u32,
        request: &RunRequest,
        mut cancellation: Cancellation,
    ) -> anyhow::Result<(Started, Ends)> {
        let runner = RunnerKey { uid, name: format!("ci-nspawn-run {}", random()) };
        let job = self.jobs.reserve(&runner, random);
        let making = self.boot_run(&job, request, cancellation.clone());
        let begun = self.unless_cancelled(&job, &mut cancellation, making).await;
        if begun.is_err() {
            self.destroy(&job).await;
        }
        begun
    }

    /// Waits for the program's end and removes the guest.
    pub(crate) async fn finish_run(
        &self,
        started: Started,
        mut cancellation: Cancellation,
    ) -> anyhow::Result<Finished> {
        let Started { job, step, written, ids, _lease } = started;
        let outcome = self.attend(step, &mut cancellation).await;
        let left = self.destroy(&job).await;
        for (folder, owner) in written {
            bring_home(&folder, owner, &ids).await;
        }
        let mut finished = verdict(outcome?, "")?;
        finished.messages.extend(left.iter().map(|left| format!("left over: {left}")));
        Ok(finished)
    }

    async fn boot_run(
        &self,
        job: &JobId,
        request: &RunRequest,
        cancellation: Cancellation,
    ) -> anyhow::Result<(Started, Ends)> {
        let mut environment = Environment::new();
        for entry in &request.environment {
            let (name, value) = entry.split_once('=').with_context(|| format!("--env {entry}: write NAME=value"))?;
            environment.insert(name, value);
        }
        let lease = match request.image.as_str() {
            "" => None,
            image => {
                let image = ImageSource::Reference(image.to_owned());
                let asked = Asked { field: "--image", image: &image, registry: None };
                Some(self.image(asked, None, cancellation).await?)
            }
        };
        let guest_id = job.guest(0).context("a job has a first guest")?;
        let (ids, job_ids) = (self.engine.lease()?, self.engine.lease()?);
        let layers: Vec<PathBuf> = match &lease {
            Some(lease) => lease.layers().to_vec(),
            None => vec![self.engine.places().tree.clone()],
        };
        let (root, facts) = self.engine.assemble(&guest_id, &ids, layers).await?;
        let config = lease.as_ref().map(Lease::config);
        let asked = match (request.user.as_str(), config) {
            ("", Some(config)) => config.user.as_str(),
            (user, _) => user,
        };
        let user = passwd::resolve(asked, &facts.passwd, &facts.group).context("--user")?;
        let image_environment = config.map(|config| config.env.clone()).unwrap_or_default();
        let mut environment = environ::container_environment(&image_environment, &Environment::new(), &environment)?;
        environ::set_default_home(&mut environment, &user.home);
        let arguments = match config {
            _ if !request.arguments.is_empty() => request.arguments.clone(),
            Some(config) => config.entrypoint.iter().chain(&config.cmd).cloned().collect(),
            None => bail!("name a program to run: ci-nspawn-run -- PROGRAM"),
        };
        environ::check_exec_size(&arguments, &environment)?;
        let directory = [request.directory.as_str(), config.map(|config| config.working_dir.as_str()).unwrap_or("")]
            .into_iter()
            .find(|directory| !directory.is_empty())
            .unwrap_or("/")
            .to_owned();

        let mut mounts = Vec::new();
        let mut owner = Owner { uid: 0, gid: 0 };
        let mut written = Vec::new();
        for bind in &request.binds {
            let (mount, path, of) = bound(bind)?;
            if !mount.read_only {
                // One table of ids serves all mounts of a guest.
                if written.iter().any(|(_, other)| *other != of) {
                    bail!("--bind {bind}: folders that may be written to must all belong to one user");
                }
                owner = of;
                written.push((path, of));
            }
            mounts.push(mount);
        }
        if lease.is_none() {
            // The container's root is the guests' own tree, whose /usr is a mount point.
            let source = open_below(Path::new("/usr"), Path::new("/usr"), None)?;
            mounts.insert(0, BoundSource { source, target: "/usr".into(), read_only: true, of_host: false });
        }
        let machine = guest_id.machine();
        let spec = BootSpec {
            id: guest_id.clone(),
            description: format!("ci-nspawn-run {}", arguments.first().map(String::as_str).unwrap_or_default()),
            hostname: machine.clone(),
            limits: runner_model::create_options::Limits::default(),
            log_fields: match &lease {
                Some(lease) => log_fields(&Labels::default(), job, lease),
                None => Labels::default().journal_fields(job.as_str()),
            },
            mounts,
            directories: Vec::new(),
            files: files(&machine),
            owner,
            primary: Owner { uid: user.uid, gid: user.gid },
            job_ids: Arc::clone(&job_ids),
        };
        let guest = self.engine.boot(spec, ids, root).await.context("the guest did not start")?;

        let (ends, output, stdin, kind) = if request.terminal { self.terminal(&guest_id).await? } else { pipes()? };
        let program = program(&user, &directory, &environment, arguments, kind);
        let preamble = stdin.is_some().then(|| program.encode());
        let step = guest.start("ci-nspawn-run", &program, stdin, output.stdout, output.stderr).await?;
        if let Some(preamble) = preamble {
            let pipe = ends.stdin.try_clone()?;
            // A guest that ends before it has read everything is noticed by whoever waits for the program.
            let _ = tokio::task::spawn_blocking(move || fs::File::from(pipe).write_all(&preamble)).await?;
        }
        Ok((Started { job: job.clone(), step, written, ids: job_ids, _lease: lease }, ends))
    }

    async fn terminal(&self, guest: &GuestId) -> anyhow::Result<(Ends, Output, Option<OwnedFd>, Stdin)> {
        let (master, path) = self.engine.terminal(guest).await?;
        // Nobody reads these: the program's streams are the terminal, and why a program did not start is said by its
        // unit's status text.
        let (output, _, _) = Output::new()?;
        let ends = Ends { stdin: master.try_clone()?, stdout: master.try_clone()?, stderr: master };
        Ok((ends, output, None, Stdin::Terminal(path.into_bytes())))
    }
}

fn pipes() -> anyhow::Result<(Ends, Output, Option<OwnedFd>, Stdin)> {
    let (stdin_read, stdin) = fresh_pipe()?;
    let (output, stdout, stderr) = Output::new()?;
    Ok((Ends { stdin, stdout, stderr }, output, Some(stdin_read), Stdin::Rest))
}

/// An operator's bind mount, the file of the host it is, and who owns that.
fn bound(bind: &str) -> anyhow::Result<(BoundSource, PathBuf, Owner)> {
    let usage = || anyhow!("--bind {bind}: write SRC:DST or SRC:DST:ro, both absolute paths");
    let mut parts = bind.split(':');
    let (source, target) = (parts.next().ok_or_else(usage)?, parts.next().ok_or_else(usage)?);
    let read_only = match (parts.next(), parts.next()) {
        (None, _) => false,
        (Some("ro"), None) => true,
        _ => return Err(usage()),
    };
    if !source.starts_with('/') || !target.starts_with('/') || target.split('/').any(|part| part == "..") {
        return Err(usage());
    }
    let real = fs::canonicalize(source).with_context(|| format!("--bind {source}"))?;
    let status = fs::metadata(&real).with_context(|| format!("--bind {source}"))?;
    if status.uid() == 0 && !read_only {
        bail!(
            "--bind {source}: it belongs to root, and a program in the guest could leave set-user-id files there; \
             write '{source}:{target}:ro', or give it to another user"
        );
    }
    let parent = real.parent().unwrap_or(Path::new("/"));
    let root = if status.is_dir() { real.as_path() } else { parent };
    let source = open_below(root, &real, None)?;
    let owner = Owner { uid: status.uid(), gid: status.gid() };
    Ok((BoundSource { source, target: target.into(), read_only, of_host: true }, real, owner))
}
