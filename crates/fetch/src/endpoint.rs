//! One server: the paths of the distribution protocol, and what its answers mean.

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use runner_wire::fetch::{self, Manifest};
use sha2::{Digest as _, Sha256};

use crate::body::Broken;
use crate::failure::{Failure, Kind};
use crate::http::{Answer, Ask, Http, host};
use crate::login::Login;
use crate::retry::Tries;
use crate::text::neutral;

/// Bytes a manifest or another document may have.
pub(crate) const DOCUMENT: usize = 4 << 20;

/// Manifests and indexes that are understood (OCI image-spec 1.1, Docker image manifest version 2, schema 2).
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Header field with the digest of a manifest, if a registry sends one.
const DIGEST: &str = "docker-content-digest";

/// A server that may have the repository.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// `registry ghcr.io` or `mirror mirror.example`, for messages.
    pub(crate) whom: String,
    /// Without a slash at its end.
    url: String,
    repository: String,
    login: Login,
    /// No other is asked after it.
    pub(crate) last: bool,
}

impl Endpoint {
    pub(crate) fn new(endpoint: fetch::Endpoint, repository: &str, last: bool) -> Result<Endpoint, Failure> {
        let server = Url::parse(&endpoint.url).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        let Some(mut server) = server else {
            // It may hold a password, so it is not shown.
            let what = if last { "a registry" } else { "a mirror in RUNNER_REGISTRY_MIRRORS" };
            return Err(Failure::lasting(
                Kind::Refused,
                format!("the address of {what} is not https://HOST[:PORT][/PREFIX]"),
            ));
        };
        let whom = format!("{} {}", if last { "registry" } else { "mirror" }, host(&server));
        server.set_path("");
        let url = endpoint.url.trim_end_matches('/').to_owned();
        let login = Login::new(&whom, server, repository, endpoint);
        Ok(Endpoint { whom, url, repository: repository.to_owned(), login, last })
    }

