//! Every option of `docker create`, and what becomes of it for a job container.

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// Name after two dashes.
    pub long: &'static str,
    /// Letter after one dash.
    pub short: Option<char>,
    /// Whether it is followed by a value. A switch takes one only as `--switch=true|false`.
    pub takes_value: bool,
    /// What becomes of it.
    pub handling: Handling,
}

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Carried out.
    Supported(Meaning),
    /// Accepted in silence: it asks for what happens anyway, or for nothing a job can notice.
    NoEffect,
    /// Left out with a warning; the text says why that does no harm.
    Ignored(&'static str),
    /// An error; the text says why, and what to do instead.
    Refused(&'static str),
}

/// The supported options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the option of the same name in OPTIONS")]
pub enum Meaning {
    User,
    Workdir,
    Env,
    Hostname,
    Name,
    NetworkAlias,
    Volume,
    Cpus,
    Memory,
    PidsLimit,
    Init,
}

impl OptionSpec {
    pub(super) fn meaning(&self) -> Option<Meaning> {
        match self.handling {
            Handling::Supported(meaning) => Some(meaning),
            _ => None,
        }
    }
}

pub(super) fn by_long_name(name: &str) -> Option<&'static OptionSpec> {
    // Spellings that the Docker client accepts without documenting them.
    let name = match name {
        "net" => "network",
        "net-alias" => "network-alias",
        "dns-opt" => "dns-option",
        other => other,
    };
    OPTIONS.iter().find(|spec| spec.long == name)
}

pub(super) fn by_short_name(letter: char) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.short == Some(letter))
}

const fn value(long: &'static str, short: Option<char>, handling: Handling) -> OptionSpec {
    OptionSpec { long, short, takes_value: true, handling }
}

const fn switch(long: &'static str, short: Option<char>, handling: Handling) -> OptionSpec {
    OptionSpec { long, short, takes_value: false, handling }
}

use Handling::{Ignored, NoEffect, Refused, Supported};

pub(super) const INIT_SYSTEMD: &str =
    "booting the image's own systemd is not supported yet; use --init, the guest's PID 1 is systemd already";

const NOT_APPLIED_YET: &str = "this limit is not applied yet";
const NO_TERMINAL: &str = "steps have no terminal and no standard input";
const SCHEDULING: &str = "guests share the host's processors and disks evenly";
const WINDOWS: &str = "it exists on Windows hosts only";
const OWN_NAMESPACES: &str =
    "a guest always has its own namespaces, apart from the host's and from other containers'; remove the option";
const ADDRESSES: &str = "addresses in the job's network are given out by this host; reach containers by name";
const NO_HEALTH: &str =
    "a job container idles until its steps run, so there is no program whose health could be checked";
const NAMES_LATER: &str = "not supported yet, and without it names would resolve differently; remove it";
const PORTS_LATER: &str = "publishing ports is not supported yet; talk to the program from a step of the same job";
const DEVICES: &str = "devices of the host are not given to guests; run such jobs on a runner without `container:`";

