//! A registry on the loopback that speaks as much of the distribution protocol as pulling takes, keeps everything in
//! memory, writes down what it was asked, and fails as it is told to.
//!
//! ```
//! use runner_testbed::registry::{Fault, Image, Registry, When};
//!
//! let registry = Registry::start().unwrap();
//! let image = registry.put_image("library/node", "22", &Image::new().layer(b"a tar archive"));
//! registry.inject(When::path("/blobs/").times(1), Fault::Status(500));
//! assert!(registry.url().starts_with("http://127.0.0.1:"));
//! assert!(image.layers[0].starts_with("sha256:"));
//! assert!(registry.requests().is_empty());
//! ```
//!
//! Each connection has a thread. Whoever holds the [`Registry`] keeps it alive; when it is dropped, every connection ends.

mod access;
mod certificate;
mod connection;
mod content;
mod fault;
mod image;
mod message;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use access::{Access, TokenAccess};
pub use certificate::Authority;
pub use content::{Published, digest_of};
pub use fault::{Fault, When};
pub use image::{Compression, Family, Image};

use access::Tokens;
use certificate::Identity;
use content::Content;
use fault::Faults;

/// A running registry; it ends when this is dropped.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    address: SocketAddr,
    scheme: &'static str,
    accepting: Option<JoinHandle<()>>,
}

/// One request the registry got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD` or `POST`.
    pub method: String,
    /// Path with its query, as it was sent.
    pub path: String,
    /// All header fields, names in lower case.
    pub headers: HashMap<String, String>,
    /// The body of a `POST`.
    pub body: String,
    /// Status of the answer; 0 if there was none.
    pub status: u16,
}

impl Request {
    /// The `Authorization` field.
    pub fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// The field of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// `GET /v2/… 200`, for tests that compare what was asked.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.method, self.path, self.status)
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when the registry ends, for answers that are being held back.
    ended: Condvar,
    identity: Option<Identity>,
    /// `http://HOST:PORT`, where the token service is.
    url: String,
}

#[derive(Debug, Default)]
struct State {
    content: Content,
    access: Access,
    tokens: Tokens,
    faults: Faults,
    requests: Vec<Request>,
    /// Sockets of the connections by number, to shut down at the end, and whether that has come.
    sockets: HashMap<u64, TcpStream>,
    connections: u64,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the registry ends, or for `time`.
    fn hold(&self, time: Duration) {
        let state = self.lock();
        drop(self.ended.wait_timeout_while(state, time, |state| !state.ended));
    }
}

impl Registry {
    /// Starts one that speaks plain HTTP on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> io::Result<Registry> {
        Registry::serve(0, None)
    }

    /// Starts one that speaks plain HTTP on this port of 127.0.0.1.
    ///
    /// # Errors
    /// When somebody else has it.
    pub fn start_on(port: u16) -> io::Result<Registry> {
        Registry::serve(port, None)
    }

    /// Starts one that speaks TLS, with a certificate for `localhost` and 127.0.0.1 by `authority`.
    ///
    /// # Errors
    /// When there is no free port, or the certificate cannot be made.
    pub fn start_tls(authority: &Authority) -> io::Result<Registry> {
        Registry::serve(0, Some(authority.identity(&["localhost", "127.0.0.1"])?))
    }

    /// Starts one that speaks TLS, with a certificate for these names.
    ///
    /// # Errors
    /// As [`Registry::start_tls`].
    pub fn start_tls_as(authority: &Authority, names: &[&str]) -> io::Result<Registry> {
        Registry::serve(0, Some(authority.identity(names)?))
    }

    /// On any free port if it is 0.
    fn serve(port: u16, identity: Option<Identity>) -> io::Result<Registry> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let address = listener.local_addr()?;
        let scheme = if identity.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}");
        let shared = Arc::new(Shared { state: Mutex::default(), ended: Condvar::new(), identity, url });
        let accepting = Arc::clone(&shared);
        let accepting =
            std::thread::Builder::new().name("registry".into()).spawn(move || accept(&accepting, &listener))?;
        Ok(Registry { shared, address, scheme, accepting: Some(accepting) })
    }

    /// `127.0.0.1:PORT`, as in a reference.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:PORT`, or `https://…`.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// The same server by its other name, `http://localhost:PORT`: another host to whoever compares names.
    pub fn localhost_url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    /// Puts a blob into a repository and gives its digest.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Vec<u8>>) -> String {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        self.put_blob_as(repository, &digest, bytes);
        digest
    }

    /// Puts a blob under a digest that need not be its own.
    pub fn put_blob_as(&self, repository: &str, digest: &str, bytes: impl Into<Vec<u8>>) {
        self.shared.lock().content.put_blob(repository, digest, bytes.into());
    }

    /// Puts a manifest or index, byte for byte, and gives its digest.
    pub fn put_manifest(&self, repository: &str, media_type: &str, bytes: impl Into<Vec<u8>>) -> String {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        self.shared.lock().content.put_manifest(repository, &digest, media_type, bytes);
        digest
    }

    /// Points a tag at a digest.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.shared.lock().content.tag(repository, tag, digest);
    }

    /// Removes a blob or manifest.
    pub fn remove(&self, repository: &str, digest: &str) {
        self.shared.lock().content.remove(repository, digest);
    }

    /// Puts an image with its blobs, under a tag.
    pub fn put_image(&self, repository: &str, tag: &str, image: &Image) -> Published {
        let mut state = self.shared.lock();
        let published = state.content.put_image(repository, image);
        state.content.tag(repository, tag, &published.manifest);
        published
    }

    /// Puts images and an index of them, under a tag; gives the index's digest and what each image became.
    pub fn put_index(&self, repository: &str, tag: &str, family: Family, images: &[Image]) -> (String, Vec<Published>) {
        let mut state = self.shared.lock();
        let (digest, published) = state.content.put_index(repository, family, images);
        state.content.tag(repository, tag, &digest);
        (digest, published)
    }

    /// From now on, asks whoever comes for this.
    pub fn require(&self, access: Access) {
        self.shared.lock().access = access;
    }

    /// Takes none of the tokens any more that were shown so far.
    pub fn revoke_tokens(&self) {
        self.shared.lock().tokens.revoke();
    }

    /// From now on, fails in this way. Of several that apply the one injected first does, until its times are used up.
    pub fn inject(&self, when: When, fault: Fault) {
        self.shared.lock().faults.add(when, fault);
    }

    /// Forgets all faults.
    pub fn heal(&self) {
        self.shared.lock().faults = Faults::default();
    }

    /// What it was asked so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Forgets what it was asked.
    pub fn forget_requests(&self) {
        self.shared.lock().requests.clear();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        for socket in state.sockets.values() {
            // Fails if the connection has ended, which is what is wanted.
            let _ = socket.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.ended.notify_all();
        // Wakes the thread that accepts; it looks whether this is the end.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for socket in listener.incoming() {
        let Ok(socket) = socket else { return };
        let Ok(copy) = socket.try_clone() else { continue };
        let mut state = shared.lock();
        if state.ended {
            return;
        }
        state.connections += 1;
        let number = state.connections;
        state.sockets.insert(number, copy);
        drop(state);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            connection::run(&shared, socket);
            // The other descriptor of the socket would keep the connection open.
            if let Some(socket) = shared.lock().sockets.remove(&number) {
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
    }
}

#[cfg(test)]
mod tests;
