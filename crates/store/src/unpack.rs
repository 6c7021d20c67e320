//! Applying the entries of a layer to a folder of its own.
//!
//! Nothing here trusts a path. A parent is opened in one `openat2` call that takes no symbolic link; only when that fails
//! is the path walked one component at a time, and then links are resolved by us with the layer's root as `/`, so `..` and
//! absolute targets end at that root. The folder is ours alone (0700 above it, and locked), so nothing changes under us.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec};
use rustix::io::Errno;

use crate::digest::{Digest, Hasher};
use crate::entries::{Entries, Entry, Kind};
use crate::error::{StoreError, quoted};
use crate::layout::LayerStats;
use crate::limits::{Budget, Limits};
use crate::tree::{self, BUFFER, CopyError, MAX_ID, Metadata};
use crate::tree_digest::{Recorded, recorded_digest};

/// Symbolic links followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// Directories opened one by one, for each entry on average and beyond that. Forty links to the longest of targets are 30,000
/// of them for one entry, and with millions of entries a small layer would take days.
const STEPS_OF_AN_ENTRY: u64 = 64;
const STEPS_FREE: u64 = 1 << 18;

/// Prefix of a whiteout's name (OCI image-spec, `layer.md`).
const WHITEOUT: &[u8] = b".wh.";

/// Prefix of AUFS's own files, of which only the opaque mark means something.
const AUFS: &[u8] = b".wh..wh.";

/// Marks a directory opaque. That takes a right nobody has in a user namespace, so in a sandbox somebody else does it.
pub(crate) type MarkOpaque<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>;

/// What unpacking gave.
pub(crate) struct Unpacked {
    pub(crate) stats: LayerStats,
    /// Whether the archive had its end mark.
    pub(crate) marked_end: bool,
    /// Tree digest of what was unpacked.
    pub(crate) tree: Digest,
}

/// Unpacks a tar stream, up to its end mark, into `root`.
pub(crate) fn unpack(
    reader: &mut impl Read,
    root: BorrowedFd<'_>,
    budget: &mut Budget,
    mark: MarkOpaque<'_>,
) -> Result<Unpacked, StoreError> {
    let stat = rustix::fs::fstat(root).map_err(|error| StoreError::io("look at the new layer", error))?;
    let mut entries = Entries::new(reader);
    let mut unpacker = Unpacker {
        root,
        root_inode: stat.st_ino,
        parent: None,
        way_changed: false,
        budget,
        mark,
        recorded: Recorded::default(),
        stats: LayerStats::default(),
        steps: 0,
        buffer: Box::new([0; BUFFER]),
    };
    while let Some(entry) = entries.next()? {
        unpacker.budget.spend_entry()?;
        unpacker.apply(&entry, &mut entries).map_err(|error| error.in_entry(&entry.path))?;
        unpacker.stats.entries += 1;
    }
    unpacker.leave()?;
    let tree = recorded_digest(root, &unpacker.recorded)?;
    Ok(Unpacked { stats: unpacker.stats, marked_end: entries.marked_end(), tree })
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    root_inode: u64,
    /// The directory of the entry before; archives list a directory's entries together.
    parent: Option<Parent>,
    /// Something was removed since `parent` was opened.
    way_changed: bool,
    budget: &'a mut Budget,
    mark: MarkOpaque<'a>,
    recorded: Recorded,
    stats: LayerStats,
    /// Directories opened one by one so far.
    steps: u64,
    buffer: Box<[u8; BUFFER]>,
}

/// An open directory entries are put into. Each of them changes its modification time, so that is put back on leaving.
struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
    mtime: Timespec,
}

