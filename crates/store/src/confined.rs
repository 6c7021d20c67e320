//! The inside of the sandbox a layer is unpacked in: what `layer-unpack` does with itself before it reads a byte.
//!
//! It is started by root. When it begins to read it is root of a user namespace only, that is nobody on the host; of
//! that root's rights it has the five that setting owners, modes and file capabilities takes; its root directory is the
//! layer; it has no network and sees no process. It stays in the mount namespace it was started in: there no right of its
//! own counts, whereas those of a new one would, and being in a changed root forbids it user namespaces below its own
//! (user_namespaces(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags};

use crate::error::StoreError;
use crate::limits::Budget;
use crate::sandbox::{Job, MESSAGE_BYTES, Outcome, Word, receive_all, send};
use crate::unpacker::{Packed, unpack_here};

/// What applying a layer takes.
const RIGHTS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP);

/// Address space. The longest zstd window is 128 MiB, and the digests of 4 million files are 500 MiB.
const MEMORY: u64 = 1 << 30;

/// Open files: two for each directory of the deepest path, and some.
const FILES: u64 = 1024;

/// The program `layer-unpack`: standard input is a socket to the [`Store`](crate::Store) that started it, with
/// [`Unpacker::Sandboxed`](crate::Unpacker::Sandboxed), for one layer.
pub fn serve() -> ExitCode {
    close_descriptors();
    let socket = io::stdin();
    let socket = socket.as_fd();
    let word = match work(socket) {
        Ok(outcome) => Word::Done(outcome),
        Err(error) => Word::Failed { kind: error.kind().into(), cause: error.to_string() },
    };
    // If nobody listens, there is nobody to tell.
    match send(socket, &word, &[]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whatever was inherited besides standard input, output and error.
#[expect(unsafe_code, reason = "close_range(2) has no safe form")]
fn close_descriptors() {
    // SAFETY: nothing of this process has opened a descriptor yet. Before Linux 5.9, which has none of the idmapped
    // mounts this needs, the call does nothing.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
    }
}

fn work(socket: BorrowedFd<'_>) -> Result<Outcome, StoreError> {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let (length, descriptors) =
        receive_all(socket, &mut buffer).map_err(|error| StoreError::io("read what to unpack", error))?;
    let job: Option<Job> = length.and_then(|length| serde_json::from_slice(&buffer[..length]).ok());
    let mut descriptors = descriptors.into_iter();
    let (Some(job), Some(folder), Some(namespace), Some(file)) =
        (job, descriptors.next(), descriptors.next(), descriptors.next())
    else {
        return Err(StoreError::bad(
            "started by something that does not know how; this program is for the image store",
        ));
    };
    let root = confine(socket, folder.as_fd(), namespace)
        .map_err(|error| StoreError::io("give up the rights that unpacking does not need", error))?;

    let Job { blob, offset, length, bytes, entries, limits } = job;
    let packed = Packed { file: File::from(file), offset, left: length, rest: descriptors.next().map(File::from) };
    let mut budget = Budget::remaining(limits, bytes, entries);
    // Nobody listening is no reason to stop here: this process is about to be killed.
    let report = &mut |done| drop(send(socket, &Word::Packed(done), &[]));
    let mark = &mut |dir: BorrowedFd<'_>| ask_to_mark(socket, dir);
    let layer = unpack_here(packed, blob, root.as_fd(), &mut budget, mark, report)?;
    Ok(Outcome {
        diff_id: layer.diff_id,
        tree: layer.tree,
        stats: layer.stats,
        marked_end: layer.marked_end,
        bytes_left: budget.bytes_left(),
        entries_left: budget.entries_left(),
    })
}

/// Has a directory marked opaque by who may.
fn ask_to_mark(socket: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> io::Result<()> {
    send(socket, &Word::Opaque, &[dir])?;
    let mut buffer = [0; 64];
    let (length, _) = receive_all(socket, &mut buffer)?;
    let answer = length.and_then(|length| serde_json::from_slice(&buffer[..length]).ok());
    match answer {
        Some(None) => Ok(()),
        Some(Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Gives up everything, and opens what is left: the layer's folder. The process has one thread, as joining a user
/// namespace demands.
fn confine(socket: BorrowedFd<'_>, folder: BorrowedFd<'_>, namespace: OwnedFd) -> io::Result<OwnedFd> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
    drop(namespace);
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    leave_the_network()?;
    rustix::process::fchdir(folder)?;
    rustix::process::chroot(".")?;
    // The descriptor of a detached mount is one that only names it.
    let root = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // With this, files have the modes they are made with.
    rustix::process::umask(Mode::empty());
    for (resource, limit) in [(Resource::Core, 0), (Resource::Nofile, FILES), (Resource::As, MEMORY)] {
        let limit = rustix::process::getrlimit(resource).maximum.map_or(limit, |most| most.min(limit));
        rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    drop_rights()?;
    // These two last: the kernel takes them back whenever the credentials change.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Should the parent have died before that, its end of the socket is closed.
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if fds[0].revents().intersects(PollFlags::HUP) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(root)
}

#[expect(unsafe_code, reason = "unshare(2) is unsafe for flags not used here")]
fn leave_the_network() -> io::Result<()> {
    // SAFETY: a new network namespace changes nothing about descriptors or memory of this process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
    Ok(())
}

fn drop_rights() -> io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if RIGHTS.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // The kernel knows no more of them.
            Err(rustix::io::Errno::INVAL) => break,
            outcome => outcome?,
        }
    }
    // Being root brings no rights back, not even by executing something.
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_no_new_privs(true)?;
    let sets = CapabilitySets { effective: RIGHTS, permitted: RIGHTS, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}
