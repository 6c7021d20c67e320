//! The configuration file, for the programs that act on it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use runner_model::config::{ConfigError, Fragment, Merged, Settings};

/// Where the configuration is kept, in the grammar of systemd's EnvironmentFile=.
pub const CONFIG_FILE: &str = "/etc/runner/config.env";

/// Why there are no settings. One line for a person.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Something in the file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It is there and cannot be read.
    #[error("cannot read {}: {error}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The settings in the file `path`; the defaults when it does not exist.
///
/// # Errors
/// See [`SettingsError`].
pub fn settings(path: &Path) -> Result<Settings, SettingsError> {
    let fragment = match fs::read(path) {
        Ok(contents) => Some(Fragment::parse(&path.display().to_string(), &contents)?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(SettingsError::Unreadable { path: path.to_owned(), error }),
    };
    Ok(Merged::new(fragment)?.settings()?)
}