impl Unpacker<'_> {
    fn apply<R: Read>(&mut self, entry: &Entry, content: &mut Entries<R>) -> Result<(), StoreError> {
        let path = components(&entry.path, self.budget.limits())?;
        let Some((&name, above)) = path.split_last() else {
            return self.apply_root(entry);
        };
        if above.iter().any(|component| component.starts_with(WHITEOUT)) {
            return Err(StoreError::bad("lies below the name of a whiteout"));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.enter(above)?;
            return self.whiteout(name, hidden);
        }
        let metadata = self.metadata(entry)?;
        if entry.kind == Kind::HardLink {
            return self.hard_link(entry, above, name);
        }
        if entry.kind == Kind::Directory {
            // The directory may be the one we are in; its time must not be put back over the new one.
            self.leave()?;
        }
        self.enter(above)?;
        match entry.kind {
            Kind::File => self.file(entry, name, &metadata, content),
            Kind::Directory => self.directory(name, &metadata),
            Kind::Symlink => self.symlink(entry, name, &metadata),
            Kind::Device => {
                self.stats.devices_dropped += 1;
                self.clear(name)
            }
            Kind::Fifo => {
                self.stats.fifos_dropped += 1;
                self.clear(name)
            }
            Kind::HardLink => unreachable!("returned above"),
        }
    }

    /// `./` and `/`: the root itself, which can only be a directory.
    fn apply_root(&mut self, entry: &Entry) -> Result<(), StoreError> {
        if entry.kind != Kind::Directory {
            return Err(StoreError::bad("replaces the root by something that is no directory"));
        }
        self.leave()?;
        let metadata = self.metadata(entry)?;
        let stat = rustix::fs::fstat(self.root).map_err(|error| StoreError::io("look at the new layer", error))?;
        self.dress_directory(self.root, &stat, &metadata)
    }

    fn metadata(&mut self, entry: &Entry) -> Result<Metadata, StoreError> {
        let id = |what: &str, id: u64| {
            u32::try_from(id)
                .ok()
                .filter(|&id| id <= MAX_ID)
                .ok_or_else(|| StoreError::bad(format!("{what} {id} is above {MAX_ID}, the highest id a guest has")))
        };
        let (seconds, nanos) = entry.mtime;
        let kept = entry.xattrs.iter().filter(|(name, value)| tree::may_keep_xattr(name, value));
        let xattrs: Vec<_> = kept.cloned().map(tree::plain_xattr).collect();
        self.stats.xattrs_dropped += (entry.xattrs.len() - xattrs.len()) as u64;
        Ok(Metadata {
            uid: id("uid", entry.uid)?,
            gid: id("gid", entry.gid)?,
            mode: entry.mode,
            mtime: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
            xattrs,
        })
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        name: &[u8],
        metadata: &Metadata,
        content: &mut Entries<R>,
    ) -> Result<(), StoreError> {
        // The stream's own cap covers what is stored; holes cost nothing here, but much to whoever copies the file.
        self.budget.spend_bytes(entry.size.saturating_sub(entry.stored))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Mostly these are the bits it keeps. Nobody else can get here.
        let mode = Mode::from_raw_mode(metadata.mode & 0o777);
        let create = |dir: BorrowedFd<'_>| rustix::fs::openat(dir, name, flags, mode);
        let fd = match create(self.here()) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                create(self.here())
            }
            other => other,
        };
        let file = File::from(fd.map_err(|error| StoreError::io("create the file", error))?);
        let stat = rustix::fs::fstat(&file).map_err(|error| StoreError::io("look at the file", error))?;
        let whole = [(0, entry.size)];
        let pieces = entry.sparse.as_deref().unwrap_or(&whole);
        let mut hasher = Hasher::default();
        let (mut end, mut written) = (0, 0);
        for &(offset, length) in pieces {
            hasher.update_zeros(offset - end);
            end = offset + length;
            let last = tree::copy_bytes(content, &file, offset, length, &mut hasher, &mut self.buffer);
            let last = last.map_err(|error| match error {
                CopyError::Read(error) => StoreError::io("read the archive", error),
                CopyError::Write(error) => StoreError::io("write the file", error),
            })?;
            written = written.max(last);
        }
        if written < entry.size {
            file.set_len(entry.size).map_err(|error| StoreError::io("set the size of the file", error))?;
        }
        if entry.size > 0 {
            hasher.update_zeros(entry.size - end);
            self.recorded.content(stat.st_ino, hasher.finish());
        }
        self.stats.bytes += entry.size;
        self.dress(file.as_fd(), &stat, metadata)
    }

    /// Owner, mode, attributes and time of a file or directory.
    fn dress(&mut self, fd: BorrowedFd<'_>, stat: &Stat, metadata: &Metadata) -> Result<(), StoreError> {
        let held = metadata.apply(fd, stat).map_err(|error| StoreError::io("set owner and mode", error))?;
        self.stats.xattrs_dropped += (metadata.xattrs.len() - held.len()) as u64;
        self.recorded.attributes(stat.st_ino, held);
        Ok(())
    }

    fn directory(&mut self, name: &[u8], metadata: &Metadata) -> Result<(), StoreError> {
        let mode = Mode::from_raw_mode(metadata.mode & 0o777);
        let failed = |error: Errno| StoreError::io("create the directory", error);
        let (new, opaque) = match rustix::fs::mkdirat(self.here(), name, mode) {
            Ok(()) => (true, false),
            Err(Errno::EXIST) => {
                let stat = tree::stat_name(self.here(), name).map_err(failed)?;
                if stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
                    (false, false)
                } else {
                    // This layer had something else here before (a whiteout, a file): what lower layers have of that
                    // name stays hidden.
                    self.clear(name)?;
                    rustix::fs::mkdirat(self.here(), name, mode).map_err(failed)?;
                    (true, true)
                }
            }
            Err(error) => return Err(failed(error)),
        };
        let dir = tree::open_dir(self.here(), name).map_err(|error| StoreError::io("open the directory", error))?;
        let stat = rustix::fs::fstat(&dir).map_err(|error| StoreError::io("look at the directory", error))?;
        if new {
            self.recorded.attributes(stat.st_ino, Vec::new());
        }
        if opaque {
            self.mark_opaque(dir.as_fd(), stat.st_ino)?;
        }
        self.dress_directory(dir.as_fd(), &stat, metadata)
    }

    /// A directory listed twice has the attributes of the last entry, not of both; that it is opaque stays.
    fn dress_directory(&mut self, dir: BorrowedFd<'_>, stat: &Stat, metadata: &Metadata) -> Result<(), StoreError> {
        for (name, _) in self.recorded.attributes_of(stat.st_ino) {
            if name != tree::OPAQUE.to_bytes() {
                rustix::fs::fremovexattr(dir, name.as_slice())
                    .map_err(|error| StoreError::io("set attributes of the directory", error))?;
            }
        }
        let opaque = self.recorded.is_opaque(stat.st_ino);
        self.dress(dir, stat, metadata)?;
        if opaque {
            self.recorded.opaque(stat.st_ino);
        }
        Ok(())
    }

    fn mark_opaque(&mut self, dir: BorrowedFd<'_>, inode: u64) -> Result<(), StoreError> {
        if !self.recorded.is_opaque(inode) {
            (self.mark)(dir).map_err(|error| StoreError::io("mark the directory opaque", error))?;
            self.recorded.opaque(inode);
        }
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, name: &[u8], metadata: &Metadata) -> Result<(), StoreError> {
        check_link_text(&entry.link, self.budget.limits())?;
        let create = |dir: BorrowedFd<'_>| rustix::fs::symlinkat(entry.link.as_slice(), dir, name);
        let created = match create(self.here()) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                create(self.here())
            }
            other => other,
        };
        created.map_err(|error| StoreError::io("create the symbolic link", error))?;
        metadata
            .apply_to_symlink(self.here(), name)
            .map_err(|error| StoreError::io("set the owner of the link", error))?;
        self.stats.xattrs_dropped += metadata.xattrs.len() as u64;
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, above: &[&[u8]], name: &[u8]) -> Result<(), StoreError> {
        let missing = || StoreError::bad(format!("hard link to {}, which is not in this layer", quoted(&entry.link)));
        let target = components(&entry.link, self.budget.limits())
            .map_err(|error| error.in_file(format_args!("hard link to {}", quoted(&entry.link))))?;
        let Some((&target_name, target_above)) = target.split_last() else { return Err(missing()) };
        self.enter(above)?;
        let target_dir = self.walk(target_above, false)?.ok_or_else(missing)?;
        let failed = |error: Errno| StoreError::io("create the hard link", error);
        let stat = tree::stat_name(target_dir.as_fd(), target_name).map_err(failed)?.ok_or_else(missing)?;
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink) {
            let target = quoted(&entry.link);
            return Err(StoreError::bad(format!("hard link to {target}, which is neither a file nor a symbolic link")));
        }
        let existing = tree::stat_name(self.here(), name).map_err(failed)?;
        if existing.is_some_and(|existing| (existing.st_dev, existing.st_ino) == (stat.st_dev, stat.st_ino)) {
            // The same file already; removing it first could remove the only name it has.
            return Ok(());
        }
        if existing.is_some() {
            // Removing a directory in the way may take the target with it; then the link fails, as it must.
            self.clear(name)?;
        }
        rustix::fs::linkat(target_dir, target_name, self.here(), name, AtFlags::empty()).map_err(failed)
    }

    fn whiteout(&mut self, name: &[u8], hidden: &[u8]) -> Result<(), StoreError> {
        let failed = |error: Errno| StoreError::io("create the whiteout", error);
        if name == b".wh..wh..opq" {
            let dir = self.duplicate_here()?;
            let inode = rustix::fs::fstat(&dir).map_err(failed)?.st_ino;
            if inode == self.root_inode {
                // overlayfs merges the roots of all layers whatever marks they have; whoever stacks them must stop here.
                self.stats.opaque_root = true;
                return Ok(());
            }
            return self.mark_opaque(dir.as_fd(), inode);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(StoreError::bad("whiteout of no name, `.` or `..`"));
        }
        let dir = self.here();
        match tree::stat_name(dir, hidden).map_err(failed)? {
            None => {
                let mode = Mode::from_raw_mode(0);
                rustix::fs::mknodat(dir, hidden, FileType::CharacterDevice, mode, 0).map_err(failed)
            }
            // A whiteout hides what lower layers have, not what this layer brings itself, in whatever order they come.
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let dir = tree::open_dir(dir, hidden).map_err(failed)?;
                self.mark_opaque(dir.as_fd(), stat.st_ino)
            }
            Some(_) => Ok(()),
        }
    }

    /// Removes what this layer has at `name` so far; a later entry wins.
    fn clear(&mut self, name: &[u8]) -> Result<(), StoreError> {
        tree::remove(self.here(), name)
            .map_err(|error| StoreError::io("replace an earlier entry of the same name", error))?;
        // The way to the current directory may have led through what is gone now.
        self.way_changed = true;
        Ok(())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.parent.as_ref().map_or(self.root, |parent| parent.fd.as_fd())
    }

    /// [`here`](Self::here), for work that also changes what is known of it.
    fn duplicate_here(&self) -> Result<OwnedFd, StoreError> {
        self.here().try_clone_to_owned().map_err(|error| StoreError::io("duplicate a handle", error))
    }

    /// Makes `path` the current directory, with the directories of it that are missing.
    fn enter(&mut self, path: &[&[u8]]) -> Result<(), StoreError> {
        let joined = path.join(&b'/');
        if !self.way_changed && self.parent.as_ref().is_some_and(|parent| parent.path == joined) {
            return Ok(());
        }
        self.leave()?;
        self.way_changed = false;
        let fd = match tree::open_dir(self.root, &joined) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
                self.walk(path, true)?.expect("a walk that creates ends in a directory")
            }
            Err(error) => return Err(StoreError::io("open the directory above it", error)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|error| StoreError::io("look at the directory above it", error))?;
        self.parent = Some(Parent { path: joined, fd, mtime: tree::mtime(&stat) });
        Ok(())
    }

    /// Puts the modification time of the current directory back.
    fn leave(&mut self) -> Result<(), StoreError> {
        match self.parent.take() {
            Some(parent) => rustix::fs::futimens(&parent.fd, &tree::times(parent.mtime))
                .map_err(|error| StoreError::io("set the time of a directory", error)),
            None => Ok(()),
        }
    }

    /// Opens a directory component by component. Symbolic links are followed with the layer's root as `/`. When
    /// `create`, what is missing is made and what is in the way is replaced; otherwise either gives `None`.
    fn walk(&mut self, path: &[&[u8]], create: bool) -> Result<Option<OwnedFd>, StoreError> {
        let failed = |error: Errno| StoreError::io("open the directory above it", error);
        let depth = self.budget.limits().depth;
        // Taken from the end.
        let mut todo: Vec<Vec<u8>> = path.iter().rev().map(|component| component.to_vec()).collect();
        let mut opened: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            self.steps += 1;
            if self.steps > STEPS_FREE + STEPS_OF_AN_ENTRY * self.stats.entries {
                return Err(StoreError::limit("too many symbolic links above it and the entries before it"));
            }
            if component == b".." {
                opened.pop();
                continue;
            }
            if opened.len() >= depth {
                return Err(StoreError::limit(format!("more than {depth} directories deep")));
            }
            let here = opened.last().map_or(self.root, OwnedFd::as_fd);
            match tree::open_dir(here, &component) {
                Ok(dir) => opened.push(dir),
                Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {
                    let stat = tree::stat_name(here, &component).map_err(failed)?;
                    let kind = stat.map(|stat| FileType::from_raw_mode(stat.st_mode));
                    if kind == Some(FileType::Symlink) {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(StoreError::bad("too many symbolic links above it"));
                        }
                        let target = rustix::fs::readlinkat(here, component.as_slice(), Vec::new()).map_err(failed)?;
                        if target.to_bytes().starts_with(b"/") {
                            opened.clear();
                        }
                        todo.extend(
                            target
                                .to_bytes()
                                .split(|&byte| byte == b'/')
                                .filter(|part| !matches!(*part, b"" | b"."))
                                .rev()
                                .map(<[u8]>::to_vec),
                        );
                        continue;
                    }
                    if !create {
                        return Ok(None);
                    }
                    let before = tree::mtime(&rustix::fs::fstat(here).map_err(failed)?);
                    if kind.is_some() {
                        tree::remove(here, &component).map_err(failed)?;
                    }
                    let dir = make_dir(here, &component)?;
                    let inode = rustix::fs::fstat(&dir).map_err(failed)?.st_ino;
                    self.recorded.attributes(inode, Vec::new());
                    if kind.is_some() {
                        self.mark_opaque(dir.as_fd(), inode)?;
                    }
                    rustix::fs::futimens(here, &tree::times(before)).map_err(failed)?;
                    opened.push(dir);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        match opened.pop() {
            Some(dir) => Ok(Some(dir)),
            None => tree::open_dir(self.root, b"").map(Some).map_err(failed),
        }
    }
}

