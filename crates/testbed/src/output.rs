//! From the bytes of a stream to lines, as the runner reads its children (protocol section 2.2).

/// Cuts one stream into lines: `\n`, `\r\n` and a bare `\r` end one.
///
/// As with the runner's reader, a line that ends in `\r` is only known to have ended when the next byte, or the end of
/// the stream, shows whether a `\n` follows.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
    after_return: bool,
    begun: bool,
}

impl Lines {
    /// Takes bytes and hands every finished line to `line`, without its ending, bad UTF-8 replaced.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&str)) {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_return) {
                self.finish_line(&mut line);
                if bytes[0] == b'\n' {
                    bytes = &bytes[1..];
                    continue;
                }
            }
            match bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                None => {
                    self.pending.extend_from_slice(bytes);
                    return;
                }
                Some(end) => {
                    self.pending.extend_from_slice(&bytes[..end]);
                    if bytes[end] == b'\r' {
                        self.after_return = true;
                    } else {
                        self.finish_line(&mut line);
                    }
                    bytes = &bytes[end + 1..];
                }
            }
        }
    }

    /// The end of the stream: an unfinished line is a line.
    pub fn end(&mut self, mut line: impl FnMut(&str)) {
        if std::mem::take(&mut self.after_return) || !self.pending.is_empty() {
            self.finish_line(&mut line);
        }
    }

    fn finish_line(&mut self, line: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.pending);
        let text = if self.begun { &*text } else { text.strip_prefix('\u{feff}').unwrap_or(&text) };
        self.begun = true;
        line(text);
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut reader = Lines::default();
        let mut found = Vec::new();
        for chunk in chunks {
            reader.feed(chunk, |line| found.push(line.to_owned()));
        }
        reader.end(|line| found.push(line.to_owned()));
        found
    }

    #[test]
    fn every_ending_ends_a_line() {
        for (chunks, expected) in [
            (vec![&b"a\nb\r\nc\rd"[..]], vec!["a", "b", "c", "d"]),
            (vec![b"a\r", b"\nb\n"], vec!["a", "b"]),
            (vec![b"a\r", b"b"], vec!["a", "b"]),
            (vec![b"\r\r\n\n"], vec!["", "", ""]),
            (vec![b"a\r"], vec!["a"]),
            (vec![b""], vec![]),
            (vec![b"\xc3", b"\xa9\n\xff\n"], vec!["é", "\u{fffd}"]),
            (vec![b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"], vec!["a", "\u{feff}b"]),
        ] {
            assert_eq!(lines(&chunks), expected, "{chunks:?}");
        }
    }

    #[test]
    fn a_return_waits_for_what_follows() {
        let mut reader = Lines::default();
        let mut found = 0;
        reader.feed(b"50%\r", |_| found += 1);
        assert_eq!(found, 0);
        reader.feed(b"5", |_| found += 1);
        assert_eq!(found, 1);
    }

    proptest::proptest! {
        #[test]
        fn chunking_does_not_matter(text in "[ab\r\n]{0,40}", at in 0usize..40) {
            let bytes = text.as_bytes();
            let at = at.min(bytes.len());
            proptest::prop_assert_eq!(lines(&[bytes]), lines(&[&bytes[..at], &bytes[at..]]));
        }
    }
}
