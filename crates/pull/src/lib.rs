//! From an image reference to an image in use: which images are allowed, when a registry is asked, with which
//! credentials, and the way of the bytes into the store.
//!
//! Neither this code nor its process talks to a registry. `image-fetch` does (`runner_wire::fetch`), one process for one
//! image, without privileges and without the store; layers are unpacked by yet another process (`runner_store`). What
//! happens here is bringing the two together: descriptors of one are handed to the other.

mod error;
mod progress;
mod repository;
mod settings;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use runner_model::config::{ImageSettings, PullPolicy, RegistrySettings, Settings};
use runner_model::image_policy;
use runner_model::image_ref::Reference;
use runner_model::registry_auth::{AuthFile, Credentials};
use runner_store::{Digest, ErrorKind, Imported, Known, Lease, Store};
use runner_wire::fetch::FETCH_SOCKET;

pub use error::PullError;
pub use progress::{Board, Line, Size, State};
pub use settings::{CONFIG_FILE, SettingsError, settings};

use progress::INTERVAL;
use repository::Repository;

/// Where credentials of registries are kept, in the format of `docker login`.
pub const AUTH_FILE: &str = "/etc/runner/auth.json";

/// Makes a connection to a new `image-fetch`.
pub type Connect = dyn Fn() -> io::Result<UnixStream> + Send + Sync;

/// Gets images.
pub struct Puller {
    store: Arc<Store>,
    images: ImageSettings,
    registries: RegistrySettings,
    auth_file: PathBuf,
    connect: Box<Connect>,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The image.
    pub image: &'a Reference,
    /// Credentials that came with the request; they are for the image's own registry.
    pub credentials: Option<Credentials>,
    /// When to ask the registry; `None` for what the configuration says.
    pub policy: Option<PullPolicy>,
}

/// An image, held in the store.
#[derive(Debug)]
pub struct Obtained {
    /// Keeps it there.
    pub lease: Lease,
    /// What pulling came to, if something was pulled.
    pub pulled: Option<Imported>,
}

/// What whoever asked should know meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// How far it is: once a second.
    Progress(Line),
    /// Something to mend, one line. It may be what explains a failure.
    Warning(String),
}

impl Puller {
    /// With the configuration's settings, systemd's socket and the usual credentials file.
    pub fn new(store: Arc<Store>, settings: &Settings) -> Puller {
        Puller {
            store,
            images: settings.images.clone(),
            registries: settings.registries.clone(),
            auth_file: PathBuf::from(AUTH_FILE),
            connect: Box::new(|| UnixStream::connect(FETCH_SOCKET)),
        }
    }

    /// Another credentials file.
    #[must_use]
    pub fn with_auth_file(self, auth_file: &Path) -> Puller {
        Puller { auth_file: auth_file.to_owned(), ..self }
    }

    /// Another way to get at an `image-fetch`.
    #[must_use]
    pub fn with_connect(self, connect: Box<Connect>) -> Puller {
        Puller { connect, ..self }
    }

    /// The image, pulled if the policy says so. `report` gets a line a second while pulling goes on, hence none when it is
    /// quick, and warnings also when there is no image in the end.
    ///
    /// When the future is dropped, fetching ends. What was fetched stays for the next try.
    ///
    /// # Errors
    /// One line that names the image and what to do.
    pub async fn obtain(&self, wanted: &Wanted<'_>, mut report: impl FnMut(News)) -> Result<Obtained, PullError> {
        let mut warnings = Vec::new();
        let obtained = self.obtain_image(wanted, |line| report(News::Progress(line)), &mut warnings).await;
        warnings.into_iter().for_each(|warning| report(News::Warning(warning)));
        obtained
    }

