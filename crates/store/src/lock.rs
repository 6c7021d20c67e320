//! Locks between processes: `flock(2)`, which the kernel drops with the last descriptor, however the holder dies.
//!
//! Three kinds, always taken in this order, so that nobody waits in a circle:
//! 1. a layer's lock (`locks/HEX`): exclusive to unpack that layer, shared to rely on it while its image is not yet
//!    published;
//! 2. the store's lock (`lock`): shared for the moment of publishing or resolving, exclusive for the moment of collecting;
//! 3. an image's record (`images/HEX.json`): shared as long as a lease lives.
//!
//! Whoever holds the store's lock exclusively only *tries* the other two.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::StoreError;

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

/// Shared or exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    Shared,
    Exclusive,
}

impl Lock {
    /// Waits for a lock on an open file.
    pub(crate) fn wait(fd: OwnedFd, share: Share) -> Result<Lock, StoreError> {
        let operation = match share {
            Share::Shared => FlockOperation::LockShared,
            Share::Exclusive => FlockOperation::LockExclusive,
        };
        rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, operation))
            .map_err(|error| StoreError::io("lock a file of the store", error))?;
        Ok(Lock(fd))
    }

    /// Takes a lock on an open file, or gives `None` when somebody else is in the way.
    pub(crate) fn attempt(fd: OwnedFd, share: Share) -> Result<Option<Lock>, StoreError> {
        let operation = match share {
            Share::Shared => FlockOperation::NonBlockingLockShared,
            Share::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, operation)) {
            Ok(()) => Ok(Some(Lock(fd))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(StoreError::io("lock a file of the store", error)),
        }
    }

    /// Makes an exclusive lock shared. Not atomic (flock(2)): somebody else may have been in between.
    pub(crate) fn share(self) -> Result<Lock, StoreError> {
        Lock::wait(self.0, Share::Shared)
    }

    /// Writes down who holds the lock, for those who wait.
    pub(crate) fn sign(&self, name: &str) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("sign a lock of the store", error);
        rustix::fs::ftruncate(&self.0, 0).map_err(failed)?;
        rustix::io::pwrite(&self.0, name.as_bytes(), 0).map_err(failed).map(drop)
    }

    /// Who holds, or held, the lock on an open file.
    pub(crate) fn signature(fd: &OwnedFd) -> Result<String, StoreError> {
        let mut name = [0; 512];
        let length =
            rustix::io::pread(fd, &mut name, 0).map_err(|error| StoreError::io("read a lock of the store", error))?;
        Ok(String::from_utf8_lossy(&name[..length]).into_owned())
    }

    /// Whether the locked file still has a name; one that was collected while we waited has none.
    pub(crate) fn is_linked(&self) -> Result<bool, StoreError> {
        let stat = rustix::fs::fstat(&self.0).map_err(|error| StoreError::io("look at a locked file", error))?;
        Ok(stat.st_nlink > 0)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The lock file of one layer, opened or made. The caller locks it and checks [`Lock::is_linked`].
pub(crate) fn open_layer_lock(locks: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(locks, name, flags, Mode::from_raw_mode(0o600))
        .map_err(|error| StoreError::io(format_args!("open locks/{name}"), error))
}
