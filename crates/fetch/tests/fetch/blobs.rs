//! Blobs on their way to a file and a pipe.

use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

use runner_testbed::registry::{Fault, Registry, When};

use crate::setting::{REPOSITORY, Wanted, content, failed, fetch, fetcher, fill, full};

const SIZE: usize = 300_000;

fn wanted<'a>(digest: &'a str, have: &'a [u8]) -> Wanted<'a> {
    Wanted { digest, size: SIZE as u64, have, origin_only: false }
}

#[tokio::test]
async fn a_blob_goes_to_the_file_and_the_pipe() {
    let registry = Registry::start().unwrap();
    let bytes = content(SIZE);
    let digest = registry.put_blob(REPOSITORY, bytes.clone());
    let fetcher = fetcher(&registry).await;
    let fetched = fetch(&fetcher, &wanted(&digest, &[])).await;
    fetched.outcome.unwrap();
    assert!(fetched.file == bytes && fetched.pipe == bytes, "{} {}", fetched.file.len(), fetched.pipe.len());
    assert_eq!(registry.requests()[0].header("range"), None);
    // Nothing is asked for that is there already.
    let fetched = fetch(&fetcher, &wanted(&digest, &bytes)).await;
    fetched.outcome.unwrap();
    assert_eq!((fetched.file.len(), fetched.pipe.len()), (SIZE, 0));
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn a_blob_goes_on_where_the_file_ends() {
    let bytes = content(SIZE);
    for ranges in [true, false] {
        let registry = Registry::start().unwrap();
        let digest = registry.put_blob(REPOSITORY, bytes.clone());
        if !ranges {
            registry.inject(When::always(), Fault::IgnoreRange);
        }
        let fetched = fetch(&fetcher(&registry).await, &wanted(&digest, &bytes[..100_001])).await;
        fetched.outcome.unwrap();
        assert!(fetched.file == bytes, "{ranges}: {}", fetched.file.len());
        assert!(fetched.pipe == bytes[100_001..], "{ranges}: {}", fetched.pipe.len());
        assert_eq!(registry.requests()[0].header("range"), Some("bytes=100001-"));
        assert_eq!(registry.requests()[0].status, if ranges { 206 } else { 200 });
    }
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let bytes = content(SIZE);
    for fault in [Fault::DropAfter(70_000), Fault::HangAfter(70_000)] {
        let registry = Registry::start().unwrap();
        let digest = registry.put_blob(REPOSITORY, bytes.clone());
        // More often than tries are left without progress.
        registry.inject(When::always().times(4), fault.clone());
        let fetched = fetch(&fetcher(&registry).await, &wanted(&digest, &[])).await;
        assert!(fetched.outcome.is_ok(), "{fault:?}: {:?}", fetched.outcome);
        assert!(fetched.file == bytes && fetched.pipe == bytes, "{fault:?}");
        let ranges: Vec<_> =
            registry.requests().iter().map(|request| request.header("range").map(str::to_owned)).collect();
        let expected =
            ["bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"].map(|range| Some(range.to_owned()));
        assert_eq!(ranges[0], None, "{fault:?}");
        assert_eq!(ranges[1..], expected, "{fault:?}");
    }
}

#[tokio::test]
async fn a_connection_that_always_breaks_is_given_up() {
    let registry = Registry::start().unwrap();
    let digest = registry.put_blob(REPOSITORY, content(SIZE));
    registry.inject(When::always(), Fault::DropAfter(1000));
    let fetched = fetch(&fetcher(&registry).await, &wanted(&digest, &[])).await;
    let (kind, text) = failed(fetched.outcome);
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(text.contains("12000 of 300000 bytes"), "{text}");
    assert_eq!(fetched.file.len(), 12_000);
    assert_eq!(registry.requests().len(), 12, "bounded however far each try gets");
    registry.heal();
    registry.forget_requests();
    registry.inject(When::always(), Fault::DropAfter(0));
    let (kind, text) = failed(fetch(&fetcher(&registry).await, &wanted(&digest, &[])).await.outcome);
    assert_eq!(kind, "Unavailable", "{text}");
    assert_eq!(registry.requests().len(), 3, "fewer without progress");
}

#[tokio::test]
async fn a_slow_drip_is_given_up() {
    let registry = Registry::start().unwrap();
    let digest = registry.put_blob(REPOSITORY, content(SIZE));
    registry.inject(When::always(), Fault::Drip(1, Duration::from_millis(20)));
    let fetched = fetch(&fetcher(&registry).await, &wanted(&digest, &[])).await;
    let (kind, text) = failed(fetched.outcome);
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(text.contains("fewer than 1000 bytes a second"), "{text}");
    assert_eq!(registry.requests().len(), 3, "dripping is no progress");
}

#[tokio::test]
async fn a_slow_reader_is_not_the_registrys_fault() {
    let registry = Registry::start().unwrap();
    let bytes = content(4 << 20);
    let digest = registry.put_blob(REPOSITORY, bytes.clone());
    let other = registry.put_blob(REPOSITORY, content(SIZE));
    let fetcher = fetcher(&registry).await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let blob = fetcher.blob(&digest, bytes.len() as u64, 0, false, file.as_fd().into(), writer.as_fd().into());
    let mut blob = Box::pin(blob);
    // Nobody reads the pipe, for longer than a registry may be silent. Another blob gets through all the same.
    let others = async {
        fetch(&fetcher, &wanted(&other, &[])).await.outcome.unwrap();
        tokio::time::sleep(Duration::from_millis(1000)).await;
    };
    tokio::select! {
        outcome = &mut blob => panic!("ended without a reader: {outcome:?}"),
        () = others => {}
    }
    let piped = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    blob.await.unwrap();
    drop(writer);
    assert!(piped.await.unwrap() == bytes);
    assert_eq!(registry.requests().len(), 2, "{:?}", registry.requests());
}

#[tokio::test]
async fn wrong_sizes_and_parts_are_told_at_once() {
    let bytes = content(SIZE);
    let have = &bytes[..1000];
    for (fault, have, kind) in [
        (Fault::Truncate(1000), &[][..], "BadAnswer"),
        (Fault::header("Content-Length", "300001"), &[], "BadAnswer"),
        (Fault::Longer(b"x".to_vec()), &[], "BadAnswer"),
        (Fault::header("Content-Range", "bytes 1001-299999/300000"), have, "BadAnswer"),
        (Fault::header("Content-Range", "bytes 1000-299998/300000"), have, "BadAnswer"),
        (Fault::header("Content-Range", "bytes 1000-299999/300001"), have, "BadAnswer"),
        (Fault::header("Content-Range", "nonsense"), have, "BadAnswer"),
        (Fault::without("Content-Range"), have, "BadAnswer"),
        (Fault::Status(416), have, "BadAnswer"),
        (Fault::Status(206), &[], "BadAnswer"),
        (Fault::Status(404), &[], "NotFound"),
    ] {
        let registry = Registry::start().unwrap();
        let digest = registry.put_blob(REPOSITORY, bytes.clone());
        registry.inject(When::always(), fault.clone());
        let fetched = fetch(&fetcher(&registry).await, &wanted(&digest, have)).await;
        let (got, text) = failed(fetched.outcome);
        assert_eq!(got, kind, "{fault:?}: {text}");
        assert!(text.contains(&registry.host()) && text.contains("sha256:"), "{fault:?}: {text}");
        assert_eq!(registry.requests().len(), 1, "{fault:?}: {text}");
        assert!(fetched.file.len() <= SIZE && fetched.pipe.len() <= SIZE, "{fault:?}");
    }
}

#[tokio::test]
async fn bytes_without_an_announced_length_are_taken() {
    let registry = Registry::start().unwrap();
    let bytes = content(SIZE);
    let digest = registry.put_blob(REPOSITORY, bytes.clone());
    registry.inject(When::always(), Fault::Longer(Vec::new()));
    let fetched = fetch(&fetcher(&registry).await, &wanted(&digest, &[])).await;
    fetched.outcome.unwrap();
    assert!(fetched.file == bytes && fetched.pipe == bytes);
}

#[tokio::test]
async fn wrong_bytes_are_left_to_the_caller() {
    let registry = Registry::start().unwrap();
    let bytes = content(SIZE);
    let digest = registry.put_blob(REPOSITORY, bytes.clone());
    registry.inject(When::always(), Fault::WrongBytes);
    let fetched = fetch(&fetcher(&registry).await, &wanted(&digest, &[])).await;
    fetched.outcome.unwrap();
    assert!(fetched.file != bytes && fetched.file == fetched.pipe);
}

#[tokio::test]
async fn a_full_disk_and_a_gone_reader_are_told_apart() {
    let registry = Registry::start().unwrap();
    let digest = registry.put_blob(REPOSITORY, content(SIZE));
    let fetcher = fetcher(&registry).await;
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let disk = full();
    let outcome = fetcher.blob(&digest, SIZE as u64, 0, false, disk.as_fd().into(), writer.as_fd().into()).await;
    let (kind, text) = failed(outcome);
    assert_eq!(kind, "Full", "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    fill(&mut writer, 10);
    drop(writer);
    let mut piped = Vec::new();
    reader.read_to_end(&mut piped).unwrap();
    assert_eq!(piped.len(), 10, "nothing reached the pipe that did not reach the file");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let file = tempfile::tempfile().unwrap();
    let outcome = fetcher.blob(&digest, SIZE as u64, 0, false, file.as_fd().into(), writer.as_fd().into()).await;
    let (kind, text) = failed(outcome);
    assert_eq!(kind, "Local", "{text}");
    assert_eq!(registry.requests().len(), 2, "neither is tried again");

    let outcome = fetcher.blob(&digest, SIZE as u64, 0, false, file.as_fd().into(), file.as_fd().into()).await;
    let (kind, text) = failed(outcome);
    assert_eq!(kind, "Local", "{text}");
    let outcome = fetcher.blob(&digest, 10, 11, false, file.as_fd().into(), writer.as_fd().into()).await;
    let (kind, text) = failed(outcome);
    assert_eq!(kind, "Local", "{text}");
}

#[tokio::test]
async fn several_blobs_come_at_once() {
    let registry = Registry::start().unwrap();
    let blobs: Vec<Vec<u8>> = (1..=5).map(|number| content(100_000 * number)).collect();
    let digests: Vec<String> = blobs.iter().map(|bytes| registry.put_blob(REPOSITORY, bytes.clone())).collect();
    let fetcher = fetcher(&registry).await;
    let wanted: Vec<Wanted<'_>> = digests
        .iter()
        .zip(&blobs)
        .map(|(digest, bytes)| Wanted { digest, size: bytes.len() as u64, have: &[], origin_only: false })
        .collect();
    let all = futures_util::future::join_all(wanted.iter().map(|wanted| fetch(&fetcher, wanted))).await;
    for (fetched, bytes) in all.iter().zip(&blobs) {
        assert!(fetched.outcome.is_ok() && fetched.file == *bytes && fetched.pipe == *bytes, "{:?}", fetched.outcome);
    }
}
