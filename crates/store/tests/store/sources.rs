//! The five sources, and telling them apart.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use runner_store::{Digest, ErrorKind, Progress, Source, Store};
use rustix::fs::{FileType, Mode, XattrFlags};

use crate::fixtures::{Bench, Oci, REFERENCE, TAR, Tar, gzip, pack, xattr, zstd};

/// A capability set as `setcap cap_net_raw+ep` writes it.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn make_root(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/os-release"), "ID=test\n").unwrap();
    fs::write(root.join("usr/bin/su"), "su").unwrap();
    fs::set_permissions(root.join("usr/bin/su"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("usr/bin/su"), root.join("usr/bin/sudo")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("/nowhere/at/all", root.join("etc/dangling")).unwrap();
    fs::write(root.join("usr/bin/ping"), "ping").unwrap();
    std::os::unix::fs::chown(root.join("usr/bin/ping"), Some(1000), Some(65535)).unwrap();
    let ping = File::open(root.join("usr/bin/ping")).unwrap();
    rustix::fs::fsetxattr(&ping, "security.capability", &NET_RAW, XattrFlags::empty()).unwrap();
    rustix::fs::fsetxattr(&ping, "user.note", b"hello", XattrFlags::empty()).unwrap();
    rustix::fs::fsetxattr(&ping, "trusted.secret", b"x", XattrFlags::empty()).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 8 << 20).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), 259)
        .unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000));
    File::open(root.join("etc")).unwrap().set_times(old).unwrap();
}

