//! Keys about images: when to pull, which ones are allowed, how much of the disk they may take.

use std::time::Duration;

use super::keys::{self, Key};
use super::settings::{bad_value, value};
use super::{ConfigError, Merged};
use crate::image_policy::{ImagePolicy, Pattern};
use crate::time_span::{self, TimeSpan};

pub(super) const PULL: Key = Key {
    name: "RUNNER_IMAGE_PULL",
    doc: "When a registry is asked for an image: only for one that is missing here, for every job, or never.",
    allowed: "missing, always or never",
    default: "missing",
    example: "always",
    ..keys::BLANK
};
pub(super) const MAX_AGE: Key = Key {
    name: "RUNNER_IMAGE_MAX_AGE",
    doc: "With RUNNER_IMAGE_PULL=missing, the registry is asked whether a tag has moved once this has passed since it last was; 0 asks every time, infinity never.",
    allowed: "a time span such as 30min, 12h or 7d, or infinity",
    default: "24h",
    example: "7d",
    ..keys::BLANK
};
pub(super) const POLICY: Key = Key {
    name: "RUNNER_IMAGE_POLICY",
    doc: "Which images jobs may use: any, only those pinned by digest, or only those RUNNER_IMAGE_ALLOW lists.",
    allowed: "any, digest or allow",
    default: "any",
    example: "digest",
    ..keys::BLANK
};
pub(super) const ALLOW: Key = Key {
    name: "RUNNER_IMAGE_ALLOW",
    doc: "Images that RUNNER_IMAGE_POLICY=allow lets jobs use; `*` stands for a piece of one part, `**` for one or more whole parts.",
    allowed: "image references separated by spaces, with `*` and `**`",
    default: "",
    example: "docker.io/library/* ghcr.io/octo/** node:22",
    ..keys::BLANK
};
pub(super) const COLLECT_START: Key = Key {
    name: "RUNNER_IMAGE_COLLECT_START",
    doc: "Percentage of the image store's file system in use from which on images are removed, the least recently used first.",
    allowed: "a percentage from 1 to 100, above RUNNER_IMAGE_COLLECT_STOP",
    default: "85",
    example: "90",
    ..keys::BLANK
};
pub(super) const COLLECT_STOP: Key = Key {
    name: "RUNNER_IMAGE_COLLECT_STOP",
    doc: "Percentage in use at which removing images ends.",
    allowed: "a percentage from 1 to 100, below RUNNER_IMAGE_COLLECT_START",
    default: "75",
    example: "60",
    ..keys::BLANK
};

/// What is decided about images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSettings {
    /// `RUNNER_IMAGE_PULL`.
    pub pull: PullPolicy,
    /// `RUNNER_IMAGE_MAX_AGE`; `None` for `infinity`.
    pub max_age: Option<Duration>,
    /// `RUNNER_IMAGE_POLICY`.
    pub policy: ImagePolicy,
    /// `RUNNER_IMAGE_ALLOW`; not empty with [`ImagePolicy::Allow`].
    pub allow: Vec<Pattern>,
    /// `RUNNER_IMAGE_COLLECT_START` and `RUNNER_IMAGE_COLLECT_STOP`.
    pub collect: Watermarks,
}

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// When the image is not in the store, and for a tag older than [`ImageSettings::max_age`].
    #[default]
    Missing,
    /// For every job, whatever is in the store. Blobs that are there are not fetched again.
    Always,
    /// Never: what is not in the store does not exist.
    Never,
}

impl PullPolicy {
    /// As the configuration and the command line spell them.
    pub const NAMES: [(&'static str, Self); 3] =
        [("missing", Self::Missing), ("always", Self::Always), ("never", Self::Never)];

    /// As the configuration spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// How full the store's file system may become, in percent of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// In use from which on images are collected, 2 to 100.
    pub start: u8,
    /// In use at which collecting ends, 1 to 99, below `start`.
    pub stop: u8,
}

pub(super) fn from_merged(merged: &Merged) -> Result<ImageSettings, ConfigError> {
    let pull = value(merged, &PULL, |text| named(text, &PullPolicy::NAMES))?.unwrap_or_default();
    let max_age = value(merged, &MAX_AGE, max_age)?.unwrap_or(Some(Duration::from_secs(24 * 3_600)));
    let policy = value(merged, &POLICY, |text| named(text, &ImagePolicy::NAMES))?.unwrap_or_default();
    let allow = value(merged, &ALLOW, patterns)?.unwrap_or_default();
    if policy == ImagePolicy::Allow && allow.is_empty() {
        return Err(bad_value(merged, &POLICY, "needs RUNNER_IMAGE_ALLOW, which is empty"));
    }
    let start = value(merged, &COLLECT_START, percentage)?;
    let stop = value(merged, &COLLECT_STOP, percentage)?;
    let collect = Watermarks { start: start.unwrap_or(85), stop: stop.unwrap_or(75) };
    if collect.stop >= collect.start {
        // At least one is given, for the defaults fit each other.
        let key = if stop.is_some() { &COLLECT_STOP } else { &COLLECT_START };
        let Watermarks { start, stop } = collect;
        let problem = format!("RUNNER_IMAGE_COLLECT_STOP ({stop}) is not below RUNNER_IMAGE_COLLECT_START ({start})");
        return Err(bad_value(merged, key, problem));
    }
    Ok(ImageSettings { pull, max_age, policy, allow, collect })
}

fn named<T: Copy>(text: &str, names: &[(&str, T)]) -> Result<T, &'static str> {
    names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or("not one of the words")
}

fn max_age(text: &str) -> Result<Option<Duration>, &'static str> {
    Ok(match time_span::parse(text)? {
        TimeSpan::Of(span) => Some(span),
        TimeSpan::Infinity => None,
    })
}

fn patterns(text: &str) -> Result<Vec<Pattern>, String> {
    super::words(text).map(|word| Pattern::parse(word).map_err(|error| error.to_string())).collect()
}

fn percentage(text: &str) -> Result<u8, &'static str> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("not a whole number");
    }
    match digits.parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err("out of range"),
    }
}
