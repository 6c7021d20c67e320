//! Working on a directory tree through handles: one component at a time, never through a symbolic link or into another
//! mount.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, RawDir, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::digest::Hasher;

/// Highest id a guest has; its user namespace maps 0 to this and nothing else.
pub(crate) const MAX_ID: u32 = 65_535;

/// Extended attributes: names and values.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The attribute by which overlayfs knows that a directory hides the ones below it.
pub(crate) const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Opens `path` below `dir` with no symbolic link on the way, no way out and no other mount.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { b"." } else { path };
    rustix::io::retry_on_intr(|| {
        rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
    })
}

/// Opens a directory below `dir` for reading and for changing what is in it.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_beneath(dir, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Names in a directory without `.` and `..`, in the file system's order.
pub(crate) fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Removes `name` and everything below it. Absent is fine, another mount is not.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error),
    }
    let dir = match open_dir(parent, name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    // In portions: a directory of a million names must not be held in memory, and may be read only partly while it shrinks.
    // On the heap, since this function calls itself as deep as the tree goes.
    let mut buffer = Vec::<u8>::with_capacity(8192);
    loop {
        let mut portion = Vec::new();
        rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(0))?;
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                portion.push(name.to_vec());
            }
            if portion.len() == 1024 {
                break;
            }
        }
        if portion.is_empty() {
            break;
        }
        for name in portion {
            remove(dir.as_fd(), &name)?;
        }
    }
    drop(dir);
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// `stat` of a name without following it; `None` when absent.
pub(crate) fn stat_name(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether this is overlayfs's whiteout: a character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice && stat.st_rdev == 0
}

/// Modification time as `(seconds, nanoseconds)`.
pub(crate) fn mtime(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ }
}

/// Device and inode: what a file is, whatever it is called.
#[expect(clippy::unnecessary_cast, reason = "the types differ between architectures")]
pub(crate) fn inode(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// Timestamps that set the modification time and use it for the access time too.
pub(crate) fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

/// Owner, mode and time of an entry, and the extended attributes that were let through.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: Timespec,
    pub(crate) xattrs: Xattrs,
}

