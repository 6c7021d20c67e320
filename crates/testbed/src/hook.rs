//! One call of the hook: interpreter, environment, response file (protocol sections 2 and 9).

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::context::Variables;
use crate::layout::Layout;
use crate::process::which;

/// How the runner starts a hook: always an interpreter chosen by the file's extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// The interpreter.
    pub program: PathBuf,
    /// Its arguments, the hook's path among them.
    pub arguments: Vec<String>,
}

/// Why a hook cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No such file.
    #[error("File not found at {0}: set --hook or ACTIONS_RUNNER_CONTAINER_HOOKS to the hook's entry file")]
    Missing(PathBuf),
    /// The runner knows three extensions.
    #[error("Invalid file extension at {0}: the runner starts .sh, .js and .ps1 files only")]
    Extension(PathBuf),
    /// The runner puts the path into a command line without quotes.
    #[error("{0}: the path of a hook may hold neither spaces nor quotes, and must be absolute")]
    Path(PathBuf),
    /// Nothing to run it with.
    #[error("no {0} in PATH to start the hook with")]
    Interpreter(&'static str),
}

/// Finds the interpreter, looking through `path` (a `PATH`, entries of `GITHUB_PATH` included).
///
/// # Errors
/// The runner would fail before starting anything.
pub fn interpreter(hook: &Path, path: &str, externals: &Path) -> Result<Interpreter, Unusable> {
    let text = hook.display().to_string();
    if !hook.is_file() {
        return Err(Unusable::Missing(hook.to_owned()));
    }
    if !hook.is_absolute() || text.contains([' ', '"', '\'']) {
        return Err(Unusable::Path(hook.to_owned()));
    }
    let found = |program: PathBuf, arguments: &[&str]| {
        Ok(Interpreter { program, arguments: arguments.iter().map(|word| (*word).to_owned()).collect() })
    };
    if text.ends_with(".sh") {
        let shell = which("bash", path).or_else(|| which("sh", path)).ok_or(Unusable::Interpreter("bash or sh"))?;
        found(shell, &["-e", &text])
    } else if text.ends_with(".ps1") {
        let shell = which("pwsh", path)
            .or_else(|| which("powershell", path))
            .ok_or(Unusable::Interpreter("pwsh or powershell"))?;
        found(shell, &["-command", &format!(". '{text}'")])
    } else if text.ends_with(".js") {
        found(externals.join("node20/bin/node"), &[&text])
    } else {
        Err(Unusable::Extension(hook.to_owned()))
    }
}

/// The worker's own environment: this program's, and the runner root's `.env` file in front of it.
///
/// # Errors
/// The `.env` file is there and cannot be read.
pub fn worker_environment(root: &Path) -> io::Result<Vec<(OsString, OsString)>> {
    let mut environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    match fs::read_to_string(root.join(".env")) {
        Ok(text) => {
            for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
                put(&mut environment, name, value);
            }
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) => return Err(error),
    }
    Ok(environment)
}

/// A variable of an environment, if it is there and is text.
#[must_use]
pub fn lookup<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a str> {
    environment.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.to_str())
}

/// Sets a variable of an environment.
pub fn put(environment: &mut Vec<(OsString, OsString)>, name: &str, value: &str) {
    match environment.iter_mut().find(|(known, _)| known == name) {
        Some((_, slot)) => *slot = value.into(),
        None => environment.push((name.into(), value.into())),
    }
}

/// `PATH` with the entries a job added in front, the latest first.
#[must_use]
pub fn path_with(added: &[String], base: Option<&str>) -> String {
    added.iter().rev().map(String::as_str).chain(base).collect::<Vec<_>>().join(":")
}

/// The environment of a hook call or of a step on the host: the worker's, then these variables, the tracking id, and
/// `PATH` with what the job added.
#[must_use]
pub fn environment(
    worker: &[(OsString, OsString)],
    context: &Variables,
    tracking_id: &str,
    added_path: &[String],
) -> Vec<(OsString, OsString)> {
    let mut environment = worker.to_vec();
    for (name, value) in context.pairs() {
        put(&mut environment, name, value);
    }
    put(&mut environment, "GITHUB_ACTIONS", "true");
    if lookup(&environment, "CI").is_none() {
        put(&mut environment, "CI", "true");
    }
    put(&mut environment, "RUNNER_TRACKING_ID", tracking_id);
    let path = path_with(added_path, lookup(&environment, "PATH"));
    put(&mut environment, "PATH", &path);
    environment
}

/// A new empty response file.
///
/// # Errors
/// It cannot be made.
pub fn new_response_file(layout: &Layout) -> io::Result<PathBuf> {
    fs::create_dir_all(layout.responses())?;
    let path = layout.responses().join(format!("{}.json", guid()?));
    empty_file(&path)?;
    Ok(path)
}

/// Makes the file, or empties it.
///
/// # Errors
/// It cannot be made.
pub fn empty_file(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path).map(drop)
}

/// A random identifier such as the runner uses for names.
///
/// # Errors
/// The kernel's random identifiers cannot be read.
pub fn guid() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

/// The request on one line, with the line feed that ends it.
#[must_use]
pub fn input(request: &crate::json::Value) -> Vec<u8> {
    let mut bytes = request.line().into_bytes();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_extensions_are_started_and_bash_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir_all(&first).unwrap();
        fs::create_dir_all(&second).unwrap();
        fs::write(first.join("sh"), "").unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            path
        };
        let path = format!("{}:{}", first.display(), second.display());
        let hook = file("hook.sh");
        let start = |hook: &Path| interpreter(hook, &path, Path::new("/r/externals"));
        assert_eq!(start(&hook).unwrap().program, first.join("sh"));
        fs::write(second.join("bash"), "").unwrap();
        assert_eq!(start(&hook).unwrap().program, second.join("bash"));
        assert_eq!(start(&hook).unwrap().arguments, ["-e".to_owned(), hook.display().to_string()]);
        assert_eq!(start(&file("hook.js")).unwrap().program, Path::new("/r/externals/node20/bin/node"));
        for name in ["hook", "hook.SH", "hook.py"] {
            assert!(matches!(start(&file(name)), Err(Unusable::Extension(_))), "{name}");
        }
        assert!(matches!(start(&file("a hook.sh")), Err(Unusable::Path(_))));
        assert!(matches!(start(Path::new("/nowhere.sh")), Err(Unusable::Missing(_))));
    }

    #[test]
    fn later_path_entries_come_first() {
        assert_eq!(path_with(&["/a".into(), "/b".into()], Some("/usr/bin:/bin")), "/b:/a:/usr/bin:/bin");
        assert_eq!(path_with(&[], None), "");
    }
}
