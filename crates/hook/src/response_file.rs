//! The response file: made empty by the official runner, in a folder the job can write.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, ftruncate, openat, openat2};

/// Writes `text` into the response file `path`, which must lie below `temp`, the runner's temporary folder.
///
/// A step can replace anything below `temp`. So no link is followed there, nothing but a regular file with one name is
/// written to, and nothing is created: the runner made the file before it called us.
pub fn write(temp: &Path, path: &Path, text: &str) -> Result<(), String> {
    let relative = path
        .strip_prefix(temp)
        .ok()
        .filter(|rest| rest.components().all(|part| matches!(part, Component::Normal(_))) && *rest != Path::new(""))
        .ok_or_else(|| format!("responseFile: '{}' is not below RUNNER_TEMP ('{}')", path.display(), temp.display()))?;
    let fail = |error: io::Error| format!("responseFile: '{}' cannot be written: {error}", path.display());
    let temp = openat(CWD, temp, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| fail(error.into()))?;
    let file = openat2(
        &temp,
        relative,
        // NONBLOCK: opening a FIFO for writing must not wait for a reader.
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|error| fail(error.into()))?;
    replace(&file, text).map_err(fail)
}

fn replace(file: &OwnedFd, text: &str) -> io::Result<()> {
    let status = fstat(file)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    if status.st_nlink != 1 {
        return Err(io::Error::other("it has more than one name"));
    }
    ftruncate(file, 0)?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn temp(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("response-file-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("_runner_hook_responses")).unwrap();
        folder
    }

    #[test]
    fn a_forged_longer_answer_is_replaced_whole() {
        let temp = temp("forged");
        let path = temp.join("_runner_hook_responses/a.json");
        fs::write(&path, "{\"state\":{\"v\":1,\"job\":\"evil\"},\"padding\":\"xxxxxxxxxxxx\"}").unwrap();
        write(&temp, &path, "{}").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
        fs::remove_dir_all(temp).unwrap();
    }

    #[test]
    fn what_is_not_a_plain_file_below_the_temp_folder_is_refused() {
        let temp = temp("refused");
        let outside = temp.with_extension("outside");
        fs::write(&outside, "kept").unwrap();
        let responses = temp.join("_runner_hook_responses");
        symlink(&outside, responses.join("link.json")).unwrap();
        fs::hard_link(&outside, responses.join("hard.json")).unwrap();
        fs::create_dir(responses.join("folder.json")).unwrap();
        rustix::fs::mknodat(CWD, responses.join("fifo.json"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        symlink("/etc", temp.join("etc")).unwrap();

        for (path, expected) in [
            (responses.join("link.json"), "cannot be written"),
            (responses.join("hard.json"), "more than one name"),
            (responses.join("folder.json"), "cannot be written"),
            (responses.join("fifo.json"), "cannot be written"),
            (responses.join("missing.json"), "cannot be written"),
            (temp.join("etc/hostname"), "cannot be written"),
            (temp.join("../x"), "is not below RUNNER_TEMP"),
            (temp.clone(), "is not below RUNNER_TEMP"),
            (outside.clone(), "is not below RUNNER_TEMP"),
        ] {
            let outcome = write(&temp, &path, "{}");
            let message = outcome.expect_err(&format!("{} was written", path.display()));
            assert!(message.contains(expected) && message.starts_with("responseFile: "), "{message}");
        }
        assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
        fs::remove_dir_all(temp).unwrap();
        fs::remove_file(outside).unwrap();
    }
}
