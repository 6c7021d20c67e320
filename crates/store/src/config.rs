//! Image configuration: what an image says about how to run it.
//!
//! Format: OCI image-spec, `config.md`; Docker's image JSON is the same document with more fields.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::{StoreError, quoted};

/// The part of an image's configuration that decides how a container of it runs. Absent and `null` read as empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `NAME=value`, in the image's order; a later one wins.
    pub env: Vec<String>,
    /// Words put before the command; empty when the image has none.
    pub entrypoint: Vec<String>,
    /// Default command, or default arguments of the entry point.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid` or a mix; empty means root.
    pub user: String,
    /// Absolute path, or empty for `/`.
    pub working_dir: String,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// Paths the image declares as volumes, sorted.
    pub volumes: Vec<String>,
    /// Ports such as `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// Signal that asks the container to stop, such as `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// Docker's health check; not part of OCI, but every builder writes it.
    pub healthcheck: Option<Healthcheck>,
    /// Go architecture name: `amd64`, `arm64`, …; empty when the image does not say.
    pub architecture: String,
    /// Architecture variant such as `v8`.
    pub variant: Option<String>,
    /// Operating system, `linux`; empty when the image does not say.
    pub os: String,
    /// RFC 3339 time the image says it was made.
    pub created: Option<String>,
}

/// A health check as the image's author wrote it; unset fields take the engine's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", text]`, `["NONE"]`, or empty to inherit.
    #[serde(rename = "Test", default, deserialize_with = "words")]
    pub test: Vec<String>,
    /// Time between two checks.
    #[serde(rename = "Interval", default, deserialize_with = "nanoseconds")]
    pub interval: Option<Duration>,
    /// Time one check may take.
    #[serde(rename = "Timeout", default, deserialize_with = "nanoseconds")]
    pub timeout: Option<Duration>,
    /// Time after the start in which failures do not count.
    #[serde(rename = "StartPeriod", default, deserialize_with = "nanoseconds")]
    pub start_period: Option<Duration>,
    /// Time between two checks during the start period.
    #[serde(rename = "StartInterval", default, deserialize_with = "nanoseconds")]
    pub start_interval: Option<Duration>,
    /// Failures in a row that make the container unhealthy.
    #[serde(rename = "Retries", default)]
    pub retries: Option<u32>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: Execution,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    #[serde(default, deserialize_with = "or_default")]
    user: String,
    #[serde(default, deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "words")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "words")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default)]
    stop_signal: Option<String>,
    #[serde(default)]
    healthcheck: Option<Healthcheck>,
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A list of words; old builders wrote one string for a list of one.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Words>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Many(words)) => words,
    })
}

fn nanoseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let value = Option::<i64>::deserialize(deserializer)?.unwrap_or(0);
    // Zero means "not set" in this format; a negative time means nothing.
    Ok(u64::try_from(value).ok().filter(|&n| n > 0).map(Duration::from_nanos))
}

impl ImageConfig {
    /// Reads a configuration document and the diff ids of its layers, lowest layer first.
    pub(crate) fn parse(document: &[u8]) -> Result<(ImageConfig, Vec<Digest>), StoreError> {
        let document: Document = serde_json::from_slice(document)
            .map_err(|error| StoreError::bad(format!("configuration is not an image configuration: {error}")))?;
        let Execution {
            user,
            env,
            entrypoint,
            cmd,
            working_dir,
            labels,
            volumes,
            exposed_ports,
            stop_signal,
            healthcheck,
        } = document.config;
        let config = ImageConfig {
            env,
            entrypoint,
            cmd,
            user,
            working_dir,
            labels,
            volumes: volumes.into_keys().collect(),
            exposed_ports: exposed_ports.into_keys().collect(),
            stop_signal,
            healthcheck,
            architecture: document.architecture,
            variant: document.variant,
            os: document.os,
            created: document.created,
        };
        config.refuse_nul()?;
        Ok((config, document.rootfs.diff_ids))
    }

    /// No argument vector or environment can carry a NUL, so an image with one cannot run as it says.
    fn refuse_nul(&self) -> Result<(), StoreError> {
        let ImageConfig { env, entrypoint, cmd, user, working_dir, .. } = self;
        let fields = [("Env", &env[..]), ("Entrypoint", &entrypoint[..]), ("Cmd", &cmd[..])];
        let single = [("User", user), ("WorkingDir", working_dir)];
        let named =
            fields.into_iter().flat_map(|(name, words)| words.iter().map(move |word| (name, word))).chain(single);
        for (name, word) in named {
            if word.contains('\0') {
                let word = quoted(word.as_bytes());
                return Err(StoreError::bad(format!("configuration field {name} holds a NUL byte: {word}")));
            }
        }
        Ok(())
    }

