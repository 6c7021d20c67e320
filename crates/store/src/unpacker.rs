//! From the packed bytes of a layer to a folder: decompressing, measuring, unpacking. Here or in a sandbox.
//!
//! Two threads share the work: one reads, decompresses and hashes both forms of the stream, the other writes files and
//! hashes their content. A few buffers go round between them, so that neither gets far ahead.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::Store;
use crate::compression::Decoder;
use crate::digest::{Digest, Metered, drain};
use crate::error::{ErrorKind, StoreError};
use crate::layout::LayerStats;
use crate::limits::{Budget, Limits, too_many_bytes};
use crate::sandbox;
use crate::unpack::{MarkOpaque, Unpacked, unpack};

/// Bytes that go from thread to thread at a time.
const CHUNK: usize = 256 << 10;

/// Buffers that go round.
const CHUNKS: usize = 4;

/// Stack of the thread that decompresses; the decoders keep their state elsewhere.
const STACK: usize = 1 << 20;

/// Packed bytes between two reports of progress.
pub(crate) const REPORT_EVERY: u64 = 256 << 10;

/// Where the bytes of layers are taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unpacker {
    /// In this process, with all its rights. For tests and fuzzing, where the code that runs matters and not who runs it.
    InProcess,
    /// In a process of its own for each layer, which sees nothing but the layer's folder: see `docs/store-format.md`.
    /// Needs `CAP_SYS_ADMIN`, and a store on a file system with idmapped mounts.
    Sandboxed {
        /// The program `layer-unpack`.
        program: PathBuf,
        /// The first of 65,536 ids of the host that are used for nothing else; the process has these and no others.
        base: u32,
    },
}

impl Store {
    /// The same store, which unpacks layers there. Without this it is in the process itself.
    #[must_use]
    pub fn with_unpacker(self, unpacker: Unpacker) -> Store {
        Store { unpacker, ..self }
    }
}

/// Packed bytes of a layer: a stretch of a file, then whatever comes out of a pipe.
pub(crate) struct Packed {
    pub(crate) file: File,
    pub(crate) offset: u64,
    pub(crate) left: u64,
    pub(crate) rest: Option<File>,
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
#[derive(Debug)]
pub(crate) struct UnpackedLayer {
    /// Digest of the unpacked stream.
    pub(crate) diff_id: Digest,
    pub(crate) stats: LayerStats,
    /// Whether the archive had its end mark.
    pub(crate) marked_end: bool,
    /// Tree digest of what was unpacked.
    pub(crate) tree: Digest,
}

/// Unpacks packed bytes into `root`, checking digest and size of the packed bytes. `report` hears how many packed bytes
/// were read. Another process is ended when `given_up` says that nobody wants the layer any more.
pub(crate) fn unpack_layer(
    unpacker: &Unpacker,
    packed: Packed,
    blob: Option<(Digest, u64)>,
    root: BorrowedFd<'_>,
    budget: &mut Budget,
    given_up: &dyn Fn() -> bool,
    report: &mut dyn FnMut(u64),
) -> Result<UnpackedLayer, StoreError> {
    match unpacker {
        Unpacker::InProcess => {
            unpack_here(packed, blob, root, budget, &mut |dir| crate::tree::mark_opaque(dir), report)
        }
        Unpacker::Sandboxed { program, base } => {
            sandbox::unpack((program, *base), packed, blob, root, budget, given_up, report)
        }
    }
}

/// [`unpack_layer`] in this process.
pub(crate) fn unpack_here(
    packed: Packed,
    blob: Option<(Digest, u64)>,
    root: BorrowedFd<'_>,
    budget: &mut Budget,
    mark: MarkOpaque<'_>,
    report: &mut dyn FnMut(u64),
) -> Result<UnpackedLayer, StoreError> {
    let stated = blob.map_or(u64::MAX, |(_, size)| size);
    let over = StoreError::new(ErrorKind::DigestMismatch, format!("blob is longer than the {stated} bytes stated"));
    let done = &AtomicU64::new(0);
    let packed = Metered::new(Counted { inner: packed, done }, stated, over);
    let expansion = Expansion { limits: budget.limits().clone(), packed: blob.map(|(_, size)| size), plain: 0, done };
    let plain = PlainLimit { bytes: budget.bytes_left(), over: too_many_bytes(budget.limits().decompressed_bytes) };
    let (full, filled) = sync_channel(CHUNKS);
    let (back, empty) = sync_channel(CHUNKS);
    std::thread::scope(|scope| {
        let feeder = std::thread::Builder::new()
            .name("decompress".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, move || feed(packed, plain, expansion, &full, &empty))
            .map_err(|error| StoreError::io("start a thread", error))?;
        let mut stream = Chunks { filled, back, chunk: Chunk::default(), at: 0, done, reported: 0, report };
        let unpacked = unpack(&mut stream, root, budget, mark).and_then(|unpacked| {
            // What follows the end mark belongs to the digests too.
            drain(&mut stream).map_err(|error| StoreError::io("read the archive", error))?;
            Ok(unpacked)
        });
        // Lets the other thread end, wherever it is.
        drop(stream);
        let (packed, plain) = match feeder.join().expect("a panic of the other thread is one of ours") {
            Some(Fed { packed, diff_id, bytes }) => (Some(packed), Some((diff_id, bytes))),
            None => (None, None),
        };
        let complete = unpacked.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::BadSource);
        if complete && let (Some((digest, size)), Some(mut packed)) = (blob, packed) {
            // Damaged in transit is the likelier cause of bytes that make no sense, and the one to report.
            drain(&mut packed).map_err(|error| StoreError::io("read the blob", error))?;
            let (_, found, count) = packed.into_parts();
            if (found, count) != (digest, size) {
                let cause = format!("blob has digest {found} and {count} bytes instead of {digest} and {size}");
                return Err(StoreError::new(ErrorKind::DigestMismatch, cause));
            }
        }
        let Unpacked { stats, marked_end, tree } = unpacked?;
        // Whoever read the stream to its end without an error had all of it.
        let Some((diff_id, bytes)) = plain else { return Err(StoreError::bad("the stream has no beginning")) };
        budget.spend_bytes(bytes)?;
        Ok(UnpackedLayer { diff_id, stats, marked_end, tree })
    })
}

