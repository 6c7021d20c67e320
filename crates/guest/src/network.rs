//! The network of a guest. The host owns its namespace: the guest's root can neither change its link and its addresses
//! nor open raw sockets in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use runner_model::names::GuestId;
use runner_model::network::{Link, device, guest_ruleset, name_servers, ruleset};

/// Where the host's own name servers are listed, best first: systemd-resolved keeps those it asks itself apart from its
/// stub on the loopback device.
const RESOLV_CONF: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];

/// Settings of a guest's namespace. Its owner is the host, so the guest's root has no right there that the host does not
/// leave open: ports below 1024, and ICMP echo without raw sockets.
const SETTINGS: [(&str, &str); 2] =
    [("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"), ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")];

/// Loads the rules, whatever is loaded: somebody may have flushed all rules since, as a restart of nftables.service does.
/// Returns the host's name servers, which the rules know.
pub(crate) fn guard() -> anyhow::Result<Vec<Ipv4Addr>> {
    let servers = host_name_servers();
    feed("nft", &["-f", "-"], &ruleset(&servers))
        .context("the guests' firewall rules cannot be loaded, so no guest may start")?;
    Ok(servers)
}

fn host_name_servers() -> Vec<Ipv4Addr> {
    RESOLV_CONF
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| name_servers(&text))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

/// A new network namespace with a link to the host.
pub(crate) fn namespace(link: &Link, name_servers: &[Ipv4Addr]) -> anyhow::Result<OwnedFd> {
    let commands = link.guest_commands();
    let rules = guest_ruleset(name_servers);
    // A thread of its own enters the namespace and is then thrown away; no other thread ever sees it. What it starts is
    // in that namespace too.
    let namespace = std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || -> anyhow::Result<OwnedFd> {
            enter_new_namespace()?;
            for (setting, value) in SETTINGS {
                match fs::write(setting, value) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("cannot set {setting}"));
                    }
                    _ => {}
                }
            }
            // Rules first: the link must not be up without them.
            feed("nft", &["-f", "-"], &rules)?;
            feed("ip", &["-batch", "-"], &commands)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })?
        .join()
        .map_err(|_| io::Error::other("the thread that makes network namespaces panicked"))??;
    feed("ip", &["-batch", "-"], &link.host_commands())?;
    Ok(namespace)
}

/// Removes the host's end of a guest's link. The kernel does so too, some time after the guest's last process.
pub(crate) fn remove(guest: &GuestId) -> anyhow::Result<()> {
    let device = device(guest);
    let exists = || Path::new("/sys/class/net").join(&device).exists();
    if !exists() {
        return Ok(());
    }
    match feed("ip", &["link", "delete", "dev", &device], "") {
        Err(error) if exists() => Err(error),
        // The kernel was faster.
        _ => Ok(()),
    }
}

/// Guests that have a link.
pub(crate) fn linked() -> Vec<GuestId> {
    fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| GuestId::parse(entry.file_name().to_str()?.strip_prefix("rg")?))
        .collect()
}

#[expect(unsafe_code, reason = "unshare(2) is unsafe for flags that part descriptor tables; this one does not")]
fn enter_new_namespace() -> rustix::io::Result<()> {
    // SAFETY: NEWNET only changes which network the calling thread sees.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}

/// Runs a tool of the host with this on its standard input.
fn feed(tool: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let path = ["/usr/sbin", "/usr/bin", "/sbin"].map(|folder| Path::new(folder).join(tool));
    let Some(path) = path.iter().find(|path| path.exists()) else {
        bail!(
            "'{tool}' is not installed; it is in Debian's package {}",
            if tool == "nft" { "nftables" } else { "iproute2" }
        );
    };
    let mut child = Command::new(path)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", path.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that stops reading says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{tool} failed: {}", said.trim().lines().next().unwrap_or("it does not say why"));
    }
    Ok(())
}
