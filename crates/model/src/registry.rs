//! Where an image is fetched from: mirrors and the registry itself, and which credentials each of them is sent.

use std::fmt;

use crate::config::RegistrySettings;
use crate::image_ref::{DOCKER_HUB, Reference, check_domain, is_domain};
use crate::registry_auth::{AuthFile, Credentials};

/// The host that serves what references call `docker.io`.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// `http(s)://HOST[:PORT][/PREFIX]`, without user information, query or trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    https: bool,
    host: String,
    /// Empty, or begins with a slash.
    prefix: String,
}

impl BaseUrl {
    /// Parses `text`.
    ///
    /// # Errors
    /// What is wrong, to be read behind what the URL is for, without the text: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (https, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            _ => return Err("begins with neither https:// nor http://"),
        };
        if rest.contains('@') {
            return Err("has a user name or password; put them into auth.json");
        }
        if rest.contains(['?', '#']) {
            return Err("has a query or fragment; leave it out");
        }
        let (host, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_domain(host).map_err(|_| "has no valid host")?;
        let host = host.to_ascii_lowercase();
        let prefix = prefix.trim_end_matches('/');
        let part_ok = |part: &str| {
            !matches!(part, "" | "." | "..")
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
        };
        if !prefix.split('/').skip(1).all(part_ok) {
            return Err("has a path with a part that is empty, `.`, `..` or not of A-Z a-z 0-9 - . _ ~");
        }
        if prefix.split('/').next_back() == Some("v2") {
            return Err("ends in /v2, which is added by itself; leave it out");
        }
        Ok(Self { https, host, prefix: prefix.to_owned() })
    }

    /// Host, with its port if one was given.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether it is reached by TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The server that references mean by `registry`.
    fn of_registry(registry: &str, insecure: bool) -> Self {
        let host = if registry == DOCKER_HUB { DOCKER_HUB_HOST.to_owned() } else { registry.to_ascii_lowercase() };
        Self { https: !insecure, host, prefix: String::new() }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.https { "https" } else { "http" }, self.host, self.prefix)
    }
}

/// One server to ask for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Requests go to `URL/v2/REPOSITORY/…`.
    pub url: BaseUrl,
    /// What to authenticate with, if the server wants that.
    pub credentials: Option<Credentials>,
}

/// Where an image is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// In the order they are asked; the last one is the registry itself, those before are mirrors.
    pub endpoints: Vec<Endpoint>,
    /// Credentials that exist and cannot be used; one line each.
    pub warnings: Vec<String>,
}

/// Where to fetch `image` from.
///
/// A mirror gets only what `auth` has for the mirror itself: the registry's password is none of its business. The
/// registry gets `request` (see [`crate::registry_auth::from_request`]), else what `auth` has. Over plain HTTP,
/// credentials go to this host only; anybody on the way could read them.
#[must_use]
pub fn route(image: &Reference, settings: &RegistrySettings, request: Option<&Credentials>, auth: &AuthFile) -> Route {
    let mut route = Route { endpoints: Vec::new(), warnings: Vec::new() };
    let mirrors = settings.mirrors.iter().filter(|mirrors| same_host(&mirrors.registry, image.domain()));
    for url in mirrors.flat_map(|mirrors| &mirrors.urls) {
        let found = auth.lookup_at(url.host(), image.path());
        route.add(url.clone(), found.credentials.cloned(), found.warning);
    }
    let url = BaseUrl::of_registry(image.domain(), settings.is_insecure(image.domain()));
    let (credentials, warning) = match request {
        Some(credentials) => (Some(credentials.clone()), None),
        None => {
            let found = auth.lookup(image);
            (found.credentials.cloned(), found.warning)
        }
    };
    route.add(url, credentials, warning);
    route
}

impl Route {
    fn add(&mut self, url: BaseUrl, mut credentials: Option<Credentials>, warning: Option<String>) {
        self.warnings.extend(warning);
        if credentials.is_some() && !url.https && !is_loopback(&url.host) {
            credentials = None;
            self.warnings.push(format!(
                "the credentials for {} are not used: it is reached by plain HTTP (RUNNER_REGISTRY_INSECURE), where others could read them",
                url.host
            ));
        }
        self.endpoints.push(Endpoint { url, credentials });
    }
}

/// Whether two hosts of references are the same; ports count, case does not.
#[must_use]
pub fn same_host(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Checks a host with an optional port; `index.docker.io` becomes `docker.io`.
///
/// # Errors
/// What is wrong, to be read behind the text.
pub fn parse_host(text: &str) -> Result<String, &'static str> {
    check_domain(text).map_err(|_| "is not a host with an optional port, as in `ghcr.io` or `registry:5000`")
}

/// Whether a reference can name this host; a name without dot and port is taken for a part of the path.
#[must_use]
pub fn can_be_in_reference(host: &str) -> bool {
    is_domain(host)
}

