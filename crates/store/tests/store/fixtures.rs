//! Archives and images built from bytes.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use runner_store::{Digest, Gravity, Imported, Lease, Source, Store, StoreError, Unpacker};
use serde_json::json;
use tempfile::TempDir;

pub(crate) const REFERENCE: &str = "docker.io/library/test:1";

/// First of the ids that a sandboxed unpacker has in tests.
pub(crate) const BASE: u32 = 0x7000_0000;

/// The unpacker as a host has it.
pub(crate) fn sandboxed() -> Unpacker {
    Unpacker::Sandboxed { program: env!("CARGO_BIN_EXE_layer-unpack").into(), base: BASE }
}

/// A store in a folder of its own, with room beside it for sources.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(Unpacker::InProcess)
    }

    pub(crate) fn with(unpacker: Unpacker) -> Bench {
        assert!(
            rustix::process::geteuid().is_root(),
            "store tests must run as root: they set owners, make device nodes and trusted.* attributes"
        );
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("images")).unwrap().with_unpacker(unpacker);
        Bench { folder, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// Imports an image of these layers (plain tar bytes, lowest first) and resolves it.
    pub(crate) fn layers(&self, tars: &[Vec<u8>]) -> Lease {
        let source = self.path("oci");
        Oci::of(tars).write(&source);
        self.import(REFERENCE, &Source::OciDirectory(source)).unwrap();
        self.store.resolve(REFERENCE).unwrap().expect("just imported")
    }

    /// The root folder of an image of one layer.
    pub(crate) fn layer(&self, tar: Vec<u8>) -> PathBuf {
        self.layers(&[tar]).layers()[0].clone()
    }

    pub(crate) fn import(&self, reference: &str, source: &Source) -> Result<Imported, StoreError> {
        let imported = self.store.import(reference, source, &mut |_| {})?;
        // What was noted while unpacking must be what is found by reading.
        assert_eq!(self.damage(), Vec::<String>::new(), "after the import of {source}");
        Ok(imported)
    }

    /// What `verify` calls damage.
    pub(crate) fn damage(&self) -> Vec<String> {
        let findings = self.store.verify(&mut |_| {}).unwrap();
        let damage = findings.into_iter().filter(|finding| finding.gravity == Gravity::Damage);
        damage.map(|finding| finding.line).collect()
    }

    /// Names in a folder of the store, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.images().join(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// A tar archive made entry by entry.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

/// One entry; [`Tar::add`] fills in what a plain file owned by root would have.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) flag: u8,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) link: &'a [u8],
    pub(crate) data: &'a [u8],
}

impl Default for Item<'_> {
    fn default() -> Self {
        Item { path: b"", flag: b'0', mode: 0o644, owner: (0, 0), mtime: 1_700_000_000, link: b"", data: b"" }
    }
}

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar::default()
    }

    pub(crate) fn add(mut self, item: Item<'_>) -> Tar {
        let mut header = header(item.path, item.flag, item.data.len() as u64);
        header.set_mode(item.mode);
        header.set_uid(item.owner.0);
        header.set_gid(item.owner.1);
        header.set_mtime(item.mtime);
        header.as_old_mut().linkname[..item.link.len()].copy_from_slice(item.link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.content(item.data)
    }

    pub(crate) fn content(mut self, data: &[u8]) -> Tar {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn raw(mut self, header: &tar::Header) -> Tar {
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    pub(crate) fn file(self, path: &str, data: &str) -> Tar {
        self.add(Item { path: path.as_bytes(), data: data.as_bytes(), ..Item::default() })
    }

    pub(crate) fn dir(self, path: &str) -> Tar {
        self.add(Item { path: path.as_bytes(), flag: b'5', mode: 0o755, ..Item::default() })
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Tar {
        self.add(Item { path: path.as_bytes(), flag: b'2', link: target.as_bytes(), ..Item::default() })
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Tar {
        self.add(Item { path: path.as_bytes(), flag: b'1', link: target.as_bytes(), ..Item::default() })
    }

    /// A PAX header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.add(Item { path: b"PaxHeaders/x", flag: b'x', data: &data, ..Item::default() })
    }

    /// The bytes with the end mark.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A GNU header without a checksum yet; the name may be anything that fits.
pub(crate) fn header(path: &[u8], flag: u8, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkflag = [flag];
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// An OCI layout of one image, every part of which a test may spoil before it is written.
pub(crate) struct Oci {
    /// Packed bytes, media type, digest and size as the manifest states them.
    pub(crate) layers: Vec<(Vec<u8>, String, Digest, u64)>,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) config: serde_json::Value,
}

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

impl Oci {
    pub(crate) fn of(tars: &[Vec<u8>]) -> Oci {
        let mut oci = Oci { layers: Vec::new(), diff_ids: Vec::new(), config: json!({}) };
        for tar in tars {
            oci.push(tar, tar.clone(), TAR);
        }
        oci
    }

    pub(crate) fn push(&mut self, tar: &[u8], packed: Vec<u8>, media_type: &str) {
        let (digest, size) = (Digest::of(&packed), packed.len() as u64);
        self.layers.push((packed, media_type.to_owned(), digest, size));
        self.diff_ids.push(Digest::of(tar));
    }

    pub(crate) fn config_text(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.diff_ids.iter().map(ToString::to_string).collect();
        let config = json!({
            "architecture": go_architecture(), "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        serde_json::to_vec(&config).unwrap()
    }

    pub(crate) fn manifest_text(&self) -> Vec<u8> {
        let config = self.config_text();
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|(_, media_type, digest, size)| {
                json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config).to_string(), "size": config.len(),
            },
            "layers": layers,
        });
        serde_json::to_vec(&manifest).unwrap()
    }

    /// Every file of the layout by name.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let manifest = self.manifest_text();
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index_of(&[descriptor(&manifest)])),
        ];
        let config = self.config_text();
        files.push((blob_name(&Digest::of(&config)), config));
        files.push((blob_name(&Digest::of(&manifest)), manifest));
        for (packed, _, digest, _) in &self.layers {
            files.push((blob_name(digest), packed.clone()));
        }
        files
    }

    pub(crate) fn write(&self, folder: &Path) {
        for (name, bytes) in self.files() {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub(crate) fn descriptor(manifest: &[u8]) -> serde_json::Value {
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(manifest).to_string(), "size": manifest.len(),
    })
}

pub(crate) fn index_of(descriptors: &[serde_json::Value]) -> Vec<u8> {
    serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": descriptors})).unwrap()
}

/// Packs named files into a tar archive.
pub(crate) fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files
        .iter()
        .fold(Tar::new(), |tar, (name, data)| tar.add(Item { path: name.as_bytes(), data, ..Item::default() }))
        .end()
}

pub(crate) fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

/// A path below a folder, of any bytes.
pub(crate) fn below(folder: &Path, name: &[u8]) -> PathBuf {
    folder.join(std::ffi::OsStr::from_bytes(name))
}
