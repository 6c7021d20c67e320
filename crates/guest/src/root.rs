//! A container's root before it is in a guest, and what the host reads from it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Files of an image that the host reads are small; what is larger is not what it pretends to be.
const MAX_FILE: usize = 1 << 20;

/// The loaders of glibc by which an image is known to use it.
const GLIBC_LOADERS: [&str; 3] =
    ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux-armhf.so.3"];

/// The container's root: a mount that is attached nowhere yet.
#[derive(Debug)]
pub struct Root {
    pub(crate) mount: OwnedFd,
}

/// What an image says about itself, as bytes nobody has judged yet.
#[derive(Debug, Default)]
pub struct ImageFacts {
    /// `/etc/passwd`, if the image has one.
    pub passwd: Vec<u8>,
    /// `/etc/group`, if the image has one.
    pub group: Vec<u8>,
    /// Every file that `/etc/*release*` names.
    pub releases: Vec<Vec<u8>>,
    /// Whether there is a loader of musl.
    pub musl_loader: bool,
    /// Whether there is a loader of glibc.
    pub glibc_loader: bool,
}

impl Root {
    /// Reads what is needed to know the image's users and its C library. Links are resolved inside the image; FIFOs,
    /// devices and oversized files count as missing.
    pub fn facts(&self) -> ImageFacts {
        ImageFacts {
            passwd: self.read("/etc/passwd").unwrap_or_default(),
            group: self.read("/etc/group").unwrap_or_default(),
            releases: self
                .names("/etc", |name| name.contains("release"))
                .into_iter()
                .filter_map(|name| self.read(&format!("/etc/{name}")))
                .collect(),
            musl_loader: !self.names("/lib", |name| name.starts_with("ld-musl-")).is_empty(),
            glibc_loader: GLIBC_LOADERS.iter().any(|loader| self.open(loader, OFlags::PATH).is_ok()),
        }
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        openat2(
            self.mount.as_fd(),
            Path::new(path),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
        )
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        // NONBLOCK: opening a FIFO must not wait for a writer.
        let file = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).ok()?;
        let status = rustix::fs::fstat(&file).ok()?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return None;
        }
        let size = usize::try_from(status.st_size).ok().filter(|size| *size <= MAX_FILE)?;
        let mut content = vec![0; size];
        let mut filled = 0;
        while let Some(rest) = content.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(&file, rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        content.truncate(filled);
        Some(content)
    }

    fn names(&self, folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let Ok(folder) = self.open(folder, OFlags::RDONLY | OFlags::DIRECTORY) else { return Vec::new() };
        let Ok(entries) = Dir::new(folder) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().ok().filter(|name| wanted(name)).map(str::to_owned))
            .take(64)
            .collect()
    }
}