    /// Refuses an image that this machine's kernel cannot run.
    pub(crate) fn check_platform(&self) -> Result<(), StoreError> {
        let host = host_architecture();
        let runs = match self.architecture.as_str() {
            "" => true,
            "386" => host == "amd64",
            "arm" => host == "arm64",
            other => other == host,
        } || self.architecture == host;
        if runs && matches!(self.os.as_str(), "" | "linux") {
            return Ok(());
        }
        let image = quoted(format!("{}/{}", self.os, self.architecture).as_bytes());
        Err(StoreError::bad(format!("image is for {image}, this host runs linux/{host}")))
    }
}

/// The configuration given to a bare root: `/bin/sh` with the usual search path. The same layer always gives the same
/// bytes, hence the same image id.
pub(crate) fn synthesised(layer: &Digest) -> Vec<u8> {
    #[derive(Serialize)]
    struct Out<'a> {
        architecture: &'a str,
        os: &'a str,
        config: Config<'a>,
        rootfs: RootFs<'a>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config<'a> {
        env: [&'a str; 1],
        cmd: [&'a str; 1],
    }
    #[derive(Serialize)]
    struct RootFs<'a> {
        r#type: &'a str,
        diff_ids: [&'a Digest; 1],
    }
    let document = Out {
        architecture: host_architecture(),
        os: "linux",
        config: Config { env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], cmd: ["/bin/sh"] },
        rootfs: RootFs { r#type: "layers", diff_ids: [layer] },
    };
    serde_json::to_vec(&document).expect("strings and digests always serialise")
}

/// This machine's architecture in Go's words, which are OCI's.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF_ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn every_field_is_read() {
        let document = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{{
                "User":"node:1000","Env":["A=1","B=x=y"],"Entrypoint":["/e"],"Cmd":["c","d"],"WorkingDir":"/w",
                "Labels":{{"k":"v"}},"Volumes":{{"/data":{{}},"/a":{{}}}},"ExposedPorts":{{"80/tcp":{{}}}},
                "StopSignal":"SIGQUIT","ArgsEscaped":true,
                "Healthcheck":{{"Test":["CMD-SHELL","true"],"Interval":30000000000,"Timeout":0,"Retries":3}}}},
                "rootfs":{{"type":"layers","diff_ids":["{DIFF_ID}"]}},"history":[{{"empty_layer":true}}]}}"#
        );
        let (config, layers) = ImageConfig::parse(document.as_bytes()).unwrap();
        assert_eq!(layers, [Digest::of(b"")]);
        assert_eq!(config.env, ["A=1", "B=x=y"]);
        assert_eq!((config.entrypoint.join(" "), config.cmd.join(" ")), ("/e".into(), "c d".into()));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("node:1000", "/w"));
        assert_eq!(config.volumes, ["/a", "/data"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.labels["k"], "v");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        let check = config.healthcheck.unwrap();
        assert_eq!((check.interval, check.timeout), (Some(Duration::from_secs(30)), None));
        assert_eq!((check.retries, check.test.len()), (Some(3), 2));
    }

    #[test]
    fn null_and_absent_fields_are_empty_and_one_string_is_one_word() {
        let document = format!(
            r#"{{"config":{{"Env":null,"Cmd":"sh","Entrypoint":null,"Volumes":null,"Labels":null}},
                "rootfs":{{"diff_ids":["{DIFF_ID}"]}}}}"#
        );
        let (config, _) = ImageConfig::parse(document.as_bytes()).unwrap();
        assert_eq!(config, ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() });
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let cases = [
            ("not json".to_owned(), "not an image configuration"),
            ("{}".to_owned(), "missing field `rootfs`"),
            (r#"{"rootfs":{}}"#.to_owned(), "missing field `diff_ids`"),
            (r#"{"rootfs":{"diff_ids":["sha256:12"]}}"#.to_owned(), "64 lower-case digits"),
            (format!(r#"{{"rootfs":{{"diff_ids":["{DIFF_ID}"],"diff_ids":["{DIFF_ID}"]}}}}"#), "duplicate field"),
            (
                format!(r#"{{"config":{{"Env":["A=\u0000"]}},"rootfs":{{"diff_ids":["{DIFF_ID}"]}}}}"#),
                "field Env holds a NUL byte",
            ),
        ];
        for (document, expected) in cases {
            let error = ImageConfig::parse(document.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{document}: {error}");
        }
    }

    #[test]
    fn a_synthesised_configuration_parses_and_fits_this_host() {
        let layer = Digest::of(b"layer");
        let (config, layers) = ImageConfig::parse(&synthesised(&layer)).unwrap();
        assert_eq!((layers, config.cmd.as_slice()), (vec![layer], &["/bin/sh".to_owned()][..]));
        config.check_platform().unwrap();
    }

    #[test]
    fn other_platforms_are_refused_by_name() {
        let windows = ImageConfig { os: "windows".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        assert!(windows.check_platform().unwrap_err().to_string().contains("windows/amd64"));
        let mips = ImageConfig { os: "linux".into(), architecture: "mips64le".into(), ..ImageConfig::default() };
        assert!(mips.check_platform().unwrap_err().to_string().contains("linux/mips64le"));
    }
}
