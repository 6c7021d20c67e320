//! Why there is no image.

use std::io;
use std::path::{Path, PathBuf};

use runner_model::image_policy::PolicyError;
use runner_model::registry_auth::AuthError;
use runner_store::StoreError;
use runner_wire::fetch::FetchError;

/// Why there is no image. One line for a person.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The configuration does not allow the image.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// It is not in the store, and nothing may be pulled.
    #[error(
        "image {image}: not in the store, and pulling is off (RUNNER_IMAGE_PULL=never); bring it there with 'runnerctl image pull \
         {image}' or 'runnerctl image import {image} SOURCE'"
    )]
    NotPresent {
        /// The image.
        image: String,
    },
    /// The registry did not say what a tag names.
    #[error("image {image}: {}", error.text())]
    Fetch {
        /// The image.
        image: String,
        /// Why.
        error: FetchError,
    },
    /// Pulling or the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file of credentials cannot be used.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A file of the configuration cannot be used.
    #[error("{}: {problem}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The process that fetches cannot be used.
    #[error("images cannot be fetched ({0}); see 'systemctl status runner-image-fetch.socket'")]
    Service(io::Error),
}

impl PullError {
    pub(crate) fn file(path: &Path, problem: &str) -> Self {
        Self::File { path: path.to_owned(), problem: problem.to_owned() }
    }

    /// Whether the same may well work later, without anybody changing anything.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Fetch { error, .. } => {
                matches!(error, FetchError::Unavailable(_) | FetchError::RateLimited(_) | FetchError::Bus(_))
            }
            Self::Service(_) => true,
            _ => false,
        }
    }
}
