//! `runnerctl image …`: the image store.

mod listing;
mod pruning;
mod verifying;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use runner_model::config::{PullPolicy, Settings};
use runner_model::image_ref::Reference;
use runner_model::message::neutralise;
use runner_pull::{AUTH_FILE, Board, CONFIG_FILE, News, Obtained, Puller, Size, Wanted};
use runner_store::{Source, Store, Unpacker};
use serde_json::{Value, json};

use crate::Status;

/// Where things are; only tests and the lab say otherwise.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// The store's folder
    #[arg(long, global = true, default_value = "/var/lib/runner/images", hide = true)]
    pub store: PathBuf,
    /// The configuration
    #[arg(long, global = true, default_value = CONFIG_FILE, hide = true)]
    pub config: PathBuf,
    /// Credentials of registries
    #[arg(long, global = true, default_value = AUTH_FILE, hide = true)]
    pub auth_file: PathBuf,
    /// Where layer-unpack is
    #[arg(long, global = true, default_value = "/usr/lib/runner", hide = true)]
    pub programs: PathBuf,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Pull an image from its registry
    ///
    /// Mirrors, credentials (/etc/runner/auth.json) and the image policy are those of the configuration. Layers that are in
    /// the store are not fetched again, and an interrupted pull goes on where it ended. The last line has the digest to pin
    /// the image by.
    #[command(
        after_help = "Examples:\n  runnerctl image pull node:22\n  runnerctl image pull --policy missing ghcr.io/octo/tool:1\n  runnerctl image pull --quiet registry:5000/a/b:c"
    )]
    Pull {
        /// Name of the image, as workflows write it after `container:`
        reference: String,
        /// When to ask the registry if the image is in the store
        #[arg(long, value_enum, default_value = "always")]
        policy: Policy,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print no progress, and of the result the digest only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Bring an image of this machine into the store
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
    ///
    /// OWN is in layers that no other image has, and freed with the image's last name; SHARED is in layers that other images
    /// have too. DIGEST is what the registry called the image when it was pulled, to pin it by.
    #[command(after_help = "Examples:\n  runnerctl image ls\n  runnerctl image ls --json | jq -r '.[].digest'")]
    Ls {
        /// Print JSON: sizes in bytes, times in seconds since 1970
        #[arg(long)]
        json: bool,
        /// Print digests in full
        #[arg(long)]
        digests: bool,
    },
    /// Print everything about one image as JSON
    #[command(after_help = "Examples:\n  runnerctl image inspect node:22 | jq .config.config.Env")]
    Inspect {
        /// Name of the image
        reference: String,
    },
    /// Remove images
    #[command(after_help = "Examples:\n  runnerctl image rm node:20 ghcr.io/octo/tool:1")]
    Rm {
        /// Names of the images
        #[arg(required = true)]
        references: Vec<String>,
    },
    /// Make room
    ///
    /// Removes what interrupted work left behind and layers no image needs; with an option also images, the least recently
    /// used first, and never one that a job uses.
    #[command(
        after_help = "Examples:\n  runnerctl image prune\n  runnerctl image prune --until 30d\n  systemctl start runner-image-prune.service"
    )]
    Prune(pruning::PruneArguments),
    /// Check that everything in the store is what its digest says
    ///
    /// Reads every file of every layer; runs beside jobs and pulls. Exit status: 0 if all is well, 1 if something is damaged.
    #[command(after_help = "Examples:\n  runnerctl image verify\n  runnerctl image verify --json | jq .findings")]
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print no progress
        #[arg(long, short)]
        quiet: bool,
    },
}

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// If the image is missing, or a tag older than RUNNER_IMAGE_MAX_AGE
    Missing,
    /// In any case
    Always,
    /// Never
    Never,
    /// As RUNNER_IMAGE_PULL says
    Configured,
}

impl Policy {
    fn pull(self) -> Option<PullPolicy> {
        match self {
            Self::Missing => Some(PullPolicy::Missing),
            Self::Always => Some(PullPolicy::Always),
            Self::Never => Some(PullPolicy::Never),
            Self::Configured => None,
        }
    }
}

/// Runs one of the commands.
pub async fn run(command: ImageCommand, places: &Places, out: &mut dyn Write) -> anyhow::Result<Status> {
    let settings = || runner_pull::settings(&places.config);
    match command {
        ImageCommand::Pull { reference, policy, json, quiet } => {
            let settings = settings()?;
            let store = Arc::new(open(places, &settings)?);
            let puller = Puller::new(store, &settings).with_auth_file(&places.auth_file);
            pull(&puller, &reference, policy, Report { json, quiet }, out).await?;
        }
        ImageCommand::Import { reference, source } => import(&open(places, &settings()?)?, &reference, &source, out)?,
        ImageCommand::Ls { json, digests } => listing::list(&Store::open(&places.store)?, json, digests, out)?,
        ImageCommand::Inspect { reference } => listing::inspect(&Store::open(&places.store)?, &reference, out)?,
        ImageCommand::Rm { references } => return remove(&Store::open(&places.store)?, &references, out),
        ImageCommand::Prune(arguments) => {
            pruning::prune(&Store::open(&places.store)?, &arguments, || Ok(settings()?.images.collect), out)?;
        }
        ImageCommand::Verify { json, quiet } => {
            return verifying::verify(&Store::open(&places.store)?, json, quiet, out);
        }
    }
    Ok(Status::Success)
}

