//! What lies where in the store's folder, and how a file of it is written. `docs/store-format.md` is the specification.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::lock::{Lock, Share};
use crate::tree;

/// Version of the format this code writes.
const FORMAT: u32 = 1;

/// Longest record we read back; ours are far below.
const RECORD_BYTES: u64 = 16 << 20;

/// `refs/HEX.json`, HEX being the SHA-256 of the reference. Its modification time is when the reference was last used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RefRecord {
    pub(crate) reference: String,
    /// Digest of the configuration: the image id.
    pub(crate) image: Digest,
    /// The manifest the image was imported by; a `docker save` archive or a bare root has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest: Option<Digest>,
    /// The document the registry gave for the reference, manifest or index; what a pinned reference names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<Digest>,
    /// Every document in `blobs/` this reference keeps alive.
    pub(crate) documents: Vec<Digest>,
    /// When the registry last said that the reference names this, in seconds since 1970; absent for local sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checked: Option<u64>,
    /// Seconds since 1970.
    pub(crate) imported: u64,
}

/// `images/HEX.json`, HEX being the image id. Never rewritten, because leases are locks on this very file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) image: Digest,
    /// Lowest first, as in the configuration.
    pub(crate) layers: Vec<Digest>,
}

/// `layers/HEX/layer.json`, beside the layer's `root`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// `tar`: HEX is the digest of the uncompressed archive. `tree`: HEX is the tree digest.
    pub(crate) form: LayerForm,
    /// Digest of the unpacked tree; of a layer of form `tree` it is the name. Absent in records of earlier programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tree: Option<Digest>,
    /// Set until all of the layer is known to be on the disk: the boot it was written in, after which it is worth nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unsettled: Option<String>,
    #[serde(flatten)]
    pub(crate) stats: LayerStats,
}

impl LayerRecord {
    /// Whether the machine stopped before the layer was known to be on the disk. Who cannot tell which boot this is takes
    /// no layer for lost.
    pub(crate) fn is_lost(&self) -> bool {
        let now = this_boot();
        self.unsettled.as_deref().is_some_and(|boot| boot != now && !now.is_empty())
    }
}

/// Where the boot's id is written at each boot, by systemd-tmpfiles.
const BOOT_FILE: &str = "/run/runner/boot";

/// Names the time since the machine started; empty where that cannot be told.
///
/// All programs must see the same name. `/proc/sys/kernel/random/boot_id` is not the same for a unit with a `/proc` of its own
/// as for others, where the machine is a container; so it counts only where the appliance is not installed.
pub(crate) fn this_boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let installed = Path::new(BOOT_FILE).parent().is_some_and(Path::is_dir);
        let file = if installed { BOOT_FILE } else { "/proc/sys/kernel/random/boot_id" };
        std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
    })
}

/// What a layer's name is the digest of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LayerForm {
    Tar,
    Tree,
}

/// What unpacking or copying a layer came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStats {
    /// Entries applied, whiteouts included.
    pub entries: u64,
    /// Bytes of file content, holes included.
    pub bytes: u64,
    /// Whether the layer hides everything below it (an opaque mark on its root).
    pub opaque_root: bool,
    /// Device nodes left out.
    pub devices_dropped: u64,
    /// FIFOs and sockets left out.
    pub fifos_dropped: u64,
    /// Extended attributes left out.
    pub xattrs_dropped: u64,
    /// Mount points of the source tree whose content was left out.
    pub mounts_skipped: u64,
}

impl LayerStats {
    /// Sums two layers.
    pub(crate) fn plus(&self, other: &LayerStats) -> LayerStats {
        LayerStats {
            entries: self.entries + other.entries,
            bytes: self.bytes + other.bytes,
            opaque_root: self.opaque_root || other.opaque_root,
            devices_dropped: self.devices_dropped + other.devices_dropped,
            fifos_dropped: self.fifos_dropped + other.fifos_dropped,
            xattrs_dropped: self.xattrs_dropped + other.xattrs_dropped,
            mounts_skipped: self.mounts_skipped + other.mounts_skipped,
        }
    }
}

