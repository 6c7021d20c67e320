//! Configuration of the appliance: `/etc/runner/config.env` and what is merged with it.
//!
//! Three stages, three types, so that nothing unchecked reaches a program: [`Fragment`] is one file as written,
//! [`Merged`] is all of them with the last value of each key and where it came from, [`Settings`] is checked and
//! complete. [`KEYS`] declares every key once.
//!
//! The files are systemd EnvironmentFiles that other programs may share: unknown keys are errors if they have the prefix
//! `RUNNER_`, and left alone if not. `Debug` of the first two stages shows no value: one may hold a password.

mod env_file;
mod images;
mod keys;
mod registries;
mod settings;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use crate::environ::display_name;

pub use env_file::{Assignment, parse as parse_env_file};
pub use images::{ImageSettings, PullPolicy, Watermarks};
pub use keys::{KEYS, Key};
pub use registries::{Mirrors, ProxySettings, RegistrySettings};
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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        /// Shortened for display, or a placeholder for what may hold a password.
        value: String,
        /// What is wrong with it, without a password.
        problem: Cow<'static, str>,
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
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Merged {
    values: BTreeMap<&'static str, (String, Place)>,
}

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.values.iter().map(|(key, (_, place))| (key, place))).finish()
    }
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
                        values.insert(known, (value, place));
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

    /// The value of a key, its spelling and its place; an empty value counts as not given.
    fn get(&self, key: &Key) -> Option<(&'static str, &str, &Place)> {
        let given = |name: &'static str| {
            self.values.get(name).filter(|(value, _)| !value.is_empty()).map(|(value, place)| (name, &**value, place))
        };
        key.lower_case.and_then(given).or_else(|| given(key.name))
    }
}

