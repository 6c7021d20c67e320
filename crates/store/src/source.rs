//! Where an image can come from on this machine, and how to tell by looking.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::archive::ImageArchive;
use crate::claim::LOCAL;
use crate::compression::{Compression, Decoder};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::entries::Entries;
use crate::error::{StoreError, quoted};
use crate::limits::Limits;
use crate::manifest::{self, Descriptor, Document};
use crate::remote::Remote;
use crate::unpacker::Packed;

/// An image on this machine's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory in OCI image layout (`oci-layout`, `index.json`, `blobs/`).
    OciDirectory(PathBuf),
    /// The same as a tar archive, plain, gzip or zstd.
    OciArchive(PathBuf),
    /// What `docker save` writes, plain, gzip or zstd.
    DockerArchive(PathBuf),
    /// A directory that is the root of a system, such as debootstrap or mkosi make. Becomes one layer.
    RootTree(PathBuf),
    /// A root packed by tar (as `docker export` does), plain, gzip or zstd. Becomes one layer.
    RootArchive(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Source::OciDirectory(_) => "OCI layout",
            Source::OciArchive(_) => "OCI archive",
            Source::DockerArchive(_) => "docker save archive",
            Source::RootTree(_) => "root tree",
            Source::RootArchive(_) => "root archive",
        };
        write!(f, "{kind} {}", self.path().display())
    }
}

/// What every message about an unsuitable source ends with.
const ACCEPTED: &str = "accepted are an OCI layout (directory or tar), a docker save archive, \
                        a root tree (directory or tar); tar files may be gzip or zstd";

/// Names at the top of a root; one of them is enough.
const ROOT_NAMES: [&str; 8] = ["bin", "sbin", "usr", "etc", "lib", "nix", "opt", "app"];

impl Source {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Source::OciDirectory(path)
            | Source::OciArchive(path)
            | Source::DockerArchive(path)
            | Source::RootTree(path)
            | Source::RootArchive(path) => path,
        }
    }

    /// Looks at `path` and says what it is. Fails with a line that names what was found and what is accepted.
    pub fn detect(path: &Path) -> Result<Source, StoreError> {
        let shown = path.display();
        let found = |what: &str| StoreError::bad(format!("{shown} is {what}; {ACCEPTED}"));
        let metadata = std::fs::metadata(path).map_err(|error| StoreError::io(format_args!("open {shown}"), error))?;
        let owned = path.to_path_buf();
        if metadata.is_dir() {
            if path.join("oci-layout").is_file() {
                return Ok(Source::OciDirectory(owned));
            }
            if ROOT_NAMES.iter().any(|name| path.join(name).symlink_metadata().is_ok()) {
                return Ok(Source::RootTree(owned));
            }
            let names = ROOT_NAMES.join(", ");
            return Err(found(&format!("a directory with neither an oci-layout file nor any of {names}")));
        }
        let kind = metadata.file_type();
        if !kind.is_file() {
            let socket = kind.is_socket() || kind.is_fifo();
            return Err(found(if socket { "a pipe or socket" } else { "a device" }));
        }
        if metadata.len() == 0 {
            return Err(found("an empty file"));
        }
        let file = File::open(path).map_err(|error| StoreError::io(format_args!("open {shown}"), error))?;
        match look_into(file) {
            Ok(Content::Oci) => Ok(Source::OciArchive(owned)),
            Ok(Content::Docker) => Ok(Source::DockerArchive(owned)),
            Ok(Content::Root) => Ok(Source::RootArchive(owned)),
            Ok(Content::Empty) => Err(found("an archive without entries")),
            Err(error) => Err(found(&format!("no archive we can read ({error})"))),
        }
    }
}

enum Content {
    Oci,
    Docker,
    Root,
    Empty,
}

