//! Keys about registries: mirrors, plain HTTP, authorities, proxies.

use std::path::PathBuf;

use super::keys::{self, Key, PATH};
use super::settings::{path, value};
use super::{ConfigError, Merged};
use crate::environ::display_name;
use crate::image_ref::DOCKER_HUB;
use crate::registry::{self, BaseUrl};
use crate::secret::Secret;

const PROXY: &str = "[http://][USER:PASSWORD@]HOST:PORT or https://…";

pub(super) const MIRRORS: Key = Key {
    name: "RUNNER_REGISTRY_MIRRORS",
    doc: "Servers to ask before a registry itself, in this order; a registry may have several.",
    allowed: "HOST=URL words separated by spaces; HOST as in image references, URL is http(s)://HOST[:PORT][/PREFIX], http:// only for hosts in RUNNER_REGISTRY_INSECURE",
    default: "",
    example: "docker.io=https://mirror.example.com ghcr.io=https://cache.example.com:5000/ghcr",
    ..keys::BLANK
};
pub(super) const INSECURE: Key = Key {
    name: "RUNNER_REGISTRY_INSECURE",
    doc: "Registries and mirrors that are reached by plain HTTP; anybody on the way can read and change what they send.",
    allowed: "HOST or HOST:PORT words separated by spaces, as in image references, not docker.io",
    default: "",
    example: "localhost:5000",
    ..keys::BLANK
};
pub(super) const CA_FILE: Key = Key {
    name: "RUNNER_REGISTRY_CA_FILE",
    doc: "File of PEM certificates of authorities that registries are trusted by, beside the system's.",
    allowed: PATH,
    default: "",
    example: "/etc/runner/registry-ca.pem",
    ..keys::BLANK
};
pub(super) const HTTP_PROXY: Key = Key {
    name: "HTTP_PROXY",
    lower_case: Some("http_proxy"),
    doc: "Proxy for http:// registries.",
    allowed: PROXY,
    default: "",
    example: "http://proxy.example.com:3128",
    secret: true,
};
pub(super) const HTTPS_PROXY: Key =
    Key { name: "HTTPS_PROXY", lower_case: Some("https_proxy"), doc: "Proxy for https:// registries.", ..HTTP_PROXY };
pub(super) const NO_PROXY: Key = Key {
    name: "NO_PROXY",
    lower_case: Some("no_proxy"),
    doc: "Hosts and domains reached without a proxy.",
    allowed: "names and addresses separated by commas, or `*`",
    default: "",
    example: "localhost,.example.com",
    ..keys::BLANK
};

/// How registries are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// `RUNNER_REGISTRY_MIRRORS`, each registry once.
    pub mirrors: Vec<Mirrors>,
    /// `RUNNER_REGISTRY_INSECURE`: `host` or `host:port`, compared with [`registry::same_host`].
    pub insecure: Vec<String>,
    /// `RUNNER_REGISTRY_CA_FILE`.
    pub ca_file: Option<PathBuf>,
    /// `HTTP_PROXY` and its kin.
    pub proxies: ProxySettings,
}

impl RegistrySettings {
    /// Whether the configuration allows plain HTTP to `host` (with its port, as in a reference).
    #[must_use]
    pub fn is_insecure(&self, host: &str) -> bool {
        self.insecure.iter().any(|known| registry::same_host(known, host))
    }
}

/// The mirrors of one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// The registry, as [`crate::image_ref::Reference::domain`] spells it.
    pub registry: String,
    /// In the order they are asked.
    pub urls: Vec<BaseUrl>,
}

/// Proxies, with a scheme.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// For `http://` URLs. A secret, because it may hold a password.
    pub http: Option<Secret>,
    /// For `https://` URLs.
    pub https: Option<Secret>,
    /// Hosts that are reached without one, comma-separated as written.
    pub no_proxy: Option<String>,
}

pub(super) fn from_merged(merged: &Merged) -> Result<RegistrySettings, ConfigError> {
    let insecure = value(merged, &INSECURE, hosts)?.unwrap_or_default();
    let settings = RegistrySettings {
        mirrors: Vec::new(),
        insecure,
        ca_file: value(merged, &CA_FILE, path)?,
        proxies: ProxySettings {
            http: value(merged, &HTTP_PROXY, proxy)?,
            https: value(merged, &HTTPS_PROXY, proxy)?,
            no_proxy: value(merged, &NO_PROXY, no_proxy)?,
        },
    };
    let mirrors = value(merged, &MIRRORS, |text| mirrors(text, &settings))?.unwrap_or_default();
    Ok(RegistrySettings { mirrors, ..settings })
}

fn hosts(text: &str) -> Result<Vec<String>, String> {
    super::words(text)
        .map(|word| {
            let host = registry::parse_host(word).map_err(|problem| format!("`{}` {problem}", display_name(word)))?;
            if host == DOCKER_HUB {
                return Err("docker.io is not reached by plain HTTP; give it a mirror".to_owned());
            }
            Ok(host)
        })
        .collect()
}

fn mirrors(text: &str, settings: &RegistrySettings) -> Result<Vec<Mirrors>, String> {
    let mut all: Vec<Mirrors> = Vec::new();
    for word in super::words(text) {
        // A word that is refused may hold a password anywhere; only what is known to be none is shown.
        let (host, url) = word.split_once('=').ok_or("has a word without `=`")?;
        let shown =
            if host.contains('@') { "a text before `=`".to_owned() } else { format!("`{}`", display_name(host)) };
        let registry = registry::parse_host(host).map_err(|problem| format!("{shown} {problem}"))?;
        if !registry::can_be_in_reference(&registry) {
            return Err(format!("{shown} names no registry in a reference, for it has neither a dot nor a port"));
        }
        let url = BaseUrl::parse(url).map_err(|problem| format!("the mirror of {registry} {problem}"))?;
        if !url.is_https() && !settings.is_insecure(url.host()) {
            return Err(format!(
                "{url} is plain HTTP and {} is not in RUNNER_REGISTRY_INSECURE",
                display_name(url.host())
            ));
        }
        match all.iter_mut().find(|mirrors| registry::same_host(&mirrors.registry, &registry)) {
            Some(mirrors) if mirrors.urls.contains(&url) => return Err(format!("{url} is given twice for {registry}")),
            Some(mirrors) => mirrors.urls.push(url),
            None => all.push(Mirrors { registry, urls: vec![url] }),
        }
    }
    Ok(all)
}

fn proxy(text: &str) -> Result<Secret, &'static str> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("has white space or a control character");
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if !matches!(scheme, "http" | "https") {
        return Err("neither http:// nor https://");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // A password may hold an `@` of its own.
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    registry::parse_host(host).map_err(|_| "not a host with a port")?;
    Ok(Secret::new(format!("{scheme}://{rest}")))
}

fn no_proxy(text: &str) -> Result<String, &'static str> {
    if text.chars().any(char::is_control) { Err("has a control character") } else { Ok(text.to_owned()) }
}
