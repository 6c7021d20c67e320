//! The registry as a plain client sees it.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

fn ask(registry: &Registry, request: &str) -> String {
    let mut stream = TcpStream::connect(registry.host()).unwrap();
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    // A connection that is cut gives what came before.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn content_is_served_by_tag_digest_and_range() {
    let registry = Registry::start().unwrap();
    let image = registry.put_image("a/b", "t", &Image::new().layer_in(b"0123456789", Compression::Plain));
    let by_tag = ask(&registry, "GET /v2/a/b/manifests/t HTTP/1.1\n\n");
    assert!(by_tag.contains(&format!("Docker-Content-Digest: {}", image.manifest)), "{by_tag}");
    let body = by_tag.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(digest_of(body.as_bytes()), image.manifest);
    assert!(body.contains(&image.layers[0]) && body.contains(&image.config), "{body}");
    let range = ask(&registry, &format!("GET /v2/a/b/blobs/{} HTTP/1.1\nRange: bytes=7-\n\n", image.layers[0]));
    assert!(range.starts_with("HTTP/1.1 206") && range.ends_with("\r\n\r\n789"), "{range}");
    assert!(range.contains("Content-Range: bytes 7-9/10"), "{range}");
    let none = ask(&registry, "GET /v2/a/b/blobs/sha256:0 HTTP/1.1\n\nGET /v2/a/c/manifests/t HTTP/1.1\n\n");
    assert!(none.contains("BLOB_UNKNOWN") && none.contains("MANIFEST_UNKNOWN"), "{none}");
    let log: Vec<String> = registry.requests().iter().map(ToString::to_string).collect();
    assert_eq!(log[0], "GET /v2/a/b/manifests/t 200");
    assert_eq!(log[2..], ["GET /v2/a/b/blobs/sha256:0 404", "GET /v2/a/c/manifests/t 404"]);
}

#[test]
fn faults_come_when_they_are_due() {
    let registry = Registry::start().unwrap();
    let blob = registry.put_blob("r", b"0123456789".to_vec());
    let get = format!("GET /v2/r/blobs/{blob} HTTP/1.1\n\n");
    registry.inject(When::path("/blobs/").skip(1).times(1), Fault::RetryAfter(429, "7".into()));
    let answers = [ask(&registry, &get), ask(&registry, &get), ask(&registry, &get)];
    assert!(answers[0].ends_with("0123456789") && answers[2].ends_with("0123456789"), "{answers:?}");
    assert!(answers[1].contains("429") && answers[1].contains("Retry-After: 7"), "{answers:?}");
    for (fault, starts, ends) in [
        (Fault::DropAfter(4), "HTTP/1.1 200", "\r\n\r\n0123"),
        (Fault::Truncate(4), "HTTP/1.1 200", "\r\n\r\n0123"),
        (Fault::Close, "", ""),
        (Fault::header("Content-Length", "99"), "HTTP/1.1 200", "0123456789"),
        (Fault::Longer(b"x".to_vec()), "HTTP/1.1 200", "b\r\n0123456789x\r\n0\r\n\r\n"),
        (Fault::Drip(4, Duration::from_millis(1)), "HTTP/1.1 200", "0123456789"),
        (Fault::Redirect("http://elsewhere/".into()), "HTTP/1.1 307", "\r\n\r\n"),
    ] {
        registry.heal();
        registry.inject(When::path(&blob), fault.clone());
        let answer = ask(&registry, &get);
        assert!(answer.starts_with(starts) && answer.ends_with(ends), "{fault:?}: {answer}");
    }
}

#[test]
fn a_registry_that_hangs_ends_when_it_is_dropped() {
    let registry = Registry::start().unwrap();
    registry.inject(When::always(), Fault::Hang);
    let mut stream = TcpStream::connect(registry.host()).unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\n\r\n").unwrap();
    while registry.requests().is_empty() {
        std::thread::yield_now();
    }
    drop(registry);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
}

#[test]
fn tokens_are_given_for_credentials_and_can_be_revoked() {
    let registry = Registry::start().unwrap();
    registry.put_image("r", "t", &Image::new());
    registry.require(Access::Token(TokenAccess::default()));
    let manifest =
        |token: &str| ask(&registry, &format!("GET /v2/r/manifests/t HTTP/1.1\nAuthorization: Bearer {token}\n\n"));
    let refused = manifest("nothing");
    assert!(refused.contains("401") && refused.contains("scope=\"repository:r:pull\""), "{refused}");
    let query = "/token?service=test-registry&scope=repository%3Ar%3Apull";
    let given = ask(&registry, &format!("GET {query} HTTP/1.1\nAuthorization: Basic dXNlcjpwYXNzd29yZA==\n\n"));
    assert!(given.contains("\"token\":\"granted.1\""), "{given}");
    let anonymous = ask(&registry, &format!("GET {query} HTTP/1.1\n\n"));
    assert!(anonymous.contains("anonymous.2"), "{anonymous}");
    let wrong = ask(&registry, &format!("GET {query} HTTP/1.1\nAuthorization: Basic eDp5\n\n"));
    assert!(wrong.contains("401"), "{wrong}");
    assert!(manifest("granted.1").contains(" 200 "));
    assert!(manifest("anonymous.2").contains(" 401 "));
    registry.revoke_tokens();
    assert!(manifest("granted.1").contains(" 401 "));
}
