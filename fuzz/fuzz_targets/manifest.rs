//! Manifests, indexes and configurations of an untrusted registry, on their way to the first layer. Needs root, as the
//! store does.
//!
//! The input is documents separated by a form feed. Digests cannot be guessed, so `$N` in a document stands for the digest
//! of document N and `#N` for its size; a document knows only those before it. The last one is what the registry gives
//! for the reference.

#![no_main]

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use runner_store::{BlobRequest, Digest, ErrorKind, Fetching, Remote, Store, StoreError};

const REFERENCE: &str = "docker.io/library/fuzz:1";
const STORE: &str = "/dev/shm/runner-fuzz-manifest";

struct Registry {
    documents: HashMap<Digest, Vec<u8>>,
    root: Vec<u8>,
}

impl Registry {
    fn get(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        self.documents.get(digest).cloned().ok_or_else(|| StoreError::fetch("no such document"))
    }
}

impl Remote for Registry {
    fn root(&self) -> Result<(String, Vec<u8>), StoreError> {
        Ok((String::new(), self.root.clone()))
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        self.get(digest)
    }

    fn configuration(&self, digest: &Digest, _size: u64) -> Result<Vec<u8>, StoreError> {
        self.get(digest)
    }

    fn registry(&self) -> &str {
        "docker.io"
    }

    fn has_mirrors(&self) -> bool {
        false
    }

    fn blob(&self, _blob: &BlobRequest<'_>, _file: OwnedFd) -> Result<Fetching, StoreError> {
        Err(StoreError::fetch("got as far as a layer"))
    }
}

fuzz_target!(|input: &[u8]| {
    let mut known: Vec<(String, String)> = Vec::new();
    let mut documents = HashMap::new();
    let mut root = Vec::new();
    for part in input.split(|byte| *byte == b'\x0c').take(10) {
        root = filled(part, &known);
        let digest = Digest::of(&root);
        known.push((digest.to_string(), root.len().to_string()));
        documents.insert(digest, root.clone());
    }
    let store = Store::open(Path::new(&format!("{STORE}-{}", std::process::id()))).expect("a store in memory");
    let error = match store.pull(REFERENCE, None, &Registry { documents, root }, &mut |_| {}) {
        Ok((imported, _)) => panic!("an image without its layers: {imported:?}"),
        Err(error) => error,
    };
    let line = error.to_string();
    assert!(!line.contains(char::is_control) && line.len() < 4096, "{line:?}");
    assert!(line.starts_with(&format!("image {REFERENCE}: ")), "{line}");
    assert!(!matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Io), "{line}");
    for folder in ["tmp", "layers", "refs", "images", "blobs/sha256"] {
        let left = fs::read_dir(store.path().join(folder)).expect("a folder of the store").count();
        assert_eq!(left, 0, "{folder} after: {line}");
    }
    // Files named by digests the input states.
    for folder in ["partial", "locks"] {
        for entry in fs::read_dir(store.path().join(folder)).expect("a folder of the store") {
            fs::remove_file(entry.expect("an entry").path()).expect("a file");
        }
    }
});

/// Puts digests and sizes of earlier documents in.
fn filled(part: &[u8], known: &[(String, String)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(part.len());
    let mut bytes = part.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let index = bytes.peek().and_then(|digit| digit.checked_sub(b'0')).map(usize::from);
        match (byte, index.and_then(|index| known.get(index))) {
            (b'$', Some((digest, _))) => out.extend_from_slice(digest.as_bytes()),
            (b'#', Some((_, size))) => out.extend_from_slice(size.as_bytes()),
            _ => {
                out.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    out
}
