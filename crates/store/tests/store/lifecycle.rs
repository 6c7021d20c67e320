//! References, leases, collection, several processes at once, and crashes.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use runner_store::{Digest, ErrorKind, Progress, Scope, Source, Store};

use crate::fixtures::{Bench, Oci, REFERENCE, Tar, pack};

/// An OCI folder with an image of these one-file layers.
fn image(bench: &Bench, name: &str, layers: &[&str]) -> (Source, Oci) {
    let tars: Vec<_> = layers.iter().map(|layer| Tar::new().file(layer, layer).end()).collect();
    let oci = Oci::of(&tars);
    oci.write(&bench.path(name));
    (Source::OciDirectory(bench.path(name)), oci)
}

#[test]
fn what_is_not_there_is_none_and_cannot_be_removed() {
    let bench = Bench::new();
    assert!(bench.store.resolve(REFERENCE).unwrap().is_none());
    assert!(bench.store.list().unwrap().is_empty());
    let error = bench.store.remove(REFERENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().starts_with(&format!("image {REFERENCE}: not in the store")), "{error}");
}

#[test]
fn an_image_in_use_is_not_removed_and_goes_completely_afterwards() {
    let bench = Bench::new();
    let (source, _) = image(&bench, "oci", &["a", "b"]);
    bench.import(REFERENCE, &source).unwrap();
    let lease = bench.store.resolve(REFERENCE).unwrap().unwrap();
    // Another process would have its own store object; locks between them are the same as here.
    let other = Store::open(&bench.images()).unwrap();
    let error = other.remove(REFERENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().starts_with(&format!("image {REFERENCE}: in use")), "{error}");
    assert!(lease.layers()[0].join("b").exists());
    drop(lease);
    let removed = other.remove(REFERENCE).unwrap();
    assert_eq!((removed.layers, removed.bytes), (2, 2));
    for folder in ["refs", "images", "layers", "blobs/sha256", "locks", "tmp"] {
        assert!(bench.names(folder).is_empty(), "{folder}: {:?}", bench.names(folder));
    }
}

#[test]
fn shared_layers_stay_and_a_second_reference_can_go_while_the_image_is_used() {
    let bench = Bench::new();
    let (first, _) = image(&bench, "one", &["base", "one"]);
    let (second, _) = image(&bench, "two", &["base", "two"]);
    bench.import("localhost/one:1", &first).unwrap();
    let imported = bench.import("localhost/two:1", &second).unwrap();
    assert_eq!((imported.reused, bench.names("layers").len()), (1, 3));
    bench.import("localhost/one:alias", &first).unwrap();
    let lease = bench.store.resolve("localhost/one:1").unwrap().unwrap();
    assert_eq!(bench.store.remove("localhost/one:alias").unwrap().layers, 0);
    drop(lease);
    assert_eq!(bench.store.remove("localhost/one:1").unwrap().layers, 1);
    let lease = bench.store.resolve("localhost/two:1").unwrap().unwrap();
    assert!(lease.layers()[1].join("base").exists());
}

#[test]
fn a_reference_moves_at_once_and_the_old_image_stays_for_its_user() {
    let bench = Bench::new();
    let (first, _) = image(&bench, "one", &["old"]);
    let (second, oci) = image(&bench, "two", &["new"]);
    let before = bench.import(REFERENCE, &first).unwrap();
    let lease = bench.store.resolve(REFERENCE).unwrap().unwrap();
    let after = bench.import(REFERENCE, &second).unwrap();
    assert_eq!((after.replaced, after.image), (Some(before.image), Digest::of(&oci.config_text())));
    assert!(lease.layers()[0].join("old").exists(), "the image in use was collected");
    let moved = bench.store.resolve(REFERENCE).unwrap().unwrap();
    assert!(moved.layers()[0].join("new").exists());
    assert_eq!(bench.store.sweep().unwrap().images, 0, "the image in use was collected");
    drop(lease);
    let swept = bench.store.sweep().unwrap();
    assert_eq!((swept.images, swept.layers, swept.bytes), (1, 1, 3));
    assert_eq!(bench.names("layers").len(), 1);
}

#[test]
fn resolving_notes_the_time_of_use() {
    let bench = Bench::new();
    let (source, _) = image(&bench, "oci", &["a"]);
    bench.import(REFERENCE, &source).unwrap();
    let file = bench.images().join("refs").join(&bench.names("refs")[0]);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let times = fs::FileTimes::new().set_modified(long_ago);
    fs::File::options().write(true).open(file).unwrap().set_times(times).unwrap();
    assert_eq!(bench.store.list().unwrap()[0].last_used, long_ago);
    drop(bench.store.resolve(REFERENCE).unwrap());
    assert!(bench.store.list().unwrap()[0].last_used > long_ago + Duration::from_secs(1_000_000));
}

