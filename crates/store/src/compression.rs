//! Telling compressions apart by their first bytes, and decoding them in this process.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::error::{StoreError, is_ours};

/// Longest window of a zstd frame, as a power of two: 128 MiB, what the format's own tools accept without being told.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Looks at the first bytes of a stream. What is neither gzip nor zstd is taken as it is.
    pub(crate) fn detect(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame; what writes seekable zstd may put one first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// A stream decoded while it is read.
pub(crate) enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Decoder<R> {
    pub(crate) fn new(reader: R) -> Result<Decoder<R>, StoreError> {
        let mut reader = BufReader::with_capacity(64 << 10, reader);
        let start = reader.fill_buf().map_err(|error| StoreError::io("read the start of the stream", error))?;
        Ok(match Compression::detect(start) {
            Compression::None => Decoder::Plain(reader),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(reader))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)
                    .map_err(|error| StoreError::io("start the zstd decoder", error))?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG)
                    .map_err(|error| StoreError::io("bound the zstd decoder", error))?;
                Decoder::Zstd(Box::new(decoder))
            }
        })
    }

    /// The packed stream; what the decoder buffered of it is lost.
    pub(crate) fn into_inner(self) -> R {
        match self {
            Decoder::Plain(reader) => reader.into_inner(),
            Decoder::Gzip(decoder) => decoder.into_inner().into_inner(),
            Decoder::Zstd(decoder) => decoder.finish().into_inner(),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (name, result) = match self {
            Decoder::Plain(reader) => return reader.read(buffer),
            Decoder::Gzip(decoder) => ("gzip", decoder.read(buffer)),
            Decoder::Zstd(decoder) => ("zstd", decoder.read(buffer)),
        };
        result.map_err(|error| {
            // The file's own errors and ours pass; what is left is the decoder's word on the data.
            if error.raw_os_error().is_some() || is_ours(&error) {
                error
            } else if error.kind() == io::ErrorKind::UnexpectedEof {
                StoreError::bad(format!("{name} data is truncated")).into_io()
            } else {
                StoreError::bad(format!("{name} data is damaged: {error}")).into_io()
            }
        })
    }
}
