//! The files a step writes to speak to the runner: `GITHUB_ENV`, `GITHUB_PATH`, `GITHUB_OUTPUT`, `GITHUB_STATE`,
//! `GITHUB_STEP_SUMMARY` (protocol section 11.5). Made empty before a step, read on the host after it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Name of the context variable and prefix of the file.
const FILES: [(&str, &str); 5] = [
    ("GITHUB_ENV", "set_env_"),
    ("GITHUB_PATH", "add_path_"),
    ("GITHUB_OUTPUT", "set_output_"),
    ("GITHUB_STATE", "save_state_"),
    ("GITHUB_STEP_SUMMARY", "step_summary_"),
];

/// Bytes of a step summary that the service takes.
const SUMMARY_LIMIT: usize = 1024 * 1024;

/// The files of one step.
#[derive(Debug, Default)]
pub struct FileCommands {
    files: Vec<(&'static str, PathBuf)>,
}

/// What a step asked for through its files.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Variables for later steps.
    pub env: Vec<(String, String)>,
    /// Directories for later steps' `PATH`, in the order they were added.
    pub path: Vec<String>,
    /// The step's outputs.
    pub outputs: Vec<(String, String)>,
    /// State for later stages of the same action.
    pub state: Vec<(String, String)>,
    /// Summary in Markdown.
    pub summary: String,
    /// Files that could not be used, one line each; any of them fails the step.
    pub errors: Vec<String>,
}

impl FileCommands {
    /// Removes the files of the step before and makes empty ones, mode 0644 before the umask, under a new name.
    ///
    /// # Errors
    /// The folder or a file cannot be made.
    pub fn renew(&mut self, folder: &Path, suffix: &str) -> io::Result<()> {
        for (_, path) in self.files.drain(..) {
            // A step may have removed its own file.
            let _ = fs::remove_file(path);
        }
        fs::create_dir_all(folder)?;
        for (variable, prefix) in FILES {
            let path = folder.join(format!("{prefix}{suffix}"));
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path)?;
            self.files.push((variable, path));
        }
        Ok(())
    }

    /// Context variables naming the files by their host paths; stale after the step, as with the real runner.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.files.iter().map(|(variable, path)| (*variable, path.as_path()))
    }

    /// Reads the files back. A missing file asks for nothing.
    #[must_use]
    pub fn read(&self) -> Asked {
        let mut asked = Asked::default();
        for (variable, path) in &self.files {
            let text = match fs::read(path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    asked.errors.push(format!("cannot read the file of {variable}: {error}"));
                    continue;
                }
            };
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            if let Err(error) = asked.take(variable, text) {
                asked.errors.push(format!("cannot process the file of {variable}: {error}"));
            }
        }
        asked
    }
}

impl Asked {
    fn take(&mut self, variable: &str, text: &str) -> Result<(), String> {
        match variable {
            "GITHUB_ENV" => {
                let pairs = pairs(text)?;
                if let Some((name, _)) = pairs.iter().find(|(name, _)| name.eq_ignore_ascii_case("NODE_OPTIONS")) {
                    return Err(format!("{name} may not be set this way"));
                }
                self.env = pairs;
            }
            "GITHUB_PATH" => {
                self.path = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
            }
            "GITHUB_OUTPUT" => self.outputs = pairs(text)?,
            "GITHUB_STATE" => self.state = pairs(text)?,
            _ if text.len() > SUMMARY_LIMIT => {
                return Err(format!("the summary has {} bytes, more than {SUMMARY_LIMIT}", text.len()));
            }
            _ => text.clone_into(&mut self.summary),
        }
        Ok(())
    }
}

