//! Layers unpacked by a process of their own: `layer-unpack`, started for one layer, with no rights on this host.
//!
//! What is here runs with all rights: it prepares the user namespace, the pid namespace and an idmapped mount of the
//! layer's folder, starts the process, does for it the one thing that needs more rights, and judges what it says.
//! [`confined`](crate::confined) is the other end.
//!
//! Over a socket (`SOCK_SEQPACKET`) go messages in JSON: a [`Job`] with descriptors to the process, [`Word`]s back.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::layout::LayerStats;
use crate::limits::{Budget, Limits};
use crate::tree;
use crate::unpacker::{Packed, UnpackedLayer};

/// Longest message in either direction. Ours are below 2 KiB.
pub(crate) const MESSAGE_BYTES: usize = 16 << 10;

/// How long the process may say nothing. It speaks for each 256 KiB it has read, and reads as long as bytes come.
const SILENCE: Duration = Duration::from_secs(3600);

/// How often somebody looks whether the layer is still wanted.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// Descriptors of a [`Job`]: the layer's folder, the user namespace, the packed file, the pipe if there is one.
pub(crate) const JOB_DESCRIPTORS: usize = 4;

/// What the process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Digest and size of the packed bytes, where something states them.
    pub(crate) blob: Option<(Digest, u64)>,
    /// Where in the file the packed bytes begin, and how many of them are in the file.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// What is left of the import's budget.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) limits: Limits,
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// So many packed bytes were read.
    Packed(u64),
    /// The directory that comes along is to be marked opaque. Answered with an errno, `null` for success.
    Opaque,
    /// The last word: everything went well.
    Done(Outcome),
    /// The last word: this went wrong.
    Failed {
        kind: Kind,
        /// One line without image and layer.
        cause: String,
    },
}

/// An [`UnpackedLayer`] and what it cost.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) diff_id: Digest,
    pub(crate) tree: Digest,
    pub(crate) stats: LayerStats,
    pub(crate) marked_end: bool,
    pub(crate) bytes_left: u64,
    pub(crate) entries_left: u64,
}

/// The kinds of failure unpacking has, as in [`ErrorKind`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Kind {
    BadSource,
    DigestMismatch,
    LimitExceeded,
    NoSpace,
    Io,
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Kind {
        match kind {
            ErrorKind::BadSource => Kind::BadSource,
            ErrorKind::DigestMismatch => Kind::DigestMismatch,
            ErrorKind::LimitExceeded => Kind::LimitExceeded,
            ErrorKind::NoSpace => Kind::NoSpace,
            _ => Kind::Io,
        }
    }
}

impl From<Kind> for ErrorKind {
    fn from(kind: Kind) -> ErrorKind {
        match kind {
            Kind::BadSource => ErrorKind::BadSource,
            Kind::DigestMismatch => ErrorKind::DigestMismatch,
            Kind::LimitExceeded => ErrorKind::LimitExceeded,
            Kind::NoSpace => ErrorKind::NoSpace,
            Kind::Io => ErrorKind::Io,
        }
    }
}

