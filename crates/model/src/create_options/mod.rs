//! The text of `options:` of a container: words of the Docker command line (protocol text, 19.T22).
//!
//! [`OPTIONS`] is the one list of what we know and what becomes of it. Anything that would widen the sandbox, or that
//! a job would miss if it were left out, is refused by name; what has no effect on a job's result is ignored with a
//! warning.

mod table;
mod value;

use crate::environ::{Environment, display_name};
use crate::protocol::Mount;
use crate::words;

pub use table::{Handling, Meaning, OPTIONS, OptionSpec};

/// What `options:` asks for, of the things that are supported.
///
/// `Debug` shows the names of variables, not their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// `--user`, unresolved: for [`crate::passwd::resolve`].
    pub user: Option<String>,
    /// `--workdir`: absolute path in the container.
    pub working_directory: Option<String>,
    /// `--env`, in order, the last value of a name counting.
    pub environment: Environment,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `--name`: another name under which the container is reached, nothing else.
    pub name: Option<String>,
    /// `--network-alias`, in order.
    pub network_aliases: Vec<String>,
    /// `--volume`, in order. Sources are as untrusted as those of `volumes:`.
    pub volumes: Vec<Mount>,
    /// Limits for the host unit of the guest.
    pub limits: Limits,
    /// One line per ignored option or doubtful value, for the step's log.
    pub warnings: Vec<String>,
}

/// Limits on a guest; `None` is "no limit asked for".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// `--cpus` in thousandths of a CPU.
    pub cpus_milli: Option<u32>,
    /// `--memory` in bytes.
    pub memory_bytes: Option<u64>,
    /// `--pids-limit`: processes and threads.
    pub pids: Option<u64>,
}

/// An option that cannot be carried out. One line: the option, the reason, the remedy; never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No option of `docker create`.
    #[error("`{option}` is not an option of `docker create`; remove it from `options:`")]
    Unknown {
        /// As written, without its value.
        option: String,
    },
    /// Known, and not done.
    #[error("`{option}` is refused: {reason}")]
    Refused {
        /// In its long form.
        option: String,
        /// With what to do instead.
        reason: &'static str,
    },
    /// The value is missing.
    #[error("`{option}` needs a value; write {option}=VALUE")]
    MissingValue {
        /// In its long form.
        option: String,
    },
    /// The value cannot be used.
    #[error("`{option}`: expected {expected}")]
    BadValue {
        /// In its long form.
        option: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A word that is neither an option nor an option's value.
    #[error("word {position} is not an option; quote values that contain spaces, and leave out image and command")]
    NotAnOption {
        /// Counted from 1.
        position: usize,
    },
}

/// Parses the text of `options:` for a job container.
///
/// Options are accepted as `--option=value`, `--option value`, `-o value`, `-ovalue`, and clusters of short switches.
/// For single values the last one counts.
///
/// # Errors
/// See [`OptionsError`].
pub fn parse(options: &str) -> Result<CreateOptions, OptionsError> {
    let mut parsed = CreateOptions::default();
    let words = match words::split(options) {
        Ok(words) => words,
        Err(error) => {
            parsed.warnings.push(format!("`options:`: {error}; the words are taken as they stand, cut at white space"));
            options.split_ascii_whitespace().map(String::from).collect()
        }
    };
    let mut reader = Reader { words: words.into_iter().enumerate(), parsed };
    while let Some((index, word)) = reader.words.next() {
        if let Some(long) = word.strip_prefix("--").filter(|long| !long.is_empty()) {
            reader.long(long)?;
        } else if let Some(cluster) = word.strip_prefix('-').filter(|cluster| !cluster.is_empty() && *cluster != "-") {
            reader.short(cluster)?;
        } else {
            return Err(OptionsError::NotAnOption { position: index + 1 });
        }
    }
    Ok(reader.parsed)
}

struct Reader<I> {
    words: I,
    parsed: CreateOptions,
}

