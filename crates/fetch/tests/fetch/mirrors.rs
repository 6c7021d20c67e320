//! Which server is asked.

use runner_testbed::registry::{Access, Fault, Image, Registry, TokenAccess, When};

use crate::setting::{REPOSITORY, Wanted, content, endpoint, failed, fetch, open, origin, with_password};

struct Pair {
    mirror: Registry,
    registry: Registry,
    digest: String,
    bytes: Vec<u8>,
    blob: String,
}

/// Two servers that have the same.
fn pair() -> Pair {
    let (mirror, registry) = (Registry::start().unwrap(), Registry::start().unwrap());
    let bytes = content(200_000);
    let image = Image::new();
    mirror.put_image(REPOSITORY, "22", &image);
    let digest = registry.put_image(REPOSITORY, "22", &image).manifest;
    mirror.put_blob(REPOSITORY, bytes.clone());
    let blob = registry.put_blob(REPOSITORY, bytes.clone());
    Pair { mirror, registry, digest, bytes, blob }
}

impl Pair {
    async fn fetcher(&self) -> runner_wire::fetch::ImageFetchProxy<'static> {
        open(&origin(vec![endpoint(&self.mirror.url()), endpoint(&self.registry.url())])).await
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted { digest: &self.blob, size: self.bytes.len() as u64, have: &[], origin_only: false }
    }
}

#[tokio::test]
async fn a_mirror_that_has_everything_is_asked_alone() {
    let pair = pair();
    let fetcher = pair.fetcher().await;
    assert_eq!(fetcher.resolve("22").await.unwrap(), pair.digest);
    fetcher.manifest("22").await.unwrap();
    assert!(fetch(&fetcher, &pair.wanted()).await.file == pair.bytes);
    assert_eq!(pair.mirror.requests().len(), 3);
    assert!(pair.registry.requests().is_empty(), "{:?}", pair.registry.requests());
    // One that sent wrong bytes is left out when the caller says so.
    let fetched = fetch(&fetcher, &Wanted { origin_only: true, ..pair.wanted() }).await;
    assert!(fetched.file == pair.bytes);
    assert_eq!((pair.mirror.requests().len(), pair.registry.requests().len()), (3, 1));
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over_and_not_asked_again() {
    for (fault, asked) in [(Fault::Status(500), 2), (Fault::Status(403), 1), (Fault::Status(401), 1), (Fault::Close, 2)]
    {
        let pair = pair();
        pair.mirror.inject(When::always(), fault.clone());
        let fetcher = pair.fetcher().await;
        assert_eq!(fetcher.resolve("22").await.unwrap(), pair.digest, "{fault:?}");
        fetcher.manifest("22").await.unwrap();
        assert!(fetch(&fetcher, &pair.wanted()).await.file == pair.bytes);
        assert_eq!(pair.mirror.requests().len(), asked, "{fault:?}");
        assert_eq!(pair.registry.requests().len(), 3, "{fault:?}");
    }
}

#[tokio::test]
async fn what_a_mirror_lacks_comes_from_the_registry() {
    let pair = pair();
    pair.mirror.remove(REPOSITORY, &pair.blob);
    let fetcher = pair.fetcher().await;
    fetcher.manifest("22").await.unwrap();
    assert!(fetch(&fetcher, &pair.wanted()).await.file == pair.bytes);
    fetcher.manifest("22").await.unwrap();
    assert_eq!((pair.mirror.requests().len(), pair.registry.requests().len()), (3, 1), "a single blob is missing");
    // Without the manifest it is not asked for blobs.
    pair.mirror.remove(REPOSITORY, &pair.digest);
    fetcher.manifest("22").await.unwrap();
    pair.mirror.forget_requests();
    assert!(fetch(&fetcher, &pair.wanted()).await.file == pair.bytes);
    assert!(pair.mirror.requests().is_empty(), "{:?}", pair.mirror.requests());
}

#[tokio::test]
async fn the_registry_goes_on_where_a_mirror_broke() {
    let pair = pair();
    pair.mirror.inject(When::path("/blobs/").times(1), Fault::DropAfter(50_000));
    pair.mirror.inject(When::path("/blobs/"), Fault::Close);
    let fetched = fetch(&pair.fetcher().await, &pair.wanted()).await;
    fetched.outcome.unwrap();
    assert!(fetched.file == pair.bytes && fetched.pipe == pair.bytes);
    assert_eq!(pair.registry.requests()[0].header("range"), Some("bytes=50000-"));
}

#[tokio::test]
async fn the_registrys_failure_is_the_one_that_is_told() {
    let pair = pair();
    pair.mirror.inject(When::always(), Fault::Status(500));
    pair.registry.inject(When::always(), Fault::Status(404));
    let (kind, text) = failed(pair.fetcher().await.resolve("22").await);
    assert_eq!(kind, "NotFound", "{text}");
    assert!(text.contains(&pair.registry.host()) && !text.contains(&pair.mirror.host()), "{text}");
}

#[tokio::test]
async fn each_server_gets_its_own_credentials_and_tokens() {
    let pair = pair();
    let access = |user: &str, password: &str| {
        Access::Token(TokenAccess { username: user.into(), password: password.into(), ..TokenAccess::default() })
    };
    pair.mirror.require(access("m", "of-mirror"));
    pair.registry.require(access("r", "of-registry"));
    let endpoints = vec![
        with_password(&pair.mirror.url(), "m", "of-mirror"),
        with_password(&pair.registry.url(), "r", "of-registry"),
    ];
    let fetcher = open(&origin(endpoints)).await;
    fetcher.manifest("22").await.unwrap();
    // What the mirror redirects to the registry, it redirects without its token.
    let path = format!("/v2/{REPOSITORY}/blobs/{}", pair.blob);
    pair.mirror.inject(When::path("/blobs/"), Fault::Redirect(format!("{}{path}", pair.registry.url())));
    let fetched = fetch(&fetcher, &pair.wanted()).await;
    fetched.outcome.unwrap();
    assert!(fetched.file == pair.bytes);
    let shown: Vec<_> =
        pair.registry.requests().iter().map(|request| request.authorization().map(str::to_owned)).collect();
    assert_eq!(shown[0], None, "redirected: {shown:?}");
    assert_eq!(shown[1], None, "asked itself: {shown:?}");
    assert_eq!(shown[2].as_deref(), Some("Basic cjpvZi1yZWdpc3RyeQ=="));
    assert_eq!(shown[3].as_deref(), Some("Bearer granted.1"));
}
