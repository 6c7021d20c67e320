//! A guest's network: addresses, rules and name servers, as text for the tools that apply them.
//!
//! Each guest has a point-to-point link to the host. It reaches the outside world through the host, by address
//! translation, and nothing else: not the host, not another guest, no private range, no link-local or metadata address.

use std::net::Ipv4Addr;

use crate::names::GuestId;

/// First address for guests: of the range set aside for benchmarks of network devices (RFC 2544), which no real network
/// should route.
const FIRST: u32 = 0xC612_0000;

/// How many guests there are addresses for: a half of 198.18.0.0/16, two addresses each.
pub const LINKS: u32 = 1 << 15;

/// The range all links lie in.
const RANGE: &str = "198.18.0.0/16";

/// Name of the table in nftables.
pub const TABLE: &str = "runner_guests";

/// Where no guest gets to: this network, private ranges, carriers' networks, loopback, link-local (and with it the
/// clouds' metadata services), Azure's platform address, protocol assignments, benchmarks (and with it other guests' links), multicast and above.
const FORBIDDEN: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
    168.63.129.16/32, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

/// The link of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Name of the host's end.
    pub name: String,
    /// The host's address.
    pub host: Ipv4Addr,
    /// The guest's address.
    pub guest: Ipv4Addr,
}

impl Link {
    /// The link with this number below [`LINKS`], which no other live guest has.
    pub fn new(guest: &GuestId, number: u32) -> Option<Self> {
        (number < LINKS).then(|| Self {
            name: device(guest),
            host: Ipv4Addr::from(FIRST + 2 * number),
            guest: Ipv4Addr::from(FIRST + 2 * number + 1),
        })
    }

    /// Commands for `ip -batch -` in the guest's namespace. The first makes both ends; the host's is named by the network
    /// namespace of process 1.
    pub fn guest_commands(&self) -> String {
        let Self { name, host, guest } = self;
        format!(
            "link set lo up\n\
             link add host0 type veth peer name {name} netns 1\n\
             address add {guest}/31 dev host0\n\
             link set host0 up\n\
             route add default via {host}\n"
        )
    }

    /// Commands for `ip -batch -` in the host's namespace.
    pub fn host_commands(&self) -> String {
        let Self { name, host, guest: _ } = self;
        format!("address add {host}/31 dev {name}\nlink set {name} up\n")
    }
}

/// The host's end of a guest's link.
pub fn device(guest: &GuestId) -> String {
    format!("rg{guest}")
}

/// The ruleset, for `nft -f -`. Loading it again replaces it in one transaction. `name_servers` are those of the host, which
/// guests may ask even where they lie in a forbidden range.
pub fn ruleset(name_servers: &[Ipv4Addr]) -> String {
    let dns = ask(name_servers);
    format!(
        "table inet {TABLE}\n\
         delete table inet {TABLE}\n\
         table inet {TABLE} {{\n\
         \x20 chain from_guest {{\n\
         \x20   meta nfproto ipv6 drop\n\
         \x20   ip saddr != {RANGE} drop\n\
         {dns}\
         \x20   ip daddr {{ {FORBIDDEN} }} counter reject with icmpx admin-prohibited\n\
         \x20   accept\n\
         \x20 }}\n\
         \x20 chain forward {{\n\
         \x20   type filter hook forward priority filter; policy accept;\n\
         \x20   iifname \"rg*\" jump from_guest\n\
         \x20   oifname \"rg*\" ct state established,related accept\n\
         \x20   oifname \"rg*\" drop\n\
         \x20 }}\n\
         \x20 chain input {{\n\
         \x20   type filter hook input priority filter; policy accept;\n\
         \x20   iifname \"rg*\" counter reject with icmpx admin-prohibited\n\
         \x20 }}\n\
         \x20 chain postrouting {{\n\
         \x20   type nat hook postrouting priority srcnat; policy accept;\n\
         \x20   ip saddr {RANGE} oifname != \"rg*\" masquerade\n\
         \x20 }}\n\
         }}\n"
    )
}

/// The ruleset of a guest's own namespace: what it may not reach, once more. Its root cannot change it, and nobody who
/// flushes the host's rules does.
pub fn guest_ruleset(name_servers: &[Ipv4Addr]) -> String {
    format!(
        "table inet {TABLE} {{\n\
         \x20 chain output {{\n\
         \x20   type filter hook output priority filter; policy accept;\n\
         \x20   oifname \"lo\" accept\n\
         \x20   meta nfproto ipv6 drop\n\
         {}\
         \x20   ip daddr {{ {FORBIDDEN} }} counter reject with icmpx admin-prohibited\n\
         \x20 }}\n\
         }}\n",
        ask(name_servers)
    )
}

/// Rules that let DNS through to these servers.
fn ask(name_servers: &[Ipv4Addr]) -> String {
    name_servers
        .iter()
        .map(|server| format!("    ip daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept\n"))
        .collect()
}

/// The name servers of a resolv.conf(5) that a guest can ask: IPv4, and not on the host's own loopback.
pub fn name_servers(resolv_conf: &str) -> Vec<Ipv4Addr> {
    let mut servers = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(server) = words.next().and_then(|word| word.parse::<Ipv4Addr>().ok())
            && !server.is_loopback()
            && !server.is_unspecified()
            && !servers.contains(&server)
        {
            servers.push(server);
        }
    }
    // The C library asks no more than three.
    servers.truncate(3);
    servers
}

/// The container's `/etc/resolv.conf`.
pub fn resolv_conf(name_servers: &[Ipv4Addr]) -> String {
    name_servers.iter().map(|server| format!("nameserver {server}\n")).collect()
}

/// The container's `/etc/hosts`.
pub fn hosts(hostname: &str, address: Ipv4Addr) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{hostname}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::JobId;

    fn guest() -> GuestId {
        JobId::parse("k7q2").and_then(|job| job.guest(0)).expect("a guest")
    }

    #[test]
    fn every_link_has_addresses_of_its_own_in_the_range() {
        let first = Link::new(&guest(), 0).unwrap();
        assert_eq!((first.host.to_string(), first.guest.to_string()), ("198.18.0.0".into(), "198.18.0.1".into()));
        let last = Link::new(&guest(), LINKS - 1).unwrap();
        assert_eq!((last.host.to_string(), last.guest.to_string()), ("198.18.255.254".into(), "198.18.255.255".into()));
        assert_eq!(Link::new(&guest(), LINKS), None);
        assert_eq!(first.name, "rgk7q20");
        assert!(first.name.len() < 16, "IFNAMSIZ");
    }

    #[test]
    fn the_rules_as_nft_reads_them() {
        insta::assert_snapshot!(ruleset(&["10.0.0.2".parse().unwrap(), "192.0.2.53".parse().unwrap()]));
    }

    #[test]
    fn the_guests_own_rules_as_nft_reads_them() {
        insta::assert_snapshot!(guest_ruleset(&["10.0.0.2".parse().unwrap()]));
    }

    #[test]
    fn only_servers_a_guest_can_reach_are_used() {
        let text = "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver fe80::1\n nameserver 192.0.2.1 x\n\
                    search example.org\nnameserver 10.0.0.2\nnameserver\nnameserver 0.0.0.0\n";
        let servers = name_servers(text);
        assert_eq!(servers, ["10.0.0.2".parse::<Ipv4Addr>().unwrap(), "192.0.2.1".parse().unwrap()]);
        assert_eq!(resolv_conf(&servers), "nameserver 10.0.0.2\nnameserver 192.0.2.1\n");
        assert_eq!(name_servers(&"nameserver 8.8.8.8\n".repeat(9)).len(), 1);
    }
}
