//! Images made to hurt: each ends in one line with image, layer and cause, and leaves nothing.

use std::fs;
use std::io::Write;

use runner_store::{Digest, ErrorKind, Limits, Source, Store};

use crate::fixtures::{
    Bench, Item, Oci, REFERENCE, TAR, Tar, blob_name, descriptor, gzip, header, index_of, pack, zstd,
};

/// Imports an OCI folder that must be refused, and checks everything a refusal promises.
fn refused(bench: &Bench, name: &str, source: &Source, kind: ErrorKind, expected: &str) {
    let error = bench.import(REFERENCE, source).expect_err(name);
    let line = error.to_string();
    assert_eq!(error.kind(), kind, "{name}: {line}");
    assert!(line.starts_with(&format!("image {REFERENCE}: ")), "{name}: {line}");
    assert!(line.contains(expected), "{name}: expected {expected:?} in: {line}");
    assert!(!line.contains(|c: char| c.is_control()), "{name}: control characters in: {line:?}");
    assert!(bench.names("tmp").is_empty(), "{name}: left {:?}", bench.names("tmp"));
    assert!(bench.names("layers").is_empty(), "{name}: left {:?}", bench.names("layers"));
    assert!(bench.store.resolve(REFERENCE).unwrap().is_none(), "{name}: a reference was made");
}

/// A header whose size field holds these bytes.
fn sized(field: &[u8; 12]) -> Vec<u8> {
    let mut header = header(b"file", b'0', 0);
    header.as_old_mut().size = *field;
    header.set_cksum();
    Tar::new().raw(&header).end()
}

