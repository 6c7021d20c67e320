//! Copying a root tree into a layer, and the digest that names such a layer.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::digest::{Digest, Hasher};
use crate::error::StoreError;
use crate::layout::LayerStats;
use crate::limits::Budget;
use crate::tree::{self, BUFFER, CopyError, MAX_ID, Metadata};
use crate::unpack::make_dir;

/// Copies what is in the directory `source` into `target`, without following links or entering other mounts.
/// `forbidden` is a directory (device, inode) that must not be met: the store, which would be copied into itself.
/// `report` hears the bytes copied so far.
pub(crate) fn copy_tree(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    forbidden: (u64, u64),
    budget: &mut Budget,
    report: &mut dyn FnMut(u64),
) -> Result<LayerStats, StoreError> {
    let mut copier = Copier {
        target,
        forbidden,
        budget,
        report,
        links: HashMap::new(),
        stats: LayerStats::default(),
        buffer: Box::new([0; BUFFER]),
        path: Vec::new(),
        depth: 0,
    };
    copier.directory(source, target).map_err(|error| error.in_entry(&copier.path))?;
    Ok(copier.stats)
}

struct Copier<'a> {
    target: BorrowedFd<'a>,
    forbidden: (u64, u64),
    budget: &'a mut Budget,
    report: &'a mut dyn FnMut(u64),
    /// First name in the target of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
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
        self.dress(&metadata, target)
    }

    fn entry(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &[u8]) -> Result<(), StoreError> {
        let failed = |error: Errno| StoreError::io("read it", error);
        let Some(stat) = tree::stat_name(source, name).map_err(failed)? else { return Err(failed(Errno::NOENT)) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let made = make_dir(target, name, false)?;
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
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(target, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| StoreError::io("create the file", error))?;
        let metadata = self.metadata(&stat, Some(from.as_fd()))?;
        self.content(from, &to, size)?;
        self.dress(&metadata, to.as_fd())?;
        if stat.st_nlink > 1 {
            self.links.insert(tree::inode(&stat), self.path.clone());
        }
        self.stats.bytes += size;
        (self.report)(self.stats.bytes);
        Ok(())
    }

    /// A reflink where the file system has them, else a copy that keeps holes.
    fn content(&mut self, from: OwnedFd, to: &OwnedFd, size: u64) -> Result<(), StoreError> {
        if size == 0 || rustix::fs::ioctl_ficlone(to, &from).is_ok() {
            return Ok(());
        }
        let to = to.try_clone().map(File::from).map_err(|error| StoreError::io("duplicate a handle", error))?;
        tree::copy_bytes(&mut File::from(from), &to, 0, size, &mut self.buffer).map_err(|error| match error {
            CopyError::Read(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                StoreError::bad("became shorter while it was copied")
            }
            CopyError::Read(error) => StoreError::io("read the file", error),
            CopyError::Write(error) => StoreError::io("write the copy", error),
        })?;
        to.set_len(size).map_err(|error| StoreError::io("set the size of the copy", error))
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

    fn dress(&mut self, metadata: &Metadata, fd: BorrowedFd<'_>) -> Result<(), StoreError> {
        let dropped = metadata.apply(fd).map_err(|error| StoreError::io("set owner and mode", error))?;
        self.stats.xattrs_dropped += dropped;
        Ok(())
    }
}

/// Digest of an unpacked tree: of everything a guest can see in it, in one defined order, on any file system.
///
/// The stream hashed starts with 512 bytes of 0xff, which no tar reader accepts as a header, so that no archive's diff id
/// can be made equal to it. `docs/store-format.md` gives the rest.
pub(crate) fn tree_digest(root: BorrowedFd<'_>) -> Result<Digest, StoreError> {
    let mut hasher = Hasher::default();
    hasher.update(&[0xff; 512]);
    hasher.update(b"runner-store tree 1\n");
    let mut digester =
        Digester { hasher, links: HashMap::new(), buffer: vec![0; BUFFER].into_boxed_slice(), path: Vec::new() };
    digester.directory(root).map_err(|error| error.in_entry(&digester.path))?;
    Ok(digester.hasher.finish())
}

struct Digester {
    hasher: Hasher,
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Box<[u8]>,
    path: Vec<u8>,
}

impl Digester {
    fn directory(&mut self, dir: BorrowedFd<'_>) -> Result<(), StoreError> {
        let failed = |error: Errno| StoreError::io("read the directory", error);
        let stat = rustix::fs::fstat(dir).map_err(failed)?;
        self.head(b'd', &stat, Some(dir))?;
        let mut names = tree::names(dir).map_err(failed)?;
        names.sort();
        for name in names {
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(&name);
            self.entry(dir, &name)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), StoreError> {
        let failed = |error: Errno| StoreError::io("read it", error);
        let Some(stat) = tree::stat_name(dir, name).map_err(failed)? else { return Err(failed(Errno::NOENT)) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below = tree::open_dir(dir, name).map_err(failed)?;
                self.directory(below.as_fd())
            }
            FileType::RegularFile => {
                if stat.st_nlink > 1 {
                    if let Some(first) = self.links.get(&tree::inode(&stat)).cloned() {
                        self.field(b"h");
                        let path = self.path.clone();
                        self.field(&path);
                        self.field(&first);
                        return Ok(());
                    }
                    self.links.insert(tree::inode(&stat), self.path.clone());
                }
                let fd = tree::open_beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
                self.head(b'f', &stat, Some(fd.as_fd()))?;
                self.content(File::from(fd), &stat)
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed)?;
                self.head(b'l', &stat, None)?;
                self.field(link.to_bytes());
                Ok(())
            }
            _ if tree::is_whiteout(&stat) => {
                self.field(b"w");
                let path = self.path.clone();
                self.field(&path);
                Ok(())
            }
            _ => Err(StoreError::bad("is of a kind no layer has")),
        }
    }

    fn content(&mut self, mut file: File, stat: &Stat) -> Result<(), StoreError> {
        let size = u64::try_from(stat.st_size).map_err(|_| StoreError::bad("has a negative size"))?;
        self.hasher.update(&size.to_le_bytes());
        let mut total = 0;
        loop {
            let n = file.read(&mut self.buffer).map_err(|error| StoreError::io("read the file", error))?;
            if n == 0 {
                break;
            }
            total += n as u64;
            self.hasher.update(&self.buffer[..n]);
        }
        if total != size { Err(StoreError::bad("changed while it was read")) } else { Ok(()) }
    }

    fn head(&mut self, kind: u8, stat: &Stat, fd: Option<BorrowedFd<'_>>) -> Result<(), StoreError> {
        self.field(&[kind]);
        let path = self.path.clone();
        self.field(&path);
        let mode = if kind == b'l' { 0 } else { stat.st_mode & 0o7777 };
        for number in [mode, stat.st_uid, stat.st_gid] {
            self.hasher.update(&number.to_le_bytes());
        }
        // Whole seconds: some file systems keep no more.
        let seconds = tree::mtime(stat).tv_sec;
        self.hasher.update(&seconds.to_le_bytes());
        let xattrs = match fd {
            Some(fd) => {
                let failed = |error| StoreError::io("read the extended attributes", error);
                tree::content_xattrs(fd).map_err(failed)?.0
            }
            None => Vec::new(),
        };
        self.hasher.update(&(xattrs.len() as u64).to_le_bytes());
        for (name, value) in &xattrs {
            self.field(name);
            self.field(value);
        }
        Ok(())
    }

    /// Length first, so that no two different trees give the same stream.
    fn field(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }
}