/// Makes a directory no entry has described yet: root's, 0755, time zero.
pub(crate) fn make_dir(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, StoreError> {
    let failed = |error: Errno| StoreError::io("create the directory", error);
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
    let dir = tree::open_dir(parent, name).map_err(failed)?;
    let stat = rustix::fs::fstat(&dir).map_err(failed)?;
    let plain = Metadata { uid: 0, gid: 0, mode: 0o755, mtime: Timespec { tv_sec: 0, tv_nsec: 0 }, xattrs: Vec::new() };
    plain.apply(dir.as_fd(), &stat).map_err(|error| StoreError::io("create the directory", error))?;
    Ok(dir)
}

/// Splits a path of an archive. A leading `/` means the image's root, as in every OCI tool; `..` is refused.
pub(crate) fn components<'p>(path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, StoreError> {
    if path.len() > limits.path_bytes {
        return Err(StoreError::limit(format!("path of {} bytes", path.len())));
    }
    if path.is_empty() {
        return Err(StoreError::bad("empty path"));
    }
    if path.contains(&0) {
        return Err(StoreError::bad("NUL byte in the path"));
    }
    let mut parts = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(StoreError::bad("`..` in the path")),
            _ if part.len() > 255 => return Err(StoreError::limit("name of more than 255 bytes")),
            _ => parts.push(part),
        }
    }
    if parts.len() > limits.depth + 1 {
        return Err(StoreError::limit(format!("more than {} directories deep", limits.depth)));
    }
    Ok(parts)
}

