//! Copying a root tree into a layer.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::digest::{Digest, Hasher};
use crate::error::StoreError;
use crate::layout::LayerStats;
use crate::limits::Budget;
use crate::tree::{self, BUFFER, CopyError, MAX_ID, Metadata};
use crate::tree_digest::{Recorded, content_digest, recorded_digest};
use crate::unpack::make_dir;

/// Copies what is in the directory `source` into `target`, without following links or entering other mounts.
/// `forbidden` is a directory (device, inode) that must not be met: the store, which would be copied into itself.
/// `report` hears the bytes copied so far. Gives the tree digest of the copy too.
pub(crate) fn copy_tree(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    forbidden: (u64, u64),
    budget: &mut Budget,
    report: &mut dyn FnMut(u64),
) -> Result<(LayerStats, Digest), StoreError> {
    let mut copier = Copier {
        target,
        forbidden,
        budget,
        report,
        links: HashMap::new(),
        recorded: Recorded::default(),
        stats: LayerStats::default(),
        buffer: Box::new([0; BUFFER]),
        path: Vec::new(),
        depth: 0,
    };
    copier.directory(source, target).map_err(|error| error.in_entry(&copier.path))?;
    let digest = recorded_digest(target, &copier.recorded)?;
    Ok((copier.stats, digest))
}

struct Copier<'a> {
    target: BorrowedFd<'a>,
    forbidden: (u64, u64),
    budget: &'a mut Budget,
    report: &'a mut dyn FnMut(u64),
    /// First name in the target of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    recorded: Recorded,
    stats: LayerStats,
    buffer: Box<[u8; BUFFER]>,
    /// Of the entry at hand, from the root.
    path: Vec<u8>,
    depth: usize,
}

