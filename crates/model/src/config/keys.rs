//! Every configuration key, once; those of a subject are declared beside what reads them.

use super::{images, registries};

/// A key of `config.env`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// As written in the file.
    pub name: &'static str,
    /// Another spelling, which wins; only keys without our prefix have one.
    pub lower_case: Option<&'static str>,
    /// What the key is for, one sentence.
    pub doc: &'static str,
    /// What is allowed, as it reads after "allowed:".
    pub allowed: &'static str,
    /// Value when the key is missing or empty; `$RUNNER_ROOT` and `$RUNNER_WORK` stand for those keys' values. Empty
    /// means "none".
    pub default: &'static str,
    /// A value that is allowed and not the default.
    pub example: &'static str,
    /// Whether the value may hold a password: messages do not show it.
    pub secret: bool,
}

/// To declare keys from.
pub(super) const BLANK: Key =
    Key { name: "", lower_case: None, doc: "", allowed: "", default: "", example: "", secret: false };

pub(super) const PATH: &str = "an absolute path without `.` and `..`";
const TEXT: &str = "a text without control characters";

pub(super) const ROOT: Key = Key {
    name: "RUNNER_ROOT",
    doc: "Folder of the official runner; holds `externals`.",
    allowed: PATH,
    default: "/home/runner",
    example: "/srv/runner",
    ..BLANK
};
pub(super) const WORK: Key = Key {
    name: "RUNNER_WORK",
    doc: "Work folder of the official runner; job containers see it as /__w.",
    allowed: PATH,
    default: "$RUNNER_ROOT/_work",
    example: "/srv/work",
    ..BLANK
};
pub(super) const TOOL_CACHE: Key = Key {
    name: "RUNNER_TOOL_CACHE",
    doc: "Folder for tools that setup actions install and later jobs find again.",
    allowed: PATH,
    default: "$RUNNER_WORK/_tool",
    example: "/srv/tools",
    ..BLANK
};
pub(super) const USER: Key = Key {
    name: "RUNNER_USER",
    doc: "User of the official runner; owns the work folder, and every file that a job leaves in it.",
    allowed: "the name of an ordinary user, at most 31 of a-z 0-9 _ -",
    default: "runner",
    example: "ci",
    ..BLANK
};
pub(super) const VOLUMES_ALLOW: Key = Key {
    name: "RUNNER_VOLUMES_ALLOW",
    doc: "Host paths that workflows may mount with `volumes:`, they and everything below them; `:ro` allows reading only.",
    allowed: "absolute host paths separated by spaces, each with an optional `:ro`",
    default: "",
    example: "/srv/cache /etc/ssl/certs:ro",
    ..BLANK
};
pub(super) const UID_RANGE: Key = Key {
    name: "RUNNER_UID_RANGE",
    doc: "User and group ids of the host that guests are mapped to, 65536 for each guest; the last 65536 are for unpacking images.",
    allowed: "BASE:COUNT, multiples of 65536, BASE at least 524288, COUNT at least 196608, all ids below 1879048192",
    default: "524288:16777216",
    example: "1048576:8388608",
    ..BLANK
};
pub(super) const STOP_GRACE: Key = Key {
    name: "RUNNER_STOP_GRACE",
    doc: "Time between SIGTERM and SIGKILL for a step that is cancelled. The official runner kills the hook after 7.5 seconds.",
    allowed: "whole seconds from 0 to 6",
    default: "5",
    example: "2",
    ..BLANK
};
pub(super) const BOOTSTRAP_REPO_URL: Key = Key {
    name: "RUNNER_BOOTSTRAP_REPO_URL",
    doc: "Repository that the bootstrap clones and installs from.",
    allowed: TEXT,
    default: "",
    example: "https://git.example.com/octo/runner-appliance.git",
    ..BLANK
};
pub(super) const BOOTSTRAP_REPO_REF: Key = Key {
    name: "RUNNER_BOOTSTRAP_REPO_REF",
    doc: "Commit, tag or branch that the bootstrap installs.",
    allowed: TEXT,
    default: "",
    example: "v1.0.0",
    ..BLANK
};

/// The table, in the order of the documentation.
pub const KEYS: &[Key] = &[
    ROOT,
    WORK,
    TOOL_CACHE,
    USER,
    VOLUMES_ALLOW,
    UID_RANGE,
    STOP_GRACE,
    images::PULL,
    images::MAX_AGE,
    images::POLICY,
    images::ALLOW,
    images::COLLECT_START,
    images::COLLECT_STOP,
    registries::MIRRORS,
    registries::INSECURE,
    registries::CA_FILE,
    registries::HTTP_PROXY,
    registries::HTTPS_PROXY,
    registries::NO_PROXY,
    BOOTSTRAP_REPO_URL,
    BOOTSTRAP_REPO_REF,
];

/// The known spelling that `name` is.
pub(super) fn find(name: &str) -> Option<&'static str> {
    KEYS.iter().flat_map(|key| [Some(key.name), key.lower_case]).flatten().find(|known| *known == name)
}

/// The known key that a reader would take `name` for: at most a third of it differs.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    // Far from any key anyway, and the comparison is quadratic.
    if name.len() > 64 {
        return None;
    }
    let own_part = |name: &str| name.len().saturating_sub(super::PREFIX.len());
    KEYS.iter()
        .map(|key| (distance(key.name, name), key.name))
        .min()
        .filter(|(distance, known)| *distance * 3 <= own_part(known).max(3))
        .map(|(_, known)| known)
}

/// Edits of one byte between the two (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "abd", 1),
            ("abc", "ab", 1),
            ("", "xyz", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!((distance(a, b), distance(b, a)), (edits, edits), "{a} {b}");
        }
    }
}
