//! The runner's argument strings and how it takes them apart (protocol sections 6 and 13).

/// A shell as a step names it: program, argument format with `{0}` for the script, and the script's file extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shell {
    /// First word: the program.
    pub program: String,
    /// The rest, before the script's path is put in.
    pub format: String,
    /// Extension of the script file by its program, dot included; empty for a program that is not built in.
    pub extension: &'static str,
}

/// The shell to use where none is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a job container: always `sh -e`.
    Container,
    /// On a host that has bash: `bash -e`.
    HostWithBash,
    /// On a host without bash: `sh -e`.
    HostWithoutBash,
}

/// A `shell:` the runner would not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "shell `{0}` is neither one of bash, sh, pwsh, python nor a format with `{{0}}` in place of the script, for example `perl {{0}}`"
)]
pub struct UnknownShell(String);

/// Works out program, arguments and script extension of a `shell:` value.
///
/// # Errors
/// A word that is not built in and has no `{0}`.
pub fn shell(named: Option<&str>, place: Place) -> Result<Shell, UnknownShell> {
    let known = |program: &str, format: &str, extension| {
        Ok(Shell { program: program.to_owned(), format: format.to_owned(), extension })
    };
    let Some(named) = named else {
        return match place {
            Place::HostWithBash => known("bash", "-e {0}", ".sh"),
            Place::Container | Place::HostWithoutBash => known("sh", "-e {0}", ".sh"),
        };
    };
    match named {
        "bash" => known("bash", "--noprofile --norc -e -o pipefail {0}", ".sh"),
        "sh" => known("sh", "-e {0}", ".sh"),
        "pwsh" => known("pwsh", "-command \". '{0}'\"", ".ps1"),
        "python" => known("python", "{0}", ".py"),
        custom => match custom.split_once(' ') {
            Some((program, format)) if format.contains("{0}") && !program.is_empty() => {
                let extension = match program {
                    "bash" | "sh" => ".sh",
                    "pwsh" => ".ps1",
                    "python" => ".py",
                    _ => "",
                };
                known(program, format, extension)
            }
            _ => Err(UnknownShell(custom.to_owned())),
        },
    }
}

/// Cuts an argument string at every single space and trims each piece. Empty pieces stay for script steps and go for
/// container objects.
#[must_use]
pub fn pieces(arguments: &str, keep_empty: bool) -> Vec<String> {
    arguments.split(' ').map(str::trim).filter(|piece| keep_empty || !piece.is_empty()).map(str::to_owned).collect()
}

/// The argument string of a manifest's `runs.args`: each item in double quotes after a space. Quotes are escaped,
/// backslashes are not.
#[must_use]
pub fn manifest_arguments(items: &[String]) -> String {
    items.iter().map(|item| format!(" \"{}\"", item.replace('"', "\\\""))).collect()
}

/// How the host's process start reads an argument string: words at white space, double quotes group, a backslash only
/// counts before a double quote, single quotes are ordinary. Used for steps outside containers.
#[must_use]
pub fn host_words(arguments: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut open, mut quoted) = (false, false);
    let mut chars = arguments.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let mut slashes = 1;
                while chars.next_if_eq(&'\\').is_some() {
                    slashes += 1;
                }
                open = true;
                if chars.peek() == Some(&'"') {
                    word.push_str(&"\\".repeat(slashes / 2));
                    if slashes % 2 == 1 {
                        chars.next();
                        word.push('"');
                    }
                } else {
                    word.push_str(&"\\".repeat(slashes));
                }
            }
            '"' => {
                open = true;
                quoted = !quoted;
            }
            c if c.is_whitespace() && !quoted => {
                if open {
                    words.push(std::mem::take(&mut word));
                    open = false;
                }
            }
            c => {
                open = true;
                word.push(c);
            }
        }
    }
    if open {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_of_a_job_container() {
        for (named, program, arguments, extension) in [
            (None, "sh", "-e S", ".sh"),
            (Some("bash"), "bash", "--noprofile --norc -e -o pipefail S", ".sh"),
            (Some("sh"), "sh", "-e S", ".sh"),
            (Some("pwsh"), "pwsh", "-command \". 'S'\"", ".ps1"),
            (Some("python"), "python", "S", ".py"),
            (Some("perl -w {0} x"), "perl", "-w S x", ""),
            (Some("bash -eu {0}"), "bash", "-eu S", ".sh"),
        ] {
            let shell = shell(named, Place::Container).unwrap();
            assert_eq!(
                (shell.program.as_str(), shell.format.replace("{0}", "S").as_str(), shell.extension),
                (program, arguments, extension)
            );
        }
        for bad in ["zsh", "perl -w", "", " {0}", "cmd"] {
            assert!(shell(Some(bad), Place::Container).is_err(), "{bad}");
        }
        assert_eq!(shell(None, Place::HostWithBash).unwrap().program, "bash");
    }

    #[test]
    fn rows_of_the_protocol_table() {
        let manifest = |items: &[&str]| {
            pieces(&manifest_arguments(&items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>()), false)
        };
        assert_eq!(manifest(&["-c", "echo \"hi there\"", ""]), ["\"-c\"", "\"echo", "\\\"hi", "there\\\"\"", "\"\""]);
        assert_eq!(manifest(&["Mona the Octocat"]), ["\"Mona", "the", "Octocat\""]);
        assert_eq!(manifest(&["a  b"]), ["\"a", "b\""]);
        assert_eq!(manifest(&["cd /x\n  ls"]), ["\"cd", "/x", "ls\""]);
        assert_eq!(manifest(&["cd /x\nls"]), ["\"cd", "/x\nls\""]);
        assert_eq!(manifest(&["a\\\\b", "a\\"]), ["\"a\\\\b\"", "\"a\\\""]);
        assert_eq!(pieces("--channel #general", false), ["--channel", "#general"]);
        assert_eq!(pieces("-command \". '/__w/_temp/x.ps1'\"", true), ["-command", "\".", "'/__w/_temp/x.ps1'\""]);
        assert_eq!(pieces("-c \"set -eu; . /s\" ", true), ["-c", "\"set", "-eu;", ".", "/s\"", ""]);
    }

    #[test]
    fn host_words_follow_double_quotes_only() {
        assert_eq!(host_words("-command \". '/a b.ps1'\""), ["-command", ". '/a b.ps1'"]);
        assert_eq!(host_words("a \"\" 'b c' \\\"d a\\b"), ["a", "", "'b", "c'", "\"d", "a\\b"]);
    }

    proptest::proptest! {
        #[test]
        fn no_piece_holds_a_space_or_margin(text: String, keep: bool) {
            for piece in pieces(&text, keep) {
                proptest::prop_assert!(!piece.contains(' ') && piece.trim() == piece);
            }
        }
    }
}