#[test]
fn two_imports_of_one_image_do_the_work_once() {
    let bench = Bench::new();
    let (source, _) = image(&bench, "oci", &["a", "b"]);
    let (started, is_started) = mpsc::channel();
    let (waits, is_waiting) = mpsc::channel();
    let (images, source) = (bench.images(), &source);
    let (first, second) = std::thread::scope(|scope| {
        let images = &images;
        let first = scope.spawn(move || {
            let mut once = Some((started, is_waiting));
            Store::open(images).unwrap().import(REFERENCE, source, &mut |progress| {
                if let (Progress::Unpacking { .. }, Some((started, is_waiting))) = (&progress, once.take()) {
                    started.send(()).unwrap();
                    // Goes on when the other one is waiting for this layer.
                    is_waiting.recv_timeout(Duration::from_secs(60)).expect("the other import waits");
                }
            })
        });
        let second = scope.spawn(move || {
            is_started.recv_timeout(Duration::from_secs(60)).expect("the first import starts");
            let mut unpacked = 0;
            let imported = Store::open(images).unwrap().import(REFERENCE, source, &mut |progress| match progress {
                Progress::Waiting { index: 0, .. } => waits.send(()).unwrap(),
                Progress::Unpacking { index: 0, .. } => unpacked += 1,
                _ => {}
            });
            assert_eq!(unpacked, 0, "the layer was unpacked twice");
            imported
        });
        (first.join().unwrap().unwrap(), second.join().unwrap().unwrap())
    });
    assert_eq!(first.image, second.image);
    // The second layer falls to whoever comes first; each is unpacked exactly once.
    assert_eq!(first.reused + second.reused, 2, "{first:?} {second:?}");
    assert!(bench.store.resolve(REFERENCE).unwrap().is_some());
    assert!(bench.names("tmp").is_empty());
}

#[test]
fn a_sweep_beside_an_import_takes_nothing_from_it() {
    let bench = Bench::new();
    let (source, _) = image(&bench, "oci", &["a", "b", "c"]);
    let other = Store::open(&bench.images()).unwrap();
    let mut sweeps = 0;
    let imported = bench
        .store
        .import(REFERENCE, &source, &mut |_| {
            let swept = other.sweep().unwrap();
            assert_eq!((swept.debris, swept.layers), (0, 0), "{swept:?}");
            sweeps += 1;
        })
        .unwrap();
    assert!(sweeps >= 6 && imported.reused == 0, "{sweeps} {imported:?}");
    assert_eq!(bench.store.resolve(REFERENCE).unwrap().unwrap().layers().len(), 3);
}

/// Names the points at which the child dies, through the environment.
const DIES_AT: &str = "RUNNER_STORE_TEST_DIES_AT";

#[test]
fn a_killed_import_leaves_the_old_state_and_debris_for_the_sweep() {
    if let Ok(text) = std::env::var(DIES_AT) {
        let (folder, point) = text.split_once('|').unwrap();
        let folder = std::path::Path::new(folder);
        let mut left: u32 = point.parse().unwrap();
        let store = Store::open(&folder.join("images")).unwrap();
        let source = Source::OciDirectory(folder.join("new"));
        store
            .import(REFERENCE, &source, &mut |_| {
                if left == 0 {
                    let me = rustix::process::getpid();
                    rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
                }
                left -= 1;
            })
            .unwrap();
        return;
    }
    let bench = Bench::new();
    let (old, _) = image(&bench, "old", &["old"]);
    let (new, _) = image(&bench, "new", &["a", "b"]);
    let before = bench.import(REFERENCE, &old).unwrap();
    // Unpacking and done, for each of two layers.
    for point in 0..4 {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lifecycle::a_killed_import_leaves_the_old_state_and_debris_for_the_sweep"])
            .env(DIES_AT, format!("{}|{point}", bench.folder.path().display()))
            .output()
            .unwrap();
        assert_eq!(status.status.signal(), Some(9), "point {point}: {status:?}");
        let lease = bench.store.resolve(REFERENCE).unwrap().unwrap();
        assert_eq!(lease.id(), before.image, "point {point}");
        assert!(lease.layers()[0].join("old").exists(), "point {point}");
        let swept = bench.store.sweep().unwrap();
        // Each of the two layers is under way, complete or not begun, and at least one is begun.
        assert!((1..=2).contains(&(swept.debris + swept.layers)), "point {point}: {swept:?}");
        assert!(point > 0 || swept.debris > 0, "point {point}: {swept:?}");
        assert_eq!((bench.names("layers").len(), bench.names("tmp").len()), (1, 0), "point {point}");
    }
    let after = bench.import(REFERENCE, &new).unwrap();
    assert_eq!((after.reused, after.replaced), (0, Some(before.image)));
}