/// Reads `NAME=value` lines and `NAME<<DELIMITER` blocks. Only a line feed ends a line, so a carriage return stays in
/// the value.
///
/// # Errors
/// A line of neither form, an empty name or delimiter, a block without its end.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    let mut lines = text.split_inclusive('\n');
    while let Some(raw) = lines.next() {
        let line = raw.strip_suffix('\n').unwrap_or(raw);
        if line.is_empty() {
            continue;
        }
        match (line.find('='), line.find("<<")) {
            (Some(equals), heredoc) if heredoc.is_none_or(|at| equals < at) => {
                if equals == 0 {
                    return Err(format!("invalid line `{line}`: the name is empty"));
                }
                found.push((line[..equals].to_owned(), line[equals + 1..].to_owned()));
            }
            (_, Some(at)) => {
                let (name, delimiter) = (&line[..at], &line[at + 2..]);
                if name.is_empty() || delimiter.is_empty() {
                    return Err(format!("invalid line `{line}`: name and delimiter may not be empty"));
                }
                let mut value = String::new();
                loop {
                    let raw = lines
                        .next()
                        .ok_or_else(|| format!("invalid value of `{name}`: no line is its delimiter `{delimiter}`"))?;
                    if raw.strip_suffix('\n').unwrap_or(raw) == delimiter {
                        break;
                    }
                    value.push_str(raw);
                }
                if value.ends_with('\n') {
                    value.pop();
                }
                found.push((name.to_owned(), value));
            }
            (_, None) => return Err(format!("invalid line `{line}`: neither `NAME=value` nor `NAME<<DELIMITER`")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        for (text, expected) in [
            ("", vec![]),
            ("A=1\n\nB=x=y<<z\n", vec![("A", "1"), ("B", "x=y<<z")]),
            ("A=", vec![("A", "")]),
            ("M<<E\nline 1\n\nline=2\nE\nN=1", vec![("M", "line 1\n\nline=2"), ("N", "1")]),
            ("M<<E\nE", vec![("M", "")]),
            ("M<<E\n\nE\n", vec![("M", "")]),
            ("M<<a=b\nx\na=b\n", vec![("M", "x")]),
            ("A=crlf\r\n", vec![("A", "crlf\r")]),
            (" A = 1 ", vec![(" A ", " 1 ")]),
        ] {
            let expected: Vec<(String, String)> =
                expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            assert_eq!(pairs(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, word) in [
            ("no assignment\n", "no assignment"),
            ("=x\n", "name is empty"),
            ("<<E\nE\n", "may not be empty"),
            ("M<<\nx\n", "may not be empty"),
            ("M<<E\nx\n", "delimiter `E`"),
        ] {
            let error = pairs(text).unwrap_err();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn files_are_read_once_each_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut commands = FileCommands::default();
        commands.renew(folder.path(), "one").unwrap();
        for (variable, text) in [
            ("GITHUB_ENV", "A=1\n"),
            ("GITHUB_PATH", "/opt/a\n\n/opt/b c\n"),
            ("GITHUB_OUTPUT", "out=2"),
            ("GITHUB_STATE", "s=3"),
            ("GITHUB_STEP_SUMMARY", "# done"),
        ] {
            let path = commands.variables().find(|(name, _)| *name == variable).unwrap().1;
            assert_eq!(fs::read(path).unwrap(), b"");
            fs::write(path, text).unwrap();
        }
        let asked = commands.read();
        assert_eq!(asked.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(asked.path, ["/opt/a", "/opt/b c"]);
        assert_eq!(asked.outputs, [("out".to_owned(), "2".to_owned())]);
        assert_eq!(asked.state, [("s".to_owned(), "3".to_owned())]);
        assert_eq!((asked.summary.as_str(), asked.errors.len()), ("# done", 0));
        commands.renew(folder.path(), "two").unwrap();
        assert_eq!(commands.read(), Asked::default());
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.len() == 5 && names.iter().all(|name| name.to_string_lossy().ends_with("_two")), "{names:?}");
    }

    #[test]
    fn refused_content_fails_the_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut commands = FileCommands::default();
        commands.renew(folder.path(), "x").unwrap();
        fs::write(folder.path().join("set_env_x"), "NODE_OPTIONS=--require /x.js\n").unwrap();
        fs::write(folder.path().join("set_output_x"), "oops\n").unwrap();
        let asked = commands.read();
        assert_eq!(asked.errors.len(), 2, "{:?}", asked.errors);
        assert!(asked.env.is_empty());
    }
}
