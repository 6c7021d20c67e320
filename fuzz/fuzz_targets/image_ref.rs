//! Image references: what is accepted has a canonical form that means the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use runner_model::image_ref::Reference;

fuzz_target!(|text: &str| {
    let reference = match Reference::parse(text) {
        Ok(reference) => reference,
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "an error of several lines: {line:?}");
            return;
        }
    };
    let canonical = reference.to_string();
    assert_eq!(Reference::parse(&canonical).as_ref(), Ok(&reference), "canonical form {canonical}");
    let familiar = reference.familiar();
    assert_eq!(Reference::parse(&familiar).as_ref(), Ok(&reference), "familiar form {familiar} of {canonical}");
    assert!(canonical.is_ascii() && !canonical.contains([' ', '\n']), "{canonical:?}");
    assert!(reference.tag().is_some() || reference.digest().is_some(), "{canonical}: neither tag nor digest");
    assert!(reference.path().split('/').all(|part| !matches!(part, "" | "." | "..")), "{canonical}");
    assert!(!reference.short_name().is_empty(), "{canonical}");
});
