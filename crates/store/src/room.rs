//! Room for what is being fetched. Images make way as bytes come, never because somebody says that many will.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::Store;
use crate::collect::digests_in;
use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::prune::Scope;
use crate::source::ImageSource;

/// Bytes that are kept free while an image arrives, on a disk of 10 GiB and more; on a smaller one, a twentieth of it. More
/// than arrives between two looks.
const KEPT_FREE: u64 = 512 << 20;

/// Percent of the inodes in use from which on images make way, and at which that ends.
const INODES: Scope = Scope::Watermarks { start: 95, stop: 90 };

/// Keeps room while an image arrives.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Whether there is nothing left that may be removed. Locked by whoever removes; one at a time is enough.
    exhausted: Mutex<bool>,
}

impl Room {
    /// Removes images that were not used for longest when room gets scarce. Called as bytes arrive.
    pub(crate) fn keep(&self, store: &Store) {
        let Ok(mut exhausted) = self.exhausted.try_lock() else { return };
        let (Ok(space), Ok(inodes)) = (store.space(), store.inodes()) else { return };
        let kept = KEPT_FREE.min(space.total / 20);
        let scope = match (space.free < kept, inodes.percent_used() > 95) {
            _ if *exhausted => return,
            (true, _) => Scope::Room(kept * 2),
            (false, true) => INODES,
            (false, false) => return,
        };
        // What cannot be removed is no failure of the pull, which may fit all the same.
        let pruned = store.prune(scope, &mut |_| {});
        *exhausted = pruned.map_or(true, |pruned| pruned.references.is_empty());
    }
}

impl Store {
    /// Refuses what has no chance to fit, before anything of it is fetched. The sizes are the registry's word, so nothing is
    /// removed for them.
    pub(crate) fn check_room(&self, image: &ImageSource<'_>) -> Result<(), StoreError> {
        if !image.is_remote() {
            return Ok(());
        }
        let mut missing = HashMap::new();
        for layer in &image.layers {
            if let Some((_, size)) = layer.blob
                && !self.has_layer(&layer.diff_id)?
            {
                missing.insert(layer.diff_id, size);
            }
        }
        let packed = missing.values().fold(0, |sum: u64, size| sum.saturating_add(*size));
        // Packed and unpacked, it takes this much at the very least.
        let least = packed.saturating_mul(2);
        let free = self.space()?.free;
        if free < least && free.saturating_add(self.removable()?) < least {
            let cause = format!(
                "needs at least {least} bytes ({packed} to fetch, and to unpack); {free} are free, and removing images would \
                 not help"
            );
            return Err(StoreError::new(ErrorKind::NoSpace, cause));
        }
        Ok(())
    }

    /// Bytes of all layers: removing images frees no more than that.
    fn removable(&self) -> Result<u64, StoreError> {
        let layers = digests_in(&self.layout.layers, "").map_err(|error| StoreError::io("list the layers", error))?;
        let bytes =
            |layer: &Digest| self.layout.read_layer(layer).ok().flatten().map_or(0, |record| record.stats.bytes);
        Ok(layers.iter().map(bytes).fold(0, u64::saturating_add))
    }
}
