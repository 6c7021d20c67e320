//! The grammar of systemd's EnvironmentFile= files.
//!
//! systemd.exec(5) describes it and systemd's own reader fills the gaps; where this file's tests say "as systemd does",
//! they were compared with that reader. Versions before 254 let a comment that ends in a backslash swallow the next
//! line; we follow the newer rule, in which a comment ends with its line.
//!
//! systemd drops lines that it cannot use with a note in the journal. Here they are errors: a configuration of which
//! half is ignored is worse than one that is refused.

use std::fmt;

/// One `KEY=VALUE`. `Debug` does not show the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Where it begins, counted from 1.
    pub line: usize,
    /// Letters, digits and `_`, not beginning with a digit.
    pub key: String,
    /// Without quotes and escapes.
    pub value: String,
}

impl fmt::Debug for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=… in line {}", self.key, self.line)
    }
}

/// Parses a whole file.
///
/// * `#` and `;` begin a comment at the start of a line only.
/// * White space around key and value goes, also the carriage return of a foreign line end.
/// * Quotes count at the start of a value, and after a closing quote; in `a"b"` they are ordinary characters.
/// * In single quotes everything is literal. In double quotes a backslash escapes `"`, `\`, `` ` `` and `$` and is
///   ordinary before anything else. Outside quotes it makes the next character literal.
/// * A backslash at the end of a line continues the value in the next line, except in single quotes; a line break
///   inside quotes is part of the value.
/// * Nothing is expanded.
///
/// # Errors
/// The line and what is wrong there.
pub fn parse(contents: &[u8]) -> Result<Vec<Assignment>, (usize, &'static str)> {
    let line_of = |offset: usize| 1 + count_lines(&contents[..offset]);
    let text = std::str::from_utf8(contents).map_err(|error| (line_of(error.valid_up_to()), "not valid UTF-8"))?;
    if let Some(offset) = text.find('\0') {
        return Err((line_of(offset), "contains a NUL character"));
    }
    if text.starts_with('\u{feff}') {
        return Err((1, "begins with a byte order mark; save the file without it"));
    }
    let mut scanner = Scanner { rest: text, line: 1 };
    let mut assignments = Vec::new();
    loop {
        scanner.skip_blank();
        if scanner.rest.is_empty() {
            return Ok(assignments);
        }
        let line = scanner.line;
        if scanner.rest.starts_with(['#', ';']) {
            scanner.take_until(is_line_end);
            continue;
        }
        let key = scanner.take_until(|c| c == '=' || is_line_end(c)).trim_end_matches(is_blank);
        if scanner.next() != Some('=') {
            return Err((line, "no `=`; expected KEY=VALUE, or `#` before a comment"));
        }
        check_key(key).map_err(|problem| (line, problem))?;
        let value = scanner.value()?;
        assignments.push(Assignment { line, key: key.to_owned(), value });
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// The characters that systemd's reader treats as white space and line ends.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

fn check_key(key: &str) -> Result<(), &'static str> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if key.strip_prefix("export").is_some_and(|rest| rest.starts_with([' ', '\t'])) {
        return Err("`export` has no meaning here; write KEY=VALUE alone");
    }
    if key.is_empty() || key.starts_with(|c: char| c.is_ascii_digit()) || !key.bytes().all(word) {
        return Err("bad key; a key is letters, digits and `_`, not beginning with a digit");
    }
    Ok(())
}

