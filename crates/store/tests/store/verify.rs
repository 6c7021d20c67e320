//! Damage of every kind is found, and nothing else is called damage.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use runner_store::{Digest, Gravity, Source, Store, Unpacker};

use crate::fixtures::{Bench, Item, Oci, REFERENCE, Tar, sandboxed};

/// Layers with everything a layer can have.
fn layers() -> [Vec<u8>; 2] {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // The same with a root id, which is 0.
    let mut with_root_id = [0; 24];
    with_root_id[..20].copy_from_slice(&capability);
    with_root_id[3] = 3;
    let sparse = format!("{},4,{},4", 1 << 20, 3 << 20);
    let size = (8 << 20).to_string();
    let base = Tar::new()
        .file("etc/hosts", "localhost")
        .file("etc/empty", "")
        .add(Item { path: b"bin/su", mode: 0o6755, owner: (0, 7), data: b"su", ..Item::default() })
        .hard_link("bin/su2", "bin/su")
        .symlink("bin/link", "su")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"n")])
        .file("bin/ping", "ping")
        .pax(&[("SCHILY.xattr.security.capability", &with_root_id)])
        .file("bin/traceroute", "traceroute")
        .pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", sparse.as_bytes())])
        .file("sparse", "headtail")
        .add(Item { path: b"zeros", data: &[0; 300_000], ..Item::default() })
        .end();
    let top = Tar::new()
        .pax(&[("SCHILY.xattr.user.a", b"1")])
        .dir("etc/")
        .file("etc/.wh..wh..opq", "")
        .pax(&[("SCHILY.xattr.user.b", b"2")])
        .dir("etc/")
        .file("etc/new", "n")
        .file(".wh.bin", "")
        .file("replaced", "r")
        .dir("replaced/")
        .file("once", "more attributes than before")
        .pax(&[("SCHILY.xattr.user.c", b"3")])
        .file("again", "x")
        .file("again", "y")
        .end();
    [base, top]
}

fn imported(unpacker: Unpacker) -> (Bench, Source, Oci) {
    let bench = Bench::with(unpacker);
    let oci = Oci::of(&layers());
    oci.write(&bench.path("oci"));
    let source = Source::OciDirectory(bench.path("oci"));
    bench.import(REFERENCE, &source).unwrap();
    (bench, source, oci)
}

