//! The Debian releases the lab host can be, and what its root tree holds.

use sha2::{Digest as _, Sha256};

/// A Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Suite {
    /// Debian 13, systemd 257.
    Trixie,
    /// Debian 12, systemd 252: the oldest supported.
    Bookworm,
}

/// Packages of the root tree, the same in every release: what the product needs, then what tests and people need.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "systemd-container",
    "dbus",
    "polkitd",
    "iproute2",
    "nftables",
    "bash",
    "busybox-static",
    "ca-certificates",
    "curl",
    "docker-registry",
    "git",
    "jq",
    "less",
    "libc-bin",
    "procps",
    "python3",
    "strace",
];

/// Units that cannot work in a container, touch the real machine's kernel, or run at times of their own.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "docker-registry.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-modules-load.service",
    "systemd-sysctl.service",
];

/// Change it when [`Suite::mmdebstrap`] or what is done to a tree afterwards changes, so that cached trees are built anew.
const RECIPE: u32 = 1;

impl Suite {
    /// Every suite.
    pub(crate) const ALL: [Self; 2] = [Self::Trixie, Self::Bookworm];

    /// The release's code name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }

    /// Units masked in the root tree.
    pub(crate) fn masked(self) -> &'static [&'static str] {
        MASKED
    }

    /// The name of the cached tree: the suite and a digest of everything that goes into it.
    pub(crate) fn tree_name(self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{RECIPE}\n{}\n", std::env::consts::ARCH));
        hash.update(self.mmdebstrap("DIR").join("\n"));
        hash.update(self.masked().join("\n"));
        let digest: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{digest}", self.name())
    }

    /// Arguments of mmdebstrap that make the tree in `dir`. No mirror: its default is right.
    pub(crate) fn mmdebstrap(self, dir: &str) -> Vec<String> {
        let mut args = vec![
            "--variant=minbase".to_owned(),
            format!("--include={}", PACKAGES.join(",")),
            r#"--aptopt=Acquire::Languages "none""#.to_owned(),
        ];
        // The tree is copied for every lab host: fewer files, faster start.
        args.extend(["doc", "info", "locale", "man"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")));
        args.extend(["--quiet", self.name(), dir].map(str::to_owned));
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_names_are_stable_and_differ_by_suite() {
        let [trixie, bookworm] = Suite::ALL.map(Suite::tree_name);
        assert_eq!(trixie, Suite::Trixie.tree_name());
        assert_ne!(trixie["trixie-".len()..], bookworm["bookworm-".len()..]);
        assert_eq!(trixie.len(), "trixie-".len() + 12);
    }

    #[test]
    fn mmdebstrap_gets_suite_and_directory_last() {
        let args = Suite::Bookworm.mmdebstrap("/cache/x");
        assert_eq!(args[args.len() - 2..], ["bookworm", "/cache/x"]);
    }
}
