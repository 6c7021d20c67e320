//! Lines for the step log: workflow commands of our own, and other people's text made harmless.
//!
//! The official runner scans every line the hook prints for `::command …::` at the start and for the older
//! `##[command …]` anywhere (protocol text, 15.3). Functions that return one line return it without a line feed.

/// An error annotation: the cause of our own failure, printed last before exiting with [`crate::exit::OWN_FAILURE`].
#[must_use]
pub fn error(text: &str) -> String {
    command("error", text)
}

/// A warning annotation.
#[must_use]
pub fn warning(text: &str) -> String {
    command("warning", text)
}

/// A line that the runner shows only when step debug logging is on.
#[must_use]
pub fn debug(text: &str) -> String {
    command("debug", text)
}

/// Opens a folded group of lines with `title`. Groups do not nest.
#[must_use]
pub fn group(title: &str) -> String {
    command("group", title)
}

/// Closes the group opened last.
#[must_use]
pub fn endgroup() -> String {
    command("endgroup", "")
}

fn command(name: &str, text: &str) -> String {
    let text = strip(text);
    let mut line = String::with_capacity(name.len() + text.len() + 4);
    line.extend(["::", name, "::"]);
    for c in text.trim_matches(['\n', '\r', ' ']).chars() {
        match c {
            '%' => line.push_str("%25"),
            '\r' => line.push_str("%0D"),
            '\n' => line.push_str("%0A"),
            other => line.push(other),
        }
    }
    line
}

/// Makes untrusted text safe to print as ordinary log lines: no workflow command, no terminal control.
///
/// A leading `::` of a line becomes `: :` and every `##[` becomes `# #[`. Line breaks stay (`\r` alone also ends a line
/// for the runner, so it becomes a line feed); every other control character, escape sequence, invisible or
/// direction-changing character goes.
#[must_use]
pub fn neutralise(text: &str) -> String {
    let text = strip(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut safe = String::with_capacity(text.len());
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            safe.push('\n');
        }
        // The runner trims more than spaces, so everything that is not visible ASCII counts as "before the start".
        let start = line.find(|c: char| c.is_ascii_graphic()).unwrap_or(line.len());
        let (indent, rest) = line.split_at(start);
        safe.push_str(&indent.replace("##[", "# #["));
        match rest.strip_prefix("::") {
            Some(after) => {
                safe.push_str(": :");
                safe.push_str(&after.replace("##[", "# #["));
            }
            None => safe.push_str(&rest.replace("##[", "# #[")),
        }
    }
    safe
}

/// Removes escape sequences, control characters other than line breaks, and invisible formatting characters; a tab
/// becomes a space.
fn strip(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.peek() {
                Some('[') => {
                    chars.next();
                    skip_control_sequence(&mut chars);
                }
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    chars.next();
                    skip_string_sequence(&mut chars);
                }
                // Two-character sequences; a line break is never part of one.
                Some('\u{20}'..='\u{7e}') => {
                    chars.next();
                }
                _ => {}
            },
            '\u{9b}' => skip_control_sequence(&mut chars),
            '\n' | '\r' => kept.push(c),
            '\t' => kept.push(' '),
            c if c.is_control() || is_invisible(c) => {}
            other => kept.push(other),
        }
    }
    kept
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// `CSI parameters… final`; anything outside that grammar ends it unconsumed, so that no visible text is swallowed.
fn skip_control_sequence(chars: &mut Chars<'_>) {
    while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
    chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
}

/// OSC, DCS and the like, up to BEL or ST, but never past the end of the line.
fn skip_string_sequence(chars: &mut Chars<'_>) {
    while let Some(c) = chars.next_if(|c| !matches!(c, '\n' | '\r')) {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

/// Characters that a comparison by language rules may skip (and so hide a command from our scan) or that reorder text.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_one_escaped_line() {
        for (line, expected) in [
            (error("no image"), "::error::no image"),
            (error("50% of\r\ntwo lines\n"), "::error::50%25 of%0D%0Atwo lines"),
            (warning("a::b ::error::c"), "::warning::a::b ::error::c"),
            (debug("\u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7}bell\u{7}\u{0}"), "::debug::red bell"),
            (group("pulling node:22"), "::group::pulling node:22"),
            (endgroup(), "::endgroup::"),
            (error("tab\there\u{202e}\u{200b}"), "::error::tab here"),
            (error("%0A"), "::error::%250A"),
        ] {
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn untrusted_text_cannot_speak_to_the_runner() {
        for (text, expected) in [
            ("::add-mask::x", ": :add-mask::x"),
            ("  ::error::x", "  : :error::x"),
            ("\u{a0}\u{feff}::error::x", "\u{a0}: :error::x"),
            (":\u{200b}:error::x", ": :error::x"),
            ("\u{1b}[1m::error::x", ": :error::x"),
            ("ok\r::error::x\r\n::set-env::y", "ok\n: :error::x\n: :set-env::y"),
            ("std::vec stays", "std::vec stays"),
            ("é ::error::after a letter", "é : :error::after a letter"),
            ("see ##[error]x ###[group]", "see # #[error]x ## #[group]"),
            ("#\u{1b}[0m#[error]x", "# #[error]x"),
            ("::", ": :"),
            (":::x", ": ::x"),
            ("", ""),
            ("a\n", "a\n"),
        ] {
            assert_eq!(neutralise(text), expected, "{text:?}");
        }
    }

    #[test]
    fn escape_sequences_do_not_swallow_the_next_line() {
        assert_eq!(neutralise("\u{1b}]0;never closed\nnext"), "\nnext");
        assert_eq!(neutralise("\u{1b}[12\nnext\u{1b}"), "\nnext");
        assert_eq!(neutralise("\u{1b}\nnext"), "\nnext");
    }

    proptest! {
        #[test]
        fn nothing_neutralised_forms_a_command(text in "[:# \\[\\]\r\n\u{1b}\u{200b}a-c]{0,40}|\\PC{0,40}") {
            let safe = neutralise(&text);
            prop_assert!(!safe.contains("##["), "{:?}", safe);
            prop_assert!(!safe.contains(['\r', '\u{1b}']), "{:?}", safe);
            for line in safe.lines() {
                prop_assert!(!line.trim_start().starts_with("::"), "{:?}", safe);
            }
            prop_assert_eq!(neutralise(&safe), safe.clone());
        }

        #[test]
        fn commands_never_break_the_line(text in "\\PC{0,40}|[\0-\u{9f}]{0,40}") {
            let line = error(&text);
            prop_assert!(line.starts_with("::error::"));
            prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
        }
    }
}
