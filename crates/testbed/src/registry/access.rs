//! Who may pull, and the token service.

use std::collections::HashSet;

use super::message::{Answer, fields};
use super::{Request, State};

/// What a registry asks of whoever comes.
#[derive(Debug, Clone, Default)]
pub enum Access {
    /// Nothing.
    #[default]
    Anyone,
    /// HTTP's basic authentication.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A token of a token service.
    Token(TokenAccess),
}

/// How a registry with tokens behaves; its own token service, at `/token`, goes by the same.
#[derive(Debug, Clone)]
pub struct TokenAccess {
    /// Address of the token service; `None` for this registry's own.
    pub realm: Option<String>,
    /// Whether a token that was had without credentials suffices.
    pub anonymous: bool,
    /// User name the token service takes.
    pub username: String,
    /// Password the token service takes.
    pub password: String,
    /// Refresh token the token service takes in a `POST`.
    pub identity_token: String,
    /// `expires_in` of its tokens, seconds; `None` leaves it out.
    pub lifetime: Option<u64>,
}

impl Default for TokenAccess {
    fn default() -> TokenAccess {
        TokenAccess {
            realm: None,
            anonymous: false,
            username: "user".to_owned(),
            password: "password".to_owned(),
            identity_token: "identity".to_owned(),
            lifetime: Some(300),
        }
    }
}

/// What the token service says it is.
const SERVICE: &str = "test-registry";

/// Tokens given out and taken. Their text says all: `granted.N` or `anonymous.N`, of whatever registry.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    issued: u64,
    shown: HashSet<String>,
    revoked: HashSet<String>,
}

impl Tokens {
    pub(super) fn revoke(&mut self) {
        self.revoked.extend(self.shown.drain());
    }
}

/// `None` if the request may pass, else the answer that says why not.
pub(super) fn judge(state: &mut State, request: &Request, repository: &str, url: &str) -> Option<Answer> {
    let refusal = |challenge: String| {
        let answer = Answer::error(401, "UNAUTHORIZED", "authentication required");
        Some(answer.with("WWW-Authenticate", &challenge))
    };
    match &state.access {
        Access::Anyone => None,
        Access::Basic { username, password } => {
            let wanted = basic(username, password);
            if request.authorization() == Some(wanted.as_str()) {
                None
            } else {
                refusal("Basic realm=\"test\"".to_owned())
            }
        }
        Access::Token(access) => {
            if let Some(token) = request.authorization().and_then(|text| text.strip_prefix("Bearer ")) {
                let enough = token.starts_with("granted.") || access.anonymous && token.starts_with("anonymous.");
                if enough && !state.tokens.revoked.contains(token) {
                    state.tokens.shown.insert(token.to_owned());
                    return None;
                }
            }
            let realm = access.realm.clone().unwrap_or_else(|| format!("{url}/token"));
            refusal(format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\",scope=\"repository:{repository}:pull\""))
        }
    }
}

/// The token service.
pub(super) fn token(state: &mut State, request: &Request) -> Answer {
    let Access::Token(access) = &state.access else {
        return Answer::error(404, "NOT_FOUND", "no token service");
    };
    let refused = || Answer::error(401, "UNAUTHORIZED", "wrong credentials");
    let query = request.path.split_once('?').map_or("", |(_, query)| query);
    let asked = fields(if request.method == "POST" { &request.body } else { query });
    if asked.get("service").map(String::as_str) != Some(SERVICE) || !asked.contains_key("scope") {
        return Answer::error(400, "DENIED", "service or scope is missing");
    }
    let granted = match (request.method.as_str(), request.authorization()) {
        ("POST", _) => {
            let grant = asked.get("grant_type").map(String::as_str);
            if grant != Some("refresh_token") || asked.get("refresh_token") != Some(&access.identity_token) {
                return refused();
            }
            true
        }
        (_, None) => false,
        (_, Some(shown)) if shown == basic(&access.username, &access.password) => true,
        _ => return refused(),
    };
    let lifetime = access.lifetime.map(|seconds| format!(",\"expires_in\":{seconds}")).unwrap_or_default();
    state.tokens.issued += 1;
    let kind = if granted { "granted" } else { "anonymous" };
    // A `POST` is OAuth2, whose answer has no `token`.
    let name = if request.method == "POST" { "access_token" } else { "token" };
    let body = format!("{{\"{name}\":\"{kind}.{}\"{lifetime}}}", state.tokens.issued);
    Answer::new(200, body.into_bytes()).with("Content-Type", "application/json")
}

/// `Basic …`, RFC 7617.
fn basic(username: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "Basic ".to_owned();
    for three in format!("{username}:{password}").as_bytes().chunks(3) {
        let bits = (0..3).fold(0u32, |bits, index| bits << 8 | u32::from(three.get(index).copied().unwrap_or(0)));
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= three.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::basic;

    #[test]
    fn basic_credentials_are_those_of_the_standards_examples() {
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(basic("test", "123\u{a3}"), "Basic dGVzdDoxMjPCow==");
        assert_eq!(basic("a", "b"), "Basic YTpi");
    }
}