/// The tree digest a layer's record has.
fn tree_of(bench: &Bench, layer: &Digest) -> String {
    let text = fs::read(bench.images().join("layers").join(layer.hex()).join("layer.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["tree"].as_str().unwrap().to_owned()
}

#[test]
fn a_layer_has_one_tree_digest_wherever_it_was_unpacked() {
    let (here, _, oci) = imported(Unpacker::InProcess);
    let (there, _, _) = imported(sandboxed());
    for layer in &oci.diff_ids {
        assert_eq!(tree_of(&here, layer), tree_of(&there, layer), "{layer}");
    }
    // As a root tree the lower layer is the same tree.
    let tree = here.images().join("layers").join(oci.diff_ids[0].hex()).join("root");
    there.import("localhost/tree:1", &Source::RootTree(tree)).unwrap();
    let name = tree_of(&here, &oci.diff_ids[0]);
    assert!(there.names("layers").contains(&name["sha256:".len()..].to_owned()), "{name}: {:?}", there.names("layers"));
}

/// Changes a file and leaves its size and its times as they were.
fn flip(path: &Path) {
    let metadata = fs::metadata(path).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[0] ^= 1;
    fs::write(path, bytes).unwrap();
    set_modified(path, metadata.modified().unwrap());
}

fn set_modified(path: &Path, time: SystemTime) {
    fs::File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(time)).unwrap();
}

#[test]
fn every_change_to_a_layer_is_found_and_named() {
    let (bench, source, oci) = imported(sandboxed());
    let layer = |index: usize| bench.images().join("layers").join(oci.diff_ids[index].hex());
    let (base, top) = (layer(0).join("root"), layer(1).join("root"));
    // Folders whose content changes keep their times, so that nothing else gives the change away.
    let in_folder = |path: PathBuf, change: &dyn Fn(&Path)| {
        let folder = path.parent().unwrap().to_owned();
        let time = fs::metadata(&folder).unwrap().modified().unwrap();
        change(&path);
        set_modified(&folder, time);
    };
    type Change<'a> = &'a dyn Fn();
    let unset = |path: PathBuf, name: &str| rustix::fs::removexattr(path, name).unwrap();
    let cases: [(&str, usize, Change<'_>); 18] = [
        ("flipped byte", 0, &|| flip(&base.join("etc/hosts"))),
        ("flipped byte of a file with holes", 0, &|| flip(&base.join("sparse"))),
        ("mode", 0, &|| fs::set_permissions(base.join("bin/su"), fs::Permissions::from_mode(0o755)).unwrap()),
        ("owner", 0, &|| chown(base.join("etc/hosts"), Some(1), None).unwrap()),
        ("group", 0, &|| chown(base.join("etc/hosts"), None, Some(1)).unwrap()),
        ("time", 0, &|| set_modified(&base.join("etc/hosts"), SystemTime::UNIX_EPOCH)),
        ("missing file", 0, &|| in_folder(base.join("etc/empty"), &|path| fs::remove_file(path).unwrap())),
        ("extra file", 0, &|| in_folder(base.join("etc/extra"), &|path| fs::write(path, "").unwrap())),
        ("longer file", 0, &|| fs::write(base.join("etc/empty"), "x").unwrap()),
        ("another link", 0, &|| {
            in_folder(base.join("bin/link"), &|path| {
                fs::remove_file(path).unwrap();
                symlink("sh", path).unwrap();
            });
        }),
        ("hard link split", 0, &|| {
            in_folder(base.join("bin/su2"), &|path| {
                let metadata = fs::metadata(path).unwrap();
                fs::remove_file(path).unwrap();
                fs::write(path, "su").unwrap();
                chown(path, Some(metadata.uid()), Some(metadata.gid())).unwrap();
                fs::set_permissions(path, metadata.permissions()).unwrap();
                set_modified(path, metadata.modified().unwrap());
            });
        }),
        ("capability gone", 0, &|| unset(base.join("bin/ping"), "security.capability")),
        ("attribute gone", 0, &|| unset(base.join("bin/ping"), "user.note")),
        ("attribute of a folder gone", 1, &|| unset(top.join("etc"), "user.b")),
        ("no longer opaque", 1, &|| unset(top.join("etc"), "trusted.overlay.opaque")),
        ("whiteout gone", 1, &|| in_folder(top.join("bin"), &|path| fs::remove_file(path).unwrap())),
        ("a pipe", 1, &|| {
            in_folder(top.join("pipe"), &|path| {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            });
        }),
        ("root gone", 1, &|| fs::remove_dir_all(&top).unwrap()),
    ];
    for (name, index, change) in cases {
        assert_eq!(bench.damage(), Vec::<String>::new(), "{name}: before");
        change();
        let damage = bench.damage();
        let place = format!("layers/{}", oci.diff_ids[index].hex());
        assert!(damage.len() == 1 && damage[0].starts_with(&place), "{name}: {damage:?}");
        assert!(damage[0].contains("`runnerctl image rm`") && damage[0].ends_with(REFERENCE), "{name}: {damage:?}");
        // What the line says helps.
        bench.store.remove(REFERENCE).unwrap();
        bench.import(REFERENCE, &source).unwrap();
    }
}

#[test]
fn what_is_missing_or_unreadable_is_found() {
    type Change = fn(&Path, &Oci);
    let cases: [(&str, Change, &str); 10] = [
        ("blob", |images, oci| flip(&blob(images, &oci.manifest_text())), "its bytes have digest sha256:"),
        ("configuration", |images, oci| flip(&blob(images, &oci.config_text())), "its bytes have digest sha256:"),
        ("no blob", |images, oci| fs::remove_file(blob(images, &oci.manifest_text())).unwrap(), "is missing; pull"),
        (
            "no config",
            |images, oci| fs::remove_file(blob(images, &oci.config_text())).unwrap(),
            "configuration is missing",
        ),
        ("layer", |images, oci| fs::remove_dir_all(layer(images, oci)).unwrap(), "is missing; remove with"),
        (
            "no record",
            |images, oci| fs::remove_file(layer(images, oci).join("layer.json")).unwrap(),
            "has no layer.json",
        ),
        ("record", |images, oci| fs::write(layer(images, oci).join("layer.json"), "x").unwrap(), "is damaged"),
        ("reference", |images, _| fs::write(only(&images.join("refs")), "x").unwrap(), "is damaged"),
        ("image", |images, _| fs::write(only(&images.join("images")), "x").unwrap(), "is damaged"),
        (
            "no image",
            |images, _| fs::remove_file(only(&images.join("images"))).unwrap(),
            "has no record; pull it again",
        ),
    ];
    for (name, change, expected) in cases {
        let (bench, _, oci) = imported(Unpacker::InProcess);
        change(&bench.images(), &oci);
        let damage = bench.damage();
        assert!(damage.iter().any(|line| line.contains(expected)), "{name}: expected {expected:?} in {damage:?}");
        assert!(damage.iter().all(|line| !line.contains(char::is_control)), "{name}: {damage:?}");
    }
}

fn blob(images: &Path, bytes: &[u8]) -> PathBuf {
    images.join("blobs/sha256").join(Digest::of(bytes).hex())
}

fn layer(images: &Path, oci: &Oci) -> PathBuf {
    images.join("layers").join(oci.diff_ids[0].hex())
}

fn only(folder: &Path) -> PathBuf {
    fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn leftovers_and_what_cannot_be_checked_are_no_damage() {
    let (bench, _, oci) = imported(Unpacker::InProcess);
    let images = bench.images();
    let record = layer(&images, &oci).join("layer.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    text.as_object_mut().unwrap().remove("tree").unwrap();
    fs::write(&record, text.to_string()).unwrap();
    fs::create_dir(images.join("tmp/stage-1-2-3")).unwrap();
    fs::write(images.join("partial/half"), "x").unwrap();
    fs::write(images.join("partial").join(Digest::of(b"half").hex()), "x").unwrap();
    fs::write(blob(&images, b"unused"), "unused").unwrap();
    fs::create_dir_all(images.join("layers").join(Digest::of(b"unused").hex()).join("root")).unwrap();
    let findings = bench.store.verify(&mut |_| {}).unwrap();
    let mut lines: Vec<String> = findings
        .into_iter()
        .map(|finding| {
            assert_eq!(finding.gravity, Gravity::Note, "{finding}");
            finding.line
        })
        .collect();
    lines.sort();
    let expected = [
        format!("blobs/sha256/{}: no reference needs it", Digest::of(b"unused").hex()),
        format!("layers/{}: cannot be verified, an earlier version unpacked it", oci.diff_ids[0].hex()),
        format!("layers/{}: no reference needs it", Digest::of(b"unused").hex()),
        "partial/half: not a name of this store".to_owned(),
        "tmp/stage-1-2-3: left by interrupted work".to_owned(),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for expected in expected {
        assert!(lines.iter().any(|line| line.starts_with(&expected)), "expected {expected:?} in {lines:#?}");
    }
    bench.store.sweep().unwrap();
    assert_eq!(bench.store.verify(&mut |_| {}).unwrap().len(), 2, "what cannot be verified, and the foreign name");
}

#[test]
fn work_in_progress_is_no_damage_and_is_not_held_up() {
    let bench = Bench::with(sandboxed());
    let oci = Oci::of(&layers());
    oci.write(&bench.path("oci"));
    let other = Store::open(&bench.images()).unwrap();
    let mut lines = Vec::new();
    let source = Source::OciDirectory(bench.path("oci"));
    let mut verified = 0;
    bench
        .store
        .import(REFERENCE, &source, &mut |_| {
            let findings = other.verify(&mut |_| {}).unwrap();
            // That a layer is being made, or is there before its image is, is worth a note at most.
            lines.extend(findings.into_iter().filter(|finding| finding.gravity == Gravity::Damage));
            verified += 1;
        })
        .unwrap();
    assert!(verified >= 4 && lines.is_empty(), "{verified}: {lines:?}");
    // The image goes while it is read.
    let mut steps = Vec::new();
    let findings = other
        .verify(&mut |state| {
            if steps.is_empty() {
                bench.store.remove(REFERENCE).unwrap();
            }
            steps.push(state);
        })
        .unwrap();
    assert_eq!(findings, [], "{steps:?}");
    let last = steps.last().unwrap();
    assert_eq!((steps[0].done, steps[0].total, last.done, last.bytes), (0, 4, 4, 0), "{steps:?}");
}