/// Open handles on the store's folders; every access goes through them.
#[derive(Debug)]
pub(crate) struct Layout {
    path: PathBuf,
    root: OwnedFd,
    pub(crate) refs: OwnedFd,
    pub(crate) images: OwnedFd,
    pub(crate) layers: OwnedFd,
    pub(crate) blobs: OwnedFd,
    pub(crate) locks: OwnedFd,
    pub(crate) partial: OwnedFd,
    pub(crate) tmp: OwnedFd,
}

const FOLDERS: [&str; 8] = ["refs", "images", "layers", "blobs", "blobs/sha256", "locks", "partial", "tmp"];

impl Layout {
    /// Opens the store at `path`, making it when the folder is absent or empty.
    pub(crate) fn open(path: &Path) -> Result<Layout, StoreError> {
        let shown = path.display();
        if let Err(error) = rustix::fs::mkdir(path, Mode::from_raw_mode(0o700))
            && error != Errno::EXIST
        {
            return Err(StoreError::io(format_args!("create the image store {shown}"), error));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| StoreError::io(format_args!("open the image store {shown}"), error))?;
        make_private(&root).map_err(|error| StoreError::io(format_args!("make {shown} private"), error))?;
        match read_version(&root, path)? {
            Some(_) => make_folders(&root, path)?,
            None => create(&root, path)?,
        }
        let folder = |name: &str| {
            tree::open_dir(root.as_fd(), name.as_bytes())
                .map_err(|error| StoreError::io(format_args!("open {shown}/{name}"), error))
        };
        Ok(Layout {
            path: path.canonicalize().map_err(|error| StoreError::io(format_args!("resolve {shown}"), error))?,
            refs: folder("refs")?,
            images: folder("images")?,
            layers: folder("layers")?,
            blobs: folder("blobs/sha256")?,
            locks: folder("locks")?,
            partial: folder("partial")?,
            tmp: folder("tmp")?,
            root,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Waits for the store's own lock.
    pub(crate) fn lock(&self, share: Share) -> Result<Lock, StoreError> {
        Lock::wait(open_lock(&self.root)?, share)
    }

    /// Name of the file that holds a reference.
    pub(crate) fn ref_name(reference: &str) -> String {
        format!("{}.json", Digest::of(reference.as_bytes()).hex())
    }

    pub(crate) fn image_name(image: &Digest) -> String {
        format!("{}.json", image.hex())
    }

    /// Reads a record; `None` when there is no such file.
    pub(crate) fn read_record<T: DeserializeOwned>(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
    ) -> Result<Option<(T, File)>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(StoreError::io(format_args!("open {name} in {}", self.path.display()), error)),
        };
        let mut text = Vec::new();
        (&file)
            .take(RECORD_BYTES)
            .read_to_end(&mut text)
            .map_err(|error| StoreError::io(format_args!("read {name} in {}", self.path.display()), error))?;
        let record = serde_json::from_slice(&text).map_err(|error| {
            let store = self.path.display();
            StoreError::new(
                ErrorKind::Damaged,
                format!("record {name} in {store} is damaged ({error}); remove the file and import the image again"),
            )
        })?;
        Ok(Some((record, file)))
    }

    pub(crate) fn read_ref(&self, reference: &str) -> Result<Option<(RefRecord, File)>, StoreError> {
        let name = Layout::ref_name(reference);
        let found = self.read_record::<RefRecord>(self.refs.as_fd(), &name)?;
        if let Some((record, _)) = &found
            && record.reference != reference
        {
            let store = self.path.display();
            return Err(StoreError::new(
                ErrorKind::Damaged,
                format!(
                    "refs/{name} in {store} belongs to another reference; remove the file and import the image again"
                ),
            ));
        }
        Ok(found)
    }

    /// A layer's record; `None` for one that is not there, and for one that did not reach the disk before the machine
    /// stopped.
    pub(crate) fn read_layer(&self, layer: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        let name = format!("{}/layer.json", layer.hex());
        let found = self.read_record::<LayerRecord>(self.layers.as_fd(), &name)?;
        Ok(found.map(|(record, _)| record).filter(|record| !record.is_lost()))
    }

    /// Makes or replaces a reference. Its time of last use is now.
    pub(crate) fn write_ref(&self, record: &RefRecord) -> Result<(), StoreError> {
        let text = serde_json::to_vec(record).expect("strings and digests always serialise");
        self.write_file(self.refs.as_fd(), &Layout::ref_name(&record.reference), &text)
    }

    /// Makes or replaces `folder/name`: readers see the old bytes or the new ones, also after a crash.
    pub(crate) fn write_file(&self, folder: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.place_file(folder, name, bytes, RenameFlags::empty()).map(drop)
    }

    /// Makes `folder/name`, or leaves the one that is there alone.
    pub(crate) fn write_new_file(&self, folder: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.place_file(folder, name, bytes, RenameFlags::NOREPLACE)
    }

    fn place_file(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
        bytes: &[u8],
        flags: RenameFlags,
    ) -> Result<(), StoreError> {
        let doing = || format!("write {name} in {}", self.path.display());
        let aside = unique_name("file");
        let written = write_synced(&self.tmp, &aside, bytes)
            .map_err(|error| StoreError::io(doing(), error))
            .and_then(|()| match rustix::fs::renameat_with(&self.tmp, &aside, folder, name, flags) {
                Ok(()) => Ok(()),
                Err(Errno::EXIST) => {
                    let removed = rustix::fs::unlinkat(&self.tmp, &aside, AtFlags::empty());
                    removed.map_err(|error| StoreError::io(doing(), error))
                }
                Err(error) => Err(StoreError::io(doing(), error)),
            })
            .and_then(|()| rustix::fs::fsync(folder).map_err(|error| StoreError::io(doing(), error)));
        if written.is_err() {
            // Left behind it would only wait for the next sweep; the first error is the one to report.
            let _ = rustix::fs::unlinkat(&self.tmp, &aside, AtFlags::empty());
        }
        written
    }

    /// Makes a locked folder in `tmp/`; the lock tells a sweep that somebody works in it.
    pub(crate) fn stage(&self) -> Result<Stage<'_>, StoreError> {
        let _publishing = self.lock(Share::Shared)?;
        let name = unique_name("stage");
        let doing = || format!("make tmp/{name} in {}", self.path.display());
        rustix::fs::mkdirat(&self.tmp, &name, Mode::from_raw_mode(0o700))
            .map_err(|error| StoreError::io(doing(), error))?;
        let fd = tree::open_dir(self.tmp.as_fd(), name.as_bytes()).map_err(|error| StoreError::io(doing(), error))?;
        let lock = Lock::wait(fd, Share::Exclusive)?;
        Ok(Stage { layout: self, name, lock, published: false })
    }
}

