//! Redirects: followed, but not everywhere, and not with everything.

use runner_testbed::registry::{Access, Fault, Image, Registry, When};

use crate::setting::{REPOSITORY, Wanted, content, failed, fetch, fetcher, open, origin, with_password};

#[tokio::test]
async fn a_blob_is_fetched_from_where_the_registry_points() {
    let (registry, storage) = (Registry::start().unwrap(), Registry::start().unwrap());
    let bytes = content(200_000);
    let digest = registry.put_blob(REPOSITORY, bytes.clone());
    storage.put_blob("storage", bytes.clone());
    registry.require(Access::Basic { username: "user".into(), password: "secret".into() });
    let location = format!("{}/v2/storage/blobs/{digest}?signature=abc", storage.url());
    // The first request is the anonymous one.
    registry.inject(When::path("/blobs/").skip(1), Fault::Redirect(location));
    storage.inject(When::always().times(1), Fault::DropAfter(60_000));
    let fetcher = open(&origin(vec![with_password(&registry.url(), "user", "secret")])).await;
    let wanted = Wanted { digest: &digest, size: bytes.len() as u64, have: &[], origin_only: false };
    let fetched = fetch(&fetcher, &wanted).await;
    fetched.outcome.unwrap();
    assert!(fetched.file == bytes && fetched.pipe == bytes);
    let stored = storage.requests();
    assert_eq!(stored.len(), 2, "{stored:?}");
    assert!(stored.iter().all(|request| request.authorization().is_none()), "{stored:?}");
    assert_eq!(stored[1].header("range"), Some("bytes=60000-"));
    assert!(registry.requests()[1..].iter().all(|request| request.authorization().is_some()));
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_the_credentials() {
    let registry = Registry::start().unwrap();
    let image = registry.put_image("moved", "22", &Image::new());
    registry.require(Access::Basic { username: "user".into(), password: "secret".into() });
    registry.inject(When::path("/v2/library/"), Fault::Redirect("/v2/moved/manifests/22".to_owned()));
    let fetcher = open(&origin(vec![with_password(&registry.url(), "user", "secret")])).await;
    assert_eq!(fetcher.resolve("22").await.unwrap(), image.manifest);
}

#[tokio::test]
async fn failures_behind_a_redirect_name_both_hosts_and_no_address() {
    let (registry, storage) = (Registry::start().unwrap(), Registry::start().unwrap());
    let location = format!("{}/bucket?signature=s3cret", storage.url());
    registry.inject(When::always(), Fault::Redirect(location));
    for (status, kind) in [(401, "Denied"), (403, "Denied"), (404, "NotFound"), (500, "Unavailable")] {
        storage.heal();
        storage.inject(When::always(), Fault::Status(status));
        let (got, text) = failed(fetcher(&registry).await.manifest("22").await);
        assert_eq!(got, kind, "{status}: {text}");
        assert!(text.contains(&registry.host()) && text.contains(&storage.host()), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn redirects_that_lead_nowhere_good_are_refused() {
    let (registry, other) = (Registry::start().unwrap(), Registry::start().unwrap());
    let loops = format!("{}/v2/x", registry.url());
    // Plain HTTP is allowed for the registry's host, not for another one.
    let elsewhere = format!("{}/v2/x", other.localhost_url());
    for (location, kind, asked) in [
        (loops.as_str(), "BadAnswer", 6),
        (elsewhere.as_str(), "Refused", 1),
        ("ftp://127.0.0.1/", "BadAnswer", 1),
        ("file:///etc/passwd", "BadAnswer", 1),
        ("http://[", "BadAnswer", 1),
    ] {
        registry.heal();
        registry.forget_requests();
        registry.inject(When::always(), Fault::Redirect(location.to_owned()));
        let (got, text) = failed(fetcher(&registry).await.manifest("22").await);
        assert_eq!(got, kind, "{location}: {text}");
        assert_eq!(registry.requests().len(), asked, "{location}: {text}");
    }
    assert!(other.requests().is_empty(), "{:?}", other.requests());
}
