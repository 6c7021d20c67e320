//! Which images jobs may use: `RUNNER_IMAGE_POLICY` and the patterns of `RUNNER_IMAGE_ALLOW`.

use std::fmt;

use crate::environ::display_name;
use crate::image_ref::{DOCKER_HUB, Reference, check_digest, check_domain, check_path, check_tag, is_domain};

/// Which images jobs may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImagePolicy {
    /// Any.
    #[default]
    Any,
    /// Those whose reference has a SHA-256 digest.
    Digest,
    /// Those a pattern matches.
    Allow,
}

impl ImagePolicy {
    /// As the configuration spells them.
    pub const NAMES: [(&'static str, Self); 3] = [("any", Self::Any), ("digest", Self::Digest), ("allow", Self::Allow)];
}

/// An image that the configuration does not allow. One line: image, key, remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not pinned.
    #[error("image {0}: RUNNER_IMAGE_POLICY=digest allows only images pinned by digest; write NAME@sha256:DIGEST")]
    NotPinned(Reference),
    /// Nobody listed it.
    #[error(
        "image {0}: RUNNER_IMAGE_POLICY=allow, and no pattern of RUNNER_IMAGE_ALLOW matches{hint}; use another image, or have the runner's administrator add it",
        hint = if .0.tag().is_some() && .0.digest().is_some() { " (one with a tag alone matches no digest)" } else { "" }
    )]
    NotAllowed(Reference),
}

/// Whether the configuration lets jobs use the image.
///
/// # Errors
/// When it does not.
pub fn check(policy: ImagePolicy, allow: &[Pattern], image: &Reference) -> Result<(), PolicyError> {
    match policy {
        ImagePolicy::Any => Ok(()),
        ImagePolicy::Digest if image.digest().is_some_and(|digest| digest.starts_with("sha256:")) => Ok(()),
        ImagePolicy::Digest => Err(PolicyError::NotPinned(image.clone())),
        ImagePolicy::Allow if allow.iter().any(|pattern| pattern.matches(image)) => Ok(()),
        ImagePolicy::Allow => Err(PolicyError::NotAllowed(image.clone())),
    }
}

/// A reference in which pieces may be left open.
///
/// It is completed like a reference: `node` means `docker.io/library/node`, `octo/*` means `docker.io/octo/*`. What it
/// leaves out beyond that, tag and digest, may be anything.
///
/// * `*` stands for any text within one part of the name, within the tag, or for all digits of a digest.
/// * `**` stands for one or more whole parts of the name; in first place, also for the registry.
/// * A tag without a digest matches only references without one: beside a digest a tag means nothing, and would let
///   everything of the repository through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// Registry and parts of the path.
    name: Vec<String>,
    tag: Option<String>,
    digest: Option<String>,
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}`: {problem}")]
pub struct PatternError {
    shown: String,
    problem: &'static str,
}

impl Pattern {
    /// Parses and completes `text`; a leading `docker://` is ignored.
    ///
    /// # Errors
    /// When it could match no reference.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        parse(text).map_err(|problem| PatternError { shown: display_name(text), problem })
    }

    /// Whether `image` fits.
    #[must_use]
    pub fn matches(&self, image: &Reference) -> bool {
        let name: Vec<&str> = std::iter::once(image.domain()).chain(image.path().split('/')).collect();
        let tag_fits = match (&self.tag, image.tag()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(pattern), Some(tag)) => piece_matches(pattern, tag),
        };
        let digest_fits = match (&self.digest, image.digest()) {
            (None, None) => true,
            (None, Some(_)) => self.tag.is_none(),
            (Some(_), None) => false,
            (Some(pattern), Some(digest)) => piece_matches(pattern, digest),
        };
        tag_fits && digest_fits && name_matches(&self.name, &name)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.join("/"))?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Pattern, &'static str> {
    let text = text.strip_prefix("docker://").unwrap_or(text);
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(check_digest_pattern(digest)?)),
        None => (text, None),
    };
    // As in references: a colon behind the last slash begins the tag.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => {
            check_tag(&filled(tag))?;
            (name, Some(tag.to_owned()))
        }
        _ => (rest, None),
    };
    if name.is_empty() {
        return Err("empty; write NAME[:TAG], as in `node:22` or `ghcr.io/octo/**`");
    }
    if name.split('/').any(|part| part != "**" && part.contains("**")) {
        return Err("`**` stands for whole parts; write it between slashes");
    }
    let (domain, path) = match name.split_once('/') {
        Some(("**", path)) => ("**".to_owned(), path),
        Some((first, path)) if is_domain(first) => {
            let checked = check_domain(&filled(first))?;
            // Only literal names have another spelling.
            (if first.contains('*') { first.to_owned() } else { checked }, path)
        }
        None if name == "**" => (name.to_owned(), ""),
        _ => (DOCKER_HUB.to_owned(), name),
    };
    let mut parts = vec![domain];
    if parts[0] == DOCKER_HUB && !path.contains('/') && path != "**" {
        parts.push("library".to_owned());
    }
    if !path.is_empty() {
        check_path(&path.split('/').map(filled).collect::<Vec<_>>().join("/"))?;
        parts.extend(path.split('/').map(str::to_owned));
    } else if name != "**" {
        return Err("no repository behind the registry; write HOST/** for all of them");
    }
    Ok(Pattern { name: parts, tag, digest })
}

