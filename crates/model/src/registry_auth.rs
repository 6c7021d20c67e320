//! Credentials for registries: `auth.json` in the format of `docker login`, and what a request brings.
//!
//! The format is that of containers-auth.json(5), with the keys Docker writes. Messages name keys and never values.

use crate::environ::display_name;
use crate::image_ref::{DOCKER_HUB, Reference, check_domain};
use crate::protocol::json::{self, Node};
use crate::protocol::{Registry, RequestError};
use crate::registry::same_host;
use crate::secret::Secret;

/// The largest file in bytes.
const MAX_BYTES: usize = 1024 * 1024;

/// What a registry knows a user by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name; may be empty with an identity token.
    pub username: String,
    /// Password or personal token; may be empty with an identity token.
    pub password: Secret,
    /// Identity token (OAuth2 refresh token), used instead of the password.
    pub identity_token: Option<Secret>,
}

/// A parsed `auth.json`; the default is one without entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthFile {
    /// As messages name the file.
    file: String,
    entries: Vec<Entry>,
    helpers: Vec<Helper>,
    /// `credsStore`: the program Docker asks for everything.
    store: Option<String>,
}

/// A member of `auths`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    scope: Scope,
    /// `None` if the file has nothing for the key, which is how Docker marks what a helper keeps.
    credentials: Option<Credentials>,
}

/// A member of `credHelpers`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Helper {
    scope: Scope,
    program: String,
}

/// What a key is for: a registry, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    /// As written, shortened for messages.
    shown: String,
    host: String,
    /// Path within the registry; empty for all of it.
    path: String,
}

/// What [`AuthFile::lookup`] and [`from_request`] found; `C` is the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<C> {
    /// What to authenticate with.
    pub credentials: Option<C>,
    /// Set when there should be credentials and they cannot be used. One line.
    pub warning: Option<String>,
}

/// A file that cannot be used. One line: file, key, what is wrong; never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct AuthError {
    file: String,
    problem: String,
}

impl AuthFile {
    /// Parses the contents of `file`; the name is used in messages only.
    ///
    /// # Errors
    /// When it is not such a file, or an entry is malformed, or two entries for one place differ.
    pub fn parse(file: &str, contents: &[u8]) -> Result<Self, AuthError> {
        parse(file, contents).map_err(|problem| AuthError { file: display_name(file), problem })
    }

    /// What the file has for `image` at its own registry.
    #[must_use]
    pub fn lookup(&self, image: &Reference) -> Found<&Credentials> {
        self.lookup_at(image.domain(), image.path())
    }

    /// What the file has for a repository at `host`. The entry with the longest path that holds the repository wins.
    #[must_use]
    pub fn lookup_at(&self, host: &str, repository: &str) -> Found<&Credentials> {
        let entry = longest(&self.entries, |entry| &entry.scope, host, repository);
        if let Some(credentials) = entry.and_then(|entry| entry.credentials.as_ref()) {
            return Found { credentials: Some(credentials), warning: None };
        }
        let helper = longest(&self.helpers, |helper| &helper.scope, host, repository);
        let (file, program) = (&self.file, |name: &str| format!("docker-credential-{}", display_name(name)));
        let warning = match (helper, entry, &self.store) {
            (Some(helper), _, _) => Some(format!(
                "{file}: credHelpers leaves `{}` to {}, which cannot be used here; put its user name and password into `auths`",
                helper.scope.shown,
                program(&helper.program)
            )),
            (None, Some(entry), Some(store)) => Some(format!(
                "{file}: credsStore leaves `{}` to {}, which cannot be used here; put its user name and password into `auths`",
                entry.scope.shown,
                program(store)
            )),
            (None, Some(_) | None, _) => None,
        };
        Found { credentials: None, warning }
    }
}