/// Reads names of a tar file until they say what it is: a root tree has a folder that every root tree has, an image
/// archive an `oci-layout` or a `manifest.json` at the top.
fn look_into(mut file: File) -> Result<Content, StoreError> {
    let mut start = [0; 4];
    let failed = |error| StoreError::io("read the file", error);
    let n = file.read(&mut start).map_err(failed)?;
    std::io::Seek::rewind(&mut file).map_err(failed)?;
    if Compression::detect(&start[..n]) == Compression::None {
        let mut entries = Entries::seeking(file);
        settle(|| entries.next())
    } else {
        let mut entries = Entries::new(Decoder::new(file)?);
        settle(|| entries.next())
    }
}

fn settle(mut next: impl FnMut() -> Result<Option<crate::entries::Entry>, StoreError>) -> Result<Content, StoreError> {
    let mut empty = true;
    let mut docker = false;
    while let Some(entry) = next()? {
        let name = crate::archive::plain_name(&entry.path);
        if name.is_empty() {
            continue;
        }
        empty = false;
        match name.as_slice() {
            b"oci-layout" => return Ok(Content::Oci),
            b"manifest.json" => docker = true,
            other if begins_a_root(other) => return Ok(Content::Root),
            _ => {}
        }
    }
    Ok(match (docker, empty) {
        (true, _) => Content::Docker,
        (_, true) => Content::Empty,
        _ => Content::Root,
    })
}

/// Whether the name's first part is a folder that root trees have and image archives do not. Files of image archives
/// have all kinds of names, by the program that wrote them.
fn begins_a_root(name: &[u8]) -> bool {
    let top = name.split(|&byte| byte == b'/').next().unwrap_or_default();
    ROOT_NAMES.iter().any(|root| root.as_bytes() == top)
}

/// An image of several layers, ready to be imported.
pub(crate) struct ImageSource<'a> {
    container: Container<'a>,
    /// Bytes of the configuration; their digest is the image id.
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Option<Digest>,
    /// What a registry gave for the reference.
    pub(crate) digest: Option<Digest>,
    /// Manifest and indexes on the way to the configuration.
    pub(crate) documents: Vec<(Digest, Vec<u8>)>,
    /// Lowest first.
    pub(crate) layers: Vec<LayerSource>,
}

/// One layer of an [`ImageSource`].
pub(crate) struct LayerSource {
    pub(crate) diff_id: Digest,
    /// Digest and size of the packed bytes, when something states them.
    pub(crate) blob: Option<(Digest, u64)>,
    name: String,
}

/// A file's content and size.
type Opened = (Packed, u64);

/// Something files are looked up in by name.
pub(crate) enum Container<'a> {
    Directory(OwnedFd),
    Archive(ImageArchive),
    Remote(&'a dyn Remote),
}

/// Where the bytes of a layer are.
pub(crate) enum LayerBytes<'a> {
    /// Here, so many of them.
    Local(Packed, u64),
    /// To be fetched.
    Remote(&'a dyn Remote),
}

