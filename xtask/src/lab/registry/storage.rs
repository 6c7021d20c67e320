//! The folder docker-registry serves, written directly: faster than pushing, and the same bytes every time.
//!
//! Layout: distribution's `registry/storage/paths.go`. Blobs lie below `blobs/sha256`, a repository has links to those
//! that belong to it, and a tag is a link to a manifest. A link is a file that holds a digest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::child::Program;

/// A blob in a [`Storage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    /// `sha256:…`.
    pub(super) digest: String,
    /// Bytes.
    pub(super) size: u64,
}

/// The storage folder of one registry.
#[derive(Debug)]
pub(super) struct Storage {
    root: PathBuf,
}

impl Storage {
    /// The storage with this root directory, which need not exist yet.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.join("docker/registry/v2") }
    }

    /// Moves a file in as a blob.
    pub(super) fn add_file(&self, file: &Path) -> Result<Blob> {
        let digest = digest_of_file(file)?;
        let size = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?.len();
        let data = self.data(&digest)?;
        make_parent(&data)?;
        fs::rename(file, &data).with_context(|| format!("rename {} to {}", file.display(), data.display()))?;
        Ok(Blob { digest, size })
    }

    /// Adds a blob.
    pub(super) fn add_bytes(&self, bytes: &[u8]) -> Result<Blob> {
        let digest = digest_of_bytes(bytes);
        write(&self.data(&digest)?, bytes)?;
        Ok(Blob { digest, size: u64::try_from(bytes.len()).expect("a length fits into 64 bits") })
    }

    /// Gives `other`, on the same file system, a blob of this storage.
    pub(super) fn share(&self, digest: &str, other: &Self) -> Result<()> {
        let (from, to) = (self.data(digest)?, other.data(digest)?);
        if to.exists() {
            return Ok(());
        }
        make_parent(&to)?;
        fs::hard_link(&from, &to).with_context(|| format!("link {} to {}", to.display(), from.display()))
    }

    /// Makes a layer or a configuration part of a repository; without it the registry denies having the blob.
    pub(super) fn link_blob(&self, repository: &str, digest: &str) -> Result<()> {
        let link = self.repository(repository).join("_layers").join(folder(digest)?).join("link");
        write(&link, digest.as_bytes())
    }

    /// Makes a manifest part of a repository.
    pub(super) fn link_manifest(&self, repository: &str, digest: &str) -> Result<()> {
        let link = self.repository(repository).join("_manifests/revisions").join(folder(digest)?).join("link");
        write(&link, digest.as_bytes())
    }

    /// Gives a manifest of the repository a tag.
    pub(super) fn tag(&self, repository: &str, tag: &str, digest: &str) -> Result<()> {
        let tag = self.repository(repository).join("_manifests/tags").join(tag);
        write(&tag.join("index").join(folder(digest)?).join("link"), digest.as_bytes())?;
        write(&tag.join("current/link"), digest.as_bytes())
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.root.join("repositories").join(name)
    }

    fn data(&self, digest: &str) -> Result<PathBuf> {
        let hex = hex(digest)?;
        Ok(self.root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data"))
    }
}

/// `sha256:…` of a file's bytes, by the program: ours is not optimised in a debug build.
pub(super) fn digest_of_file(file: &Path) -> Result<String> {
    let printed = Program::new("sha256sum").arg("--").arg(file).read()?;
    // A backslash stands before the digest of a file whose name sha256sum had to escape.
    let digest = printed.trim_start_matches('\\').split(' ').next().unwrap_or_default();
    let digest = format!("sha256:{digest}");
    hex(&digest).map(drop)?;
    Ok(digest)
}

/// `sha256:…` of these bytes.
pub(super) fn digest_of_bytes(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn hex(digest: &str) -> Result<&str> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    ensure!(hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "`{digest}` is no SHA-256 digest");
    Ok(hex)
}

fn folder(digest: &str) -> Result<PathBuf> {
    Ok(Path::new("sha256").join(hex(digest)?))
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a path in the storage has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    make_parent(path)?;
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-storage-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn blobs_links_and_tags_lie_where_the_registry_looks_for_them() {
        let root = folder("layout");
        let storage = Storage::new(&root);
        fs::write(root.join("file"), b"hello").unwrap();
        let blob = storage.add_file(&root.join("file")).unwrap();
        assert_eq!((blob.digest.as_str(), blob.size), (HELLO, 5));
        assert_eq!(storage.add_bytes(b"hello").unwrap(), blob);
        storage.link_blob("library/x", HELLO).unwrap();
        storage.link_manifest("library/x", HELLO).unwrap();
        storage.tag("library/x", "1", HELLO).unwrap();

        let v2 = root.join("docker/registry/v2");
        let hex = &HELLO["sha256:".len()..];
        assert_eq!(fs::read(v2.join(format!("blobs/sha256/2c/{hex}/data"))).unwrap(), b"hello");
        for link in [
            format!("_layers/sha256/{hex}/link"),
            format!("_manifests/revisions/sha256/{hex}/link"),
            format!("_manifests/tags/1/index/sha256/{hex}/link"),
            "_manifests/tags/1/current/link".to_owned(),
        ] {
            let path = v2.join("repositories/library/x").join(link);
            assert_eq!(fs::read_to_string(&path).unwrap(), HELLO, "{}", path.display());
        }
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_shared_blob_is_the_same_file() {
        use std::os::unix::fs::MetadataExt as _;
        let root = folder("share");
        let (one, other) = (Storage::new(&root.join("one")), Storage::new(&root.join("other")));
        one.add_bytes(b"hello").unwrap();
        one.share(HELLO, &other).unwrap();
        one.share(HELLO, &other).unwrap();
        let inode = |storage: &Storage| fs::metadata(storage.data(HELLO).unwrap()).unwrap().ino();
        assert_eq!(inode(&one), inode(&other));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn what_is_no_digest_becomes_no_path() {
        let storage = Storage::new(Path::new("/nonexistent"));
        for digest in ["", "sha256:../../etc", "md5:abc", &HELLO[..70]] {
            assert!(storage.data(digest).is_err(), "{digest}");
        }
    }
}