struct Scanner<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Scanner<'a> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn skip_blank(&mut self) {
        let skipped = self.rest.len() - self.rest.trim_start_matches(is_blank).len();
        self.line += count_lines(&self.rest.as_bytes()[..skipped]);
        self.rest = &self.rest[skipped..];
    }

    /// Text before the first character that satisfies `end`, which must do so for line ends.
    fn take_until(&mut self, end: impl Fn(char) -> bool) -> &'a str {
        let (taken, rest) = self.rest.split_at(self.rest.find(end).unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// From behind the `=` to the end of the value's last line.
    fn value(&mut self) -> Result<String, (usize, &'static str)> {
        let mut value = String::new();
        loop {
            // Between `=` or a closing quote and what follows.
            self.rest = self.rest.trim_start_matches([' ', '\t']);
            let line = self.line;
            match self.next() {
                None | Some('\n' | '\r') => return Ok(value),
                Some('\'') => {
                    let Some((quoted, rest)) = self.rest.split_once('\'') else {
                        return Err((line, "the single quote is not closed"));
                    };
                    self.line += count_lines(quoted.as_bytes());
                    value.push_str(quoted);
                    self.rest = rest;
                }
                Some('"') => self.double_quoted(&mut value).ok_or((line, "the double quote is not closed"))?,
                Some(first) => {
                    self.unquoted(first, &mut value);
                    return Ok(value);
                }
            }
        }
    }

    fn double_quoted(&mut self, value: &mut String) -> Option<()> {
        loop {
            match self.next()? {
                '"' => return Some(()),
                '\\' => match self.next()? {
                    '\n' => {}
                    escaped @ ('"' | '\\' | '`' | '$') => value.push(escaped),
                    other => value.extend(['\\', other]),
                },
                other => value.push(other),
            }
        }
    }

    /// From its first character to the end of the line; quotes are ordinary from here on.
    fn unquoted(&mut self, first: char, value: &mut String) {
        // White space after this length is trailing, unless something follows.
        let mut keep = value.len();
        let mut next = Some(first);
        while let Some(c) = next.filter(|c| !is_line_end(*c)) {
            if c == '\\' {
                match self.next() {
                    None | Some('\n' | '\r') => {}
                    Some(escaped) => value.push(escaped),
                }
                keep = value.len();
            } else {
                value.push(c);
                if !is_blank(c) {
                    keep = value.len();
                }
            }
            next = self.next();
        }
        value.truncate(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> String {
        let assignments = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error:?}"));
        assert_eq!(assignments.len(), 1, "{text:?}: {assignments:?}");
        assignments.into_iter().next().expect("one, as asserted").value
    }

    #[test]
    fn values_as_systemd_reads_them() {
        for (text, expected) in [
            ("A=", ""),
            ("A=x", "x"),
            ("  A = x y \t\r\n", "x y"),
            ("A=x#y ;z", "x#y ;z"),
            ("A='x y' ", "x y"),
            ("A=' x ' ' y '", " x  y "),
            ("A='x'y", "xy"),
            ("A='x' y ", "xy"),
            ("A=\"x\"'y'", "xy"),
            ("A=x\"y\"", "x\"y\""),
            ("A=x 'y'", "x 'y'"),
            ("A='a\\b\"c'", "a\\b\"c"),
            ("A=\"a\\\"b\\\\c\\$d\\`e\\nf\"", "a\"b\\c$d`e\\nf"),
            ("A=\"two\nlines\"", "two\nlines"),
            ("A='two\nlines'", "two\nlines"),
            ("A=\"con\\\ntinued\"", "continued"),
            ("A='con\\\ntinued'", "con\\\ntinued"),
            ("A=con\\\ntinued", "continued"),
            ("A=con\\\r\n", "con"),
            ("A=con\\\n  tinued", "con  tinued"),
            ("A=a\\ b\\\\c\\'d\\n", "a b\\c'dn"),
            ("A=end\\ ", "end "),
            ("A=end\\  ", "end "),
            ("A=x \\\n ", "x "),
            ("A=\\\"x", "\"x"),
            ("A=x\\", "x"),
            ("A=$HOME ${B} `id`", "$HOME ${B} `id`"),
            ("A=b=c", "b=c"),
            ("A=é ✓", "é ✓"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
    }

    #[test]
    fn files_with_comments_blank_lines_and_places() {
        let text = "# c1 \\\n; c2\n\n  # indented\nA=1\r\nB=\"x\ny\"\n\n_c9=3 \\\n4\nA=5";
        let found: Vec<_> = parse(text.as_bytes()).unwrap().into_iter().map(|a| (a.line, a.key, a.value)).collect();
        let expected = [(5, "A", "1"), (6, "B", "x\ny"), (9, "_c9", "3 4"), (11, "A", "5")];
        assert_eq!(found, expected.map(|(line, key, value)| (line, key.to_owned(), value.to_owned())));
        assert_eq!(parse(b""), Ok(vec![]));
        assert_eq!(parse(b" \n\t# only a comment"), Ok(vec![]));
    }

    #[test]
    fn errors_have_the_line_where_they_begin() {
        for (text, line, part) in [
            (&b"A=1\nno assignment\nB=2"[..], 2, "no `=`"),
            (b"A=1\n\n-----", 3, "no `=`"),
            (b"export A=1", 1, "`export`"),
            (b"A B=1", 1, "bad key"),
            (b"1A=1", 1, "bad key"),
            (b"=1", 1, "bad key"),
            (b"A.B=1", 1, "bad key"),
            ("É=1".as_bytes(), 1, "bad key"),
            (b"A=1\nB='x\n\n", 2, "single quote"),
            (b"A=\"x\ny\" 'z\n", 2, "single quote"),
            (b"\nA=\"x\\\"\n", 2, "double quote"),
            (b"A=\"x\\", 1, "double quote"),
            (b"A=1\nB=\xff", 2, "UTF-8"),
            (b"A=1\nB=a\0b", 2, "NUL"),
            (b"\xef\xbb\xbfA=1", 1, "byte order mark"),
        ] {
            let (at, problem) = parse(text).expect_err("must be refused");
            assert!(at == line && problem.contains(part), "{:?}: line {at}: {problem}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_text_is_handled(text in "[A-C=#;'\"\\\\ \t\r\n$x]{0,60}") {
            if let Ok(assignments) = parse(text.as_bytes()) {
                let lines = text.split('\n').count();
                prop_assert!(assignments.iter().all(|assignment| assignment.line <= lines));
            }
        }

        #[test]
        fn quoted_values_come_back(value in "[ -~\n\té]{0,40}") {
            let double = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$").replace('`', "\\`");
            let single = value.replace('\'', "'\"'\"'");
            let expected = vec![("A".to_owned(), value.clone()), ("B".to_owned(), value)];
            let found: Vec<_> = parse(format!("A=\"{double}\"\nB='{single}' \n").as_bytes())
                .map_err(|error| TestCaseError::fail(format!("{error:?}")))?
                .into_iter().map(|assignment| (assignment.key, assignment.value)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
