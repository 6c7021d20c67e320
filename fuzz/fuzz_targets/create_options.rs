//! The text of `options:`, and the words of arguments that were cut at spaces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use runner_model::{create_options, words};

fuzz_target!(|text: &str| {
    match create_options::parse(text) {
        Ok(options) => {
            if let Some(directory) = &options.working_directory {
                assert!(directory.starts_with('/'), "--workdir {directory:?}");
            }
            for volume in &options.volumes {
                assert!(volume.target.starts_with('/'), "--volume {volume:?}");
            }
            for limit in [options.limits.memory_bytes, options.limits.pids, options.limits.cpus_milli.map(u64::from)] {
                assert_ne!(limit, Some(0), "a limit of nothing: {:?}", options.limits);
            }
            for warning in &options.warnings {
                assert!(!warning.contains(char::is_control), "a warning of several lines: {warning:?}");
            }
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "an error of several lines: {line:?}");
        }
    }

    // What the official runner does to arguments, and what is made of them.
    let pieces: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let recovered = words::recover(&pieces);
    match words::split(text) {
        Ok(words) => {
            assert_eq!(recovered.words, words);
            let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
            assert_eq!(words::split(&quoted.join(" ")), Ok(words), "quoted again");
        }
        Err(_) => assert!(recovered.warning.is_some(), "an open quote without a warning"),
    }
});
