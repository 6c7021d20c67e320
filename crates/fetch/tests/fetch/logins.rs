//! Tokens and credentials: who gets them, and who does not.

use runner_testbed::registry::{Access, Fault, Image, Registry, TokenAccess, When};
use runner_wire::fetch::{Endpoint, Hidden, ImageFetchProxy};

use crate::setting::{REPOSITORY, Wanted, content, endpoint, failed, fetch, fetcher, open, origin, with_password};

const PASSWORD: &str = "s3cret-pässword";

async fn login(registry: &Registry) -> ImageFetchProxy<'static> {
    open(&origin(vec![with_password(&registry.url(), "user", PASSWORD)])).await
}

fn access() -> TokenAccess {
    TokenAccess { password: PASSWORD.to_owned(), ..TokenAccess::default() }
}

fn registry(access: Access) -> (Registry, String) {
    let registry = Registry::start().unwrap();
    let image = registry.put_image(REPOSITORY, "22", &Image::new());
    registry.require(access);
    (registry, image.manifest)
}

fn paths(registry: &Registry) -> Vec<String> {
    registry.requests().iter().map(|request| request.to_string().split('?').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_token_is_fetched_once_and_kept() {
    let (registry, digest) = registry(Access::Token(access()));
    let fetcher = login(&registry).await;
    for _ in 0..3 {
        assert_eq!(fetcher.resolve("22").await.unwrap(), digest);
    }
    let requests = registry.requests();
    assert_eq!(requests.len(), 5, "{requests:?}");
    assert_eq!(requests[0].authorization(), None, "the first request is anonymous");
    assert!(
        requests[1].path.starts_with("/token?service=test-registry&scope=repository%3Alibrary%2Fnode%3Apull"),
        "{requests:?}"
    );
    assert!(requests[1].authorization().unwrap().starts_with("Basic "));
    for request in &requests[2..] {
        assert_eq!(request.authorization(), Some("Bearer granted.1"));
    }
    // A token that is not taken any more is replaced.
    registry.revoke_tokens();
    assert_eq!(fetcher.resolve("22").await.unwrap(), digest);
    assert_eq!(registry.requests().last().unwrap().authorization(), Some("Bearer granted.2"));
}

#[tokio::test]
async fn a_token_is_not_shown_after_its_end() {
    let (registry, _) = registry(Access::Token(TokenAccess { lifetime: Some(0), ..access() }));
    let fetcher = login(&registry).await;
    fetcher.resolve("22").await.unwrap();
    fetcher.resolve("22").await.unwrap();
    let requests = registry.requests();
    assert_eq!(requests.len(), 6, "{requests:?}");
    assert_eq!(requests[3].authorization(), None, "{requests:?}");
    assert_eq!(requests[5].authorization(), Some("Bearer granted.2"));
}

#[tokio::test]
async fn requests_at_once_share_a_token() {
    let (registry, _) = registry(Access::Token(access()));
    let bytes = content(1000);
    let digest = registry.put_blob(REPOSITORY, bytes.clone());
    let fetcher = login(&registry).await;
    let wanted = Wanted { digest: &digest, size: 1000, have: &[], origin_only: false };
    let all = futures_util::future::join_all((0..6).map(|_| fetch(&fetcher, &wanted))).await;
    assert!(all.iter().all(|fetched| fetched.outcome.is_ok() && fetched.file == bytes), "{all:?}");
    let tokens = registry.requests().iter().filter(|request| request.path.starts_with("/token")).count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn an_anonymous_token_suffices_where_it_does() {
    let (registry, digest) = registry(Access::Token(TokenAccess { anonymous: true, ..access() }));
    assert_eq!(fetcher(&registry).await.resolve("22").await.unwrap(), digest);
    assert!(
        registry.requests().iter().all(|request| !request.authorization().unwrap_or_default().starts_with("Basic"))
    );
}

#[tokio::test]
async fn an_identity_token_is_posted() {
    let (registry, digest) = registry(Access::Token(access()));
    let endpoint = Endpoint { identity_token: Hidden("identity".to_owned()), ..endpoint(&registry.url()) };
    assert_eq!(open(&origin(vec![endpoint.clone()])).await.resolve("22").await.unwrap(), digest);
    let post = registry.requests()[1].clone();
    assert_eq!((post.method.as_str(), post.path.as_str()), ("POST", "/token"));
    assert!(post.body.contains("grant_type=refresh_token") && post.body.contains("refresh_token=identity"), "{post:?}");
    assert_eq!(post.authorization(), None);
    // A form with a secret is sent to nobody else.
    let other = Registry::start().unwrap();
    registry.revoke_tokens();
    registry.inject(When::path("/token"), Fault::Redirect(format!("{}/token", other.url())));
    let (kind, text) = failed(open(&origin(vec![endpoint])).await.resolve("22").await);
    assert_eq!(kind, "BadAnswer", "{text}");
    assert!(other.requests().is_empty(), "{:?}", other.requests());
}

#[tokio::test]
async fn basic_credentials_are_shown_when_asked_for() {
    let (registry, digest) = registry(Access::Basic { username: "user".into(), password: PASSWORD.into() });
    let fetcher = login(&registry).await;
    assert_eq!(fetcher.resolve("22").await.unwrap(), digest);
    assert_eq!(fetcher.resolve("22").await.unwrap(), digest);
    let requests = registry.requests();
    assert_eq!(requests.len(), 3, "{requests:?}");
    assert_eq!(requests[0].authorization(), None);
}

#[tokio::test]
async fn who_has_no_credentials_is_told_where_they_belong() {
    let basic = || Access::Basic { username: "user".into(), password: PASSWORD.into() };
    for access in [basic(), Access::Token(access())] {
        let (registry, _) = registry(access.clone());
        let (kind, text) = failed(fetcher(&registry).await.resolve("22").await);
        assert_eq!(kind, "Unauthorized", "{access:?}: {text}");
        for part in [&registry.host(), "library/node", "set credentials in the workflow or in /etc/runner/auth.json"] {
            assert!(text.contains(part), "{access:?}: {text}");
        }
        let wrong = open(&origin(vec![with_password(&registry.url(), "user", "wr0ng")])).await;
        let (kind, text) = failed(wrong.resolve("22").await);
        assert_eq!(kind, "Unauthorized", "{access:?}: {text}");
        assert!(text.contains("refused the credentials") && !text.contains("wr0ng"), "{access:?}: {text}");
    }
}

#[tokio::test]
async fn a_token_service_elsewhere_gets_no_credentials() {
    // The same machine by another name is another site.
    let service = Registry::start().unwrap();
    service.require(Access::Token(access()));
    let realm = format!("{}/token", service.localhost_url());
    let (registry, digest) = registry(Access::Token(TokenAccess { realm: Some(realm), ..access() }));
    let (kind, text) = failed(login(&registry).await.resolve("22").await);
    assert_eq!(kind, "Unauthorized", "{text}");
    assert!(text.contains("another site"), "{text}");
    assert_eq!(service.requests().len(), 1);
    assert_eq!(service.requests()[0].authorization(), None);
    let identity = Endpoint { identity_token: Hidden("identity".into()), ..endpoint(&registry.url()) };
    failed(open(&origin(vec![identity])).await.resolve("22").await);
    assert!(service.requests().iter().all(|request| request.method == "GET" && request.body.is_empty()));
    // By the same name it does, whatever the port.
    registry.require(Access::Token(TokenAccess { realm: Some(format!("{}/token", service.url())), ..access() }));
    assert_eq!(login(&registry).await.resolve("22").await.unwrap(), digest);
}

#[tokio::test]
async fn token_services_that_misbehave_are_named() {
    let (registry, _) = registry(Access::Token(access()));
    for (fault, kind, part, tries) in [
        (Fault::Status(503), "Unavailable", "token service", 3),
        (Fault::Status(429), "RateLimited", "token service", 3),
        (Fault::Status(403), "Unauthorized", "refused the credentials", 1),
        (Fault::Status(404), "BadAnswer", "404", 1),
        (Fault::Answer(200, b"{}".to_vec()), "BadAnswer", "gave no token", 1),
        (Fault::Answer(200, b"{\"token\":\"to\\nken\"}".to_vec()), "BadAnswer", "gave no token", 1),
        (Fault::Answer(200, b"<html>".to_vec()), "BadAnswer", "gave no token", 1),
        (Fault::Answer(200, vec![b' '; 100_000]), "Unavailable", "more than 65536 bytes", 3),
    ] {
        registry.heal();
        registry.forget_requests();
        registry.inject(When::path("/token"), fault.clone());
        let (got, text) = failed(login(&registry).await.resolve("22").await);
        assert_eq!(got, kind, "{fault:?}: {text}");
        assert!(text.contains(part) && text.contains(&registry.host()), "{fault:?}: {text}");
        let asked = paths(&registry).iter().filter(|path| path.contains("/token")).count();
        assert_eq!(asked, tries, "{fault:?}: {text}");
    }
    for challenge in
        ["Bearer", "Bearer realm=\"x\"", "Bearer realm=\"ftp://x/\"", "Bearer realm=\"http://u:p@127.0.0.1/\""]
    {
        registry.heal();
        registry.inject(When::path("/manifests/"), Fault::header("WWW-Authenticate", challenge));
        let (got, text) = failed(login(&registry).await.resolve("22").await);
        assert_eq!(got, "BadAnswer", "{challenge}: {text}");
    }
    registry.heal();
    registry.inject(When::path("/manifests/"), Fault::header("WWW-Authenticate", "Negotiate"));
    let (got, text) = failed(login(&registry).await.resolve("22").await);
    assert_eq!(got, "Unauthorized", "{text}");
}
