//! Removes folder trees that a guest made, whatever it made of them.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Removes a folder and everything in it; one that is not there is removed already. No link is followed.
///
/// Trees are flattened, not walked: a folder in a folder is moved up into the top folder before it is emptied. So neither
/// the stack nor the number of open files grows with the depth, which the guest chose.
pub(crate) fn remove_tree(folder: &Path) -> io::Result<()> {
    let top = match open(CWD, folder) {
        Err(Errno::NOENT) => return Ok(()),
        outcome => outcome?,
    };
    let mut moved = 0;
    loop {
        let mut removed = 0_u64;
        let mut left = None;
        for entry in Dir::read_from(&top)? {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            match remove_flat(&top, name, &mut moved) {
                Ok(count) => removed += count,
                // Perhaps a later round, when others are gone.
                Err(error) => left = Some(error),
            }
        }
        match left {
            Some(error) if removed == 0 => return Err(error.into()),
            None if removed == 0 => return fs::remove_dir(folder),
            _ => {}
        }
    }
}

/// Removes one entry of the top folder, and moves the folders in it up. How many entries were removed or moved.
fn remove_flat(top: &OwnedFd, name: &CStr, moved: &mut u64) -> rustix::io::Result<u64> {
    match unlinkat(top, name, AtFlags::empty()) {
        Ok(()) => return Ok(1),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let mut count = 0;
    let folder = open(top, name)?;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let inner = entry.file_name();
        if is_dots(inner) {
            continue;
        }
        count += 1;
        match unlinkat(&folder, inner, AtFlags::empty()) {
            Ok(()) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
        match unlinkat(&folder, inner, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => move_up(&folder, inner, top, moved)?,
            outcome => outcome?,
        }
    }
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(count + 1),
        // Entries that were not listed while others were being removed; the next round sees them.
        Err(Errno::NOTEMPTY | Errno::EXIST) if count > 0 => Ok(count),
        Err(error) => Err(error),
    }
}

fn move_up(folder: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> rustix::io::Result<()> {
    loop {
        *moved += 1;
        match renameat(folder, name, top, format!(".removing-{moved}")) {
            // Left by a removal that was interrupted.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            outcome => return outcome,
        }
    }
}

fn open(base: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(base, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn place(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("removal-test-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_tree_deeper_than_any_stack_is_removed() {
        let top = place("deep");
        fs::create_dir(&top).unwrap();
        let mut here = open(CWD, &top).unwrap();
        for _ in 0..30_000 {
            rustix::fs::mkdirat(&here, "0", Mode::RWXU).unwrap();
            here = open(&here, "0").unwrap();
        }
        drop(here);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn links_lead_nowhere_and_wide_folders_go_too() {
        let (top, outside) = (place("wide"), place("outside"));
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::create_dir_all(outside.join("kept")).unwrap();
        symlink(&outside, top.join("a/b/link")).unwrap();
        symlink(&outside, top.join("link")).unwrap();
        // Names that an interrupted removal may have left.
        fs::create_dir_all(top.join(".removing-1/x")).unwrap();
        for number in 0..3_000 {
            fs::write(top.join("a").join(number.to_string()), "").unwrap();
            fs::create_dir_all(top.join("a/b").join(number.to_string()).join("c")).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.join("kept").is_dir());
        fs::remove_dir_all(outside).unwrap();
        remove_tree(&top).unwrap();
    }
}