    /// Digest a tag stands for at the moment.
    pub(crate) async fn resolve(&self, http: &Http, tag: &str) -> Result<String, Failure> {
        let mut tries = Tries::new(&http.patience, self.last);
        loop {
            match self.try_resolve(http, tag).await {
                Ok(digest) => return Ok(digest),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn try_resolve(&self, http: &Http, tag: &str) -> Result<String, Failure> {
        let mut answer = self.ask(http, Method::HEAD, "manifests", tag, accept()).await?;
        match answer.status.as_u16() {
            200 => match declared_digest(&answer)? {
                Some(digest) => Ok(digest),
                None => Ok(digest_of(&self.try_manifest(http, tag).await?.bytes)),
            },
            // The protocol demands HEAD of every registry; some proxies in front of them know better.
            405 => Ok(digest_of(&self.try_manifest(http, tag).await?.bytes)),
            _ => Err(self.refusal(http, &mut answer, "image").await),
        }
    }

    /// A manifest or index.
    pub(crate) async fn manifest(&self, http: &Http, reference: &str) -> Result<Manifest, Failure> {
        let mut tries = Tries::new(&http.patience, self.last);
        loop {
            match self.try_manifest(http, reference).await {
                Ok(manifest) => return Ok(manifest),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn try_manifest(&self, http: &Http, reference: &str) -> Result<Manifest, Failure> {
        let mut answer = self.ask(http, Method::GET, "manifests", reference, accept()).await?;
        if answer.status.as_u16() != 200 {
            return Err(self.refusal(http, &mut answer, "image").await);
        }
        let declared = declared_digest(&answer)?;
        let bytes = self.read(http, &mut answer, "manifest", DOCUMENT).await?;
        let digest = digest_of(&bytes);
        let wanted = Some(reference).filter(|reference| reference.contains(':')).or(declared.as_deref());
        if wanted.is_some_and(|wanted| wanted != digest) {
            let text = format!("the manifest that {} sent does not have the digest it goes by", answer.who);
            return Err(Failure::lasting(Kind::BadAnswer, text));
        }
        let media_type = answer.headers.get(CONTENT_TYPE).and_then(|field| field.to_str().ok()).unwrap_or_default();
        // Parameters such as a character set say nothing about JSON.
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok(Manifest { media_type, bytes })
    }

    /// A small blob, verified.
    pub(crate) async fn document(&self, http: &Http, digest: &str, size: usize) -> Result<Vec<u8>, Failure> {
        let mut tries = Tries::new(&http.patience, self.last);
        loop {
            match self.try_document(http, digest, size).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn try_document(&self, http: &Http, digest: &str, size: usize) -> Result<Vec<u8>, Failure> {
        let mut answer = self.ask(http, Method::GET, "blobs", digest, HeaderMap::new()).await?;
        if answer.status.as_u16() != 200 {
            return Err(self.refusal(http, &mut answer, &blob_name(digest)).await);
        }
        let name = blob_name(digest);
        let bytes = self.read(http, &mut answer, &name, size).await?;
        if bytes.len() != size || digest_of(&bytes) != digest {
            let text = format!("the {name} that {} sent does not have the digest and size it goes by", answer.who);
            return Err(Failure::lasting(Kind::BadAnswer, text));
        }
        Ok(bytes)
    }

    /// Sends one request below the repository's path, with whatever there is to show, and once more with something new
    /// if that is refused.
    pub(crate) async fn ask(
        &self,
        http: &Http,
        method: Method,
        kind: &str,
        name: &str,
        headers: HeaderMap,
    ) -> Result<Answer, Failure> {
        let url = Url::parse(&format!("{}/v2/{}/{kind}/{name}", self.url, self.repository));
        let url =
            url.map_err(|_| Failure::lasting(Kind::Refused, format!("no address at {} can be made of it", self.whom)))?;
        let mut shown = self.login.shown().await;
        for round in 0.. {
            let authorization = shown.as_ref().map(|shown| shown.value.clone());
            let ask = Ask {
                whom: &self.whom,
                method: method.clone(),
                url: url.clone(),
                headers: headers.clone(),
                authorization,
                form: None,
            };
            let mut answer = http.send(ask).await?;
            if answer.status.as_u16() != 401 || !answer.own {
                return Ok(answer);
            }
            if round == 1 {
                let reason = answer.reason(&http.patience).await;
                return Err(self.login.unauthorized(shown.as_ref(), &reason));
            }
            shown = Some(self.login.renew(http, shown.as_ref(), &answer.headers).await?);
        }
        unreachable!("the second round returns")
    }

    /// The failure of an answer that is not the one hoped for.
    pub(crate) async fn refusal(&self, http: &Http, answer: &mut Answer, what: &str) -> Failure {
        let reason = answer.reason(&http.patience).await;
        let who = &answer.who;
        match answer.status.as_u16() {
            403 if self.login.has_credentials() => Failure::lasting(
                Kind::Denied,
                format!("{who} does not let these credentials have {} ({reason})", self.repository),
            ),
            401 | 403 => Failure::lasting(
                Kind::Denied,
                format!(
                    "{who} does not give {} to everybody ({reason}): set credentials in the workflow or in /etc/runner/auth.json",
                    self.repository
                ),
            ),
            404 => Failure::lasting(Kind::NotFound, format!("{who} has no such {what} ({reason})")),
            _ => answer.failure(&reason),
        }
    }

    /// Reads a document of at most so many bytes.
    async fn read(&self, http: &Http, answer: &mut Answer, what: &str, most: usize) -> Result<Vec<u8>, Failure> {
        answer.body.read(most, &http.patience).await.map_err(|broken| match broken {
            Broken::Long(_) => Failure::lasting(
                Kind::Refused,
                format!("the {what} that {} sends is longer than {most} bytes", answer.who),
            ),
            broken => {
                Failure::passing(Kind::Unavailable, format!("the {what} from {} is incomplete: {broken}", answer.who))
            }
        })
    }
}

/// A blob in messages.
pub(crate) fn blob_name(digest: &str) -> String {
    let short = digest.get(..19).unwrap_or(digest);
    format!("blob {short}")
}

/// `sha256:` and the digits of `bytes`' digest.
fn digest_of(bytes: &[u8]) -> String {
    let digits = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("sha256:{digits}")
}

/// Whether `text` is `sha256:` and 64 lower-case digits; no other algorithm is used.
pub(crate) fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn accept() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFESTS))])
}

/// The digest in the answer's head, if there is one.
fn declared_digest(answer: &Answer) -> Result<Option<String>, Failure> {
    let Some(field) = answer.headers.get(DIGEST) else { return Ok(None) };
    match field.to_str() {
        Ok(digest) if is_digest(digest) => Ok(Some(digest.to_owned())),
        _ => {
            let digest = neutral(&String::from_utf8_lossy(field.as_bytes()));
            let text = format!("{} names a digest that is not SHA-256: \"{digest}\"", answer.who);
            Err(Failure::lasting(Kind::BadAnswer, text))
        }
    }
}