impl Container<'_> {
    pub(crate) fn directory(path: &Path) -> Result<Container<'static>, StoreError> {
        open_directory(path).map(Container::Directory)
    }

    /// Opens a file; `None` when there is none. With it comes its size.
    fn open(&self, name: &str) -> Result<Option<Opened>, StoreError> {
        let dir = match self {
            Container::Archive(archive) => {
                return archive.open(name.as_bytes());
            }
            Container::Directory(dir) => dir,
            Container::Remote(_) => return Ok(None),
        };
        let failed = |error: std::io::Error| StoreError::io(format_args!("open {}", quoted(name.as_bytes())), error);
        // Links within the layout are the owner's business; leaving it is not.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::io::retry_on_intr(|| rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve));
        let file = match opened {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(Errno::XDEV) => {
                return Err(StoreError::bad(format!("{} leads out of the layout", quoted(name.as_bytes()))));
            }
            Err(error) => return Err(failed(error.into())),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(StoreError::bad(format!("{} is not a regular file", quoted(name.as_bytes()))));
        }
        let size = metadata.len();
        Ok(Some((Packed::stretch(file, 0, size), size)))
    }

    /// Reads a JSON document of bounded size.
    fn document(&self, name: &str, limits: &Limits) -> Result<Vec<u8>, StoreError> {
        let shown = quoted(name.as_bytes());
        let (reader, size) = self.open(name)?.ok_or_else(|| StoreError::bad(format!("{shown} is missing")))?;
        if size > limits.document_bytes {
            return Err(StoreError::limit(format!("{shown} is longer than {} bytes", limits.document_bytes)));
        }
        let mut text = Vec::new();
        let read = reader.take(limits.document_bytes).read_to_end(&mut text);
        read.map_err(|error| StoreError::io(format_args!("read {shown}"), error))?;
        Ok(text)
    }

    /// Reads a document by descriptor and checks that it is the one meant.
    fn blob(&self, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>, StoreError> {
        let name = blob_name(&descriptor.digest);
        let text = self.document(&name, limits)?;
        if text.len() as u64 != descriptor.size {
            let (found, stated) = (text.len(), descriptor.size);
            return Err(mismatch(format!("{name} has {found} bytes, its descriptor says {stated}")));
        }
        check_digest(&name, &text, &descriptor.digest)?;
        Ok(text)
    }
}

/// Opens a directory given by its owner; only from here on are links not followed.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| StoreError::io(format_args!("open the directory {}", path.display()), error))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn mismatch(cause: String) -> StoreError {
    StoreError::new(crate::error::ErrorKind::DigestMismatch, cause)
}

fn check_digest(name: &str, text: &[u8], stated: &Digest) -> Result<(), StoreError> {
    let found = Digest::of(text);
    if found != *stated {
        return Err(mismatch(format!("{name} has digest {found} instead of {stated}")));
    }
    Ok(())
}

impl<'a> ImageSource<'a> {
    /// Reads an OCI layout down to the configuration of the image that `reference` means.
    pub(crate) fn oci(container: Container<'a>, reference: &str, limits: &Limits) -> Result<Self, StoreError> {
        let layout = container.document("oci-layout", limits)?;
        let version: Result<LayoutFile, _> = serde_json::from_slice(&layout);
        if !version.is_ok_and(|file| file.image_layout_version.starts_with("1.")) {
            return Err(StoreError::bad("oci-layout does not say version 1"));
        }
        let mut text = container.document("index.json", limits)?;
        let mut declared = String::new();
        let mut documents = Vec::new();
        for _ in 0..=NESTED {
            let parsed = manifest::parse(&text, &declared, limits.layers)
                .map_err(|error| if documents.is_empty() { error.in_file("index.json") } else { error })?;
            let descriptor = match parsed {
                Document::Index(manifests) => manifest::choose(&manifests, reference)?.clone(),
                Document::Manifest { config, layers } => {
                    let (manifest, _) =
                        documents.last().ok_or_else(|| StoreError::bad("index.json is a manifest, not an index"))?;
                    let manifest = *manifest;
                    manifest::check_config_type(&config.media_type)?;
                    let config = container.blob(&config, limits)?;
                    let layers = layers_of(&config, layers)?;
                    let (manifest, digest) = (Some(manifest), None);
                    return Ok(ImageSource { container, config, manifest, digest, documents, layers });
                }
            };
            text = container.blob(&descriptor, limits)?;
            documents.push((descriptor.digest, text.clone()));
            declared = descriptor.media_type;
        }
        Err(nested_too_deep())
    }

