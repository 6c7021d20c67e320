//! Started by the broker for one guest: joins its namespaces, puts the container's root together, connects to the
//! guest's bus and passes the connection back. Standard input is a socket (`SOCK_SEQPACKET`) to the broker; see
//! `runner_inside::enter` for what comes over it. The answer is one message: `ok` with the bus descriptor, or the
//! reason of the failure.
//!
//! A program of its own, because joining a user namespace needs a process with one thread, and because the process that
//! enters should have nothing of the broker's memory.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use runner_inside::enter::{CONTAINER_ROOT, MAX_MOUNTS, MAX_REQUEST, Request};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
    move_mount, open_tree,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::{Gid, Uid};
use rustix::thread::ThreadNameSpaceType;

/// The guest's bus, in the guest's own tree.
const GUEST_BUS: &str = "/run/dbus/system_bus_socket";

/// What the container sees of the guest itself, besides its own root.
const GUEST_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

fn main() -> ExitCode {
    let socket = std::io::stdin();
    match enter(socket.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // If the broker is gone there is nobody to tell.
            let _ = rustix::net::send(socket.as_fd(), reason.as_bytes(), SendFlags::NOSIGNAL);
            ExitCode::FAILURE
        }
    }
}

fn enter(socket: BorrowedFd<'_>) -> Result<(), String> {
    let (request, mut descriptors) = receive(socket)?;
    let expected = 1 + usize::from(request.furnish) + request.mounts.len();
    if descriptors.len() != expected {
        return Err(format!("expected {expected} descriptors, got {}", descriptors.len()));
    }
    let leader = descriptors.remove(0);

    let proc = own_proc().map_err(|error| format!("cannot mount a proc of our own: {error}"))?;
    join(leader.as_fd(), ThreadNameSpaceType::USER)?;
    // From here on this process is the guest's root and nothing more: what it creates belongs to the guest.
    rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))
        .and_then(|()| rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
        .map_err(|error| format!("cannot become the guest's root: {error}"))?;
    forbid_user_namespaces(&proc).map_err(|error| format!("cannot forbid user namespaces in the guest: {error}"))?;
    join(leader.as_fd(), ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::PROCESS_ID)?;
    rustix::process::chdir("/").map_err(|error| format!("cannot enter the guest's root directory: {error}"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));

    if request.furnish {
        furnish(&request, &descriptors)?;
    }
    drop(descriptors);
    connect_bus(socket)
}

/// A proc file system attached nowhere: where this host mounts its own read-only, as containers do, settings could not
/// be written.
fn own_proc() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOSUID)
}

/// A user namespace below the guest's would hand back every right the guest does not have. Which setting this is, is
/// decided by the user namespace of the process that opens it (namespaces(7)); the guest itself cannot write it.
fn forbid_user_namespaces(proc: &OwnedFd) -> rustix::io::Result<()> {
    let setting =
        rustix::fs::openat(proc, "sys/user/max_user_namespaces", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&setting, b"0").map(drop)
}

fn join(leader: BorrowedFd<'_>, namespaces: ThreadNameSpaceType) -> Result<(), String> {
    rustix::thread::move_into_thread_name_spaces(leader, namespaces)
        .map_err(|error| format!("cannot join the guest's namespaces: {error}"))
}

fn receive(socket: BorrowedFd<'_>) -> Result<(Request, Vec<OwnedFd>), String> {
    let mut bytes = vec![0; MAX_REQUEST];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MOUNTS + 2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|error| format!("cannot read the request: {error}"))?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let request = Request::decode(bytes.get(..received.bytes).unwrap_or_default())
        .map_err(|error| format!("cannot read the request: {error}"))?;
    Ok((request, descriptors))
}

