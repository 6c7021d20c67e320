//! A layer of an untrusted image, unpacked by the store. Needs root, as the store does.
//!
//! The import runs in a thread whose root is a tmpfs of its own: wherever an escape leads, by `..` or by an absolute
//! link, it ends there, where every name is known, and not on this machine.

#![no_main]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock};

use libfuzzer_sys::fuzz_target;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use runner_store::{Limits, Source, Store};

const REFERENCE: &str = "docker.io/library/fuzz:1";
const BLOCK: usize = 512;

type Worker = Mutex<(SyncSender<Vec<u8>>, Receiver<()>)>;

fuzz_target!(|bytes: &[u8]| {
    static WORKER: OnceLock<Worker> = OnceLock::new();
    // Most inputs get their checksums put right, or the fuzzer would never get past the first header. A last byte that
    // is odd, and compression, leave an input as it is.
    let packed = bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let as_it_is = packed || bytes.last().is_some_and(|byte| byte % 2 == 1);
    let archive = if as_it_is { bytes.to_vec() } else { mended(bytes) };
    let worker = WORKER.get_or_init(start).lock().expect("a panic ends the process");
    worker.0.send(archive).expect("the worker lives");
    worker.1.recv().expect("the worker lives");
});

/// Every header with the checksum it should have, and the end mark.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut archive = bytes.to_vec();
    archive.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = header[124..136].iter().filter(|byte| (b'0'..=b'7').contains(byte));
        let size = size.fold(0_usize, |size, digit| (size << 3) | usize::from(digit - b'0'));
        let content = if (b'1'..=b'6').contains(&header[156]) { 0 } else { size.next_multiple_of(BLOCK) };
        at = at.saturating_add(BLOCK).saturating_add(content);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

fn start() -> Worker {
    let (send, archives) = sync_channel::<Vec<u8>>(0);
    let (done, receive) = sync_channel(0);
    std::thread::spawn(move || {
        enter_own_root();
        let canary = untouched();
        for archive in archives {
            import(&archive);
            assert_eq!(untouched(), canary, "something was written outside the store");
            if done.send(()).is_err() {
                break;
            }
        }
    });
    Mutex::new((send, receive))
}

/// A root for this thread alone; the fuzzer goes on writing its corpus where it was. It is gone with the process.
fn enter_own_root() {
    let shm = Path::new("/dev/shm");
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).expect("root may make a mount namespace");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mounts of our own");
    mount(Some("fuzz"), shm, Some("tmpfs"), MsFlags::empty(), Some("size=256m,mode=0755")).expect("a tmpfs");
    std::os::unix::fs::chroot(shm).expect("root may change root");
    std::env::set_current_dir("/").expect("the new root");
    fs::create_dir("/outside").expect("an empty root");
    fs::write("/outside/canary", "sings").expect("room for a canary");
    fs::set_permissions("/outside/canary", fs::Permissions::from_mode(0o640)).expect("its mode");
}

/// Names below the root but for the store's, and everything about the file an escape could reach.
fn untouched() -> impl PartialEq + std::fmt::Debug {
    let canary = fs::symlink_metadata("/outside/canary").expect("the canary is there");
    let about = (canary.ino(), canary.mode(), canary.uid(), canary.gid(), canary.nlink());
    let times = (canary.mtime(), canary.mtime_nsec(), canary.ctime(), canary.ctime_nsec());
    let folder = fs::symlink_metadata("/outside").expect("the folder is there");
    let folder = (folder.mode(), folder.mtime(), folder.mtime_nsec(), folder.ctime(), folder.ctime_nsec());
    let content = fs::read("/outside/canary").expect("the canary can be read");
    (names("/"), names("/outside"), about, times, folder, content)
}

fn names(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    names
}

fn import(archive: &[u8]) {
    fs::create_dir("/case").expect("the last case is gone");
    fs::write("/case/layer.tar", archive).expect("room for an archive");
    // Small, so that an input costs milliseconds.
    let limits = Limits { decompressed_bytes: 1 << 20, entries: 256, ..Limits::default() };
    let store = Store::open_with(Path::new("/case/store"), limits).expect("a new store");
    let source = Source::RootArchive(PathBuf::from("/case/layer.tar"));
    match store.import(REFERENCE, &source, &mut |_| {}) {
        Ok(imported) => {
            assert!(imported.stats.bytes <= 1 << 20 && imported.stats.entries <= 256, "{imported:?}");
            let lease = store.resolve(REFERENCE).expect("a store that can be read").expect("just imported");
            assert_eq!(lease.layers().len(), 1);
            check_tree(&lease.layers()[0]);
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "an error of several lines: {line:?}");
            for folder in ["tmp", "layers", "refs", "images"] {
                assert_eq!(names(format!("/case/store/{folder}")), Vec::<PathBuf>::new(), "left behind by: {line}");
            }
        }
    }
    drop(store);
    assert_eq!(names("/case"), ["/case/layer.tar", "/case/store"].map(PathBuf::from));
    fs::remove_dir_all("/case").expect("all of it can be removed");
}

/// A layer holds nothing but files, directories, links and whiteouts, of owners that a guest has.
fn check_tree(folder: &Path) {
    for path in names(folder) {
        let metadata = fs::symlink_metadata(&path).expect("it was listed");
        let kind = metadata.file_type();
        let whiteout = kind.is_char_device() && metadata.rdev() == 0;
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink() || whiteout, "{path:?} is {kind:?}");
        assert!(metadata.uid() < 65_536 && metadata.gid() < 65_536, "{path:?} belongs to {}", metadata.uid());
        if kind.is_dir() {
            check_tree(&path);
        }
    }
}
