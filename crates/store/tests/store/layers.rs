//! What the entries of a layer become on disk.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::fixtures::{Bench, Item, Tar, below, header, xattr};

const OPAQUE: &str = "trusted.overlay.opaque";

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

#[test]
fn owners_modes_times_and_names_are_kept() {
    let bench = Bench::with(super::unpacker());
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(200));
    let tar = Tar::new()
        .add(Item { path: b"./", flag: b'5', mode: 0o750, owner: (3, 4), mtime: 11, ..Item::default() })
        .add(Item { path: b"tmp/", flag: b'5', mode: 0o1777, mtime: 12, ..Item::default() })
        .add(Item { path: b"tmp/su", mode: 0o6755, owner: (65535, 1), mtime: 13, data: b"x", ..Item::default() })
        .add(Item { path: b"tmp/link", flag: b'2', link: b"/etc/passwd", owner: (5, 6), mtime: 14, ..Item::default() })
        .hard_link("tmp/su2", "tmp/su")
        .hard_link("tmp/link2", "/tmp/link")
        .file("a\nb\x01\u{e9}", "newline")
        .pax(&[("path", long.as_bytes()), ("mtime", b"-1.5"), ("uid", b"77"), ("comment", b"x")])
        .file("short", "long")
        .add(Item { path: b"implied/deep/file", mtime: 15, ..Item::default() })
        .add(Item { path: b"old-style-dir/", flag: 0, mode: 0o700, ..Item::default() })
        .end();
    let root = bench.layer(tar);
    let of = |path: &str| {
        let metadata = fs::symlink_metadata(root.join(path)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid(), metadata.mtime())
    };
    assert_eq!(of("."), (0o750, 3, 4, 11));
    assert_eq!(of("tmp"), (0o1777, 0, 0, 12));
    assert_eq!(of("tmp/su"), (0o6755, 65535, 1, 13));
    assert_eq!(of("tmp/link"), (0o777, 5, 6, 14));
    assert_eq!(fs::read_link(root.join("tmp/link2")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::metadata(root.join("tmp/su2")).unwrap().ino(), fs::metadata(root.join("tmp/su")).unwrap().ino());
    assert_eq!(fs::read_to_string(below(&root, "a\nb\x01\u{e9}".as_bytes())).unwrap(), "newline");
    let metadata = fs::metadata(root.join(&long)).unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec(), metadata.uid()), (-2, 500_000_000, 77));
    assert_eq!(of("implied"), (0o755, 0, 0, 0));
    assert_eq!(of("implied/deep"), (0o755, 0, 0, 0));
    assert_eq!(of("old-style-dir"), (0o700, 0, 0, 1_700_000_000));
}

#[test]
fn a_gnu_long_name_and_link_are_read() {
    let bench = Bench::with(super::unpacker());
    let (name, target) = ("n".repeat(220), "t/".repeat(100));
    let tar = Tar::new()
        .add(Item { path: b"././@LongLink", flag: b'L', data: format!("{name}\0").as_bytes(), ..Item::default() })
        .add(Item { path: b"././@LongLink", flag: b'K', data: format!("{target}\0").as_bytes(), ..Item::default() })
        .symlink("cut", "cut")
        .end();
    let root = bench.layer(tar);
    assert_eq!(fs::read_link(root.join(name)).unwrap(), Path::new(&target));
}

#[test]
fn the_later_entry_wins_also_when_it_changes_the_type() {
    let bench = Bench::with(super::unpacker());
    let tar = Tar::new()
        .file("file", "first")
        .file("file", "second")
        .dir("a/")
        .file("a/inner", "x")
        .file("a", "now a file")
        .file("b", "was a file")
        .dir("b/")
        .file("b/inner", "x")
        .symlink("c", "/etc")
        .dir("c/")
        .file("c/inner", "x")
        .file("d", "x")
        .add(Item { path: b"d", flag: b'3', ..Item::default() })
        .file("e", "is in the way")
        .file("e/below", "x")
        .file("self", "same")
        .hard_link("self", "self")
        .add(Item { path: b"twice/", flag: b'5', mode: 0o700, ..Item::default() })
        .file("twice/kept", "x")
        .add(Item { path: b"twice/", flag: b'5', mode: 0o711, mtime: 5, ..Item::default() })
        .end();
    let root = bench.layer(tar);
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!((text("file"), text("a"), text("b/inner")), ("second".into(), "now a file".into(), "x".into()));
    assert!(root.join("c").symlink_metadata().unwrap().is_dir() && root.join("c/inner").is_file());
    assert!(root.join("d").symlink_metadata().is_err());
    assert_eq!((text("e/below"), text("self")), ("x".into(), "same".into()));
    // What lower layers have of a name this layer first made a file must not shine through.
    assert_eq!(xattr(&root.join("b"), OPAQUE).unwrap(), b"y");
    let twice = fs::metadata(root.join("twice")).unwrap();
    assert_eq!((twice.mode() & 0o7777, twice.mtime(), root.join("twice/kept").exists()), (0o711, 5, true));
}

