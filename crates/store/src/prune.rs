//! Making room: images that were not used for longest go first, those in use never.

use std::time::{Duration, SystemTime};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::lock::{Lock, Share};
use crate::{Store, Swept, tree};

/// Time after which the beginning of a blob that nobody went on with is of no use: it is a day's work at most to fetch it
/// again, and a tag has often moved by then.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A reference that might go.
struct Candidate {
    reference: String,
    used: SystemTime,
    /// Whether a registry has the image, too. What was imported may be the only copy; and if it went by itself, its name would
    /// stand for whatever somebody else has put under it into a registry.
    replaceable: bool,
}

/// How much is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// If more than `start` percent of the file system's bytes or inodes are in use, images that came from a registry until at most `stop`
    /// percent are.
    Watermarks {
        /// Percent in use from which on something is done.
        start: u8,
        /// Percent in use at which it ends.
        stop: u8,
    },
    /// Images that came from a registry until so many bytes are free.
    Room(u64),
    /// Images that were not used for so long.
    Unused(Duration),
    /// Every image that no guest uses.
    All,
}

/// What [`Store::prune`] took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// References, in the order in which they went.
    pub references: Vec<String>,
    /// Debris, and images and layers nobody refers to, theirs included.
    pub swept: Swept,
    /// Beginnings of blobs.
    pub partials: usize,
}

/// Room on the file system the store is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all, but for those only root may use.
    pub total: u64,
    /// Bytes that can be used.
    pub free: u64,
}

impl Space {
    /// Percent in use, rounded up, as `df` shows them.
    pub fn percent_used(&self) -> u8 {
        let used = self.total.saturating_sub(self.free);
        u8::try_from((u128::from(used) * 100).div_ceil(u128::from(self.total.max(1)))).unwrap_or(100)
    }
}

impl Store {
    /// Room on the file system the store is on.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn space(&self) -> Result<Space, StoreError> {
        let stat = rustix::fs::fstatvfs(self.layout.root())
            .map_err(|error| StoreError::io("ask for the room on the store's file system", error))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(Space { total: used.saturating_add(free), free })
    }

    /// Percent in use of the store's file system: of its bytes or of its inodes, whatever is scarcer. An image of empty files
    /// takes hardly any bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn percent_used(&self) -> Result<u8, StoreError> {
        Ok(self.space()?.percent_used().max(self.inodes()?.percent_used()))
    }

    /// Inodes, in all and those that can be used; none in all where the file system makes as many as it needs.
    pub(crate) fn inodes(&self) -> Result<Space, StoreError> {
        let stat = rustix::fs::fstatvfs(self.layout.root())
            .map_err(|error| StoreError::io("ask for the inodes of the store's file system", error))?;
        Ok(Space { total: stat.f_files, free: stat.f_favail })
    }

    /// Removes what nobody needs, and then images until `scope` is satisfied or only such are left that are in use. Safe at
    /// any time, beside pulls and leases of other processes. `removed` hears of each image as it goes.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when a reference cannot be read: then nothing is collected, since it might be needed.
    pub fn prune(&self, scope: Scope, removed: &mut dyn FnMut(&str)) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned { swept: self.sweep()?, ..Pruned::default() };
        if scope == Scope::All {
            pruned.partials = self.remove_partials(Duration::ZERO)?;
        }
        if !self.is_asked_for(scope, true)? {
            return Ok(pruned);
        }
        // Bytes that may never be used are the cheapest to lose.
        if !matches!(scope, Scope::Unused(_) | Scope::All) {
            pruned.partials += self.remove_partials(Duration::ZERO)?;
        }
        for Candidate { reference, used, replaceable } in self.by_last_use()? {
            if !self.is_asked_for(scope, false)? {
                break;
            }
            if !replaceable && matches!(scope, Scope::Watermarks { .. } | Scope::Room(_)) {
                continue;
            }
            if let Scope::Unused(span) = scope
                && used.elapsed().unwrap_or_default() < span
            {
                break;
            }
            match self.remove(&reference) {
                Ok(gone) => {
                    removed(&reference);
                    pruned.references.push(reference);
                    pruned.swept.images += 1;
                    pruned.swept.layers += gone.layers;
                    pruned.swept.bytes += gone.bytes;
                }
                // Somebody uses it, or was faster.
                Err(error) if matches!(error.kind(), ErrorKind::InUse | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }

    /// Whether more must go. What is freed counts from the moment it is free, so the file system is asked each time.
    fn is_asked_for(&self, scope: Scope, first: bool) -> Result<bool, StoreError> {
        Ok(match scope {
            Scope::Watermarks { start, stop } => self.percent_used()? > if first { start } else { stop },
            Scope::Room(bytes) => self.space()?.free < bytes,
            Scope::Unused(_) | Scope::All => true,
        })
    }

    /// References, the one that was not used for longest first.
    fn by_last_use(&self) -> Result<Vec<Candidate>, StoreError> {
        let _reading = self.layout.lock(Share::Shared)?;
        let mut all = Vec::new();
        for (record, file) in self.references()? {
            let used = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            all.push(Candidate { reference: record.reference, used, replaceable: record.digest.is_some() });
        }
        all.sort_by_key(|candidate| candidate.used);
        Ok(all)
    }

    /// Removes beginnings of blobs that nobody works on and nobody has written to for `age`. How many.
    pub(crate) fn remove_partials(&self, age: Duration) -> Result<usize, StoreError> {
        let folder = &self.layout.partial;
        let failed = |error: Errno| StoreError::io("look through partial/", error);
        let mut removed = 0;
        for name in tree::names(std::os::fd::AsFd::as_fd(folder)).map_err(failed)? {
            let Some(digest) = std::str::from_utf8(&name).ok().and_then(Digest::from_hex) else { continue };
            let Some(partial) = self.try_partial(&digest)? else { continue };
            let stat = rustix::fs::fstat(partial.as_fd()).map_err(failed)?;
            let written = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
            if written.elapsed().unwrap_or_default() >= age {
                rustix::fs::unlinkat(folder, &name, AtFlags::empty()).map_err(failed)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes what was left of interrupted pulls long ago.
    pub(crate) fn remove_stale_partials(&self) -> Result<usize, StoreError> {
        self.remove_partials(PARTIAL_KEPT)
    }

    fn try_partial(&self, blob: &Digest) -> Result<Option<Lock>, StoreError> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.layout.partial, blob.hex(), flags, Mode::empty()) {
            Ok(fd) => Lock::attempt(fd, Share::Exclusive),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(StoreError::io(format_args!("open partial/{}", blob.hex()), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_rounded_up_and_never_above_a_hundred() {
        let percent = |total, free| Space { total, free }.percent_used();
        assert_eq!(percent(1000, 1000), 0);
        assert_eq!(percent(1000, 999), 1);
        assert_eq!(percent(1000, 150), 85);
        assert_eq!(percent(1000, 149), 86);
        assert_eq!((percent(1000, 0), percent(0, 0)), (100, 0));
        assert_eq!(percent(u64::MAX, 0), 100);
    }
}
