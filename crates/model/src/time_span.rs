//! Time spans as an administrator writes them: a subset of systemd.time(7), "Parsing Time Spans".

use std::time::Duration;

/// Units with all their names, and their seconds. Months and years have no fixed length and are left out; so is `M`,
/// which differs from `m` by a factor of 43,800.
const UNITS: &[(&[&str], u64)] = &[
    (&["s", "sec", "second", "seconds"], 1),
    (&["m", "min", "minute", "minutes"], 60),
    (&["h", "hr", "hour", "hours"], 3_600),
    (&["d", "day", "days"], 86_400),
    (&["w", "week", "weeks"], 604_800),
];

/// What a text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeSpan {
    /// That long.
    Of(Duration),
    /// `infinity`.
    Infinity,
}

/// Reads `30min`, `1h 30min`, `7d`, `infinity`; a number alone is seconds, as in systemd. The parts are added.
///
/// # Errors
/// What is wrong, without the text.
pub fn parse(text: &str) -> Result<TimeSpan, &'static str> {
    let text = text.trim_matches([' ', '\t']);
    if text == "infinity" {
        return Ok(TimeSpan::Infinity);
    }
    if text.is_empty() {
        return Err("empty");
    }
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        if number.is_empty() {
            return Err("not a number with a unit");
        }
        let number: u64 = number.parse().map_err(|_| "too long")?;
        let behind = behind.trim_start_matches([' ', '\t']);
        let letters = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let seconds = match unit {
            "" => 1,
            unit => {
                UNITS
                    .iter()
                    .find(|(names, _)| names.contains(&unit))
                    .ok_or("an unknown unit; units are s, min, h, d and w")?
                    .1
            }
        };
        total = number.checked_mul(seconds).and_then(|part| total.checked_add(part)).ok_or("too long")?;
        rest = behind.trim_start_matches([' ', '\t']);
    }
    Ok(TimeSpan::Of(Duration::from_secs(total)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_as_systemd_reads_them() {
        for (text, seconds) in [
            ("0", 0),
            ("90", 90),
            ("5s", 5),
            ("30min", 1_800),
            ("30 m", 1_800),
            ("12h", 43_200),
            ("7d", 604_800),
            (" 2 weeks ", 1_209_600),
            ("1h30min", 5_400),
            ("1day 2hr\t3 minutes 4", 93_784),
            ("1h 1h", 7_200),
        ] {
            assert_eq!(parse(text), Ok(TimeSpan::Of(Duration::from_secs(seconds))), "{text:?}");
        }
        assert_eq!(parse("infinity"), Ok(TimeSpan::Infinity));
    }

    #[test]
    fn everything_else_is_refused() {
        for (text, part) in [
            ("", "empty"),
            (" ", "empty"),
            ("h", "not a number"),
            ("-1h", "not a number"),
            ("+1h", "not a number"),
            ("1.5h", "not a number"),
            ("1h,2h", "not a number"),
            ("1M", "unknown unit"),
            ("1y", "unknown unit"),
            ("1ms", "unknown unit"),
            ("1H", "unknown unit"),
            ("1 infinity", "unknown unit"),
            ("99999999999999999999", "too long"),
            ("9999999999999999w", "too long"),
            ("18446744073709551615s 1s", "too long"),
        ] {
            let problem = parse(text).expect_err(text);
            assert!(problem.contains(part), "{text:?}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_handled(text in "\\PC{0,20}|[0-9smhdw \t]{0,20}") {
            let _ = parse(&text);
        }
    }
}
