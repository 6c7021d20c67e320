//! Image references as container users write them.
//!
//! The grammar is the one of the distribution project: `[domain/]path[:tag][@digest]`, with Docker Hub and its
//! `library/` namespace filled in for short names.

use std::fmt;
use std::str::FromStr;

/// The domain that a reference without one means.
pub const DOCKER_HUB: &str = "docker.io";
/// The tag that a reference with neither tag nor digest means.
pub const DEFAULT_TAG: &str = "latest";

/// The longest domain and path together, as registries enforce it.
const MAX_NAME: usize = 255;

/// A complete reference: after parsing, at least one of tag and digest is there.
///
/// `Display` writes the canonical form (`docker.io/library/node:22`), and parsing that gives the same value back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// A text that is no image reference, with what to write instead.
///
/// The text is shown, shortened and on one line: image names are not secrets, and without it nobody finds the typo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image reference `{shown}`: {problem}")]
pub struct ReferenceError {
    shown: String,
    problem: &'static str,
}

impl Reference {
    /// Parses and completes `text`. A leading `docker://`, as in `uses:`, is ignored.
    ///
    /// # Errors
    /// When the text breaks the grammar.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { shown: crate::environ::display_name(text), problem })
    }

    /// Registry host, with port if one was given: `docker.io`, `registry:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository within the registry: `library/node`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; with a digest beside it, the digest decides what is meant.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `algorithm:hex`.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The last part of the path, by which jobs expect to reach a service: `postgres` for `registry/x/postgres:16`.
    #[must_use]
    pub fn short_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The short form people know: `node:22`, `octo/tool:1`, `ghcr.io/octo/tool@sha256:…`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let canonical = self.to_string();
        match canonical.strip_prefix("docker.io/") {
            Some(rest) => match rest.strip_prefix("library/") {
                // `docker.io/a.b/c` would come back as repository c of registry a.b.
                _ if rest.split_once('/').is_some_and(|(first, _)| is_domain(first)) => canonical.clone(),
                // `library/a/b` would come back as `a/b`, another repository.
                Some(official) if !self.path["library/".len()..].contains('/') => official.to_owned(),
                _ => rest.to_owned(),
            },
            None => canonical,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let text = text.strip_prefix("docker://").unwrap_or(text);
    if text.is_empty() {
        return Err("empty; write NAME[:TAG], as in `node:22`");
    }
    if text.contains("://") {
        return Err("has a URL scheme; write HOST/NAME[:TAG] without it");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("contains white space; remove it");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(check_digest(digest)?)),
        None => (text, None),
    };
    // A colon after the last slash begins the tag; before it, a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(check_tag(tag)?)),
        _ => (rest, None),
    };
    if tag.is_none() && digest.is_none() && name.len() == 64 && name.bytes().all(is_lower_hex) {
        return Err("looks like an image id; write NAME@sha256:ID");
    }
    let (domain, path) = match name.split_once('/') {
        Some((first, path)) if is_domain(first) => (check_domain(first)?, path.to_owned()),
        _ => (DOCKER_HUB.to_owned(), name.to_owned()),
    };
    let path = if domain == DOCKER_HUB && !path.contains('/') { format!("library/{path}") } else { path };
    check_path(&path)?;
    if domain.len() + 1 + path.len() > MAX_NAME {
        return Err("name longer than 255 characters");
    }
    let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
    Ok(Reference { domain, path, tag, digest })
}

/// Whether the first part of a name is a host: it could not be a Docker Hub namespace, or is `localhost`.
pub(crate) fn is_domain(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':', '[']) || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

pub(crate) fn check_domain(text: &str) -> Result<String, &'static str> {
    const BAD: &str = "bad registry host; write HOST[:PORT]/NAME[:TAG], as in `ghcr.io/octo/tool:1`";
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, after)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(BAD);
            }
            (None, after)
        }
        None => match text.find(':') {
            Some(colon) => (Some(&text[..colon]), &text[colon..]),
            None => (Some(text), ""),
        },
    };
    let label_ok = |label: &str| {
        let bytes = label.as_bytes();
        !label.is_empty()
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    };
    let host_ok = host.is_none_or(|host| host.split('.').all(label_ok));
    let port_ok = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok());
    if !host_ok || !port_ok {
        return Err(BAD);
    }
    // Older name of the same registry.
    Ok(if text == "index.docker.io" { DOCKER_HUB.to_owned() } else { text.to_owned() })
}

pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("repository names are lower case; write it in lower case");
    }
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err("bad repository name; its parts are a-z and 0-9, joined inside by single `.`, one or two `_`, or `-`")
    }
}

/// Lower-case alphanumeric runs joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_ok = bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word);
    ends_ok
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

pub(crate) fn check_tag(tag: &str) -> Result<String, &'static str> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let ok = tag.bytes().next().is_some_and(word)
        && tag.len() <= 128
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    if ok {
        Ok(tag.to_owned())
    } else {
        Err("bad tag; a tag is 1 to 128 of A-Z a-z 0-9 _ . -, not starting with . or -")
    }
}

