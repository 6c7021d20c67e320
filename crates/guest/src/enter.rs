//! Runs `guest-enter` for a guest.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use runner_inside::enter::{MAX_MOUNTS, MAX_REQUEST, Request};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, socketpair,
};

/// A guest that does not answer within this time is given up.
const DEADLINE: Duration = Duration::from_secs(10);

/// Puts the container's root together in a guest and connects to the guest's bus. Blocks for some milliseconds.
///
/// `descriptors` are the root, if one is furnished, and the sources of the mounts, as [`Request`] says.
pub(crate) fn enter(
    program: &Path,
    leader: BorrowedFd<'_>,
    base: u32,
    request: &Request,
    descriptors: &[OwnedFd],
) -> anyhow::Result<UnixStream> {
    ensure!(request.mounts.len() <= MAX_MOUNTS, "a container can have {MAX_MOUNTS} mounts at most");
    let bytes = request.encode();
    ensure!(bytes.len() <= MAX_REQUEST, "the paths of the container's mounts are too long together");

    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&ours, Timeout::Recv, Some(DEADLINE))?;
    let child = Command::new(program)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut child = Ended(child);

    let mut passed = vec![leader];
    passed.extend(descriptors.iter().map(OwnedFd::as_fd));
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MOUNTS + 2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&passed)), "too many mounts");
    rustix::net::sendmsg(&ours, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;

    let mut answer = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(&ours, &mut [IoSliceMut::new(&mut answer)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .context("the guest did not answer in time")?;
    let bus = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let text = answer.get(..received.bytes).unwrap_or_default();
    match bus {
        Some(bus) if text == b"ok" => {
            child.0.wait()?;
            // A link in the guest could have led anywhere; only the guest's own root may answer.
            let peer = socket_peercred(&bus)?;
            ensure!(peer.uid.as_raw() == base, "the guest's bus runs as user {}, not as the guest's root", peer.uid);
            Ok(UnixStream::from(bus))
        }
        _ if text.is_empty() => bail!("{} ended without an answer", program.display()),
        _ => Err(anyhow!("{}", String::from_utf8_lossy(text).into_owned())),
    }
}

/// A child that does not outlive the call.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail when it has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