#[test]
fn every_hostile_layer_is_refused_with_one_line() {
    use ErrorKind::{BadSource, LimitExceeded};
    let deep = "d/".repeat(260);
    let long = "x".repeat(5000);
    let mut foreign_sum = header(b"file", b'0', 0);
    foreign_sum.set_cksum();
    foreign_sum.as_old_mut().name[0] = b'F';
    let mut sparse_outside = header(b"sparse", b'S', 4);
    let gnu = sparse_outside.as_gnu_mut().unwrap();
    gnu.set_real_size(2);
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(4);
    sparse_outside.set_cksum();
    let mut sparse_huge = header(b"sparse", b'S', 0);
    sparse_huge.as_gnu_mut().unwrap().set_real_size(1 << 62);
    sparse_huge.set_cksum();
    let device = Item { path: b"null", flag: b'3', ..Item::default() };
    let cases: Vec<(&str, Vec<u8>, ErrorKind, &str)> = vec![
        ("parent", Tar::new().file("../escape", "x").end(), BadSource, "entry ../escape: `..` in the path"),
        ("inner parent", Tar::new().file("a/../../escape", "x").end(), BadSource, "`..` in the path"),
        ("pax parent", Tar::new().pax(&[("path", b"a/..")]).file("a", "x").end(), BadSource, "`..` in the path"),
        ("nul", Tar::new().pax(&[("path", b"a\0b")]).file("a", "x").end(), BadSource, "entry a\\x00b: NUL byte"),
        ("nul in link", Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("l", "x").end(), BadSource, "NUL byte"),
        ("newline", Tar::new().file("a\n::error::x/../b", "x").end(), BadSource, "entry a\\n::error::x/../b: "),
        ("empty name", Tar::new().file("", "x").end(), BadSource, "empty path"),
        ("empty link", Tar::new().symlink("l", "").end(), BadSource, "symbolic link without a target"),
        ("root link", Tar::new().symlink("./", "/etc").end(), BadSource, "replaces the root"),
        ("hard link out", Tar::new().hard_link("l", "../../etc/passwd").end(), BadSource, "`..` in the path"),
        ("absolute hard link", Tar::new().hard_link("l", "/etc/passwd").end(), BadSource, "not in this layer"),
        (
            "hard link through a link",
            Tar::new().symlink("e", "/etc").hard_link("l", "e/passwd").end(),
            BadSource,
            "hard link to e/passwd, which is not in this layer",
        ),
        (
            "hard link to a whiteout",
            Tar::new().file(".wh.w", "").hard_link("l", "w").end(),
            BadSource,
            "neither a file nor a symbolic link",
        ),
        ("hard link to a directory", Tar::new().dir("d/").hard_link("l", "d").end(), BadSource, "neither a file"),
        ("hard link to a device", Tar::new().add(device).hard_link("l", "null").end(), BadSource, "not in this layer"),
        ("whiteout of parent", Tar::new().file("a/.wh...", "").end(), BadSource, "whiteout of no name"),
        ("whiteout of self", Tar::new().file("a/.wh..", "").end(), BadSource, "whiteout of no name"),
        ("whiteout of nothing", Tar::new().file(".wh.", "").end(), BadSource, "whiteout of no name"),
        ("below a whiteout", Tar::new().file(".wh.a/b", "").end(), BadSource, "below the name of a whiteout"),
        (
            "link loop",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x").end(),
            BadSource,
            "too many symbolic links",
        ),
        (
            "uid",
            Tar::new().add(Item { path: b"f", owner: (65536, 0), ..Item::default() }).end(),
            BadSource,
            "entry f: uid 65536 is above 65535",
        ),
        ("gid", Tar::new().pax(&[("gid", b"4294967296")]).file("f", "").end(), BadSource, "gid 4294967296"),
        ("negative uid", Tar::new().pax(&[("uid", b"-1")]).file("f", "").end(), BadSource, "PAX record uid=-1"),
        ("negative size", sized(&[0xff; 12]), BadSource, "negative size"),
        ("negative octal size", sized(b"-0000000001\0"), BadSource, "field size is not a number"),
        ("huge size", sized(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), BadSource, "truncated"),
        ("larger size", sized(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), BadSource, "too large"),
        ("pax size", Tar::new().pax(&[("size", b"99999999999999999999")]).file("f", "").end(), BadSource, "size="),
        (
            "damaged pax",
            Tar::new().add(Item { path: b"p", flag: b'x', data: b"99 a=b\n", ..Item::default() }).end(),
            BadSource,
            "damaged PAX record",
        ),
        ("pax at the end", Tar::new().pax(&[("path", b"a")]).end(), BadSource, "ends after an extension header"),
        (
            "unknown type",
            Tar::new().add(Item { path: b"f", flag: b'V', ..Item::default() }).end(),
            BadSource,
            "unknown entry type 'V'",
        ),
        ("checksum", Tar::new().raw(&foreign_sum).end(), BadSource, "wrong header checksum"),
        ("no tar", b"#!/bin/sh\n".repeat(200), BadSource, "wrong header checksum"),
        ("half a header", Tar::new().file("f", "x").0[..300].to_vec(), BadSource, "archive is truncated"),
        ("half a file", Tar::new().file("f", &"x".repeat(2000)).0[..1024].to_vec(), BadSource, "archive is truncated"),
        ("sparse outside", Tar::new().raw(&sparse_outside).content(b"abcd").end(), BadSource, "map of a sparse file"),
        ("sparse huge", Tar::new().raw(&sparse_huge).end(), LimitExceeded, "unpacks to more than 68719476736 bytes"),
        ("deep", Tar::new().pax(&[("path", deep.as_bytes())]).dir("d/").end(), LimitExceeded, "255 directories deep"),
        ("long", Tar::new().pax(&[("path", long.as_bytes())]).file("f", "").end(), LimitExceeded, "path of 5000 bytes"),
        (
            "long name",
            Tar::new().pax(&[("path", "n".repeat(300).as_bytes())]).file("f", "").end(),
            LimitExceeded,
            "255 bytes",
        ),
        (
            "pax bomb",
            Tar::new().add(Item { path: b"p", flag: b'x', data: &vec![b' '; 2 << 20], ..Item::default() }).end(),
            LimitExceeded,
            "extension header of 2097152 bytes",
        ),
        (
            "long name bomb",
            Tar::new().add(Item { path: b"p", flag: b'L', data: &vec![b'a'; 2 << 20], ..Item::default() }).end(),
            LimitExceeded,
            "extension header of 2097152 bytes",
        ),
    ];
    let bench = Bench::with(super::unpacker());
    for (name, tar, kind, expected) in cases {
        let layer = Digest::of(&tar);
        let folder = bench.path(&format!("oci {name}"));
        Oci::of(&[tar]).write(&folder);
        refused(&bench, name, &Source::OciDirectory(folder.clone()), kind, expected);
        let line = bench.import(REFERENCE, &Source::OciDirectory(folder)).unwrap_err().to_string();
        assert!(line.contains(&format!("layer {layer}: ")), "{name}: {line}");
    }
    assert!(!bench.path("escape").exists() && !bench.images().join("escape").exists());
}

