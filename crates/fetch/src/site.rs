//! Whether two hosts belong to the same site, as far as credentials are concerned.

use std::net::IpAddr;

/// Second-level labels under which countries register names, so that `a.co.uk` and `b.co.uk` are strangers.
const PUBLIC: [&str; 18] = [
    "ac", "co", "com", "edu", "gob", "gouv", "gov", "govt", "go", "ltd", "mil", "ne", "net", "nom", "or", "org", "plc",
    "sch",
];

/// Whether credentials for `registry` may be sent to a token service on `realm`: the same host, or the same registrable
/// domain. That is the last two labels, or three when the last is a country and the one before it public (`co.uk`).
///
/// A simple rule instead of the public suffix list: where it joins strangers (two customers of one hosting domain), the
/// registry that names the realm could have had the credentials itself.
pub(crate) fn same_site(registry: &str, realm: &str) -> bool {
    let (registry, realm) = (normal(registry), normal(realm));
    if registry == realm {
        return true;
    }
    if is_address(&registry) || is_address(&realm) {
        return false;
    }
    match (registrable(&registry), registrable(&realm)) {
        (Some(registry), Some(realm)) => registry == realm,
        _ => false,
    }
}

fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

fn is_address(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

fn registrable(host: &str) -> Option<&str> {
    let labels: Vec<&str> = host.rsplit('.').collect();
    let country = labels.first().is_some_and(|label| label.len() == 2);
    let wanted = if country && labels.get(1).is_some_and(|label| PUBLIC.contains(label)) { 3 } else { 2 };
    if labels.len() < wanted || labels.iter().any(|label| label.is_empty()) {
        return None;
    }
    let length = labels[..wanted].iter().map(|label| label.len() + 1).sum::<usize>() - 1;
    Some(&host[host.len() - length..])
}

#[cfg(test)]
mod tests {
    use super::same_site;

    #[test]
    fn sites_are_told_apart() {
        for (registry, realm, same) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("ghcr.io", "ghcr.io", true),
            ("GHCR.io", "ghcr.io.", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("registry.example.co.uk", "auth.example.co.uk", true),
            ("a.co.uk", "b.co.uk", false),
            ("co.uk", "b.co.uk", false),
            ("docker.io", "docker.io.evil.example", false),
            ("evildocker.io", "docker.io", false),
            ("localhost", "localhost", true),
            ("registry", "auth", false),
            ("registry.lan", "auth.lan", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "11.0.0.1", false),
            ("[2001:db8::1]", "[2001:db8::2]", false),
            ("127.0.0.1", "localhost", false),
            ("a..io", "b..io", false),
        ] {
            assert_eq!(same_site(registry, realm), same, "{registry} {realm}");
            assert_eq!(same_site(realm, registry), same, "{realm} {registry}");
        }
    }
}
