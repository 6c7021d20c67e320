//! What is in the store, for people and for decisions about pulling.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Store;
use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::layout::{ImageRecord, RefRecord, now};
use crate::lease::damaged;
use crate::lock::Share;

/// One reference in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// The reference in its canonical form.
    pub reference: String,
    /// Image id: the digest of the configuration.
    pub image: Digest,
    /// Digest of the manifest it was imported by, when it had one.
    pub manifest: Option<Digest>,
    /// Digest the registry gave for the reference, when it was pulled; what a pinned reference names.
    pub digest: Option<Digest>,
    /// Bytes of file content in all its layers, those shared with other images included.
    pub size: u64,
    /// Bytes of file content in layers that no other image has.
    pub own: u64,
    /// Number of layers.
    pub layers: usize,
    /// When the reference got this image.
    pub imported: SystemTime,
    /// When it was last resolved, or imported when it never was.
    pub last_used: SystemTime,
    /// Why it cannot be used, if it cannot; sizes are then 0.
    pub damage: Option<String>,
}

/// What the store knows of where a reference comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Image id.
    pub image: Digest,
    /// Digest the registry gave; none for an image that was imported from this machine.
    pub digest: Option<Digest>,
    /// When the registry last said so.
    pub checked: Option<SystemTime>,
}

/// Everything about one reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The line of the list.
    pub summary: ImageSummary,
    /// When the registry last said that the reference names this image.
    pub checked: Option<SystemTime>,
    /// The image's configuration, as it came.
    pub configuration: Vec<u8>,
    /// The manifest, as it came.
    pub manifest: Option<Vec<u8>>,
    /// Lowest first.
    pub layers: Vec<InspectedLayer>,
}

/// One layer of an [`Inspected`] image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedLayer {
    /// Diff id.
    pub layer: Digest,
    /// Bytes of file content.
    pub size: u64,
    /// Files, directories, links and whiteouts.
    pub entries: u64,
    /// Images that have it, this one included.
    pub images: usize,
}

/// How many images have a layer.
type Users = HashMap<Digest, usize>;

impl Store {
    /// All references, sorted.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] names the first reference that cannot be read. An image that cannot be used is in the list.
    pub fn list(&self) -> Result<Vec<ImageSummary>, StoreError> {
        let _reading = self.layout.lock(Share::Shared)?;
        let references = self.references()?;
        let users = self.users(&references)?;
        let mut summaries = Vec::with_capacity(references.len());
        for (record, file) in &references {
            let summary = match self.summary(record, file, &users) {
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    ImageSummary { damage: Some(error.to_string()), ..outline(record, file) }
                }
                summary => summary.map_err(|error| error.for_image(&record.reference))?,
            };
            summaries.push(summary);
        }
        summaries.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(summaries)
    }

    /// Everything about one reference; `None` when the store does not have it.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when something it needs is missing.
    pub fn inspect(&self, reference: &str) -> Result<Option<Inspected>, StoreError> {
        let _reading = self.layout.lock(Share::Shared)?;
        let Some((record, file)) = self.layout.read_ref(reference)? else { return Ok(None) };
        self.look_into(&record, &file).map(Some).map_err(|error| error.for_image(reference))
    }

    fn look_into(&self, record: &RefRecord, file: &File) -> Result<Inspected, StoreError> {
        let users = self.users(&self.references()?)?;
        let document = |digest: &Digest| {
            self.document(digest).ok_or_else(|| damaged(&format!("blob {digest} is gone or has other bytes")))
        };
        let (image, _) = self.image_record(&record.image)?;
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            let found = self.layout.read_layer(layer)?.ok_or_else(|| damaged(&format!("layer {layer} is gone")))?;
            let images = users.get(layer).copied().unwrap_or(1);
            layers.push(InspectedLayer {
                layer: *layer,
                size: found.stats.bytes,
                entries: found.stats.entries,
                images,
            });
        }
        Ok(Inspected {
            summary: self.summary(record, file, &users)?,
            checked: record.checked.map(time),
            configuration: document(&record.image)?,
            manifest: record.manifest.as_ref().map(document).transpose()?,
            layers,
        })
    }

    /// What the store knows of a reference without touching its image; `None` when it does not have it.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the record cannot be read.
    pub fn known(&self, reference: &str) -> Result<Option<Known>, StoreError> {
        let found = self.layout.read_ref(reference).map_err(|error| error.for_image(reference))?;
        Ok(found.map(|(record, _)| Known {
            image: record.image,
            digest: record.digest,
            checked: record.checked.map(time),
        }))
    }

    /// Notes that the registry still says that `reference` names `digest`. Nothing happens if the store has it otherwise
    /// by now.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] and its like.
    pub fn confirm(&self, reference: &str, digest: &Digest) -> Result<(), StoreError> {
        let confirm = || {
            let _publishing = self.layout.lock(Share::Exclusive)?;
            match self.layout.read_ref(reference)? {
                Some((record, _)) if record.digest == Some(*digest) => {
                    self.layout.write_ref(&RefRecord { checked: Some(now()), ..record })
                }
                _ => Ok(()),
            }
        };
        confirm().map_err(|error: StoreError| error.for_image(reference))
    }

    fn summary(&self, record: &RefRecord, file: &File, users: &Users) -> Result<ImageSummary, StoreError> {
        let (image, _) = self.image_record(&record.image)?;
        let (mut size, mut own) = (0, 0);
        for layer in image.layers.iter().collect::<HashSet<_>>() {
            let found = self.layout.read_layer(layer)?;
            let bytes = found.ok_or_else(|| damaged(&format!("layer {layer} is gone")))?.stats.bytes;
            size += bytes;
            own += if users.get(layer).is_none_or(|images| *images < 2) { bytes } else { 0 };
        }
        Ok(ImageSummary { size, own, layers: image.layers.len(), ..outline(record, file) })
    }

    /// How many images have each layer. An image whose record is gone is told of where it is looked at itself.
    fn users(&self, references: &[(RefRecord, File)]) -> Result<Users, StoreError> {
        let mut users = Users::new();
        let images: HashSet<Digest> = references.iter().map(|(record, _)| record.image).collect();
        for image in images {
            let record: ImageRecord = match self.image_record(&image) {
                Ok((record, _)) => record,
                Err(error) if error.kind() == ErrorKind::Damaged => continue,
                Err(error) => return Err(error),
            };
            for layer in record.layers.iter().collect::<HashSet<_>>() {
                *users.entry(*layer).or_default() += 1;
            }
        }
        Ok(users)
    }
}

/// What the reference's record alone tells.
fn outline(record: &RefRecord, file: &File) -> ImageSummary {
    let used = file.metadata().and_then(|metadata| metadata.modified());
    ImageSummary {
        reference: record.reference.clone(),
        image: record.image,
        manifest: record.manifest,
        digest: record.digest,
        size: 0,
        own: 0,
        layers: 0,
        imported: time(record.imported),
        last_used: used.unwrap_or(SystemTime::UNIX_EPOCH),
        damage: None,
    }
}

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}