impl<I: Iterator<Item = (usize, String)>> Reader<I> {
    /// `name` or `name=value`.
    fn long(&mut self, text: &str) -> Result<(), OptionsError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let spec = table::by_long_name(name)
            .ok_or_else(|| OptionsError::Unknown { option: format!("--{}", display_name(name)) })?;
        self.option(spec, value)
    }

    /// Letters after one dash: switches, then possibly an option with its value attached.
    fn short(&mut self, cluster: &str) -> Result<(), OptionsError> {
        let mut letters = cluster.chars();
        while let Some(letter) = letters.next() {
            let spec = table::by_short_name(letter)
                .ok_or_else(|| OptionsError::Unknown { option: format!("-{}", letter.escape_debug()) })?;
            let rest = letters.as_str();
            if spec.takes_value && !rest.is_empty() {
                return self.option(spec, Some(rest.strip_prefix('=').unwrap_or(rest).to_owned()));
            }
            if let Some(value) = rest.strip_prefix('=') {
                return self.option(spec, Some(value.to_owned()));
            }
            self.option(spec, None)?;
        }
        Ok(())
    }

    fn option(&mut self, spec: &'static OptionSpec, attached: Option<String>) -> Result<(), OptionsError> {
        let option = || format!("--{}", spec.long);
        let value = if spec.takes_value {
            // The value goes with the option even when the option is refused or ignored.
            attached.or_else(|| self.words.next().map(|(_, word)| word))
        } else {
            match attached {
                None => Some("true".to_owned()),
                Some(text) if spec.meaning() == Some(Meaning::Init) && text == "systemd" => {
                    return Err(OptionsError::Refused { option: option(), reason: table::INIT_SYSTEMD });
                }
                Some(text) => match value::switch(&text) {
                    Some(true) => Some(text),
                    // Docker's own way of saying "without this option".
                    Some(false) => return Ok(()),
                    None => {
                        return Err(OptionsError::BadValue { option: option(), expected: "no value, true or false" });
                    }
                },
            }
        };
        match spec.handling {
            Handling::Refused(reason) => Err(OptionsError::Refused { option: option(), reason }),
            Handling::Ignored(reason) => {
                let warning = format!("`--{}` is ignored: {reason}", spec.long);
                if !self.parsed.warnings.contains(&warning) {
                    self.parsed.warnings.push(warning);
                }
                Ok(())
            }
            Handling::NoEffect => Ok(()),
            Handling::Supported(meaning) => {
                let value = value.ok_or_else(|| OptionsError::MissingValue { option: option() })?;
                self.apply(meaning, value).map_err(|expected| match expected {
                    Problem::Expected(expected) => OptionsError::BadValue { option: option(), expected },
                    Problem::Refused(reason) => OptionsError::Refused { option: option(), reason },
                })
            }
        }
    }

    fn apply(&mut self, meaning: Meaning, value: String) -> Result<(), Problem> {
        let parsed = &mut self.parsed;
        match meaning {
            Meaning::User => parsed.user = Some(value::non_empty(value, "a user: NAME, UID, NAME:GROUP or UID:GID")?),
            Meaning::Workdir => parsed.working_directory = Some(value::absolute(value)?),
            Meaning::Env => {
                let Some((name, value)) = value.split_once('=') else {
                    return Err(Problem::Refused(
                        "without a value it would copy a variable of the host; write --env NAME=VALUE, or use `env:`",
                    ));
                };
                if name.is_empty() {
                    return Err(Problem::Expected("NAME=VALUE with a name"));
                }
                parsed.environment.insert(name, value);
            }
            Meaning::Hostname => parsed.hostname = Some(value::host_name(value)?),
            Meaning::Name => parsed.name = Some(value::container_name(value)?),
            Meaning::NetworkAlias => {
                let alias = value::host_name(value)?;
                if !parsed.network_aliases.contains(&alias) {
                    parsed.network_aliases.push(alias);
                }
            }
            Meaning::Volume => parsed.volumes.push(value::volume(value)?),
            Meaning::Cpus => parsed.limits.cpus_milli = value::cpus(&value)?,
            Meaning::Memory => parsed.limits.memory_bytes = value::memory(&value)?,
            Meaning::PidsLimit => parsed.limits.pids = value::pids(&value)?,
            // The guest's PID 1 reaps and forwards signals already.
            Meaning::Init => {}
        }
        Ok(())
    }
}

