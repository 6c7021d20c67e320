//! Booting guests, destroying jobs, and reaping what earlier lives of this process left behind.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use runner_idmap as idmap;
use runner_inside::enter::{Mount, Request};
use runner_model::create_options::Limits;
use runner_model::names::{GuestId, JobId};
use runner_model::network::{Link, hosts, resolv_conf};
use runner_model::unit::{GuestUnit, guest_properties, sweep_properties};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;
use zbus_systemd::machine1::{MachineProxy, ManagerProxy as MachinedProxy};

use crate::enter;
use crate::guest::Guest;
use crate::leases::{IdRange, Leases};
use crate::network;
use crate::overlay;
use crate::removal::remove_tree;
use crate::root::{ImageFacts, Root};
use crate::source::{Owner, Source, open_below};
use crate::systemd::{Systemd, UnitError, to_dbus};
use crate::tree;

/// A call to the host's systemd or machined that takes longer than this has failed.
const HOST_CALL: Duration = Duration::from_secs(60);

/// A call to a guest's manager that takes longer than this will not come back.
const GUEST_CALL: Duration = Duration::from_secs(5);

/// Where the engine keeps things on the host.
#[derive(Debug, Clone)]
pub struct Places {
    /// Our own programs: `guest-enter`, `guest-exec`, `guest-sweep`. Below `/usr`, for guests see them there.
    pub programs: PathBuf,
    /// The generated root of every guest. On a file system with idmapped mounts (not tmpfs: Linux 6.3).
    pub tree: PathBuf,
    /// Run-time data, a folder per guest.
    pub run: PathBuf,
    /// Writable layers and volumes, a folder per job.
    pub jobs: PathBuf,
}

/// One mount of a container: an opened source and what becomes of it.
#[derive(Debug)]
pub struct BoundSource {
    /// What is mounted.
    pub source: Source,
    /// Where, in the container.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// Whether the files belong to a user of the host and need other owners in the guest. A volume of the job does not:
    /// it was made for the guest.
    pub of_host: bool,
}

/// A container to boot.
#[derive(Debug)]
pub struct BootSpec {
    /// The guest.
    pub id: GuestId,
    /// For `systemctl status`.
    pub description: String,
    /// Host name inside.
    pub hostname: String,
    /// Bounds.
    pub limits: Limits,
    /// Journal fields, `NAME=value`.
    pub log_fields: Vec<String>,
    /// Mounts, parents before children.
    pub mounts: Vec<BoundSource>,
    /// Directories to make where the image has none.
    pub directories: Vec<PathBuf>,
    /// Small files to put into the container's root.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
    /// Who owns the mounted files on the host.
    pub owner: Owner,
    /// User and group the container runs as, in the guest: they see the owner's files as their own.
    pub primary: Owner,
    /// The job's range of ids on disk, for every other user of the container.
    pub job_ids: Arc<IdRange>,
}

/// Why a guest did not come up.
#[derive(Debug, Error)]
pub enum BootError {
    /// Every range of ids is in use.
    #[error("no free range of 65,536 ids; enlarge RUNNER_UID_RANGE")]
    NoIds,
    /// systemd did not start it; its journal says more.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// Something else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// What is left of a job after it was destroyed: nothing, or else what is in `left`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Guests that were killed.
    pub guests: usize,
    /// What could not be removed, each as a sentence.
    pub left: Vec<String>,
}

/// The root of a container: `layers`, topmost first, under a new writable layer in the folder `scratch`, for a guest whose
/// ids start at `base`; and what the image says of itself. Blocks.
///
/// # Errors
/// When the kernel refuses one of the mounts.
pub fn assemble(layers: &[PathBuf], scratch: &Path, base: u32) -> anyhow::Result<(Root, ImageFacts)> {
    let lines = idmap::image(base);
    let namespace = idmap::namespace(&lines, &lines).context("cannot make a user namespace")?;
    let mount =
        overlay::mount_overlay(layers, scratch, base, &namespace).context("cannot put the image's layers together")?;
    let root = Root { mount };
    let facts = root.facts();
    Ok((root, facts))
}

/// The engine.
#[derive(Debug, Clone)]
pub struct Engine {
    systemd: Systemd,
    machined: MachinedProxy<'static>,
    places: Places,
    leases: Leases,
}

