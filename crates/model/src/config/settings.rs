//! Checked configuration.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use super::images::{self, ImageSettings};
use super::keys::{self, Key};
use super::registries::{self, RegistrySettings};
use super::{ConfigError, Merged};
use crate::environ::display_name;
use crate::passwd::GUEST_IDS;

/// The lowest id for guests: where systemd's range for containers begins, above every ordinary user. UIDs and GIDs on
/// systemd systems, "Summary".
const LOWEST_ID: u32 = 524_288;
/// One past the last id of systemd's range for containers.
const END_OF_IDS: u32 = 1_879_048_192;

/// What the programs of the appliance work with. Every path is absolute and without `.`, `..` or a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `RUNNER_ROOT`.
    pub root: PathBuf,
    /// `RUNNER_WORK`.
    pub work: PathBuf,
    /// `RUNNER_TOOL_CACHE`.
    pub tool_cache: PathBuf,
    /// `RUNNER_USER`.
    pub user: String,
    /// `RUNNER_VOLUMES_ALLOW`, in the order written.
    pub volumes_allow: Vec<AllowedVolume>,
    /// `RUNNER_UID_RANGE`.
    pub uid_range: UidRange,
    /// `RUNNER_STOP_GRACE`.
    pub stop_grace: Duration,
    /// When images are pulled, which are allowed, when they are collected.
    pub images: ImageSettings,
    /// How registries are reached.
    pub registries: RegistrySettings,
    /// `RUNNER_BOOTSTRAP_REPO_URL`.
    pub bootstrap_repo_url: Option<String>,
    /// `RUNNER_BOOTSTRAP_REPO_REF`.
    pub bootstrap_repo_ref: Option<String>,
}

/// A host path that workflows may mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedVolume {
    /// It and everything below it.
    pub path: PathBuf,
    /// Whether only for reading.
    pub read_only: bool,
}

/// Host ids for guests and for unpacking images: blocks of 65,536, at least three of them. The last block is not for
/// guests: whoever breaks out of the unpacker must not be a user that some guest's files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    /// The first id.
    pub base: u32,
    /// How many ids.
    pub count: u32,
}

impl UidRange {
    /// How many guests fit at once.
    #[must_use]
    pub fn guests(self) -> u32 {
        (self.count / GUEST_IDS).saturating_sub(1)
    }

    /// How many ids from [`UidRange::base`] on are for guests.
    #[must_use]
    pub fn guest_ids(self) -> u32 {
        self.guests() * GUEST_IDS
    }

    /// The first id of the guest's range number `index`, counted from 0; `None` beyond [`UidRange::guests`].
    #[must_use]
    pub fn guest_base(self, index: u32) -> Option<u32> {
        (index < self.guests()).then(|| self.base + index * GUEST_IDS)
    }

    /// The first of the 65,536 ids that images are unpacked as.
    #[must_use]
    pub fn unpack_base(self) -> u32 {
        self.base + self.guest_ids()
    }

    /// Whether `id` is one of them all.
    #[must_use]
    pub fn contains(self, id: u32) -> bool {
        id.checked_sub(self.base).is_some_and(|offset| offset < self.count)
    }
}

pub(super) fn from_merged(merged: &Merged) -> Result<Settings, ConfigError> {
    let root = value(merged, &keys::ROOT, path)?.unwrap_or_else(|| PathBuf::from(keys::ROOT.default));
    let work = value(merged, &keys::WORK, path)?.unwrap_or_else(|| root.join("_work"));
    let tool_cache = value(merged, &keys::TOOL_CACHE, path)?.unwrap_or_else(|| work.join("_tool"));
    Ok(Settings {
        root,
        work,
        tool_cache,
        user: value(merged, &keys::USER, user)?.unwrap_or_else(|| keys::USER.default.to_owned()),
        volumes_allow: value(merged, &keys::VOLUMES_ALLOW, volumes)?.unwrap_or_default(),
        uid_range: value(merged, &keys::UID_RANGE, uid_range)?
            .unwrap_or(UidRange { base: LOWEST_ID, count: 256 * GUEST_IDS }),
        stop_grace: value(merged, &keys::STOP_GRACE, stop_grace)?.unwrap_or(Duration::from_secs(5)),
        images: images::from_merged(merged)?,
        registries: registries::from_merged(merged)?,
        bootstrap_repo_url: value(merged, &keys::BOOTSTRAP_REPO_URL, text)?,
        bootstrap_repo_ref: value(merged, &keys::BOOTSTRAP_REPO_REF, text)?,
    })
}