/// A staging folder, removed when dropped unless it was published.
pub(crate) struct Stage<'a> {
    layout: &'a Layout,
    name: String,
    lock: Lock,
    published: bool,
}

impl Stage<'_> {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Writes `layer.json` and makes the folder `layers/HEX`. It is complete for every process from now on, and for the
    /// next boot once it is settled. The caller holds the layer's lock exclusively and has seen that there is no such layer.
    pub(crate) fn publish(mut self, layer: &Digest, record: &LayerRecord) -> Result<(), StoreError> {
        let doing = |error| StoreError::io(format_args!("publish layers/{}", layer.hex()), error);
        let record = LayerRecord { unsettled: Some(this_boot().to_owned()), ..record.clone() };
        let text = serde_json::to_vec(&record).expect("numbers and flags always serialise");
        let mut file = File::from(create_file(self.as_fd(), "layer.json").map_err(doing)?);
        file.write_all(&text).map_err(|error| StoreError::io("write layer.json", error))?;
        let layout = self.layout;
        let name = layer.hex();
        let place =
            || rustix::fs::renameat_with(&layout.tmp, &self.name, &layout.layers, &name, RenameFlags::NOREPLACE);
        match place() {
            // Made by somebody else at the same time.
            Err(Errno::EXIST) if layout.read_layer(layer).is_ok_and(|found| found.is_some()) => return Ok(()),
            Err(Errno::EXIST) => {
                // A layer without a readable record is no layer; guests that have it mounted keep what they see.
                let trash = unique_name("trash");
                rustix::fs::renameat(&layout.layers, &name, &layout.tmp, &trash).map_err(doing)?;
                place().map_err(doing)?;
                tree::remove(layout.tmp.as_fd(), trash.as_bytes()).map_err(doing)?;
            }
            other => other.map_err(doing)?,
        }
        self.published = true;
        Ok(())
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is debris for the next sweep.
            let _ = tree::remove(self.layout.tmp.as_fd(), self.name.as_bytes());
        }
    }
}