/// The words of a value that is a list.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\t', '\n', '\r']).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::image_policy::ImagePolicy;

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
                images: ImageSettings {
                    pull: PullPolicy::Missing,
                    max_age: Some(Duration::from_secs(86_400)),
                    policy: ImagePolicy::Any,
                    allow: vec![],
                    collect: Watermarks { start: 85, stop: 75 },
                },
                registries: RegistrySettings::default(),
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
                "config.env:1: RUNNER_UID_RANGE=524288: not two numbers with a `:`; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, COUNT at least 196608, all ids below 1879048192",
            ),
            (
                "RUNNER_UID_RANGE=524289:65536",
                "config.env:1: RUNNER_UID_RANGE=524289:65536: not multiples of 65536; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, COUNT at least 196608, all ids below 1879048192",
            ),
            (
                "RUNNER_UID_RANGE=65536:65536",
                "config.env:1: RUNNER_UID_RANGE=65536:65536: begins among the ids of ordinary users; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, COUNT at least 196608, all ids below 1879048192",
            ),
            (
                "RUNNER_UID_RANGE=524288:131072",
                "config.env:1: RUNNER_UID_RANGE=524288:131072: holds fewer than two guests and what unpacking needs; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, COUNT at least 196608, all ids below 1879048192",
            ),
            (
                "RUNNER_UID_RANGE=524288:1878523904\nRUNNER_UID_RANGE=524288:1878589440",
                "config.env:2: RUNNER_UID_RANGE=524288:1878589440: reaches beyond the ids for containers; allowed: BASE:COUNT, multiples of 65536, BASE at least 524288, COUNT at least 196608, all ids below 1879048192",
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
            for name in [Some(key.name), key.lower_case].into_iter().flatten() {
                let text = format!("{name}='{}'\n", key.example);
                let settings = load(&[("example.env", &text)]).unwrap_or_else(|error| panic!("{text}: {error}"));
                assert_ne!(settings, load(&[]).unwrap(), "the example of {name} is its default");
            }
            assert!(!key.doc.is_empty() && !key.allowed.is_empty(), "{}", key.name);
            assert_eq!(key.name.starts_with(PREFIX), key.lower_case.is_none(), "{}", key.name);
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

    fn shown(text: &str) -> String {
        format!("{:?}", load(&[("config.env", text)]).unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    #[test]
    fn images_are_configured_by_their_keys() {
        let text = "RUNNER_IMAGE_PULL=always\nRUNNER_IMAGE_MAX_AGE=infinity\nRUNNER_IMAGE_POLICY=allow\n\
                    RUNNER_IMAGE_ALLOW='ghcr.io/octo/**\tnode:22'\nRUNNER_IMAGE_COLLECT_START=60%\nRUNNER_IMAGE_COLLECT_STOP=59";
        let images = load(&[("config.env", text)]).unwrap().images;
        let allow: Vec<String> = images.allow.iter().map(ToString::to_string).collect();
        assert_eq!(allow, ["ghcr.io/octo/**", "docker.io/library/node:22"]);
        assert_eq!((images.pull, images.max_age, images.policy), (PullPolicy::Always, None, ImagePolicy::Allow));
        assert_eq!(images.collect, Watermarks { start: 60, stop: 59 });
        assert_eq!(load(&[("config.env", "RUNNER_IMAGE_MAX_AGE=0")]).unwrap().images.max_age, Some(Duration::ZERO));
    }

    #[test]
    fn images_refusals() {
        for (text, part) in [
            (
                "RUNNER_IMAGE_PULL=if-missing",
                "RUNNER_IMAGE_PULL=if-missing: not one of the words; allowed: missing, always or never",
            ),
            ("RUNNER_IMAGE_MAX_AGE=1y", "an unknown unit"),
            ("RUNNER_IMAGE_POLICY=allow", "RUNNER_IMAGE_POLICY=allow: needs RUNNER_IMAGE_ALLOW, which is empty"),
            ("RUNNER_IMAGE_ALLOW='node ghcr.io**'", "`ghcr.io**`: `**` stands for whole parts"),
            ("RUNNER_IMAGE_COLLECT_START=0", "out of range"),
            ("RUNNER_IMAGE_COLLECT_STOP=101", "out of range"),
            ("RUNNER_IMAGE_COLLECT_STOP=9999999999", "out of range"),
            ("RUNNER_IMAGE_COLLECT_STOP=0.5", "not a whole number"),
            (
                "RUNNER_IMAGE_COLLECT_START=75",
                "COLLECT_START=75: RUNNER_IMAGE_COLLECT_STOP (75) is not below RUNNER_IMAGE_COLLECT_START (75)",
            ),
            (
                "RUNNER_IMAGE_COLLECT_START=50\nRUNNER_IMAGE_COLLECT_STOP=60",
                "config.env:2: RUNNER_IMAGE_COLLECT_STOP=60: RUNNER_IMAGE_COLLECT_STOP (60) is not below RUNNER_IMAGE_COLLECT_START (50)",
            ),
        ] {
            let line = error(text);
            assert!(line.contains(part) && !line.contains('\n'), "{text}: {line}");
        }
    }

    #[test]
    fn registries_are_configured_by_their_keys() {
        let text = "RUNNER_REGISTRY_MIRRORS='index.docker.io=https://a.example/ ghcr.io=http://m docker.io=https://b.example:5/x'\n\
                    RUNNER_REGISTRY_INSECURE='m registry:5000'\nRUNNER_REGISTRY_CA_FILE=/etc/ssl//ca.pem\n";
        let registries = load(&[("config.env", text)]).unwrap().registries;
        let mirrors: Vec<String> = registries
            .mirrors
            .iter()
            .map(|one| format!("{} {:?}", one.registry, one.urls.iter().map(ToString::to_string).collect::<Vec<_>>()))
            .collect();
        assert_eq!(mirrors, [r#"docker.io ["https://a.example", "https://b.example:5/x"]"#, r#"ghcr.io ["http://m"]"#]);
        assert_eq!(registries.ca_file, Some(PathBuf::from("/etc/ssl/ca.pem")));
        let insecure =
            ["m", "M", "registry:5000", "registry", "registry:5001"].map(|host| registries.is_insecure(host));
        assert_eq!(insecure, [true, true, true, false, false]);
    }

    #[test]
    fn registries_refusals() {
        for (text, part) in [
            ("RUNNER_REGISTRY_MIRRORS=https://m.example", "without `=`"),
            ("RUNNER_REGISTRY_MIRRORS=registry=https://m.example", "neither a dot nor a port"),
            ("RUNNER_REGISTRY_MIRRORS=https://docker.io=https://m.example", "`https://docker.io` is not a host"),
            ("RUNNER_REGISTRY_MIRRORS=docker.io=m.example", "the mirror of docker.io begins with neither"),
            ("RUNNER_REGISTRY_MIRRORS=docker.io=https://m.example?a=b", "query"),
            (
                "RUNNER_REGISTRY_MIRRORS=docker.io=http://m.example:80\nRUNNER_REGISTRY_INSECURE=m.example",
                "http://m.example:80 is plain HTTP and m.example:80 is not in RUNNER_REGISTRY_INSECURE",
            ),
            ("RUNNER_REGISTRY_MIRRORS='docker.io=https://m.example docker.io=https://M.example/'", "given twice"),
            ("RUNNER_REGISTRY_INSECURE='a.example http://b.example'", "`http://b.example` is not a host"),
            ("RUNNER_REGISTRY_INSECURE=index.docker.io", "docker.io is not reached by plain HTTP"),
            ("RUNNER_REGISTRY_CA_FILE=ca.pem", "not absolute"),
            ("HTTP_PROXY=socks5://proxy:1", "HTTP_PROXY=(not shown): neither http:// nor https://"),
            ("https_proxy=proxy:x", "https_proxy=(not shown): not a host"),
            ("HTTPS_PROXY='proxy 1'", "white space"),
            ("NO_PROXY='a\tb'", "control character"),
        ] {
            let line = error(text);
            assert!(line.contains(part) && !line.contains('\n'), "{text}: {line}");
        }
    }

    #[test]
    fn proxies_get_a_scheme_and_lower_case_wins() {
        let proxies = |text: &str| {
            let proxies = load(&[("config.env", text)]).unwrap().registries.proxies;
            let text = |secret: Option<crate::secret::Secret>| secret.map(|secret| secret.expose().to_owned());
            (text(proxies.http), text(proxies.https), proxies.no_proxy)
        };
        let of = |text: &str| Some(text.to_owned());
        assert_eq!(
            proxies("HTTP_PROXY=p.example:1\nhttp_proxy=http://u:p@q.example/"),
            (of("http://u:p@q.example"), None, None)
        );
        assert_eq!(proxies("https_proxy=u:a@b@p.example\nHTTPS_PROXY=x"), (None, of("http://u:a@b@p.example"), None));
        assert_eq!(
            proxies("http_proxy=\nHTTP_PROXY=https://p:1\nno_proxy=a,b\n"),
            (of("https://p:1"), None, of("a,b"))
        );
    }

    #[test]
    fn passwords_stay_out_of_messages_and_debug_output() {
        for text in [
            "HTTP_PROXY=ftp://user:hunter2@proxy:1",
            "https_proxy='user:hunter2@proxy 1'",
            "RUNNER_REGISTRY_MIRRORS=docker.io=https://user:hunter2@m.example",
            "RUNNER_REGISTRY_MIRRORS=https://user:hunter2@m.example=https://m.example",
            "RUNNER_BOOTSTRAP_REPO_URL='https://hunter2@git.example/\t'",
        ] {
            let line = error(text);
            assert!(!line.contains("hunter2") && line.contains("(not shown)"), "{line}");
        }
        let text = "HTTP_PROXY=http://user:hunter2@proxy:1";
        let fragment = Fragment::parse("config.env", text.as_bytes()).unwrap();
        let merged = Merged::new([fragment.clone()]).unwrap();
        let all = format!("{fragment:?} {merged:?} {}", shown(text));
        assert!(!all.contains("hunter2") && all.contains("HTTP_PROXY"), "{all}");
    }
}