/// Lets the other thread see how many bytes passed.
struct Counted<'a> {
    inner: Packed,
    done: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.done.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// How much larger than its packed form a layer became so far.
struct Expansion<'a> {
    limits: Limits,
    /// Size of the packed form, where something states it.
    packed: Option<u64>,
    plain: u64,
    /// What of the packed form was read so far.
    done: &'a AtomicU64,
}

impl Expansion<'_> {
    fn grow(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.plain += bytes as u64;
        let Limits { expansion, expansion_free, .. } = self.limits;
        let packed = self.packed.unwrap_or_else(|| self.done.load(Ordering::Relaxed));
        if self.plain > expansion_free.max(packed.saturating_mul(expansion)) {
            return Err(StoreError::limit(format!("unpacks to more than {expansion} times its {packed} packed bytes")));
        }
        Ok(())
    }
}

/// Bytes on their way between the threads; those behind `filled` mean nothing.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    filled: usize,
}

/// How long the decompressed stream may be, and what to say of a longer one.
struct PlainLimit {
    bytes: u64,
    over: StoreError,
}

/// The packed stream as far as it was read, and what came out of it.
struct Fed<'a> {
    packed: Metered<Counted<'a>>,
    /// Digest and number of the decompressed bytes.
    diff_id: Digest,
    bytes: u64,
}

/// Decompresses until the end, an error, or until nobody listens any more. `None` when there was nothing to begin with.
fn feed<'a>(
    packed: Metered<Counted<'a>>,
    plain: PlainLimit,
    mut expansion: Expansion<'_>,
    full: &SyncSender<io::Result<Chunk>>,
    empty: &Receiver<Vec<u8>>,
) -> Option<Fed<'a>> {
    let mut stream = match Decoder::new(packed) {
        Ok(decoder) => Metered::new(decoder, plain.bytes, plain.over),
        Err(error) => {
            // If nobody listens, there is another error that will be heard.
            let _ = full.send(Err(error.into_io()));
            return None;
        }
    };
    let mut made = 0;
    loop {
        let mut bytes = if made < CHUNKS {
            made += 1;
            vec![0; CHUNK]
        } else {
            let Ok(bytes) = empty.recv() else { break };
            bytes
        };
        let (filled, outcome) = fill(&mut stream, &mut bytes);
        let outcome = outcome.and_then(|more| expansion.grow(filled).map(|()| more).map_err(StoreError::into_io));
        if full.send(Ok(Chunk { bytes, filled })).is_err() {
            break;
        }
        match outcome {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                let _ = full.send(Err(error));
                break;
            }
        }
    }
    let (decoder, diff_id, bytes) = stream.into_parts();
    Some(Fed { packed: decoder.into_inner(), diff_id, bytes })
}

/// Fills a buffer: how far, and whether there may be more.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> (usize, io::Result<bool>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => return (filled, Ok(false)),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Err(error)),
        }
    }
    (filled, Ok(true))
}

/// The decompressed stream as the other thread hands it over; tells now and then how far that one is.
struct Chunks<'a> {
    filled: Receiver<io::Result<Chunk>>,
    back: SyncSender<Vec<u8>>,
    chunk: Chunk,
    at: usize,
    done: &'a AtomicU64,
    reported: u64,
    report: &'a mut dyn FnMut(u64),
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.filled {
            let used = std::mem::take(&mut self.chunk).bytes;
            self.at = 0;
            if !used.is_empty() {
                // Fails when that thread is done.
                let _ = self.back.send(used);
            }
            match self.filled.recv() {
                Ok(chunk) => self.chunk = chunk?,
                Err(_) => return Ok(0),
            }
            let done = self.done.load(Ordering::Relaxed);
            if done >= self.reported + REPORT_EVERY {
                self.reported = done;
                (self.report)(done);
            }
        }
        let n = buffer.len().min(self.chunk.filled - self.at);
        buffer[..n].copy_from_slice(&self.chunk.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
