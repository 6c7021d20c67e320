//! Images that are not on this machine: what the store asks of whoever fetches them, and blobs fetched in part.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::Store;
use crate::digest::Digest;
use crate::error::StoreError;
use crate::lock::{Lock, Share};

/// A repository somewhere else. The store checks every digest itself; nothing that comes from here is believed.
///
/// Calls block and come from several threads at once.
pub trait Remote: Sync {
    /// The document the image is named by, a manifest or an index, with the media type it was announced as (empty when
    /// it was not).
    ///
    /// # Errors
    /// Any; it is passed on as it is.
    fn root(&self) -> Result<(String, Vec<u8>), StoreError>;

    /// A manifest by its digest.
    ///
    /// # Errors
    /// Any; it is passed on as it is.
    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, StoreError>;

    /// A configuration, which is a blob of a few kilobytes.
    ///
    /// # Errors
    /// Any; it is passed on as it is.
    fn configuration(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, StoreError>;

    /// Whether others than the registry itself may answer.
    fn has_mirrors(&self) -> bool;

    /// Begins to fetch a layer's blob: the bytes from `have` on are appended to `file` and then written into the pipe
    /// whose read end is returned. `origin_only` leaves mirrors out, since bytes from one of them were wrong.
    ///
    /// # Errors
    /// Any; it is passed on as it is.
    fn blob(&self, blob: &BlobRequest<'_>, file: OwnedFd) -> Result<Fetching, StoreError>;
}

/// Which bytes of which blob.
#[derive(Debug, Clone, Copy)]
pub struct BlobRequest<'a> {
    /// Digest of the whole blob.
    pub digest: &'a Digest,
    /// Size of the whole blob.
    pub size: u64,
    /// Bytes that are there already.
    pub have: u64,
    /// Leave mirrors out.
    pub origin_only: bool,
}

/// A blob on its way.
pub struct Fetching {
    /// Gives the bytes, and ends when there are no more, for whatever reason.
    pub pipe: OwnedFd,
    /// Waits for the end and says how it came about. Called after the pipe was read to its end or closed.
    pub outcome: Box<dyn FnOnce() -> Result<(), StoreError> + Send>,
}

impl std::fmt::Debug for Fetching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetching").field("pipe", &self.pipe).finish_non_exhaustive()
    }
}

/// `partial/HEX`: the beginning of a blob, locked by whoever goes on with it.
pub(crate) struct Partial<'a> {
    store: &'a Store,
    name: String,
    lock: Lock,
}

impl Store {
    /// Opens what is there of a blob, or makes an empty file for it. Waits for whoever is at work on it.
    pub(crate) fn partial(&self, blob: &Digest, size: u64) -> Result<Partial<'_>, StoreError> {
        let name = blob.hex();
        let failed = |error| StoreError::io(format_args!("open partial/{name}"), error);
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let fd = rustix::fs::openat(&self.layout.partial, &name, flags, Mode::from_raw_mode(0o600));
            let lock = Lock::wait(fd.map_err(failed)?, Share::Exclusive)?;
            // Finished or collected by somebody else while we waited.
            if !lock.is_linked()? {
                continue;
            }
            let partial = Partial { store: self, name, lock };
            if partial.have()? > size {
                partial.start_over()?;
            }
            return Ok(partial);
        }
    }
}

impl Partial<'_> {
    /// Bytes that are there.
    pub(crate) fn have(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::fstat(self.lock.as_fd()).map_err(|error| self.failed("look at", error))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Forgets the bytes.
    pub(crate) fn start_over(&self) -> Result<(), StoreError> {
        rustix::fs::ftruncate(self.lock.as_fd(), 0).map_err(|error| self.failed("empty", error))
    }

    /// A descriptor that appends.
    pub(crate) fn writer(&self) -> Result<OwnedFd, StoreError> {
        let copy = self.lock.as_fd().try_clone_to_owned();
        copy.map_err(|error| StoreError::io(format_args!("open partial/{}", self.name), error))
    }

    /// A descriptor that only reads.
    pub(crate) fn reader(&self) -> Result<File, StoreError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.store.layout.partial, &self.name, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| self.failed("open", error))
    }

    /// The blob is no longer needed, or not wanted.
    pub(crate) fn remove(self) -> Result<(), StoreError> {
        rustix::fs::unlinkat(&self.store.layout.partial, &self.name, AtFlags::empty())
            .map_err(|error| self.failed("remove", error))
    }

    fn failed(&self, verb: &str, error: rustix::io::Errno) -> StoreError {
        StoreError::io(format_args!("{verb} partial/{}", self.name), error)
    }
}
