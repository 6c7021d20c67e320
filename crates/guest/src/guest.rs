//! A running guest.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use runner_inside::exec::Program;
use runner_model::names::GuestId;
use rustix::fs::{Gid, MemfdFlags, SealFlags, Uid};

use crate::leases::IdRange;
use crate::step::{Step, StepError, Streams};
use crate::systemd::Systemd;

/// A running guest and the connection to its PID 1. Clones are the same guest.
#[derive(Debug, Clone)]
pub struct Guest(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: GuestId,
    systemd: Systemd,
    launcher: String,
    cgroup: PathBuf,
    steps: AtomicU64,
    /// Held as long as the guest may run.
    ids: Arc<IdRange>,
}

impl Guest {
    pub(crate) fn new(id: GuestId, systemd: Systemd, launcher: String, cgroup: PathBuf, ids: Arc<IdRange>) -> Self {
        Self(Arc::new(Inner { id, systemd, launcher, cgroup, steps: AtomicU64::new(0), ids }))
    }

    /// Its id.
    pub fn id(&self) -> &GuestId {
        &self.0.id
    }

    pub(crate) fn systemd(&self) -> &Systemd {
        &self.0.systemd
    }

    pub(crate) fn launcher(&self) -> &str {
        &self.0.launcher
    }

    /// The control group that is the root of the guest's own.
    pub(crate) fn payload(&self) -> PathBuf {
        self.0.cgroup.join("payload")
    }

    pub(crate) fn next_step(&self) -> u64 {
        self.0.steps.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts a program. `stdin` is `None` for the block alone; otherwise it is the read end of a pipe on which the
    /// caller sends [`Program::encode`] first.
    pub async fn start(
        &self,
        description: &str,
        program: &Program,
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Step, StepError> {
        let unusable = |error: std::io::Error| StepError::Streams(error);
        for pipe in stdin.iter().chain([&stdout, &stderr]) {
            self.give(pipe, program).map_err(unusable)?;
        }
        let stdin = match stdin {
            Some(pipe) => pipe,
            None => sealed(&program.encode()).map_err(unusable)?,
        };
        Step::start(self, description, Streams { stdin, stdout, stderr }).await
    }

    /// Makes a pipe the program's own. Programs open `/dev/stdout` by name, and the kernel then asks whose pipe it is.
    fn give(&self, pipe: &OwnedFd, program: &Program) -> std::io::Result<()> {
        let base = self.0.ids.base();
        let (uid, gid) = (Uid::from_raw(base + program.uid), Gid::from_raw(base + program.gid));
        Ok(rustix::fs::fchown(pipe, Some(uid), Some(gid))?)
    }

    /// Kills every process of the guest from the host. For a guest whose manager no longer answers.
    pub fn kill(&self) -> std::io::Result<()> {
        crate::engine::kill_cgroup(&self.0.cgroup)
    }
}

/// The bytes as a file that nobody can change any more, positioned at its start.
fn sealed(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("program", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, bytes)?;
    std::io::Seek::rewind(&mut file)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file.into())
}
