//! Bringing an image into the store.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::archive::ImageArchive;
use crate::claim::{Claim, LOCAL, Wish};
use crate::config;
use crate::copy;
use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError, quoted};
use crate::layout::{ImageRecord, LayerForm, LayerRecord, LayerStats, Layout, RefRecord, Stage, now};
use crate::limits::Budget;
use crate::lock::{Lock, Share};
use crate::remote::Remote;
use crate::source::{Container, ImageSource, Source, open_directory};
use crate::unpack::make_dir;
use crate::unpacker::{Packed, REPORT_EVERY, UnpackedLayer, unpack_layer};
use crate::{Lease, Store, tree};

/// Longest reference: 255 bytes of name, 127 of tag, a digest and separators, with room to spare.
const REFERENCE_BYTES: usize = 512;

/// What an import is doing. `index` counts layers from 0, the lowest; `total` is how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another process unpacks this layer; its work is waited for.
    Waiting {
        /// Position of the layer.
        index: usize,
        /// Layers of the image.
        total: usize,
        /// Diff id of the layer.
        layer: Digest,
    },
    /// A layer is being unpacked; comes again as it goes on.
    Unpacking {
        /// Position of the layer.
        index: usize,
        /// Layers of the image.
        total: usize,
        /// Bytes of the source read so far.
        done: u64,
        /// Bytes there are, where that is known.
        size: Option<u64>,
    },
    /// A layer is in the store.
    Layer {
        /// Position of the layer.
        index: usize,
        /// Layers of the image.
        total: usize,
        /// Diff id of the layer.
        layer: Digest,
        /// Whether it was there already.
        reused: bool,
    },
}

/// What an import came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Image id: the digest of the configuration.
    pub image: Digest,
    /// Digest of the manifest, when the source had one.
    pub manifest: Option<Digest>,
    /// Digest that the registry gave for the reference, of a manifest or an index; what a pinned reference names.
    pub digest: Option<Digest>,
    /// Number of layers.
    pub layers: usize,
    /// How many of them were in the store already.
    pub reused: usize,
    /// Image the reference named before, when it was another one.
    pub replaced: Option<Digest>,
    /// What was unpacked and left out, over all layers that were not reused.
    pub stats: LayerStats,
}

/// What a reference comes to name, but for its layers.
pub(crate) struct Named<'a> {
    pub(crate) config: &'a [u8],
    pub(crate) manifest: Option<Digest>,
    pub(crate) digest: Option<Digest>,
    /// Manifest and indexes on the way to the configuration.
    pub(crate) documents: &'a [(Digest, Vec<u8>)],
}

/// A layer in the store that cannot be collected as long as this lives. Without a lock somebody else's keeps it, as long as
/// that lasts.
pub(crate) struct Held {
    pub(crate) digest: Digest,
    pub(crate) reused: bool,
    pub(crate) stats: LayerStats,
    pub(crate) _lock: Option<Lock>,
}

