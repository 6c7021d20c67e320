//! The digest of an unpacked tree: of everything a guest can see in it, in one defined order, on any file system.
//!
//! The stream hashed starts with 512 bytes of 0xff, which no tar reader accepts as a header, so that no archive's diff id
//! can be made equal to it. `docs/store-format.md` gives the rest.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::digest::{Digest, Hasher};
use crate::error::StoreError;
use crate::tree::{self, BUFFER, Xattrs};

/// What whoever writes a tree remembers of it, so that its digest needs no file to be read again. By inode number: names
/// change hands while a tree is made, and all of it lies in one file system.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    /// Of files that are not empty.
    contents: HashMap<u64, Digest>,
    /// Of files and directories that have any.
    attributes: HashMap<u64, Xattrs>,
}

impl Recorded {
    /// A file has this content.
    pub(crate) fn content(&mut self, inode: u64, digest: Digest) {
        self.contents.insert(inode, digest);
    }

    /// A file or directory has these attributes, and no others.
    pub(crate) fn attributes(&mut self, inode: u64, xattrs: Xattrs) {
        if xattrs.is_empty() {
            // The number may be that of a file which is gone.
            self.attributes.remove(&inode);
        } else {
            self.attributes.insert(inode, xattrs);
        }
    }

    /// The attributes of a file or directory.
    pub(crate) fn attributes_of(&self, inode: u64) -> &[(Vec<u8>, Vec<u8>)] {
        self.attributes.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// A directory was marked opaque.
    pub(crate) fn opaque(&mut self, inode: u64) {
        let xattrs = self.attributes.entry(inode).or_default();
        xattrs.retain(|(name, _)| name != tree::OPAQUE.to_bytes());
        xattrs.push((tree::OPAQUE.to_bytes().to_vec(), b"y".to_vec()));
    }

    /// Whether a directory is marked opaque.
    pub(crate) fn is_opaque(&self, inode: u64) -> bool {
        self.attributes_of(inode).iter().any(|(name, _)| name == tree::OPAQUE.to_bytes())
    }
}

/// Digest of a tree that was just written, from its metadata and what was recorded of its content.
pub(crate) fn recorded_digest(root: BorrowedFd<'_>, recorded: &Recorded) -> Result<Digest, StoreError> {
    digest(root, Facts::Recorded(recorded))
}

/// Digest of a tree as it lies on the disk, with every file read. `report` hears the bytes read so far.
pub(crate) fn disk_digest(root: BorrowedFd<'_>, report: &mut dyn FnMut(u64)) -> Result<Digest, StoreError> {
    digest(root, Facts::Disk { buffer: vec![0; BUFFER].into_boxed_slice(), read: 0, report })
}

/// Digest of `size` bytes of a file, which must have no more.
pub(crate) fn content_digest(file: &File, size: u64, buffer: &mut [u8]) -> Result<Digest, StoreError> {
    let mut hasher = Hasher::default();
    let mut total = 0;
    loop {
        let n = file.read_at(buffer, total).map_err(|error| StoreError::io("read the file", error))?;
        if n == 0 {
            break;
        }
        total += n as u64;
        hasher.update(&buffer[..n]);
    }
    if total == size { Ok(hasher.finish()) } else { Err(StoreError::bad("changed while it was read")) }
}

/// Where content and attributes come from.
enum Facts<'a> {
    Recorded(&'a Recorded),
    Disk { buffer: Box<[u8]>, read: u64, report: &'a mut dyn FnMut(u64) },
}

fn digest(root: BorrowedFd<'_>, facts: Facts<'_>) -> Result<Digest, StoreError> {
    let mut hasher = Hasher::default();
    hasher.update(&[0xff; 512]);
    hasher.update(b"runner-store tree 2\n");
    let empty = Digest::of(b"");
    let mut digester = Digester { hasher, facts, empty, links: HashMap::new(), path: Vec::new() };
    digester.directory(root).map_err(|error| error.in_entry(&digester.path))?;
    Ok(digester.hasher.finish())
}

struct Digester<'a> {
    hasher: Hasher,
    facts: Facts<'a>,
    empty: Digest,
    /// First name of each file that has several.
    links: HashMap<u64, Vec<u8>>,
    /// Of the entry at hand, with a leading `/`; the root's is empty.
    path: Vec<u8>,
}

impl Digester<'_> {
    fn directory(&mut self, dir: BorrowedFd<'_>) -> Result<(), StoreError> {
        let failed = |error: Errno| StoreError::io("read the directory", error);
        let stat = rustix::fs::fstat(dir).map_err(failed)?;
        let xattrs = self.xattrs(&stat, dir)?;
        self.head(b'd', &stat, &xattrs);
        let mut names = tree::names(dir).map_err(failed)?;
        names.sort_unstable();
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
            FileType::RegularFile => self.file(dir, name, &stat),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed)?;
                self.head(b'l', &stat, &[]);
                self.field(link.to_bytes());
                Ok(())
            }
            _ if tree::is_whiteout(&stat) => {
                self.field(b"w");
                self.path_field();
                Ok(())
            }
            _ => Err(StoreError::bad("is of a kind no layer has")),
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<(), StoreError> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                self.field(b"h");
                self.path_field();
                self.field(&first);
                return Ok(());
            }
            self.links.insert(stat.st_ino, self.path.clone());
        }
        let size = u64::try_from(stat.st_size).map_err(|_| StoreError::bad("has a negative size"))?;
        let (xattrs, content) = match &mut self.facts {
            Facts::Recorded(recorded) => {
                let content = if size == 0 { Some(&self.empty) } else { recorded.contents.get(&stat.st_ino) };
                let content = *content.ok_or_else(|| StoreError::bad("was put there by somebody else"))?;
                let mut xattrs = recorded.attributes_of(stat.st_ino).to_vec();
                xattrs.sort_unstable();
                (xattrs, content)
            }
            Facts::Disk { buffer, read, report } => {
                let fd = tree::open_beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK)
                    .map_err(|error| StoreError::io("open the file", error))?;
                let xattrs = disk_xattrs(fd.as_fd())?;
                let content = content_digest(&File::from(fd), size, buffer)?;
                *read += size;
                report(*read);
                (xattrs, content)
            }
        };
        self.head(b'f', stat, &xattrs);
        self.hasher.update(&size.to_le_bytes());
        self.hasher.update(content.as_bytes());
        Ok(())
    }

    fn xattrs(&self, stat: &Stat, fd: BorrowedFd<'_>) -> Result<Xattrs, StoreError> {
        match &self.facts {
            Facts::Recorded(recorded) => {
                let mut xattrs = recorded.attributes_of(stat.st_ino).to_vec();
                xattrs.sort_unstable();
                Ok(xattrs)
            }
            Facts::Disk { .. } => disk_xattrs(fd),
        }
    }

    fn head(&mut self, kind: u8, stat: &Stat, xattrs: &[(Vec<u8>, Vec<u8>)]) {
        self.field(&[kind]);
        self.path_field();
        let mode = if kind == b'l' { 0 } else { stat.st_mode & 0o7777 };
        for number in [mode, stat.st_uid, stat.st_gid] {
            self.hasher.update(&number.to_le_bytes());
        }
        // Whole seconds: some file systems keep no more.
        let seconds = tree::mtime(stat).tv_sec;
        self.hasher.update(&seconds.to_le_bytes());
        self.hasher.update(&(xattrs.len() as u64).to_le_bytes());
        for (name, value) in xattrs {
            self.field(name);
            self.field(value);
        }
    }

    fn path_field(&mut self) {
        self.hasher.update(&(self.path.len() as u64).to_le_bytes());
        self.hasher.update(&self.path);
    }

    /// Length first, so that no two different trees give the same stream.
    fn field(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }
}

fn disk_xattrs(fd: BorrowedFd<'_>) -> Result<Xattrs, StoreError> {
    let found = tree::content_xattrs(fd).map_err(|error| StoreError::io("read the extended attributes", error))?;
    Ok(found.0)
}