impl Engine {
    /// Connects to the host's systemd and writes the guests' root.
    pub async fn new(places: Places, leases: Leases) -> anyhow::Result<Self> {
        let connection = zbus::connection::Builder::system()
            .method_timeout(HOST_CALL)
            .build()
            .await
            .context("cannot connect to the system bus")?;
        let machined =
            MachinedProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
        let systemd = Systemd::new(connection).await.context("cannot talk to systemd")?;
        for folder in [&places.run, &places.jobs] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        // Set-user-id files of guests' users lie in there.
        fs::set_permissions(&places.jobs, Permissions::from_mode(0o700))?;
        tree::write(&places.tree).with_context(|| format!("cannot write {}", places.tree.display()))?;
        network::guard()?;
        Ok(Self { systemd, machined, places, leases })
    }

    /// A free range of ids.
    pub fn lease(&self) -> Result<Arc<IdRange>, BootError> {
        self.leases.take().map(Arc::new).ok_or(BootError::NoIds)
    }

    /// Waits until the connection to the host's systemd is lost.
    pub async fn lost(&self) {
        self.systemd.lost().await;
    }

    /// The pool of ids.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Where things are.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The root of a container: `layers`, topmost first, under a new writable layer; and what the image says of itself.
    pub async fn assemble(
        &self,
        id: &GuestId,
        ids: &Arc<IdRange>,
        layers: Vec<PathBuf>,
    ) -> anyhow::Result<(Root, ImageFacts)> {
        let scratch = self.job_folder(id.job()).join(id.to_string());
        let base = ids.base();
        tokio::task::spawn_blocking(move || assemble(&layers, &scratch, base)).await?
    }

    /// Boots a guest with that root.
    pub async fn boot(&self, mut spec: BootSpec, ids: Arc<IdRange>, root: Root) -> Result<Guest, BootError> {
        let mut phases = Phases::start();
        let id = spec.id.clone();
        let folder = self.places.run.join("guests").join(id.to_string());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let machine_id = folder.join("machine-id");
        let unique = fs::read_to_string("/proc/sys/kernel/random/uuid").context("no random machine id")?;
        fs::write(&machine_id, unique.replace('-', "")).with_context(|| format!("{}", machine_id.display()))?;
        let link = Link::new(&id, ids.number()).context("no free address; make RUNNER_UID_RANGE smaller")?;
        let network = {
            let link = link.clone();
            tokio::task::spawn_blocking(move || {
                let servers = network::guard()?;
                let namespace = network::namespace(&link, &servers).context("cannot make the guest's network")?;
                anyhow::Ok((namespace, servers))
            })
        };
        let (network, servers) = network.await.map_err(anyhow::Error::from)??;
        spec.files.push((b"/etc/resolv.conf".to_vec(), resolv_conf(&servers).into_bytes()));
        spec.files.push((b"/etc/hosts".to_vec(), hosts(&spec.hostname, link.guest).into_bytes()));

        let unit = GuestUnit {
            id: id.clone(),
            description: spec.description.clone(),
            uid_base: ids.base(),
            root: self.places.tree.display().to_string(),
            machine_id: machine_id.display().to_string(),
            // systemd opens it before it answers the start job, so our own descriptor serves as the path.
            network_namespace: format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd()),
            hostname: spec.hostname.clone(),
            limits: spec.limits,
            log_fields: spec.log_fields.clone(),
            sweep: self.places.programs.join("guest-sweep").display().to_string(),
        };
        phases.end("set up");
        self.systemd.start(&id.unit(), to_dbus(guest_properties(&unit))).await?.done().await?;
        drop(network);
        phases.end("boot");