/// Why a supported option's value cannot be used.
enum Problem {
    Expected(&'static str),
    Refused(&'static str),
}

impl From<&'static str> for Problem {
    fn from(expected: &'static str) -> Self {
        Self::Expected(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(text: &str) -> CreateOptions {
        parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn quiet(text: &str) -> CreateOptions {
        let options = options(text);
        assert_eq!(options.warnings, [""; 0], "{text}");
        options
    }

    #[test]
    fn the_table_is_sorted_unique_and_explains_itself() {
        assert!(OPTIONS.is_sorted_by(|a, b| a.long < b.long));
        let mut letters: Vec<char> = OPTIONS.iter().filter_map(|spec| spec.short).collect();
        letters.sort_unstable();
        let count = letters.len();
        letters.dedup();
        assert_eq!(letters.len(), count, "a short name is used twice");
        for spec in OPTIONS {
            if let Handling::Ignored(reason) | Handling::Refused(reason) = spec.handling {
                assert!(!reason.is_empty() && !reason.ends_with('.') && !reason.contains('\n'), "{}", spec.long);
            }
        }
    }

    #[test]
    fn every_option_people_use_is_decided() {
        for long in [
            "cpus",
            "memory",
            "memory-swap",
            "pids-limit",
            "cpuset-cpus",
            "shm-size",
            "ulimit",
            "tmpfs",
            "user",
            "workdir",
            "env",
            "env-file",
            "volume",
            "mount",
            "hostname",
            "name",
            "network-alias",
            "add-host",
            "dns",
            "label",
            "read-only",
            "init",
            "cap-drop",
            "cap-add",
            "device",
            "gpus",
            "entrypoint",
            "health-cmd",
            "health-interval",
            "health-timeout",
            "health-retries",
            "health-start-period",
            "no-healthcheck",
            "stop-signal",
            "stop-timeout",
            "restart",
            "sysctl",
            "security-opt",
            "privileged",
            "publish",
            "ipc",
            "pid",
            "network",
            "net",
            "systemd",
        ] {
            assert!(table::by_long_name(long).is_some(), "--{long}");
        }
    }

    #[test]
    fn every_form_of_every_supported_option() {
        for text in ["--user app", "--user=app", "-u app", "-uapp", "-u=app", "-u other --user app"] {
            assert_eq!(quiet(text).user.as_deref(), Some("app"), "{text}");
        }
        for text in ["--workdir /a/b", "-w /a/b", "-w/a/b", "-w /x --workdir=/a/b"] {
            assert_eq!(quiet(text).working_directory.as_deref(), Some("/a/b"), "{text}");
        }
        let environment = quiet("-e A=1 --env B= -eC=x=y --env=\"D=a b\" -e A=2").environment;
        assert_eq!(environment.to_strings(), ["A=2", "B=", "C=x=y", "D=a b"]);
        let named = quiet("-h box.local --name job_1 --network-alias db --net-alias db --network-alias cache");
        assert_eq!((named.hostname.as_deref(), named.name.as_deref()), (Some("box.local"), Some("job_1")));
        assert_eq!(named.network_aliases, ["db", "cache"]);
        let limits = quiet("--cpus 1.5 -m 2g --pids-limit=100").limits;
        assert_eq!(limits, Limits { cpus_milli: Some(1500), memory_bytes: Some(2 << 30), pids: Some(100) });
        assert_eq!(
            quiet("--init --init=true --init=false --rm --label a=b -l c --privileged=false"),
            CreateOptions::default()
        );
        assert_eq!(quiet(""), CreateOptions::default());
        assert_eq!(quiet(" \t "), CreateOptions::default());
    }

    #[test]
    fn volumes() {
        let mount = |text: &str, source: Option<&str>, target: &str, read_only| Mount {
            user_provided_value: Some(text.to_owned()),
            source: source.map(str::to_owned),
            target: target.to_owned(),
            read_only,
        };
        for (text, expected) in [
            ("/a:/b", mount("/a:/b", Some("/a"), "/b", false)),
            ("/a:/b:ro", mount("/a:/b:ro", Some("/a"), "/b", true)),
            ("/a:/b:RO,z", mount("/a:/b:RO,z", Some("/a"), "/b", true)),
            ("cache:/b:rw", mount("cache:/b:rw", Some("cache"), "/b", false)),
            ("/b", mount("/b", None, "/b", false)),
            ("/b:ro", mount("/b:ro", None, "/b", true)),
        ] {
            assert_eq!(quiet(&format!("-v {text}")).volumes, [expected], "{text}");
        }
        for text in ["b", "a:b", "./a:/b", "~/a:/b", "/a:/b:ro:x", "/a:/b:rshared", "/a:/b:", ":/b", "''"] {
            let result = parse(&format!("--volume {text}"));
            let fine = text == "/a:/b:";
            assert_eq!(result.is_ok(), fine, "{text}: {result:?}");
        }
    }

    #[test]
    fn limits() {
        for (text, expected) in [
            ("1", Some(1000)),
            (".5", Some(500)),
            ("2.", Some(2000)),
            ("0.0109", Some(10)),
            ("0", None),
            ("0.000", None),
        ] {
            assert_eq!(quiet(&format!("--cpus {text}")).limits.cpus_milli, expected, "{text}");
        }
        for text in ["", "-1", "1e3", "0.001", "0.0001", ".", "1.2.3", "4294968", "inf", "1,5"] {
            assert!(matches!(parse(&format!("--cpus=\"{text}\"")), Err(OptionsError::BadValue { .. })), "{text}");
        }
        for (text, expected) in [
            ("6m", Some(6 << 20)),
            ("1.5g", Some(3 << 29)),
            ("1GB", Some(1 << 30)),
            ("512MiB", Some(512 << 20)),
            ("8388608", Some(8 << 20)),
            ("8388608b", Some(8 << 20)),
            ("2t", Some(2 << 40)),
            ("0", None),
        ] {
            assert_eq!(quiet(&format!("--memory {text}")).limits.memory_bytes, expected, "{text}");
        }
        for text in ["", "5m", "1x", "-1", "g", "1.5.1g", "99999999p", "1e9"] {
            assert!(matches!(parse(&format!("--memory=\"{text}\"")), Err(OptionsError::BadValue { .. })), "{text}");
        }
        for (text, expected) in [("1", Some(1)), ("-1", None), ("0", None)] {
            assert_eq!(quiet(&format!("--pids-limit={text}")).limits.pids, expected, "{text}");
        }
        for text in ["", "-2", "x", "1.5"] {
            assert!(matches!(parse(&format!("--pids-limit=\"{text}\"")), Err(OptionsError::BadValue { .. })), "{text}");
        }
    }

    #[test]
    fn ignored_options_take_their_value_along_and_warn_once() {
        let options =
            options("--health-cmd \"test -e /ready\" --health-interval 5s --shm-size=1g --shm-size 2g -it -u app");
        assert_eq!(options.user.as_deref(), Some("app"));
        let named: Vec<&str> =
            options.warnings.iter().map(|warning| warning.split('`').nth(1).expect("quoted")).collect();
        assert_eq!(named, ["--health-cmd", "--health-interval", "--shm-size", "--interactive", "--tty"]);
    }

    #[test]
    fn refusals_name_the_option_and_never_the_value() {
        for (text, message) in [
            (
                "--privileged",
                "`--privileged` is refused: no guest gets the host's privileges; root in a guest and systemd as its PID 1 are there without it",
            ),
            (
                "--network host",
                "`--network` is refused: the job's network is made by this host, as GitHub's documentation says; remove it",
            ),
            (
                "--net=host",
                "`--network` is refused: the job's network is made by this host, as GitHub's documentation says; remove it",
            ),
            (
                "--init=systemd",
                "`--init` is refused: booting the image's own systemd is not supported yet; use --init, the guest's PID 1 is systemd already",
            ),
            (
                "--env HUNTER2",
                "`--env` is refused: without a value it would copy a variable of the host; write --env NAME=VALUE, or use `env:`",
            ),
            ("-e =x", "`--env`: expected NAME=VALUE with a name"),
            ("--user", "`--user` needs a value; write --user=VALUE"),
            ("--user=", "`--user`: expected a user: NAME, UID, NAME:GROUP or UID:GID"),
            ("--workdir hunter2", "`--workdir`: expected an absolute path in the container"),
            ("--hostname -hunter2", "`--hostname`: expected a host name: at most 64 letters, digits, `-`, `_` and `.`"),
            ("--init=hunter2", "`--init`: expected no value, true or false"),
            ("--tokne=hunter2", "`--tokne` is not an option of `docker create`; remove it from `options:`"),
            ("-xhunter2", "`-x` is not an option of `docker create`; remove it from `options:`"),
            ("-tx", "`-x` is not an option of `docker create`; remove it from `options:`"),
            (
                "--user app hunter2",
                "word 3 is not an option; quote values that contain spaces, and leave out image and command",
            ),
            ("--", "word 1 is not an option; quote values that contain spaces, and leave out image and command"),
            ("-", "word 1 is not an option; quote values that contain spaces, and leave out image and command"),
            ("''", "word 1 is not an option; quote values that contain spaces, and leave out image and command"),
        ] {
            assert_eq!(parse(text).expect_err(text).to_string(), message, "{text}");
        }
    }

    #[test]
    fn an_open_quote_warns_and_the_words_are_taken_raw() {
        let options = options("--user app --label \"x");
        assert_eq!(options.user.as_deref(), Some("app"));
        assert!(options.warnings[0].contains("double quote is not closed"), "{:?}", options.warnings);
    }

    #[test]
    fn nothing_that_weakens_the_sandbox_gets_through() {
        for text in [
            "--privileged",
            "--privileged=1",
            "--cap-add=SYS_ADMIN",
            "--device /dev/kvm",
            "--gpus all",
            "--security-opt x",
            "--pid host",
            "--ipc=host",
            "--uts=host",
            "--userns=host",
            "--cgroupns=host",
            "--network=host",
            "--runtime x",
            "--mount type=bind,src=/,dst=/h",
            "--volumes-from x",
            "--use-api-socket",
            "--sysctl a=b",
            "--env-file /etc/shadow",
            "--device-cgroup-rule x",
            "--oom-kill-disable",
            "--entrypoint sh",
        ] {
            assert!(matches!(parse(text), Err(OptionsError::Refused { .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_handled(text in "\\PC{0,60}|[-a-z= \"'/:.0-9]{0,60}") {
            if let Err(error) = parse(&text) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }

        #[test]
        fn any_value_for_any_option_is_handled(index in any::<prop::sample::Index>(), value in "[-a-z=/:.,0-9]{0,20}") {
            let spec = index.get(OPTIONS);
            let attached = parse(&format!("--{}={value}", spec.long));
            if let Err(error) = &attached {
                prop_assert!(error.to_string().contains(spec.long), "{}", error);
            }
            if spec.takes_value && !value.is_empty() {
                prop_assert_eq!(parse(&format!("--{} {value}", spec.long)), attached);
            }
        }
    }
}
