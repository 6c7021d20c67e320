//! A repository as the store sees it, through `image-fetch`.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use runner_model::config::ProxySettings;
use runner_model::image_ref::Reference;
use runner_model::registry::Endpoint;
use runner_model::secret::Secret;
use runner_store::{BlobRequest, Digest, Fetching, Remote, StoreError};
use runner_wire::fetch::{self, FetchError, Hidden, ImageFetchProxy, Origin};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::runtime::Handle;
use zbus::Fd;

use crate::error::PullError;

/// Room in the pipe between fetching and unpacking, so that neither waits for the other at each packet.
const PIPE_BYTES: usize = 1 << 20;

/// One repository, behind a process of its own.
pub(crate) struct Repository {
    image: Reference,
    proxy: ImageFetchProxy<'static>,
    stream: UnixStream,
    runtime: Handle,
    mirrors: bool,
    given_up: Arc<AtomicBool>,
}

/// Ends the connection when dropped, and with it the process at its other end.
pub(crate) struct HangUp {
    stream: io::Result<UnixStream>,
    given_up: Arc<AtomicBool>,
}

impl Drop for HangUp {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        if let Ok(stream) = &self.stream {
            hang_up(stream);
        }
    }
}

fn hang_up(stream: &UnixStream) {
    // One that is closed already is what is wanted.
    let _ = stream.shutdown(Shutdown::Both);
}

impl Repository {
    pub(crate) async fn open(
        stream: UnixStream,
        image: &Reference,
        endpoints: &[Endpoint],
        certificates: Vec<u8>,
        proxies: &ProxySettings,
    ) -> Result<Self, PullError> {
        let own = stream.try_clone().map_err(PullError::Service)?;
        let fetch = fetch::fetch_proxy(stream).await;
        let proxy = fetch.map_err(|error| PullError::Service(io::Error::other(error)))?;
        let origin = Origin {
            registry: image.domain().to_owned(),
            repository: image.path().to_owned(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            certificates,
            proxies: fetch::Proxies {
                http: hidden(proxies.http.as_ref()),
                https: hidden(proxies.https.as_ref()),
                no_proxy: proxies.no_proxy.clone().unwrap_or_default(),
            },
        };
        let repository = Self {
            image: image.clone(),
            proxy,
            stream: own,
            runtime: Handle::current(),
            mirrors: endpoints.len() > 1,
            given_up: Arc::default(),
        };
        repository.proxy.open(&origin).await.map_err(|error| repository.failed(error))?;
        Ok(repository)
    }

    pub(crate) fn hang_up(&self) -> HangUp {
        HangUp { stream: self.stream.try_clone(), given_up: Arc::clone(&self.given_up) }
    }

    /// Digest that the registry gives for the reference at the moment; an error if it does not have it, or not for us.
    pub(crate) async fn current_digest(&self) -> Result<Digest, PullError> {
        let reference = self.image.digest().or(self.image.tag()).unwrap_or_default();
        let digest = self.proxy.resolve(reference).await;
        Ok(digest.map_err(|error| self.failed(error))?.parse()?)
    }

    fn failed(&self, error: FetchError) -> PullError {
        PullError::Fetch { image: self.image.to_string(), error }
    }
}

impl Remote for Repository {
    fn root(&self) -> Result<(String, Vec<u8>), StoreError> {
        let reference = self.image.digest().or(self.image.tag()).unwrap_or_default();
        let manifest = self.runtime.block_on(self.proxy.manifest(reference)).map_err(store_error)?;
        Ok((manifest.media_type, manifest.bytes))
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let manifest = self.runtime.block_on(self.proxy.manifest(&digest.to_string()));
        manifest.map(|manifest| manifest.bytes).map_err(store_error)
    }

    fn configuration(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, StoreError> {
        self.runtime.block_on(self.proxy.document(&digest.to_string(), size)).map_err(store_error)
    }

    fn registry(&self) -> &str {
        self.image.domain()
    }

    fn has_mirrors(&self) -> bool {
        self.mirrors
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        hang_up(&self.stream);
    }

    fn blob(&self, blob: &BlobRequest<'_>, file: OwnedFd) -> Result<Fetching, StoreError> {
        let failed = |error: rustix::io::Errno| StoreError::fetch(format!("no pipe for the layer's bytes: {error}"));
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        // A smaller pipe works as well.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        let (proxy, runtime) = (self.proxy.clone(), self.runtime.clone());
        let BlobRequest { digest, size, have, origin_only } = *blob;
        let digest = digest.to_string();
        let call = self
            .runtime
            .spawn(async move { proxy.blob(&digest, size, have, origin_only, Fd::from(file), Fd::from(write)).await });
        let outcome = move || match runtime.block_on(call) {
            Ok(outcome) => outcome.map_err(store_error),
            Err(error) => Err(StoreError::fetch(error.to_string())),
        };
        Ok(Fetching { pipe: read, outcome: Box::new(outcome) })
    }
}

fn endpoint(endpoint: &Endpoint) -> fetch::Endpoint {
    let credentials = endpoint.credentials.as_ref();
    fetch::Endpoint {
        url: endpoint.url.to_string(),
        username: credentials.map(|credentials| credentials.username.clone()).unwrap_or_default(),
        password: hidden(credentials.map(|credentials| &credentials.password)),
        identity_token: hidden(credentials.and_then(|credentials| credentials.identity_token.as_ref())),
    }
}

fn hidden(secret: Option<&Secret>) -> Hidden {
    Hidden(secret.map(|secret| secret.expose().to_owned()).unwrap_or_default())
}

fn store_error(error: FetchError) -> StoreError {
    match error {
        FetchError::Bus(error) => {
            StoreError::fetch(format!("image-fetch ended ({error}); see 'journalctl -u runner-image-fetch@*.service'"))
        }
        FetchError::Full(text) => StoreError::no_space(text),
        error => StoreError::fetch(error.text()),
    }
}
