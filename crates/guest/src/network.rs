//! The network namespace of a guest. The host owns it: the guest's root can neither change its links nor open raw
//! sockets in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A new network namespace whose loopback device is up.
pub(crate) fn namespace() -> io::Result<OwnedFd> {
    // A thread of its own enters the namespace and is then thrown away; no other thread ever sees it.
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(|| {
            enter_new_namespace()?;
            raise_loopback()?;
            Ok(OwnedFd::from(File::open("/proc/thread-self/ns/net")?))
        })?
        .join()
        .map_err(|_| io::Error::other("the thread that makes network namespaces panicked"))?
}

#[expect(unsafe_code, reason = "unshare(2) is unsafe for flags that part descriptor tables; this one does not")]
fn enter_new_namespace() -> rustix::io::Result<()> {
    // SAFETY: NEWNET only changes which network the calling thread sees.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}

#[expect(unsafe_code, reason = "no library has SIOCSIFFLAGS")]
fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        // Any socket takes this ioctl; this family the broker's unit allows.
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(libc::IFF_UP).expect("IFF_UP is 1"),
        },
    };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = libc::c_char::try_from(*byte).expect("ASCII");
    }
    // SAFETY: netdevice(7): the request is an initialised ifreq that lives through the call.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
