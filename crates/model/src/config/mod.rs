//! Configuration of the appliance: `/etc/runner/config.env` and what is merged with it.
//!
//! Three stages, three types, so that nothing unchecked reaches a program: [`Fragment`] is one file as written,
//! [`Merged`] is all of them with the last value of each key and where it came from, [`Settings`] is checked and
//! complete. [`KEYS`] declares every key once.
//!
//! The files are systemd EnvironmentFiles that other programs may share: keys without the prefix `RUNNER_` are left
//! alone, unknown keys with it are errors.

mod env_file;
mod keys;
mod settings;

use std::collections::BTreeMap;

use crate::environ::display_name;

pub use env_file::{Assignment, parse as parse_env_file};
pub use keys::{KEYS, Key};
pub use settings::{AllowedVolume, Settings, UidRange};

/// Prefix of the keys that are ours.
const PREFIX: &str = "RUNNER_";

/// A file and line, as messages show it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// As the caller named the file.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", display_name(&self.file), self.line)
    }
}

/// A configuration that cannot be used. One line: file, line, key, value and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file breaks the grammar of an EnvironmentFile.
    #[error("{place}: {problem}")]
    Syntax {
        /// Where the problem begins.
        place: Place,
        /// What is wrong and what is expected.
        problem: &'static str,
    },
    /// A key with our prefix that does not exist.
    #[error("{place}: unknown key {key}{}", nearest.map(|known| format!("; did you mean {known}?")).unwrap_or_default())]
    UnknownKey {
        /// Of the assignment.
        place: Place,
        /// Shortened for display.
        key: String,
        /// The known key that looks most like it, if one does.
        nearest: Option<&'static str>,
    },
    /// A value that is not allowed.
    #[error("{place}: {key}={value}: {problem}; allowed: {allowed}")]
    BadValue {
        /// Of the assignment that counts.
        place: Place,
        /// One of [`KEYS`].
        key: &'static str,
        /// Shortened for display.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
        /// What the key takes.
        allowed: &'static str,
    },
}

/// One file as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    file: String,
    assignments: Vec<Assignment>,
}

impl Fragment {
    /// Parses the contents of `file`; the name is used in messages only.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`].
    pub fn parse(file: &str, contents: &[u8]) -> Result<Self, ConfigError> {
        let assignments = env_file::parse(contents)
            .map_err(|(line, problem)| ConfigError::Syntax { place: Place { file: file.to_owned(), line }, problem })?;
        Ok(Self { file: file.to_owned(), assignments })
    }
}

/// All files together: of each of our keys the last value, with its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    values: BTreeMap<&'static str, (String, Place)>,
}