#[test]
fn links_that_nest_cannot_make_a_tree_deeper_than_the_limit() {
    let bench = Bench::with(super::unpacker());
    let deep = "d/".repeat(200);
    let tar = Tar::new()
        .pax(&[("path", deep.as_bytes())])
        .dir("d/")
        .pax(&[("linkpath", deep.as_bytes())])
        .symlink("down", "x")
        .pax(&[("path", format!("down/{deep}").as_bytes())])
        .dir("d/")
        .end();
    let folder = bench.path("oci");
    Oci::of(&[tar]).write(&folder);
    let source = Source::OciDirectory(folder);
    refused(&bench, "nested", &source, ErrorKind::LimitExceeded, "more than 255 directories deep");
}

#[test]
fn links_cannot_make_a_small_layer_take_days() {
    let bench = Bench::with(super::unpacker());
    let mut tar = Tar::new().dir("a/");
    for first in ["L", "M"] {
        for link in 0..39 {
            let target = format!("{}{first}{}", "a/../".repeat(790), link + 1);
            tar = tar.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("{first}{link}"), "");
        }
        tar = tar.symlink(&format!("{first}39"), "a");
    }
    // Never the same parent twice in a row.
    for entry in 0..400 {
        tar = tar.file(&format!("{}0/f", if entry % 2 == 0 { "L" } else { "M" }), "");
    }
    let source = bench.path("oci");
    Oci::of(&[tar.end()]).write(&source);
    refused(&bench, "slow links", &Source::OciDirectory(source), ErrorKind::LimitExceeded, "too many symbolic links");
}

#[test]
fn bytes_that_are_not_what_their_descriptor_says_are_refused() {
    use ErrorKind::{BadSource, DigestMismatch};
    let tar = Tar::new().file("f", &"content ".repeat(1000)).end();
    let other = Tar::new().file("f", &"CONTENT ".repeat(1000)).end();
    let gz = gzip(&tar);
    type Spoil = fn(&mut Oci, &[u8], &[u8]);
    let gzip_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let cases: Vec<(&str, Spoil, ErrorKind, &str)> = vec![
        ("other bytes", |oci, other, _| oci.layers[0].0 = other.to_vec(), DigestMismatch, "blob has digest sha256:"),
        ("size too small", |oci, _, _| oci.layers[0].3 -= 1, DigestMismatch, "its descriptor says"),
        ("size too large", |oci, _, _| oci.layers[0].3 += 1, DigestMismatch, "its descriptor says"),
        ("size zero", |oci, _, _| oci.layers[0].3 = 0, DigestMismatch, "its descriptor says 0"),
        ("diff id", |oci, other, _| oci.diff_ids[0] = Digest::of(other), DigestMismatch, "which is not its diff id"),
        (
            "bit flipped in gzip",
            |oci, _, gz| {
                let mut bytes = gz.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x40;
                oci.layers[0].0 = bytes;
                oci.layers[0].2 = Digest::of(gz);
                oci.layers[0].3 = gz.len() as u64;
            },
            DigestMismatch,
            "blob has digest sha256:",
        ),
        (
            "truncated gzip that is what was meant",
            |oci, _, gz| {
                let cut = gz[..gz.len() / 2].to_vec();
                (oci.layers[0].2, oci.layers[0].3) = (Digest::of(&cut), cut.len() as u64);
                oci.layers[0].0 = cut;
            },
            BadSource,
            "gzip data is truncated",
        ),
        (
            "truncated zstd that is what was meant",
            |oci, other, _| {
                let packed = zstd(other);
                let cut = packed[..packed.len() - 5].to_vec();
                (oci.layers[0].2, oci.layers[0].3) = (Digest::of(&cut), cut.len() as u64);
                oci.layers[0].0 = cut;
            },
            BadSource,
            "zstd data is",
        ),
        (
            "foreign layer",
            |oci, _, _| oci.layers[0].1 = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into(),
            BadSource,
            "foreign layers are not accepted",
        ),
        ("no tar layer", |oci, _, _| oci.layers[0].1 = "text/plain".into(), BadSource, "is not a tar layer"),
        (
            "more diff ids",
            |oci, _, _| oci.diff_ids.push(Digest::of(b"x")),
            BadSource,
            "lists 1 layers, configuration 2",
        ),
        ("no layers", |oci, _, _| (oci.layers, oci.diff_ids) = Default::default(), BadSource, "has no layers"),
        (
            "blob under another digest",
            |oci, _, _| oci.layers[0].2 = Digest::of(b"absent"),
            DigestMismatch,
            "blob has digest",
        ),
    ];
    for (name, spoil, kind, expected) in cases {
        let bench = Bench::with(super::unpacker());
        let mut oci = Oci::of(&[]);
        if name.contains("gzip") {
            oci.push(&tar, gz.clone(), gzip_type);
        } else {
            oci.push(&tar, tar.clone(), TAR);
        }
        spoil(&mut oci, &other, &gz);
        let folder = bench.path("oci");
        oci.write(&folder);
        refused(&bench, name, &Source::OciDirectory(folder), kind, expected);
    }
}

