//! Manifests and indexes, OCI's and Docker's, read by one parser and never guessed at.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::config::host_architecture;
use crate::digest::Digest;
use crate::error::{StoreError, quoted};

/// Points at a blob: an entry of a manifest or an index.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
}

/// A parsed document.
#[derive(Debug)]
pub(crate) enum Document {
    /// Configuration and layers of one image, lowest layer first.
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
    /// One manifest for each platform or name.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// Parses a manifest or index. `declared` is the media type of whatever pointed at it, empty when nothing said.
pub(crate) fn parse(text: &[u8], declared: &str, max_layers: usize) -> Result<Document, StoreError> {
    let raw: Raw =
        serde_json::from_slice(text).map_err(|error| StoreError::bad(format!("manifest is not valid: {error}")))?;
    if raw.schema_version != Some(2) {
        return Err(StoreError::bad("manifest is not of schema version 2"));
    }
    if let Some(own) = &raw.media_type
        && !declared.is_empty()
        && own != declared
    {
        let (own, declared) = (quoted(own.as_bytes()), quoted(declared.as_bytes()));
        return Err(StoreError::bad(format!("manifest says it is {own} but was announced as {declared}")));
    }
    let media_type = raw.media_type.as_deref().unwrap_or(declared);
    match (raw.config, raw.layers, raw.manifests) {
        (Some(config), Some(layers), None) if !is_index_type(media_type) => {
            if layers.len() > max_layers {
                return Err(StoreError::limit(format!("{} layers, more than {max_layers}", layers.len())));
            }
            Ok(Document::Manifest { config, layers })
        }
        (None, None, Some(manifests)) if !is_manifest_type(media_type) => Ok(Document::Index(manifests)),
        // A document that could be read as either is how two programs come to see two images under one digest.
        _ => Err(StoreError::bad("manifest is neither one image nor one index")),
    }
}

fn is_index_type(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_manifest_type(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// Refuses layers we do not unpack: content kept elsewhere, or no file system at all.
pub(crate) fn check_layer_type(media_type: &str) -> Result<(), StoreError> {
    let known = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    ];
    if known.contains(&media_type) {
        return Ok(());
    }
    let shown = quoted(media_type.as_bytes());
    if media_type.contains("nondistributable") || media_type.contains("foreign") {
        return Err(StoreError::bad(format!("foreign layers are not accepted ({shown})")));
    }
    Err(StoreError::bad(format!("layer type \"{shown}\" is not a tar layer")))
}

/// Refuses artefacts that are no container image.
pub(crate) fn check_config_type(media_type: &str) -> Result<(), StoreError> {
    match media_type {
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => Ok(()),
        other => {
            let shown = quoted(other.as_bytes());
            Err(StoreError::bad(format!("not a container image: its configuration is \"{shown}\"")))
        }
    }
}

/// Chooses the one manifest of an index that is meant: by name, then by platform.
pub(crate) fn choose<'a>(manifests: &'a [Descriptor], reference: &str) -> Result<&'a Descriptor, StoreError> {
    let images: Vec<&Descriptor> = manifests.iter().filter(|descriptor| !descriptor.is_attestation()).collect();
    let named: Vec<&Descriptor> =
        images.iter().copied().filter(|d| d.names().any(|name| names_reference(name, reference))).collect();
    let candidates = if images.len() > 1 && !named.is_empty() { named } else { images };
    let host = host_architecture();
    let fitting: Vec<&Descriptor> = candidates.iter().copied().filter(|d| d.fits(host)).collect();
    match (&candidates[..], &fitting[..]) {
        (_, [one]) | ([one], _) => Ok(one),
        ([], _) => Err(StoreError::bad("index lists no image")),
        (_, []) => {
            let platforms = listed(candidates.iter().filter_map(|d| d.platform.as_ref()).map(ToString::to_string));
            Err(StoreError::bad(format!("no image for linux/{host}, only for {platforms}")))
        }
        _ => {
            let names = listed(fitting.iter().flat_map(|d| d.names().map(str::to_owned)));
            Err(StoreError::bad(format!(
                "several images for linux/{host} and none is named as asked for, only {names}"
            )))
        }
    }
}

/// Chooses the manifest for this host from an index of a registry, whose entries differ in nothing but platform. Of several
/// for the same architecture the plainest is taken: what needs no newer processor runs everywhere.
pub(crate) fn choose_platform(manifests: &[Descriptor]) -> Result<&Descriptor, StoreError> {
    let host = host_architecture();
    let images = || manifests.iter().filter(|descriptor| !descriptor.is_attestation());
    let rank = |descriptor: &&Descriptor| match &descriptor.platform {
        Some(platform) => (false, platform.variant.clone()),
        None => (true, String::new()),
    };
    match images().filter(|descriptor| descriptor.fits(host)).min_by_key(rank) {
        Some(descriptor) => Ok(descriptor),
        None if images().next().is_none() => Err(StoreError::bad("index lists no image")),
        None => {
            let platforms = listed(images().filter_map(|d| d.platform.as_ref()).map(ToString::to_string));
            Err(StoreError::bad(format!("no image for linux/{host}, only for {platforms}")))
        }
    }
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let mut items: Vec<String> = items.map(|item| quoted(item.as_bytes())).take(8).collect();
    items.dedup();
    if items.is_empty() { "unnamed ones".into() } else { items.join(", ") }
}

