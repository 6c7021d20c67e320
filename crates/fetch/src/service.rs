//! The interface of [`runner_wire::fetch`], served to one peer.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use runner_wire::fetch::{FETCH_PATH, FetchError, Manifest, Origin};
use zbus::OwnedFd;

use crate::blob::Transfer;
use crate::failure::{Failure, Kind};
use crate::repository::Repository;
use crate::retry::Patience;

/// The served object.
#[derive(Debug)]
struct ImageFetch {
    patience: Patience,
    repository: OnceLock<Repository>,
}

impl ImageFetch {
    fn repository(&self) -> Result<&Repository, FetchError> {
        self.repository.get().ok_or_else(|| FetchError::Refused("nobody has said yet where to fetch from".to_owned()))
    }
}

#[zbus::interface(name = "io.github.runner_appliance.ImageFetch1")]
impl ImageFetch {
    fn open(&self, origin: Origin) -> Result<(), FetchError> {
        let repository = Repository::new(origin, self.patience)?;
        let twice = |_| FetchError::Refused("somebody has said already where to fetch from".to_owned());
        self.repository.set(repository).map_err(twice)
    }

    async fn resolve(&self, tag: String) -> Result<String, FetchError> {
        Ok(self.repository()?.resolve(&tag).await?)
    }

    async fn manifest(&self, reference: String) -> Result<Manifest, FetchError> {
        Ok(self.repository()?.manifest(&reference).await?)
    }

    async fn document(&self, digest: String, size: u64) -> Result<Vec<u8>, FetchError> {
        Ok(self.repository()?.document(&digest, size).await?)
    }

    async fn blob(
        &self,
        digest: String,
        size: u64,
        offset: u64,
        origin_only: bool,
        file: OwnedFd,
        pipe: OwnedFd,
    ) -> Result<(), FetchError> {
        let repository = self.repository()?;
        if offset > size {
            return Err(FetchError::Local(format!("{offset} bytes of a blob of {size} are there already")));
        }
        let transfer = Transfer::new(&digest, size, offset, File::from(std::os::fd::OwnedFd::from(file)), pipe.into());
        let transfer = transfer
            .map_err(|error| Failure::lasting(Kind::Local, format!("the pipe for a blob cannot be used: {error}")))?;
        Ok(repository.blob(&digest, transfer, origin_only).await?)
    }
}

/// Serves the peer at the other end of `stream` until it hangs up; what it asked for then ends with this process's
/// runtime.
///
/// # Errors
/// When `stream` is no connection on which D-Bus is spoken.
pub async fn serve(stream: UnixStream, patience: Patience) -> zbus::Result<()> {
    let object = ImageFetch { patience, repository: OnceLock::new() };
    runner_wire::serve(stream, FETCH_PATH, object).await
}