/// What the request of a job brings for `image` (protocol text, 4.3), meant for the image's own registry and nobody else.
///
/// The runner guesses the registry from the image's name, and wrongly for some; a registry that is neither the image's
/// own nor what the guess makes of it is not the image's, and gets no password.
#[must_use]
pub fn from_request(registry: &Registry, image: &Reference) -> Found<Credentials> {
    let refused = |why: &str| {
        let warning = format!("the credentials of image {image} are not used: {why}");
        Found { credentials: None, warning: Some(warning) }
    };
    let server = registry.server_url.as_str();
    let guessed = server.is_empty() || image.path().split_once('/').is_some_and(|(first, _)| first == server);
    let own = split_key(server).is_ok_and(|(host, _)| same_host(&host, image.domain()));
    if !guessed && !own {
        return refused(&format!("they are for `{}`, another registry", display_name(server)));
    }
    // A secret pasted with its line break; `docker login` drops it too.
    let password = registry.password.as_ref().map_or("", Secret::expose).trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return refused("the password is empty; is the secret missing, as for a pull request from a fork?");
    }
    if registry.username.contains(':') {
        return refused("the user name contains a `:`");
    }
    if has_control(&registry.username) || has_control(password) {
        return refused("user name or password contains a control character");
    }
    let username = registry.username.clone();
    let credentials = Credentials { username, password: Secret::new(password), identity_token: None };
    Found { credentials: Some(credentials), warning: None }
}