/// The store as a pull or an import needs it, which unpacks layers as the broker does.
fn open(places: &Places, settings: &Settings) -> anyhow::Result<Store> {
    let unpacker =
        Unpacker::Sandboxed { program: places.programs.join("layer-unpack"), base: settings.uid_range.unpack_base() };
    Ok(Store::open(&places.store)?.with_unpacker(unpacker))
}

/// How much to print.
#[derive(Debug, Clone, Copy)]
struct Report {
    json: bool,
    quiet: bool,
}

async fn pull(
    puller: &Puller,
    reference: &str,
    policy: Policy,
    report: Report,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let image = Reference::parse(reference)?;
    let wanted = Wanted { image: &image, credentials: None, policy: policy.pull() };
    let mut warnings = Vec::new();
    let obtained = puller.obtain(&wanted, |news| match news {
        News::Progress(line) if !report.quiet => note(&line),
        News::Progress(_) => {}
        News::Warning(warning) => {
            note(&format_args!("runnerctl: warning: {}", neutralise(&warning)));
            warnings.push(warning);
        }
    });
    let obtained = obtained.await?;
    result(&image, &obtained, &warnings, report, out)
}

fn result(
    image: &Reference,
    obtained: &Obtained,
    warnings: &[String],
    report: Report,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let Obtained { lease, pulled } = obtained;
    // What was imported has no digest a registry knows; its id is still better than nothing.
    let digest = lease.digest().unwrap_or_else(|| lease.id());
    let counts = pulled.as_ref().map(|pulled| (pulled.layers, pulled.layers - pulled.reused));
    if report.json {
        let object = json!({
            "reference": image.to_string(),
            "digest": lease.digest().map(|digest| digest.to_string()),
            "image": lease.id().to_string(),
            "layers": lease.layers().len(),
            "new_layers": counts.map_or(0, |(_, new)| new),
            "asked": pulled.is_some(),
            "warnings": warnings,
        });
        writeln!(out, "{}", json_text(&object, false))?;
    } else if report.quiet {
        writeln!(out, "{digest}")?;
    } else if let Some((layers, new)) = counts {
        writeln!(out, "Pulled {} ({layers} layers, {new} of them new): {digest}", image.familiar())?;
    } else {
        writeln!(out, "{} is here already: {digest}", image.familiar())?;
    }
    Ok(())
}

fn import(store: &Store, reference: &str, source: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let reference = Reference::parse(reference)?;
    let source = Source::detect(source)?;
    store.sweep().context("debris of earlier imports cannot be removed")?;
    let shown = std::io::stderr().is_terminal();
    let board = Board::default();
    let imported = store.import(&reference.to_string(), &source, &mut |progress| {
        board.note(&progress);
        if let Some(line) = board.due_line()
            && shown
        {
            note(&line);
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

/// Removes what can be removed, and says why of the rest.
fn remove(store: &Store, references: &[String], out: &mut dyn Write) -> anyhow::Result<Status> {
    let mut status = Status::Success;
    for text in references {
        let removed = Reference::parse(text)
            .map_err(anyhow::Error::from)
            .and_then(|reference| Ok((store.remove(&reference.to_string())?, reference)));
        match removed {
            Ok((removed, reference)) => {
                writeln!(out, "Removed {} ({} layers, {})", reference.familiar(), removed.layers, Size(removed.bytes))?;
            }
            Err(error) => {
                note(&format_args!("runnerctl: {error:#}"));
                status = Status::Failure;
            }
        }
    }
    Ok(status)
}

/// A line for whoever watches.
fn note(line: &dyn std::fmt::Display) {
    // Nobody reads it then.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The short form of a name that the store has.
fn familiar(reference: &str) -> String {
    Reference::parse(reference).map_or_else(|_| reference.to_owned(), |parsed| parsed.familiar())
}

/// JSON in ASCII: names and labels of an image may hold anything, also what a terminal acts on.
fn json_text(value: &Value, pretty: bool) -> String {
    let text = if pretty { format!("{value:#}") } else { value.to_string() };
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        // Only strings hold such characters, DEL among them.
        if c.is_ascii() && c != '\u{7f}' {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    ascii
}
