//! The program itself, as systemd starts it.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use runner_testbed::registry::{Access, Fault, Image, Registry, TokenAccess, When};
use runner_wire::fetch::fetch_proxy;

use crate::setting::{REPOSITORY, Wanted, content, endpoint, failed, fetch, origin, with_password};

const PROGRAM: &str = env!("CARGO_BIN_EXE_image-fetch");

#[tokio::test]
async fn it_serves_its_standard_input_until_the_peer_hangs_up() {
    let (mirror, registry) = (Registry::start().unwrap(), Registry::start().unwrap());
    registry.put_image(REPOSITORY, "22", &Image::new());
    let bytes = content(3 << 20);
    let blob = registry.put_blob(REPOSITORY, bytes.clone());
    registry.require(Access::Token(TokenAccess { password: "s3cret".into(), ..TokenAccess::default() }));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(PROGRAM)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // The environment's proxies are nobody's: the origin names them.
        .envs([("HTTP_PROXY", "http://127.0.0.1:1"), ("ALL_PROXY", "http://127.0.0.1:1")])
        .env_remove("RUNNER_LOG")
        .spawn()
        .unwrap();
    let fetcher = fetch_proxy(ours).await.unwrap();
    fetcher
        .open(&origin(vec![endpoint(&mirror.url()), with_password(&registry.url(), "user", "s3cret")]))
        .await
        .unwrap();
    fetcher.manifest("22").await.unwrap();
    let wanted = Wanted { digest: &blob, size: bytes.len() as u64, have: &bytes[..1 << 20], origin_only: false };
    let fetched = fetch(&fetcher, &wanted).await;
    fetched.outcome.unwrap();
    assert!(fetched.file == bytes && fetched.pipe == bytes[1 << 20..]);
    let (kind, text) = failed(fetcher.resolve("none").await);
    assert_eq!(kind, "NotFound", "{text}");
    fetcher.inner().connection().clone().close().await.unwrap();
    drop(fetcher);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 1, "one line for the mirror that has nothing: {log}");
    assert!(lines[0].contains(&mirror.host()) && lines[0].contains(&registry.host()), "{log}");
    assert!(!log.contains("s3cret") && !log.contains("granted"), "{log}");
}

#[tokio::test]
async fn it_ends_in_the_middle_of_a_blob() {
    let registry = Registry::start().unwrap();
    let blob = registry.put_blob(REPOSITORY, content(1 << 20));
    registry.inject(When::always(), Fault::HangAfter(500_000));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(PROGRAM).stdin(OwnedFd::from(theirs)).spawn().unwrap();
    let fetcher = fetch_proxy(ours).await.unwrap();
    fetcher.open(&origin(vec![endpoint(&registry.url())])).await.unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let under_way = fetcher.blob(&blob, 1 << 20, 0, false, file.as_fd().into(), writer.as_fd().into());
    let some = tokio::task::spawn_blocking(move || reader.read_exact(&mut [0; 500_000]));
    tokio::select! {
        outcome = under_way => panic!("{outcome:?}"),
        some = some => some.unwrap().unwrap(),
    }
    fetcher.inner().connection().clone().close().await.unwrap();
    drop(fetcher);
    let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn it_says_who_starts_it() {
    let help = Command::new(PROGRAM).arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success() && text.contains("Started by systemd through runner-image-fetch.socket"), "{text}");
    let alone = Command::new(PROGRAM).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(alone.stderr).unwrap();
    assert_eq!(alone.status.code(), Some(1), "{text}");
    assert!(text.contains("runner-image-fetch.socket starts this program"), "{text}");
}
