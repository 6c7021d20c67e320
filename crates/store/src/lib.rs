//! Images by content: import, verify, unpack, references, leases.
//!
//! A [`Store`] is a folder only root may enter. It keeps each layer once, unpacked, ready to be a lower directory of an
//! overlay; images are lists of layers with a configuration, references are names for images. [`Store::resolve`] gives a
//! [`Lease`]: as long as it lives, in whatever process, nothing of its image is removed.
//!
//! Several processes use one store at the same time; locks are `flock(2)` and vanish with their holder. A crash at any
//! point leaves the old state or the new one, and debris that [`Store::sweep`] removes. All calls block.
//!
//! The format on disk is specified in `docs/store-format.md`.

mod archive;
mod claim;
mod collect;
mod compression;
mod config;
mod confined;
mod copy;
mod digest;
mod entries;
mod error;
mod import;
mod layers;
mod layout;
mod lease;
mod limits;
mod listing;
mod lock;
mod manifest;
mod prune;
mod remote;
mod room;
mod sandbox;
mod settle;
mod source;
mod tree;
mod tree_digest;
mod unpack;
mod unpacker;
mod verify;

use std::path::Path;

pub use collect::{Removed, Swept};
pub use config::{Healthcheck, ImageConfig};
pub use confined::serve as serve_layer_unpack;
pub use digest::Digest;
pub use error::{ErrorKind, StoreError};
pub use import::{Imported, Progress};
pub use layout::LayerStats;
pub use lease::Lease;
pub use limits::Limits;
pub use listing::{ImageSummary, Inspected, InspectedLayer, Known};
pub use prune::{Pruned, Scope, Space};
pub use remote::{BlobRequest, Fetching, Remote};
pub use source::Source;
pub use unpacker::Unpacker;
pub use verify::{Finding, Gravity, Verifying};

/// An image store. Cheap to open; hold one per process.
#[derive(Debug)]
pub struct Store {
    layout: layout::Layout,
    limits: Limits,
    unpacker: Unpacker,
}

impl Store {
    /// Opens the store in the folder `root`, and makes it when the folder is absent or empty (its parent must exist).
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] for a store of a newer format and for a folder that holds something else.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        Store::open_with(root, Limits::default())
    }

    /// [`open`](Store::open) with other bounds on imports.
    ///
    /// # Errors
    /// As [`open`](Store::open).
    pub fn open_with(root: &Path, limits: Limits) -> Result<Store, StoreError> {
        let store = Store { layout: layout::Layout::open(root)?, limits, unpacker: Unpacker::InProcess };
        store.enter_boot()?;
        Ok(store)
    }

    /// The store's folder, without symbolic links.
    pub fn path(&self) -> &Path {
        self.layout.path()
    }
}
