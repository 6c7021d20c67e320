//! Recovery of the arguments that the official runner cut at spaces (protocol text, section 13).
//!
//! The runner renders one argument string and then splits it at every space, quotes or not. Joining the pieces again
//! and splitting by the shell's word rules restores most of what the workflow's author wrote; runs of white space and
//! line breaks next to a space are lost before the hook sees them.

/// A quote was opened and never closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {0} quote is not closed")]
pub struct UnterminatedQuote(&'static str);

/// The outcome of [`recover`].
#[derive(Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The arguments, empty ones included.
    pub words: Vec<String>,
    /// Set when the pieces had to be used as they came. One line, without the arguments: they may hold secrets.
    pub warning: Option<String>,
}

/// Splits `text` into words as a POSIX shell does, and does nothing else a shell does.
///
/// Words are separated by spaces, tabs and line feeds. Single quotes are literal. In double quotes only `\"` and `\\`
/// are escapes; a backslash before anything else stays. Outside quotes a backslash takes the next character literally;
/// before a line feed both vanish (a continued line), and at the very end it stands for itself. There is no expansion,
/// no globbing and, unlike in many splitters, no comment: `#general` is a word.
///
/// # Errors
/// When a quote is not closed.
pub fn split(text: &str) -> Result<Vec<String>, UnterminatedQuote> {
    let mut words = Vec::new();
    // `None` between words; `""` is a word, so emptiness of the text cannot tell.
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => single_quoted(&mut chars, word.get_or_insert_default())?,
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => match chars.next() {
                Some('\n') => {}
                escaped => word.get_or_insert_default().push(escaped.unwrap_or('\\')),
            },
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn single_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), UnterminatedQuote> {
    let (quoted, rest) = chars.as_str().split_once('\'').ok_or(UnterminatedQuote("single"))?;
    word.push_str(quoted);
    *chars = rest.chars();
    Ok(())
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), UnterminatedQuote> {
    const OPEN: UnterminatedQuote = UnterminatedQuote("double");
    loop {
        match chars.next().ok_or(OPEN)? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(OPEN)? {
                escaped @ ('"' | '\\') => word.push(escaped),
                other => word.extend(['\\', other]),
            },
            other => word.push(other),
        }
    }
}

