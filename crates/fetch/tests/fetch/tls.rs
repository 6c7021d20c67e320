//! TLS, certificates and proxies.

use runner_testbed::registry::{Access, Authority, Fault, Image, Registry, TokenAccess, When};
use runner_wire::fetch::{Hidden, Origin, Proxies};

use crate::setting::{REPOSITORY, Wanted, content, endpoint, failed, fetch, open, origin, with_password};

fn trusting(url: &str, authority: &Authority) -> Origin {
    Origin { certificates: authority.pem().into_bytes(), ..origin(vec![with_password(url, "user", "password")]) }
}

#[tokio::test]
async fn a_further_authority_is_trusted() {
    let authority = Authority::new().unwrap();
    let registry = Registry::start_tls(&authority).unwrap();
    let image = registry.put_image(REPOSITORY, "22", &Image::new());
    let bytes = content(1 << 20);
    let blob = registry.put_blob(REPOSITORY, bytes.clone());
    registry.require(Access::Token(TokenAccess::default()));
    let fetcher = open(&trusting(&registry.url(), &authority)).await;
    assert_eq!(fetcher.resolve("22").await.unwrap(), image.manifest);
    registry.inject(When::path("/blobs/").times(1), Fault::DropAfter(400_000));
    let wanted = Wanted { digest: &blob, size: bytes.len() as u64, have: &[], origin_only: false };
    let fetched = fetch(&fetcher, &wanted).await;
    fetched.outcome.unwrap();
    assert!(fetched.file == bytes && fetched.pipe == bytes);
}

#[tokio::test]
async fn certificates_that_prove_nothing_are_refused() {
    let authority = Authority::new().unwrap();
    let registry = Registry::start_tls(&authority).unwrap();
    let (kind, text) = failed(open(&origin(vec![endpoint(&registry.url())])).await.resolve("22").await);
    assert_eq!(kind, "Refused", "{text}");
    assert!(text.contains("is not trusted") && text.contains("RUNNER_REGISTRY_CA_FILE"), "{text}");
    let stranger = Authority::new().unwrap();
    let (kind, text) = failed(open(&trusting(&registry.url(), &stranger)).await.resolve("22").await);
    assert_eq!(kind, "Refused", "{text}");
    let other = Registry::start_tls_as(&authority, &["registry.example"]).unwrap();
    let (kind, text) = failed(open(&trusting(&other.url(), &authority)).await.resolve("22").await);
    assert_eq!(kind, "Refused", "{text}");
    assert!(registry.requests().is_empty() && other.requests().is_empty());
    let plain = Registry::start().unwrap();
    let url = plain.url().replace("http://", "https://");
    let (kind, text) = failed(open(&origin(vec![endpoint(&url)])).await.resolve("22").await);
    assert_eq!(kind, "Refused", "{text}");
    assert!(text.contains("does not speak TLS") && text.contains("RUNNER_REGISTRY_INSECURE"), "{text}");
}

#[tokio::test]
async fn nothing_leads_from_tls_to_plain_http() {
    let authority = Authority::new().unwrap();
    let (registry, plain) = (Registry::start_tls(&authority).unwrap(), Registry::start().unwrap());
    let image = plain.put_image(REPOSITORY, "22", &Image::new());
    plain.require(Access::Token(TokenAccess::default()));
    registry.inject(When::always().times(1), Fault::Redirect(format!("{}/v2/{REPOSITORY}/manifests/22", plain.url())));
    let fetcher = open(&trusting(&registry.url(), &authority)).await;
    let (kind, text) = failed(fetcher.resolve("22").await);
    assert_eq!(kind, "Refused", "{text}: {}", image.manifest);
    assert!(text.contains("plain HTTP") && text.contains(&plain.host()), "{text}");
    registry.put_image(REPOSITORY, "22", &Image::new());
    registry.require(Access::Token(TokenAccess {
        realm: Some(format!("{}/token", plain.url())),
        ..TokenAccess::default()
    }));
    let (kind, text) = failed(fetcher.resolve("22").await);
    assert_eq!(kind, "Refused", "{text}");
    assert!(text.contains("without TLS"), "{text}");
    assert!(plain.requests().is_empty(), "{:?}", plain.requests());
}

#[tokio::test]
async fn the_proxy_is_used_where_it_is_meant() {
    // A proxy is asked for whole addresses; this registry answers them all alike.
    let (proxy, registry) = (Registry::start().unwrap(), Registry::start().unwrap());
    let image = registry.put_image(REPOSITORY, "22", &Image::new());
    proxy.inject(When::always(), Fault::Status(502));
    let proxied = |no_proxy: &str| Origin {
        proxies: Proxies {
            http: Hidden(proxy.url().replace("http://", "http://name:word@")),
            https: Hidden::default(),
            no_proxy: no_proxy.to_owned(),
        },
        ..origin(vec![endpoint(&registry.url())])
    };
    let (kind, text) = failed(open(&proxied("")).await.resolve("22").await);
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(!text.contains("word"), "{text}");
    let asked = proxy.requests();
    assert_eq!(asked[0].path, format!("{}/v2/{REPOSITORY}/manifests/22", registry.url()));
    assert_eq!(asked[0].header("proxy-authorization"), Some("Basic bmFtZTp3b3Jk"));
    assert!(registry.requests().is_empty());
    assert_eq!(open(&proxied("example.com,127.0.0.1")).await.resolve("22").await.unwrap(), image.manifest);
    assert_eq!(proxy.requests().len(), 3);
    // Of the address of a registry with TLS, a proxy learns the host.
    let authority = Authority::new().unwrap();
    let secure = Registry::start_tls(&authority).unwrap();
    let mut origin = trusting(&secure.url(), &authority);
    origin.proxies.https = Hidden(proxy.url());
    let (kind, text) = failed(open(&origin).await.resolve("22").await);
    assert_eq!(kind, "Unavailable", "{text}");
    assert_eq!(proxy.requests()[3].path, secure.host(), "{:?}", proxy.requests());
    assert_eq!(proxy.requests()[3].method, "CONNECT");
}
