//! Bringing an image into the store.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::archive::ImageArchive;
use crate::config::{self, ImageConfig};
use crate::copy;
use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError, quoted};
use crate::layout::{ImageRecord, LayerForm, LayerRecord, LayerStats, Layout, RefRecord, Stage, now};
use crate::limits::Budget;
use crate::lock::{Lock, Share, open_layer_lock};
use crate::source::{Container, ImageSource, LayerSource, Source, open_directory};
use crate::unpack::make_dir;
use crate::unpacker::{Packed, REPORT_EVERY, UnpackedLayer, unpack_layer};
use crate::{Store, tree};

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
    /// Number of layers.
    pub layers: usize,
    /// How many of them were in the store already.
    pub reused: usize,
    /// Image the reference named before, when it was another one.
    pub replaced: Option<Digest>,
    /// What was unpacked and left out, over all layers that were not reused.
    pub stats: LayerStats,
}

/// A layer in the store that cannot be collected as long as this lives.
struct Held {
    digest: Digest,
    reused: bool,
    stats: LayerStats,
    _lock: Lock,
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
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Imported, StoreError> {
        check_reference(reference)?;
        self.import_source(reference, source, progress).map_err(|error| error.for_image(reference))
    }

    fn import_source(
        &self,
        reference: &str,
        source: &Source,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Imported, StoreError> {
        let mut budget = Budget::new(&self.limits);
        let shown = source.path().display();
        let open = || File::open(source.path()).map_err(|error| StoreError::io(format_args!("open {shown}"), error));
        match source {
            Source::OciDirectory(path) => {
                let image = ImageSource::oci(Container::directory(path)?, reference, &self.limits)?;
                self.import_image(reference, &image, &mut budget, progress)
            }
            Source::OciArchive(_) => {
                let archive = ImageArchive::index(open()?, &mut budget, || self.spool())?;
                let image = ImageSource::oci(Container::Archive(archive), reference, &self.limits)?;
                self.import_image(reference, &image, &mut budget, progress)
            }
            Source::DockerArchive(_) => {
                let archive = ImageArchive::index(open()?, &mut budget, || self.spool())?;
                let image = ImageSource::docker(archive, reference, &self.limits)?;
                self.import_image(reference, &image, &mut budget, progress)
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
                    let unpacked = unpack_layer(packed, None, root.as_fd(), &mut budget, report)?;
                    let UnpackedLayer { diff_id: digest, stats, marked_end } = unpacked;
                    if !marked_end {
                        // No digest says what should be there, so the mark is all that tells a whole archive.
                        return Err(StoreError::bad("archive has no end mark, it is probably truncated"));
                    }
                    if stats.entries == 0 {
                        return Err(StoreError::bad("archive has no entries"));
                    }
                    Ok((digest, LayerRecord { form: LayerForm::Tar, stats }))
                })
            }
        }
    }

    /// An image whose layers are known by name before they are read.
    fn import_image(
        &self,
        reference: &str,
        image: &ImageSource,
        budget: &mut Budget,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Imported, StoreError> {
        let (parsed, _) = ImageConfig::parse(&image.config)?;
        parsed.check_platform()?;
        let total = image.layers.len();
        let mut held = Vec::with_capacity(total);
        for (index, layer) in image.layers.iter().enumerate() {
            let one = self
                .ensure_layer(index, total, image, layer, budget, progress)
                .map_err(|error| error.for_layer(layer.diff_id))?;
            progress(Progress::Layer { index, total, layer: one.digest, reused: one.reused });
            held.push(one);
        }
        self.publish(reference, &image.config, image.manifest, &image.documents, &held)
    }

    /// Has a layer in the store, by waiting for whoever unpacks it or by unpacking it.
    fn ensure_layer(
        &self,
        index: usize,
        total: usize,
        image: &ImageSource,
        layer: &LayerSource,
        budget: &mut Budget,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Held, StoreError> {
        let digest = layer.diff_id;
        let mut made = None;
        loop {
            // Shared first: two imports that rely on each other's finished layers must not wait for one another.
            let mut waiting = || progress(Progress::Waiting { index, total, layer: digest });
            let lock = self.lock_layer(&digest, Share::Shared, &mut waiting)?;
            if self.has_layer(&digest)? {
                let (reused, stats) = (made.is_none(), made.unwrap_or_default());
                return Ok(Held { digest, reused, stats, _lock: lock });
            }
            drop(lock);
            let lock = self.lock_layer(&digest, Share::Exclusive, &mut waiting)?;
            if self.has_layer(&digest)? {
                continue;
            }
            let stats = self.unpack_layer(index, total, image, layer, budget, progress)?;
            made = Some(stats);
            let lock = lock.share()?;
            if self.has_layer(&digest)? && lock.is_linked()? {
                return Ok(Held { digest, reused: false, stats, _lock: lock });
            }
        }
    }

    fn unpack_layer(
        &self,
        index: usize,
        total: usize,
        image: &ImageSource,
        layer: &LayerSource,
        budget: &mut Budget,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<LayerStats, StoreError> {
        let (packed, size) = image.open_layer(layer)?;
        if let Some((blob, stated)) = layer.blob
            && stated != size
        {
            let cause = format!("blob {blob} has {size} bytes, its descriptor says {stated}");
            return Err(StoreError::new(ErrorKind::DigestMismatch, cause));
        }
        let stage = self.layout.stage()?;
        let root = new_root(&stage)?;
        let report = &mut |done| progress(Progress::Unpacking { index, total, done, size: Some(size) });
        report(0);
        let UnpackedLayer { diff_id, stats, .. } = unpack_layer(packed, layer.blob, root.as_fd(), budget, report)?;
        if diff_id != layer.diff_id {
            let cause = format!("unpacks to {diff_id}, which is not its diff id");
            return Err(StoreError::new(ErrorKind::DigestMismatch, cause));
        }
        stage.publish(&diff_id, &LayerRecord { form: LayerForm::Tar, stats })?;
        Ok(stats)
    }

    /// A bare root: one layer, whose name is known only when it is complete.
    fn import_root(
        &self,
        reference: &str,
        progress: &mut dyn FnMut(Progress),
        fill: impl FnOnce(&Stage<'_>, &mut dyn FnMut(Progress)) -> Result<(Digest, LayerRecord), StoreError>,
    ) -> Result<Imported, StoreError> {
        let stage = self.layout.stage()?;
        let (digest, record) = fill(&stage, progress)?;
        let mut waiting = || progress(Progress::Waiting { index: 0, total: 1, layer: digest });
        let lock = self.lock_layer(&digest, Share::Exclusive, &mut waiting)?;
        let reused = self.has_layer(&digest)?;
        if reused {
            drop(stage);
        } else {
            stage.publish(&digest, &record)?;
        }
        let held =
            Held { digest, reused, stats: if reused { LayerStats::default() } else { record.stats }, _lock: lock };
        progress(Progress::Layer { index: 0, total: 1, layer: digest, reused });
        self.publish(reference, &config::synthesised(&digest), None, &[], &[held])
    }

    fn copy_root(
        &self,
        tree: &OwnedFd,
        stage: &Stage<'_>,
        budget: &mut Budget,
        progress: &mut dyn FnMut(Progress),
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
        let stats = copy::copy_tree(tree.as_fd(), root.as_fd(), tree::inode(&store), budget, report)?;
        if stats.entries == 0 {
            return Err(StoreError::bad("the root tree is empty"));
        }
        Ok((copy::tree_digest(root.as_fd())?, LayerRecord { form: LayerForm::Tree, stats }))
    }

    /// Writes blobs, record and reference, in the order in which each needs the one before.
    fn publish(
        &self,
        reference: &str,
        config: &[u8],
        manifest: Option<Digest>,
        documents: &[(Digest, Vec<u8>)],
        held: &[Held],
    ) -> Result<Imported, StoreError> {
        let layout = &self.layout;
        let image = Digest::of(config);
        let publishing = layout.lock(Share::Shared)?;
        // Blobs are written over, not left alone: the same bytes when they were right, a repair when they were not.
        layout.write_file(layout.blobs.as_fd(), &image.hex(), config)?;
        for (digest, text) in documents {
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
            manifest,
            documents: documents.iter().map(|(digest, _)| *digest).collect(),
            imported: now(),
        };
        let text = serde_json::to_vec(&record).expect("strings and digests always serialise");
        layout.write_file(layout.refs.as_fd(), &Layout::ref_name(reference), &text)?;
        drop(publishing);
        let replaced = before.filter(|before| *before != image);
        if replaced.is_some() {
            let collecting = layout.lock(Share::Exclusive)?;
            let collected = self.collect()?;
            drop(collecting);
            self.empty(collected.trash)?;
        }
        Ok(Imported {
            image,
            manifest,
            layers: held.len(),
            reused: held.iter().filter(|layer| layer.reused).count(),
            replaced,
            stats: held.iter().fold(LayerStats::default(), |sum, layer| sum.plus(&layer.stats)),
        })
    }

    fn has_layer(&self, layer: &Digest) -> Result<bool, StoreError> {
        Ok(self.layout.read_layer(layer)?.is_some())
    }

    /// Takes a layer's lock; `waiting` is called before the first time this has to wait.
    fn lock_layer(&self, layer: &Digest, share: Share, waiting: &mut dyn FnMut()) -> Result<Lock, StoreError> {
        loop {
            let open = || open_layer_lock(self.layout.locks.as_fd(), &layer.hex());
            let lock = match Lock::attempt(open()?, share)? {
                Some(lock) => lock,
                None => {
                    waiting();
                    Lock::wait(open()?, share)?
                }
            };
            // The file may have been collected between opening and locking; then others no longer see this lock.
            if lock.is_linked()? {
                return Ok(lock);
            }
        }
    }

    /// A nameless file in the store's file system, gone when closed.
    fn spool(&self) -> Result<File, StoreError> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        rustix::fs::openat(&self.layout.tmp, ".", flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|error| StoreError::io("make a temporary file", error))
    }
}

/// The folder a layer is unpacked into, with the attributes it keeps when no entry describes it.
fn new_root(stage: &Stage<'_>) -> Result<OwnedFd, StoreError> {
    make_dir(stage.as_fd(), b"root", false)
}

/// References come in canonical form; what cannot be one is refused before anything is written under it.
fn check_reference(reference: &str) -> Result<(), StoreError> {
    if reference.is_empty() || reference.len() > REFERENCE_BYTES || !reference.bytes().all(|b| b.is_ascii_graphic()) {
        let shown = quoted(reference.as_bytes());
        return Err(StoreError::bad(format!("\"{shown}\" is not an image reference")));
    }
    Ok(())
}
