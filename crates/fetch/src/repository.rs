//! The repository of an image and the servers that may have it.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use runner_wire::fetch::{Manifest, Origin};

use crate::blob::Transfer;
use crate::endpoint::{DOCUMENT, Endpoint, is_digest};
use crate::failure::{Failure, Kind};
use crate::http::Http;
use crate::retry::Patience;
use crate::text::neutral;

/// A repository. Servers are asked in order; one that failed, or did not have the manifest, is not asked again.
#[derive(Debug)]
pub(crate) struct Repository {
    http: Http,
    endpoints: Vec<Endpoint>,
    /// The first of `endpoints` that is still asked. Only grows.
    first: AtomicUsize,
}

/// An answer to come.
type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

impl Repository {
    pub(crate) fn new(origin: Origin, patience: Patience) -> Result<Repository, Failure> {
        if !is_repository(&origin.repository) {
            let name = neutral(&origin.repository);
            return Err(Failure::lasting(Kind::Refused, format!("\"{name}\" is not the name of a repository")));
        }
        let last = origin.endpoints.len().checked_sub(1);
        let last = last.ok_or_else(|| Failure::lasting(Kind::Refused, "there is no registry to ask"))?;
        let http = Http::new(&origin, patience)?;
        let endpoints = origin.endpoints.into_iter().enumerate();
        let endpoints = endpoints.map(|(index, endpoint)| Endpoint::new(endpoint, &origin.repository, index == last));
        let endpoints = endpoints.collect::<Result<_, _>>()?;
        Ok(Repository { http, endpoints, first: AtomicUsize::new(0) })
    }

    pub(crate) async fn resolve(&self, tag: &str) -> Result<String, Failure> {
        check_reference(tag)?;
        let (digest, index) = self.each(|endpoint| Box::pin(endpoint.resolve(&self.http, tag))).await?;
        self.first.fetch_max(index, Ordering::Relaxed);
        Ok(digest)
    }

    pub(crate) async fn manifest(&self, reference: &str) -> Result<Manifest, Failure> {
        check_reference(reference)?;
        let (manifest, index) = self.each(|endpoint| Box::pin(endpoint.manifest(&self.http, reference))).await?;
        self.first.fetch_max(index, Ordering::Relaxed);
        Ok(manifest)
    }

    pub(crate) async fn document(&self, digest: &str, size: u64) -> Result<Vec<u8>, Failure> {
        check_digest(digest)?;
        let size = usize::try_from(size).ok().filter(|&size| size <= DOCUMENT);
        let size = size.ok_or_else(|| {
            Failure::lasting(Kind::Refused, format!("a configuration of more than {DOCUMENT} bytes is not fetched"))
        })?;
        let (bytes, _) = self.each(|endpoint| Box::pin(endpoint.document(&self.http, digest, size))).await?;
        Ok(bytes)
    }

    /// Fetches what is left of a blob; a server goes on where the one before it failed.
    pub(crate) async fn blob(&self, digest: &str, mut transfer: Transfer, origin_only: bool) -> Result<(), Failure> {
        check_digest(digest)?;
        let origin = self.endpoints.len() - 1;
        let first = if origin_only { origin } else { self.first.load(Ordering::Relaxed) };
        for (index, endpoint) in self.endpoints.iter().enumerate().skip(first) {
            match endpoint.blob(&self.http, &mut transfer).await {
                Ok(()) => return Ok(()),
                Err(failure) if index == origin || failure.kind == Kind::Local => return Err(failure),
                Err(failure) => self.pass_over(index, &failure),
            }
        }
        unreachable!("the last server's answer is returned")
    }

    /// Asks one server after the other; gives the first answer and whose it is, or the last one's failure.
    async fn each<'a, T>(&'a self, ask: impl Fn(&'a Endpoint) -> Pending<'a, T>) -> Result<(T, usize), Failure> {
        let origin = self.endpoints.len() - 1;
        for (index, endpoint) in self.endpoints.iter().enumerate().skip(self.first.load(Ordering::Relaxed)) {
            match ask(endpoint).await {
                Ok(answer) => return Ok((answer, index)),
                Err(failure) if index == origin => return Err(failure),
                Err(failure) => self.pass_over(index, &failure),
            }
        }
        unreachable!("the last server's answer is returned")
    }

    fn pass_over(&self, index: usize, failure: &Failure) {
        tracing::info!("going on to {}: {failure}", self.endpoints[index + 1].whom);
        // One that lacks a single thing may have others.
        if failure.kind != Kind::NotFound {
            self.first.fetch_max(index + 1, Ordering::Relaxed);
        }
    }
}

/// Names of repositories (distribution-spec 1.1, "Pulling manifests"), as far as a path of a URL is concerned: nothing that
/// could end it or lead out of it.
fn is_repository(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(fits);
    name.len() <= 255 && name.split('/').all(part)
}

/// A tag or a digest.
fn check_reference(reference: &str) -> Result<(), Failure> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_tag =
        (1..=128).contains(&reference.len()) && !reference.starts_with(['.', '-']) && reference.bytes().all(fits);
    if is_tag || is_digest(reference) {
        return Ok(());
    }
    Err(Failure::lasting(Kind::Refused, format!("\"{}\" is neither a tag nor a digest", neutral(reference))))
}

fn check_digest(digest: &str) -> Result<(), Failure> {
    if is_digest(digest) {
        return Ok(());
    }
    Err(Failure::lasting(Kind::Refused, format!("\"{}\" is not a SHA-256 digest", neutral(digest))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_lead_elsewhere_are_refused() {
        for name in ["library/node", "a", "a/b/c-d_e.f", "1/2"] {
            assert!(is_repository(name), "{name}");
        }
        let long = "a".repeat(256);
        for name in
            ["", "/", "a/", "/a", "a//b", "..", "a/../b", "a/.b", "A", "a?b", "a#b", "a%2f", "a b", "ä", "a\n", &long]
        {
            assert!(!is_repository(name), "{name}");
        }
        let digest = format!("sha256:{}", "0".repeat(64));
        for reference in ["latest", "22", "V1.2-rc_1", &digest] {
            assert!(check_reference(reference).is_ok(), "{reference}");
        }
        for reference in ["", "..", "-a", "a/b", "a?b", "a:b", "sha256:0", &digest.to_uppercase(), &"a".repeat(129)] {
            let error = check_reference(reference).unwrap_err();
            assert!(error.text.contains("neither a tag nor a digest"), "{reference}: {error}");
        }
        assert!(check_digest("latest").is_err());
    }
}
