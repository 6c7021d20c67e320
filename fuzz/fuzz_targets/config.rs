//! A file below /etc/runner, up to checked settings.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use runner_model::config::{Fragment, Merged, Settings};

fuzz_target!(|bytes: &[u8]| {
    // A form feed stands for "the next file begins here": later files win.
    let files: Vec<&[u8]> = bytes.split(|byte| *byte == b'\x0c').collect();
    let parsed: Result<Vec<Fragment>, _> = files.iter().map(|file| Fragment::parse("config.env", file)).collect();
    match parsed.and_then(Merged::new).and_then(|merged| merged.settings()) {
        Ok(settings) => check(&settings),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "an error of several lines: {line:?}");
        }
    }
});

fn check(settings: &Settings) {
    let listed = settings.volumes_allow.iter().map(|volume| &volume.path);
    for path in [&settings.root, &settings.work, &settings.tool_cache].into_iter().chain(listed) {
        let text = path.to_str().expect("made of text");
        let clean = text.len() > 1
            && text.starts_with('/')
            && !text.ends_with('/')
            && !text[1..].split('/').any(|part| matches!(part, "" | "." | ".."));
        assert!(clean && path != Path::new("/"), "{text:?}");
    }
    assert!(!settings.user.is_empty() && settings.user != "root", "user {:?}", settings.user);
    let range = settings.uid_range;
    let guests = range.guests();
    assert!(guests > 0, "{range:?}");
    let last = range.guest_base(guests - 1).expect("as many as it says");
    assert!(range.base >= 524_288 && last >= range.base && last <= range.base + range.count - 65_536, "{range:?}");
    assert_eq!(range.guest_base(guests), None, "{range:?}");
}
