//! Which file of the host a mount really is. A path that somebody else can change is not a name but a race, so what
//! policy allowed is opened once, without following links, and from then on only the descriptor counts.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat2};
use rustix::io::Errno;
use thiserror::Error;

/// Who owns the runner's files on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// An opened mount source.
#[derive(Debug)]
pub struct Source {
    /// `O_PATH` descriptor.
    pub file: OwnedFd,
    /// Whether it is a directory.
    pub directory: bool,
}

/// Why a mount source cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SourceError {
    /// There is nothing by that name.
    #[error("'{0}' does not exist")]
    Missing(PathBuf),
    /// A symbolic link lies on the way.
    #[error("'{0}' leads through a symbolic link")]
    Link(PathBuf),
    /// It is a device, a socket or a FIFO.
    #[error("'{0}' is neither a file nor a directory")]
    Kind(PathBuf),
    /// The kernel said no.
    #[error("'{0}': {1}")]
    Refused(PathBuf, Errno),
}

/// Opens `path` below `root`. No symbolic link is followed below `root`; `root` itself is the administrator's word.
/// With `create`, missing directories are made and belong to that owner.
pub fn open_below(root: &Path, path: &Path, create: Option<Owner>) -> Result<Source, SourceError> {
    let refused = |error| match error {
        Errno::NOENT => SourceError::Missing(path.to_owned()),
        Errno::LOOP => SourceError::Link(path.to_owned()),
        error => SourceError::Refused(path.to_owned(), error),
    };
    let relative = path.strip_prefix(root).map_err(|_| SourceError::Missing(path.to_owned()))?;
    let top =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
    let file = match open_beneath(&top, relative) {
        Err(Errno::NOENT) => match create {
            Some(owner) => make(&top, relative, owner).map_err(refused)?,
            None => return Err(SourceError::Missing(path.to_owned())),
        },
        outcome => outcome.map_err(refused)?,
    };
    let status = fstat(&file).map_err(refused)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => Ok(Source { file, directory: true }),
        FileType::RegularFile => Ok(Source { file, directory: false }),
        _ => Err(SourceError::Kind(path.to_owned())),
    }
}

fn open_beneath(top: &OwnedFd, relative: &Path) -> rustix::io::Result<OwnedFd> {
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    openat2(
        top.as_fd(),
        relative,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn make(top: &OwnedFd, relative: &Path, owner: Owner) -> rustix::io::Result<OwnedFd> {
    let mut walked = PathBuf::new();
    let mut here = open_beneath(top, &walked)?;
    for part in relative.components() {
        let std::path::Component::Normal(part) = part else { return Err(Errno::INVAL) };
        walked.push(part);
        here = match open_beneath(top, &walked) {
            Err(Errno::NOENT) => {
                mkdirat(&here, part, Mode::from_raw_mode(0o755))?;
                let made = open_beneath(top, &walked)?;
                chownat(
                    &made,
                    "",
                    Some(Uid::from_raw(owner.uid)),
                    Some(Gid::from_raw(owner.gid)),
                    AtFlags::EMPTY_PATH,
                )?;
                made
            }
            outcome => outcome?,
        };
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("source-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place).unwrap();
        place
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let root = place("link");
        fs::create_dir(root.join("real")).unwrap();
        symlink("/etc", root.join("out")).unwrap();
        symlink("real", root.join("in")).unwrap();
        for name in ["out", "out/ssl", "in"] {
            let path = root.join(name);
            assert_eq!(open_below(&root, &path, None).err(), Some(SourceError::Link(path.clone())), "{name}");
        }
        assert!(open_below(&root, &root.join("real"), None).unwrap().directory);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_lies_outside_or_is_missing_is_named() {
        let root = place("missing");
        let path = root.join("nothing");
        assert_eq!(open_below(&root, &path, None).err(), Some(SourceError::Missing(path)));
        let path = root.join("../etc");
        assert!(open_below(&root, &path, None).is_err());
        assert_eq!(open_below(&root, Path::new("/etc"), None).err(), Some(SourceError::Missing(PathBuf::from("/etc"))));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_fifo_is_not_a_source() {
        let root = place("fifo");
        let path = root.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(open_below(&root, &path, None).err(), Some(SourceError::Kind(path)));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn missing_folders_are_made_for_their_owner() {
        let root = place("make");
        let me = Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        assert!(open_below(&root, &root.join("a/b"), Some(me)).unwrap().directory);
        assert!(root.join("a/b").is_dir());
        fs::remove_dir_all(root).unwrap();
    }
}