#[test]
fn debris_of_every_kind_is_swept() {
    let bench = Bench::new();
    let tmp = bench.images().join("tmp");
    fs::write(tmp.join("file-1-2-3"), "x").unwrap();
    fs::create_dir_all(tmp.join("stage-1-2-3/root/deep/er")).unwrap();
    fs::write(tmp.join("stage-1-2-3/root/deep/er/f"), "x").unwrap();
    let outside = bench.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, tmp.join("trash-1-2-3")).unwrap();
    std::os::unix::fs::symlink(&outside, tmp.join("stage-1-2-3/root/link")).unwrap();
    assert_eq!(bench.store.sweep().unwrap().debris, 3);
    assert!(bench.names("tmp").is_empty() && outside.join("kept").exists());
    assert_eq!(bench.store.sweep().unwrap(), runner_store::Swept::default());
}

#[test]
fn what_was_imported_goes_only_when_somebody_says_so() {
    let bench = Bench::new();
    let (source, _) = image(&bench, "oci", &["a"]);
    bench.import(REFERENCE, &source).unwrap();
    for scope in [Scope::Watermarks { start: 0, stop: 0 }, Scope::Room(u64::MAX)] {
        let pruned = bench.store.prune(scope, &mut |_| {}).unwrap();
        assert_eq!(pruned.references, Vec::<String>::new(), "{scope:?}: no registry has it");
        assert!(bench.store.resolve(REFERENCE).unwrap().is_some(), "{scope:?}");
    }
    assert_eq!(bench.store.prune(Scope::All, &mut |_| {}).unwrap().references, [REFERENCE]);
}

#[test]
fn damage_is_reported_and_repaired_by_another_import() {
    let bench = Bench::new();
    let (source, oci) = image(&bench, "oci", &["a", "b"]);
    bench.import(REFERENCE, &source).unwrap();
    let layer = bench.images().join("layers").join(oci.diff_ids[0].hex());
    let config = bench.images().join("blobs/sha256").join(Digest::of(&oci.config_text()).hex());
    let record = bench.images().join("images").join(&bench.names("images")[0]);
    let damages: [(&str, &dyn Fn()); 6] = [
        ("layer", &|| fs::remove_dir_all(&layer).unwrap()),
        ("layer record", &|| fs::remove_file(layer.join("layer.json")).unwrap()),
        ("layer record empty", &|| fs::write(layer.join("layer.json"), "").unwrap()),
        ("config gone", &|| fs::remove_file(&config).unwrap()),
        ("config changed", &|| fs::write(&config, "{}").unwrap()),
        ("image record", &|| fs::write(&record, "").unwrap()),
    ];
    for (name, damage) in damages {
        damage();
        let error = bench.store.resolve(REFERENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{name}: {error}");
        assert!(error.to_string().contains("import the image again"), "{name}: {error}");
        bench.import(REFERENCE, &source).unwrap_or_else(|error| panic!("{name}: {error}"));
        let lease = bench.store.resolve(REFERENCE).unwrap().unwrap_or_else(|| panic!("{name}: not repaired"));
        assert!(lease.layers()[1].join("a").exists(), "{name}");
    }
    // A reference nobody can read keeps everything: it might be the one that needs it.
    let reference = bench.images().join("refs").join(&bench.names("refs")[0]);
    fs::write(reference, "no json").unwrap();
    assert_eq!(bench.store.sweep().unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(bench.names("layers").len(), 2);
}

#[test]
fn folders_that_are_no_store_of_ours_are_refused() {
    let bench = Bench::new();
    assert_eq!(fs::read_to_string(bench.images().join("version")).unwrap(), "1\n");
    let cases =
        [("2\n", "has format 2"), ("x", "not an image store"), ("", "not an image store"), ("0", "not an image")];
    for (version, expected) in cases {
        fs::write(bench.images().join("version"), version).unwrap();
        let error = Store::open(&bench.images()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        assert!(error.to_string().contains(expected), "{version:?}: {error}");
    }
    // As after a crash between making the folders and the version file.
    fs::remove_file(bench.images().join("version")).unwrap();
    Store::open(&bench.images()).unwrap();
    let foreign = bench.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "x").unwrap();
    let error = Store::open(&foreign).unwrap_err();
    assert!(error.to_string().contains("not empty (it holds thesis.txt)"), "{error}");
    let error = Store::open(&bench.path("absent/images")).unwrap_err();
    assert!(error.to_string().contains("cannot create the image store"), "{error}");
}

#[test]
fn nobody_else_can_look_into_the_store() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let mode = || fs::metadata(bench.images()).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o700);
    fs::set_permissions(bench.images(), fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&bench.images()).unwrap();
    assert_eq!(mode(), 0o700);
}

