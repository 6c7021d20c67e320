//! What the lab's registry holds: layers and the images made of them, as one table.

/// One layer: what is done to the layers below it.
#[derive(Debug)]
pub(super) struct LayerRecipe {
    /// Unique.
    pub(super) name: &'static str,
    /// The layer under it, if any.
    pub(super) below: Option<&'static str>,
    /// How its content comes about before the script runs.
    pub(super) content: Content,
    /// Shell script run in the layer's root with `-eu`: `chroot .` runs the image's programs, `$busybox` is a folder with
    /// the package busybox-static, `$applets` the list of its applets' paths. Lines it prints are `NAME=value` for the
    /// environment of images that have the layer.
    pub(super) script: &'static str,
    /// How its archive is compressed.
    pub(super) compression: Compression,
}

/// What mmdebstrap does for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The smallest Debian.
    Debian,
    /// These packages on top of what is below.
    Packages(&'static [&'static str]),
    /// Nothing.
    Empty,
    /// Nothing, and the script works with another machine's busybox.
    Foreign,
}

/// Compression of a layer's archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// gzip, what most images have.
    Gzip,
    /// Zstandard, which only the OCI media types know.
    Zstd,
}

/// Family of media types of a manifest and what it refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaTypes {
    /// `application/vnd.docker.…`.
    Docker,
    /// `application/vnd.oci.image.…`.
    Oci,
}

/// Which registry has an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The one that mirrors docker.io.
    Public,
    /// The one that wants a password.
    Private,
}

/// One image.
#[derive(Debug)]
pub(super) struct ImageRecipe {
    /// `library/node:22`; several names for the same manifest.
    pub(super) names: &'static [&'static str],
    /// Which registry has it.
    pub(super) access: Access,
    /// Its layers, lowest first.
    pub(super) layers: &'static [&'static str],
    /// With these layers for another kind of machine as well, the names are those of an index that has both and an
    /// attestation, as BuildKit writes it.
    pub(super) foreign: &'static [&'static str],
    /// Media types.
    pub(super) media: MediaTypes,
    /// How it is run.
    pub(super) settings: Settings,
}

/// The part of an image's configuration that is not the layers'.
#[derive(Debug)]
pub(super) struct Settings {
    /// `NAME=value`; the layers' own replace those of the same name.
    pub(super) env: &'static [&'static str],
    /// `Entrypoint`.
    pub(super) entrypoint: &'static [&'static str],
    /// `Cmd`.
    pub(super) cmd: &'static [&'static str],
    /// `WorkingDir`.
    pub(super) working_dir: &'static str,
    /// `ExposedPorts`.
    pub(super) ports: &'static [&'static str],
    /// `Volumes`.
    pub(super) volumes: &'static [&'static str],
    /// `StopSignal`.
    pub(super) stop_signal: &'static str,
}

/// The Debian release of all packages in images, whatever the lab host's own is.
pub(super) const RELEASE: &str = "trixie";

/// Seconds since 1970 of everything the recipe makes: `created` of images, and no file is younger.
pub(super) const EPOCH: u64 = 1_761_955_200;

/// The same as RFC 3339 has it.
pub(super) const CREATED: &str = "2025-11-01T00:00:00Z";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const SHELL: Settings = Settings {
    env: &[PATH],
    entrypoint: &[],
    cmd: &["sh"],
    working_dir: "",
    ports: &[],
    volumes: &[],
    stop_signal: "",
};

const ENTRYPOINT: &[&str] = &["docker-entrypoint.sh"];

macro_rules! layer {
    ($name:literal on $below:expr, $content:expr, $compression:ident) => {
        LayerRecipe {
            name: $name,
            below: $below,
            content: $content,
            script: include_str!(concat!("layers/", $name, ".sh")),
            compression: Compression::$compression,
        }
    };
}

/// Every layer; one that is below another stands before it.
pub(super) const LAYERS: &[LayerRecipe] = &[
    LayerRecipe {
        name: "debian",
        below: None,
        content: Content::Debian,
        // mmdebstrap copies the first two from the machine it runs on.
        script: "rm -f etc/hostname etc/resolv.conf etc/machine-id",
        compression: Compression::Gzip,
    },
    layer!("debian-slim" on Some("debian"), Content::Empty, Gzip),
    LayerRecipe {
        name: "git",
        below: Some("debian-slim"),
        content: Content::Packages(&["ca-certificates", "curl", "git"]),
        script: "",
        compression: Compression::Gzip,
    },
    layer!("node" on Some("git"), Content::Packages(&["nodejs"]), Gzip),
    layer!("node-entrypoint" on Some("node"), Content::Empty, Gzip),
    layer!("redis" on Some("debian-slim"), Content::Packages(&["redis-server"]), Gzip),
    layer!("redis-entrypoint" on Some("redis"), Content::Empty, Gzip),
    layer!("postgres-common" on Some("debian-slim"), Content::Packages(&["postgresql-common"]), Zstd),
    layer!("postgres" on Some("postgres-common"), Content::Packages(&["postgresql"]), Zstd),
    layer!("postgres-entrypoint" on Some("postgres"), Content::Empty, Zstd),
    layer!("busybox" on None, Content::Empty, Gzip),
    LayerRecipe {
        name: "busybox-foreign",
        below: None,
        content: Content::Foreign,
        script: include_str!("layers/busybox.sh"),
        compression: Compression::Gzip,
    },
    layer!("busybox-files" on Some("busybox"), Content::Empty, Gzip),
    layer!("tool" on Some("busybox-files"), Content::Empty, Gzip),
    layer!("alpine" on None, Content::Empty, Gzip),
    layer!("alpine-latest" on Some("alpine"), Content::Empty, Gzip),
    layer!("alpine-3.10" on Some("alpine"), Content::Empty, Gzip),
];