        let leader = self.leader(&id, ids.base()).await?;
        phases.end("find");
        let program = self.places.programs.join("guest-enter");
        let base = ids.base();
        let bus = tokio::task::spawn_blocking(move || furnish(&program, &leader, base, spec, root))
            .await
            .map_err(anyhow::Error::from)??;
        phases.end("furnish");
        let connection = zbus::connection::Builder::unix_stream(bus)
            .method_timeout(GUEST_CALL)
            .build()
            .await
            .context("cannot talk to the guest's bus")?;
        let systemd = Systemd::new(connection).await.context("cannot talk to the guest's systemd")?;
        phases.end("connect");
        tracing::debug!(machine = id.machine(), "booted {}: {phases}", id.machine());
        let launcher = self.places.programs.join("guest-exec").display().to_string();
        Ok(Guest::new(id.clone(), systemd, launcher, cgroup_of(id.job()).join(id.unit()), ids))
    }

    /// The guest's PID 1, after it proved to be in our unit and in its own range of ids.
    async fn leader(&self, id: &GuestId, base: u32) -> anyhow::Result<OwnedFd> {
        let machine = self.machined.get_machine(id.machine()).await.context("machined does not know the guest")?;
        let pid = MachineProxy::builder(self.systemd.connection())
            .path(machine)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?
            .leader()
            .await
            .context("machined does not know the guest's PID 1")?;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("machined named no process")?;
        let leader = pidfd_open(raw, PidfdFlags::empty()).context("the guest's PID 1 is gone")?;
        // Looked at after the pidfd was opened: should the number be somebody else's by now, this notices.
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        ensure!(cgroup.contains(&format!("/{}/", id.unit())), "process {pid} is not in {}", id.unit());
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
        let mut map = map.split_whitespace();
        ensure!(
            map.next() == Some("0") && map.next() == Some(&base.to_string()),
            "the guest's ids do not start at {base}"
        );
        Ok(leader)
    }

    /// A folder of the job for a named volume, owned by the root of the guest with these ids.
    pub fn volume(&self, job: &JobId, name: &str, ids: &IdRange) -> anyhow::Result<Source> {
        let volumes = self.job_folder(job).join("volumes");
        fs::create_dir_all(&volumes).with_context(|| format!("cannot make {}", volumes.display()))?;
        let owner = Owner { uid: ids.base(), gid: ids.base() };
        open_below(&volumes, &volumes.join(name), Some(owner)).context("cannot make the volume")
    }

    /// A terminal of a guest: its master side, and its path in the guest.
    pub async fn terminal(&self, id: &GuestId) -> anyhow::Result<(OwnedFd, String)> {
        let (master, path) =
            self.machined.open_machine_pty(id.machine()).await.context("machined gives no terminal of the guest")?;
        Ok((master.into(), path))
    }

    /// The folder of a job's data.
    pub fn job_folder(&self, job: &JobId) -> PathBuf {
        self.places.jobs.join(job.as_str())
    }

    /// Kills everything a job has and removes it. Can be repeated; a job that is not there leaves nothing.
    pub async fn destroy(&self, job: &JobId) -> Receipt {
        let mut receipt = Receipt::default();
        let cgroup = cgroup_of(job);
        if let Err(error) = kill_cgroup(&cgroup)
            && error.kind() != io::ErrorKind::NotFound
        {
            receipt.left.push(format!("processes in {}: {error}", cgroup.display()));
        }
        // The services of the slice are stopped with it, and their ExecStopPost= is waited for.
        match self.systemd.stop(&job.slice()).await {
            Ok(Some(unit_job)) => {
                if let Err(error) = unit_job.result().await {
                    receipt.left.push(error.to_string());
                }
            }
            Ok(None) => {}
            Err(error) => receipt.left.push(error.to_string()),
        }
        if cgroup.exists() {
            receipt.left.push(format!("control group {}", cgroup.display()));
        }
        for guest in nspawn_leftovers().into_iter().filter(|guest| guest.job() == job) {
            if let Err(error) = self.sweep(&guest).await {
                receipt.left.push(error.to_string());
            }
        }
        let (run, data) = (self.places.run.join("guests"), self.job_folder(job));
        let prefix = job.as_str().to_owned();
        let owner = job.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let (guests, mut left) = remove_files(&run, &data, &prefix);
            for guest in network::linked().into_iter().filter(|guest| *guest.job() == owner) {
                left.extend(network::remove(&guest).err().map(|error| format!("{error:#}")));
            }
            (guests, left)
        })
        .await;
        match removed {
            Ok((guests, left)) => {
                receipt.guests = guests;
                receipt.left.extend(left);
            }
            Err(error) => receipt.left.push(format!("files: {error}")),
        }
        receipt
    }

    /// Removes nspawn's own leftovers of a guest whose unit's `ExecStopPost=` was killed before it had done so. By a unit
    /// of the host: they are mounts, and this process has a mount namespace of its own.
    async fn sweep(&self, guest: &GuestId) -> Result<(), UnitError> {
        let program = self.places.programs.join("guest-sweep").display().to_string();
        let properties = sweep_properties(&program, guest);
        self.systemd.start(&format!("runner-sweep-{guest}.service"), to_dbus(properties)).await?.done().await
    }

    /// Destroys every job there is, also those that only a folder or a unit remembers. For the start, before any job.
    pub async fn reap(&self) -> anyhow::Result<Vec<(JobId, Receipt)>> {
        let mut jobs = std::collections::BTreeSet::new();
        let units = self
            .systemd
            .manager()
            .list_units_by_patterns(vec![], vec!["runner-guest-*.service".into(), "runner-guests-*.slice".into()])
            .await
            .context("systemd does not list units")?;
        for (name, ..) in &units {
            let slice = name.strip_prefix("runner-guests-").and_then(|rest| rest.strip_suffix(".slice"));
            jobs.extend(GuestId::from_unit(name).map(|id| id.job().clone()).or_else(|| slice.and_then(JobId::parse)));
        }
        for (folder, length) in [(self.places.jobs.clone(), 4), (self.places.run.join("guests"), 5)] {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let Some(name) = name.to_str().filter(|name| name.len() == length) else { continue };
                jobs.extend(name.get(..4).and_then(JobId::parse));
            }
        }
        jobs.extend(nspawn_leftovers().into_iter().chain(network::linked()).map(|guest| guest.job().clone()));
        let mut reaped = Vec::new();
        for job in jobs {
            let receipt = self.destroy(&job).await;
            reaped.push((job, receipt));
        }
        Ok(reaped)
    }
}

