//! One request with its redirects, over a client that trusts nothing it was not told to.

use std::error::Error;
use std::time::SystemTime;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Certificate, Client, ClientBuilder, Method, NoProxy, Proxy, StatusCode, Url};
use runner_wire::fetch::Origin;

use crate::body::Body;
use crate::failure::{Again, Failure, Kind};
use crate::retry::{Patience, retry_after};
use crate::text;

/// Redirects followed for one request.
const REDIRECTS: usize = 5;

/// Bytes of an error's body that are read.
const ERROR_BODY: usize = 16 << 10;

/// What all requests for one image go through.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    pub(crate) patience: Patience,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Ask<'a> {
    /// Who is asked, for messages: `registry ghcr.io`.
    pub(crate) whom: &'a str,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// Shown to the server of `url` and to nobody it redirects to.
    pub(crate) authorization: Option<HeaderValue>,
    /// Of a form; redirects are not followed with it.
    pub(crate) form: Option<String>,
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Who answered, for messages.
    pub(crate) who: String,
    /// Whether that is the server that was asked, and not one it redirected to.
    pub(crate) own: bool,
}

impl Http {
    /// A client with the certificates and proxies of `origin` and none of the environment's.
    pub(crate) fn new(origin: &Origin, patience: Patience) -> Result<Http, Failure> {
        // It stays what it is if somebody else in the process chose before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut further = Vec::new();
        if !origin.certificates.is_empty() {
            further = Certificate::from_pem_bundle(&origin.certificates).unwrap_or_default();
            if further.is_empty() {
                let text = "the file of RUNNER_REGISTRY_CA_FILE holds no certificate in PEM form";
                return Err(Failure::lasting(Kind::Refused, text));
            }
        }
        let builder = || -> Result<ClientBuilder, Failure> {
            let mut builder = Client::builder()
                .user_agent(concat!("runner-appliance/", env!("CARGO_PKG_VERSION")))
                .http1_only()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .connect_timeout(patience.connect)
                .no_proxy();
            type Make = fn(&str) -> reqwest::Result<Proxy>;
            let proxies: [(&str, &str, Make); 2] = [
                ("HTTP_PROXY", &origin.proxies.http.0, |url| Proxy::http(url)),
                ("HTTPS_PROXY", &origin.proxies.https.0, |url| Proxy::https(url)),
            ];
            for (name, url, make) in proxies.into_iter().filter(|(_, url, _)| !url.is_empty()) {
                // The error may hold the address, and that a password.
                let proxy = make(url)
                    .map_err(|_| Failure::lasting(Kind::Refused, format!("{name} is not a proxy's address")))?;
                builder = builder.proxy(proxy.no_proxy(NoProxy::from_string(&origin.proxies.no_proxy)));
            }
            Ok(builder)
        };
        let client = match builder()?.tls_certs_merge(further.clone()).build() {
            Ok(client) => client,
            // A host without any certificates of its own. Who is reached without TLS need not care; to the others the
            // failure says what is missing.
            Err(_) => builder()?.tls_certs_only(further).build().map_err(|error| {
                Failure::lasting(Kind::Refused, format!("TLS cannot be set up: {}", text::cause(&error)))
            })?,
        };
        Ok(Http { client, patience })
    }