/// Every image.
pub(super) const IMAGES: &[ImageRecipe] = &[
    ImageRecipe {
        names: &["library/debian:trixie", "library/debian:latest", "library/ubuntu:latest"],
        access: Access::Public,
        layers: &["debian", "debian-slim"],
        foreign: &[],
        media: MediaTypes::Oci,
        settings: Settings { cmd: &["bash"], ..SHELL },
    },
    ImageRecipe {
        names: &["library/node:22"],
        access: Access::Public,
        layers: &["debian", "debian-slim", "git", "node", "node-entrypoint"],
        foreign: &[],
        media: MediaTypes::Docker,
        settings: Settings { entrypoint: ENTRYPOINT, cmd: &["node"], ..SHELL },
    },
    ImageRecipe {
        names: &["library/redis:latest"],
        access: Access::Public,
        layers: &["debian", "debian-slim", "redis", "redis-entrypoint"],
        foreign: &[],
        media: MediaTypes::Oci,
        settings: Settings {
            entrypoint: ENTRYPOINT,
            cmd: &["redis-server"],
            working_dir: "/data",
            ports: &["6379/tcp"],
            volumes: &["/data"],
            ..SHELL
        },
    },
    ImageRecipe {
        names: &["library/postgres:16"],
        access: Access::Public,
        layers: &["debian", "debian-slim", "postgres-common", "postgres", "postgres-entrypoint"],
        foreign: &[],
        media: MediaTypes::Oci,
        settings: Settings {
            env: &[PATH, "LANG=C.UTF-8", "PGDATA=/var/lib/postgresql/data"],
            entrypoint: ENTRYPOINT,
            cmd: &["postgres"],
            working_dir: "",
            ports: &["5432/tcp"],
            volumes: &["/var/lib/postgresql/data"],
            stop_signal: "SIGINT",
        },
    },
    ImageRecipe {
        names: &["library/alpine:latest"],
        access: Access::Public,
        layers: &["alpine", "alpine-latest"],
        foreign: &[],
        media: MediaTypes::Docker,
        settings: Settings { cmd: &["/bin/sh"], ..SHELL },
    },
    ImageRecipe {
        names: &["library/alpine:3.10"],
        access: Access::Public,
        layers: &["alpine", "alpine-3.10"],
        foreign: &[],
        media: MediaTypes::Docker,
        settings: Settings { cmd: &["/bin/sh"], ..SHELL },
    },
    ImageRecipe {
        names: &["library/busybox:latest"],
        access: Access::Public,
        layers: &["busybox", "busybox-files"],
        foreign: &["busybox-foreign", "busybox-files"],
        media: MediaTypes::Oci,
        settings: SHELL,
    },
    ImageRecipe {
        names: &["private/tool:1"],
        access: Access::Private,
        layers: &["busybox", "busybox-files", "tool"],
        foreign: &[],
        media: MediaTypes::Docker,
        settings: Settings { cmd: &["tool"], ..SHELL },
    },
];

/// The layer of this name.
pub(super) fn layer(name: &str) -> &'static LayerRecipe {
    LAYERS.iter().find(|layer| layer.name == name).expect("a test looks up every name of the table")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn layers_have_names_of_their_own_and_stand_above_what_they_need() {
        let mut seen = BTreeSet::new();
        for layer in LAYERS {
            assert!(layer.below.is_none_or(|below| seen.contains(below)), "{} comes too early", layer.name);
            assert!(seen.insert(layer.name), "{} is there twice", layer.name);
        }
    }

    #[test]
    fn an_images_layers_are_the_ones_its_layers_were_made_on() {
        for image in IMAGES {
            let below = [None].into_iter().chain(image.layers.iter().copied().map(Some));
            for (name, below) in image.layers.iter().zip(below) {
                assert_eq!(layer(name).below, below, "{:?}: {name}", image.names);
            }
            assert!(image.layers.len() >= 2, "{:?}", image.names);
            for name in image.foreign {
                assert_eq!(layer(name).name, *name);
            }
        }
    }

    #[test]
    fn only_oci_images_have_zstd_layers() {
        let docker = IMAGES.iter().filter(|image| image.media == MediaTypes::Docker);
        for name in docker.flat_map(|image| image.layers) {
            assert_eq!(layer(name).compression, Compression::Gzip, "{name}");
        }
    }
}