#[test]
fn spoiled_documents_are_refused() {
    use ErrorKind::{BadSource, DigestMismatch, LimitExceeded};
    let tar = Tar::new().file("f", "x").end();
    let oci = Oci::of(&[tar]);
    let manifest = oci.manifest_text();
    let config_name = blob_name(&Digest::of(&oci.config_text()));
    let manifest_name = blob_name(&Digest::of(&manifest));
    let self_listing = {
        // A digest cannot contain itself, so an index "listing itself" has other bytes than its name says.
        let name = Digest::of(b"loop");
        let entry = serde_json::json!({"digest": name.to_string(), "size": 0});
        let size = index_of(&[entry]).len();
        let entry = serde_json::json!({"digest": name.to_string(), "size": size + 2});
        (blob_name(&name), index_of(std::slice::from_ref(&entry)), entry)
    };
    let mut chain = vec![(String::new(), manifest.clone())];
    for _ in 0..8 {
        let below = descriptor(&chain.last().unwrap().1);
        let mut below = below.as_object().unwrap().clone();
        below.remove("mediaType");
        let text = index_of(&[below.into()]);
        chain.push((blob_name(&Digest::of(&text)), text));
    }
    let top = chain.last().unwrap().1.clone();
    let config = oci.config_text();
    type Files = Vec<(String, Vec<u8>)>;
    let cases: Vec<(&str, Files, ErrorKind, &str)> = vec![
        ("no index", vec![("index.json".into(), b"".to_vec())], BadSource, "index.json: manifest is not valid"),
        ("no json", vec![("index.json".into(), b"[1, 2".to_vec())], BadSource, "index.json: manifest is not valid"),
        ("old layout", vec![("oci-layout".into(), b"{}".to_vec())], BadSource, "oci-layout does not say version 1"),
        ("empty index", vec![("index.json".into(), index_of(&[]))], BadSource, "lists no image"),
        ("manifest as index", vec![("index.json".into(), manifest.clone())], BadSource, "is a manifest, not an index"),
        ("big index", vec![("index.json".into(), vec![b' '; 5 << 20])], LimitExceeded, "longer than 4194304 bytes"),
        ("other manifest", vec![(manifest_name, vec![b' '; manifest.len()])], DigestMismatch, "has digest"),
        ("short config", vec![(config_name.clone(), b"{}".to_vec())], DigestMismatch, "has 2 bytes"),
        ("other config", vec![(config_name, vec![b' '; config.len()])], DigestMismatch, "has digest"),
        (
            "lists itself",
            vec![("index.json".into(), index_of(&[self_listing.2])), (self_listing.0, self_listing.1)],
            DigestMismatch,
            "instead of",
        ),
        (
            "endless chain",
            chain[1..].iter().cloned().chain([("index.json".to_owned(), top)]).collect(),
            LimitExceeded,
            "nest too deep",
        ),
    ];
    for (name, files, kind, expected) in cases {
        let bench = Bench::with(super::unpacker());
        let folder = bench.path("oci");
        oci.write(&folder);
        for (name, bytes) in &files {
            fs::write(folder.join(name), bytes).unwrap();
        }
        refused(&bench, name, &Source::OciDirectory(folder), kind, expected);
    }
}