/// The checked value of `key` if it is given; a check's error is what is wrong with it.
pub(super) fn value<T, P: Into<Cow<'static, str>>>(
    merged: &Merged,
    key: &Key,
    check: impl Fn(&str) -> Result<T, P>,
) -> Result<Option<T>, ConfigError> {
    let Some((_, text, _)) = merged.get(key) else { return Ok(None) };
    check(text).map(Some).map_err(|problem| bad_value(merged, key, problem))
}

/// The error for the value of `key`, which is given.
pub(super) fn bad_value(merged: &Merged, key: &Key, problem: impl Into<Cow<'static, str>>) -> ConfigError {
    let (name, text, place) = merged.get(key).expect("only a key that is given can be bad");
    // A URL with an `@` has user information, and nobody knows what in it is secret.
    let hidden = key.secret || text.contains('@') && text.contains("://");
    ConfigError::BadValue {
        place: place.clone(),
        key: name,
        value: if hidden { "(not shown)".to_owned() } else { display_name(text) },
        problem: problem.into(),
        allowed: key.allowed,
    }
}

pub(super) fn path(text: &str) -> Result<PathBuf, &'static str> {
    if !text.starts_with('/') {
        return Err("not absolute");
    }
    if text.chars().any(char::is_control) {
        return Err("has a control character");
    }
    let mut path = String::new();
    for part in text.split('/').filter(|part| !part.is_empty()) {
        if matches!(part, "." | "..") {
            return Err("has a `.` or `..` part");
        }
        path.push('/');
        path.push_str(part);
    }
    if path.is_empty() { Err("the root of the file system") } else { Ok(PathBuf::from(path)) }
}

fn user(text: &str) -> Result<String, &'static str> {
    let ok = text.len() <= 31
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'));
    match text {
        "root" => Err("jobs must not run as root"),
        _ if ok => Ok(text.to_owned()),
        _ => Err("not a user name"),
    }
}

fn volumes(text: &str) -> Result<Vec<AllowedVolume>, &'static str> {
    super::words(text)
        .map(|word| {
            let (host_path, read_only) = match word.strip_suffix(":ro") {
                Some(host_path) => (host_path, true),
                None => (word, false),
            };
            if host_path.contains(':') {
                return Err("has a `:` that begins no `:ro`");
            }
            Ok(AllowedVolume { path: path(host_path)?, read_only })
        })
        .collect()
}

fn uid_range(text: &str) -> Result<UidRange, &'static str> {
    const SHAPE: &str = "not two numbers with a `:`";
    let (base, count) = text.split_once(':').ok_or(SHAPE)?;
    let number = |text: &str| if text.starts_with('+') { Err(SHAPE) } else { text.parse::<u32>().map_err(|_| SHAPE) };
    let (base, count) = (number(base)?, number(count)?);
    if !base.is_multiple_of(GUEST_IDS) || !count.is_multiple_of(GUEST_IDS) {
        return Err("not multiples of 65536");
    }
    if base < LOWEST_ID {
        return Err("begins among the ids of ordinary users");
    }
    if count < 3 * GUEST_IDS {
        return Err("holds fewer than two guests and what unpacking needs");
    }
    match base.checked_add(count) {
        Some(end) if end <= END_OF_IDS => Ok(UidRange { base, count }),
        _ => Err("reaches beyond the ids for containers"),
    }
}

fn stop_grace(text: &str) -> Result<Duration, &'static str> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("not a whole number");
    }
    match text.parse::<u64>() {
        Ok(seconds @ 0..=6) => Ok(Duration::from_secs(seconds)),
        _ => Err("out of range"),
    }
}

fn text(text: &str) -> Result<String, &'static str> {
    if text.chars().any(char::is_control) { Err("has a control character") } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hand_out_one_block_per_guest_and_keep_the_last() {
        let range = UidRange { base: 524_288, count: 3 * 65_536 };
        assert_eq!((range.guests(), range.guest_ids(), range.unpack_base()), (2, 131_072, 655_360));
        assert_eq!(
            [0, 1, 2, u32::MAX].map(|index| range.guest_base(index)),
            [Some(524_288), Some(589_824), None, None]
        );
        assert_eq!(
            [524_287, 524_288, 655_360, 720_895, 720_896].map(|id| range.contains(id)),
            [false, true, true, true, false]
        );
    }
}