impl Merged {
    /// Merges `fragments` in the given order, later ones winning.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`].
    pub fn new(fragments: impl IntoIterator<Item = Fragment>) -> Result<Self, ConfigError> {
        let mut values = BTreeMap::new();
        for fragment in fragments {
            for Assignment { line, key, value } in fragment.assignments {
                let place = Place { file: fragment.file.clone(), line };
                match keys::find(&key) {
                    Some(known) => {
                        values.insert(known.name, (value, place));
                    }
                    None if key.starts_with(PREFIX) => {
                        let nearest = keys::nearest(&key);
                        return Err(ConfigError::UnknownKey { place, key: display_name(&key), nearest });
                    }
                    None => {}
                }
            }
        }
        Ok(Self { values })
    }

    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`], for the first bad key in the order of [`KEYS`].
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        settings::from_merged(self)
    }

    /// The value of a key and its place; an empty value counts as not given.
    fn get(&self, key: &str) -> Option<(&str, &Place)> {
        self.values.get(key).map(|(value, place)| (value.as_str(), place)).filter(|(value, _)| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    fn load(files: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let fragments: Result<Vec<_>, _> =
            files.iter().map(|(file, text)| Fragment::parse(file, text.as_bytes())).collect();
        Merged::new(fragments?)?.settings()
    }

    fn error(text: &str) -> String {
        load(&[("config.env", text)]).expect_err(text).to_string()
    }

    #[test]
    fn no_file_gives_the_documented_defaults() {
        let settings = load(&[]).unwrap();
        assert_eq!(
            settings,
            Settings {
                root: PathBuf::from("/home/runner"),
                work: PathBuf::from("/home/runner/_work"),
                tool_cache: PathBuf::from("/home/runner/_work/_tool"),
                user: "runner".to_owned(),
                volumes_allow: vec![],
                uid_range: UidRange { base: 524_288, count: 16_777_216 },
                stop_grace: Duration::from_secs(5),
                bootstrap_repo_url: None,
                bootstrap_repo_ref: None,
            }
        );
        assert_eq!(load(&[("empty.env", "RUNNER_ROOT=\nRUNNER_STOP_GRACE=''\n")]).unwrap(), settings);
    }

    #[test]
    fn derived_defaults_follow_and_later_files_win() {
        let settings = load(&[
            ("a.env", "RUNNER_ROOT=/srv/runner\nRUNNER_USER=ci\nOTHER=1\n"),
            ("b.env", "RUNNER_ROOT=/opt/runner/\nRUNNER_VOLUMES_ALLOW='/srv/cache /etc/ssl/certs:ro'\n"),
        ])
        .unwrap();
        assert_eq!(settings.root, PathBuf::from("/opt/runner"));
        assert_eq!(settings.work, PathBuf::from("/opt/runner/_work"));
        assert_eq!(settings.user, "ci");
        assert_eq!(
            settings.volumes_allow,
            [
                AllowedVolume { path: PathBuf::from("/srv/cache"), read_only: false },
                AllowedVolume { path: PathBuf::from("/etc/ssl/certs"), read_only: true },
            ]
        );
        let elsewhere = load(&[("a.env", "RUNNER_WORK=/data/work\n")]).unwrap();
        assert_eq!(elsewhere.tool_cache, PathBuf::from("/data/work/_tool"));
    }

    #[test]
    fn errors_name_file_line_key_value_and_what_is_allowed() {
        for (text, message) in [
            (
                "# first\nRUNNER_STOP_GRACE=7\n",
                "config.env:2: RUNNER_STOP_GRACE=7: out of range; allowed: whole seconds from 0 to 6",
            ),
            (
                "RUNNER_STOP_GRACE=2s",
                "config.env:1: RUNNER_STOP_GRACE=2s: not a whole number; allowed: whole seconds from 0 to 6",
            ),
            (
                "RUNNER_ROOT=home/runner",
                "config.env:1: RUNNER_ROOT=home/runner: not absolute; allowed: an absolute path without `.` and `..`",
            ),
            (
                "RUNNER_WORK=/srv/../etc",
                "config.env:1: RUNNER_WORK=/srv/../etc: has a `.` or `..` part; allowed: an absolute path without `.` and `..`",
            ),
            (
                "RUNNER_ROOT=/",
                "config.env:1: RUNNER_ROOT=/: the root of the file system; allowed: an absolute path without `.` and `..`",
            ),
            (
                "RUNNER_USER=root",
                "config.env:1: RUNNER_USER=root: jobs must not run as root; allowed: the name of an ordinary user, at most 31 of a-z 0-9 _ -",
            ),
            (
                "RUNNER_USER=a:b",
                "config.env:1: RUNNER_USER=a:b: not a user name; allowed: the name of an ordinary user, at most 31 of a-z 0-9 _ -",
            ),
            (
                "RUNNER_VOLUMES_ALLOW='/ok\tcache'",
                "config.env:1: RUNNER_VOLUMES_ALLOW=/ok\\tcache: not absolute; allowed: absolute host paths separated by spaces, each with an optional `:ro`",
            ),
            (
                "RUNNER_VOLUMES_ALLOW='/ok:rw'",
                "config.env:1: RUNNER_VOLUMES_ALLOW=/ok:rw: has a `:` that begins no `:ro`; allowed: absolute host paths separated by spaces, each with an optional `:ro`",
            ),
            (
                "RUNNER_UID_RANGE=524288",
                "config.env:1: RUNNER_UID_RANGE=524288: not two numbers with a `:`; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, all ids below 1879048192",
            ),
            (
                "RUNNER_UID_RANGE=524289:65536",
                "config.env:1: RUNNER_UID_RANGE=524289:65536: not multiples of 65536; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, all ids below 1879048192",
            ),
            (
                "RUNNER_UID_RANGE=65536:65536",
                "config.env:1: RUNNER_UID_RANGE=65536:65536: begins among the ids of ordinary users; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, all ids below 1879048192",
            ),
            (
                "RUNNER_UID_RANGE=524288:0",
                "config.env:1: RUNNER_UID_RANGE=524288:0: holds no guest; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, all ids below 1879048192",
            ),
            (
                "RUNNER_UID_RANGE=524288:1878523904\nRUNNER_UID_RANGE=524288:1878589440",
                "config.env:2: RUNNER_UID_RANGE=524288:1878589440: reaches beyond the ids for containers; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, all ids below 1879048192",
            ),
            ("RUNNER_ROOTS=/x", "config.env:1: unknown key RUNNER_ROOTS; did you mean RUNNER_ROOT?"),
            ("RUNNER_STOPGRACE=1", "config.env:1: unknown key RUNNER_STOPGRACE; did you mean RUNNER_STOP_GRACE?"),
            ("RUNNER_QQQQQQQQQQQQQ=1", "config.env:1: unknown key RUNNER_QQQQQQQQQQQQQ"),
            ("A=1\nB='", "config.env:2: the single quote is not closed"),
        ] {
            assert_eq!(error(text), message);
        }
        assert!(load(&[("ok.env", "RUNNER_UID_RANGE=524288:1878523904\nRUNNER_STOP_GRACE=6")]).is_ok());
    }

    #[test]
    fn a_bad_value_that_is_overridden_does_not_matter() {
        let settings = load(&[("a.env", "RUNNER_STOP_GRACE=99\n"), ("b.env", "RUNNER_STOP_GRACE=0\n")]).unwrap();
        assert_eq!(settings.stop_grace, Duration::ZERO);
    }

    #[test]
    fn every_example_in_the_table_is_accepted_and_differs_from_nothing() {
        for key in KEYS {
            let text = format!("{}='{}'\n", key.name, key.example);
            let settings = load(&[("example.env", &text)]).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_ne!(settings, load(&[]).unwrap(), "the example of {} is its default", key.name);
            assert!(key.name.starts_with(PREFIX) && !key.doc.is_empty() && !key.allowed.is_empty(), "{}", key.name);
        }
    }

    #[test]
    fn the_defaults_in_the_table_are_the_real_ones() {
        let defaults: String = KEYS
            .iter()
            .map(|key| {
                let value =
                    key.default.replace("$RUNNER_WORK", "/home/runner/_work").replace("$RUNNER_ROOT", "/home/runner");
                format!("{}={value}\n", key.name)
            })
            .collect();
        assert_eq!(load(&[("defaults.env", &defaults)]).unwrap(), load(&[]).unwrap());
    }
}
