//! Users of an image: from what `--user` or the image's `USER` says to numbers, groups and a home directory.
//!
//! The image's `/etc/passwd` and `/etc/group` are untrusted bytes; lines that are not well formed are skipped, as the C
//! library does. The rules are those of the container engines: passwd(5), group(5), and in a specification a name is
//! tried before a number.

/// The number of ids a guest has. Higher ones do not exist there.
pub const GUEST_IDS: u32 = 65_536;

/// Who a program runs as in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id, below [`GUEST_IDS`].
    pub uid: u32,
    /// Primary group id, below [`GUEST_IDS`].
    pub gid: u32,
    /// Supplementary group ids, ascending, without `gid`; empty if the specification names a group.
    pub groups: Vec<u32>,
    /// From passwd, or `/` if the user has no entry or no absolute path there.
    pub home: String,
}

/// A user specification that means nobody in this image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("user `{0}`: not in the image's /etc/passwd; add it to the image or use a number")]
    UnknownUser(String),
    /// No such group.
    #[error("group `{0}`: not in the image's /etc/group; add it to the image or use a number")]
    UnknownGroup(String),
    /// An id that a guest does not have.
    #[error("{kind} id {id} of `{name}`: a guest has the ids 0 to 65535 only; use a lower one")]
    IdTooHigh {
        /// `user` or `group`.
        kind: &'static str,
        /// Possibly too large for any id type.
        id: String,
        /// As the specification or the image's file names it.
        name: String,
    },
    /// Not of the form `USER[:GROUP]`.
    #[error("user specification `{0}`: expected USER or USER:GROUP, each a name or a number")]
    Malformed(String),
}

/// A line of passwd(5).
struct UserEntry<'a> {
    name: &'a [u8],
    uid: u64,
    gid: u64,
    home: &'a [u8],
}

/// A line of group(5).
struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u64,
    members: &'a [u8],
}

/// Resolves `spec` (`name`, `uid`, `name:group`, `uid:gid`; empty means user 0) with the contents of the image's
/// `/etc/passwd` and `/etc/group`. A missing file is an empty one; the caller bounds their size.
///
/// # Errors
/// When a name is unknown, an id does not exist in a guest, or the specification has another form.
pub fn resolve(spec: &str, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let shown = || crate::environ::display_name(spec);
    let (user, group_name) = match spec.split_once(':') {
        Some((_, group)) if group.contains(':') => return Err(UserError::Malformed(shown())),
        Some((user, group)) => (user, group),
        None => (spec, ""),
    };
    if spec.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(UserError::Malformed(shown()));
    }

    let wanted = if user.is_empty() { "0" } else { user };
    let entry = users(passwd).find(|entry| entry.name == wanted.as_bytes() || entry.uid.to_string() == wanted);
    let (uid, gid, home) = match &entry {
        Some(entry) => (
            in_guest("user", &entry.uid.to_string(), wanted)?,
            // Checked below, only if it is used.
            entry.gid.to_string(),
            home_text(entry.home),
        ),
        None if is_number(wanted) => (in_guest("user", wanted, wanted)?, "0".to_owned(), "/".to_owned()),
        None => return Err(UserError::UnknownUser(crate::environ::display_name(wanted))),
    };

    if !group_name.is_empty() {
        let found = groups(group)
            .find(|entry| entry.name == group_name.as_bytes() || entry.gid.to_string() == group_name)
            .map(|entry| entry.gid.to_string());
        let gid = match found {
            Some(gid) => gid,
            None if is_number(group_name) => group_name.to_owned(),
            None => return Err(UserError::UnknownGroup(crate::environ::display_name(group_name))),
        };
        return Ok(User { uid, gid: in_guest("group", &gid, group_name)?, groups: Vec::new(), home });
    }

    let gid = in_guest("group", &gid, wanted)?;
    let mut supplementary = Vec::new();
    if let Some(user) = &entry {
        for entry in
            groups(group).filter(|entry| entry.members.split(|byte| *byte == b',').any(|member| member == user.name))
        {
            let name = String::from_utf8_lossy(entry.name);
            supplementary.push(in_guest("group", &entry.gid.to_string(), &name)?);
        }
    }
    supplementary.sort_unstable();
    supplementary.dedup();
    supplementary.retain(|id| *id != gid);
    Ok(User { uid, gid, groups: supplementary, home })
}

fn users(passwd: &[u8]) -> impl Iterator<Item = UserEntry<'_>> {
    lines(passwd).filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(UserEntry { name: non_empty(name)?, uid: number(uid)?, gid: number(gid)?, home })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(group).filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let [name, _, gid, members, ..] = fields[..] else { return None };
        Some(GroupEntry { name: non_empty(name)?, gid: number(gid)?, members })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty() && line[0] != b'#')
}

fn non_empty(field: &[u8]) -> Option<&[u8]> {
    (!field.is_empty()).then_some(field)
}

fn number(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    if is_number(text) { text.parse().ok() } else { None }
}

/// Digits only: `parse` alone would take a sign.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn in_guest(kind: &'static str, id: &str, name: &str) -> Result<u32, UserError> {
    id.parse().ok().filter(|id| *id < GUEST_IDS).ok_or_else(|| UserError::IdTooHigh {
        kind,
        id: crate::environ::display_name(id),
        name: crate::environ::display_name(name),
    })
}