/// How long the parts of a boot took, for the debug log.
#[derive(Debug)]
struct Phases {
    last: Instant,
    ended: Vec<(&'static str, Duration)>,
}

impl Phases {
    fn start() -> Self {
        Self { last: Instant::now(), ended: Vec::new() }
    }

    fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        self.ended.push((name, now - self.last));
        self.last = now;
    }
}

impl std::fmt::Display for Phases {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (name, took)) in self.ended.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{name} {:.1} ms", took.as_secs_f64() * 1_000.0)?;
        }
        Ok(())
    }
}

fn furnish(
    program: &Path,
    leader: &OwnedFd,
    base: u32,
    spec: BootSpec,
    root: Root,
) -> anyhow::Result<std::os::unix::net::UnixStream> {
    let BootSpec { mounts, directories, files, owner, primary, job_ids, .. } = spec;
    let users = idmap::workspace(owner.uid, primary.uid, base, job_ids.base());
    let groups = idmap::workspace(owner.gid, primary.gid, base, job_ids.base());
    let namespace = if mounts.iter().any(|mount| mount.of_host) {
        Some(idmap::namespace(&users, &groups).context("cannot make a user namespace")?)
    } else {
        None
    };
    let directories = directories.into_iter().map(|path| path.into_os_string().into_encoded_bytes()).collect();
    let mut request = Request { furnish: true, mounts: Vec::with_capacity(mounts.len()), directories, files };
    let mut descriptors = vec![root.mount];
    for mount in mounts {
        let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        if mount.read_only {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        let tree = idmap::detached(&mount.source.file, namespace.as_ref().filter(|_| mount.of_host), attributes)
            .with_context(|| format!("the mount at '{}' cannot be idmapped", mount.target.display()))?;
        request.mounts.push(Mount {
            target: mount.target.into_os_string().into_encoded_bytes(),
            directory: mount.source.directory,
        });
        descriptors.push(tree);
    }
    use std::os::fd::AsFd;
    enter::enter(program, leader.as_fd(), base, &request, &descriptors)
        .context("the guest's root cannot be put together")
}

/// Guests that nspawn has folders for. systemd-nspawn removes them itself unless it is killed.
fn nspawn_leftovers() -> Vec<GuestId> {
    let mut guests: Vec<GuestId> = ["/run/systemd/nspawn/unix-export", "/run/systemd/nspawn/propagate"]
        .into_iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|entry| GuestId::from_machine(entry.file_name().to_str()?))
        .collect();
    guests.sort();
    guests.dedup();
    guests
}

/// The control group of a job's slice. systemd nests slices by the dashes in their names (systemd.slice(5)).
fn cgroup_of(job: &JobId) -> PathBuf {
    Path::new("/sys/fs/cgroup/runner.slice/runner-guests.slice").join(job.slice())
}

/// Kills every process in a control group and those below, at once (cgroup.kill, Linux 5.14).
pub(crate) fn kill_cgroup(cgroup: &Path) -> io::Result<()> {
    // A path that lost its tail would be a group of the host's.
    assert!(cgroup.starts_with("/sys/fs/cgroup/runner.slice/runner-guests.slice/") && cgroup.components().count() > 6);
    fs::write(cgroup.join("cgroup.kill"), "1")
}

/// Removes a job's folders; how many guests it had, and what would not go.
fn remove_files(run: &Path, data: &Path, job: &str) -> (usize, Vec<String>) {
    let mut left = Vec::new();
    let mut guests = 0;
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(GuestId::parse).is_some_and(|id| id.job().as_str() == job) {
            guests += 1;
            remove(&entry.path(), &mut left);
        }
    }
    remove(data, &mut left);
    (guests, left)
}

fn remove(folder: &Path, left: &mut Vec<String>) {
    if let Err(error) = remove_tree(folder) {
        left.push(format!("{}: {error}", folder.display()));
    }
}