#[test]
fn a_root_tree_becomes_one_layer_with_everything_a_guest_can_see() {
    let bench = Bench::new();
    let root = bench.path("root");
    make_root(&root);
    let source = Source::detect(&root).unwrap();
    assert_eq!(source, Source::RootTree(root));
    let imported = bench.import(REFERENCE, &source).unwrap();
    assert_eq!((imported.layers, imported.reused), (1, 0));
    let stats = imported.stats;
    assert_eq!((stats.devices_dropped, stats.fifos_dropped, stats.xattrs_dropped), (1, 1, 1), "{stats:?}");

    let lease = bench.store.resolve(REFERENCE).unwrap().unwrap();
    assert_eq!(lease.config().cmd, ["/bin/sh"]);
    assert!(lease.config().env[0].starts_with("PATH="), "{:?}", lease.config());
    assert_eq!((lease.id(), lease.reference(), lease.manifest()), (imported.image, REFERENCE, None));
    let [layer] = lease.layers() else { panic!("{:?}", lease.layers()) };
    assert!(layer.starts_with(bench.images()), "{layer:?}");
    assert_eq!(fs::read_to_string(layer.join("etc/os-release")).unwrap(), "ID=test\n");
    assert_eq!(fs::read_link(layer.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(fs::read_link(layer.join("etc/dangling")).unwrap(), Path::new("/nowhere/at/all"));
    let su = fs::metadata(layer.join("usr/bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.nlink()), (0o4755, 2));
    assert_eq!(su.ino(), fs::metadata(layer.join("usr/bin/sudo")).unwrap().ino());
    let ping = layer.join("usr/bin/ping");
    let metadata = fs::metadata(&ping).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1000, 65535));
    assert_eq!(xattr(&ping, "security.capability").unwrap(), NET_RAW);
    assert_eq!(xattr(&ping, "user.note").unwrap(), b"hello");
    assert_eq!(xattr(&ping, "trusted.secret"), None);
    let sparse = fs::metadata(layer.join("sparse")).unwrap();
    assert_eq!(sparse.len(), (8 << 20) + 3);
    assert!(sparse.blocks() * 512 < 1 << 20, "holes were filled: {} blocks", sparse.blocks());
    assert_eq!(fs::metadata(layer.join("etc")).unwrap().mtime(), 1_000_000);
    assert!(!layer.join("null").exists() && !layer.join("fifo").exists());
}

#[test]
fn the_same_tree_is_the_same_image_and_another_is_not() {
    let bench = Bench::new();
    let root = bench.path("root");
    make_root(&root);
    let first = bench.import("localhost/a:1", &Source::RootTree(root.clone())).unwrap();
    let second = bench.import("localhost/b:1", &Source::RootTree(root.clone())).unwrap();
    assert_eq!(first.image, second.image);
    assert_eq!((second.reused, bench.names("layers").len()), (1, 1));
    fs::set_permissions(root.join("etc/os-release"), fs::Permissions::from_mode(0o600)).unwrap();
    let third = bench.import("localhost/c:1", &Source::RootTree(root)).unwrap();
    assert_ne!(first.image, third.image);
    assert!(bench.names("tmp").is_empty(), "{:?}", bench.names("tmp"));
}

/// Unmounts when a test ends, however it ends.
pub(crate) struct Mounted(pub(crate) std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn another_mount_in_the_tree_is_left_out() {
    let bench = Bench::new();
    let root = bench.path("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    let point = root.join("mnt");
    fs::create_dir(&point).unwrap();
    rustix::mount::mount("none", &point, "tmpfs", rustix::mount::MountFlags::empty(), None)
        .expect("a tmpfs can be mounted");
    let _mounted = Mounted(point.clone());
    fs::write(point.join("secret"), "host data").unwrap();
    let imported = bench.import(REFERENCE, &Source::RootTree(root)).unwrap();
    assert_eq!(imported.stats.mounts_skipped, 1);
    let lease = bench.store.resolve(REFERENCE).unwrap().unwrap();
    let copied = lease.layers()[0].join("mnt");
    assert!(copied.is_dir() && fs::read_dir(&copied).unwrap().next().is_none(), "{copied:?}");
}

#[test]
fn a_tree_that_holds_the_store_or_foreign_ids_is_refused() {
    let bench = Bench::new();
    fs::create_dir(bench.path("etc")).unwrap();
    let around = Source::RootTree(bench.folder.path().to_path_buf());
    let error = bench.import(REFERENCE, &around).unwrap_err();
    assert!(error.to_string().contains("the image store lies in this tree"), "{error}");

    let shifted = bench.path("shifted");
    fs::create_dir_all(shifted.join("etc")).unwrap();
    std::os::unix::fs::chown(shifted.join("etc"), Some(524_288), None).unwrap();
    let error = bench.import(REFERENCE, &Source::RootTree(shifted)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadSource);
    assert!(error.to_string().contains("entry etc: uid 524288 is above 65535"), "{error}");
    assert!(bench.names("layers").is_empty() && bench.names("tmp").is_empty());
}

fn three_layers() -> Oci {
    let base = Tar::new().dir("etc/").file("etc/os-release", "ID=base\n").file("gone", "x").end();
    let middle = Tar::new().dir("etc/").file("etc/middle", "m").file(".wh.gone", "").end();
    let top = Tar::new().file("top", "t").end();
    let mut oci = Oci::of(&[]);
    oci.push(&base, base.clone(), TAR);
    oci.push(&middle, gzip(&middle), "application/vnd.docker.image.rootfs.diff.tar.gzip");
    oci.push(&top, zstd(&top), "application/vnd.oci.image.layer.v1.tar+zstd");
    oci.config = serde_json::json!({"Env": ["A=1"], "Entrypoint": ["/e"], "User": "7:8", "WorkingDir": "/w"});
    oci
}

fn check_three_layers(store: &Store, oci: &Oci) {
    let lease = store.resolve(REFERENCE).unwrap().unwrap();
    assert_eq!(lease.id(), Digest::of(&oci.config_text()));
    assert_eq!((lease.config().env[0].as_str(), lease.config().user.as_str()), ("A=1", "7:8"));
    let names: Vec<_> = oci.diff_ids.iter().rev().map(Digest::hex).collect();
    let found: Vec<_> = lease
        .layers()
        .iter()
        .map(|path| path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, names, "topmost first");
    assert_eq!(fs::read_to_string(lease.layers()[0].join("top")).unwrap(), "t");
    assert_eq!(fs::read_to_string(lease.layers()[2].join("etc/os-release")).unwrap(), "ID=base\n");
    let [summary] = &store.list().unwrap()[..] else { panic!("one reference expected") };
    assert_eq!((summary.layers, summary.size, summary.image), (3, 8 + 1 + 1 + 1, lease.id()));
    assert!(summary.last_used >= summary.imported, "{summary:?}");
}

#[test]
fn an_oci_layout_is_imported_from_a_directory_and_from_archives() {
    let oci = three_layers();
    let manifest = Digest::of(&oci.manifest_text());
    let bench = Bench::new();
    let folder = bench.path("oci");
    oci.write(&folder);
    let source = Source::detect(&folder).unwrap();
    assert_eq!(source, Source::OciDirectory(folder));
    let imported = bench.import(REFERENCE, &source).unwrap();
    assert_eq!((imported.layers, imported.reused, imported.manifest), (3, 0, Some(manifest)));
    check_three_layers(&bench.store, &oci);

    for packed in [pack(&oci.files()), gzip(&pack(&oci.files())), zstd(&pack(&oci.files()))] {
        let bench = Bench::new();
        let file = bench.path("image.tar");
        fs::write(&file, packed).unwrap();
        let source = Source::detect(&file).unwrap();
        assert_eq!(source, Source::OciArchive(file));
        let imported = bench.import(REFERENCE, &source).unwrap();
        assert_eq!(imported.manifest, Some(manifest));
        check_three_layers(&bench.store, &oci);
        assert!(bench.names("tmp").is_empty());
    }
}

/// `docker save` in its older form: a folder for each layer, equal layers linked to each other.
fn saved(tags: &[&str]) -> (Vec<u8>, Oci) {
    let base = Tar::new().file("base", "b").end();
    let oci = Oci::of(&[base.clone(), Tar::new().file("top", "t").end(), base.clone()]);
    let config = oci.config_text();
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let folders: Vec<String> = (0..3).map(|index| Digest::of(&[index]).hex()).collect();
    let names: Vec<String> = folders.iter().map(|folder| format!("{folder}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    // The usual names are too long for the first name field; PAX carries them.
    let mut tar = Tar::new();
    for (name, data) in names.iter().zip([&base, &Tar::new().file("top", "t").end()]) {
        tar = tar.pax(&[("path", name.as_bytes())]).add(crate::fixtures::Item {
            path: b"cut",
            data,
            ..Default::default()
        });
    }
    let target = format!("../{}", names[0]);
    tar = tar.pax(&[("path", names[2].as_bytes()), ("linkpath", target.as_bytes())]).symlink("cut", "cut");
    tar = tar.file(&config_name, std::str::from_utf8(&config).unwrap());
    (tar.file("manifest.json", &manifest.to_string()).end(), oci)
}

#[test]
fn a_docker_archive_is_imported_and_a_layer_used_twice_is_given_once() {
    for pack in [(|bytes: &[u8]| bytes.to_vec()) as fn(&[u8]) -> Vec<u8>, gzip] {
        let bench = Bench::new();
        let (archive, oci) = saved(&["test:1"]);
        let file = bench.path("saved");
        fs::write(&file, pack(&archive)).unwrap();
        let source = Source::detect(&file).unwrap();
        assert_eq!(source, Source::DockerArchive(file));
        let imported = bench.import(REFERENCE, &source).unwrap();
        assert_eq!(imported.image, Digest::of(&oci.config_text()));
        assert_eq!((imported.layers, imported.reused), (3, 1));
        let lease = bench.store.resolve(REFERENCE).unwrap().unwrap();
        assert_eq!(lease.layers().len(), 2, "{:?}", lease.layers());
        assert!(lease.layers()[0].join("base").exists() && lease.layers()[1].join("top").exists());
    }
}

#[test]
fn a_root_archive_becomes_one_layer_named_by_its_diff_id() {
    let tar = Tar::new().dir("./").dir("./etc/").file("./etc/hostname", "h").end();
    for pack in [(|bytes: &[u8]| bytes.to_vec()) as fn(&[u8]) -> Vec<u8>, gzip, zstd] {
        let bench = Bench::new();
        let file = bench.path("root.tar");
        fs::write(&file, pack(&tar)).unwrap();
        let source = Source::detect(&file).unwrap();
        assert_eq!(source, Source::RootArchive(file));
        let mut seen = Vec::new();
        bench.store.import(REFERENCE, &source, &mut |progress| seen.push(progress)).unwrap();
        let layer = Digest::of(&tar);
        assert_eq!(seen.last(), Some(&Progress::Layer { index: 0, total: 1, layer, reused: false }));
        assert_eq!(bench.names("layers"), [layer.hex()]);
        let lease = bench.store.resolve(REFERENCE).unwrap().unwrap();
        assert_eq!(fs::read_to_string(lease.layers()[0].join("etc/hostname")).unwrap(), "h");
    }
}

#[test]
fn what_is_no_image_is_named_together_with_what_is_accepted() {
    let bench = Bench::new();
    fs::create_dir(bench.path("empty")).unwrap();
    fs::create_dir_all(bench.path("other/home")).unwrap();
    fs::write(bench.path("zero"), "").unwrap();
    fs::write(bench.path("text"), "x".repeat(2000)).unwrap();
    fs::write(bench.path("no-entries.tar"), Tar::new().end()).unwrap();
    fs::write(bench.path("cut.gz"), &gzip(&Tar::new().file("etc", "x").end())[..12]).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, bench.path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let cases = [
        ("empty", "a directory with neither an oci-layout file nor any of bin"),
        ("other", "a directory with neither an oci-layout file nor any of bin"),
        ("zero", "an empty file"),
        ("text", "wrong header checksum"),
        ("no-entries.tar", "an archive without entries"),
        ("cut.gz", "gzip data is truncated"),
        ("fifo", "a pipe or socket"),
        ("absent", "cannot open"),
    ];
    for (name, expected) in cases {
        let error = Source::detect(&bench.path(name)).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{name}: {error}");
        assert!(name == "absent" || error.contains("accepted are an OCI layout"), "{name}: {error}");
    }
}
