//! Removing references, and what nothing refers to any more.
//!
//! Order, for the sake of a crash in between: the reference goes first, then the image's record, then layers and blobs.
//! Large trees are only renamed into `tmp/` while the store is locked; emptying them takes its time afterwards.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::layout::{ImageRecord, Layout, unique_name};
use crate::lock::{Lock, Share, open_layer_lock};
use crate::{Store, tree};

/// What [`Store::remove`] took away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Image the reference named.
    pub image: Digest,
    /// Layers that no image needs any more.
    pub layers: usize,
    /// Bytes of file content in them.
    pub bytes: u64,
}

/// What [`Store::sweep`] took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Left-overs of interrupted work in `tmp/`.
    pub debris: usize,
    /// Images without a reference that nobody used.
    pub images: usize,
    /// Layers that no image needs.
    pub layers: usize,
    /// Bytes of file content in those layers.
    pub bytes: u64,
}

impl Store {
    /// Removes a reference, and everything that only it kept.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::InUse`] when this is the image's last reference and somebody has a lease.
    pub fn remove(&self, reference: &str) -> Result<Removed, StoreError> {
        self.remove_reference(reference).map_err(|error| error.for_image(reference))
    }

    fn remove_reference(&self, reference: &str) -> Result<Removed, StoreError> {
        let layout = &self.layout;
        let collecting = layout.lock(Share::Exclusive)?;
        let Some((record, _)) = layout.read_ref(reference)? else {
            return Err(StoreError::new(ErrorKind::NotFound, "not in the store; `runnerctl image ls` shows what is"));
        };
        let image = record.image;
        let others = self.references()?.iter().any(|(other, _)| other.image == image && other.reference != reference);
        if !others && self.is_leased(&image)? {
            return Err(StoreError::new(
                ErrorKind::InUse,
                format!("in use by a running guest (image {image}); try again when it has ended"),
            ));
        }
        rustix::fs::unlinkat(&layout.refs, Layout::ref_name(reference), AtFlags::empty())
            .and_then(|()| rustix::fs::fsync(&layout.refs))
            .map_err(|error| StoreError::io("remove the reference", error))?;
        let collected = self.collect()?;
        drop(collecting);
        self.empty(collected.trash)?;
        Ok(Removed { image, layers: collected.swept.layers, bytes: collected.swept.bytes })
    }

    /// Removes what interrupted work left behind, and images and layers nothing refers to. Safe at any time, beside
    /// imports and leases of other processes; meant for the start of the broker and a timer.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when a reference cannot be read: then nothing is collected, since it might be needed.
    pub fn sweep(&self) -> Result<Swept, StoreError> {
        let collecting = self.layout.lock(Share::Exclusive)?;
        self.forget_lost()?;
        let debris = self.debris()?;
        let mut collected = self.collect()?;
        drop(collecting);
        collected.swept.debris = debris.len() + self.remove_stale_partials()?;
        self.empty(debris)?;
        self.empty(collected.trash)?;
        Ok(collected.swept)
    }

    fn is_leased(&self, image: &Digest) -> Result<bool, StoreError> {
        let name = Layout::image_name(image);
        match self.layout.read_record::<ImageRecord>(self.layout.images.as_fd(), &name)? {
            Some((_, file)) => Ok(Lock::attempt(OwnedFd::from(file), Share::Exclusive)?.is_none()),
            None => Ok(false),
        }
    }

    /// Takes everything unreachable out of its place. The caller holds the store's lock exclusively and empties the
    /// trash without it.
    pub(crate) fn collect(&self) -> Result<Collected, StoreError> {
        let layout = &self.layout;
        let failed = |error: Errno| StoreError::io(format_args!("collect in {}", layout.path().display()), error);
        let mut collected = Collected::default();
        let mut images = HashSet::new();
        let mut blobs = HashSet::new();
        for (record, _) in self.references()? {
            images.insert(record.image);
            blobs.extend(record.documents);
        }
        let mut layers = HashSet::new();
        for image in digests_in(&layout.images, ".json").map_err(failed)? {
            let name = Layout::image_name(&image);
            let Some((record, file)) = layout.read_record::<ImageRecord>(layout.images.as_fd(), &name)? else {
                continue;
            };
            if !images.contains(&image) && Lock::attempt(OwnedFd::from(file), Share::Exclusive)?.is_some() {
                rustix::fs::unlinkat(&layout.images, &name, AtFlags::empty()).map_err(failed)?;
                collected.swept.images += 1;
                continue;
            }
            blobs.insert(image);
            layers.extend(record.layers);
        }
        rustix::fs::fsync(&layout.images).map_err(failed)?;
        for layer in digests_in(&layout.layers, "").map_err(failed)? {
            if !layers.contains(&layer) {
                self.discard_layer(&layer, &mut collected)?;
            }
        }
        for blob in digests_in(&layout.blobs, "").map_err(failed)? {
            if !blobs.contains(&blob) {
                rustix::fs::unlinkat(&layout.blobs, blob.hex(), AtFlags::empty()).map_err(failed)?;
            }
        }
        for layer in digests_in(&layout.locks, "").map_err(failed)? {
            self.discard_lock(&layer)?;
        }
        Ok(collected)
    }