#[test]
fn whiteouts_take_overlay_form_in_whatever_order_they_come() {
    let bench = Bench::with(super::unpacker());
    let tar = Tar::new()
        .file(".wh.gone", "")
        .dir("opaque/")
        .file("opaque/own", "x")
        .file("opaque/.wh..wh..opq", "")
        .file("first/.wh..wh..opq", "")
        .add(Item { path: b"first/", flag: b'5', mode: 0o700, ..Item::default() })
        .file(".wh.again", "")
        .dir("again/")
        .file("back/x", "")
        .file(".wh.back", "")
        .file("both", "own")
        .file(".wh.both", "")
        .file(".wh.both2", "")
        .file("both2", "own")
        .file(".wh.implied", "")
        .file("implied/x", "")
        .file(".wh..wh.plnk", "aufs")
        .add(Item { path: b"device", flag: b'3', ..Item::default() })
        .add(Item { path: b"disk", flag: b'4', ..Item::default() })
        .add(Item { path: b"pipe", flag: b'6', ..Item::default() })
        .end();
    let lease = bench.layers(&[tar]);
    let root = lease.layers()[0].clone();
    assert!(is_whiteout(&root.join("gone")));
    for opaque in ["opaque", "first", "again", "back", "implied"] {
        assert_eq!(xattr(&root.join(opaque), OPAQUE).as_deref(), Some(&b"y"[..]), "{opaque}");
    }
    assert_eq!(fs::metadata(root.join("first")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::read_to_string(root.join("both")).unwrap(), "own");
    assert_eq!(fs::read_to_string(root.join("both2")).unwrap(), "own");
    let mut names: Vec<_> =
        fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["again", "back", "both", "both2", "first", "gone", "implied", "opaque"]);
}

#[test]
fn symbolic_links_above_an_entry_end_at_the_layers_root() {
    let bench = Bench::with(super::unpacker());
    let outside = bench.path("outside");
    fs::create_dir(&outside).unwrap();
    let tar = Tar::new()
        .dir("real/")
        .symlink("relative", "real")
        .file("relative/a", "in real")
        .symlink("absolute", outside.to_str().unwrap())
        .file("absolute/b", "not outside")
        .symlink("up", "../../../../../../real")
        .file("up/c", "in real too")
        .symlink("dangling", "made/here")
        .file("dangling/d", "x")
        .symlink("here", ".")
        .file("here/e", "at the top")
        .hard_link("linked", "relative/a")
        .symlink("magic", "/proc/self/root/tmp")
        .file("magic/f", "x")
        .end();
    let root = bench.layer(tar);
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(
        (text("real/a"), text("real/c"), text("made/here/d")),
        ("in real".into(), "in real too".into(), "x".into())
    );
    assert_eq!((text("e"), text("linked")), ("at the top".into(), "in real".into()));
    assert!(fs::read_dir(&outside).unwrap().next().is_none(), "something was written outside");
    assert_eq!(text(&format!("{}/b", outside.to_str().unwrap().trim_start_matches('/'))), "not outside");
    assert_eq!(text("proc/self/root/tmp/f"), "x");
}

#[test]
fn attributes_are_kept_or_dropped_by_name() {
    let bench = Bench::with(super::unpacker());
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.user.note", b"a=\n\0b"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .file("file", "x")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.a", b"1")])
        .dir("dir/")
        .pax(&[("SCHILY.xattr.user.b", b"2")])
        .dir("dir/")
        .end();
    let root = bench.layer(tar);
    let file = root.join("file");
    assert_eq!(xattr(&file, "user.note").unwrap(), b"a=\n\0b");
    assert_eq!(xattr(&file, "security.capability").unwrap(), capability);
    for dropped in ["security.selinux", "trusted.overlay.redirect", OPAQUE, "user.overlay.opaque"] {
        assert_eq!(xattr(&file, dropped), None, "{dropped}");
    }
    let dir = root.join("dir");
    assert_eq!((xattr(&dir, OPAQUE), xattr(&dir, "user.a"), xattr(&dir, "user.b")), (None, None, Some(b"2".to_vec())));
}