    /// Reads a `docker save` archive.
    pub(crate) fn docker(archive: ImageArchive, reference: &str, limits: &Limits) -> Result<Self, StoreError> {
        let container = Container::Archive(archive);
        let text = container.document("manifest.json", limits)?;
        let images: Vec<SavedImage> = serde_json::from_slice(&text)
            .map_err(|error| StoreError::bad(format!("manifest.json is not valid: {error}")))?;
        let named = images
            .iter()
            .find(|image| image.repo_tags.iter().flatten().any(|name| manifest::names_reference(name, reference)));
        let image = match (&images[..], named) {
            (_, Some(image)) | ([image], None) => image,
            ([], None) => return Err(StoreError::bad("manifest.json lists no image")),
            (several, None) => {
                let names: Vec<String> =
                    several.iter().flat_map(|i| i.repo_tags.iter().flatten()).map(|n| quoted(n.as_bytes())).collect();
                let names = names.join(", ");
                return Err(StoreError::bad(format!(
                    "archive holds several images and none of this name, only {names}"
                )));
            }
        };
        if image.layers.len() > limits.layers {
            return Err(StoreError::limit(format!("{} layers, more than {}", image.layers.len(), limits.layers)));
        }
        let config = container.document(&image.config, limits)?;
        // Both ways Docker names the file contain its digest.
        let stem = image.config.rsplit('/').next().unwrap_or_default();
        if let Some(stated) = Digest::from_hex(stem.strip_suffix(".json").unwrap_or(stem)) {
            check_digest(&image.config, &config, &stated)?;
        }
        let (_, diff_ids) = ImageConfig::parse(&config)?;
        same_count(image.layers.len(), diff_ids.len())?;
        let layers = image
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(name, diff_id)| LayerSource { diff_id, blob: None, name: name.clone() })
            .collect();
        Ok(ImageSource { container, config, manifest: None, digest: None, documents: Vec::new(), layers })
    }

    /// Fetches what says how an image is put together. `known` gives documents the store has.
    pub(crate) fn remote(
        remote: &'a dyn Remote,
        pinned: Option<&Digest>,
        known: &dyn Fn(&Digest) -> Option<Vec<u8>>,
        limits: &Limits,
    ) -> Result<Self, StoreError> {
        let by_digest = |digest: &Digest, fetch: &dyn Fn() -> Result<Vec<u8>, StoreError>| match known(digest) {
            Some(text) => Ok(text),
            None => {
                let text = fetch()?;
                check_digest("what was fetched", &text, digest)?;
                Ok(text)
            }
        };
        let (mut declared, mut text) = match pinned {
            Some(digest) => (String::new(), by_digest(digest, &|| remote.manifest(digest))?),
            None => remote.root()?,
        };
        let root = Digest::of(&text);
        let mut documents = vec![(root, text.clone())];
        for _ in 0..=NESTED {
            let descriptor = match manifest::parse(&text, &declared, limits.layers)? {
                // A registry's index has no names; what its entries are called is for whoever made them.
                Document::Index(manifests) => manifest::choose_platform(&manifests)?.clone(),
                Document::Manifest { config, layers } => {
                    manifest::check_config_type(&config.media_type)?;
                    check_size("the configuration", config.size, limits)?;
                    let fetch = || remote.configuration(&config.digest, config.size);
                    let config = by_digest(&config.digest, &fetch)?;
                    let layers = layers_of(&config, layers)?;
                    let manifest = documents.last().map(|(digest, _)| *digest);
                    let container = Container::Remote(remote);
                    return Ok(ImageSource { container, config, manifest, digest: Some(root), documents, layers });
                }
            };
            check_size("a manifest", descriptor.size, limits)?;
            text = by_digest(&descriptor.digest, &|| remote.manifest(&descriptor.digest))?;
            documents.push((descriptor.digest, text.clone()));
            declared = descriptor.media_type;
        }
        Err(nested_too_deep())
    }

    /// Whether layers have to be fetched.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.container, Container::Remote(_))
    }

    /// Whose word the layers' names are.
    pub(crate) fn maker(&self) -> String {
        match self.container {
            Container::Remote(remote) => remote.registry().to_owned(),
            _ => LOCAL.to_owned(),
        }
    }

    /// Whether nobody wants the image any more.
    pub(crate) fn is_given_up(&self) -> bool {
        matches!(self.container, Container::Remote(remote) if remote.is_given_up())
    }

    /// Nothing more of the image is wanted.
    pub(crate) fn give_up(&self) {
        if let Container::Remote(remote) = self.container {
            remote.give_up();
        }
    }

    /// The packed bytes of a layer, or where to fetch them.
    pub(crate) fn open_layer(&self, layer: &LayerSource) -> Result<LayerBytes<'a>, StoreError> {
        if let Container::Remote(remote) = self.container {
            return Ok(LayerBytes::Remote(remote));
        }
        match self.container.open(&layer.name)? {
            Some((packed, size)) => Ok(LayerBytes::Local(packed, size)),
            None => Err(StoreError::bad(format!("{} is missing", quoted(layer.name.as_bytes())))),
        }
    }
}

