//! Images that are not on this machine: what the store asks of whoever fetches them, and blobs fetched in part.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

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

    /// The registry, as references name it. Two pulls from one registry wait for each other.
    fn registry(&self) -> &str;

    /// Whether others than the registry itself may answer.
    fn has_mirrors(&self) -> bool;

    /// Whether nobody wants the image any more, so that there is nothing to wait for.
    fn is_given_up(&self) -> bool {
        false
    }

    /// Nothing more is wanted: what is under way should end soon, with whatever error.
    fn give_up(&self) {}

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

/// `partial/HEX`: the beginning of a blob, locked by whoever goes on with it; or, when somebody else has that, a file
/// without a name.
pub(crate) struct Partial<'a> {
    store: &'a Store,
    name: Option<String>,
    file: Lock,
}

impl Store {
    /// Opens what is there of a blob, or makes an empty file for it. Nobody is waited for: who needs the blob for the same
    /// layer waits for the layer, and others may be at work on it for as long as they please.
    pub(crate) fn partial(&self, blob: &Digest, size: u64) -> Result<Partial<'_>, StoreError> {
        let name = blob.hex();
        let failed = |error| StoreError::io(format_args!("open partial/{name}"), error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let fd = rustix::fs::openat(&self.layout.partial, &name, flags, Mode::from_raw_mode(0o600));
            let Some(file) = Lock::attempt(fd.map_err(failed)?, Share::Exclusive)? else {
                let file = Lock::wait(OwnedFd::from(self.spool()?), Share::Exclusive)?;
                return Ok(Partial { store: self, name: None, file });
            };
            // Finished or collected by somebody else just now.
            if !file.is_linked()? {
                continue;
            }
            let partial = Partial { store: self, name: Some(name), file };
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
        let stat = rustix::fs::fstat(self.file.as_fd()).map_err(|error| self.failed("look at", error))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Forgets the bytes.
    pub(crate) fn start_over(&self) -> Result<(), StoreError> {
        rustix::fs::ftruncate(self.file.as_fd(), 0).map_err(|error| self.failed("empty", error))
    }

    /// A descriptor that appends and does not read.
    pub(crate) fn writer(&self) -> Result<OwnedFd, StoreError> {
        self.again(OFlags::WRONLY | OFlags::APPEND)
    }

    /// A descriptor that only reads.
    pub(crate) fn reader(&self) -> Result<File, StoreError> {
        self.again(OFlags::RDONLY).map(File::from)
    }

    /// Opens the very file again; its name could be another one's by now.
    fn again(&self, flags: OFlags) -> Result<OwnedFd, StoreError> {
        let path = format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd());
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|error| self.failed("open", error))
    }

    /// The blob is no longer needed, or not wanted.
    pub(crate) fn remove(self) -> Result<(), StoreError> {
        match &self.name {
            Some(name) => rustix::fs::unlinkat(&self.store.layout.partial, name, AtFlags::empty())
                .map_err(|error| self.failed("remove", error)),
            None => Ok(()),
        }
    }

    fn failed(&self, verb: &str, error: rustix::io::Errno) -> StoreError {
        let name = self.name.as_deref().unwrap_or("of no name");
        StoreError::io(format_args!("{verb} partial/{name}"), error)
    }
}