impl Copier<'_> {
    fn directory(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), StoreError> {
        let failed = |error: Errno| StoreError::io("read the directory", error);
        let stat = rustix::fs::fstat(source).map_err(failed)?;
        if tree::inode(&stat) == self.forbidden {
            return Err(StoreError::bad("the image store lies in this tree; import a tree without it"));
        }
        if self.depth > self.budget.limits().depth {
            return Err(StoreError::limit(format!("more than {} directories deep", self.budget.limits().depth)));
        }
        for name in tree::names(source).map_err(failed)? {
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            if self.path.len() > self.budget.limits().path_bytes {
                return Err(StoreError::limit(format!("path of {} bytes", self.path.len())));
            }
            self.depth += 1;
            self.budget.spend_entry()?;
            self.entry(source, target, &name)?;
            self.stats.entries += 1;
            self.depth -= 1;
            self.path.truncate(length);
        }
        // Last, since filling a directory changes its time.
        let metadata = self.metadata(&stat, Some(source))?;
        let made = rustix::fs::fstat(target).map_err(|error| StoreError::io("look at the copy", error))?;
        self.dress(&metadata, target, &made)
    }

    fn entry(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &[u8]) -> Result<(), StoreError> {
        let failed = |error: Errno| StoreError::io("read it", error);
        let Some(stat) = tree::stat_name(source, name).map_err(failed)? else { return Err(failed(Errno::NOENT)) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let made = make_dir(target, name)?;
                match tree::open_dir(source, name) {
                    Ok(below) => self.directory(below.as_fd(), made.as_fd()),
                    Err(Errno::XDEV) => {
                        self.stats.mounts_skipped += 1;
                        Ok(())
                    }
                    Err(error) => Err(failed(error)),
                }
            }
            FileType::RegularFile => self.file(source, target, name),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new()).map_err(failed)?;
                let metadata = self.metadata(&stat, None)?;
                rustix::fs::symlinkat(link.as_c_str(), target, name)
                    .map_err(|error| StoreError::io("create the symbolic link", error))?;
                metadata
                    .apply_to_symlink(target, name)
                    .map_err(|error| StoreError::io("set the owner of the symbolic link", error))
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                self.stats.devices_dropped += 1;
                Ok(())
            }
            _ => {
                self.stats.fifos_dropped += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &[u8]) -> Result<(), StoreError> {
        // Never waits, should the name have become a FIFO in the meantime.
        let from = match tree::open_beneath(source, name, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::XDEV) => {
                self.stats.mounts_skipped += 1;
                return Ok(());
            }
            Err(error) => return Err(StoreError::io("open the file", error)),
        };
        let stat = rustix::fs::fstat(&from).map_err(|error| StoreError::io("look at the file", error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StoreError::bad("changed while it was copied"));
        }
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&tree::inode(&stat))
        {
            return rustix::fs::linkat(self.target, first.as_slice(), target, name, AtFlags::empty())
                .map_err(|error| StoreError::io("create the hard link", error));
        }
        let size = u64::try_from(stat.st_size).map_err(|_| StoreError::bad("has a negative size"))?;
        self.budget.spend_bytes(size)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(target, name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|error| StoreError::io("create the file", error))?;
        let metadata = self.metadata(&stat, Some(from.as_fd()))?;
        let made = rustix::fs::fstat(&to).map_err(|error| StoreError::io("look at the copy", error))?;
        if size > 0 {
            let digest = self.content(&File::from(from), &to, size)?;
            self.recorded.content(made.st_ino, digest);
        }
        self.dress(&metadata, to.as_fd(), &made)?;
        if stat.st_nlink > 1 {
            self.links.insert(tree::inode(&stat), self.path.clone());
        }
        self.stats.bytes += size;
        (self.report)(self.stats.bytes);
        Ok(())
    }

    /// A reflink where the file system has them, else a copy that keeps holes. Gives the digest of the content.
    fn content(&mut self, mut from: &File, to: &File, size: u64) -> Result<Digest, StoreError> {
        if rustix::fs::ioctl_ficlone(to, from).is_ok() {
            // The copy's bytes and not the source's, which may be others by now.
            return content_digest(to, size, self.buffer.as_mut_slice());
        }
        let mut hasher = Hasher::default();
        let written =
            tree::copy_bytes(&mut from, to, 0, size, &mut hasher, &mut self.buffer).map_err(|error| match error {
                CopyError::Read(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    StoreError::bad("became shorter while it was copied")
                }
                CopyError::Read(error) => StoreError::io("read the file", error),
                CopyError::Write(error) => StoreError::io("write the copy", error),
            })?;
        if written < size {
            to.set_len(size).map_err(|error| StoreError::io("set the size of the copy", error))?;
        }
        Ok(hasher.finish())
    }

    fn metadata(&mut self, stat: &Stat, fd: Option<BorrowedFd<'_>>) -> Result<Metadata, StoreError> {
        for (what, id) in [("uid", stat.st_uid), ("gid", stat.st_gid)] {
            if id > MAX_ID {
                return Err(StoreError::bad(format!(
                    "{what} {id} is above {MAX_ID}, the highest id a guest has; was the tree shifted for a user namespace?"
                )));
            }
        }
        let mut xattrs = Vec::new();
        if let Some(fd) = fd {
            let (found, dropped) =
                tree::content_xattrs(fd).map_err(|error| StoreError::io("read the extended attributes", error))?;
            let before = found.len();
            xattrs = found;
            xattrs.retain(|(name, _)| name != tree::OPAQUE.to_bytes());
            self.stats.xattrs_dropped += dropped + (before - xattrs.len()) as u64;
        }
        Ok(Metadata { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode, mtime: tree::mtime(stat), xattrs })
    }

    fn dress(&mut self, metadata: &Metadata, fd: BorrowedFd<'_>, made: &Stat) -> Result<(), StoreError> {
        let held = metadata.apply(fd, made).map_err(|error| StoreError::io("set owner and mode", error))?;
        self.stats.xattrs_dropped += (metadata.xattrs.len() - held.len()) as u64;
        self.recorded.attributes(made.st_ino, held);
        Ok(())
    }
}