fn check_digest_pattern(text: &str) -> Result<String, &'static str> {
    match text {
        "sha256:*" | "sha512:*" => Ok(text.to_owned()),
        literal => check_digest(literal),
    }
}

/// A text the pattern matches, for the grammar of references to judge.
fn filled(pattern: &str) -> String {
    pattern.replace('*', "a")
}

fn name_matches(pattern: &[String], name: &[&str]) -> bool {
    // `reached[n]`: the pattern so far can match the first n parts. One pass per part of the pattern, so that many `**`
    // cost no more than one.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; name.len() + 1];
        for (index, text) in name.iter().enumerate() {
            next[index + 1] =
                if part == "**" { reached[index] || next[index] } else { reached[index] && piece_matches(part, text) };
        }
        reached = next;
    }
    reached[name.len()]
}

/// Whether `text` is `pattern` with every `*` replaced by some text, possibly none.
fn piece_matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    // The earliest place for each piece leaves the most room for the others.
    for piece in middle.split('*') {
        match text.find(piece) {
            Some(place) => text = &text[place + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn image(text: &str) -> Reference {
        Reference::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn patterns_are_completed_like_references() {
        for (text, canonical) in [
            ("node", "docker.io/library/node"),
            ("node:22", "docker.io/library/node:22"),
            ("docker://node:22-*", "docker.io/library/node:22-*"),
            ("*", "docker.io/library/*"),
            ("octo/*", "docker.io/octo/*"),
            ("docker.io/*", "docker.io/library/*"),
            ("index.docker.io/node", "docker.io/library/node"),
            ("docker.io/**", "docker.io/**"),
            ("**", "**"),
            ("**/node", "**/node"),
            ("ghcr.io/octo/**", "ghcr.io/octo/**"),
            ("*.example.com:5000/a/*-b:v*", "*.example.com:5000/a/*-b:v*"),
            ("localhost/**/x", "localhost/**/x"),
        ] {
            let parsed = pattern(text);
            assert_eq!(parsed.to_string(), canonical, "{text}");
            assert_eq!(Pattern::parse(canonical).as_ref(), Ok(&parsed), "{canonical}");
        }
    }

    #[test]
    fn what_patterns_match() {
        let pinned = format!("node@{DIGEST}");
        let both = format!("node:22@{DIGEST}");
        let other = format!("node@sha256:{}", "f".repeat(64));
        for (text, yes, no) in [
            ("node", &["node", "node:22", "docker.io/library/node:1", &pinned, &both][..], &["octo/node", "nodes"][..]),
            ("node:22", &["node:22", "docker://docker.io/library/node:22"], &["node", "node:22-slim", &pinned, &both]),
            ("node:22*", &["node:22", "node:22-slim"], &["node:20", &both]),
            ("node:*", &["node", "node:1"], &[&pinned, &both]),
            (&pinned, &[&pinned, &both], &["node", &other]),
            (&both, &[&both], &["node:22", &pinned, &other]),
            ("node@sha256:*", &[&pinned, &both, &other], &["node:22"]),
            ("docker.io/library/*", &["node", "redis:7"], &["octo/node", "ghcr.io/library/node", "library/a/b"]),
            ("ghcr.io/octo/**", &["ghcr.io/octo/a", "ghcr.io/octo/a/b/c:1"], &["ghcr.io/octopus/a", "octo/a"]),
            ("ghcr.io/**/tool", &["ghcr.io/a/tool", "ghcr.io/a/b/tool:1"], &["ghcr.io/tool", "ghcr.io/a/tools"]),
            ("ghcr.io/octo*/x", &["ghcr.io/octo/x", "ghcr.io/octopus/x"], &["ghcr.io/octo/a/x", "ghcr.io/oct/x"]),
            ("*.example.com/**", &["a.example.com/x", "a.b.example.com/x/y"], &["example.com/x", "a.example.com:5/x"]),
            ("**", &["node", "ghcr.io/a/b/c", &both], &[]),
            ("**/node:22", &["node:22", "ghcr.io/a/node:22"], &["node:20"]),
            ("octo/a*b*c", &["octo/abc", "octo/a-b-b-c"], &["octo/acb", "octo/ab"]),
            ("octo/aa*aa", &["octo/aaaa"], &["octo/aaa"]),
        ] {
            let parsed = pattern(text);
            for (expected, references) in [(true, yes), (false, no)] {
                for reference in references {
                    assert_eq!(parsed.matches(&image(reference)), expected, "{text} and {reference}");
                }
            }
        }
    }

    #[test]
    fn texts_that_are_no_pattern() {
        for (text, part) in [
            ("", "empty"),
            (":22", "empty"),
            ("ghcr.io/", "no repository"),
            ("ghcr.io**", "whole parts"),
            ("ghcr.io/octo**", "whole parts"),
            ("***", "whole parts"),
            ("Node", "lower case"),
            ("node:-x", "bad tag"),
            ("node:", "bad tag"),
            ("node@sha256:12*", "bad digest"),
            ("a//b", "bad repository name"),
            ("ho_st.*/x", "bad registry host"),
            ("https://ghcr.io/x", "bad registry host"),
            ("no\nde", "bad repository name"),
        ] {
            let error = Pattern::parse(text).expect_err(text).to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn refusals_name_image_and_key() {
        let pinned = image(&format!("node@{DIGEST}"));
        let (node, both) = (image("node:22"), image(&format!("node:22@{DIGEST}")));
        let allow = [pattern("redis"), pattern("node:22")];
        assert_eq!(check(ImagePolicy::Any, &[], &node), Ok(()));
        assert_eq!(check(ImagePolicy::Digest, &[], &pinned), Ok(()));
        assert_eq!(check(ImagePolicy::Digest, &[], &both), Ok(()));
        assert_eq!(check(ImagePolicy::Allow, &allow, &node), Ok(()));
        assert_eq!(
            check(ImagePolicy::Digest, &allow, &node).unwrap_err().to_string(),
            "image docker.io/library/node:22: RUNNER_IMAGE_POLICY=digest allows only images pinned by digest; \
             write NAME@sha256:DIGEST"
        );
        assert_eq!(
            check(ImagePolicy::Allow, &allow, &image("octo/x")).unwrap_err().to_string(),
            "image docker.io/octo/x:latest: RUNNER_IMAGE_POLICY=allow, and no pattern of RUNNER_IMAGE_ALLOW matches; \
             use another image, or have the runner's administrator add it"
        );
        let hinted = check(ImagePolicy::Allow, &allow, &both).unwrap_err().to_string();
        assert!(hinted.contains("matches no digest"), "{hinted}");
        let sha512 = image(&format!("node@sha512:{}", "a".repeat(128)));
        assert!(check(ImagePolicy::Digest, &[], &sha512).is_err());
    }

    /// The same as [`piece_matches`], by definition.
    fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skipped| by_definition(rest, &text[skipped..])),
            Some((byte, rest)) => text.first() == Some(byte) && by_definition(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_literal_reference_matches_itself_and_nothing_else(
            texts in proptest::collection::vec(
                "(([a-c]\\.[a-c]|localhost)/)?[a-c](/[a-c]){0,2}(:[a-c])?", 2),
            digests in proptest::collection::vec(prop_oneof![Just(String::new()), Just(format!("@{DIGEST}"))], 2),
        ) {
            let images: Vec<Reference> =
                texts.iter().zip(&digests).map(|(text, digest)| image(&format!("{text}{digest}"))).collect();
            let literal = pattern(&images[0].to_string());
            prop_assert!(literal.matches(&images[0]), "{}", literal);
            prop_assert!(pattern("**").matches(&images[0]));
            let same_digest = images[0].tag().is_none() && images[0].digest() == images[1].digest()
                && (images[0].domain(), images[0].path()) == (images[1].domain(), images[1].path());
            prop_assert_eq!(literal.matches(&images[1]), images[0] == images[1] || same_digest, "{} {}", literal, images[1]);
        }

        #[test]
        fn stars_mean_what_they_say(pattern in "[ab*]{0,7}", text in "[ab]{0,8}") {
            prop_assert_eq!(piece_matches(&pattern, &text), by_definition(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn any_text_is_handled(text in "\\PC{0,30}|[a-zA-Z0-9:/@.*\\[\\]_-]{0,40}") {
            if let Ok(parsed) = Pattern::parse(&text) {
                prop_assert_eq!(Pattern::parse(&parsed.to_string()), Ok(parsed.clone()), "{}", text);
            }
        }
    }
}
