//! Making room, and saying what that came to.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use runner_model::config::Watermarks;
use runner_model::time_span::{self, TimeSpan};
use runner_pull::Size;
use runner_store::{Pruned, Scope, Space, Store};

use super::familiar;

/// What to remove.
#[derive(Debug, Clone, Args)]
pub struct PruneArguments {
    /// Remove every image that no job uses
    #[arg(long)]
    all: bool,
    /// Remove images that were not used for this long, as in 12h or 30d
    #[arg(long, value_name = "SPAN", value_parser = span)]
    until: Option<Duration>,
    /// Keep to the disk watermarks RUNNER_IMAGE_COLLECT_START and _STOP, as the timer does
    #[arg(long, conflicts_with_all = ["all", "until"])]
    auto: bool,
}

fn span(text: &str) -> Result<Duration, String> {
    match time_span::parse(text) {
        Ok(TimeSpan::Of(span)) => Ok(span),
        Ok(TimeSpan::Infinity) => Err("infinitely long ago there were no images".to_owned()),
        Err(problem) => Err(format!("{problem}; write a time span such as 12h or 30d")),
    }
}

pub(super) fn prune(
    store: &Store,
    arguments: &PruneArguments,
    watermarks: impl FnOnce() -> anyhow::Result<Watermarks>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let scope = match arguments {
        PruneArguments { until: Some(span), .. } => Some(Scope::Unused(*span)),
        PruneArguments { all: true, .. } => Some(Scope::All),
        PruneArguments { auto: true, .. } => {
            let Watermarks { start, stop } = watermarks()?;
            Some(Scope::Watermarks { start, stop })
        }
        _ => None,
    };
    store.settle()?;
    let pruned = match scope {
        Some(scope) => store.prune(scope, &mut |reference| {
            // What was removed is gone, whoever hears of it.
            let _ = writeln!(out, "Removed {}", familiar(reference));
        })?,
        None => Pruned { swept: store.sweep()?, ..Pruned::default() },
    };
    write!(out, "{}", outcome(&pruned, scope, store.space()?))?;
    Ok(())
}

/// What was removed, and what that means for the disk; one line each.
fn outcome(pruned: &Pruned, scope: Option<Scope>, space: Space) -> String {
    let Pruned { references, swept, partials } = pruned;
    let counted = [
        (references.len(), "image", "images"),
        (swept.layers, "layer", "layers"),
        (*partials, "interrupted download", "interrupted downloads"),
        (swept.debris, "piece of debris", "pieces of debris"),
    ];
    let parts: Vec<String> = counted
        .iter()
        .filter(|(count, _, _)| *count > 0)
        .map(|(count, one, many)| format!("{count} {}", if *count == 1 { one } else { many }))
        .collect();
    let used = space.percent_used();
    let mut text = match parts.is_empty() {
        true => "Nothing to remove".to_owned(),
        false => format!("Removed {}; freed {}", parts.join(", "), Size(swept.bytes)),
    };
    text.push_str(&format!("; {used}% of the disk in use, {} free.\n", Size(space.free)));
    if let Some(Scope::Watermarks { start, stop }) = scope
        && used > stop
        && (used > start || !references.is_empty())
    {
        text.push_str(&format!(
            "That is above RUNNER_IMAGE_COLLECT_STOP={stop}, and what is left in the store is in use or not what fills the disk.\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use runner_store::Swept;

    #[test]
    fn says_what_went_and_what_is_left() {
        let full = Space { total: 100 << 30, free: 10 << 30 };
        let roomy = Space { total: 100 << 30, free: 40 << 30 };
        let auto = Some(Scope::Watermarks { start: 85, stop: 75 });
        let some = Pruned {
            references: vec!["docker.io/library/node:22".to_owned()],
            swept: Swept { debris: 2, images: 1, layers: 3, bytes: 1 << 30 },
            partials: 1,
        };
        let nothing = Pruned::default();
        for (pruned, scope, space, expected) in [
            (&nothing, None, roomy, "Nothing to remove; 60% of the disk in use, 40.0 GiB free.\n"),
            (&nothing, auto, Space { total: 100, free: 20 }, "Nothing to remove; 80% of the disk in use, 20 B free.\n"),
            (
                &some,
                auto,
                roomy,
                "Removed 1 image, 3 layers, 1 interrupted download, 2 pieces of debris; freed 1.0 GiB; 60% of the disk in use, 40.0 GiB free.\n",
            ),
            (
                &nothing,
                auto,
                full,
                "Nothing to remove; 90% of the disk in use, 10.0 GiB free.\nThat is above RUNNER_IMAGE_COLLECT_STOP=75, and what is left in the store is in use or not what fills the disk.\n",
            ),
        ] {
            assert_eq!(outcome(pruned, scope, space), expected, "{pruned:?} {scope:?}");
        }
    }

    #[test]
    fn spans_of_the_command_line() {
        assert_eq!(span("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for text in ["", "infinity", "x", "1y"] {
            assert!(span(text).is_err(), "{text}");
        }
    }
}