#[test]
fn blobs_outside_the_layout_and_pipes_are_not_opened() {
    let bench = Bench::with(super::unpacker());
    let tar = Tar::new().file("f", "x").end();
    let oci = Oci::of(std::slice::from_ref(&tar));
    let blob = blob_name(&Digest::of(&tar));
    let folder = bench.path("oci");
    oci.write(&folder);
    fs::rename(folder.join(&blob), bench.path("outside")).unwrap();
    std::os::unix::fs::symlink(bench.path("outside"), folder.join(&blob)).unwrap();
    let source = Source::OciDirectory(folder.clone());
    refused(&bench, "symlink", &source, ErrorKind::BadSource, "leads out of the layout");
    fs::remove_file(folder.join(&blob)).unwrap();
    refused(&bench, "absent", &source, ErrorKind::BadSource, "is missing");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.join(&blob),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    refused(&bench, "pipe", &source, ErrorKind::BadSource, "is not a regular file");
}

#[test]
fn bombs_stop_at_the_limit() {
    let size: u64 = 64 << 20;
    let mut head = header(b"zeros", b'0', size);
    head.set_cksum();
    let mut tar = Tar::new().raw(&head).0;
    tar.resize(tar.len() + usize::try_from(size).unwrap() + 1024, 0);
    let limits = Limits { decompressed_bytes: 1 << 20, entries: 100, ..Limits::default() };
    for (name, packed) in [("gzip", gzip(&tar)), ("zstd", zstd(&tar))] {
        assert!(packed.len() < 1 << 20, "{name}: no bomb with {} bytes", packed.len());
        let mut bench = Bench::with(super::unpacker());
        bench.store = Store::open_with(&bench.images(), limits.clone()).unwrap().with_unpacker(super::unpacker());
        let mut oci = Oci::of(&[]);
        oci.push(&tar, packed, "application/vnd.oci.image.layer.v1.tar+gzip");
        let folder = bench.path("oci");
        oci.write(&folder);
        let source = Source::OciDirectory(folder);
        refused(&bench, name, &source, ErrorKind::LimitExceeded, "unpacks to more than 1048576 bytes");
        // The same bomb around a whole image archive.
        let file = bench.path("bomb.tar");
        fs::File::create(&file).unwrap().write_all(&gzip(&pack(&[("oci-layout".into(), tar.clone())]))).unwrap();
        let source = Source::OciArchive(file);
        refused(&bench, name, &source, ErrorKind::LimitExceeded, "unpacks to more than 1048576 bytes");
    }
    let ratio = Limits { expansion: 10, expansion_free: 1 << 20, ..Limits::default() };
    for (name, packed) in [("gzip ratio", gzip(&tar)), ("zstd ratio", zstd(&tar))] {
        let mut bench = Bench::with(super::unpacker());
        bench.store = Store::open_with(&bench.images(), ratio.clone()).unwrap().with_unpacker(super::unpacker());
        let expected = format!("unpacks to more than 10 times its {} packed bytes", packed.len());
        let mut oci = Oci::of(&[]);
        oci.push(&tar, packed, "application/vnd.oci.image.layer.v1.tar+gzip");
        let folder = bench.path("oci");
        oci.write(&folder);
        refused(&bench, name, &Source::OciDirectory(folder), ErrorKind::LimitExceeded, &expected);
    }
    let many = (0..101).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), "")).end();
    let mut bench = Bench::with(super::unpacker());
    bench.store = Store::open_with(&bench.images(), limits).unwrap().with_unpacker(super::unpacker());
    let folder = bench.path("oci");
    Oci::of(&[many]).write(&folder);
    refused(&bench, "entries", &Source::OciDirectory(folder), ErrorKind::LimitExceeded, "more than 100 entries");
}

