//! What every test needs: a connection to the fetcher, and descriptors for a blob.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use runner_fetch::Patience;
use runner_testbed::registry::Registry;
use runner_wire::fetch::{Endpoint, FetchError, Hidden, ImageFetchProxy, Origin, Proxies, fetch_proxy};

/// The repository of all tests.
pub(crate) const REPOSITORY: &str = "library/node";

/// Short enough for tests, long enough for a busy machine.
pub(crate) fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        silence: Duration::from_millis(700),
        window: Duration::from_millis(300),
        rate: 1000,
        tries: 3,
        tries_of_a_mirror: 2,
        tries_of_a_blob: 12,
        pause: Duration::from_millis(2),
        longest_pause: Duration::from_millis(5),
        longest_wait: Duration::from_secs(2),
    }
}

pub(crate) fn endpoint(url: &str) -> Endpoint {
    Endpoint {
        url: url.to_owned(),
        username: String::new(),
        password: Hidden::default(),
        identity_token: Hidden::default(),
    }
}

pub(crate) fn with_password(url: &str, username: &str, password: &str) -> Endpoint {
    Endpoint { username: username.to_owned(), password: Hidden(password.to_owned()), ..endpoint(url) }
}

pub(crate) fn origin(endpoints: Vec<Endpoint>) -> Origin {
    Origin {
        registry: "registry.example".to_owned(),
        repository: REPOSITORY.to_owned(),
        endpoints,
        certificates: Vec::new(),
        proxies: Proxies::default(),
    }
}

/// A fetcher in a task of its own, before `open`.
pub(crate) async fn unopened(patience: Patience) -> ImageFetchProxy<'static> {
    let (client, server) = UnixStream::pair().unwrap();
    tokio::spawn(async move { runner_fetch::serve(server, patience).await });
    fetch_proxy(client).await.unwrap()
}

pub(crate) async fn open(origin: &Origin) -> ImageFetchProxy<'static> {
    let proxy = unopened(patience()).await;
    proxy.open(origin).await.unwrap();
    proxy
}

/// A fetcher for a registry that needs no credentials.
pub(crate) async fn fetcher(registry: &Registry) -> ImageFetchProxy<'static> {
    open(&origin(vec![endpoint(&registry.url())])).await
}

/// What fetching a blob came to.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) outcome: Result<(), FetchError>,
    /// The file, with what it had before.
    pub(crate) file: Vec<u8>,
    /// What came through the pipe until its end.
    pub(crate) pipe: Vec<u8>,
}

/// A blob to ask for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) digest: &'a str,
    pub(crate) size: u64,
    /// What the file has already.
    pub(crate) have: &'a [u8],
    pub(crate) origin_only: bool,
}

pub(crate) async fn fetch(proxy: &ImageFetchProxy<'_>, wanted: &Wanted<'_>) -> Fetched {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    std::fs::write(&path, wanted.have).unwrap();
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let piped = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let offset = wanted.have.len() as u64;
    let (file, pipe) = (file.as_fd().into(), writer.as_fd().into());
    let outcome = proxy.blob(wanted.digest, wanted.size, offset, wanted.origin_only, file, pipe).await;
    drop(writer);
    // Ends only if the other side has closed its end of the pipe.
    let pipe = tokio::time::timeout(Duration::from_secs(20), piped).await.expect("the pipe was not closed").unwrap();
    Fetched { outcome, file: std::fs::read(path).unwrap(), pipe }
}

/// Bytes that differ from one place to the next.
pub(crate) fn content(size: usize) -> Vec<u8> {
    (0u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(size).collect()
}

/// The failure and its line.
pub(crate) fn failed<T: std::fmt::Debug>(outcome: Result<T, FetchError>) -> (String, String) {
    let error = outcome.expect_err("this must fail");
    let kind = format!("{error:?}").split('(').next().unwrap_or_default().to_owned();
    (kind, error.text())
}

/// A file that takes nothing.
pub(crate) fn full() -> File {
    OpenOptions::new().append(true).open("/dev/full").unwrap()
}

/// Fills a pipe as far as it takes bytes without a reader.
pub(crate) fn fill(pipe: &mut impl Write, count: usize) {
    pipe.write_all(&vec![0; count]).unwrap();
}