fn check_link_text(target: &[u8], limits: &Limits) -> Result<(), StoreError> {
    match target {
        b"" => Err(StoreError::bad("symbolic link without a target")),
        _ if target.contains(&0) => Err(StoreError::bad("NUL byte in the target of a symbolic link")),
        _ if target.len() > limits.path_bytes => {
            Err(StoreError::limit(format!("target of a symbolic link of {} bytes", target.len())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_split_or_refused() {
        let split = |path: &str| components(path.as_bytes(), &Limits::default()).map(|parts| parts.join(&b'|'));
        for (path, expected) in
            [("a/b", "a|b"), ("./a", "a"), ("/etc/x", "etc|x"), ("a//b/", "a|b"), ("./", ""), ("a\nb", "a\nb")]
        {
            assert_eq!(split(path).unwrap(), expected.as_bytes(), "{path:?}");
        }
        let long = "x".repeat(256);
        let deep = "d/".repeat(300);
        for (path, expected) in
            [("..", "`..`"), ("a/../b", "`..`"), ("a\0b", "NUL"), ("", "empty"), (&long, "255"), (&deep, "255")]
        {
            let error = split(path).unwrap_err().to_string();
            assert!(error.contains(expected), "{path:?}: {error}");
        }
    }

    fn hostile_path() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(b'.'), Just(b'/'), Just(0), any::<u8>()];
        proptest::collection::vec(byte, 0..40)
    }

    proptest! {
        #[test]
        fn no_component_can_leave_a_directory(path in hostile_path()) {
            for part in components(&path, &Limits::default()).unwrap_or_default() {
                prop_assert!(!matches!(part, b"" | b"." | b".."), "{:?}", part);
                prop_assert!(!part.contains(&b'/') && !part.contains(&0), "{:?}", part);
            }
        }
    }
}