impl Store {
    /// Imports an image and points `reference` (in canonical form) at it. A reference that exists moves in one step; its
    /// old image stays for those who use it and is collected when nothing refers to it.
    ///
    /// # Errors
    /// [`ErrorKind::BadSource`], [`ErrorKind::DigestMismatch`], [`ErrorKind::LimitExceeded`], [`ErrorKind::NoSpace`] and
    /// [`ErrorKind::Io`]. The reference is then what it was before; layers already complete are kept until a sweep, so
    /// that a second try need not unpack them again.
    pub fn import(
        &self,
        reference: &str,
        source: &Source,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Imported, StoreError> {
        check_reference(reference)?;
        let imported = self.import_source(reference, source, progress).map_err(|error| error.for_image(reference));
        imported.map(|(imported, _)| imported)
    }

    /// Imports an image that is somewhere else, and points `reference` (in canonical form) at it. `pinned` is the digest
    /// in the reference, if it has one: the image is that one and no other, and what of it the store has is not fetched.
    ///
    /// # Errors
    /// As [`import`](Store::import), and those of `remote`. What was fetched of a blob is kept for the next try.
    pub fn pull(
        &self,
        reference: &str,
        pinned: Option<&Digest>,
        remote: &dyn Remote,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Imported, Lease), StoreError> {
        check_reference(reference)?;
        let known = |digest: &Digest| self.document(digest);
        ImageSource::remote(remote, pinned, &known, &self.limits)
            .and_then(|image| self.import_image(reference, &image, &Budget::new(&self.limits), progress))
            .map_err(|error| error.for_image(reference))
    }

    fn import_source(
        &self,
        reference: &str,
        source: &Source,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Imported, Lease), StoreError> {
        let mut budget = Budget::new(&self.limits);
        let shown = source.path().display();
        let open = || File::open(source.path()).map_err(|error| StoreError::io(format_args!("open {shown}"), error));
        match source {
            Source::OciDirectory(path) => {
                let image = ImageSource::oci(Container::directory(path)?, reference, &self.limits)?;
                self.import_image(reference, &image, &budget, progress)
            }
            Source::OciArchive(_) => {
                let archive = ImageArchive::index(open()?, &mut budget, || self.spool())?;
                let image = ImageSource::oci(Container::Archive(archive), reference, &self.limits)?;
                self.import_image(reference, &image, &budget, progress)
            }
            Source::DockerArchive(_) => {
                let archive = ImageArchive::index(open()?, &mut budget, || self.spool())?;
                let image = ImageSource::docker(archive, reference, &self.limits)?;
                self.import_image(reference, &image, &budget, progress)
            }
            Source::RootTree(path) => {
                let tree = open_directory(path)?;
                self.import_root(reference, progress, |stage, progress| {
                    self.copy_root(&tree, stage, &mut budget, progress)
                })
            }
            Source::RootArchive(_) => {
                let file = open()?;
                let size = file.metadata().map(|metadata| metadata.len()).ok();
                self.import_root(reference, progress, |stage, progress| {
                    let root = new_root(stage)?;
                    let report = &mut |done| progress(Progress::Unpacking { index: 0, total: 1, done, size });
                    let packed = Packed::stretch(file, 0, u64::MAX);
                    let unpacked =
                        unpack_layer(&self.unpacker, packed, None, root.as_fd(), &mut budget, &|| false, report)?;
                    let UnpackedLayer { diff_id: digest, stats, marked_end, tree } = unpacked;
                    if !marked_end {
                        // No digest says what should be there, so the mark is all that tells a whole archive.
                        return Err(StoreError::bad("archive has no end mark, it is probably truncated"));
                    }
                    if stats.entries == 0 {
                        return Err(StoreError::bad("archive has no entries"));
                    }
                    Ok((digest, LayerRecord { form: LayerForm::Tar, tree: Some(tree), unsettled: None, stats }))
                })
            }
        }
    }

    /// A bare root: one layer, whose name is known only when it is complete.
    fn import_root(
        &self,
        reference: &str,
        progress: &mut (dyn FnMut(Progress) + Send),
        fill: impl FnOnce(&Stage<'_>, &mut (dyn FnMut(Progress) + Send)) -> Result<(Digest, LayerRecord), StoreError>,
    ) -> Result<(Imported, Lease), StoreError> {
        let stage = self.layout.stage()?;
        let (digest, record) = fill(&stage, progress)?;
        let mut waiting = || progress(Progress::Waiting { index: 0, total: 1, layer: digest });
        let wish = Wish { layer: &digest, blob: None, maker: LOCAL, given_up: &|| false };
        let (reused, lock) = match self.claim_layer(&wish, &mut waiting)? {
            Claim::Present(lock) => (true, Some(lock)),
            Claim::Absent(lock) => {
                stage.publish(&digest, &record)?;
                (false, lock)
            }
        };
        let held =
            Held { digest, reused, stats: if reused { LayerStats::default() } else { record.stats }, _lock: lock };
        progress(Progress::Layer { index: 0, total: 1, layer: digest, reused });
        let named = Named { config: &config::synthesised(&digest), manifest: None, digest: None, documents: &[] };
        self.publish(reference, &named, &[held])
    }

    fn copy_root(
        &self,
        tree: &OwnedFd,
        stage: &Stage<'_>,
        budget: &mut Budget,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Digest, LayerRecord), StoreError> {
        let store =
            rustix::fs::fstat(self.layout.root()).map_err(|error| StoreError::io("look at the image store", error))?;
        let root = new_root(stage)?;
        let mut reported = 0;
        let report = &mut |done| {
            if done >= reported + REPORT_EVERY {
                reported = done;
                progress(Progress::Unpacking { index: 0, total: 1, done, size: None });
            }
        };
        let (stats, tree) = copy::copy_tree(tree.as_fd(), root.as_fd(), tree::inode(&store), budget, report)?;
        if stats.entries == 0 {
            return Err(StoreError::bad("the root tree is empty"));
        }
        Ok((tree, LayerRecord { form: LayerForm::Tree, tree: Some(tree), unsettled: None, stats }))
    }

    /// Writes blobs, record and reference, in the order in which each needs the one before.
    pub(crate) fn publish(
        &self,
        reference: &str,
        named: &Named<'_>,
        held: &[Held],
    ) -> Result<(Imported, Lease), StoreError> {
        let layout = &self.layout;
        let image = Digest::of(named.config);
        if named.digest.is_none() {
            // It may be the only copy. What came from a registry can come again, and is settled when there is time.
            self.settle()?;
        }
        let publishing = layout.lock(Share::Shared)?;
        // Blobs are written over, not left alone: the same bytes when they were right, a repair when they were not.
        layout.write_file(layout.blobs.as_fd(), &image.hex(), named.config)?;
        for (digest, text) in named.documents {
            layout.write_file(layout.blobs.as_fd(), &digest.hex(), text)?;
        }
        let record = ImageRecord { image, layers: held.iter().map(|layer| layer.digest).collect() };
        let text = serde_json::to_vec(&record).expect("digests always serialise");
        let name = Layout::image_name(&image);
        match layout.read_record::<ImageRecord>(layout.images.as_fd(), &name) {
            // Leases are locks on the very file that is there.
            Ok(Some(_)) => {}
            Ok(None) => layout.write_new_file(layout.images.as_fd(), &name, &text)?,
            Err(_) => layout.write_file(layout.images.as_fd(), &name, &text)?,
        }
        // A damaged record of this reference is being repaired right here.
        let before = layout.read_ref(reference).ok().flatten().map(|(record, _)| record.image);
        let record = RefRecord {
            reference: reference.to_owned(),
            image,
            manifest: named.manifest,
            digest: named.digest,
            documents: named.documents.iter().map(|(digest, _)| *digest).collect(),
            checked: named.digest.map(|_| now()),
            imported: now(),
        };
        layout.write_ref(&record)?;
        // Under the same lock, so that no collection comes between the reference and its first user.
        let lease =
            self.find(reference)?.ok_or_else(|| StoreError::new(ErrorKind::Damaged, "the reference is gone"))?;
        drop(publishing);
        let replaced = before.filter(|before| *before != image);
        if replaced.is_some() {
            let collecting = layout.lock(Share::Exclusive)?;
            let collected = self.collect()?;
            drop(collecting);
            self.empty(collected.trash)?;
        }
        let imported = Imported {
            image,
            manifest: named.manifest,
            digest: named.digest,
            layers: held.len(),
            reused: held.iter().filter(|layer| layer.reused).count(),
            replaced,
            stats: held.iter().fold(LayerStats::default(), |sum, layer| sum.plus(&layer.stats)),
        };
        Ok((imported, lease))
    }

    /// Whether a layer is there. One whose record cannot be read is not: after a power cut the record may be empty, and
    /// whoever needs the layer makes it again.
    pub(crate) fn has_layer(&self, layer: &Digest) -> Result<bool, StoreError> {
        match self.layout.read_layer(layer) {
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(false),
            found => found.map(|found| found.is_some()),
        }
    }

    /// A nameless file in the store's file system, gone when closed.
    pub(crate) fn spool(&self) -> Result<File, StoreError> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        rustix::fs::openat(&self.layout.tmp, ".", flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|error| StoreError::io("make a temporary file", error))
    }
}

/// The folder a layer is unpacked into, with the attributes it keeps when no entry describes it.
pub(crate) fn new_root(stage: &Stage<'_>) -> Result<OwnedFd, StoreError> {
    make_dir(stage.as_fd(), b"root")
}

/// References come in canonical form; what cannot be one is refused before anything is written under it.
fn check_reference(reference: &str) -> Result<(), StoreError> {
    if reference.is_empty() || reference.len() > REFERENCE_BYTES || !reference.bytes().all(|b| b.is_ascii_graphic()) {
        let shown = quoted(reference.as_bytes());
        return Err(StoreError::bad(format!("\"{shown}\" is not an image reference")));
    }
    Ok(())
}
