//! SHA-256 digests as OCI writes them, and a reader that measures what passes through it.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::error::{StoreError, quoted};

/// A SHA-256 digest, written `sha256:` and 64 lower-case hexadecimal digits. The store takes no other algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The 64 digits without the algorithm; what files in the store are named by.
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16"));
            }
        }
        text
    }

    /// The 32 bytes themselves.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads 64 lower-case digits without the algorithm.
    pub(crate) fn from_hex(text: &str) -> Option<Digest> {
        let digits = text.as_bytes();
        if digits.len() != 64 || digits.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(high << 4 | low).ok()?;
        }
        Some(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Digest, StoreError> {
        text.strip_prefix("sha256:").and_then(Digest::from_hex).ok_or_else(|| {
            StoreError::bad(format!("digest \"{}\" is not sha256: and 64 lower-case digits", quoted(text.as_bytes())))
        })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A running SHA-256.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// As many zeros: what a hole reads as.
    pub(crate) fn update_zeros(&mut self, mut count: u64) {
        static ZEROS: [u8; 16 << 10] = [0; 16 << 10];
        while count > 0 {
            let part = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
            self.0.update(&ZEROS[..part]);
            count -= part as u64;
        }
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Hashes and counts what is read through it, and fails as soon as more than `limit` bytes came.
pub(crate) struct Metered<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
    limit: u64,
    over: Option<StoreError>,
}

impl<R: Read> Metered<R> {
    /// `over` is the error of a stream longer than `limit`.
    pub(crate) fn new(inner: R, limit: u64, over: StoreError) -> Metered<R> {
        Metered { inner, hasher: Hasher::default(), count: 0, limit, over: Some(over) }
    }

    /// Ends the measurement: the reader below, the digest and the number of the bytes read.
    pub(crate) fn into_parts(self) -> (R, Digest, u64) {
        (self.inner, self.hasher.finish(), self.count)
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count += n as u64;
        if self.count > self.limit {
            let over = self.over.take().unwrap_or_else(|| StoreError::limit("read on after the limit"));
            return Err(over.into_io());
        }
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// Reads to the end and forgets the bytes.
pub(crate) fn drain(reader: &mut impl Read) -> io::Result<()> {
    io::copy(reader, &mut io::sink()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_and_written_in_one_form_only() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
        let upper = empty.replace("e3b0", "E3B0");
        for wrong in [&empty[7..], &empty[..70], &upper, "sha512:00", "", "sha256:", "sha256:../../../../etc/passwd"] {
            let error = wrong.parse::<Digest>().unwrap_err();
            assert!(error.to_string().contains("64 lower-case digits"), "{wrong}: {error}");
        }
    }
}