fn longest<'a, T>(all: &'a [T], scope: impl Fn(&T) -> &Scope, host: &str, repository: &str) -> Option<&'a T> {
    let holds = |scope: &Scope| {
        same_host(&scope.host, host)
            && (scope.path.is_empty()
                || repository.strip_prefix(&*scope.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    all.iter().filter(|one| holds(scope(one))).max_by_key(|one| scope(one).path.len())
}

fn parse(file: &str, contents: &[u8]) -> Result<AuthFile, String> {
    if contents.len() > MAX_BYTES {
        return Err("larger than 1 MiB".to_owned());
    }
    let mut document = members(json::read(contents).map_err(reading)?, "the file")?;
    let mut auth = AuthFile { file: display_name(file), ..AuthFile::default() };
    for (key, node) in members(take(&mut document, "auths"), "auths")? {
        let entry = entry(&key, node).map_err(|problem| format!("auths: `{}`: {problem}", display_name(&key)))?;
        let same =
            |other: &&Entry| same_host(&other.scope.host, &entry.scope.host) && other.scope.path == entry.scope.path;
        match auth.entries.iter().find(same) {
            Some(other) if other.credentials == entry.credentials => {}
            Some(other) => {
                let (one, two) = (&other.scope.shown, &entry.scope.shown);
                return Err(format!("auths: `{one}` and `{two}` are one registry and differ; remove one of them"));
            }
            None => auth.entries.push(entry),
        }
    }
    for (key, node) in members(take(&mut document, "credHelpers"), "credHelpers")? {
        let located = |problem: &str| format!("credHelpers: `{}`: {problem}", display_name(&key));
        let Node::String(program) = node else { return Err(located("expected the name of a helper")) };
        auth.helpers.push(Helper { scope: Scope::parse(&key).map_err(located)?, program });
    }
    auth.store = match take(&mut document, "credsStore") {
        Node::Null => None,
        Node::String(store) => Some(store).filter(|store| !store.is_empty()),
        other => return Err(format!("credsStore: expected a string, found {}", other.kind())),
    };
    Ok(auth)
}

/// The document's errors in this file's words; the reader's are made for requests.
fn reading(error: RequestError) -> String {
    match error {
        RequestError::Duplicate { path } => format!("{path}: given twice; keep one of them"),
        RequestError::NotJson { reason } => format!("not JSON: {reason}"),
        RequestError::NotUtf8 { offset } => format!("not valid UTF-8 at byte {offset}"),
        RequestError::Truncated => "ends before its JSON object is complete".to_owned(),
        RequestError::Empty => "empty; expected a JSON object, as `docker login` writes it".to_owned(),
        RequestError::SecondDocument { column } => format!("more text after the JSON object, at column {column}"),
        _ => "nested too deeply or too long for a file of credentials".to_owned(),
    }
}

fn members(node: Node, what: &str) -> Result<Vec<(String, Node)>, String> {
    match node {
        Node::Object(members) => Ok(members),
        Node::Null => Ok(Vec::new()),
        other => Err(format!("{what}: expected an object, found {}", other.kind())),
    }
}

/// Removes a member; missing reads as `null`.
fn take(members: &mut Vec<(String, Node)>, name: &str) -> Node {
    match members.iter().position(|(known, _)| known == name) {
        Some(index) => members.swap_remove(index).1,
        None => Node::Null,
    }
}

fn entry(key: &str, node: Node) -> Result<Entry, String> {
    let scope = Scope::parse(key)?;
    let Node::Object(mut fields) = node else { return Err(format!("expected an object, found {}", node.kind())) };
    let mut text = |name: &str| match take(&mut fields, name) {
        Node::Null => Ok(String::new()),
        Node::String(text) if has_control(&text) => Err(format!("{name} contains a control character")),
        Node::String(text) => Ok(text),
        other => Err(format!("{name}: expected a string, found {}", other.kind())),
    };
    let (auth, token) = (text("auth")?, text("identitytoken")?);
    let (mut username, mut password) = (text("username")?, text("password")?);
    let registry_token = text("registrytoken")?;
    if !auth.is_empty() {
        let decoded = base64(auth.as_bytes()).ok_or("auth is not base64")?;
        let decoded = String::from_utf8(decoded).map_err(|_| "auth is not UTF-8 text inside its base64")?;
        let (user, secret) = decoded.split_once(':').ok_or("auth has no `:` between user name and password")?;
        (username, password) = (user.to_owned(), secret.to_owned());
    }
    if has_control(&username) || has_control(&password) {
        return Err("user name or password contains a control character".to_owned());
    }
    if username.contains(':') {
        return Err("the user name contains a `:`".to_owned());
    }
    let identity_token = (!token.is_empty()).then(|| Secret::new(token));
    if username.is_empty() && password.is_empty() && identity_token.is_none() {
        return match registry_token.is_empty() {
            true => Ok(Entry { scope, credentials: None }),
            false => Err("registrytoken alone cannot be used; give user name and password".to_owned()),
        };
    }
    if identity_token.is_none() && username.is_empty() {
        return Err("no user name".to_owned());
    }
    if identity_token.is_none() && password.is_empty() {
        return Err("no password".to_owned());
    }
    Ok(Entry { scope, credentials: Some(Credentials { username, password: Secret::new(password), identity_token }) })
}

impl Scope {
    fn parse(key: &str) -> Result<Self, &'static str> {
        let (host, path) = split_key(key)?;
        Ok(Self { shown: display_name(key), host, path })
    }
}

/// Host and path of a key: `https://index.docker.io/v1/`, `registry:5000`, `ghcr.io/octo`.
fn split_key(key: &str) -> Result<(String, String), &'static str> {
    const BAD: &str = "not a registry, as in `ghcr.io`, `registry:5000` or `ghcr.io/octo`";
    let (legacy, rest) = match key.split_once("://") {
        Some(("http" | "https", rest)) => (true, rest),
        Some(_) => return Err(BAD),
        None => (false, key),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = check_domain(host).map_err(|_| BAD)?;
    let path = path.trim_end_matches('/');
    if path.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(BAD);
    }
    // URLs are Docker's keys, for whole registries; what is behind the host is a version of the interface.
    let path = if legacy || matches!(path, "v1" | "v2") { "" } else { path };
    let host = if same_host(&host, "registry-1.docker.io") { DOCKER_HUB.to_owned() } else { host };
    Ok((host, path.to_owned()))
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// Decodes standard base64 with its padding (RFC 4648, section 4).
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let digits = text.get(..text.len() - padding)?;
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for place in 0..4 {
            bits = bits << 6 | u32::from(group.get(place).map_or(Some(0), |byte| digit(*byte))?);
        }
        let [_, bytes @ ..] = bits.to_be_bytes();
        decoded.extend(&bytes[..group.len() - 1]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let bits =
                (0..3).fold(0_usize, |bits, place| bits << 8 | group.get(place).map_or(0, |byte| usize::from(*byte)));
            for place in 0..4 {
                let digit = char::from(DIGITS[bits >> (18 - 6 * place) & 63]);
                text.push(if place <= group.len() { digit } else { '=' });
            }
        }
        text
    }

    fn file(text: &str) -> AuthFile {
        AuthFile::parse("auth.json", text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn image(text: &str) -> Reference {
        Reference::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    /// User name and password found for an image.
    fn found(auth: &AuthFile, name: &str) -> Option<String> {
        let Found { credentials, warning } = auth.lookup(&image(name));
        assert_eq!(warning, None, "{name}");
        credentials.map(|found| format!("{}:{}", found.username, found.password.expose()))
    }

    #[test]
    fn every_spelling_of_a_registry_is_found() {
        for (key, name, there) in [
            ("https://index.docker.io/v1/", "node", true),
            ("https://index.docker.io/v1/", "octo/x", true),
            ("index.docker.io", "node", true),
            ("docker.io", "node", true),
            ("registry-1.docker.io", "node", true),
            ("docker.io/library", "node", true),
            (
                "docker.io/library/node",
                "node@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                true,
            ),
            ("docker.io/library/node", "nodes", false),
            ("docker.io/octo", "node", false),
            ("docker.io", "ghcr.io/a/b", false),
            ("registry.example.com:5000", "registry.example.com:5000/x", true),
            ("registry.example.com:5000", "registry.example.com/x", false),
            ("Registry.example.com", "registry.example.com/x", true),
            ("https://host.example/v2/", "host.example/x", true),
            ("http://host.example", "host.example/x", true),
            ("host.example/v2", "host.example/x", true),
            ("host.example/ns/repo/", "host.example/ns/repo:1", true),
            ("host.example/ns/repo", "host.example/ns/repository", false),
            ("localhost", "localhost/x", true),
        ] {
            let auth = file(&format!(r#"{{"auths": {{"{key}": {{"auth": "{}"}}}}}}"#, encode(b"user:p:w")));
            assert_eq!(found(&auth, name), there.then(|| "user:p:w".to_owned()), "{key} {name}");
        }
    }

    #[test]
    fn the_longest_path_wins() {
        let auth = file(
            r#"{"auths": {
                "host.example/ns": {"username": "ns", "password": "1"},
                "host.example/ns/repo/sub": {"username": "sub", "password": "3"},
                "host.example": {"username": "host", "password": "0"},
                "host.example/ns/repo": {"username": "repo", "password": "2"}
            }, "HttpHeaders": {"User-Agent": "x"}, "credsStore": ""}"#,
        );
        for (name, expected) in [
            ("host.example/ns/repo:1", "repo:2"),
            ("host.example/ns/repo/sub/x", "sub:3"),
            ("host.example/ns/repo-x", "ns:1"),
            ("host.example/nsx", "host:0"),
        ] {
            assert_eq!(found(&auth, name).as_deref(), Some(expected), "{name}");
        }
    }

    #[test]
    fn forms_of_an_entry() {
        let auth = file(&format!(
            r#"{{"auths": {{
                "both.example": {{"auth": "{0}", "username": "other", "password": "other"}},
                "token.example": {{"auth": "{1}", "identitytoken": "tok"}},
                "only.example": {{"identitytoken": "tok"}},
                "empty.example": {{}}
            }}}}"#,
            encode("ü:pä".as_bytes()),
            encode(b"00000000:")
        ));
        assert_eq!(found(&auth, "both.example/x").as_deref(), Some("ü:pä"));
        assert_eq!(found(&auth, "empty.example/x"), None);
        for (name, user) in [("token.example/x", "00000000"), ("only.example/x", "")] {
            let found = auth.lookup(&image(name)).credentials.cloned().unwrap_or_else(|| panic!("{name}"));
            assert_eq!(
                (&*found.username, found.password.expose(), found.identity_token.as_ref().map(Secret::expose)),
                (user, "", Some("tok"))
            );
        }
        assert_eq!(file("{}"), AuthFile { file: "auth.json".into(), ..AuthFile::default() });
        let twice = r#"{"auths": {"docker.io": {"username": "a", "password": "b"}, "index.docker.io": {"username": "a", "password": "b"}}}"#;
        assert_eq!(found(&file(twice), "node").as_deref(), Some("a:b"));
    }

    #[test]
    fn bad_files_are_refused_by_key_and_without_values() {
        let secret = "hunter2";
        let entry = |key: &str, fields: &str| format!(r#"{{"auths": {{"{key}": {{{fields}}}}}}}"#);
        let auth = |bytes: &[u8]| format!(r#""auth": "{}""#, encode(bytes));
        for (text, message) in [
            (String::new(), "empty; expected a JSON object, as `docker login` writes it"),
            ("[]".into(), "the file: expected an object, found an array"),
            ("{".into(), "ends before its JSON object is complete"),
            ("{} {}".into(), "more text after the JSON object, at column 4"),
            ("[".repeat(100), "nested too deeply or too long for a file of credentials"),
            (r#"{"auths": 1}"#.into(), "auths: expected an object, found a number"),
            (r#"{"auths": {"a.b": 1}}"#.into(), "auths: `a.b`: expected an object, found a number"),
            (
                r#"{"auths": {"a.b": {}, "a.b": {}}}"#.into(),
                "auths[\"a.b\"]: given twice; keep one of them",
            ),
            (
                r#"{"auths": {"docker.io": {"username": "a", "password": "hunter2"}, "https://index.docker.io/v1/": {"username": "b", "password": "hunter2"}}}"#.into(),
                "auths: `docker.io` and `https://index.docker.io/v1/` are one registry and differ; remove one of them",
            ),
            (entry("ftp://a.b", ""), "auths: `ftp://a.b`: not a registry, as in `ghcr.io`, `registry:5000` or `ghcr.io/octo`"),
            (entry("a b", ""), "auths: `a b`: not a registry, as in `ghcr.io`, `registry:5000` or `ghcr.io/octo`"),
            (entry("a.b", r#""auth": "hunter2""#), "auths: `a.b`: auth is not base64"),
            (entry("a.b", r#""auth": 5"#), "auths: `a.b`: auth: expected a string, found a number"),
            (entry("a.b", &auth(b"\xff:hunter2")), "auths: `a.b`: auth is not UTF-8 text inside its base64"),
            (entry("a.b", &auth(b"hunter2")), "auths: `a.b`: auth has no `:` between user name and password"),
            (entry("a.b", &auth(b"user:hunter2\n")), "auths: `a.b`: user name or password contains a control character"),
            (entry("a.b", &auth(b"user:hunter2\0\0")), "auths: `a.b`: user name or password contains a control character"),
            (entry("a.b", r#""username": "hunter2""#), "auths: `a.b`: no password"),
            (entry("a.b", r#""password": "hunter2""#), "auths: `a.b`: no user name"),
            (entry("a.b", r#""username": "a:b", "password": "hunter2""#), "auths: `a.b`: the user name contains a `:`"),
            (entry("a.b", r#""registrytoken": "hunter2""#), "auths: `a.b`: registrytoken alone cannot be used; give user name and password"),
            (entry("a.b", r#""identitytoken": "hunter2\n""#), "auths: `a.b`: identitytoken contains a control character"),
            (r#"{"credHelpers": {"a.b": 1}}"#.into(), "credHelpers: `a.b`: expected the name of a helper"),
            (r#"{"credsStore": 1}"#.into(), "credsStore: expected a string, found a number"),
        ] {
            let error = AuthFile::parse("auth.json", text.as_bytes()).expect_err(&text).to_string();
            assert_eq!(error, format!("auth.json: {message}"), "{text}");
            assert!(!error.contains(secret), "{error}");
        }
        let large = vec![b' '; MAX_BYTES + 1];
        assert!(AuthFile::parse("auth.json", &large).expect_err("too large").to_string().contains("1 MiB"));
        assert!(AuthFile::parse("auth.json", b"\xff").expect_err("no text").to_string().contains("UTF-8"));
        let shown = format!("{:?}", file(&entry("a.b", r#""username": "u", "password": "hunter2""#)));
        assert!(!shown.contains(secret), "{shown}");
    }

    #[test]
    fn helpers_are_reported_where_they_matter() {
        let auth = file(
            r#"{"credsStore": "desktop", "credHelpers": {"ghcr.io": "pass", "used.example": "pass"}, "auths": {
                "https://index.docker.io/v1/": {},
                "used.example": {"username": "u", "password": "p"}
            }}"#,
        );
        assert_eq!(found(&auth, "used.example/x").as_deref(), Some("u:p"));
        assert_eq!(found(&auth, "quay.io/a/b"), None);
        for (name, expected) in [
            ("node", "auth.json: credsStore leaves `https://index.docker.io/v1/` to docker-credential-desktop, which"),
            ("ghcr.io/a/b", "auth.json: credHelpers leaves `ghcr.io` to docker-credential-pass, which cannot be used"),
        ] {
            let Found { credentials, warning } = auth.lookup(&image(name));
            let warning = warning.unwrap_or_default();
            assert!(credentials.is_none() && warning.starts_with(expected), "{name}: {warning}");
        }
    }

    #[test]
    fn what_a_request_brings_is_for_the_images_own_registry() {
        let registry = |username: &str, password: Option<&str>, server: &str| Registry {
            username: username.to_owned(),
            password: password.map(Secret::new),
            server_url: server.to_owned(),
        };
        for (name, server, password, expected) in [
            ("node", "", Some("pw"), Ok("pw")),
            ("ghcr.io/o/i", "ghcr.io", Some("pw\r\n"), Ok("pw")),
            ("registry:5000/x", "registry:5000", Some("pw"), Ok("pw")),
            ("node", "https://index.docker.io/v1", Some("pw"), Ok("pw")),
            // Guessed wrongly by the runner.
            ("localhost/x", "", Some("pw"), Ok("pw")),
            ("a/b/c", "a", Some("pw"), Ok("pw")),
            ("ghcr.io/o/i", "quay.io", Some("pw"), Err("they are for `quay.io`, another registry")),
            ("node", "a b", Some("pw"), Err("they are for `a b`, another registry")),
            ("node", "", None, Err("the password is empty; is the secret missing")),
            ("node", "", Some(""), Err("the password is empty; is the secret missing")),
            ("node", "", Some("\n"), Err("the password is empty; is the secret missing")),
            ("node", "", Some("p\tw"), Err("control character")),
        ] {
            let Found { credentials, warning } = from_request(&registry("octo", password, server), &image(name));
            match expected {
                Ok(password) => {
                    let credentials = credentials.unwrap_or_else(|| panic!("{name} {server}: {warning:?}"));
                    assert_eq!((&*credentials.username, credentials.password.expose()), ("octo", password));
                    assert_eq!(warning, None, "{name} {server}");
                }
                Err(part) => {
                    let warning = warning.unwrap_or_default();
                    assert!(credentials.is_none() && warning.contains(part), "{name} {server}: {warning}");
                    assert!(!warning.contains("pw") && !warning.contains('\n'), "{warning}");
                }
            }
        }
        let colon = from_request(&registry("a:b", Some("pw"), ""), &image("node"));
        assert!(colon.credentials.is_none() && colon.warning.is_some_and(|warning| warning.contains("`:`")));
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(base64(encode(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn base64_of_any_bytes_is_handled(text in "[A-Za-z0-9+/=_ -]{0,12}|\\PC{0,8}") {
            if let Some(bytes) = base64(text.as_bytes()) {
                prop_assert_eq!(encode(&bytes).len(), text.len());
            }
        }

        #[test]
        fn what_docker_login_writes_is_found(
            host in "[a-z]{1,6}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            user in "[!-9;-~]{1,12}",
            password in "[ -~]{1,20}",
        ) {
            let auth = file(&format!(r#"{{"auths": {{"{host}": {{"auth": "{}"}}}}}}"#, encode(format!("{user}:{password}").as_bytes())));
            prop_assert_eq!(found(&auth, &format!("{host}/a/b:c")), Some(format!("{user}:{password}")));
            prop_assert_eq!(found(&auth, &format!("x{host}/a/b:c")), None);
        }

        #[test]
        fn any_bytes_are_handled(text in "\\PC{0,40}", key in "\\PC{0,20}|[a-z./:]{0,20}", value in "\\PC{0,12}|[A-Za-z0-9=]{0,12}") {
            let _ = AuthFile::parse("auth.json", text.as_bytes());
            let document = serde_json::json!({"auths": {&key: {"auth": value}}}).to_string();
            if let Err(error) = AuthFile::parse("auth.json", document.as_bytes()) {
                prop_assert!(!error.to_string().contains(char::is_control), "{}", error);
            }
        }
    }
}
