//! Manifests, documents, and what becomes of answers that are not hoped for.

use std::time::{Duration, Instant, SystemTime};

use runner_testbed::registry::{Fault, Image, Registry, When, digest_of};

use crate::setting::{REPOSITORY, endpoint, failed, fetcher, open, origin, patience, unopened};

#[tokio::test]
async fn tags_manifests_and_documents_are_fetched() {
    let registry = Registry::start().unwrap();
    let image = registry.put_image(REPOSITORY, "22", &Image::new().layer(b"layer"));
    let fetcher = fetcher(&registry).await;
    assert_eq!(fetcher.resolve("22").await.unwrap(), image.manifest);
    let manifest = fetcher.manifest("22").await.unwrap();
    assert_eq!(digest_of(&manifest.bytes), image.manifest);
    assert_eq!(manifest.media_type, "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(fetcher.manifest(&image.manifest).await.unwrap().bytes, manifest.bytes);
    let text = String::from_utf8(manifest.bytes).unwrap();
    let size = text.split(&format!("\"{}\",\"size\":", image.config)).nth(1).unwrap();
    let size: u64 = size.split('}').next().unwrap().parse().unwrap();
    let config = fetcher.document(&image.config, size).await.unwrap();
    assert_eq!(digest_of(&config), image.config);
    let asked: Vec<String> = registry.requests().iter().map(ToString::to_string).collect();
    assert_eq!(asked[0], "HEAD /v2/library/node/manifests/22 200");
    assert_eq!(asked.len(), 4, "{asked:?}");
    let accept = registry.requests()[0].header("accept").unwrap().to_owned();
    for kind in ["oci.image.index", "oci.image.manifest", "docker.distribution.manifest.v2", "manifest.list.v2"] {
        assert!(accept.contains(kind), "{accept}");
    }
    let (kind, text) = failed(fetcher.document(&image.config, size + 1).await);
    assert_eq!(kind, "BadAnswer", "{text}");
    let (kind, text) = failed(fetcher.document(&image.config, size - 1).await);
    assert_eq!(kind, "Refused", "{text}");
    let (kind, text) = failed(fetcher.document(&image.config, 5 << 20).await);
    assert_eq!(kind, "Refused", "{text}");
}

#[tokio::test]
async fn a_tag_is_resolved_without_the_digest_in_the_head() {
    let registry = Registry::start().unwrap();
    let image = registry.put_image(REPOSITORY, "22", &Image::new());
    for (method, fault) in [("HEAD", Fault::without("Docker-Content-Digest")), ("HEAD", Fault::Status(405))] {
        registry.heal();
        registry.inject(When::path("/manifests/").method(method), fault);
        assert_eq!(fetcher(&registry).await.resolve("22").await.unwrap(), image.manifest);
    }
    registry.heal();
    registry.inject(When::always(), Fault::header("Docker-Content-Digest", "sha512:00"));
    let (kind, text) = failed(fetcher(&registry).await.resolve("22").await);
    assert_eq!(kind, "BadAnswer", "{text}");
}

#[tokio::test]
async fn wrong_and_endless_documents_are_refused() {
    let registry = Registry::start().unwrap();
    let image = registry.put_image(REPOSITORY, "22", &Image::new());
    registry.inject(When::path("/manifests/").times(2), Fault::WrongBytes);
    let fetcher = fetcher(&registry).await;
    for reference in ["22", &image.manifest] {
        let (kind, text) = failed(fetcher.manifest(reference).await);
        assert_eq!(kind, "BadAnswer", "{text}");
        assert!(text.contains("does not have the digest it goes by"), "{text}");
    }
    registry.inject(When::path("/manifests/"), Fault::Longer(vec![b' '; 5 << 20]));
    let (kind, text) = failed(fetcher.manifest("22").await);
    assert_eq!(kind, "Refused", "{text}");
    assert!(text.contains("longer than 4194304 bytes"), "{text}");
}

#[tokio::test]
async fn each_status_is_a_failure_of_its_own() {
    let registry = Registry::start().unwrap();
    registry.put_image(REPOSITORY, "22", &Image::new());
    let fetcher = fetcher(&registry).await;
    let host = registry.host();
    for (status, kind, tries) in [
        (400, "BadAnswer", 1),
        (401, "Unauthorized", 1),
        (403, "Denied", 1),
        (404, "NotFound", 1),
        (407, "Denied", 1),
        (408, "Unavailable", 3),
        (429, "RateLimited", 3),
        (500, "Unavailable", 3),
        (503, "Unavailable", 3),
    ] {
        registry.heal();
        registry.forget_requests();
        registry.inject(When::always(), Fault::Status(status));
        let (got, text) = failed(fetcher.manifest("22").await);
        assert_eq!(got, kind, "{status}: {text}");
        assert_eq!(registry.requests().len(), tries, "{status}: {text}");
        assert!(text.contains(&host), "{status}: {text}");
        if status != 401 {
            assert!(text.contains(&format!("{status} FAULT: a fault of the test")), "{status}: {text}");
        }
        assert!(!text.contains('\n'), "{text:?}");
    }
}

#[tokio::test]
async fn a_registrys_words_cannot_leave_their_line() {
    let registry = Registry::start().unwrap();
    let body =
        r#"{"errors":[{"code":"X","message":"one\n::error::two\u001b[2J\u202e"#.to_owned() + &"z".repeat(400) + "\"}]}";
    registry.inject(When::always(), Fault::Answer(404, body.into_bytes()));
    let (_, text) = failed(fetcher(&registry).await.manifest("22").await);
    assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
    assert!(text.contains("X: one\\n::error::two") && text.len() < 400, "{text}");
}

#[tokio::test]
async fn a_registry_that_recovers_is_waited_for() {
    let registry = Registry::start().unwrap();
    let image = registry.put_image(REPOSITORY, "22", &Image::new());
    let fetcher = fetcher(&registry).await;
    let soon = SystemTime::now() + Duration::from_secs(1);
    let date = httpdate::fmt_http_date(soon);
    for (fault, at_least) in [
        (Fault::Status(500), 0),
        (Fault::Close, 0),
        (Fault::Hang, 0),
        (Fault::DropAfter(10), 0),
        (Fault::HangAfter(10), 0),
        (Fault::RetryAfter(429, "1".into()), 1000),
        (Fault::RetryAfter(503, date), 0),
        (Fault::RetryAfter(503, "nonsense".into()), 0),
    ] {
        registry.heal();
        registry.forget_requests();
        registry.inject(When::always().times(1), fault.clone());
        let start = Instant::now();
        let manifest = fetcher.manifest(&image.manifest).await;
        assert!(manifest.is_ok(), "{fault:?}: {manifest:?}");
        assert!(start.elapsed().as_millis() >= at_least, "{fault:?}: {:?}", start.elapsed());
        assert_eq!(registry.requests().len(), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn nobody_waits_for_an_hour() {
    let registry = Registry::start().unwrap();
    let fetcher = fetcher(&registry).await;
    let late = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
    for (status, after, kind) in [(429, "3600", "RateLimited"), (503, late.as_str(), "Unavailable")] {
        registry.heal();
        registry.forget_requests();
        registry.inject(When::always(), Fault::RetryAfter(status, after.to_owned()));
        let (got, text) = failed(fetcher.resolve("22").await);
        assert_eq!(got, kind, "{text}");
        assert!(text.contains("asks to wait 3600 s") || text.contains("asks to wait 3599 s"), "{text}");
        assert_eq!(registry.requests().len(), 1, "{text}");
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let registry = Registry::start().unwrap();
    let (host, url) = (registry.host(), registry.url());
    registry.inject(When::always(), Fault::Hang);
    let (kind, text) = failed(fetcher(&registry).await.resolve("22").await);
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(text.contains(&host) && text.contains("gave no answer within"), "{text}");
    drop(registry);
    let (kind, text) = failed(open(&origin(vec![endpoint(&url)])).await.resolve("22").await);
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(text.contains(&host) && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_an_origin_is_refused() {
    let url = "https://127.0.0.1:1";
    let fetcher = unopened(patience()).await;
    let (kind, text) = failed(fetcher.resolve("22").await);
    assert_eq!(kind, "Refused", "{text}");
    let good = origin(vec![endpoint(url)]);
    let mut cases = vec![origin(vec![])];
    for url in ["", "ftp://x", "registry:5000", "https://user:secret@x", "https://x?y=secret", "https://x#secret"] {
        cases.push(origin(vec![endpoint(url)]));
    }
    for repository in ["", "../../etc", "a?b"] {
        cases.push(runner_wire::fetch::Origin { repository: repository.to_owned(), ..good.clone() });
    }
    cases.push(runner_wire::fetch::Origin { certificates: b"no certificate".to_vec(), ..good.clone() });
    let mut proxied = good.clone();
    proxied.proxies.https.0 = "http://user:secret@".to_owned();
    cases.push(proxied);
    for case in cases {
        let (kind, text) = failed(fetcher.open(&case).await);
        assert_eq!(kind, "Refused", "{case:?}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
    fetcher.open(&good).await.unwrap();
    let (kind, text) = failed(fetcher.open(&good).await);
    assert_eq!(kind, "Refused", "{text}");
    for reference in ["", "..", "a/b", "sha256:00"] {
        let (kind, text) = failed(fetcher.manifest(reference).await);
        assert_eq!(kind, "Refused", "{reference}: {text}");
    }
}