/// A name nobody else uses in `tmp/`: process, time and a counter.
pub(crate) fn unique_name(kind: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("{kind}-{}-{nanos:x}-{count}", std::process::id())
}

fn write_synced(folder: &OwnedFd, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::from(create_file(folder.as_fd(), name)?);
    file.write_all(bytes)?;
    file.sync_all()
}

fn create_file(folder: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600))
}

fn open_lock(root: &OwnedFd) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(root, "lock", flags, Mode::from_raw_mode(0o600))
        .map_err(|error| StoreError::io("open the store's lock", error))
}

/// Images are readable by nobody but us: set-id files in them must not be runnable by host users.
fn make_private(root: &OwnedFd) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(root)?;
    if stat.st_mode & 0o077 != 0 {
        rustix::fs::fchmod(root, Mode::from_raw_mode(0o700))?;
    }
    Ok(())
}

fn read_version(root: &OwnedFd, path: &Path) -> Result<Option<u32>, StoreError> {
    let shown = path.display();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::openat(root, "version", flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(StoreError::io(format_args!("open {shown}/version"), error)),
    };
    let mut text = String::new();
    file.take(64)
        .read_to_string(&mut text)
        .map_err(|error| StoreError::io(format_args!("read {shown}/version"), error))?;
    match text.trim().parse::<u32>() {
        Ok(version) if version > FORMAT => Err(StoreError::new(
            ErrorKind::Incompatible,
            format!(
                "image store {shown} has format {version}, this program knows up to {FORMAT}: upgrade the runner package"
            ),
        )),
        Ok(version) if version > 0 => Ok(Some(version)),
        _ => Err(StoreError::new(
            ErrorKind::Incompatible,
            format!("{shown}/version does not hold a format number: this is not an image store"),
        )),
    }
}

/// Makes the folders, and the version file last: without it nothing else is trusted, so a crash in between starts over.
fn create(root: &OwnedFd, path: &Path) -> Result<(), StoreError> {
    let shown = path.display();
    let doing = |error: Errno| StoreError::io(format_args!("create the image store {shown}"), error);
    let names = tree::names(root.as_fd()).map_err(doing)?;
    let foreign = names.iter().find(|name| {
        let known = FOLDERS.iter().chain(&["lock", "version", "boot", "lost+found"]);
        !known.into_iter().any(|known| known.as_bytes() == name.as_slice())
    });
    if let Some(name) = foreign {
        return Err(StoreError::new(
            ErrorKind::Incompatible,
            format!("{shown} is not an image store and not empty (it holds {})", crate::error::quoted(name)),
        ));
    }
    let _lock = Lock::wait(open_lock(root)?, Share::Exclusive)?;
    if read_version(root, path)?.is_some() {
        return Ok(());
    }
    make_folders(root, path)?;
    let aside = "tmp/version";
    let _ = rustix::fs::unlinkat(root, aside, AtFlags::empty());
    write_synced(root, aside, format!("{FORMAT}\n").as_bytes())
        .map_err(|error| StoreError::io(format_args!("create the image store {shown}"), error))?;
    rustix::fs::renameat(root, aside, root, "version").map_err(doing)?;
    rustix::fs::fsync(root).map_err(doing)
}

/// Makes what folders are missing; one that was added to the format is missing in an older store.
fn make_folders(root: &OwnedFd, path: &Path) -> Result<(), StoreError> {
    for folder in FOLDERS {
        match rustix::fs::mkdirat(root, folder, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(StoreError::io(format_args!("create {}/{folder}", path.display()), error)),
        }
    }
    Ok(())
}

/// Seconds since 1970, for the records.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