    async fn obtain_image(
        &self,
        wanted: &Wanted<'_>,
        report: impl FnMut(Line),
        warnings: &mut Vec<String>,
    ) -> Result<Obtained, PullError> {
        let image = wanted.image;
        image_policy::check(self.images.policy, &self.images.allow, image)?;
        let policy = wanted.policy.unwrap_or(self.images.pull);
        if policy != PullPolicy::Always
            && let Some((lease, known)) = self.present(image, policy, warnings).await?
        {
            if policy == PullPolicy::Never || !self.is_stale(image, &known) {
                return Ok(Obtained { lease, pulled: None });
            }
            if self.is_current(wanted, &known, warnings).await? {
                return Ok(Obtained { lease, pulled: None });
            }
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NotPresent { image: image.to_string() });
        }
        let (imported, lease) = self.pull(wanted, policy, report, warnings).await?;
        Ok(Obtained { lease, pulled: Some(imported) })
    }

    /// What the store has of the image.
    async fn present(
        &self,
        image: &Reference,
        policy: PullPolicy,
        warnings: &mut Vec<String>,
    ) -> Result<Option<(Lease, Known)>, PullError> {
        let name = image.to_string();
        // The store's lock may be held by somebody who takes his time.
        let found = self.blocking(move |store| match store.resolve(&name)? {
            Some(lease) => Ok(store.known(&name)?.map(|known| (lease, known))),
            None => Ok(None),
        });
        match found.await {
            // Pulling it again repairs it.
            Err(PullError::Store(error)) if error.kind() == ErrorKind::Damaged && policy != PullPolicy::Never => {
                tracing::warn!("{error}");
                warnings.push(format!("{error}; pulling it again"));
                Ok(None)
            }
            found => found,
        }
    }

    /// Whether the registry should be asked if a tag still names what we have. Only what came from a registry has an age.
    fn is_stale(&self, image: &Reference, known: &Known) -> bool {
        let Known { digest: Some(_), checked: Some(checked), .. } = known else { return false };
        let age = SystemTime::now().duration_since(*checked).unwrap_or_default();
        image.digest().is_none() && self.images.max_age.is_some_and(|most| age >= most)
    }

    /// Asks the registry. One that cannot be asked is no reason to fail a job whose image is here.
    async fn is_current(
        &self,
        wanted: &Wanted<'_>,
        known: &Known,
        warnings: &mut Vec<String>,
    ) -> Result<bool, PullError> {
        let repository = match self.repository(wanted, warnings).await {
            Ok(repository) => repository,
            Err(error) if error.is_transient() => {
                warnings.push(format!("{error}; using the image that is here"));
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        match repository.current_digest().await {
            Ok(digest) if Some(digest) == known.digest => {
                let name = wanted.image.to_string();
                self.blocking(move |store| store.confirm(&name, &digest)).await?;
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if error.is_transient() => {
                warnings.push(format!("{error}; using the image that is here"));
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    async fn pull(
        &self,
        wanted: &Wanted<'_>,
        policy: PullPolicy,
        mut report: impl FnMut(Line),
        warnings: &mut Vec<String>,
    ) -> Result<(Imported, Lease), PullError> {
        let repository = self.repository(wanted, warnings).await?;
        if policy == PullPolicy::Always && wanted.image.digest().is_some() {
            // The store may have all of it, from another repository, which others may not read. So it is not asked alone.
            repository.current_digest().await?;
        }
        // Dropped with this future: then every wait in the thread below comes to an end.
        let _hang_up = repository.hang_up();
        let name = wanted.image.to_string();
        let pinned = wanted.image.digest().map(str::parse::<Digest>).transpose()?;
        let board = Arc::new(Board::default());
        let notes = Arc::clone(&board);
        let work = self.blocking(move |store| {
            store.pull(&name, pinned.as_ref(), &repository, &mut |progress| notes.note(&progress))
        });
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + INTERVAL, INTERVAL);
        tokio::pin!(work);
        let pulled = loop {
            tokio::select! {
                biased;
                outcome = &mut work => break outcome?,
                _ = ticks.tick() => report(board.line()),
            }
        };
        let (imported, _) = &pulled;
        tracing::info!(
            image = %wanted.image,
            digest = imported.digest.map(|digest| digest.to_string()),
            "pulled {} ({} layers, {} of them new)",
            wanted.image,
            imported.layers,
            imported.layers - imported.reused
        );
        Ok(pulled)
    }

    async fn repository(&self, wanted: &Wanted<'_>, warnings: &mut Vec<String>) -> Result<Repository, PullError> {
        let auth = self.auth_file(warnings)?;
        let route = runner_model::registry::route(wanted.image, &self.registries, wanted.credentials.as_ref(), &auth);
        warnings.extend(route.warnings);
        let certificates = match &self.registries.ca_file {
            Some(path) => read(path)?.ok_or_else(|| PullError::file(path, "it does not exist"))?,
            None => Vec::new(),
        };
        let stream = (self.connect)().map_err(PullError::Service)?;
        Repository::open(stream, wanted.image, &route.endpoints, certificates, &self.registries.proxies).await
    }

    /// Read each time: it may be changed without a restart, and what is not in memory is in no core dump.
    fn auth_file(&self, warnings: &mut Vec<String>) -> Result<AuthFile, PullError> {
        let others = fs::metadata(&self.auth_file).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0);
        if others {
            let path = self.auth_file.display();
            warnings.push(format!("{path}: others may read the passwords in it; run 'chmod 600 {path}'"));
        }
        match read(&self.auth_file)? {
            Some(contents) => Ok(AuthFile::parse(&self.auth_file.display().to_string(), &contents)?),
            None => Ok(AuthFile::default()),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, runner_store::StoreError> + Send + 'static,
    ) -> Result<T, PullError> {
        let store = Arc::clone(&self.store);
        let outcome = tokio::task::spawn_blocking(move || work(&store)).await;
        Ok(outcome.map_err(|error| PullError::Service(io::Error::other(error)))??)
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, PullError> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PullError::file(path, &error.to_string())),
    }
}