#[test]
fn sparse_files_of_every_form_have_their_content_and_their_holes() {
    let bench = Bench::with(super::unpacker());
    let real: u64 = 16 << 20;
    let mut old = header(b"old", b'S', 8);
    let gnu = old.as_gnu_mut().unwrap();
    gnu.set_real_size(real);
    for (slot, (offset, length)) in [(1u64 << 20, 4u64), (8 << 20, 4), (real, 0)].into_iter().enumerate() {
        gnu.sparse[slot].set_offset(offset);
        gnu.sparse[slot].set_length(length);
    }
    old.set_cksum();
    let map = format!("2\n{}\n4\n{}\n4\n", 1 << 20, 8 << 20);
    let mut inline = map.into_bytes();
    inline.resize(512, 0);
    inline.extend_from_slice(b"headtail");
    let size = real.to_string();
    let old_map = format!("{},4,{},4", 1 << 20, 8 << 20);
    let tar = Tar::new()
        .raw(&old)
        .content(b"headtail")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"pax10"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .add(Item { path: b"GNUSparseFile.1/pax10", data: &inline, ..Item::default() })
        .pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", old_map.as_bytes())])
        .file("pax01", "headtail")
        .file("after", "x")
        .end();
    let root = bench.layer(tar);
    for name in ["old", "pax10", "pax01"] {
        let mut file = File::open(root.join(name)).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), real, "{name}");
        assert!(metadata.blocks() * 512 < 1 << 20, "{name}: {} blocks", metadata.blocks());
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        let mut expected = vec![0u8; usize::try_from(real).unwrap()];
        expected[1 << 20..(1 << 20) + 4].copy_from_slice(b"head");
        expected[8 << 20..(8 << 20) + 4].copy_from_slice(b"tail");
        assert!(content == expected, "{name} has other bytes");
    }
    assert_eq!(fs::read_to_string(root.join("after")).unwrap(), "x");
}

/// The kernel's own view: an overlay of these layers, mounted nowhere.
fn overlay(layers: &[PathBuf], empty: &Path) -> OwnedFd {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    let mut lower: Vec<&str> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
    // Without an upper directory overlayfs wants two lower ones.
    lower.push(empty.to_str().unwrap());
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).expect("overlayfs is available to root");
    fsconfig_set_string(context.as_fd(), "lowerdir", lower.join(":")).unwrap();
    fsconfig_create(context.as_fd()).unwrap();
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap()
}

fn listing(mount: &OwnedFd, path: &str) -> Vec<String> {
    let dir = rustix::fs::openat(mount, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut names: Vec<String> = rustix::fs::Dir::read_from(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

#[test]
fn the_kernel_stacks_the_layers_as_the_image_means_it() {
    let bench = Bench::with(super::unpacker());
    let base = Tar::new()
        .file("etc/keep", "k")
        .file("etc/drop", "d")
        .file("var/old", "o")
        .file("opt/lower", "l")
        .file("file-then-dir/lower", "l")
        .end();
    let top = Tar::new()
        .dir("etc/")
        .file("etc/.wh.drop", "")
        .file("etc/new", "n")
        .dir("var/")
        .file("var/.wh..wh..opq", "")
        .file("var/fresh", "f")
        .file(".wh.opt", "")
        .dir("opt/")
        .file("opt/upper", "u")
        .file("file-then-dir", "x")
        .dir("file-then-dir/")
        .end();
    let empty = bench.path("empty");
    fs::create_dir(&empty).unwrap();
    let lease = bench.layers(&[base.clone(), top.clone(), base.clone(), top]);
    assert_eq!(lease.layers().len(), 2, "each layer once: {:?}", lease.layers());
    let mount = overlay(lease.layers(), &empty);
    assert_eq!(listing(&mount, "."), ["etc", "file-then-dir", "opt", "var"]);
    assert_eq!(listing(&mount, "etc"), ["keep", "new"]);
    assert_eq!(listing(&mount, "var"), ["fresh"]);
    assert_eq!(listing(&mount, "opt"), ["upper"]);
    assert!(listing(&mount, "file-then-dir").is_empty());
    drop(lease);

    let clean = Tar::new().file(".wh..wh..opq", "").file("only", "x").end();
    let lease = bench.layers(&[base, clean]);
    assert_eq!(lease.layers().len(), 1, "an opaque root hides all below");
    assert_eq!(listing(&overlay(lease.layers(), &empty), "."), ["only"]);
}