/// Whether a name as Docker users write it (`node:22`, `22`) is the canonical `reference`.
pub(crate) fn names_reference(name: &str, reference: &str) -> bool {
    if name == reference {
        return true;
    }
    if !name.contains(['/', ':']) && reference.rsplit_once(':').is_some_and(|(_, tag)| tag == name) {
        return true;
    }
    ["docker.io/", "docker.io/library/"].iter().any(|prefix| reference.strip_prefix(prefix) == Some(name))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Descriptor {
    /// Builders list signatures and provenance beside the images they are about.
    fn is_attestation(&self) -> bool {
        let annotated = self.annotations.as_ref().is_some_and(|all| all.contains_key("vnd.docker.reference.type"));
        annotated || self.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let keys = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
        keys.into_iter().filter_map(|key| self.annotations.as_ref()?.get(key)).map(String::as_str)
    }

    fn fits(&self, host: &str) -> bool {
        self.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn index(entries: &[(&str, &str, &str)]) -> Vec<Descriptor> {
        let entries: Vec<String> = entries
            .iter()
            .enumerate()
            .map(|(size, (os, architecture, name))| {
                let mut fields = format!(r#""digest":"sha256:{HEX}","size":{size}"#);
                if !os.is_empty() {
                    fields += &format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#);
                }
                if !name.is_empty() {
                    fields += &format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#);
                }
                format!("{{{fields}}}")
            })
            .collect();
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        match parse(text.as_bytes(), "", 128).unwrap() {
            Document::Index(manifests) => manifests,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_meant_manifest_is_chosen() {
        let host = host_architecture();
        let reference = "docker.io/library/node:22";
        /// Operating system, architecture, name.
        type Entries<'a> = &'a [(&'a str, &'a str, &'a str)];
        let cases: &[(Entries<'_>, Result<u64, &str>)] = &[
            (&[("", "", "")], Ok(0)),
            (&[("windows", "amd64", ""), ("linux", host, "")], Ok(1)),
            (&[("linux", host, "20"), ("linux", host, "22")], Ok(1)),
            (&[("linux", host, "x"), ("linux", host, "node:22")], Ok(1)),
            (&[("linux", host, ""), ("unknown", "unknown", "")], Ok(0)),
            (&[], Err("lists no image")),
            (&[("linux", "s390", ""), ("linux", "vax", "")], Err("only for linux/s390, linux/vax")),
            (&[("linux", host, "a"), ("linux", host, "b")], Err("only a, b")),
        ];
        for (entries, expected) in cases {
            let found = choose(&index(entries), reference).map(|descriptor| descriptor.size);
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, *expected, "{entries:?}"),
                (Err(found), Err(expected)) => assert!(found.to_string().contains(expected), "{entries:?}: {found}"),
                (found, _) => panic!("{entries:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn ambiguous_and_damaged_documents_are_refused() {
        let blob = format!(r#"{{"digest":"sha256:{HEX}","size":1}}"#);
        let oci = "application/vnd.oci.image.manifest.v1+json";
        let list = "application/vnd.oci.image.index.v1+json";
        let cases = [
            (format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[],"manifests":[]}}"#), "", "neither"),
            (format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[]}}"#), list, "neither"),
            (r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), oci, "neither"),
            (format!(r#"{{"schemaVersion":2,"mediaType":"{list}","manifests":[]}}"#), oci, "was announced as"),
            (r#"{"schemaVersion":1,"manifests":[]}"#.to_owned(), "", "schema version 2"),
            (r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#.to_owned(), "", "duplicate field"),
            (r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:1","size":1}]}"#.to_owned(), "", "64 lower-case"),
            (
                blob.replace("\"size\":1", "\"size\":-1").replace('{', r#"{"schemaVersion":2,"manifests":[{"#) + "]}",
                "",
                "integer `-1`",
            ),
            ("[".repeat(100_000), "", "not valid"),
        ];
        for (text, declared, expected) in cases {
            let error = parse(text.as_bytes(), declared, 128).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{text:.80}: {error}");
        }
    }

    #[test]
    fn too_many_layers_are_refused() {
        let blob = format!(r#"{{"digest":"sha256:{HEX}","size":1}}"#);
        let layers = vec![blob.as_str(); 10_000].join(",");
        let text = format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{layers}]}}"#);
        let error = parse(text.as_bytes(), "", 128).unwrap_err();
        assert_eq!(error.to_string(), "10000 layers, more than 128");
    }

    #[test]
    fn only_tar_layers_of_images_are_taken() {
        check_layer_type("application/vnd.oci.image.layer.v1.tar+zstd").unwrap();
        let foreign = check_layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip").unwrap_err();
        assert!(foreign.to_string().starts_with("foreign layers"), "{foreign}");
        assert!(check_layer_type("application/vnd.in-toto+json").is_err());
        assert!(check_config_type("application/vnd.cncf.helm.config.v1+json").is_err());
    }
}
