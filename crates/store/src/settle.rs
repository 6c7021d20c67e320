//! Bringing layers to the disk, when there is time for it.
//!
//! A layer is a hundred thousand files. To wait until all of them are on the disk would be the slowest part of a pull, and
//! on a busy host by far: syncfs(2) waits for what everybody else has written too. So a layer counts from the moment it has
//! its name, but only until the machine stops; its record says so, until somebody has settled it. After a power cut an
//! unsettled layer is as good as absent, and so is a reference that needs it.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::collect::digests_in;
use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::layout::{ImageRecord, LayerRecord, Layout, this_boot};
use crate::lock::Share;
use crate::{Store, tree};

/// Which file it is: inode, and seconds and nanoseconds of its last change.
type FileId = (u64, i64, i64);

impl Store {
    /// Brings every layer to the disk that is not known to be there. How many. Takes as long as the disk takes; meant for
    /// the background after a pull, and for a timer.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) and its like. Then nothing is lost but the time until the next try.
    pub fn settle(&self) -> Result<usize, StoreError> {
        let layout = &self.layout;
        let failed = |error: Errno| StoreError::io("bring layers to the disk", error);
        let mut unsettled = Vec::new();
        for layer in digests_in(&layout.layers, "").map_err(failed)? {
            if let Some((_, file)) = self.unsettled(&layer)? {
                unsettled.push((layer, file));
            }
        }
        if unsettled.is_empty() {
            return Ok(0);
        }
        // One call instead of an fsync for each of a hundred thousand files.
        rustix::fs::syncfs(layout.root()).map_err(failed)?;
        // Nothing is collected meanwhile.
        let _publishing = layout.lock(Share::Shared)?;
        let mut settled = 0;
        for (layer, file) in unsettled {
            // Another layer of this name, made since, is not on the disk.
            let Some((record, _)) = self.unsettled(&layer)?.filter(|(_, now)| *now == file) else { continue };
            let text = serde_json::to_vec(&LayerRecord { unsettled: None, ..record });
            let text = text.expect("numbers and flags always serialise");
            let folder = tree::open_dir(layout.layers.as_fd(), layer.hex().as_bytes()).map_err(failed)?;
            layout.write_file(folder.as_fd(), "layer.json", &text)?;
            settled += 1;
        }
        Ok(settled)
    }

    /// The record of a layer that is not settled, and which file that is: inode and time of its last change.
    fn unsettled(&self, layer: &Digest) -> Result<Option<(LayerRecord, FileId)>, StoreError> {
        let name = format!("{}/layer.json", layer.hex());
        let found = match self.layout.read_record::<LayerRecord>(self.layout.layers.as_fd(), &name) {
            // A damaged record makes the layer absent, not the others.
            Err(_) | Ok(None) => return Ok(None),
            Ok(Some((record, file))) => (record, file),
        };
        let (record, file) = found;
        if record.unsettled.is_none() || record.is_lost() {
            return Ok(None);
        }
        let metadata = file.metadata().map_err(|error| StoreError::io("look at layer.json", error))?;
        // File systems give an inode's number away again at once.
        Ok(Some((record, (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))))
    }

    /// The first to open the store after the machine was started removes what did not reach the disk before.
    pub(crate) fn enter_boot(&self) -> Result<(), StoreError> {
        let (layout, boot) = (&self.layout, this_boot());
        let entered = || std::fs::read_to_string(layout.path().join("boot")).is_ok_and(|text| text == boot);
        if boot.is_empty() || entered() {
            return Ok(());
        }
        let collecting = layout.lock(Share::Exclusive)?;
        let forgotten = self.forget_lost().and_then(|lost| {
            // What only they needed is as incomplete as they are.
            let collected = if lost { self.collect()?.trash } else { Vec::new() };
            layout.write_file(layout.root(), "boot", boot.as_bytes())?;
            Ok(collected)
        });
        drop(collecting);
        match forgotten {
            Ok(trash) => self.empty(trash),
            // The store can be used all the same, and repaired only then.
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes references whose layers did not reach the disk before the machine stopped: that is the state before they
    /// were pulled. Whether there were such layers. The caller holds the store's lock exclusively.
    pub(crate) fn forget_lost(&self) -> Result<bool, StoreError> {
        let layout = &self.layout;
        let failed = |error: Errno| StoreError::io("forget a reference that did not reach the disk", error);
        let mut lost = std::collections::HashSet::new();
        for layer in digests_in(&layout.layers, "").map_err(failed)? {
            let name = format!("{}/layer.json", layer.hex());
            let record = layout.read_record::<LayerRecord>(layout.layers.as_fd(), &name);
            // The record itself may not have reached the disk.
            if record.map_or(true, |found| found.is_none_or(|(record, _)| record.is_lost())) {
                lost.insert(layer);
            }
        }
        if lost.is_empty() {
            return Ok(false);
        }
        for (record, _) in self.references()? {
            let name = Layout::image_name(&record.image);
            let image = layout.read_record::<ImageRecord>(layout.images.as_fd(), &name).ok().flatten();
            let needs_lost = image.is_some_and(|(image, _)| image.layers.iter().any(|layer| lost.contains(layer)));
            // What did not come from a registry was settled; that it is damaged is worth knowing.
            if needs_lost && record.digest.is_some() {
                rustix::fs::unlinkat(&layout.refs, Layout::ref_name(&record.reference), AtFlags::empty())
                    .map_err(failed)?;
            }
        }
        rustix::fs::fsync(&layout.refs).map_err(failed).map(|()| true)
    }
}
