//! What systemd is told about a guest and about a step: unit properties and nspawn's arguments, rendered from plain
//! descriptions. Property names are those of systemd.service(5), systemd.exec(5) and org.freedesktop.systemd1(5).

use crate::create_options::Limits;
use crate::names::GuestId;

/// A value of a unit property, with the D-Bus type systemd expects for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `s`
    Text(String),
    /// `as`
    Texts(Vec<String>),
    /// `b`
    Truth(bool),
    /// `i`
    Signed(i32),
    /// `t`
    Number(u64),
    /// `aay`
    Bytes(Vec<Vec<u8>>),
    /// `(bas)`: whether the list is of what is allowed, and the list.
    Filter(bool, Vec<String>),
    /// `a(sasb)`: program, arguments with the program's own name first, whether a failure is ignored.
    Commands(Vec<(String, Vec<String>, bool)>),
}

/// Name and value of a unit property.
pub type Property = (&'static str, Value);

/// One guest as the host's systemd should run it.
#[derive(Debug, Clone)]
pub struct GuestUnit {
    /// Its name.
    pub id: GuestId,
    /// What `systemctl status` shows.
    pub description: String,
    /// First id of the guest's 65,536 user and group ids on the host.
    pub uid_base: u32,
    /// Generated tree that becomes the guest's root.
    pub root: String,
    /// File with the guest's machine id.
    pub machine_id: String,
    /// Network namespace, as a path systemd can open.
    pub network_namespace: String,
    /// Host name inside.
    pub hostname: String,
    /// Bounds.
    pub limits: Limits,
    /// Journal fields for every line of the guest's unit, `NAME=value`.
    pub log_fields: Vec<String>,
    /// Our own program that removes what nspawn leaves behind when it is killed.
    pub sweep: String,
}

/// Rights that no program of a workflow needs, even as the root of its guest.
const DROPPED_CAPABILITIES: &str = "CAP_SYS_ADMIN,CAP_SYS_RESOURCE,CAP_MKNOD,CAP_SYS_BOOT,CAP_NET_RAW,\
    CAP_NET_BROADCAST,CAP_AUDIT_CONTROL,CAP_AUDIT_WRITE,CAP_LEASE,CAP_LINUX_IMMUTABLE,CAP_SYS_TTY_CONFIG,\
    CAP_IPC_OWNER,CAP_DAC_READ_SEARCH";

/// Processes and threads of a guest that asks for no bound of its own.
const TASKS: u64 = 32_768;

/// Folder of the guest's own units inside its root tree.
pub const GUEST_UNITS: &str = "/etc/runner-guest/units";
/// An empty folder: the generators of the host's userland find nothing to do and cost 15 ms.
pub const GUEST_GENERATORS: &str = "/etc/runner-guest/generators";

/// nspawn's arguments for a guest.
pub fn nspawn_arguments(unit: &GuestUnit) -> Vec<String> {
    let GuestUnit { id, uid_base, root, machine_id, hostname, .. } = unit;
    vec![
        "systemd-nspawn".into(),
        "--quiet".into(),
        "--boot".into(),
        "--keep-unit".into(),
        "--register=yes".into(),
        format!("--machine={}", id.machine()),
        format!("--hostname={hostname}"),
        format!("--directory={root}"),
        "--read-only".into(),
        // Without an idmap: to the guest every file of the host's /usr belongs to nobody, so that what only root may
        // read there stays unread, and a set-user-id bit means nothing.
        "--bind-ro=/usr:/usr:norbind".into(),
        format!("--bind-ro={machine_id}:/etc/machine-id"),
        format!("--private-users={uid_base}:65536"),
        "--private-users-ownership=map".into(),
        format!("--drop-capability={DROPPED_CAPABILITIES}"),
        "--notify-ready=yes".into(),
        "--console=read-only".into(),
        // Without SYS_ADMIN the guest's PID 1 cannot mount these, and without /run/lock it gives up.
        "--tmpfs=/run/lock:mode=1777".into(),
        "--tmpfs=/tmp:mode=1777".into(),
        "--tmpfs=/var/tmp:mode=1777".into(),
        // Nothing is written into or read from the tree that its content could steer.
        "--settings=no".into(),
        "--link-journal=no".into(),
        "--resolv-conf=off".into(),
        "--timezone=off".into(),
        format!("--setenv=SYSTEMD_UNIT_PATH={GUEST_UNITS}"),
        format!("--setenv=SYSTEMD_GENERATOR_PATH={GUEST_GENERATORS}"),
    ]
}

/// Properties of the guest's unit on the host.
pub fn guest_properties(unit: &GuestUnit) -> Vec<Property> {
    let GuestUnit {
        id,
        description,
        uid_base: _,
        root: _,
        machine_id: _,
        hostname: _,
        network_namespace,
        limits,
        log_fields,
        sweep,
    } = unit;
    let mut properties = vec![
        ("Description", Value::Text(description.clone())),
        ("Slice", Value::Text(id.job().slice())),
        ("Type", Value::Text("notify".into())),
        ("NotifyAccess", Value::Text("main".into())),
        ("ExecStart", Value::Commands(vec![("/usr/bin/systemd-nspawn".into(), nspawn_arguments(unit), false)])),
        ("ExecStopPost", Value::Commands(vec![(sweep.clone(), vec!["guest-sweep".into(), id.machine()], true)])),
        // nspawn 252 looks for the guest's systemd before it mounts /usr, finds none and would give it cgroup v1.
        ("Environment", Value::Texts(vec!["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1".into()])),
        ("Delegate", Value::Truth(true)),
        ("KillMode", Value::Text("mixed".into())),
        ("TimeoutStartUSec", Value::Number(30_000_000)),
        ("TimeoutStopUSec", Value::Number(5_000_000)),
        // A killed guest is the ordinary end of a guest, and nothing of it should stay for `systemctl --failed`.
        ("CollectMode", Value::Text("inactive-or-failed".into())),
        // Both reach into the guest; nspawn's own filter leaves these open. AF_VSOCK would speak to the hypervisor.
        (
            "RestrictAddressFamilies",
            Value::Filter(true, ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"].map(str::to_owned).to_vec()),
        ),
        (
            "SystemCallFilter",
            Value::Filter(false, ["io_uring_setup", "io_uring_enter", "io_uring_register"].map(str::to_owned).to_vec()),
        ),
        ("SystemCallErrorNumber", Value::Signed(1)),
        ("DevicePolicy", Value::Text("closed".into())),
        ("NetworkNamespacePath", Value::Text(network_namespace.clone())),
        ("OOMPolicy", Value::Text("kill".into())),
        ("OOMScoreAdjust", Value::Signed(500)),
        // Lines on the guest's console are text: "<0>" in front of one must not make it an emergency of the host's.
        ("SyslogLevelPrefix", Value::Truth(false)),
        ("LogExtraFields", Value::Bytes(log_fields.iter().map(|field| field.clone().into_bytes()).collect())),
    ];
    if let Some(milli) = limits.cpus_milli {
        // 1,000 of ours are one processor; systemd counts microseconds of processor time in a second.
        properties.push(("CPUQuotaPerSecUSec", Value::Number(u64::from(milli) * 1_000)));
    }
    if let Some(bytes) = limits.memory_bytes {
        properties.push(("MemoryMax", Value::Number(bytes)));
        properties.push(("MemorySwapMax", Value::Number(0)));
    }
    properties.push(("TasksMax", Value::Number(limits.pids.unwrap_or(TASKS))));
    properties
}

/// Properties of a unit that removes what nspawn left of a guest.
pub fn sweep_properties(program: &str, guest: &GuestId) -> Vec<Property> {
    vec![
        ("Description", Value::Text(format!("Remove what is left of {}", guest.machine()))),
        ("Type", Value::Text("oneshot".into())),
        ("ExecStart", Value::Commands(vec![(program.to_owned(), vec!["guest-sweep".into(), guest.machine()], false)])),
        ("CollectMode", Value::Text("inactive-or-failed".into())),
    ]
}

/// Properties of a step's unit in the guest. The three standard streams are descriptors and are added by the caller.
pub fn step_properties(description: &str, launcher: &str) -> Vec<Property> {
    vec![
        ("Description", Value::Text(description.to_owned())),
        // A oneshot's start job ends when its main process has: one event to wait for.
        ("Type", Value::Text("oneshot".into())),
        ("ExecStart", Value::Commands(vec![(launcher.to_owned(), vec!["guest-exec".into()], false)])),
        ("NotifyAccess", Value::Text("main".into())),
        ("DefaultDependencies", Value::Truth(false)),
        // What a step leaves in the background lives on, as with `docker exec`.
        ("KillMode", Value::Text("process".into())),
        ("IgnoreSIGPIPE", Value::Truth(false)),
        // The host bounds the guest; a share of that bound for each step would only surprise.
        ("TasksMax", Value::Number(u64::MAX)),
        // Keeps the unit, and so the exit status, until we have read it.
        ("AddRef", Value::Truth(true)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::JobId;

    fn unit() -> GuestUnit {
        GuestUnit {
            id: JobId::from_random(36 * 36 * 36).guest(0).expect("a slot"),
            description: "container of job build".into(),
            uid_base: 524_288,
            root: "/run/runner/guest-root".into(),
            machine_id: "/run/runner/guests/00010/machine-id".into(),
            network_namespace: "/proc/1/fd/9".into(),
            hostname: "build".into(),
            limits: Limits::default(),
            log_fields: vec!["RUNNER_JOB=build".into()],
            sweep: "/usr/lib/runner/guest-sweep".into(),
        }
    }

    #[test]
    fn a_guest_as_systemd_is_told() {
        insta::assert_debug_snapshot!(guest_properties(&unit()));
    }

    #[test]
    fn limits_become_properties() {
        let limits = Limits { cpus_milli: Some(1_500), memory_bytes: Some(512 << 20), pids: Some(100) };
        let with = guest_properties(&GuestUnit { limits, ..unit() });
        let without = guest_properties(&unit());
        assert_eq!(without.last(), Some(&("TasksMax", Value::Number(TASKS))));
        assert_eq!(
            with[without.len() - 1..],
            [
                ("CPUQuotaPerSecUSec", Value::Number(1_500_000)),
                ("MemoryMax", Value::Number(512 << 20)),
                ("MemorySwapMax", Value::Number(0)),
                ("TasksMax", Value::Number(100)),
            ]
        );
    }

    #[test]
    fn a_guest_never_gets_more_than_the_host_means_to_give() {
        let arguments = nspawn_arguments(&unit());
        for forbidden in ["--private-users=no", "--private-users=identity", "--capability", "--network-veth"] {
            assert!(!arguments.iter().any(|argument| argument.starts_with(forbidden)), "{forbidden}: {arguments:?}");
        }
        assert!(!arguments.iter().any(|argument| argument.contains("idmap")), "{arguments:?}");
    }
}