#[test]
fn a_full_disk_is_its_own_kind_of_failure_and_leaves_nothing() {
    let mut bench = Bench::new();
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    let options = Some(c"size=1m");
    rustix::mount::mount("none", &small, "tmpfs", rustix::mount::MountFlags::empty(), options).expect("mount a tmpfs");
    let _mounted = crate::sources::Mounted(small.clone());
    let tar = Tar::new().file("big", &"x".repeat(4 << 20)).end();
    let oci = Oci::of(&[Tar::new().file("fits", "x").end(), tar]);
    fs::write(bench.path("image.tar"), pack(&oci.files())).unwrap();
    let source = Source::detect(&bench.path("image.tar")).unwrap();
    bench.store = Store::open(&small.join("images")).unwrap();
    let error = bench.store.import(REFERENCE, &source, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    // Both layers are under way at a time, and each may be the one that meets the end.
    assert!(error.to_string().contains(": cannot write the file: No space left on device"), "{error}");
    assert!(bench.store.resolve(REFERENCE).unwrap().is_none());
    assert!(fs::read_dir(small.join("images/tmp")).unwrap().next().is_none());
    let swept = bench.store.sweep().unwrap();
    assert!(swept.layers <= 1 && swept.debris == 0, "at most the layer that fits is complete: {swept:?}");
}

#[test]
fn stores_and_leases_can_cross_threads() {
    fn crosses<T: Send + Sync>() {}
    crosses::<Store>();
    crosses::<runner_store::Lease>();
    crosses::<runner_store::StoreError>();
}

#[test]
fn a_layer_that_did_not_reach_the_disk_before_the_machine_stopped_is_absent() {
    let bench = Bench::new();
    let (source, oci) = image(&bench, "oci", &["a", "b"]);
    bench.import(REFERENCE, &source).unwrap();
    let record = bench.images().join("layers").join(oci.diff_ids[0].hex()).join("layer.json");
    let settled: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert!(
        settled.get("unsettled").is_none(),
        "an import from this machine is on the disk when it is done: {settled}"
    );
    let unsettle = |boot: &str| {
        let mut lost = settled.clone();
        lost["unsettled"] = boot.into();
        fs::write(&record, lost.to_string()).unwrap();
    };
    // Of this boot: complete, and settled by whoever has the time.
    unsettle(fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim());
    assert_eq!(bench.store.resolve(REFERENCE).unwrap().unwrap().layers().len(), 2);
    assert_eq!((bench.store.settle().unwrap(), bench.store.settle().unwrap()), (1, 0));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&fs::read(&record).unwrap()).unwrap(), settled);
    // Of another one, and from this machine: damaged, which is worth knowing.
    unsettle("11111111-2222-3333-4444-555555555555");
    assert!(bench.store.resolve(REFERENCE).is_err());
    bench.store.sweep().unwrap();
    assert!(bench.store.list().unwrap()[0].damage.as_ref().unwrap().contains("is gone"));
    // From a registry: as if it had never been pulled, for whoever opens the store first.
    let name = bench.images().join("refs").join(&bench.names("refs")[0]);
    let mut reference: serde_json::Value = serde_json::from_slice(&fs::read(&name).unwrap()).unwrap();
    reference["digest"] = Digest::of(b"a manifest").to_string().into();
    fs::write(&name, reference.to_string()).unwrap();
    assert!(Store::open(&bench.images()).unwrap().resolve(REFERENCE).is_err(), "not the first to open it");
    fs::write(bench.images().join("boot"), "11111111-2222-3333-4444-555555555555").unwrap();
    assert!(Store::open(&bench.images()).unwrap().resolve(REFERENCE).unwrap().is_none());
    assert!(bench.names("layers").is_empty() && bench.names("images").is_empty() && bench.names("tmp").is_empty());
    assert_eq!(bench.store.verify(&mut |_| {}).unwrap(), []);
    assert_eq!(bench.import(REFERENCE, &source).unwrap().reused, 0);
}