#[test]
fn archives_of_images_that_lie_are_refused() {
    use ErrorKind::{BadSource, DigestMismatch};
    let tar = Tar::new().file("f", "x").end();
    let oci = Oci::of(std::slice::from_ref(&tar));
    let config = String::from_utf8(oci.config_text()).unwrap();
    let manifest = |config: &str, layers: &[&str], tags: &str| {
        format!(r#"[{{"Config":"{config}","RepoTags":{tags},"Layers":{layers:?}}}]"#)
    };
    let zeros = "0".repeat(64);
    let looped = Tar::new().symlink("l.tar", "m.tar").symlink("m.tar", "l.tar");
    let cases: Vec<(&str, Vec<u8>, ErrorKind, &str)> = vec![
        ("no manifest", Tar::new().file("c", "x").end(), BadSource, "manifest.json is missing"),
        ("no json", Tar::new().file("manifest.json", "{").end(), BadSource, "manifest.json is not valid"),
        ("no image", Tar::new().file("manifest.json", "[]").end(), BadSource, "lists no image"),
        (
            "absent layer",
            Tar::new().file("c.json", &config).file("manifest.json", &manifest("c.json", &["l.tar"], "null")).end(),
            BadSource,
            "l.tar is missing",
        ),
        (
            "link loop",
            looped.file("c.json", &config).file("manifest.json", &manifest("c.json", &["l.tar"], "null")).end(),
            BadSource,
            "chain of links",
        ),
        (
            "config of another digest",
            Tar::new()
                .file(&format!("{zeros}.json"), &config)
                .file("manifest.json", &manifest(&format!("{zeros}.json"), &["l.tar"], "null"))
                .end(),
            DigestMismatch,
            "instead of sha256:0000",
        ),
        (
            "layer of another image",
            Tar::new()
                .file("c.json", &config)
                .add(Item { path: b"l.tar", data: &Tar::new().file("evil", "x").end(), ..Item::default() })
                .file("manifest.json", &manifest("c.json", &["l.tar"], "null"))
                .end(),
            DigestMismatch,
            "which is not its diff id",
        ),
        (
            "several images, none of this name",
            Tar::new()
                .file("c.json", &config)
                .file(
                    "manifest.json",
                    r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":[]},{"Config":"c.json","Layers":[]}]"#,
                )
                .end(),
            BadSource,
            "several images and none of this name, only a:1",
        ),
    ];
    for (name, archive, kind, expected) in cases {
        let bench = Bench::with(super::unpacker());
        let file = bench.path("saved.tar");
        fs::write(&file, archive).unwrap();
        refused(&bench, name, &Source::DockerArchive(file), kind, expected);
    }
}

#[test]
fn a_root_archive_without_its_end_is_refused() {
    let bench = Bench::with(super::unpacker());
    let file = bench.path("root.tar");
    fs::write(&file, Tar::new().dir("etc/").file("etc/x", "x").0).unwrap();
    refused(&bench, "no end mark", &Source::RootArchive(file), ErrorKind::BadSource, "no end mark");
}

#[test]
fn what_is_no_reference_is_refused_before_anything_is_read() {
    let bench = Bench::with(super::unpacker());
    for reference in ["", "a b", "a\nb", "\u{e9}", &"x".repeat(600)] {
        let error = bench.import(reference, &Source::RootTree("/nowhere".into())).unwrap_err().to_string();
        assert!(error.contains("is not an image reference") && !error.contains('\n'), "{error}");
    }
}
