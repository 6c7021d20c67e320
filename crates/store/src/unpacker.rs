//! From the packed bytes of a layer to a folder: decompressing, measuring, unpacking.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use crate::compression::Decoder;
use crate::digest::{Digest, Metered, drain};
use crate::error::{ErrorKind, StoreError};
use crate::layout::LayerStats;
use crate::limits::{Budget, too_many_bytes};
use crate::tree;
use crate::unpack::{Unpacked, unpack};

/// Packed bytes between two reports of progress.
pub(crate) const REPORT_EVERY: u64 = 4 << 20;

/// Packed bytes of a layer: a stretch of a file, then whatever comes out of a pipe.
pub(crate) struct Packed {
    file: File,
    offset: u64,
    left: u64,
    rest: Option<File>,
}

impl Packed {
    /// `length` bytes of a file from `offset` on.
    pub(crate) fn stretch(file: File, offset: u64, length: u64) -> Packed {
        Packed { file, offset, left: length, rest: None }
    }

    /// The first `length` bytes of a file, then all of a pipe.
    pub(crate) fn followed(file: File, length: u64, pipe: File) -> Packed {
        Packed { file, offset: 0, left: length, rest: Some(pipe) }
    }
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..want], self.offset)?;
        self.offset += n as u64;
        self.left -= n as u64;
        match &mut self.rest {
            Some(pipe) if n == 0 && !buffer.is_empty() => pipe.read(buffer),
            _ => Ok(n),
        }
    }
}

/// What became of a layer's bytes.
pub(crate) struct UnpackedLayer {
    /// Digest of the unpacked stream.
    pub(crate) diff_id: Digest,
    pub(crate) stats: LayerStats,
    /// Whether the archive had its end mark.
    pub(crate) marked_end: bool,
}

/// Unpacks packed bytes into `root`, checking digest and size of the packed bytes. `report` hears how many packed bytes
/// were read.
pub(crate) fn unpack_layer(
    packed: Packed,
    blob: Option<(Digest, u64)>,
    root: BorrowedFd<'_>,
    budget: &mut Budget,
    report: &mut dyn FnMut(u64),
) -> Result<UnpackedLayer, StoreError> {
    let stated = blob.map_or(u64::MAX, |(_, size)| size);
    let over = StoreError::new(ErrorKind::DigestMismatch, format!("blob is longer than the {stated} bytes stated"));
    let packed = Metered::new(Reporting { inner: packed, done: 0, reported: 0, report }, stated, over);
    let limit = too_many_bytes(budget.limits().decompressed_bytes);
    let plain = Metered::new(Decoder::new(packed)?, budget.bytes_left(), limit);
    let mut stream = BufReader::with_capacity(tree::BUFFER, plain);
    let unpacked = unpack(&mut stream, root, budget).and_then(|unpacked| {
        // What follows the end mark belongs to the digests too.
        drain(&mut stream).map_err(|error| StoreError::io("read the archive", error))?;
        Ok(unpacked)
    });
    let (decoder, diff_id, bytes) = stream.into_inner().into_parts();
    let mut packed = decoder.into_inner();
    let complete = unpacked.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::BadSource);
    if complete && let Some((digest, size)) = blob {
        // Damaged in transit is the likelier cause of bytes that make no sense, and the one to report.
        drain(&mut packed).map_err(|error| StoreError::io("read the blob", error))?;
        let (_, found, count) = packed.into_parts();
        if (found, count) != (digest, size) {
            let cause = format!("blob has digest {found} and {count} bytes instead of {digest} and {size}");
            return Err(StoreError::new(ErrorKind::DigestMismatch, cause));
        }
    }
    let Unpacked { stats, marked_end } = unpacked?;
    budget.spend_bytes(bytes)?;
    Ok(UnpackedLayer { diff_id, stats, marked_end })
}

/// Tells how many bytes passed, now and then.
struct Reporting<'a> {
    inner: Packed,
    done: u64,
    reported: u64,
    report: &'a mut dyn FnMut(u64),
}

impl Read for Reporting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.done += n as u64;
        if self.done >= self.reported + REPORT_EVERY {
            self.reported = self.done;
            (self.report)(self.done);
        }
        Ok(n)
    }
}
