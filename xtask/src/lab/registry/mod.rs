//! The registries of the lab host: the images they hold, made here once, and the two services that serve them.
//!
//! One stands in for docker.io, as its mirror; the other wants a password. They are Debian's docker-registry on the lab
//! host's loopback, and what they are asked is in its journal: `journalctl --unit lab-registry-public`.

mod layer;
mod manifest;
mod recipe;
mod storage;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::tree;
use crate::child::Program;
use crate::progress::Phase;
use layer::{Layer, Workshop, architectures};
use recipe::{Access, IMAGES, ImageRecipe, LAYERS};
use storage::{Blob, Storage};

/// What cached storage folders are called, before the digest of their recipe.
pub(crate) const PREFIX: &str = "registry-";

/// Address of the registry that mirrors docker.io.
pub(crate) const PUBLIC_ADDRESS: &str = "127.0.0.1:5000";
/// Address of the registry that wants a password.
const PRIVATE_ADDRESS: &str = "127.0.0.1:5001";

/// Change it when how images are made changes but neither table nor script does, so that cached ones are made anew.
const RECIPE: u32 = 2;

/// Folder of the lab host with the registries' configuration, and the file `password` of user `ci`.
const SETTINGS: &str = "etc/lab-registry";
/// Folder of the lab host with the registries' storage.
const STATE: &str = "var/lib/lab-registry";

/// No secret: it is for a registry nobody else can reach.
const PASSWORD: &str = "let-me-pull-in-the-lab";
/// `ci` and the bcrypt of [`PASSWORD`], the only form docker-registry takes.
const HTPASSWD: &str = "ci:$2y$05$abcdefghijklmnopqrstuus28IDqfTXvenzjOkwWUO8FwpZj7y5di";

/// The name of the cached storage folder: a digest of everything that goes into the images.
pub(crate) fn storage_name() -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{RECIPE}\n{}\n{LAYERS:?}\n{IMAGES:?}", std::env::consts::ARCH));
    let digest: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{digest}")
}

/// The cached storage folder, made if it is not there. The caller holds the lab's lock.
pub(crate) fn cached(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(storage_name());
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    tree::remove_each(cache, |name| name.starts_with(PREFIX) && name.contains(tree::UNFINISHED))?;
    let aside = cache.join(format!("{}{}{}", storage_name(), tree::UNFINISHED, std::process::id()));
    make(&aside).context("make the registry's images")?;
    fs::rename(&aside, &folder).with_context(|| format!("rename {} to {}", aside.display(), folder.display()))?;
    Ok(folder)
}

/// Makes every image in this folder, below `public` and `private`.
fn make(folder: &Path) -> Result<()> {
    let workshop = folder.join("workshop");
    let mut publisher = Publisher {
        workshop: Workshop::new(workshop.clone())?,
        public: Storage::new(&folder.join("public")),
        private: Storage::new(&folder.join("private")),
        layers: BTreeMap::new(),
    };
    for image in IMAGES {
        publisher.publish(image).with_context(|| format!("make {}", image.names[0]))?;
    }
    tree::remove(&workshop)
}

/// Makes layers as images need them, and puts images into the storage.
struct Publisher {
    workshop: Workshop,
    public: Storage,
    private: Storage,
    layers: BTreeMap<&'static str, Layer>,
}

impl Publisher {
    fn publish(&mut self, image: &ImageRecipe) -> Result<()> {
        let phase = Phase::start("images", &format!("making {}", image.names[0]));
        for name in image.layers.iter().chain(image.foreign) {
            if !self.layers.contains_key(name) {
                // Private ones share layers with public ones.
                let layer = self.workshop.make(recipe::layer(name), &self.public)?;
                self.layers.insert(name, layer);
            }
        }
        let (own, other) = architectures()?;
        for name in image.names {
            let (repository, tag) = name.split_once(':').context("a name of the table has a tag")?;
            let mut top = self.add_image(image, repository, own, image.layers)?;
            if !image.foreign.is_empty() {
                let foreign = self.add_image(image, repository, other, image.foreign)?;
                top = self.add_index(image, repository, &[(own, top), (other, foreign)])?;
            }
            self.storage(image).tag(repository, tag, &top.digest)?;
        }
        let size: u64 = image.layers.iter().map(|name| self.layers[name].blob.size).sum();
        phase.end(&format!("{}: {} layers, {} KiB", image.names[0], image.layers.len(), size / 1024));
        Ok(())
    }

    fn storage(&self, image: &ImageRecipe) -> &Storage {
        match image.access {
            Access::Public => &self.public,
            Access::Private => &self.private,
        }
    }