/// The list. Sorted by name.
pub const OPTIONS: &[OptionSpec] = &[
    value("add-host", None, Refused(NAMES_LATER)),
    value("annotation", None, NoEffect),
    value("attach", Some('a'), Ignored(NO_TERMINAL)),
    value("blkio-weight", None, Ignored(SCHEDULING)),
    value("blkio-weight-device", None, Ignored(SCHEDULING)),
    value(
        "cap-add",
        None,
        Refused("capabilities beyond a guest's own are not given; remove it, or name what fails without it"),
    ),
    value(
        "cap-drop",
        None,
        Refused("not supported yet, and ignoring it would leave the capability in place; remove it"),
    ),
    value("cgroup-parent", None, Ignored("guests live in slices of this appliance")),
    value("cgroupns", None, Refused(OWN_NAMESPACES)),
    value("cidfile", None, Ignored("no file is written on the host")),
    value("cpu-count", None, Ignored(WINDOWS)),
    value("cpu-percent", None, Ignored(WINDOWS)),
    value("cpu-period", None, Ignored("this limit is not applied; use --cpus")),
    value("cpu-quota", None, Ignored("this limit is not applied; use --cpus")),
    value("cpu-rt-period", None, Ignored(SCHEDULING)),
    value("cpu-rt-runtime", None, Ignored(SCHEDULING)),
    value("cpu-shares", Some('c'), Ignored(SCHEDULING)),
    value("cpus", None, Supported(Meaning::Cpus)),
    value("cpuset-cpus", None, Ignored(NOT_APPLIED_YET)),
    value("cpuset-mems", None, Ignored(NOT_APPLIED_YET)),
    value("device", None, Refused(DEVICES)),
    value("device-cgroup-rule", None, Refused(DEVICES)),
    value("device-read-bps", None, Ignored(NOT_APPLIED_YET)),
    value("device-read-iops", None, Ignored(NOT_APPLIED_YET)),
    value("device-write-bps", None, Ignored(NOT_APPLIED_YET)),
    value("device-write-iops", None, Ignored(NOT_APPLIED_YET)),
    switch("disable-content-trust", None, NoEffect),
    value("dns", None, Refused(NAMES_LATER)),
    value("dns-option", None, Refused(NAMES_LATER)),
    value("dns-search", None, Refused(NAMES_LATER)),
    value("domainname", None, Ignored("guests have a host name without a domain")),
    value("entrypoint", None, Refused("a job container idles and its steps bring their own programs; remove it")),
    value("env", Some('e'), Supported(Meaning::Env)),
    value("env-file", None, Refused("files of the host are not read; use `env:` of the container")),
    value("expose", None, Ignored("containers of a job reach each other on every port")),
    value("gpus", None, Refused(DEVICES)),
    value("group-add", None, Refused("not supported yet; use --user NAME with the groups set in the image")),
    value("health-cmd", None, Ignored(NO_HEALTH)),
    value("health-interval", None, Ignored(NO_HEALTH)),
    value("health-retries", None, Ignored(NO_HEALTH)),
    value("health-start-interval", None, Ignored(NO_HEALTH)),
    value("health-start-period", None, Ignored(NO_HEALTH)),
    value("health-timeout", None, Ignored(NO_HEALTH)),
    value("hostname", Some('h'), Supported(Meaning::Hostname)),
    switch("init", None, Supported(Meaning::Init)),
    switch("interactive", Some('i'), Ignored(NO_TERMINAL)),
    value("io-maxbandwidth", None, Ignored(WINDOWS)),
    value("io-maxiops", None, Ignored(WINDOWS)),
    value("ip", None, Refused(ADDRESSES)),
    value("ip6", None, Refused(ADDRESSES)),
    value("ipc", None, Refused(OWN_NAMESPACES)),
    value("isolation", None, Ignored(WINDOWS)),
    value("kernel-memory", None, Ignored("current kernels have no such limit; use --memory")),
    value("label", Some('l'), NoEffect),
    value("label-file", None, Ignored("labels have no effect, and files of the host are not read")),
    value("link", None, Refused("links are not supported; use `services:`, which the job reaches by name")),
    value("link-local-ip", None, Refused(ADDRESSES)),
    value("log-driver", None, Ignored("logs go to the journal of the host")),
    value("log-opt", None, Ignored("logs go to the journal of the host")),
    value("mac-address", None, Refused(ADDRESSES)),
    value("memory", Some('m'), Supported(Meaning::Memory)),
    value("memory-reservation", None, Ignored(NOT_APPLIED_YET)),
    value("memory-swap", None, Ignored(NOT_APPLIED_YET)),
    value("memory-swappiness", None, Ignored(NOT_APPLIED_YET)),
    value("mount", None, Refused("not supported yet; use `volumes:`")),
    value("name", None, Supported(Meaning::Name)),
    value(
        "network",
        None,
        Refused("the job's network is made by this host, as GitHub's documentation says; remove it"),
    ),
    value("network-alias", None, Supported(Meaning::NetworkAlias)),
    switch("no-healthcheck", None, NoEffect),
    switch(
        "oom-kill-disable",
        None,
        Refused("a guest that runs out of memory is ended to protect the host; remove it"),
    ),
    value("oom-score-adj", None, Ignored("the host decides what is ended when memory runs out")),
    value("pid", None, Refused(OWN_NAMESPACES)),
    value("pids-limit", None, Supported(Meaning::PidsLimit)),
    value("platform", None, Refused("images are used in the variant for this host's processor; remove it")),
    switch(
        "privileged",
        None,
        Refused("no guest gets the host's privileges; root in a guest and systemd as its PID 1 are there without it"),
    ),
    value("publish", Some('p'), Refused(PORTS_LATER)),
    switch("publish-all", Some('P'), Refused(PORTS_LATER)),
    value("pull", None, Ignored("when images are fetched is decided by this host")),
    switch("quiet", Some('q'), NoEffect),
    switch("read-only", None, Refused("not supported yet, and ignoring it would let the job write; remove it")),
    value("restart", None, Ignored("a job container lives until the job ends")),
    switch("rm", None, NoEffect),
    value("runtime", None, Refused("containers run in guests of systemd-nspawn and nothing else; remove it")),
    value(
        "security-opt",
        None,
        Refused("guests have one fixed security profile, and ignoring the option could weaken yours; remove it"),
    ),
    value("shm-size", None, Ignored("/dev/shm has the size that the host gives it")),
    value("stop-signal", None, Ignored("a job container has no program to stop; it ends with the job")),
    value("stop-timeout", None, Ignored("a job container has no program to stop; it ends with the job")),
    value("storage-opt", None, Ignored("containers share the space of the host's store")),
    value("sysctl", None, Refused("not supported yet, and the job would run with other kernel settings; remove it")),
    value("systemd", None, Refused("booting the image's own systemd is not supported yet; remove it")),
    value("tmpfs", None, Ignored("the directory is an ordinary one that is removed after the job")),
    switch("tty", Some('t'), Ignored(NO_TERMINAL)),
    value("ulimit", None, Ignored("limits of single processes are not applied yet")),
    switch("use-api-socket", None, Refused("there is no Docker on this host")),
    value("user", Some('u'), Supported(Meaning::User)),
    value("userns", None, Refused(OWN_NAMESPACES)),
    value("uts", None, Refused(OWN_NAMESPACES)),
    value("volume", Some('v'), Supported(Meaning::Volume)),
    value("volume-driver", None, Refused("volumes are directories of this host; remove it")),
    value("volumes-from", None, Refused("not supported; name the volumes in `volumes:`")),
    value("workdir", Some('w'), Supported(Meaning::Workdir)),
];
