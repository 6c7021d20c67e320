//! The container's root: the image's layers under a fresh writable layer, as one detached mount.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use runner_idmap as idmap;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, open_tree, unmount,
};

/// The longest value fsconfig(2) takes for a string.
const FSCONFIG_STRING: usize = 255;

/// Mounts an overlay of `layers` (topmost first) with a new writable layer below `scratch`, for a guest whose ids start
/// at `base`. The mount is attached nowhere; it goes away with the descriptor.
///
/// The layers are idmapped copies of their mounts. The writable layer is not, but belongs to the guest's root: with an
/// idmapped upper directory the kernel mounts read-only and reports success.
pub(crate) fn mount_overlay(layers: &[PathBuf], scratch: &Path, base: u32, image_ids: &OwnedFd) -> io::Result<OwnedFd> {
    let upper = scratch.join("upper");
    let work = scratch.join("work");
    fs::create_dir_all(scratch)?;
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    fs::set_permissions(&upper, Permissions::from_mode(0o755))?;
    chown(&upper, Some(base), Some(base))?;

    let layers = layers
        .iter()
        .map(|layer| {
            let folder = rustix::fs::open(
                layer,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            idmap::detached(&folder, Some(image_ids), 0)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let names: Vec<String> = layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();

    let mounted = match by_descriptor(&names, &upper, &work) {
        // Kernels before 6.5 know no `lowerdir+`, and their `lowerdir` is cut at 255 bytes.
        Err(Errno::INVAL) if names.join(":").len() > FSCONFIG_STRING => by_path(&names, &upper, &work, scratch)?,
        outcome => outcome?,
    };
    if rustix::fs::fstatvfs(&mounted)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the kernel mounted the overlay read-only"));
    }
    Ok(mounted)
}

fn by_descriptor(layers: &[String], upper: &Path, work: &Path) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let joined = layers.join(":");
    if joined.len() <= FSCONFIG_STRING {
        fsconfig_set_string(&context, "lowerdir", joined)?;
    } else {
        for layer in layers {
            fsconfig_set_string(&context, "lowerdir+", layer.as_str())?;
        }
    }
    fsconfig_set_string(&context, "upperdir", upper)?;
    fsconfig_set_string(&context, "workdir", work)?;
    // Nothing of this outlives the job, so nothing needs to reach the disk.
    fsconfig_set_flag(&context, "volatile")?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// By mount(2), whose options may fill a page, at a place of our own that is given up at once.
fn by_path(layers: &[String], upper: &Path, work: &Path, scratch: &Path) -> io::Result<OwnedFd> {
    let place = scratch.join("merged");
    fs::create_dir(&place)?;
    let options =
        format!("lowerdir={},upperdir={},workdir={},volatile", layers.join(":"), upper.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    mount("overlay", &place, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    let tree = open_tree(CWD, &place, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    Ok(tree?)
}