pub(crate) fn check_digest(digest: &str) -> Result<String, &'static str> {
    let (algorithm, hex) = digest.split_once(':').unwrap_or((digest, ""));
    let digits = match algorithm {
        "sha256" => 64,
        "sha512" => 128,
        _ => return Err("bad digest; write @sha256: or @sha512: and the hexadecimal digest"),
    };
    if hex.len() == digits && hex.bytes().all(is_lower_hex) {
        Ok(digest.to_owned())
    } else {
        Err("bad digest; sha256 has 64 and sha512 has 128 lower-case hexadecimal digits")
    }
}

fn is_lower_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_completed() {
        for (text, canonical, familiar, short) in [
            ("node", "docker.io/library/node:latest", "node:latest", "node"),
            ("node:22", "docker.io/library/node:22", "node:22", "node"),
            ("docker://alpine:3.22", "docker.io/library/alpine:3.22", "alpine:3.22", "alpine"),
            ("octo/tool:1", "docker.io/octo/tool:1", "octo/tool:1", "tool"),
            ("docker.io/node", "docker.io/library/node:latest", "node:latest", "node"),
            ("index.docker.io/library/node", "docker.io/library/node:latest", "node:latest", "node"),
            ("registry:5000/a/b:t", "registry:5000/a/b:t", "registry:5000/a/b:t", "b"),
            ("localhost/x:y", "localhost/x:y", "localhost/x:y", "x"),
            ("a/b/c", "docker.io/a/b/c:latest", "a/b/c:latest", "c"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest", "b"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest", "x"),
            ("Host/x", "Host/x:latest", "Host/x:latest", "x"),
            (
                "a__b/c-d---e.f_g:T_1.2-3",
                "docker.io/a__b/c-d---e.f_g:T_1.2-3",
                "a__b/c-d---e.f_g:T_1.2-3",
                "c-d---e.f_g",
            ),
        ] {
            let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(
                (&*reference.to_string(), &*reference.familiar(), reference.short_name()),
                (canonical, familiar, short)
            );
        }
    }

    #[test]
    fn digests_stand_alone_or_beside_a_tag() {
        let reference = Reference::parse(&format!("ghcr.io/o/i@{DIGEST}")).unwrap();
        assert_eq!((reference.domain(), reference.path()), ("ghcr.io", "o/i"));
        assert_eq!((reference.tag(), reference.digest()), (None, Some(DIGEST)));
        let both = Reference::parse(&format!("node:22@{DIGEST}")).unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/node:22@{DIGEST}"));
        assert_eq!((both.tag(), both.digest()), (Some("22"), Some(DIGEST)));
    }

    #[test]
    fn refusals_say_what_to_write() {
        let hex = "0123456789abcdef".repeat(4);
        let long = "a".repeat(256);
        for (text, part) in [
            ("", "empty"),
            ("docker://", "empty"),
            ("https://ghcr.io/o/i", "URL scheme"),
            ("node 22", "white space"),
            ("node\n", "white space"),
            ("Node", "lower case"),
            ("octo/Tool", "lower case"),
            (&hex, "looks like an image id"),
            ("node:", "bad tag"),
            ("node:-x", "bad tag"),
            ("node:a b", "white space"),
            ("node@sha256:12", "64"),
            ("node@md5:12", "@sha256:"),
            ("node@", "@sha256:"),
            (&format!("node@{}", DIGEST.to_uppercase()), "@sha256:"),
            ("a//b", "bad repository name"),
            ("/a", "bad repository name"),
            ("a/", "bad repository name"),
            ("a..b", "bad repository name"),
            ("a___b", "bad repository name"),
            ("a._b", "bad repository name"),
            ("-a", "bad repository name"),
            ("../etc/passwd", "bad registry host"),
            ("./x", "bad registry host"),
            ("ho_st.x/a", "bad registry host"),
            ("host:99999/a", "bad registry host"),
            ("host:+1/a", "bad registry host"),
            ("[::zz]/a", "bad registry host"),
            ("é", "bad repository name"),
            (&long, "longer than 255"),
        ] {
            let error = Reference::parse(text).expect_err(text).to_string();
            assert!(error.contains(part) && !error.contains('\n') && error.len() < 400, "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_handled(text in "\\PC{0,40}|[a-zA-Z0-9:/@.\\[\\]_-]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference.clone()));
                prop_assert_eq!(Reference::parse(&reference.familiar()), Ok(reference.clone()));
            }
        }

        #[test]
        fn display_and_parse_are_inverse(
            domain in "(([a-z0-9]{1,8}\\.[a-z]{2,4}|localhost|[a-z]{3}:[1-9][0-9]{0,3})/)?",
            path in "[a-z0-9]{1,6}([._-][a-z0-9]{1,6})?(/[a-z0-9]{1,6}){0,2}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,8})?",
            digest in prop_oneof![Just(String::new()), Just(format!("@{DIGEST}"))],
        ) {
            let text = format!("{domain}{path}{tag}{digest}");
            let reference = Reference::parse(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference.clone()));
            prop_assert_eq!(Reference::parse(&reference.familiar()), Ok(reference.clone()));
            let suffix = format!("{}{}{}", path, if tag.is_empty() && digest.is_empty() { ":latest" } else { &tag }, digest);
            prop_assert!(reference.to_string().ends_with(&suffix), "{} {}", reference, suffix);
        }
    }
}