/// Indexes on the way to a manifest. One is usual, two happen; a chain without end is an attack.
const NESTED: usize = 4;

fn nested_too_deep() -> StoreError {
    StoreError::limit("indexes nest too deep; one may list itself")
}

fn check_size(what: &str, size: u64, limits: &Limits) -> Result<(), StoreError> {
    let most = limits.document_bytes;
    if size > most { Err(StoreError::limit(format!("{what} is longer than {most} bytes"))) } else { Ok(()) }
}

#[derive(serde::Deserialize)]
struct LayoutFile {
    #[serde(rename = "imageLayoutVersion")]
    image_layout_version: String,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn layers_of(config: &[u8], descriptors: Vec<Descriptor>) -> Result<Vec<LayerSource>, StoreError> {
    let (_, diff_ids) = ImageConfig::parse(config)?;
    same_count(descriptors.len(), diff_ids.len())?;
    let pair = |(descriptor, diff_id): (Descriptor, Digest)| {
        manifest::check_layer_type(&descriptor.media_type).map_err(|error| error.for_layer(descriptor.digest))?;
        let Descriptor { digest, size, .. } = descriptor;
        Ok(LayerSource { diff_id, blob: Some((digest, size)), name: blob_name(&digest) })
    };
    descriptors.into_iter().zip(diff_ids).map(pair).collect()
}

fn same_count(layers: usize, diff_ids: usize) -> Result<(), StoreError> {
    if layers == 0 {
        return Err(StoreError::bad("image has no layers, so nothing to run"));
    }
    if layers != diff_ids {
        return Err(StoreError::bad(format!("manifest lists {layers} layers, configuration {diff_ids}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_archives_are_known_whatever_their_files_are_called() {
        let folder = tempfile::tempdir().unwrap();
        let detect = |names: &[&str]| {
            let path = folder.path().join("archive.tar");
            let mut builder = tar::Builder::new(File::create(&path).unwrap());
            for name in names {
                let mut header = tar::Header::new_gnu();
                header.set_size(0);
                header.set_mode(0o644);
                header.set_cksum();
                builder.append_data(&mut header, name, std::io::empty()).unwrap();
            }
            builder.finish().unwrap();
            Source::detect(&path).unwrap()
        };
        assert!(matches!(detect(&["manifest.json", "config.json", "0/layer.tar"]), Source::DockerArchive(_)));
        assert!(matches!(detect(&["sha256:ab.json", "ab.tar.gz", "manifest.json"]), Source::DockerArchive(_)));
        assert!(matches!(detect(&["blobs/sha256/ab", "oci-layout"]), Source::OciArchive(_)));
        assert!(matches!(detect(&["srv/manifest.json", "bin/sh"]), Source::RootArchive(_)));
        assert!(matches!(detect(&["etc/os-release", "manifest.json"]), Source::RootArchive(_)));
        assert!(matches!(detect(&["hello"]), Source::RootArchive(_)));
    }
}