/// Puts the container's root together at [`CONTAINER_ROOT`].
fn furnish(request: &Request, descriptors: &[OwnedFd]) -> Result<(), String> {
    let (root, sources) = descriptors.split_first().ok_or("no descriptor for the container's root")?;
    attach(root.as_fd(), CWD, Path::new(CONTAINER_ROOT)).map_err(|error| format!("container root: {error}"))?;
    let root = rustix::fs::open(
        CONTAINER_ROOT,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| format!("container root: {error}"))?;

    for tree in GUEST_TREES {
        // Recursive: what nspawn masks in its own /proc and /sys must stay masked here.
        let source = open_tree(
            CWD,
            tree,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE,
        )
        .map_err(|error| format!("{tree}: {error}"))?;
        mount_in(root.as_fd(), source.as_fd(), Path::new(tree), true).map_err(|error| format!("{tree}: {error}"))?;
    }
    for (mount, source) in request.mounts.iter().zip(sources) {
        let target = Path::new(std::ffi::OsStr::from_bytes(&mount.target));
        mount_in(root.as_fd(), source.as_fd(), target, mount.directory)
            .map_err(|error| format!("mount at '{}': {error}", target.display()))?;
    }
    for directory in &request.directories {
        let path = Path::new(std::ffi::OsStr::from_bytes(directory));
        mount_point(root.as_fd(), path, true).map_err(|error| format!("directory '{}': {error}", path.display()))?;
    }
    for (path, content) in &request.files {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        write_file(root.as_fd(), path, content).map_err(|error| format!("file '{}': {error}", path.display()))?;
    }
    Ok(())
}

fn attach(source: BorrowedFd<'_>, base: BorrowedFd<'_>, target: &Path) -> rustix::io::Result<()> {
    move_mount(source, "", base, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Mounts `source` at `target` inside the container, making the mount point where it is missing.
fn mount_in(root: BorrowedFd<'_>, source: BorrowedFd<'_>, target: &Path, directory: bool) -> rustix::io::Result<()> {
    let place = mount_point(root, target, directory)?;
    move_mount(source, "", place, "", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
}

/// Opens `path` below the container's root. Links are followed as a process in the container would follow them, and
/// never out of it.
fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path == Path::new("/") { Path::new(".") } else { path };
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

fn mount_point(root: BorrowedFd<'_>, target: &Path, directory: bool) -> rustix::io::Result<OwnedFd> {
    match open_in(root, target, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        outcome => return outcome,
    }
    let (parent, name) = parent_of(root, target)?;
    if directory {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        rustix::fs::openat(
            &parent,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )?;
    }
    open_in(root, target, OFlags::PATH)
}

/// The directory `path` lies in, made if need be, and the last name.
fn parent_of<'a>(root: BorrowedFd<'_>, path: &'a Path) -> rustix::io::Result<(OwnedFd, &'a std::ffi::OsStr)> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let mut walked = PathBuf::from("/");
    let mut here = open_in(root, &walked, OFlags::PATH)?;
    for part in path.parent().unwrap_or(Path::new("/")).components() {
        let std::path::Component::Normal(part) = part else { continue };
        walked.push(part);
        here = match open_in(root, &walked, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&here, part, Mode::from_raw_mode(0o755))?;
                open_in(root, &walked, OFlags::PATH | OFlags::DIRECTORY)?
            }
            outcome => outcome?,
        };
    }
    Ok((here, name))
}

/// Writes a small file of ours (`/etc/hosts` and the like), replacing a link the image may have there.
fn write_file(root: BorrowedFd<'_>, path: &Path, content: &[u8]) -> rustix::io::Result<()> {
    let (parent, name) = parent_of(root, path)?;
    match rustix::fs::unlinkat(&parent, name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let file = rustix::fs::openat(
        &parent,
        name,
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
    )?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Connects to the guest's bus and passes the connection to the broker.
fn connect_bus(socket: BorrowedFd<'_>) -> Result<(), String> {
    // A process enters a pid namespace only by its children; the bus asks for the peer's credentials, which must be
    // those of a process it can see.
    //
    // SAFETY: this process has one thread, so the child may go on as usual.
    #[expect(unsafe_code, reason = "fork(2) has no safe form")]
    let forked = unsafe { fork() }.map_err(|error| format!("cannot start a child in the guest: {error}"))?;
    match forked {
        ForkResult::Child => {
            let outcome = UnixStream::connect(GUEST_BUS)
                .map_err(|error| format!("cannot connect to the guest's bus: {error}"))
                .and_then(|bus| send_bus(socket, &bus));
            if let Err(reason) = &outcome {
                let _ = rustix::net::send(socket, reason.as_bytes(), SendFlags::NOSIGNAL);
            }
            Ok(())
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => Ok(()),
            other => Err(format!("the child in the guest ended unexpectedly: {other:?}")),
        },
    }
}

fn send_bus(socket: BorrowedFd<'_>, bus: &UnixStream) -> Result<(), String> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [bus.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"ok")], &mut control, SendFlags::NOSIGNAL)
        .map(|_| ())
        .map_err(|error| format!("cannot hand over the guest's bus: {error}"))
}
