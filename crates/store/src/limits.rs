//! Bounds that keep a hostile image from filling the disk, the memory or the day.

use serde::{Deserialize, Serialize};

use std::time::Duration;

use crate::error::StoreError;

/// Bounds on what an import may cost. The byte and entry bounds hold for one import, all its layers together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes after decompression, and the logical size of sparse files; 64 GiB.
    pub decompressed_bytes: u64,
    /// Bytes a layer may unpack to for each packed byte, 200. What is packed better than that is a bomb; a Debian root is
    /// packed 2 to 4 times.
    pub expansion: u64,
    /// Bytes a layer may unpack to however well it is packed; 1 GiB. An image may have a large empty file.
    pub expansion_free: u64,
    /// Tar entries or files of a tree; 4 million.
    pub entries: u64,
    /// Bytes of one path or link target, 4095 (`PATH_MAX` without its NUL).
    pub path_bytes: usize,
    /// Directories above a file, symbolic links followed; 255.
    pub depth: usize,
    /// Layers of one image; 128. overlayfs itself stops at 500.
    pub layers: usize,
    /// Bytes of one JSON document (manifest, index, configuration); 4 MiB, what registries accept.
    pub document_bytes: u64,
    /// Whoever makes a layer must have fetched another mebibyte of it in this time, or others who need the layer no longer
    /// wait for him; 10 seconds.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            decompressed_bytes: 64 << 30,
            expansion: 200,
            expansion_free: 1 << 30,
            entries: 4_000_000,
            path_bytes: 4095,
            depth: 255,
            layers: 128,
            document_bytes: 4 << 20,
            stall: Duration::from_secs(10),
        }
    }
}

/// What is left of [`Limits`] during one import.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    bytes: u64,
    entries: u64,
    limits: Limits,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Budget {
        Budget { bytes: limits.decompressed_bytes, entries: limits.entries, limits: limits.clone() }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What another process has left of a budget.
    pub(crate) fn remaining(limits: Limits, bytes: u64, entries: u64) -> Budget {
        Budget { bytes, entries, limits }
    }

    pub(crate) fn bytes_left(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn entries_left(&self) -> u64 {
        self.entries
    }

    pub(crate) fn spend_bytes(&mut self, n: u64) -> Result<(), StoreError> {
        self.bytes = self.bytes.checked_sub(n).ok_or_else(|| too_many_bytes(self.limits.decompressed_bytes))?;
        Ok(())
    }

    /// Spends what a copy of this budget, taken as `before`, has spent until it became `after`.
    pub(crate) fn spend_as(&mut self, before: &Budget, after: &Budget) -> Result<(), StoreError> {
        self.spend_bytes(before.bytes.saturating_sub(after.bytes))?;
        let entries = before.entries.saturating_sub(after.entries);
        self.entries = self.entries.checked_sub(entries).ok_or_else(|| too_many_entries(self.limits.entries))?;
        Ok(())
    }

    pub(crate) fn spend_entry(&mut self) -> Result<(), StoreError> {
        self.entries = self.entries.checked_sub(1).ok_or_else(|| too_many_entries(self.limits.entries))?;
        Ok(())
    }
}

fn too_many_entries(limit: u64) -> StoreError {
    StoreError::limit(format!("more than {limit} entries"))
}

/// The error of an import that unpacks to more than `limit` bytes.
pub(crate) fn too_many_bytes(limit: u64) -> StoreError {
    StoreError::limit(format!("unpacks to more than {limit} bytes"))
}