/// Whether requests to this host stay on this machine, by its name alone.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Fragment, Merged};
    use crate::secret::Secret;

    fn settings(text: &str) -> RegistrySettings {
        let fragment = Fragment::parse("config.env", text.as_bytes()).expect("a configuration");
        Merged::new([fragment]).and_then(|merged| merged.settings()).expect("settings").registries
    }

    fn credentials(name: &str) -> Credentials {
        Credentials { username: name.to_owned(), password: Secret::new("pw"), identity_token: None }
    }

    /// Servers with the user name each is sent, and the warnings.
    fn routed(image: &str, settings_text: &str, request: Option<&str>, auth: &str) -> (Vec<String>, Vec<String>) {
        let image = Reference::parse(image).expect("a reference");
        let auth = AuthFile::parse("auth.json", auth.as_bytes()).expect("an auth file");
        let request = request.map(credentials);
        let Route { endpoints, warnings } = route(&image, &settings(settings_text), request.as_ref(), &auth);
        let shown = endpoints.into_iter().map(|endpoint| {
            let user = endpoint.credentials.map_or("nobody".to_owned(), |credentials| credentials.username);
            format!("{} as {user}", endpoint.url)
        });
        (shown.collect(), warnings)
    }

    /// User names say whose entry it is; the password is `pw`.
    const AUTH: &str = r#"{"auths": {
        "https://index.docker.io/v1/": {"username": "hub", "password": "pw"},
        "mirror.example": {"username": "mirror", "password": "pw"},
        "registry.example:5000": {"username": "registry", "password": "pw"},
        "localhost:5000": {"username": "local", "password": "pw"}
    }}"#;

    #[test]
    fn servers_and_who_is_told_what() {
        let mirrors = "RUNNER_REGISTRY_MIRRORS='docker.io=https://mirror.example DOCKER.IO=https://other.example/a/b/ \
                       ghcr.io=https://third.example'";
        let plain = "RUNNER_REGISTRY_INSECURE='registry.example:5000 localhost:5000 m:1'\n\
                     RUNNER_REGISTRY_MIRRORS='docker.io=http://localhost:5000'";
        let table: &[(&str, &str, Option<&str>, &[&str])] = &[
            ("node", "", None, &["https://registry-1.docker.io as hub"]),
            ("node", "", Some("request"), &["https://registry-1.docker.io as request"]),
            ("ghcr.io/a/b", "", None, &["https://ghcr.io as nobody"]),
            ("Ghcr.io/a/b", "", Some("request"), &["https://ghcr.io as request"]),
            (
                "node",
                mirrors,
                Some("request"),
                &[
                    "https://mirror.example as mirror",
                    "https://other.example/a/b as nobody",
                    "https://registry-1.docker.io as request",
                ],
            ),
            ("GHCR.io/a/b", mirrors, None, &["https://third.example as nobody", "https://ghcr.io as nobody"]),
            ("quay.io/a/b", mirrors, None, &["https://quay.io as nobody"]),
            ("node", plain, None, &["http://localhost:5000 as local", "https://registry-1.docker.io as hub"]),
            ("registry.example:5000/x", "", None, &["https://registry.example:5000 as registry"]),
            ("registry.example/x", plain, None, &["https://registry.example as nobody"]),
            ("localhost:5000/x", plain, Some("request"), &["http://localhost:5000 as request"]),
        ];
        for (image, settings, request, expected) in table {
            let (endpoints, warnings) = routed(image, settings, *request, AUTH);
            assert_eq!(endpoints, *expected, "{image} {settings}");
            assert_eq!(warnings, Vec::<String>::new(), "{image} {settings}");
        }
    }

    #[test]
    fn passwords_do_not_cross_the_network_in_the_clear() {
        let plain = "RUNNER_REGISTRY_INSECURE='registry.example:5000 10.0.0.1 [::1]:5000 127.1.2.3'";
        for (image, request, expected, warned) in [
            ("registry.example:5000/x", None, "http://registry.example:5000 as nobody", true),
            ("registry.example:5000/x", Some("request"), "http://registry.example:5000 as nobody", true),
            ("10.0.0.1/x", Some("request"), "http://10.0.0.1 as nobody", true),
            ("10.0.0.1/x", None, "http://10.0.0.1 as nobody", false),
            ("[::1]:5000/x", Some("request"), "http://[::1]:5000 as request", false),
            ("127.1.2.3/x", Some("request"), "http://127.1.2.3 as request", false),
        ] {
            let (endpoints, warnings) = routed(image, plain, request, AUTH);
            assert_eq!((endpoints, warnings.len()), (vec![expected.to_owned()], usize::from(warned)), "{image}");
        }
    }

    #[test]
    fn a_helper_that_cannot_be_used_is_reported_for_the_images_it_concerns() {
        let auth = r#"{"credHelpers": {"ghcr.io": "pass", "mirror.example": "pass"}}"#;
        let mirrors = "RUNNER_REGISTRY_MIRRORS='docker.io=https://mirror.example'";
        assert_eq!(routed("quay.io/x", mirrors, None, auth).1, Vec::<String>::new());
        assert_eq!(routed("ghcr.io/x", mirrors, Some("request"), auth).1, Vec::<String>::new());
        for image in ["ghcr.io/x", "node"] {
            let (_, warnings) = routed(image, mirrors, None, auth);
            assert!(matches!(&*warnings, [one] if one.contains("credHelpers")), "{image}: {warnings:?}");
        }
    }

    #[test]
    fn base_urls() {
        for (text, expected) in [
            ("https://a.example", "https://a.example"),
            ("HTTPS://A.example:443/", "https://a.example:443"),
            ("http://[::1]:5000/a_b/c.d-e~f//", "http://[::1]:5000/a_b/c.d-e~f"),
            ("https://index.docker.io/v2x", "https://index.docker.io/v2x"),
        ] {
            assert_eq!(BaseUrl::parse(text).map(|url| url.to_string()).as_deref(), Ok(expected));
        }
        for (text, part) in [
            ("a.example", "https://"),
            ("ftp://a.example", "https://"),
            ("https://", "host"),
            ("https:///x", "host"),
            ("https://user:pw@a.example", "auth.json"),
            ("https://a.example/x?y=1", "query"),
            ("https://a.example#x", "query"),
            ("https://a.example:x", "host"),
            ("https://a.example/v2/", "/v2"),
            ("https://a.example/../x", "path"),
            ("https://a.example/x//y", "path"),
            ("https://a.example/%2e", "path"),
        ] {
            let problem = BaseUrl::parse(text).expect_err(text);
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}
