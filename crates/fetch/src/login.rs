//! Credentials and tokens of one server (Docker's token authentication specification, RFC 6750).
//!
//! The first request is anonymous. A server that answers 401 says what it wants: a token of its token service, or the
//! credentials themselves. Credentials go to the server they are for, and to a token service of the same site.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use runner_wire::fetch::{self, Hidden};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::challenge::{self, Challenge};
use crate::failure::{Failure, Kind};
use crate::http::{Answer, Ask, Http, host};
use crate::site::same_site;

/// Bytes of a token service's answer that are read.
const TOKEN_BODY: usize = 64 << 10;

/// How long a token lives whose service does not say (Docker's token specification), and the longest that is believed.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const LONGEST_TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// What a token is no longer shown before its end: the request has to arrive, too.
const MARGIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Credentials {
    None,
    Password {
        username: String,
        password: Hidden,
    },
    /// An OAuth2 refresh token.
    Identity(Hidden),
}

/// Credentials of one server, and what came of them so far.
#[derive(Debug)]
pub(crate) struct Login {
    whom: String,
    /// The server's address, without a path.
    server: Url,
    repository: String,
    credentials: Credentials,
    /// Locked while a token is fetched, so that requests under way at once fetch one.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    shown: Option<Shown>,
    fetched: u64,
}

/// What requests show. `Debug` is safe: the value is marked as sensitive.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) value: HeaderValue,
    /// Counts up with each new one.
    number: u64,
    until: Option<Instant>,
    /// Whether credentials were sent for it.
    credentials: bool,
    /// The token service that got no credentials although there are some, as it is elsewhere.
    stranger: Option<String>,
}

impl Login {
    /// For the server `whom` (as messages name it) at `server`.
    pub(crate) fn new(whom: &str, server: Url, repository: &str, endpoint: fetch::Endpoint) -> Login {
        let credentials = if !endpoint.identity_token.0.is_empty() {
            Credentials::Identity(endpoint.identity_token)
        } else if !endpoint.username.is_empty() || !endpoint.password.0.is_empty() {
            Credentials::Password { username: endpoint.username, password: endpoint.password }
        } else {
            Credentials::None
        };
        let (whom, repository) = (whom.to_owned(), repository.to_owned());
        Login { whom, server, repository, credentials, state: Mutex::default() }
    }

    /// What to show now, if anything.
    pub(crate) async fn shown(&self) -> Option<Shown> {
        let shown = self.state.lock().await.shown.clone();
        shown.filter(|shown| shown.until.is_none_or(|until| Instant::now() < until))
    }

