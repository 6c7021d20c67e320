//! Who owns the workspace after a job: the runner, whichever user of a container wrote a file.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, openat, statat};
use rustix::io::Errno;

use crate::source::Owner;

/// Deeper than any path a program could have used by name.
const MAX_DEPTH: usize = 4_096;

/// What [`restore`] did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Entries looked at.
    pub seen: u64,
    /// Entries that belong to the runner now and did not before.
    pub changed: u64,
    /// Folders that were not entered, because they are nested too deeply.
    pub skipped: u64,
}

/// Gives every entry below `folder` whose user or group is one of `foreign` to `owner`. Links are not followed and other
/// file systems not entered; a changed owner takes set-user-id bits and capabilities away (chown(2)). Must run when
/// nothing of the job lives any more.
pub fn restore(folder: &Path, owner: Owner, foreign: &dyn Fn(u32) -> bool) -> io::Result<Restored> {
    let top =
        openat(CWD, folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let device = rustix::fs::fstat(&top)?.st_dev;
    let mut restored = Restored::default();
    let mut open = vec![Dir::new(top)?];
    loop {
        let depth = open.len();
        let Some(folder) = open.last_mut() else { break };
        let Some(entry) = folder.next() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let here = folder.fd()?;
        let status = match statat(here, name, AtFlags::SYMLINK_NOFOLLOW) {
            // The runner removed it meanwhile.
            Err(Errno::NOENT) => continue,
            outcome => outcome?,
        };
        restored.seen += 1;
        if foreign(status.st_uid) || foreign(status.st_gid) {
            let uid = foreign(status.st_uid).then_some(Uid::from_raw(owner.uid));
            let gid = foreign(status.st_gid).then_some(Gid::from_raw(owner.gid));
            chownat(here, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            restored.changed += 1;
        }
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory && status.st_dev == device {
            if depth >= MAX_DEPTH {
                restored.skipped += 1;
                continue;
            }
            match descend(here, name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => open.push(Dir::new(outcome?)?),
            }
        }
    }
    Ok(restored)
}

fn descend(here: impl AsFd, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    Ok(openat(here, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

    #[test]
    fn foreign_files_come_home_and_nothing_else_changes() {
        assert!(rustix::process::geteuid().is_root(), "this test changes owners and needs root");
        let place = std::env::temp_dir().join(format!("ownership-test-{}", std::process::id()));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(place.join("a/b")).unwrap();
        let outside = std::env::temp_dir().join(format!("ownership-outside-{}", std::process::id()));
        fs::write(&outside, "").unwrap();
        lchown(&outside, Some(700_001), Some(700_001)).unwrap();
        symlink(&outside, place.join("a/link")).unwrap();
        fs::write(place.join("a/b/tool"), "").unwrap();
        fs::write(place.join("a/kept"), "").unwrap();
        lchown(place.join("a/kept"), Some(1), Some(700_009)).unwrap();
        for path in ["a/b", "a/link", "a/b/tool"] {
            lchown(place.join(path), Some(700_000), Some(700_005)).unwrap();
        }
        fs::set_permissions(place.join("a/b/tool"), fs::Permissions::from_mode(0o4755)).unwrap();

        let foreign = |id| (700_000..765_536).contains(&id);
        let restored = restore(&place, Owner { uid: 12, gid: 34 }, &foreign).unwrap();

        assert_eq!(restored, Restored { seen: 5, changed: 4, skipped: 0 });
        let owner = |path: &str| {
            let status = fs::symlink_metadata(place.join(path)).unwrap();
            (status.uid(), status.gid())
        };
        assert_eq!(owner("a/b"), (12, 34));
        assert_eq!(owner("a/link"), (12, 34));
        assert_eq!(owner("a/b/tool"), (12, 34));
        assert_eq!(owner("a/kept"), (1, 34));
        assert_eq!(fs::symlink_metadata(place.join("a/b/tool")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(&outside).unwrap().uid(), 700_001);
        fs::remove_dir_all(&place).unwrap();
        fs::remove_file(&outside).unwrap();
    }
}