/// [`unpack_layer`](crate::unpacker::unpack_layer) in a process of its own.
pub(crate) fn unpack(
    (program, base): (&Path, u32),
    packed: Packed,
    blob: Option<(Digest, u64)>,
    root: BorrowedFd<'_>,
    budget: &mut Budget,
    given_up: &dyn Fn() -> bool,
    report: &mut dyn FnMut(u64),
) -> Result<UnpackedLayer, StoreError> {
    let lines = runner_idmap::image(base);
    let namespace = runner_idmap::namespace(&lines, &lines)
        .map_err(|error| StoreError::io("make a user namespace to unpack in", error))?;
    // Nothing in a layer is ever executed or followed on this host.
    let attributes =
        libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NOSYMFOLLOW;
    let folder = runner_idmap::detached(&root, Some(&namespace), attributes)
        .map_err(|error| StoreError::io("make an idmapped mount of the layer's folder", error))?;
    let Packed { file, offset, left: length, rest } = packed;
    let file = read_only(&file).map_err(|error| StoreError::io("open the packed layer again", error))?;
    let limits = budget.limits().clone();
    let job = Job { blob, offset, length, bytes: budget.bytes_left(), entries: budget.entries_left(), limits };

    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|error| StoreError::io("make a socket", error))?;
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    std::thread::scope(|scope| {
        let (hand_over, started) = mpsc::sync_channel(1);
        let (over, is_over) = mpsc::channel::<()>();
        scope.spawn(move || {
            // The receiver waits for it.
            let _ = hand_over.send(start(command));
            // The process dies with the thread that started it (prctl(2), PR_SET_PDEATHSIG), so this one stays.
            let _ = is_over.recv();
        });
        let child = started
            .recv()
            .expect("the thread sends one result")
            .map_err(|error| StoreError::io(format_args!("start {} to unpack in", program.display()), error))?;
        let mut process = Process { child, socket: ours, program };
        let mut descriptors = vec![folder.as_fd(), namespace.as_fd(), file.as_fd()];
        descriptors.extend(rest.as_ref().map(File::as_fd));
        process.send(&job, &descriptors)?;
        // The end of the pipe, or of who reads it, must be seen by the other side.
        drop(descriptors);
        drop(rest);
        let outcome = process.converse(root, blob.map_or(u64::MAX, |(_, size)| size), given_up, report);
        drop(process);
        drop(over);
        accept(&outcome?, budget)
    })
}

/// Starts the process as the first one of a pid namespace, so that it sees no other process and what it starts dies with
/// it. The calling thread can start nothing else afterwards.
#[expect(unsafe_code, reason = "unshare(2) is unsafe for flags not used here")]
fn start(mut command: Command) -> io::Result<Child> {
    // SAFETY: a pid namespace for children changes nothing about descriptors or memory of this process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID)? };
    command.spawn()
}

/// The file, through a descriptor that cannot write: some of ours can.
fn read_only(file: &File) -> io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if flags & OFlags::RWMODE == OFlags::RDONLY {
        return file.as_fd().try_clone_to_owned();
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A running `layer-unpack`. It does not outlive this.
struct Process<'a> {
    child: Child,
    socket: OwnedFd,
    program: &'a Path,
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        // Both fail when it has been waited for. Nothing of it is left when this returns.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process<'_> {
    fn send(&mut self, job: &Job, descriptors: &[BorrowedFd<'_>]) -> Result<(), StoreError> {
        match send(self.socket.as_fd(), job, descriptors) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.ended()),
            Err(error) => Err(StoreError::io("tell the unpacking process what to do", error)),
        }
    }

    /// Listens until the last word.
    fn converse(
        &mut self,
        root: BorrowedFd<'_>,
        size: u64,
        given_up: &dyn Fn() -> bool,
        report: &mut dyn FnMut(u64),
    ) -> Result<Outcome, StoreError> {
        let mut buffer = vec![0; MESSAGE_BYTES];
        loop {
            self.listen(given_up)?;
            let (length, descriptor) = match receive(self.socket.as_fd(), &mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(self.ended()),
                Err(error) => return Err(StoreError::io("hear from the unpacking process", error)),
            };
            let Some(length) = length else { return Err(self.nonsense()) };
            if length == 0 {
                return Err(self.ended());
            }
            match serde_json::from_slice(&buffer[..length]) {
                Ok(Word::Packed(done)) => report(done.min(size)),
                Ok(Word::Opaque) => {
                    let Some(dir) = descriptor else { return Err(self.nonsense()) };
                    let errno = match mark_opaque(dir.as_fd(), root) {
                        Some(outcome) => outcome.err().map(|error| error.raw_os_error().unwrap_or(libc::EIO)),
                        None => return Err(self.nonsense()),
                    };
                    match send(self.socket.as_fd(), &errno, &[]) {
                        Ok(()) => {}
                        Err(_) => return Err(self.ended()),
                    }
                }
                Ok(Word::Done(outcome)) => return Ok(outcome),
                Ok(Word::Failed { kind, cause }) => return Err(StoreError::new(kind.into(), neutral(&cause))),
                Err(_) => return Err(self.nonsense()),
            }
        }
    }

    /// Waits for the next word, but not for ever: a layer can be made so that it takes days, and then says nothing.
    fn listen(&self, given_up: &dyn Fn() -> bool) -> Result<(), StoreError> {
        let since = Instant::now();
        while since.elapsed() < SILENCE {
            let mut socket = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut socket, Some(&LOOK_EVERY)) {
                Ok(0) | Err(Errno::INTR) if given_up() => return Err(StoreError::fetch("given up")),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(StoreError::io("wait for the unpacking process", error)),
            }
        }
        Err(StoreError::limit(format!("nothing of it was unpacked for {} minutes", SILENCE.as_secs() / 60)))
    }

    fn ended(&mut self) -> StoreError {
        let program = self.program.display();
        match self.child.wait() {
            Ok(status) => StoreError::new(ErrorKind::Io, format!("{program} ended without a result ({status})")),
            Err(error) => StoreError::io(format_args!("wait for {program}"), error),
        }
    }

    fn nonsense(&self) -> StoreError {
        let program = self.program.display();
        StoreError::new(ErrorKind::Io, format!("{program} does not keep to the protocol; is it of the same version?"))
    }
}

