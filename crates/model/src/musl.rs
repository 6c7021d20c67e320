//! The answer to `isAlpine`: does the image need the node build that is linked with musl?
//!
//! Protocol text, section 14. The question is about the C library, not the distribution, so the dynamic loaders found
//! in the image decide first and its release files only when those do not.

/// What was seen in the image's root, without running anything in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibcFacts {
    /// A file matches `/lib/ld-musl-*`.
    pub has_musl_loader: bool,
    /// A file matches `/lib/ld-linux*`, `/lib64/ld-linux*` or another place of the GNU loader.
    pub has_glibc_loader: bool,
    /// The contents of the files `/etc/*release*`, in any order. Untrusted bytes.
    pub os_release_texts: Vec<Vec<u8>>,
}

impl LibcFacts {
    /// Whether JavaScript actions need the musl build of node in this image.
    ///
    /// One loader alone decides. With both or none, the published hooks' rule does: a line that starts with
    /// `ID=alpine` in any letter case; quotes around the value, which that rule misses, are accepted too.
    #[must_use]
    pub fn is_alpine(&self) -> bool {
        match (self.has_musl_loader, self.has_glibc_loader) {
            (true, false) => true,
            (false, true) => false,
            _ => self.os_release_texts.iter().any(|text| names_alpine(text)),
        }
    }
}

fn names_alpine(text: &[u8]) -> bool {
    text.split(|byte| matches!(byte, b'\n' | b'\r')).any(|line| {
        let Some((key, value)) = line.split_at_checked(3) else { return false };
        let value = value.strip_prefix(b"\"").or_else(|| value.strip_prefix(b"'")).unwrap_or(value);
        key.eq_ignore_ascii_case(b"ID=") && value.get(..6).is_some_and(|id| id.eq_ignore_ascii_case(b"alpine"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(musl: bool, glibc: bool, release: &[&str]) -> LibcFacts {
        LibcFacts {
            has_musl_loader: musl,
            has_glibc_loader: glibc,
            os_release_texts: release.iter().map(|text| text.as_bytes().to_vec()).collect(),
        }
    }

    #[test]
    fn a_single_loader_decides_against_any_release_file() {
        assert!(facts(true, false, &["ID=debian\n"]).is_alpine());
        assert!(facts(true, false, &[]).is_alpine(), "derivatives of Alpine have their own names");
        assert!(!facts(false, true, &["ID=alpine\n"]).is_alpine());
    }

    #[test]
    fn release_files_break_the_tie() {
        for (text, expected) in [
            ("NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.22\n", true),
            ("ID=\"alpine\"\n", true),
            ("ID='alpine'\n", true),
            ("id=ALPINE\r\n", true),
            ("ID=alpine-derived\n", true),
            ("ID_LIKE=alpine\n", false),
            (" ID=alpine\n", false),
            ("ID=debian\nID_LIKE=\"alpine\"\n", false),
            ("ID=alpin", false),
            ("ID", false),
            ("", false),
        ] {
            for both in [true, false] {
                assert_eq!(facts(both, both, &[text]).is_alpine(), expected, "{text:?}, both loaders: {both}");
            }
        }
        assert!(facts(false, false, &["3.22.0\n", "ID=alpine"]).is_alpine(), "every file counts");
        assert!(!facts(true, true, &[]).is_alpine());
    }

    #[test]
    fn arbitrary_bytes_are_not_alpine() {
        let facts = LibcFacts {
            os_release_texts: vec![vec![0xff, 0, b'\n', b'I'], vec![b'I', b'D']],
            ..facts(false, false, &[])
        };
        assert!(!facts.is_alpine());
    }
}
