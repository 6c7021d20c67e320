//! The network of a guest: out to the world, and to nothing near (threat model, P9). The world is a network namespace of
//! the lab host with a public address and a web server.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::fixture;
use crate::hook::{Ended, Runner};
use crate::host::{leader, run, sh, until};
use crate::lab::{Test, tests};
use crate::request::{self, Step};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_guest_reaches_the_world_by_the_hosts_address,
        the_world_does_not_reach_a_guest,
        a_guest_reaches_no_service_of_the_host,
        a_guest_reaches_no_other_guest,
        private_and_metadata_addresses_are_refused_at_once,
        the_guest_cannot_change_its_network,
        a_guest_has_a_loopback_of_its_own,
        name_servers_are_the_hosts,
    ]
}

/// The world: 203.0.113.2, where the host's default route leads, with a web server that tells the caller's address.
/// Removed when dropped.
struct World;

const WORLD: &str = "203.0.113.2";

/// Answers with the address it was asked from. Its arguments are the address and the port to listen at.
const WHO: &str = "import socket, socketserver, sys
class Who(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip(): pass
        self.wfile.write(b'HTTP/1.0 200 OK\\r\\n\\r\\nyou are %s\\n' % self.client_address[0].encode())
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer.address_family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
socketserver.TCPServer((sys.argv[1], int(sys.argv[2])), Who).serve_forever()
";

impl World {
    fn new() -> Self {
        drop(Self);
        sh(&format!(
            "ip netns add lab-world; ip link add lab-host type veth peer name lab-world netns lab-world
            ip address add 203.0.113.1/24 dev lab-host; ip link set lab-host up
            ip -n lab-world address add {WORLD}/24 dev lab-world; ip -n lab-world link set lab-world up
            ip -n lab-world link set lo up; ip -n lab-world route add default via 203.0.113.1
            ip route add default via {WORLD}"
        ));
        let world = Self;
        serve(&["ip", "netns", "exec", "lab-world"], WORLD, 8000);
        until("the world answers", || fetch(&format!("{WORLD}:8000")));
        world
    }
}

/// Starts the server; it goes with [`World`].
fn serve(prefix: &[&str], address: &str, port: u16) {
    let port = port.to_string();
    let words = [prefix, &["setsid", "--fork", "python3", "-c", WHO, address, &port]].concat();
    let script = "exec \"$@\" >/dev/null 2>&1 </dev/null";
    run([&["sh", "-c", script, "sh"], &words[..]].concat()).expect(0);
}

/// What the host itself gets from there.
fn fetch(target: &str) -> Option<String> {
    let ran = run(["curl", "--silent", "--max-time", "2", &format!("http://{target}/")]);
    (ran.status == 0).then(|| ran.text())
}

impl Drop for World {
    fn drop(&mut self) {
        let script = "pkill -KILL -f '[c]lass Who'; ip netns del lab-world; ip link del lab-host";
        run(["sh", "-c", script]);
    }
}

/// Asks this address and port for its page and prints the answer; not with busybox, whose static build cannot resolve
/// names everywhere.
fn get(runner: &Runner, host: &str, port: u16) -> Ended {
    let script = format!(
        "exec timeout 5 bash -c 'exec 3<>/dev/tcp/{host}/{port} || exit 7; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'"
    );
    runner.sh(&script)
}

fn address(runner: &Runner) -> String {
    let text =
        runner.step(&Step::program("busybox", &["ip", "-4", "-o", "address", "show", "dev", "host0"])).expect(0).text();
    let found = text.split_whitespace().skip_while(|word| *word != "inet").nth(1).expect("an address");
    found.split('/').next().expect("before the slash").to_owned()
}

#[track_caller]
fn unreachable(runner: &Runner, host: &str, port: u16) {
    let began = Instant::now();
    let ended = get(runner, host, port);
    assert!(ended.status != 0 && ended.stdout.is_empty(), "{host} {port}: {}", ended.story());
    assert!(began.elapsed() < Duration::from_secs(3), "{host} {port}: dropped in silence, {:?}", began.elapsed());
}

fn a_guest_reaches_the_world_by_the_hosts_address() {
    let world = World::new();
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let ended = get(&runner, WORLD, 8000).expect(0);
    assert!(ended.text().contains("203.0.113.1"), "{}", ended.story());
    runner.cleanup();
    drop(world);
}

fn the_world_does_not_reach_a_guest() {
    let world = World::new();
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let guest = address(&runner);
    runner.sh("mkdir /tmp/site; echo inside >/tmp/site/index.html; busybox httpd -p 8080 -h /tmp/site").expect(0);
    assert!(get(&runner, "127.0.0.1", 8080).expect(0).text().ends_with("inside\n"));
    let url = format!("http://{guest}:8080/");
    let ran = run(["ip", "netns", "exec", "lab-world", "curl", "--silent", "--max-time", "2", &url]);
    assert!(ran.status != 0 && ran.stdout.is_empty(), "{ran:?}");
    runner.cleanup();
    drop(world);
}

fn a_guest_reaches_no_service_of_the_host() {
    let world = World::new();
    serve(&[], "0.0.0.0", 8001);
    serve(&[], "203.0.113.1", 8002);
    serve(&[], "::", 8003);
    let runner = Runner::new("runner 01");
    let machine = runner.prepare(fixture::debian());
    let gateway = sh(&format!("nsenter -t {} -n ip -4 -o route show default | cut -d' ' -f3", leader(&machine)));
    for (host, port) in [(gateway.as_str(), 8001), ("203.0.113.1", 8002), ("127.0.0.1", 8001)] {
        until("the service itself works", || fetch(&format!("{host}:{port}")));
        unreachable(&runner, host, port);
    }
    // By the link's own IPv6 address, which every interface has.
    let six = runner.sh("busybox ip -6 -o address show dev host0 | grep -c fe80 || true").expect(0).line();
    if six != "0" {
        let device = machine.replace("runner-", "rg");
        let host = sh(&format!("ip -6 -o address show dev {device} | grep -o 'fe80[^/]*' || true"));
        if !host.is_empty() {
            let ended = get(&runner, &format!("{host}%host0"), 8003);
            assert!(ended.status != 0 && ended.stdout.is_empty(), "{}", ended.story());
        }
    }
    // Abstract sockets belong to the network namespace.
    let script =
        "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('\\0lab-abstract'); time.sleep(60) # class Who";
    run(["sh", "-c", "exec setsid --fork python3 -c \"$1\" </dev/null >/dev/null 2>&1", "sh", script]).expect(0);
    until("it is there", || sh("cat /proc/net/unix").contains("@lab-abstract").then_some(()));
    assert!(!runner.sh("cat /proc/net/unix").expect(0).text().contains("lab-abstract"));
    runner.cleanup();
    drop(world);
}

fn a_guest_reaches_no_other_guest() {
    let (one, two) = (Runner::new("runner 01"), Runner::with_repository("runner 02", "gadgets"));
    one.prepare(fixture::debian());
    two.prepare(fixture::debian());
    let (first, second) = (address(&one), address(&two));
    assert_ne!(first, second);
    one.sh("mkdir /tmp/site; echo inside >/tmp/site/index.html; busybox httpd -p 8080 -h /tmp/site").expect(0);
    assert!(get(&one, &first, 8080).expect(0).text().ends_with("inside\n"));
    unreachable(&two, &first, 8080);
    one.cleanup();
    two.cleanup();
}

fn private_and_metadata_addresses_are_refused_at_once() {
    let world = World::new();
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    for host in ["169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.255.254"] {
        unreachable(&runner, host, 80);
    }
    runner.cleanup();
    drop(world);
}

fn the_guest_cannot_change_its_network() {
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let before = runner.sh("busybox ip -4 address; busybox ip link; busybox ip route").expect(0).text();
    for command in [
        "ip link set host0 down",
        "ip link set host0 address 02:00:00:00:00:01",
        "ip link set host0 mtu 1000",
        "ip link add dummy0 type dummy",
        "ip address add 10.1.2.3/24 dev host0",
        "ip address flush dev host0",
        "ip route del default",
        "ip route add 10.0.0.0/8 dev host0",
        "ip neighbour add 198.18.0.9 lladdr 02:00:00:00:00:02 dev host0",
        "arping -c 1 -I host0 198.18.0.0",
        "ifconfig host0 promisc",
    ] {
        let ended = runner.sh(&format!("busybox {command}"));
        assert!(ended.status != 0, "{command} worked: {}", ended.story());
    }
    assert_eq!(runner.sh("busybox ip -4 address; busybox ip link; busybox ip route").expect(0).text(), before);
    runner.cleanup();
}

fn a_guest_has_a_loopback_of_its_own() {
    let runner = Runner::new("runner 01");
    let mut container = request::container(fixture::debian(), &runner);
    container["createOptions"] = json!("--user builder");
    runner.prepare_with(container);
    // A port below 1024, as a user who is not root.
    runner.sh("mkdir /tmp/site; echo inside >/tmp/site/index.html; busybox httpd -p 80 -h /tmp/site").expect(0);
    assert!(get(&runner, "localhost", 80).expect(0).text().ends_with("inside\n"));
    runner.cleanup();
    assert_eq!(fetch("127.0.0.1:80"), None);
}

fn name_servers_are_the_hosts() {
    let saved = std::fs::read("/etc/resolv.conf").ok();
    let restore = |text: Option<Vec<u8>>| match text {
        Some(text) => std::fs::write("/etc/resolv.conf", text),
        None => std::fs::remove_file("/etc/resolv.conf"),
    };
    std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.53\nnameserver 203.0.113.53\nsearch example.org\n")
        .expect("we are root");
    let runner = Runner::new("runner 01");
    runner.prepare(fixture::debian());
    let seen = runner.sh("cat /etc/resolv.conf").expect(0).text();
    let servers: Vec<_> = seen.lines().filter(|line| line.starts_with("nameserver")).map(str::to_owned).collect();
    runner.cleanup();
    restore(saved).expect("we are root");
    // The rules follow the name servers; bring back those the host has now, so that nothing seems left over.
    runner.prepare(fixture::alpine());
    runner.cleanup();
    assert_eq!(servers, ["nameserver 203.0.113.53"], "{seen}");
}