fn home_text(home: &[u8]) -> String {
    match std::str::from_utf8(home) {
        Ok(home) if home.starts_with('/') && !home.contains('\0') => home.to_owned(),
        _ => "/".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken line\n\
        app:x:1000:1001:App:/home/app:/bin/sh\n\
        app:x:7:7:second:/never:/bin/sh\n\
        nohome:x:1002:1002:::\n\
        rel:x:1003:1003::home/rel:\n\
        minus:x:-1:0::/m:\n\
        99:x:1004:1004:numeric name:/home/n99:\n\
        high:x:70000:0::/h:\n\
        highgroup:x:5:70000::/h:\n\
        latin:x:1005:1005::/home/\xe9:\n\
        nobody:x:65535:65535::/nonexistent:";
    const GROUP: &[u8] = b"root:x:0:root\nbin:x:1:root,app\napp:x:1001:\nextra:x:50:app,other\nagain:x:50:app\n\
        junk\nprimary:x:1001:app\nhuge:x:99999:nohome\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<User, UserError> {
        Ok(User { uid, gid, groups: groups.to_vec(), home: home.to_owned() })
    }

    #[test]
    fn specifications_resolve_like_container_engines_do() {
        for (spec, expected) in [
            ("", user(0, 0, &[1], "/root")),
            ("root", user(0, 0, &[1], "/root")),
            ("app", user(1000, 1001, &[1, 50], "/home/app")),
            ("1000", user(1000, 1001, &[1, 50], "/home/app")),
            ("app:", user(1000, 1001, &[1, 50], "/home/app")),
            ("app:bin", user(1000, 1, &[], "/home/app")),
            ("1000:50", user(1000, 50, &[], "/home/app")),
            ("app:4242", user(1000, 4242, &[], "/home/app")),
            (":50", user(0, 50, &[], "/root")),
            ("4711", user(4711, 0, &[], "/")),
            ("4711:4712", user(4711, 4712, &[], "/")),
            ("99", user(1004, 1004, &[], "/home/n99")),
            ("rel", user(1003, 1003, &[], "/")),
            ("latin", user(1005, 1005, &[], "/")),
            ("nobody", user(65535, 65535, &[], "/nonexistent")),
            ("highgroup:0", user(5, 0, &[], "/h")),
        ] {
            assert_eq!(resolve(spec, PASSWD, GROUP), expected, "{spec:?}");
        }
    }

    #[test]
    fn without_files_only_numbers_work() {
        assert_eq!(resolve("", b"", b""), user(0, 0, &[], "/"));
        assert_eq!(resolve("1001:1002", b"", b""), user(1001, 1002, &[], "/"));
        assert_eq!(resolve("root", b"", b""), Err(UserError::UnknownUser("root".into())));
    }

    #[test]
    fn refusals_name_what_is_wrong_and_where() {
        for (spec, message) in [
            ("ghost", "user `ghost`: not in the image's /etc/passwd; add it to the image or use a number"),
            ("minus", "user `minus`: not in the image's /etc/passwd; add it to the image or use a number"),
            ("app:ghosts", "group `ghosts`: not in the image's /etc/group; add it to the image or use a number"),
            ("70000", "user id 70000 of `70000`: a guest has the ids 0 to 65535 only; use a lower one"),
            ("high", "user id 70000 of `high`: a guest has the ids 0 to 65535 only; use a lower one"),
            ("highgroup", "group id 70000 of `highgroup`: a guest has the ids 0 to 65535 only; use a lower one"),
            ("nohome", "group id 99999 of `huge`: a guest has the ids 0 to 65535 only; use a lower one"),
            ("0:65536", "group id 65536 of `65536`: a guest has the ids 0 to 65535 only; use a lower one"),
            (
                "99999999999999999999999",
                "user id 99999999999999999999999 of `99999999999999999999999`: a guest has the ids 0 to 65535 only; use a lower one",
            ),
            ("a:b:c", "user specification `a:b:c`: expected USER or USER:GROUP, each a name or a number"),
            ("a\nb", "user specification `a\\nb`: expected USER or USER:GROUP, each a name or a number"),
            ("-1", "user `-1`: not in the image's /etc/passwd; add it to the image or use a number"),
            ("+1", "user `+1`: not in the image's /etc/passwd; add it to the image or use a number"),
        ] {
            assert_eq!(resolve(spec, PASSWD, GROUP).expect_err(spec).to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn untrusted_files_never_panic(
            spec in "[a-z0-9:+-]{0,8}",
            passwd in proptest::collection::vec(any::<u8>(), 0..200),
            lines in "([a-c]{0,2}:x?:[0-9]{0,6}:[0-9a-c,]{0,8}:[a-c/]{0,4}:[a-c/]{0,4}\n){0,8}",
        ) {
            for (passwd, group) in [(&passwd[..], lines.as_bytes()), (lines.as_bytes(), &passwd[..]), (lines.as_bytes(), lines.as_bytes())] {
                if let Ok(user) = resolve(&spec, passwd, group) {
                    prop_assert!(user.uid < GUEST_IDS && user.gid < GUEST_IDS && user.groups.iter().all(|id| *id < GUEST_IDS));
                    prop_assert!(user.home.starts_with('/'));
                }
            }
        }
    }
}