/// Restores arguments from the pieces in `elements`: joins them with one space each and [`split`]s the result.
///
/// When a quote is not closed, the non-empty pieces are the arguments and a warning says so.
#[must_use]
pub fn recover(elements: &[String]) -> Recovered {
    match split(&elements.join(" ")) {
        Ok(words) => Recovered { words, warning: None },
        Err(error) => Recovered {
            words: elements.iter().filter(|element| !element.is_empty()).cloned().collect(),
            warning: Some(format!(
                "{error} in the arguments; they are passed on as they were received, cut at every space. \
                 Close the quote, or write \\\" for a literal one"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recovered(elements: &[&str]) -> Vec<String> {
        let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
        let recovered = recover(&elements);
        assert_eq!(recovered.warning, None, "{elements:?}");
        recovered.words
    }

    /// The table of the protocol text, row by row.
    #[test]
    fn the_table_of_section_13() {
        let table: &[(&[&str], &[&str])] = &[
            (&["\"-c\"", "\"echo", "\\\"hi", "there\\\"\"", "\"\""], &["-c", "echo \"hi there\"", ""]),
            (&["\"Mona", "the", "Octocat\""], &["Mona the Octocat"]),
            (&["-command", "\".", "'/__w/_temp/x.ps1'\""], &["-command", ". '/__w/_temp/x.ps1'"]),
            (&["\"a", "b\""], &["a b"]),
            (&["\"cd", "/x", "ls\""], &["cd /x ls"]),
            (&["\"cd", "/x\nls\""], &["cd /x\nls"]),
            (&["\"a\\\\b\""], &["a\\b"]),
            (&["--channel", "#general"], &["--channel", "#general"]),
        ];
        for (elements, expected) in table {
            assert_eq!(recovered(elements), *expected, "{elements:?}");
        }
    }

    #[test]
    fn an_open_quote_keeps_the_raw_pieces_and_warns_without_them() {
        for (elements, expected) in [
            (vec!["\"a\\\""], vec!["\"a\\\""]),
            (vec!["--token=hunter2", "", "'oops"], vec!["--token=hunter2", "'oops"]),
            (vec!["x\""], vec!["x\""]),
            (vec!["\"ends with a backslash\\"], vec!["\"ends with a backslash\\"]),
        ] {
            let elements: Vec<String> = elements.into_iter().map(String::from).collect();
            let Recovered { words, warning } = recover(&elements);
            assert_eq!(words, expected);
            let warning = warning.expect("an open quote warns");
            assert!(!warning.contains("hunter2") && !warning.contains('\n'), "{warning}");
        }
    }

    #[test]
    fn word_rules() {
        for (text, expected) in [
            ("", vec![]),
            (" \t\n ", vec![]),
            ("a  b\tc\nd", vec!["a", "b", "c", "d"]),
            ("'' \"\" x''", vec!["", "", "x"]),
            ("'a \"b\" \\n'", vec!["a \"b\" \\n"]),
            ("\"$HOME `id` \\$x \\` \\n\"", vec!["$HOME `id` \\$x \\` \\n"]),
            ("a\\ b \\'x \\\\", vec!["a b", "'x", "\\"]),
            ("end\\", vec!["end\\"]),
            ("--one \\\n--two", vec!["--one", "--two"]),
            ("\"a\\\nb\"", vec!["a\\\nb"]),
            ("a'b c'\"d e\"f", vec!["ab cd ef"]),
            ("# not a comment", vec!["#", "not", "a", "comment"]),
            ("a;b && c | d > e *", vec!["a;b", "&&", "c", "|", "d", ">", "e", "*"]),
            ("a\u{a0}b c\rd", vec!["a\u{a0}b", "c\rd"]),
            ("'if [[ -z $X ]]; then exit 1; fi'", vec!["if [[ -z $X ]]; then exit 1; fi"]),
        ] {
            assert_eq!(
                split(text).as_deref(),
                Ok(&expected.into_iter().map(String::from).collect::<Vec<_>>()[..]),
                "{text:?}"
            );
        }
    }

    /// What the runner does to a manifest's `runs.args`: wrap each item, join, cut at spaces, trim, drop empty pieces.
    fn as_the_runner_sends(args: &[String]) -> Vec<String> {
        let text: String = args.iter().map(|arg| format!(" \"{}\"", arg.replace('"', "\\\""))).collect();
        text.split(' ').map(str::trim).filter(|piece| !piece.is_empty()).map(String::from).collect()
    }

    proptest! {
        #[test]
        fn any_text_is_split_without_panic(text in "\\PC*|[ '\"\\\\\n\ta#$]*") {
            let words = split(&text);
            let total: usize = words.iter().flatten().map(String::len).sum();
            prop_assert!(total <= text.len());
        }

        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec("[ -~\n\té]*", 0..8)) {
            let single: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
            prop_assert_eq!(split(&single.join(" ")), Ok(words.clone()));
            let double: Vec<String> =
                words.iter().map(|word| format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))).collect();
            prop_assert_eq!(split(&double.join("\t")), Ok(words));
        }

        #[test]
        fn manifest_arguments_survive_the_runner(
            args in proptest::collection::vec("([!-\\[\\]-~]{1,6}( [!-\\[\\]-~]{1,6}){0,3})?", 0..6)
        ) {
            // Single spaces and no backslashes: what the encoding can carry.
            let recovered = recover(&as_the_runner_sends(&args));
            prop_assert_eq!(recovered.warning, None);
            prop_assert_eq!(recovered.words, args);
        }

        #[test]
        fn plain_elements_are_untouched(elements in proptest::collection::vec("[!#-&(-\\[\\]-~]{1,10}", 0..10)) {
            prop_assert_eq!(recover(&elements).words, elements);
        }
    }
}
