//! The interface of `image-fetch`, the process that talks to registries, as both ends see it.
//!
//! Peer to peer over [`FETCH_SOCKET`], one process and one connection for one image. The process has the network and the
//! credentials of that image and nothing else; whoever asks has the store and no network. Everything it hands over is
//! untrusted until its digest was checked by whoever asked, although the process checks what it can, to fail early.

use std::fmt;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use zbus::{Fd, Type};

/// Where `image-fetch` is started by systemd, one instance for a connection. Root's only.
pub const FETCH_SOCKET: &str = "/run/runner/image-fetch.sock";

/// The interface's name, also used as the destination, which means nothing without a bus.
pub const FETCH_INTERFACE: &str = "io.github.runner_appliance.ImageFetch1";

/// The one object.
pub const FETCH_PATH: &str = "/io/github/runner_appliance/ImageFetch1";

/// The repository to fetch from and how to reach it.
#[derive(Debug, Clone, Serialize, Deserialize, Type)]
pub struct Origin {
    /// Registry as references name it, `docker.io` or `registry:5000`; for messages.
    pub registry: String,
    /// Repository within the registry, `library/node`.
    pub repository: String,
    /// Where to ask, in this order. The last one is the registry itself, those before are mirrors.
    pub endpoints: Vec<Endpoint>,
    /// Certificates of further authorities, PEM; empty for none beside the system's.
    pub certificates: Vec<u8>,
    /// Proxies.
    pub proxies: Proxies,
}

/// One server that has the repository.
#[derive(Debug, Clone, Serialize, Deserialize, Type)]
pub struct Endpoint {
    /// `https://HOST[:PORT][/PREFIX]` without a trailing slash; `http://` only where the configuration lists the host.
    /// Requests go to `URL/v2/REPOSITORY/…`.
    pub url: String,
    /// User name; empty for none.
    pub username: String,
    /// Password; empty for none.
    pub password: Hidden,
    /// Identity token (OAuth2 refresh token) instead of a password; empty for none.
    pub identity_token: Hidden,
}

/// Proxies as curl and most programs know them; empty texts for none.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Type)]
pub struct Proxies {
    /// For `http://`.
    pub http: Hidden,
    /// For `https://`.
    pub https: Hidden,
    /// Hosts reached without one, comma-separated.
    pub no_proxy: String,
}

/// A secret on its way to the one process that sends it. `Debug` hides it; proxies may hold a password, so they are one.
#[derive(Clone, Default, Serialize, Deserialize, Type, PartialEq, Eq)]
#[zbus(signature = "s")]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// A manifest or index.
#[derive(Debug, Clone, Serialize, Deserialize, Type)]
pub struct Manifest {
    /// Media type the registry declared, empty if none.
    pub media_type: String,
    /// The document, byte for byte.
    pub bytes: Vec<u8>,
}

/// Why something could not be fetched. The text is one line without the image's name: what, where, what to do. Text of a
/// registry in it is neutralised and cut.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "io.github.runner_appliance.ImageFetch1")]
pub enum FetchError {
    /// A failure of D-Bus itself: the process is gone, or was never there.
    #[zbus(error)]
    Bus(zbus::Error),
    /// The registry does not have it (404).
    NotFound(String),
    /// Credentials are needed or wrong (401).
    Unauthorized(String),
    /// The credentials do not suffice (403).
    Denied(String),
    /// Too many requests (429), after waiting as long as is reasonable.
    RateLimited(String),
    /// No answer, a broken connection, a time-out or a server error (5xx), after all tries.
    Unavailable(String),
    /// Something refused on purpose: a redirect to plain HTTP, an answer too long, TLS that cannot be trusted.
    Refused(String),
    /// The answer makes no sense, or is not what its digest or size says.
    BadAnswer(String),
    /// The file system the bytes were wanted on is full.
    Full(String),
    /// The bytes could not be written where they were wanted, for instance into a pipe whose reader went away. The system's
    /// message is in the text. Nobody else is asked then.
    Local(String),
}

impl FetchError {
    /// The line for a person, without D-Bus's name of the error.
    pub fn text(&self) -> String {
        use zbus::DBusError as _;
        match self {
            FetchError::Bus(error) => error.to_string(),
            other => other.description().unwrap_or("no reason given").to_owned(),
        }
    }
}

/// The interface, as its callers use it.
#[zbus::proxy(
    interface = "io.github.runner_appliance.ImageFetch1",
    default_service = "io.github.runner_appliance.ImageFetch1",
    default_path = "/io/github/runner_appliance/ImageFetch1"
)]
pub trait ImageFetch {
    /// Says where from; the first call, once.
    fn open(&self, origin: &Origin) -> Result<(), FetchError>;

    /// Digest of the manifest a tag names at the moment, without fetching it (`HEAD`), as `sha256:…`.
    fn resolve(&self, tag: &str) -> Result<String, FetchError>;

    /// The manifest or index of a tag or digest. By digest: the bytes have it.
    fn manifest(&self, reference: &str) -> Result<Manifest, FetchError>;

    /// A whole blob of at most 4 MiB, of exactly this digest and size: a configuration.
    fn document(&self, digest: &str, size: u64) -> Result<Vec<u8>, FetchError>;

    /// Fetches the bytes of a blob from `offset` to `size` and writes them to the end of `file` (opened for appending)
    /// and, behind that, to `pipe`, which it closes at the end, however that comes about; it makes the pipe's write end
    /// non-blocking for all who share it. `origin_only` leaves the mirrors out: one of them sent wrong bytes. The digest is
    /// the caller's to check. Several blobs may be under way at once.
    fn blob(
        &self,
        digest: &str,
        size: u64,
        offset: u64,
        origin_only: bool,
        file: Fd<'_>,
        pipe: Fd<'_>,
    ) -> Result<(), FetchError>;
}

/// Speaks to the `image-fetch` at the other end of `stream`.
///
/// # Errors
/// When it does not answer.
pub async fn fetch_proxy(stream: UnixStream) -> zbus::Result<ImageFetchProxy<'static>> {
    let connection = zbus::connection::Builder::unix_stream(stream).p2p().build().await?;
    ImageFetchProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No).build().await
}