    /// Something to show instead of what was `refused` with these header fields.
    pub(crate) async fn renew(
        &self,
        http: &Http,
        refused: Option<&Shown>,
        headers: &HeaderMap,
    ) -> Result<Shown, Failure> {
        let mut state = self.state.lock().await;
        if let Some(shown) = &state.shown
            && refused.is_none_or(|refused| refused.number != shown.number)
            && shown.until.is_none_or(|until| Instant::now() < until)
        {
            // Another request was refused, too, and was faster.
            return Ok(shown.clone());
        }
        let fields = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|field| field.to_str().ok());
        let challenges: Vec<Challenge> = fields.flat_map(challenge::parse).collect();
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let mut shown = match (find("bearer"), find("basic")) {
            (Some(bearer), _) => self.token(http, bearer).await?,
            (None, Some(_)) => match &self.credentials {
                Credentials::Password { username, password } => Shown {
                    value: basic(username, password)?,
                    number: 0,
                    until: None,
                    credentials: true,
                    stranger: None,
                },
                Credentials::Identity(_) => {
                    let text =
                        format!("{} wants a user name and a password, but there is only an identity token", self.whom);
                    return Err(Failure::lasting(Kind::Unauthorized, text));
                }
                Credentials::None => return Err(self.unauthorized(None, "401")),
            },
            (None, None) => {
                let text = format!("{} wants credentials of a kind that is not known here", self.whom);
                return Err(Failure::lasting(Kind::Unauthorized, text));
            }
        };
        state.fetched += 1;
        shown.number = state.fetched;
        state.shown = Some(shown.clone());
        Ok(shown)
    }

    /// The failure of a request that was refused with all there is to show; `reason` is the registry's.
    pub(crate) fn unauthorized(&self, shown: Option<&Shown>, reason: &str) -> Failure {
        let (whom, repository) = (&self.whom, &self.repository);
        let text = match shown {
            Some(Shown { credentials: true, .. }) => format!(
                "{whom} refused the credentials for {repository} ({reason}): check those in the workflow or in /etc/runner/auth.json"
            ),
            Some(Shown { stranger: Some(stranger), .. }) => format!(
                "{whom} wants credentials for {repository}, but its token service, {stranger}, is another site's and gets none ({reason})"
            ),
            _ => format!(
                "{whom} wants credentials for {repository}, which is private or does not exist ({reason}): \
                 set credentials in the workflow or in /etc/runner/auth.json"
            ),
        };
        Failure::lasting(Kind::Unauthorized, text)
    }

    /// Whether there are any credentials.
    pub(crate) fn has_credentials(&self) -> bool {
        !matches!(self.credentials, Credentials::None)
    }

    async fn token(&self, http: &Http, challenge: &Challenge) -> Result<Shown, Failure> {
        let whom = &self.whom;
        let realm = challenge.parameter("realm").and_then(|realm| Url::parse(realm).ok());
        let realm = realm.filter(|realm| matches!(realm.scheme(), "http" | "https") && realm.has_host());
        let Some(mut realm) = realm.filter(|realm| realm.username().is_empty() && realm.password().is_none()) else {
            return Err(Failure::lasting(Kind::BadAnswer, format!("{whom} names no token service")));
        };
        if realm.scheme() == "http" && self.server.scheme() != "http" {
            let text = format!("{whom} names a token service without TLS, {}, which is refused", host(&realm));
            return Err(Failure::lasting(Kind::Refused, text));
        }
        realm.set_fragment(None);
        let near = same_site(self.server.host_str().unwrap_or_default(), realm.host_str().unwrap_or_default());
        let stranger = (!near && self.has_credentials()).then(|| host(&realm));
        let credentials = near && self.has_credentials();
        let service = challenge.parameter("service").unwrap_or_default();
        let scope = scope(challenge, &self.repository);
        let asked_name = format!("token service {} of {whom}", host(&realm));
        let mut ask = Ask {
            whom: &asked_name,
            method: Method::GET,
            url: realm.clone(),
            headers: HeaderMap::new(),
            authorization: None,
            form: None,
        };
        if let (true, Credentials::Identity(token)) = (near, &self.credentials) {
            let fields = [
                ("grant_type", "refresh_token"),
                ("client_id", "runner-appliance"),
                ("service", service),
                ("scope", &scope),
                ("refresh_token", &token.0),
            ];
            // The query of an address is written like a form (WHATWG URL, 5.2).
            realm.set_query(None);
            realm.query_pairs_mut().extend_pairs(fields);
            ask.form = realm.query().map(str::to_owned);
            ask.method = Method::POST;
        } else {
            if !service.is_empty() {
                ask.url.query_pairs_mut().append_pair("service", service);
            }
            ask.url.query_pairs_mut().append_pair("scope", &scope);
            if let (true, Credentials::Password { username, password }) = (near, &self.credentials) {
                ask.authorization = Some(basic(username, password)?);
            }
        }
        let answer = http.send(ask).await?;
        let (value, life) = self.read_token(http, answer, credentials, stranger.clone()).await?;
        let until = Some(Instant::now() + life.saturating_sub(MARGIN));
        Ok(Shown { value, number: 0, until, credentials, stranger })
    }

    async fn read_token(
        &self,
        http: &Http,
        mut answer: Answer,
        credentials: bool,
        stranger: Option<String>,
    ) -> Result<(HeaderValue, Duration), Failure> {
        #[derive(Deserialize)]
        struct Grant {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
            expires_in: Option<u64>,
        }
        let status = answer.status.as_u16();
        if status != 200 {
            let reason = answer.reason(&http.patience).await;
            let refused = matches!(status, 400 | 401 | 403);
            return Err(if refused && answer.own {
                let shown =
                    Shown { value: HeaderValue::from_static(""), number: 0, until: None, credentials, stranger };
                self.unauthorized(Some(&shown), &reason)
            } else {
                answer.failure(&reason)
            });
        }
        let body = answer.body.read(TOKEN_BODY, &http.patience).await;
        let body = body.map_err(|broken| Failure::passing(Kind::Unavailable, format!("{}: {broken}", answer.who)))?;
        // The parser's own words might quote the token.
        let grant = serde_json::from_slice::<Grant>(&body).ok();
        let token = grant.as_ref().map(|grant| if grant.token.is_empty() { &grant.access_token } else { &grant.token });
        let value = token.filter(|token| !token.is_empty()).and_then(|token| sensitive(&format!("Bearer {token}")));
        let Some(value) = value else {
            return Err(Failure::lasting(Kind::BadAnswer, format!("{} gave no token", answer.who)));
        };
        let life = grant.and_then(|grant| grant.expires_in).map_or(TOKEN_LIFE, Duration::from_secs);
        Ok((value, life.min(LONGEST_TOKEN_LIFE)))
    }
}

/// What a token is asked for: what the server names, as long as that is to pull; it knows its own names.
fn scope(challenge: &Challenge, repository: &str) -> String {
    let named = challenge.parameter("scope").filter(|scope| {
        let mut parts = scope.split(':');
        parts.next() == Some("repository") && parts.next_back() == Some("pull") && !scope.contains(' ')
    });
    named.map_or_else(|| format!("repository:{repository}:pull"), str::to_owned)
}

/// `Basic …` (RFC 7617).
fn basic(username: &str, password: &Hidden) -> Result<HeaderValue, Failure> {
    let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.0));
    sensitive(&format!("Basic {pair}")).ok_or_else(|| Failure::lasting(Kind::Refused, "the credentials cannot be sent"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