    /// Sends a request and follows redirects. An answer of any status is an answer.
    pub(crate) async fn send(&self, mut ask: Ask<'_>) -> Result<Answer, Failure> {
        let asked = ask.url.clone();
        let mut own = true;
        for _ in 0..=REDIRECTS {
            let who =
                if own { ask.whom.to_owned() } else { format!("{}, which {} redirects to,", host(&ask.url), ask.whom) };
            let mut request = self.client.request(ask.method.clone(), ask.url.clone()).headers(ask.headers.clone());
            if let Some(authorization) = &ask.authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            if let Some(form) = &ask.form {
                request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone());
            }
            let silence = self.patience.silence;
            let response = match tokio::time::timeout(silence, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(not_sent(&who, &error)),
                Err(_) => {
                    return Err(Failure::passing(
                        Kind::Unavailable,
                        format!("{who} gave no answer within {silence:?}"),
                    ));
                }
            };
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 if ask.form.is_none() => response.headers().get(LOCATION),
                _ => None,
            };
            let Some(location) = location else {
                let (status, headers) = (response.status(), response.headers().clone());
                return Ok(Answer { status, headers, body: Body::new(response), who, own });
            };
            let next = location.to_str().ok().and_then(|location| ask.url.join(location).ok());
            let next = next.filter(|next| matches!(next.scheme(), "http" | "https") && next.has_host());
            let Some(next) = next else {
                return Err(Failure::lasting(Kind::BadAnswer, format!("{who} redirects to what is no address")));
            };
            // Plain HTTP is allowed for the hosts the configuration lists, and for nobody they point to.
            let listed = ask.url.scheme() == "http" && next.host_str() == asked.host_str();
            if next.scheme() == "http" && !listed {
                let text = format!("{who} redirects to plain HTTP at {}, which is refused", host(&next));
                return Err(Failure::lasting(Kind::Refused, text));
            }
            if next.origin() != asked.origin() {
                own = false;
                ask.authorization = None;
            }
            ask.url = next;
        }
        Err(Failure::lasting(Kind::BadAnswer, format!("{} redirects more than {REDIRECTS} times", ask.whom)))
    }
}

impl Answer {
    /// Status and the registry's own words, `404 MANIFEST_UNKNOWN: manifest unknown`.
    pub(crate) async fn reason(&mut self, patience: &Patience) -> String {
        let status = self.status.as_u16();
        // An error without a reason is still an error.
        let body = self.body.read(ERROR_BODY, patience).await.unwrap_or_default();
        match text::registry_reason(&body) {
            reason if reason.is_empty() => status.to_string(),
            reason => format!("{status} {reason}"),
        }
    }

    /// The failure of a status that means "not now", or that has no meaning here; `reason` is what [`Answer::reason`] said.
    pub(crate) fn failure(&self, reason: &str) -> Failure {
        let who = &self.who;
        let (kind, text) = match self.status.as_u16() {
            429 => (Kind::RateLimited, format!("{who} allows no more requests for now ({reason})")),
            408 | 500.. => (Kind::Unavailable, format!("{who} is out of order ({reason})")),
            407 => {
                return Failure::lasting(
                    Kind::Denied,
                    format!("the proxy for {who} wants other credentials ({reason})"),
                );
            }
            _ => return Failure::lasting(Kind::BadAnswer, format!("{who} gave an answer without meaning ({reason})")),
        };
        let asked = self.headers.get(RETRY_AFTER).and_then(|field| field.to_str().ok());
        let again = asked.and_then(|field| retry_after(field, SystemTime::now())).map_or(Again::Soon, Again::After);
        Failure { kind, text, again }
    }
}

/// Host of an address with its port, if that is not the scheme's own.
pub(crate) fn host(url: &Url) -> String {
    let host = text::neutral(url.host_str().unwrap_or_default());
    url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
}

/// The failure of a request that got no answer.
fn not_sent(who: &str, error: &reqwest::Error) -> Failure {
    let cause = text::cause(error);
    match tls(error) {
        Some(rustls::Error::InvalidCertificate(_)) => Failure::lasting(
            Kind::Refused,
            format!(
                "the certificate of {who} is not trusted ({cause}); RUNNER_REGISTRY_CA_FILE names further authorities"
            ),
        ),
        Some(rustls::Error::InvalidMessage(_)) => Failure::lasting(
            Kind::Refused,
            format!("{who} does not speak TLS; RUNNER_REGISTRY_INSECURE lists hosts that are reached without"),
        ),
        Some(_) => Failure::lasting(Kind::Refused, format!("no TLS connection to {who} ({cause})")),
        None if error.is_builder() => {
            Failure::lasting(Kind::Refused, format!("the request to {who} cannot be made ({cause})"))
        }
        None if error.is_connect() => Failure::passing(Kind::Unavailable, format!("{who} cannot be reached ({cause})")),
        None => Failure::passing(
            Kind::Unavailable,
            format!("{who} broke the connection off or does not speak HTTP ({cause})"),
        ),
    }
}

/// The failure of TLS among the causes of an error, if there is one.
fn tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        // `source` of an I/O error skips what it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        if let Some(tls) = wrapped.and_then(|wrapped| tls(wrapped)) {
            return Some(tls);
        }
        next = error.source();
    }
    None
}
