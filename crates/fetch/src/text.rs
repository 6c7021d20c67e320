//! Text of registries in lines of ours.

use std::error::Error;

use serde::Deserialize;

/// Characters of a registry's text that are shown.
const SHOWN: usize = 200;

/// Text of somebody else on one line: what cannot be printed is escaped, what is long is cut.
pub(crate) fn neutral(text: &str) -> String {
    let mut shown = String::new();
    let mut characters = text.trim().chars();
    for character in characters.by_ref().take(SHOWN) {
        match character {
            // Escaping would double them; they are harmless.
            '"' | '\'' | '\\' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// The innermost cause of an error, which is the one that says what happened.
pub(crate) fn cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    neutral(&innermost.to_string())
}

/// What an error body of the distribution protocol says: `CODE: message` of its first error; empty for any other body.
pub(crate) fn registry_reason(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Reason>,
    }
    #[derive(Deserialize)]
    struct Reason {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(body) = serde_json::from_slice::<Body>(body) else { return String::new() };
    match body.errors.first() {
        None => String::new(),
        Some(reason) if reason.message.is_empty() => neutral(&reason.code),
        Some(reason) if reason.code.is_empty() => neutral(&reason.message),
        Some(reason) => neutral(&format!("{}: {}", reason.code, reason.message)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_of_others_stays_on_one_line() {
        for (text, shown) in [
            ("plain \"quoted\" 'text'", "plain \"quoted\" 'text'"),
            ("a\nb\r\x1b[31m\u{202e}\0", "a\\nb\\r\\u{1b}[31m\\u{202e}\\0"),
            ("  ä €  ", "ä €"),
        ] {
            assert_eq!(neutral(text), shown);
        }
        let long = neutral(&"x".repeat(500));
        assert_eq!(long.chars().count(), 201);
        assert!(long.ends_with("x…"), "{long}");
    }

    #[test]
    fn the_registrys_reason_is_its_first_error() {
        for (body, reason) in [
            (r#"{"errors":[{"code":"DENIED","message":"no\n"},{"code":"X"}]}"#, "DENIED: no"),
            (r#"{"errors":[{"code":"TOOMANYREQUESTS","detail":{"a":[1]}}]}"#, "TOOMANYREQUESTS"),
            (r#"{"errors":[{"message":"only this"}]}"#, "only this"),
            (r#"{"errors":[]}"#, ""),
            (r#"{"message":"Not Found"}"#, ""),
            ("<html>", ""),
        ] {
            assert_eq!(registry_reason(body.as_bytes()), reason, "{body}");
        }
    }

    proptest! {
        #[test]
        fn nothing_unprintable_is_left(text in any::<String>()) {
            let shown = neutral(&text);
            prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
    }
}
