//! `runnerctl image …`: the image store.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use clap::Subcommand;
use runner_model::image_ref::Reference;
use runner_store::{Progress, Source, Store};
use serde_json::json;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Bring an image into the store
    ///
    /// SOURCE is an OCI layout (directory or tar), an archive of `docker save`, or a root tree (directory or tar).
    #[command(
        after_help = "Examples:\n  runnerctl image import node:22 node.tar\n  runnerctl image import ci/base /srv/chroots/trixie"
    )]
    Import {
        /// Name of the image, as workflows write it after `container:`
        reference: String,
        /// Where the image is
        source: PathBuf,
    },
    /// List images
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images
    Rm {
        /// Names of the images
        #[arg(required = true)]
        references: Vec<String>,
    },
}

/// Runs one of the commands.
pub fn run(command: &ImageCommand, folder: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let store = Store::open(folder)?;
    match command {
        ImageCommand::Import { reference, source } => import(&store, reference, source, out),
        ImageCommand::Ls { json } => list(&store, *json, out),
        ImageCommand::Rm { references } => {
            for reference in references {
                let reference = Reference::parse(reference)?;
                let removed = store.remove(&reference.to_string())?;
                writeln!(out, "Removed {} ({} layers, {})", reference.familiar(), removed.layers, size(removed.bytes))?;
            }
            Ok(())
        }
    }
}

fn import(store: &Store, reference: &str, source: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let reference = Reference::parse(reference)?;
    let source = Source::detect(source)?;
    store.sweep().context("debris of earlier imports cannot be removed")?;
    let shown = std::io::stderr().is_terminal();
    let mut last: Option<Instant> = None;
    let imported = store.import(&reference.to_string(), &source, &mut |progress| {
        // At most one line a second, and none when it is quick.
        let due = last.get_or_insert_with(Instant::now).elapsed() >= Duration::from_secs(1);
        if shown && due {
            last = Some(Instant::now());
            // Nobody reads it then.
            let _ = writeln!(std::io::stderr(), "{}", describe(&progress));
        }
    })?;
    writeln!(
        out,
        "Imported {} ({} layers, {} of them new) as {}",
        reference.familiar(),
        imported.layers,
        imported.layers - imported.reused,
        imported.image
    )?;
    Ok(())
}

fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Waiting { index, total, .. } => {
            format!("layer {}/{total}: another import is unpacking it", index + 1)
        }
        Progress::Unpacking { index, total, done, size: Some(all) } => {
            format!("layer {}/{total}: {} of {}", index + 1, size(*done), size(*all))
        }
        Progress::Unpacking { index, total, done, size: None } => {
            format!("layer {}/{total}: {}", index + 1, size(*done))
        }
        Progress::Layer { index, total, reused, .. } => {
            format!("layer {}/{total}: {}", index + 1, if *reused { "there already" } else { "done" })
        }
        _ => "working".to_owned(),
    }
}

fn list(store: &Store, as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut images = store.list()?;
    images.sort_by(|one, other| one.reference.cmp(&other.reference));
    if as_json {
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let images: Vec<_> = images
            .iter()
            .map(|image| {
                json!({
                    "reference": image.reference,
                    "image": image.image.to_string(),
                    "manifest": image.manifest.as_ref().map(ToString::to_string),
                    "size": image.size,
                    "layers": image.layers,
                    "imported": seconds(image.imported),
                    "last_used": seconds(image.last_used),
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string(&images)?)?;
        return Ok(());
    }
    if images.is_empty() {
        writeln!(out, "No images.")?;
        return Ok(());
    }
    let familiar = |text: &str| Reference::parse(text).map_or_else(|_| text.to_owned(), |parsed| parsed.familiar());
    let names: Vec<String> = images.iter().map(|image| familiar(&image.reference)).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0).max("REFERENCE".len());
    writeln!(out, "{:width$}  {:>9}  {:>6}  {:>9}  IMAGE", "REFERENCE", "SIZE", "LAYERS", "LAST USED")?;
    for (image, name) in images.iter().zip(names) {
        let used = image.last_used.elapsed().map_or_else(|_| "now".to_owned(), ago);
        let id: String = image.image.to_string().chars().take("sha256:".len() + 12).collect();
        writeln!(out, "{name:width$}  {:>9}  {:>6}  {used:>9}  {id}", size(image.size), image.layers)?;
    }
    Ok(())
}

/// A size for people, in binary units.
fn size(bytes: u64) -> String {
    let mut value = bytes;
    let mut rest = 0;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024 {
            return if unit == "B" { format!("{value} B") } else { format!("{value}.{} {unit}", rest * 10 / 1024) };
        }
        rest = value % 1024;
        value /= 1024;
    }
    format!("{value}.{} TiB", rest * 10 / 1024)
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

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1_023), "1023 B");
        assert_eq!(size(1_536), "1.5 KiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
        assert_eq!(ago(Duration::from_secs(5)), "now");
        assert_eq!(ago(Duration::from_secs(7_300)), "2h");
        assert_eq!(ago(Duration::from_secs(200_000)), "2d");
    }
}