    /// Moves a layer to the trash, unless an import relies on it.
    fn discard_layer(&self, layer: &Digest, collected: &mut Collected) -> Result<(), StoreError> {
        let layout = &self.layout;
        let name = layer.hex();
        let failed = |error: Errno| StoreError::io(format_args!("remove layers/{name}"), error);
        let fd = open_layer_lock(layout.locks.as_fd(), &name)?;
        let Some(_lock) = Lock::attempt(fd, Share::Exclusive)? else { return Ok(()) };
        // A damaged record is no reason to keep what nobody needs.
        let bytes = layout.read_layer(layer).ok().flatten().map_or(0, |record| record.stats.bytes);
        let trash = unique_name("trash");
        rustix::fs::renameat(&layout.layers, &name, &layout.tmp, &trash).map_err(failed)?;
        rustix::fs::fsync(&layout.layers).map_err(failed)?;
        let lock = self.claim(trash.as_bytes())?;
        collected.trash.push((trash.into_bytes(), lock));
        collected.swept.layers += 1;
        collected.swept.bytes += bytes;
        Ok(())
    }

    /// Removes a layer's lock file when the layer is gone and nobody is at work on it.
    fn discard_lock(&self, layer: &Digest) -> Result<(), StoreError> {
        let layout = &self.layout;
        let name = layer.hex();
        let failed = |error: Errno| StoreError::io(format_args!("remove locks/{name}"), error);
        if tree::stat_name(layout.layers.as_fd(), name.as_bytes()).map_err(failed)?.is_some() {
            return Ok(());
        }
        let fd = open_layer_lock(layout.locks.as_fd(), &name)?;
        if let Some(_lock) = Lock::attempt(fd, Share::Exclusive)? {
            rustix::fs::unlinkat(&layout.locks, &name, AtFlags::empty()).map_err(failed)?;
        }
        Ok(())
    }

    /// Everything in `tmp/` that nobody works in. The caller holds the store's lock exclusively, under which nobody is
    /// between making something there and locking it.
    pub(crate) fn debris(&self) -> Result<Vec<Trash>, StoreError> {
        let tmp = self.layout.tmp.as_fd();
        let failed = |error: Errno| StoreError::io("look for debris in tmp/", error);
        let mut debris = Vec::new();
        for name in tree::names(tmp).map_err(failed)? {
            let Some(stat) = tree::stat_name(tmp, &name).map_err(failed)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                debris.push((name, None));
            } else if let Some(lock) = self.claim(&name)? {
                debris.push((name, Some(lock)));
            }
        }
        Ok(debris)
    }

    /// Locks a folder in `tmp/`; `None` when somebody else has it.
    fn claim(&self, name: &[u8]) -> Result<Option<Lock>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.layout.tmp, name, flags, Mode::empty()) {
            Ok(fd) => Lock::attempt(fd, Share::Exclusive),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(StoreError::io("open debris in tmp/", error)),
        }
    }

    /// Removes what [`collect`](Store::collect) or [`debris`](Store::debris) took, outside the store's lock.
    pub(crate) fn empty(&self, trash: Vec<Trash>) -> Result<(), StoreError> {
        for (name, _lock) in trash {
            tree::remove(self.layout.tmp.as_fd(), &name)
                .map_err(|error| StoreError::io(format_args!("remove tmp/{}", crate::error::quoted(&name)), error))?;
        }
        Ok(())
    }
}

/// A name in `tmp/` to be removed, with the lock that says who does it.
type Trash = (Vec<u8>, Option<Lock>);

/// What a collection took out of its place.
#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) swept: Swept,
    pub(crate) trash: Vec<Trash>,
}

/// Names in a folder that are a digest's digits and `suffix`; whatever else is there is not ours to judge.
pub(crate) fn digests_in(folder: &OwnedFd, suffix: &str) -> rustix::io::Result<Vec<Digest>> {
    let names = tree::names(folder.as_fd())?;
    let digest = |name: Vec<u8>| Digest::from_hex(std::str::from_utf8(&name).ok()?.strip_suffix(suffix)?);
    Ok(names.into_iter().filter_map(digest).collect())
}
