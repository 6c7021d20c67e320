//! The one error type of the store: what kind of failure, which image, which layer, and the cause, in one line.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// What a caller can do about a [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The reference is not in the store: import or pull it.
    NotFound,
    /// The image has a [`Lease`](crate::Lease): wait for the job that holds it.
    InUse,
    /// The source is not an image we accept, is damaged, or asks for something refused on purpose (`..` in a path, a
    /// foreign layer, an id outside the guest's range).
    BadSource,
    /// The image could not be fetched: no answer, no such image, no right to it.
    Fetch,
    /// Bytes do not have the digest or the size that names them.
    DigestMismatch,
    /// A bound of [`Limits`](crate::Limits) was reached.
    LimitExceeded,
    /// The file system of the store is full (blocks, inodes or quota).
    NoSpace,
    /// The store was written by a newer version, or the folder is not a store.
    Incompatible,
    /// The store itself is damaged: something a reference needs is missing or unreadable.
    Damaged,
    /// Any other failure of a system call; the message names the path.
    Io,
}

/// A failure of a store operation. Its text is one line: image, layer (when there is one), cause.
#[derive(Debug, thiserror::Error)]
pub struct StoreError {
    kind: ErrorKind,
    image: Option<String>,
    layer: Option<String>,
    cause: String,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(image) = &self.image {
            write!(f, "image {image}: ")?;
        }
        if let Some(layer) = &self.layer {
            write!(f, "layer {layer}: ")?;
        }
        f.write_str(&self.cause)
    }
}

impl StoreError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// An error of whoever fetches images for the store. `cause` is one line without the image's name.
    pub fn fetch(cause: impl Into<String>) -> StoreError {
        StoreError::new(ErrorKind::Fetch, cause)
    }

    /// An error of whoever fetches images and found the store's file system full.
    pub fn no_space(cause: impl Into<String>) -> StoreError {
        StoreError::new(ErrorKind::NoSpace, cause)
    }

    pub(crate) fn new(kind: ErrorKind, cause: impl Into<String>) -> StoreError {
        StoreError { kind, image: None, layer: None, cause: cause.into() }
    }

    pub(crate) fn bad(cause: impl Into<String>) -> StoreError {
        StoreError::new(ErrorKind::BadSource, cause)
    }

    pub(crate) fn limit(cause: impl Into<String>) -> StoreError {
        StoreError::new(ErrorKind::LimitExceeded, cause)
    }

    /// `doing` is a verb and its object: `cannot {doing}: {error}`.
    pub(crate) fn io(doing: impl fmt::Display, error: impl Into<io::Error>) -> StoreError {
        let error = error.into();
        // Readers in a decoding chain can only speak io::Error; one of ours inside it is the real message.
        if is_ours(&error) {
            return *error.into_inner().and_then(|inner| inner.downcast().ok()).expect("its type was just checked");
        }
        let full = [Errno::NOSPC, Errno::DQUOT].iter().any(|full| error.raw_os_error() == Some(full.raw_os_error()));
        let kind = if full { ErrorKind::NoSpace } else { ErrorKind::Io };
        StoreError::new(kind, format!("cannot {doing}: {error}"))
    }

    pub(crate) fn for_image(mut self, reference: &str) -> StoreError {
        self.image.get_or_insert_with(|| quoted(reference.as_bytes()));
        self
    }

    pub(crate) fn for_layer(mut self, layer: impl fmt::Display) -> StoreError {
        self.layer.get_or_insert_with(|| layer.to_string());
        self
    }

    pub(crate) fn in_entry(mut self, path: &[u8]) -> StoreError {
        self.cause = format!("entry {}: {}", quoted(path), self.cause);
        self
    }

    pub(crate) fn in_file(mut self, file: impl fmt::Display) -> StoreError {
        self.cause = format!("{file}: {}", self.cause);
        self
    }

    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}

/// Whether a reader's error is one of ours in disguise.
pub(crate) fn is_ours(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<StoreError>()).is_some()
}

/// Shows hostile bytes on one line: control and non-ASCII bytes escaped, long text cut.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    const SHOWN: usize = 160;
    let cut = bytes.len().min(SHOWN);
    let mut text = bytes[..cut].escape_ascii().to_string();
    if cut < bytes.len() {
        text.push_str("...");
    }
    text
}
