//! What is in the store, as a table and as JSON.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use runner_model::image_ref::Reference;
use runner_pull::Size;
use runner_store::{Digest, ImageSummary, Inspected, Store};
use serde_json::{Value, json};

use super::{familiar, json_text};

pub(super) fn list(store: &Store, as_json: bool, full_digests: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let images = store.list()?;
    if as_json {
        writeln!(out, "{}", json_text(&images.iter().map(summary).collect(), false))?;
    } else if images.is_empty() {
        writeln!(out, "No images.")?;
    } else {
        write!(out, "{}", table(&images, full_digests, SystemTime::now()))?;
    }
    Ok(())
}

pub(super) fn inspect(store: &Store, reference: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let reference = Reference::parse(reference)?;
    let found = store.inspect(&reference.to_string())?;
    let found =
        found.with_context(|| format!("image {reference}: not in the store; 'runnerctl image ls' shows what is"))?;
    writeln!(out, "{}", json_text(&details(&found), true))?;
    Ok(())
}

fn table(images: &[ImageSummary], full_digests: bool, now: SystemTime) -> String {
    let names: Vec<String> = images.iter().map(|image| familiar(&image.reference)).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0).max("REFERENCE".len());
    let mut text = format!(
        "{:width$}  {:>10}  {:>10}  {:>6}  {:>9}  DIGEST\n",
        "REFERENCE", "OWN", "SHARED", "LAYERS", "LAST USED"
    );
    for (image, name) in images.iter().zip(names) {
        let used = ago(now.duration_since(image.last_used).unwrap_or_default());
        let digest = match image.digest {
            _ if image.damage.is_some() => "damaged; pull or import it again".to_owned(),
            Some(digest) if full_digests => digest.to_string(),
            Some(digest) => short(&digest),
            None => "-".to_owned(),
        };
        let (own, shared) = (Size(image.own).to_string(), Size(image.size.saturating_sub(image.own)).to_string());
        let layers = image.layers;
        let _ = writeln!(text, "{name:width$}  {own:>10}  {shared:>10}  {layers:>6}  {used:>9}  {digest}");
    }
    text
}

/// Enough of a digest to tell images apart.
fn short(digest: &Digest) -> String {
    digest.to_string().chars().take("sha256:".len() + 12).collect()
}

/// One element of `image ls --json`; keys are only ever added.
fn summary(image: &ImageSummary) -> Value {
    json!({
        "reference": image.reference,
        "image": image.image.to_string(),
        "digest": image.digest.map(|digest| digest.to_string()),
        "manifest": image.manifest.map(|digest| digest.to_string()),
        "size": image.size,
        "own": image.own,
        "shared": image.size.saturating_sub(image.own),
        "layers": image.layers,
        "imported": seconds(image.imported),
        "last_used": seconds(image.last_used),
        "damage": image.damage,
    })
}

fn details(image: &Inspected) -> Value {
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| {
            json!({
                "layer": layer.layer.to_string(),
                "size": layer.size,
                "entries": layer.entries,
                "images": layer.images,
            })
        })
        .collect();
    let mut object = summary(&image.summary);
    object["checked"] = json!(image.checked.map(seconds));
    object["layers"] = layers.into();
    object["manifest"] = json!({
        "digest": image.summary.manifest.map(|digest| digest.to_string()),
        "document": image.manifest.as_deref().map(document),
    });
    object["config"] = document(&image.configuration);
    object
}

/// A document of the image; both were read as JSON when the image came.
fn document(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time span for people.
fn ago(span: Duration) -> String {
    match span.as_secs() {
        0..60 => "now".into(),
        seconds @ 60..3_600 => format!("{}min", seconds / 60),
        seconds @ 3_600..86_400 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runner_store::InspectedLayer;

    fn image(reference: &str, used: u64, digest: Option<Digest>) -> ImageSummary {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        ImageSummary {
            reference: reference.to_owned(),
            image: Digest::of(b"configuration"),
            manifest: digest,
            digest,
            size: 5 << 20,
            own: 1 << 20,
            layers: 3,
            imported: time(1_000),
            last_used: time(used),
            damage: None,
        }
    }

    #[test]
    fn the_table_shows_sizes_use_and_digests() {
        let digest = Digest::of(b"manifest");
        let images =
            [image("docker.io/library/node:22", 999_000, Some(digest)), image("ghcr.io/octo/tool:1", 740_000, None)];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let hex = &digest.hex()[..12];
        assert_eq!(
            table(&images, false, now),
            format!(
                "REFERENCE                   OWN      SHARED  LAYERS  LAST USED  DIGEST\n\
                 node:22                 1.0 MiB     4.0 MiB       3      16min  sha256:{hex}\n\
                 ghcr.io/octo/tool:1     1.0 MiB     4.0 MiB       3         3d  -\n"
            )
        );
        let full = table(&images, true, now);
        assert!(full.contains(&format!("  {digest}\n")), "{full}");
        // A clock that went back is no reason to fail.
        assert!(table(&images, false, SystemTime::UNIX_EPOCH).contains("now"));
    }

    #[test]
    fn json_has_bytes_and_seconds() {
        let digest = Digest::of(b"manifest");
        let value = summary(&image("docker.io/library/node:22", 7, Some(digest)));
        assert_eq!(
            value,
            json!({
                "reference": "docker.io/library/node:22",
                "image": Digest::of(b"configuration").to_string(),
                "digest": digest.to_string(),
                "manifest": digest.to_string(),
                "size": 5 << 20,
                "own": 1 << 20,
                "shared": 4 << 20,
                "layers": 3,
                "imported": 1_000,
                "last_used": 7, "damage": null,
            })
        );
    }

    #[test]
    fn an_inspected_image_shows_its_documents_and_nothing_a_terminal_acts_on() {
        let found = Inspected {
            summary: image("docker.io/library/node:22", 7, None),
            checked: None,
            configuration: "{\"config\": {\"Env\": [\"A=\u{9b}31m\u{202e}é𝄞\u{7f}\"]}}".as_bytes().to_vec(),
            manifest: Some(b"{\"layers\": []}".to_vec()),
            layers: vec![InspectedLayer { layer: Digest::of(b"layer"), size: 9, entries: 2, images: 1 }],
        };
        let text = json_text(&details(&found), true);
        assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)), "{text}");
        let read: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read["config"]["config"]["Env"][0], "A=\u{9b}31m\u{202e}é𝄞\u{7f}");
        assert_eq!(read["manifest"]["document"], json!({"layers": []}));
        assert_eq!(
            read["layers"],
            json!([{"layer": Digest::of(b"layer").to_string(), "size": 9, "entries": 2, "images": 1}])
        );
        assert_eq!(read["checked"], Value::Null);
    }

    #[test]
    fn times_read_well() {
        assert_eq!(
            [5, 61, 7_300, 200_000].map(|seconds| ago(Duration::from_secs(seconds))),
            ["now", "1min", "2h", "2d"]
        );
    }
}