/// Marks a directory of the layer. `None` when it is no directory, or lies elsewhere: who sees only the layer has none.
fn mark_opaque(dir: BorrowedFd<'_>, root: BorrowedFd<'_>) -> Option<io::Result<()>> {
    let (Ok(stat), Ok(layer)) = (rustix::fs::fstat(dir), rustix::fs::fstat(root)) else { return None };
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    (directory && stat.st_dev == layer.st_dev).then(|| tree::mark_opaque(dir))
}

/// Takes the numbers over if they can be true: nothing else was left than there was, and nothing comes from nothing.
fn accept(outcome: &Outcome, budget: &mut Budget) -> Result<UnpackedLayer, StoreError> {
    let Outcome { diff_id, tree, stats, marked_end, bytes_left, entries_left } = *outcome;
    let bytes = budget.bytes_left().checked_sub(bytes_left);
    let entries = budget.entries_left().checked_sub(entries_left);
    let LayerStats { devices_dropped, fifos_dropped, xattrs_dropped, mounts_skipped, .. } = stats;
    match (bytes, entries) {
        (Some(bytes), Some(entries))
            if stats.bytes.max(xattrs_dropped) <= bytes
                && stats.entries.max(devices_dropped).max(fifos_dropped) <= entries
                && mounts_skipped == 0 =>
        {
            *budget = Budget::remaining(budget.limits().clone(), bytes_left, entries_left);
            Ok(UnpackedLayer { diff_id, stats, marked_end, tree })
        }
        _ => Err(StoreError::new(ErrorKind::Io, "the unpacking process gave a result that cannot be true")),
    }
}

/// One line of plain characters and of bounded length, whatever it was.
fn neutral(text: &str) -> String {
    text.chars().take(1024).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

/// Sends a message with descriptors.
pub(crate) fn send(socket: BorrowedFd<'_>, word: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(word)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(JOB_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives a message: its length in `buffer` (0 at the end, `None` when it does not fit), and a descriptor.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(Option<usize>, Option<OwnedFd>)> {
    let (length, mut descriptors) = receive_all(socket, buffer)?;
    Ok((length, descriptors.pop()))
}

/// [`receive`] with all descriptors.
pub(crate) fn receive_all(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(Option<usize>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(JOB_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(((!cut).then_some(received.bytes), descriptors))
}
