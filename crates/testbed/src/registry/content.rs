//! What a registry holds: repositories with blobs, manifests and tags.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::Request;
use super::image::{Family, Image};
use super::message::Answer;

/// What an image became in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Digest of the manifest.
    pub manifest: String,
    /// Digest of the configuration.
    pub config: String,
    /// Digests of the layers' blobs, lowest first.
    pub layers: Vec<String>,
    /// Sizes of the layers' blobs, in bytes.
    pub sizes: Vec<u64>,
    /// Digests of the layers' archives, uncompressed.
    pub diff_ids: Vec<String>,
}

/// `sha256:` and the digits of `bytes`' digest.
pub fn digest_of(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a text takes everything");
    }
    text
}

#[derive(Debug, Default)]
pub(super) struct Content(HashMap<String, Repository>);

#[derive(Debug, Default)]
struct Repository {
    blobs: HashMap<String, Arc<Vec<u8>>>,
    manifests: HashMap<String, (String, Arc<Vec<u8>>)>,
    tags: HashMap<String, String>,
}

impl Content {
    fn repository(&mut self, name: &str) -> &mut Repository {
        self.0.entry(name.to_owned()).or_default()
    }

    pub(super) fn put_blob(&mut self, repository: &str, digest: &str, bytes: Vec<u8>) {
        self.repository(repository).blobs.insert(digest.to_owned(), Arc::new(bytes));
    }

    pub(super) fn put_manifest(&mut self, repository: &str, digest: &str, media_type: &str, bytes: Vec<u8>) {
        let manifest = (media_type.to_owned(), Arc::new(bytes));
        self.repository(repository).manifests.insert(digest.to_owned(), manifest);
    }

    pub(super) fn tag(&mut self, repository: &str, tag: &str, digest: &str) {
        self.repository(repository).tags.insert(tag.to_owned(), digest.to_owned());
    }

    pub(super) fn remove(&mut self, repository: &str, digest: &str) {
        let repository = self.repository(repository);
        repository.blobs.remove(digest);
        repository.manifests.remove(digest);
    }

    pub(super) fn put_image(&mut self, repository: &str, image: &Image) -> Published {
        let rendered = image.render();
        for (digest, bytes) in rendered.blobs {
            self.put_blob(repository, &digest, bytes);
        }
        let manifest = rendered.published.manifest.clone();
        self.put_manifest(repository, &manifest, image.family.manifest(), rendered.manifest);
        rendered.published
    }

    pub(super) fn put_index(&mut self, repository: &str, family: Family, images: &[Image]) -> (String, Vec<Published>) {
        let published: Vec<Published> = images.iter().map(|image| self.put_image(repository, image)).collect();
        let mut entries = Vec::new();
        for (image, published) in images.iter().zip(&published) {
            let size = self.repository(repository).manifests[&published.manifest].1.len();
            entries.push(image.index_entry(&published.manifest, size));
        }
        let media_type = family.index();
        let entries = entries.join(",");
        let bytes =
            format!("{{\"schemaVersion\":2,\"mediaType\":\"{media_type}\",\"manifests\":[{entries}]}}").into_bytes();
        let digest = digest_of(&bytes);
        self.put_manifest(repository, &digest, media_type, bytes);
        (digest, published)
    }

    /// The answer to a request for something in a repository, credentials aside.
    pub(super) fn answer(&self, repository: &str, kind: &str, name: &str, request: &Request) -> Answer {
        let found = self.0.get(repository);
        match kind {
            "manifests" => {
                let found = found.and_then(|repository| {
                    let digest = repository.tags.get(name).map_or(name, String::as_str);
                    repository.manifests.get_key_value(digest)
                });
                let Some((digest, (media_type, bytes))) = found else {
                    return Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
                };
                let answer = Answer::new(200, Arc::clone(bytes));
                answer.with("Content-Type", media_type).with("Docker-Content-Digest", digest)
            }
            "blobs" => match found.and_then(|repository| repository.blobs.get(name)) {
                Some(bytes) => blob(bytes, request),
                None => Answer::error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
            },
            _ => Answer::error(404, "UNSUPPORTED", "no such thing"),
        }
    }
}

/// A blob, or what `Range: bytes=N-` asks of it (RFC 9110, 14.2).
fn blob(bytes: &Arc<Vec<u8>>, request: &Request) -> Answer {
    let first = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let size = bytes.len();
    let answer = match first {
        None => Answer::new(200, Arc::clone(bytes)),
        Some(first) if first < size => {
            let range = format!("bytes {first}-{}/{size}", size - 1);
            Answer::new(206, bytes[first..].to_vec()).with("Content-Range", &range)
        }
        Some(_) => {
            return Answer::error(416, "RANGE_INVALID", "no such range")
                .with("Content-Range", &format!("bytes */{size}"));
        }
    };
    answer.with("Content-Type", "application/octet-stream")
}