    /// Adds an image for one architecture and returns its manifest.
    fn add_image(&self, image: &ImageRecipe, repository: &str, architecture: &str, names: &[&str]) -> Result<Blob> {
        let storage = self.storage(image);
        let layers: Vec<(&str, &Layer)> = names.iter().map(|&name| (name, &self.layers[name])).collect();
        for (_, layer) in &layers {
            self.public.share(&layer.blob.digest, storage)?;
            storage.link_blob(repository, &layer.blob.digest)?;
        }
        let config = add_json(storage, &manifest::configuration(&image.settings, architecture, &layers))?;
        storage.link_blob(repository, &config.digest)?;
        add_manifest(storage, repository, &manifest::manifest(image.media, &config, &layers))
    }

    /// Adds an attestation of the first image and an index of all.
    fn add_index(&self, image: &ImageRecipe, repository: &str, images: &[(&str, Blob)]) -> Result<Blob> {
        let storage = self.storage(image);
        let (_, first) = images.first().context("an index has an image")?;
        let statement = add_json(storage, &manifest::statement(repository, first))?;
        let config = add_json(storage, &manifest::attestation_configuration(&statement))?;
        for blob in [&statement, &config] {
            storage.link_blob(repository, &blob.digest)?;
        }
        let attestation = add_manifest(storage, repository, &manifest::attestation_manifest(&config, &statement))?;
        add_manifest(storage, repository, &manifest::index(images, &attestation))
    }
}

fn add_json(storage: &Storage, document: &Value) -> Result<Blob> {
    storage.add_bytes(document.to_string().as_bytes())
}

fn add_manifest(storage: &Storage, repository: &str, document: &Value) -> Result<Blob> {
    let blob = add_json(storage, document)?;
    storage.link_manifest(repository, &blob.digest)?;
    Ok(blob)
}

/// Puts the registries into the root tree of a lab host that does not run: images, services, and the appliance's
/// configuration that makes use of them.
pub(crate) fn install(folder: &Path, root: &Path) -> Result<()> {
    let settings = root.join(SETTINGS);
    let units = root.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    let state = root.join(STATE);
    for dir in [&settings, &wanted, &root.join("etc/runner")] {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    Program::tied("cp").args(["--archive", "--reflink=auto", "--"]).arg(folder).arg(&state).run()?;
    for (name, address, access) in
        [("public", PUBLIC_ADDRESS, Access::Public), ("private", PRIVATE_ADDRESS, Access::Private)]
    {
        write(&settings.join(format!("{name}.yml")), &configuration(name, address, access))?;
        let unit = format!("lab-registry-{name}.service");
        write(&units.join(&unit), &service(name, address))?;
        let link = wanted.join(&unit);
        symlink(Path::new("..").join(&unit), &link).with_context(|| format!("link {}", link.display()))?;
    }
    write(&settings.join("htpasswd"), &format!("{HTPASSWD}\n"))?;
    write(&settings.join("password"), &format!("{PASSWORD}\n"))?;
    write(&root.join("etc/runner/config.env"), &appliance_configuration())
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

/// docker-registry's configuration.
fn configuration(name: &str, address: &str, access: Access) -> String {
    let auth = match access {
        Access::Public => String::new(),
        Access::Private => format!("auth:\n  htpasswd:\n    realm: lab\n    path: /{SETTINGS}/htpasswd\n"),
    };
    // The access log is in the Combined Log Format, whatever this level.
    format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: /{STATE}/{name}\n  \
         cache:\n    blobdescriptor: inmemory\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n  \
         secret: not-needed-with-one-server\n{auth}"
    )
}

/// The service; it is active when it answers.
fn service(name: &str, address: &str) -> String {
    format!(
        "[Unit]\nDescription=Registry of the lab, {name}\n\n[Service]\nUser=docker-registry\n\
         StateDirectory=lab-registry/{name}\nExecStart=/usr/bin/docker-registry serve /{SETTINGS}/{name}.yml\n\
         ExecStartPost=/bin/sh -c 'until curl --silent --output /dev/null http://{address}/v2/; do sleep 0.05; done'\n\
         Restart=on-failure\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

/// `/etc/runner/config.env` of the lab host.
fn appliance_configuration() -> String {
    format!(
        "RUNNER_REGISTRY_MIRRORS=\"docker.io=http://{PUBLIC_ADDRESS}\"\n\
         RUNNER_REGISTRY_INSECURE=\"{PUBLIC_ADDRESS} {PRIVATE_ADDRESS}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_private_registry_wants_a_password_and_the_public_one_none() {
        assert!(
            configuration("private", PRIVATE_ADDRESS, Access::Private).contains("path: /etc/lab-registry/htpasswd")
        );
        assert!(!configuration("public", PUBLIC_ADDRESS, Access::Public).contains("auth"));
    }

    #[test]
    fn storage_names_are_stable() {
        assert_eq!(storage_name(), storage_name());
        assert_eq!(storage_name().len(), PREFIX.len() + 12);
    }
}
