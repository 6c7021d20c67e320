//! Finding images and keeping them while they are used.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::layout::{ImageRecord, Layout, RefRecord};
use crate::lock::{Lock, Share};
use crate::{Store, tree};

/// An image in use. Dropping it, or the end of the process, gives the image back.
#[derive(Debug)]
pub struct Lease {
    reference: String,
    image: Digest,
    manifest: Option<Digest>,
    digest: Option<Digest>,
    config: ImageConfig,
    layers: Vec<PathBuf>,
    /// A shared lock on the image's record.
    _lock: Lock,
}

impl Lease {
    /// Root directories of the layers, topmost first: the order of overlayfs's `lowerdir`. Between 1 and
    /// [`Limits::layers`](crate::Limits::layers) of them, none twice.
    ///
    /// Layers below one that hides everything are left out, because overlayfs heeds no opaque mark on a layer's root.
    /// A layer twice in one image is given once, at its upper place, which has the same effect; overlayfs refuses the
    /// same directory twice.
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }

    /// How the image wants to be run.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Image id: the digest of the configuration.
    pub fn id(&self) -> Digest {
        self.image
    }

    /// Digest of the manifest the image was imported by, when it had one.
    pub fn manifest(&self) -> Option<Digest> {
        self.manifest
    }

    /// Digest the registry gave for the reference, of a manifest or an index; what a pinned reference names. Images that
    /// were never pulled have none.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The reference it was resolved by.
    pub fn reference(&self) -> &str {
        &self.reference
    }
}

impl Store {
    /// Looks a reference up, in canonical form. `None` when the store does not have it.
    ///
    /// The layers are there and stay there until the lease is dropped, also when the reference moves to another image.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when something the reference needs is missing: importing it again repairs that.
    pub fn resolve(&self, reference: &str) -> Result<Option<Lease>, StoreError> {
        // While this is held nothing is collected, so that the reference, the record and the lock on it belong together.
        let _resolving = self.layout.lock(Share::Shared)?;
        self.find(reference).map_err(|error| error.for_image(reference))
    }

    /// [`resolve`](Store::resolve) by somebody who holds the store's lock.
    pub(crate) fn find(&self, reference: &str) -> Result<Option<Lease>, StoreError> {
        let layout = &self.layout;
        let Some((found, file)) = layout.read_ref(reference)? else { return Ok(None) };
        let RefRecord { image, manifest, digest, .. } = found;
        let (record, record_file) = self.image_record(&image)?;
        let lock = Lock::wait(OwnedFd::from(record_file), Share::Shared)?;
        let config = self.read_config(&image)?;
        let mut layers = Vec::with_capacity(record.layers.len());
        let mut seen = HashSet::new();
        for layer in record.layers.iter().rev() {
            let Some(found) = layout.read_layer(layer)? else {
                return Err(damaged(&format!("layer {layer} is gone")));
            };
            if seen.insert(layer) {
                layers.push(layout.path().join("layers").join(layer.hex()).join("root"));
            }
            if found.stats.opaque_root {
                break;
            }
        }
        // Not brought to the disk: a wrong time of last use after a power cut costs nothing.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now })
            .map_err(|error| StoreError::io("note the time of use", error))?;
        Ok(Some(Lease { reference: reference.to_owned(), image, manifest, digest, config, layers, _lock: lock }))
    }

    /// Every reference's record with its open file. The caller holds the store's lock.
    pub(crate) fn references(&self) -> Result<Vec<(RefRecord, File)>, StoreError> {
        let refs = self.layout.refs.as_fd();
        let names = tree::names(refs).map_err(|error| StoreError::io("list the references", error))?;
        let mut records = Vec::new();
        for name in names {
            let Ok(name) = String::from_utf8(name) else { continue };
            if name.ends_with(".json")
                && let Some(record) = self.layout.read_record(refs, &name)?
            {
                records.push(record);
            }
        }
        Ok(records)
    }

    pub(crate) fn image_record(&self, image: &Digest) -> Result<(ImageRecord, File), StoreError> {
        let found = self.layout.read_record(self.layout.images.as_fd(), &Layout::image_name(image))?;
        found.ok_or_else(|| damaged(&format!("the record of image {image} is gone")))
    }

    /// A document in `blobs/`, if it is there and has the bytes its name says.
    pub(crate) fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.layout.path().join("blobs/sha256").join(digest.hex());
        std::fs::read(path).ok().filter(|text| Digest::of(text) == *digest)
    }

    fn read_config(&self, image: &Digest) -> Result<ImageConfig, StoreError> {
        let path = self.layout.path().join("blobs/sha256").join(image.hex());
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => damaged(&format!("the configuration {image} is gone")),
            _ => StoreError::io(format_args!("read {}", path.display()), error),
        })?;
        if Digest::of(&text) != *image {
            return Err(damaged(&format!("the configuration {image} has other bytes than its name says")));
        }
        Ok(ImageConfig::parse(&text)?.0)
    }
}

pub(crate) fn damaged(what: &str) -> StoreError {
    StoreError::new(ErrorKind::Damaged, format!("{what}; import the image again"))
}