impl Metadata {
    /// Puts everything on an open file or directory of which `stat` is known, and gives the attributes it has now: all
    /// but those that the file system cannot hold. The owner comes first, because a change of owner clears set-id bits
    /// and capabilities.
    pub(crate) fn apply(&self, fd: BorrowedFd<'_>, stat: &Stat) -> io::Result<Xattrs> {
        let mode = self.mode & 0o7777;
        if (stat.st_uid, stat.st_gid) != (self.uid, self.gid) {
            rustix::fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
        } else if stat.st_mode & 0o7777 != mode {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
        }
        let mut held = Vec::new();
        for (name, value) in &self.xattrs {
            match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => held.push((name.clone(), value.clone())),
                Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => {}
                Err(error) => return Err(error.into()),
            }
        }
        rustix::fs::futimens(fd, &times(self.mtime))?;
        Ok(held)
    }

    /// The same for a symbolic link, which has neither mode nor attributes of ours.
    pub(crate) fn apply_to_symlink(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::utimensat(dir, name, &times(self.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}

/// Marks a directory opaque, which takes `CAP_SYS_ADMIN` in the first user namespace.
pub(crate) fn mark_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

/// An attribute in the form in which the kernel gives it back: capabilities with root id 0 read as version 2, however
/// they are stored (capabilities(7)).
pub(crate) fn plain_xattr((name, mut value): (Vec<u8>, Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
    if name == b"security.capability" && value.len() == 24 {
        value.truncate(20);
        value[3] = 2;
    }
    (name, value)
}

/// Whether an image may bring this attribute. `trusted.*` and `user.overlay.*` steer overlayfs, the rest of `security.*`
/// steers the host's security modules.
pub(crate) fn may_keep_xattr(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"security.capability" => is_plain_capability(value),
        _ => name.starts_with(b"user.") && name.len() > 5 && name.len() <= 255 && !name.starts_with(b"user.overlay."),
    }
}

/// `struct vfs_cap_data` of version 2, or version 3 with root id 0, which says the same. Another root id would name a
/// user namespace of the machine that built the image.
fn is_plain_capability(value: &[u8]) -> bool {
    let Some((magic, rest)) = value.split_first_chunk::<4>() else { return false };
    match (u32::from_le_bytes(*magic) >> 24, rest.len()) {
        (2, 16) => true,
        (3, 20) => rest[16..] == [0; 4],
        _ => false,
    }
}

/// Names and values of the attributes of an open file that belong to its content: those an image may bring and the
/// overlay mark. Second: how many others there are, not counting what the host's own policy puts on every file.
pub(crate) fn content_xattrs(fd: BorrowedFd<'_>) -> rustix::io::Result<(Xattrs, u64)> {
    let mut list = Vec::new();
    for name in xattr_names(fd)? {
        let mut value = vec![0; 1024];
        loop {
            match rustix::fs::fgetxattr(fd, name.as_slice(), &mut value) {
                Ok(length) => {
                    value.truncate(length);
                    list.push((name, value));
                    break;
                }
                Err(Errno::RANGE) if value.len() < 1 << 16 => value.resize(value.len() * 8, 0),
                Err(Errno::NODATA) => break,
                Err(error) => return Err(error),
            }
        }
    }
    list.sort();
    let before = list.len();
    let host = list.iter().filter(|(name, _)| name.starts_with(b"security.") && name != b"security.capability").count();
    list.retain(|(name, value)| name == OPAQUE.to_bytes() || may_keep_xattr(name, value));
    let dropped = before - list.len() - host;
    Ok((list, dropped as u64))
}

/// Names of all extended attributes; none where the file system has none.
pub(crate) fn xattr_names(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = vec![0u8; 1024];
    let length = loop {
        match rustix::fs::flistxattr(fd, &mut names) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < 1 << 20 => names.resize(names.len() * 8, 0),
            Err(Errno::OPNOTSUPP) => break 0,
            Err(error) => return Err(error),
        }
    };
    Ok(names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Bytes moved at a time, and the size from which a run of zeros becomes a hole.
pub(crate) const BUFFER: usize = 128 << 10;

static ZEROS: [u8; BUFFER] = [0; BUFFER];

/// Which side of a copy failed.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// Reading the source.
    Read(io::Error),
    /// Writing into the store.
    Write(io::Error),
}

/// Copies exactly `length` bytes to `offset` of `file`, leaving holes where the source has a whole buffer of zeros, and
/// hashes them. Gives the offset behind the last byte written; the caller sets the file's length if it is beyond.
pub(crate) fn copy_bytes(
    source: &mut dyn Read,
    file: &File,
    mut offset: u64,
    length: u64,
    hasher: &mut Hasher,
    buffer: &mut [u8; BUFFER],
) -> Result<u64, CopyError> {
    let mut left = length;
    let mut written = 0;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let chunk = &mut buffer[..want];
        // Full buffers, so that whether a hole is left does not depend on how the source splits its reads.
        source.read_exact(chunk).map_err(CopyError::Read)?;
        hasher.update(chunk);
        offset += want as u64;
        left -= want as u64;
        let hole = want >= 4096 && *chunk == ZEROS[..want];
        if !hole {
            file.write_all_at(chunk, offset - want as u64).map_err(CopyError::Write)?;
            written = offset;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_attributes_are_kept() {
        let v2 = [0u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut v3 = [0u8; 24];
        v3[3] = 3;
        let mut v3_foreign = v3;
        v3_foreign[20] = 7;
        let cases: [(&[u8], &[u8], bool); 11] = [
            (b"user.mime", b"x", true),
            (b"user.", b"x", false),
            (b"user.overlay.opaque", b"y", false),
            (b"trusted.overlay.opaque", b"y", false),
            (b"trusted.overlay.redirect", b"/etc", false),
            (b"security.selinux", b"x", false),
            (b"security.ima", b"x", false),
            (b"security.capability", &v2, true),
            (b"security.capability", &v3, true),
            (b"security.capability", &v3_foreign, false),
            (b"security.capability", b"short", false),
        ];
        for (name, value, kept) in cases {
            assert_eq!(may_keep_xattr(name, value), kept, "{} {value:?}", name.escape_ascii());
        }
        let name = b"security.capability".to_vec();
        v3[4..8].copy_from_slice(&v2[4..8]);
        assert_eq!(plain_xattr((name.clone(), v3.to_vec())), (name.clone(), v2.to_vec()));
        assert_eq!(plain_xattr((name.clone(), v2.to_vec())), (name, v2.to_vec()));
    }
}
