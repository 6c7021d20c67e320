//! Configurations, manifests and indexes of the images (OCI image-spec, and Docker's schema 2, which it came from).

use serde_json::{Map, Value, json};

use super::layer::Layer;
use super::recipe::{CREATED, Compression, MediaTypes, Settings};
use super::storage::Blob;

impl MediaTypes {
    fn manifest(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.container.image.v1+json",
            Self::Oci => "application/vnd.oci.image.config.v1+json",
        }
    }

    fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image's configuration.
pub(super) fn configuration(settings: &Settings, architecture: &str, layers: &[(&str, &Layer)]) -> Value {
    let layers_own = layers.iter().flat_map(|(_, layer)| layer.environment.iter().map(String::as_str));
    let mut config = json!({
        "Env": environment(settings.env.iter().copied().chain(layers_own)),
        "Cmd": settings.cmd,
    });
    let optional = [
        ("Entrypoint", json!(settings.entrypoint), !settings.entrypoint.is_empty()),
        ("WorkingDir", json!(settings.working_dir), !settings.working_dir.is_empty()),
        ("ExposedPorts", set(settings.ports), !settings.ports.is_empty()),
        ("Volumes", set(settings.volumes), !settings.volumes.is_empty()),
        ("StopSignal", json!(settings.stop_signal), !settings.stop_signal.is_empty()),
    ];
    for (key, value, _) in optional.into_iter().filter(|(_, _, present)| *present) {
        config[key] = value;
    }
    let made = layers.iter().map(|(name, _)| json!({ "created": CREATED, "created_by": format!("layer {name}") }));
    let last = json!({ "created": CREATED, "created_by": "settings", "empty_layer": true });
    let diff_ids: Vec<&str> = layers.iter().map(|(_, layer)| layer.diff_id.as_str()).collect();
    json!({
        "architecture": architecture,
        "os": "linux",
        "created": CREATED,
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": made.chain([last]).collect::<Vec<_>>(),
    })
}

/// The manifest of an image.
pub(super) fn manifest(media: MediaTypes, config: &Blob, layers: &[(&str, &Layer)]) -> Value {
    let layers = layers.iter().map(|(_, layer)| descriptor(media.layer(layer.compression), &layer.blob));
    json!({
        "schemaVersion": 2,
        "mediaType": media.manifest(),
        "config": descriptor(media.config(), config),
        "layers": layers.collect::<Vec<_>>(),
    })
}

/// The manifest of an attestation: a statement about an image, in the form of one.
pub(super) fn attestation_manifest(config: &Blob, statement: &Blob) -> Value {
    let mut layer = descriptor("application/vnd.in-toto+json", statement);
    layer["annotations"] = json!({ "in-toto.io/predicate-type": PREDICATE });
    json!({
        "schemaVersion": 2,
        "mediaType": MediaTypes::Oci.manifest(),
        "config": descriptor(MediaTypes::Oci.config(), config),
        "layers": [layer],
    })
}

const PREDICATE: &str = "https://slsa.dev/provenance/v0.2";

/// What an attestation of the image with this manifest says.
pub(super) fn statement(name: &str, manifest: &Blob) -> Value {
    let hex = manifest.digest.trim_start_matches("sha256:");
    json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": PREDICATE,
        "subject": [{ "name": name, "digest": { "sha256": hex } }],
        "predicate": { "builder": { "id": "" }, "buildType": "layers of a table", "materials": [] },
    })
}

/// The configuration of an attestation: an image of nothing.
pub(super) fn attestation_configuration(statement: &Blob) -> Value {
    json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [statement.digest] },
    })
}

/// An index of images by architecture, with the attestation of the first one.
pub(super) fn index(images: &[(&str, Blob)], attestation: &Blob) -> Value {
    let mut manifests: Vec<Value> = images
        .iter()
        .map(|(architecture, blob)| {
            let mut entry = descriptor(MediaTypes::Oci.manifest(), blob);
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
            entry
        })
        .collect();
    let mut entry = descriptor(MediaTypes::Oci.manifest(), attestation);
    entry["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    entry["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": images.first().map(|(_, blob)| blob.digest.as_str()),
    });
    manifests.push(entry);
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    })
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

/// Go's set: an object of empty objects.
fn set(names: &[&str]) -> Value {
    Value::Object(names.iter().map(|name| ((*name).to_owned(), json!({}))).collect::<Map<_, _>>())
}

/// One entry to a name, at its first place and with its last value.
fn environment<'a>(entries: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let name = |entry: &'a str| entry.split('=').next();
    let mut result: Vec<&str> = Vec::new();
    for entry in entries {
        match result.iter_mut().find(|known| name(known) == name(entry)) {
            Some(known) => *known = entry,
            None => result.push(entry),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::registry::recipe::IMAGES;

    fn layer(environment: &[&str]) -> Layer {
        Layer {
            diff_id: "sha256:d".to_owned(),
            blob: Blob { digest: "sha256:b".to_owned(), size: 7 },
            compression: Compression::Zstd,
            environment: environment.iter().map(|&entry| entry.to_owned()).collect(),
        }
    }

    #[test]
    fn a_layers_environment_replaces_the_images() {
        let entries = ["PATH=/bin", "A=1", "PATH=/usr/bin=x", "B=2"];
        assert_eq!(environment(entries.into_iter()), ["PATH=/usr/bin=x", "A=1", "B=2"]);
    }

    #[test]
    fn a_configuration_has_what_engines_read() {
        let postgres = IMAGES.iter().find(|image| image.names[0].contains("postgres")).unwrap();
        let layer = layer(&["PG_MAJOR=17"]);
        let config = configuration(&postgres.settings, "amd64", &[("one", &layer), ("two", &layer)]);
        assert_eq!(config["config"]["ExposedPorts"], json!({ "5432/tcp": {} }));
        assert_eq!(config["config"]["Env"][3], "PG_MAJOR=17");
        assert_eq!(config["rootfs"], json!({ "type": "layers", "diff_ids": ["sha256:d", "sha256:d"] }));
        assert_eq!(config["history"].as_array().unwrap().len(), 3);
        assert!(config["config"].get("WorkingDir").is_none());
    }

    #[test]
    fn a_manifest_names_media_types_of_one_family() {
        let layer = layer(&[]);
        let manifest = manifest(MediaTypes::Oci, &layer.blob, &[("one", &layer)]);
        assert_eq!(
            manifest["layers"],
            json!([{ "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": "sha256:b", "size": 7 }])
        );
        assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    }

    #[test]
    fn an_index_marks_its_attestation() {
        let blob = |digest: &str| Blob { digest: digest.to_owned(), size: 1 };
        let index = index(&[("amd64", blob("sha256:a")), ("arm64", blob("sha256:b"))], &blob("sha256:c"));
        assert_eq!(index["manifests"][1]["platform"]["architecture"], "arm64");
        assert_eq!(index["manifests"][2]["platform"]["os"], "unknown");
        assert_eq!(index["manifests"][2]["annotations"]["vnd.docker.reference.digest"], "sha256:a");
    }
}
