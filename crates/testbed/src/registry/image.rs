//! Images made from layers' archives.

use std::io::Write as _;

use flate2::write::GzEncoder;

use super::content::{Published, digest_of};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Whose media types a manifest speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// OCI image-spec.
    Oci,
    /// Docker, manifest schema 2.
    Docker,
}

impl Family {
    pub(super) fn manifest(self) -> &'static str {
        match self {
            Family::Oci => "application/vnd.oci.image.manifest.v1+json",
            Family::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    pub(super) fn index(self) -> &'static str {
        match self {
            Family::Oci => "application/vnd.oci.image.index.v1+json",
            Family::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Family::Oci => "application/vnd.oci.image.config.v1+json",
            Family::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Family::Oci, Compression::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Family::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Family::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Family::Docker, Compression::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Family::Docker, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            // What BuildKit writes, though Docker never named it in a specification.
            (Family::Docker, Compression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// An image to put into a registry: linux/amd64, OCI's media types, no layer and an empty configuration at first.
#[derive(Debug, Clone)]
pub struct Image {
    pub(super) family: Family,
    architecture: String,
    config: String,
    layers: Vec<(Vec<u8>, Compression)>,
}

/// An image as its documents and blobs.
pub(super) struct Rendered {
    pub(super) published: Published,
    pub(super) manifest: Vec<u8>,
    pub(super) blobs: Vec<(String, Vec<u8>)>,
}

impl Default for Image {
    fn default() -> Image {
        Image::new()
    }
}

impl Image {
    /// One without layers.
    pub fn new() -> Image {
        Image { family: Family::Oci, architecture: "amd64".to_owned(), config: "{}".to_owned(), layers: Vec::new() }
    }

    /// With media types of this family.
    #[must_use]
    pub fn family(self, family: Family) -> Image {
        Image { family, ..self }
    }

    /// For linux on this architecture, by Go's names.
    #[must_use]
    pub fn architecture(self, architecture: &str) -> Image {
        Image { architecture: architecture.to_owned(), ..self }
    }

    /// With this JSON object as `config`, `{"Env":["A=b"]}`.
    #[must_use]
    pub fn config(self, json: &str) -> Image {
        Image { config: json.to_owned(), ..self }
    }

    /// With this tar archive on top, compressed by gzip.
    #[must_use]
    pub fn layer(self, tar: impl Into<Vec<u8>>) -> Image {
        self.layer_in(tar, Compression::Gzip)
    }

    /// With this tar archive on top.
    #[must_use]
    pub fn layer_in(mut self, tar: impl Into<Vec<u8>>, compression: Compression) -> Image {
        self.layers.push((tar.into(), compression));
        self
    }

    pub(super) fn render(&self) -> Rendered {
        let mut blobs = Vec::new();
        let mut descriptors = Vec::new();
        let mut published = Published {
            manifest: String::new(),
            config: String::new(),
            layers: vec![],
            sizes: vec![],
            diff_ids: vec![],
        };
        for (tar, compression) in &self.layers {
            let blob = compressed(tar, *compression);
            let digest = digest_of(&blob);
            descriptors.push(descriptor(self.family.layer(*compression), &digest, blob.len()));
            published.diff_ids.push(digest_of(tar));
            published.layers.push(digest.clone());
            published.sizes.push(blob.len() as u64);
            blobs.push((digest, blob));
        }
        let diff_ids: Vec<String> = published.diff_ids.iter().map(|digest| format!("\"{digest}\"")).collect();
        let config = format!(
            "{{\"architecture\":\"{}\",\"os\":\"linux\",\"config\":{},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
            self.architecture,
            self.config,
            diff_ids.join(",")
        );
        published.config = digest_of(config.as_bytes());
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"config\":{},\"layers\":[{}]}}",
            self.family.manifest(),
            descriptor(self.family.config(), &published.config, config.len()),
            descriptors.join(",")
        );
        blobs.push((published.config.clone(), config.into_bytes()));
        published.manifest = digest_of(manifest.as_bytes());
        Rendered { published, manifest: manifest.into_bytes(), blobs }
    }

    pub(super) fn index_entry(&self, digest: &str, size: usize) -> String {
        let (media_type, architecture) = (self.family.manifest(), &self.architecture);
        format!(
            "{{\"mediaType\":\"{media_type}\",\"digest\":\"{digest}\",\"size\":{size},\
             \"platform\":{{\"architecture\":\"{architecture}\",\"os\":\"linux\"}}}}"
        )
    }
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> String {
    format!("{{\"mediaType\":\"{media_type}\",\"digest\":\"{digest}\",\"size\":{size}}}")
}

fn compressed(tar: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Plain => tar.to_vec(),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).and_then(|()| encoder.finish()).expect("writing to memory does not fail")
        }
        Compression::Zstd => zstd::encode_all(tar, 1).expect("reading and writing memory does not fail"),
    }
}
