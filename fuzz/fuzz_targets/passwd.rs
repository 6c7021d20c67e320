//! A user specification with the two files of an untrusted image. The parts of the input are separated by NUL.

#![no_main]

use libfuzzer_sys::fuzz_target;
use runner_model::passwd::{self, GUEST_IDS};

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let spec = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let passwd = parts.next().unwrap_or_default();
    let group = parts.next().unwrap_or_default();
    match passwd::resolve(&spec, passwd, group) {
        Ok(user) => {
            let ids = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
            assert!(ids.into_iter().all(|id| id < GUEST_IDS), "{user:?}");
            assert!(user.groups.is_sorted_by(|a, b| a < b) && !user.groups.contains(&user.gid), "{user:?}");
            assert!(spec.split_once(':').is_none_or(|(_, group)| group.is_empty()) || user.groups.is_empty());
            assert!(user.home.starts_with('/') && !user.home.contains(['\0', '\n']), "{user:?}");
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "an error of several lines: {line:?}");
        }
    }
});
