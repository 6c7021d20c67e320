//! Pulling, from a repository in this process that misbehaves on demand.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runner_store::{BlobRequest, Digest, ErrorKind, Fetching, Limits, Remote, Scope, Store, StoreError};

use crate::fixtures::{Bench, Oci, REFERENCE, TAR, Tar, descriptor, go_architecture, gzip};

/// What a repository does with a blob.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// A mirror changes a byte; the origin does not.
    MirrorLies,
    /// The connection breaks for good after so many bytes.
    Breaks(usize),
    /// One byte is another one.
    Lies,
    /// Ends early without an error.
    Short,
    /// Goes on after the end.
    Long,
    /// Sends nothing until it is told to do otherwise.
    Stalls,
}

/// A repository. Remembers what it was asked.
struct Shelf {
    registry: String,
    root: Vec<u8>,
    root_type: String,
    documents: HashMap<Digest, Vec<u8>>,
    blobs: HashMap<Digest, Vec<u8>>,
    mood: Arc<Mutex<Mood>>,
    asked: Mutex<Vec<String>>,
}

impl Shelf {
    fn of(oci: &Oci) -> Shelf {
        let (manifest, config) = (oci.manifest_text(), oci.config_text());
        Shelf {
            registry: "docker.io".into(),
            root: manifest.clone(),
            root_type: "application/vnd.oci.image.manifest.v1+json".into(),
            documents: [&manifest, &config].map(|text| (Digest::of(text), text.clone())).into(),
            blobs: oci.layers.iter().map(|(packed, _, digest, _)| (*digest, packed.clone())).collect(),
            mood: Arc::new(Mutex::new(Mood::Well)),
            asked: Mutex::new(Vec::new()),
        }
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.sort();
        asked
    }

    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        self.documents.get(digest).cloned().ok_or_else(|| StoreError::fetch("no such document"))
    }
}

impl Remote for Shelf {
    fn root(&self) -> Result<(String, Vec<u8>), StoreError> {
        self.note("root".into());
        Ok((self.root_type.clone(), self.root.clone()))
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        self.note("manifest".into());
        self.document(digest)
    }

    fn configuration(&self, digest: &Digest, _size: u64) -> Result<Vec<u8>, StoreError> {
        self.note("configuration".into());
        self.document(digest)
    }

    fn registry(&self) -> &str {
        &self.registry
    }

    fn has_mirrors(&self) -> bool {
        *self.mood.lock().unwrap() == Mood::MirrorLies
    }

    fn give_up(&self) {
        if *self.mood.lock().unwrap() == Mood::Stalls {
            self.is(Mood::Short);
        }
    }

    fn blob(&self, blob: &BlobRequest<'_>, file: OwnedFd) -> Result<Fetching, StoreError> {
        let mut bytes = self.blobs.get(blob.digest).cloned().ok_or_else(|| StoreError::fetch("no such blob"))?;
        self.note(format!("blob {}+{}", &blob.digest.hex()[..4], blob.have));
        let mood = *self.mood.lock().unwrap();
        let last = bytes.len() - 1;
        let have = usize::try_from(blob.have).unwrap();
        let mut outcome = Ok(());
        match mood {
            Mood::Lies => bytes[last] ^= 1,
            Mood::MirrorLies if !blob.origin_only => bytes[last] ^= 1,
            Mood::Well | Mood::MirrorLies => {}
            Mood::Breaks(after) => {
                bytes.truncate(after);
                outcome = Err(StoreError::fetch("registry.test: connection lost"));
            }
            Mood::Short => bytes.truncate(last),
            Mood::Long => bytes.push(b'x'),
            Mood::Stalls => bytes.truncate(0),
        }
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mood = Arc::clone(&self.mood);
        let worker = std::thread::spawn(move || {
            while *mood.lock().unwrap() == Mood::Stalls {
                std::thread::yield_now();
            }
            let rest = bytes.get(have..).unwrap_or_default();
            std::fs::File::from(file).write_all(rest).unwrap();
            // The reader may have had enough.
            let _ = std::fs::File::from(write).write_all(rest);
            outcome
        });
        Ok(Fetching { pipe: read, outcome: Box::new(move || worker.join().unwrap()) })
    }
}

fn layer(name: &str, content: &str) -> Vec<u8> {
    Tar::new().file(name, content).end()
}

fn image(contents: &[&str]) -> Oci {
    let mut oci = Oci::of(&[]);
    for (index, content) in contents.iter().enumerate() {
        let tar = layer(&format!("f{index}"), content);
        oci.push(&tar, gzip(&tar), &format!("{TAR}+gzip"));
    }
    oci
}

fn pull(store: &Store, shelf: &Shelf) -> Result<runner_store::Imported, StoreError> {
    store.pull(REFERENCE, None, shelf, &mut |_| {}).map(|(imported, _)| imported)
}

/// Nothing half-made: no work in progress, no layer, no reference.
fn assert_nothing_came(bench: &Bench, about: &str) {
    for folder in ["tmp", "layers", "refs", "images"] {
        assert!(bench.names(folder).is_empty(), "{about}: {folder} holds {:?}", bench.names(folder));
    }
    assert!(bench.store.resolve(REFERENCE).unwrap().is_none(), "{about}");
}

#[test]
fn what_is_here_is_not_fetched_again() {
    let bench = Bench::new();
    let (first, second) = (Shelf::of(&image(&["base", "one"])), Shelf::of(&image(&["base", "two"])));
    let imported = pull(&bench.store, &first).unwrap();
    assert_eq!((imported.layers, imported.reused), (2, 0));
    assert_eq!(imported.digest, Some(Digest::of(&first.root)));
    assert_eq!(first.asked().len(), 4, "root, configuration, two blobs");
    let imported = pull(&bench.store, &second).unwrap();
    assert_eq!((imported.layers, imported.reused), (2, 1), "the base is there");
    assert_eq!(second.asked().iter().filter(|what| what.starts_with("blob")).count(), 1);
    assert!(bench.names("partial").is_empty());
    let again = pull(&bench.store, &second).unwrap();
    assert_eq!(again.reused, 2);
    assert_eq!(second.asked(), ["root"], "the configuration is known by its digest");
}

#[test]
fn a_pinned_reference_needs_nobody_once_its_image_is_here() {
    let bench = Bench::new();
    let shelf = Shelf::of(&image(&["base"]));
    let digest = Digest::of(&shelf.root);
    pull(&bench.store, &shelf).unwrap();
    shelf.asked();
    let pinned = format!("docker.io/library/other@{digest}");
    let (imported, lease) = bench.store.pull(&pinned, Some(&digest), &shelf, &mut |_| {}).unwrap();
    assert_eq!(shelf.asked(), Vec::<String>::new());
    assert_eq!((imported.digest, lease.digest()), (Some(digest), Some(digest)));
    let other = Digest::of(b"another manifest");
    let pinned = format!("docker.io/library/other@{other}");
    let error = bench.store.pull(&pinned, Some(&other), &shelf, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fetch, "{error}");
}

#[test]
fn a_manifest_of_another_digest_is_refused() {
    let bench = Bench::new();
    let mut shelf = Shelf::of(&image(&["base"]));
    let pinned = Digest::of(b"what was asked for");
    shelf.documents.insert(pinned, shelf.root.clone());
    let error = bench.store.pull(REFERENCE, Some(&pinned), &shelf, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error}");
    assert_nothing_came(&bench, "wrong manifest");
}

#[test]
fn an_interrupted_pull_goes_on_where_it_was() {
    let bench = Bench::new();
    let noise: String =
        (0..50_000_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    let oci = image(&[&noise]);
    let shelf = Shelf::of(&oci);
    shelf.is(Mood::Breaks(10_000));
    let error = pull(&bench.store, &shelf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fetch);
    assert_eq!(
        error.to_string(),
        format!("image {REFERENCE}: layer {}: registry.test: connection lost", oci.diff_ids[0])
    );
    assert_nothing_came(&bench, "broken connection");
    shelf.asked();
    // Also in another process, after the first one was killed.
    let other = Store::open(&bench.images()).unwrap();
    shelf.is(Mood::Well);
    assert_eq!(pull(&other, &shelf).unwrap().layers, 1);
    let hex = oci.layers[0].2.hex();
    assert!(shelf.asked().contains(&format!("blob {}+10000", &hex[..4])));
    assert!(bench.names("partial").is_empty());
}

#[test]
fn wrong_bytes_are_never_used_and_never_kept() {
    for (mood, what) in [(Mood::Lies, "has digest"), (Mood::Short, "has digest"), (Mood::Long, "longer than")] {
        let bench = Bench::new();
        let oci = image(&["content"]);
        let shelf = Shelf::of(&oci);
        shelf.is(mood);
        let error = pull(&bench.store, &shelf).unwrap_err();
        let line = error.to_string();
        assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{line}");
        assert!(line.starts_with(&format!("image {REFERENCE}: layer {}: blob ", oci.diff_ids[0])), "{line}");
        assert!(line.contains(what) && !line.contains('\n'), "{line}");
        assert_nothing_came(&bench, what);
        assert!(bench.names("partial").is_empty(), "wrong bytes are no beginning");
        shelf.is(Mood::Well);
        assert_eq!(pull(&bench.store, &shelf).unwrap().layers, 1, "the store stays usable");
    }
}

#[test]
fn the_registry_itself_is_asked_when_a_mirror_lies() {
    let bench = Bench::new();
    let shelf = Shelf::of(&image(&["content"]));
    shelf.is(Mood::MirrorLies);
    assert_eq!(pull(&bench.store, &shelf).unwrap().layers, 1);
    assert_eq!(shelf.asked().iter().filter(|what| what.starts_with("blob")).count(), 2);
}

#[test]
fn the_first_failure_ends_a_pull_and_is_the_one_that_is_told() {
    let bench = Bench::new();
    // The larger one comes first, and would take for ever.
    let oci = image(&["a layer with a long content, of which nothing comes", "b"]);
    let mut shelf = Shelf::of(&oci);
    shelf.blobs.remove(&oci.layers[1].2);
    shelf.is(Mood::Stalls);
    let line = pull(&bench.store, &shelf).unwrap_err().to_string();
    assert!(line.contains(&oci.diff_ids[1].to_string()) && line.ends_with("no such blob"), "{line}");
    assert_nothing_came(&bench, "a layer is not to be had");
}

#[test]
fn images_that_nobody_uses_make_way_on_a_disk_that_is_full() {
    let bench = Bench::new();
    let small = bench.path("small");
    std::fs::create_dir(&small).unwrap();
    let options = Some(c"size=16m");
    rustix::mount::mount("none", &small, "tmpfs", rustix::mount::MountFlags::empty(), options).expect("mount a tmpfs");
    let _mounted = crate::sources::Mounted(small.clone());
    let store = Store::open(&small.join("images")).unwrap();
    let large = |name: &str| Shelf::of(&image(&[&format!("{name}{}", "x".repeat(4 << 20))]));
    for name in ["old", "new"] {
        store.pull(&format!("docker.io/library/{name}:1"), None, &large(name), &mut |_| {}).unwrap();
    }
    let in_use = store.resolve("docker.io/library/new:1").unwrap().unwrap();
    let free = usize::try_from(store.space().unwrap().free).unwrap();
    std::fs::write(small.join("log"), vec![b'x'; free]).unwrap();
    assert_eq!(store.space().unwrap().free, 0);
    store.pull(REFERENCE, None, &Shelf::of(&image(&["small"])), &mut |_| {}).unwrap();
    assert!(store.resolve("docker.io/library/old:1").unwrap().is_none());
    assert!(in_use.layers()[0].join("f0").exists());
}

#[test]
fn images_of_empty_files_make_way_too() {
    let bench = Bench::new();
    let small = bench.path("small");
    std::fs::create_dir(&small).unwrap();
    let options = Some(c"nr_inodes=1000");
    rustix::mount::mount("none", &small, "tmpfs", rustix::mount::MountFlags::empty(), options).expect("mount a tmpfs");
    let _mounted = crate::sources::Mounted(small.clone());
    let store = Store::open(&small.join("images")).unwrap();
    for name in ["a", "b", "c", "d"] {
        let tar = (0..400).fold(Tar::new(), |tar, file| tar.file(&format!("{name}{file}"), "")).end();
        let mut oci = Oci::of(&[]);
        oci.push(&tar, gzip(&tar), &format!("{TAR}+gzip"));
        let reference = format!("docker.io/library/{name}:1");
        while store.percent_used().unwrap() > 55 {
            let pruned = store.prune(Scope::Watermarks { start: 55, stop: 55 }, &mut |_| {}).unwrap();
            assert!(!pruned.references.is_empty(), "inodes are scarce, and nothing went");
        }
        store.pull(&reference, None, &Shelf::of(&oci), &mut |_| {}).unwrap();
    }
    assert!(store.percent_used().unwrap() > 55, "one image more would be too much");
}

#[test]
fn a_beginning_that_is_wrong_is_started_over() {
    let bench = Bench::new();
    let oci = image(&["content"]);
    let shelf = Shelf::of(&oci);
    let partial = bench.images().join("partial").join(oci.layers[0].2.hex());
    for junk in [vec![0; 20], vec![0; oci.layers[0].0.len()], vec![0; 100_000]] {
        std::fs::write(&partial, &junk).unwrap();
        assert_eq!(pull(&bench.store, &shelf).unwrap().layers, 1, "{} bytes of junk", junk.len());
        assert!(!partial.exists());
        bench.store.remove(REFERENCE).unwrap();
    }
}

#[test]
fn an_index_leads_to_this_hosts_image_and_an_endless_one_nowhere() {
    let bench = Bench::new();
    let mut shelf = Shelf::of(&image(&["content"]));
    let mut entry = descriptor(&shelf.root);
    entry["platform"] = serde_json::json!({"os": "linux", "architecture": go_architecture()});
    let mut foreign = descriptor(b"of another machine");
    foreign["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    let index = |entries: &[serde_json::Value]| {
        let media_type = "application/vnd.oci.image.index.v1+json";
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}))
            .unwrap()
    };
    shelf.root_type = "application/vnd.oci.image.index.v1+json".into();
    shelf.root = index(&[foreign.clone(), entry.clone()]);
    let imported = pull(&bench.store, &shelf).unwrap();
    assert_eq!(imported.digest, Some(Digest::of(&shelf.root)), "a pinned reference names the index");
    assert_eq!(imported.manifest.map(|digest| digest.to_string()), entry["digest"].as_str().map(str::to_owned));

    shelf.root = index(&[foreign]);
    let line = pull(&bench.store, &shelf).unwrap_err().to_string();
    assert!(
        line.contains(&format!("no image for linux/{}", go_architecture())) && line.contains("linux/s390x"),
        "{line}"
    );

    // Deeper than any index has a reason to be. One that lists itself would need a digest nobody can find.
    let mut inner = shelf.root.clone();
    for _ in 0..8 {
        let mut entry = descriptor(&inner);
        entry["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
        shelf.documents.insert(Digest::of(&inner), inner);
        inner = index(&[entry]);
    }
    shelf.root = inner;
    let line = pull(&bench.store, &shelf).unwrap_err().to_string();
    assert!(line.contains("nest too deep"), "{line}");
}

#[test]
fn two_pulls_of_one_image_fetch_it_once() {
    let bench = Bench::new();
    let shelf = Shelf::of(&image(&["a", "b", "c", "d", "e"]));
    std::thread::scope(|scope| {
        let pulls: Vec<_> =
            (0..4).map(|_| scope.spawn(|| pull(&Store::open(&bench.images()).unwrap(), &shelf).unwrap())).collect();
        let reused: usize = pulls.into_iter().map(|pull| pull.join().unwrap().reused).sum();
        assert_eq!(reused, 15, "each of five layers is made by one of four");
    });
    assert_eq!(shelf.asked().iter().filter(|what| what.starts_with("blob")).count(), 5);
}

#[test]
fn images_go_in_the_order_of_their_last_use_but_not_those_in_use() {
    let bench = Bench::new();
    for (age, name) in [(1, "old"), (2, "older"), (3, "oldest"), (0, "new")] {
        let shelf = Shelf::of(&image(&["base", name]));
        let reference = format!("docker.io/library/{name}:1");
        bench.store.pull(&reference, None, &shelf, &mut |_| {}).unwrap();
        let file = bench.images().join("refs").join(format!("{}.json", Digest::of(reference.as_bytes()).hex()));
        let used = std::time::SystemTime::now() - Duration::from_secs(age * 86_400);
        let times = std::fs::FileTimes::new().set_modified(used);
        std::fs::File::options().write(true).open(file).unwrap().set_times(times).unwrap();
    }
    let list = bench.store.list().unwrap();
    assert!(list.iter().all(|image| image.own < image.size), "the base is shared: {list:?}");
    let unused = bench.store.prune(Scope::Unused(Duration::from_secs(36 * 3_600)), &mut |_| {}).unwrap();
    assert_eq!(unused.references, ["docker.io/library/oldest:1", "docker.io/library/older:1"]);
    assert_eq!(unused.swept.layers, 2, "the base is still needed");
    let lease = bench.store.resolve("docker.io/library/old:1").unwrap().unwrap();
    let all = bench.store.prune(Scope::All, &mut |_| {}).unwrap();
    assert_eq!(all.references, ["docker.io/library/new:1"]);
    assert!(lease.layers().iter().all(|layer| layer.exists()), "in use");
    drop(lease);
    bench.store.prune(Scope::All, &mut |_| {}).unwrap();
    assert!(bench.names("layers").is_empty() && bench.names("blobs/sha256").is_empty());
    // Marks that are not reached ask for nothing.
    let nothing = bench.store.prune(Scope::Watermarks { start: 100, stop: 99 }, &mut |_| {}).unwrap();
    assert_eq!(nothing, runner_store::Pruned::default());
}

#[test]
fn an_image_that_cannot_fit_is_not_fetched_and_makes_nobody_go() {
    let bench = Bench::new();
    bench.store.pull("docker.io/library/here:1", None, &Shelf::of(&image(&["here"])), &mut |_| {}).unwrap();
    let space = bench.store.space().unwrap();
    for size in [u64::MAX / 2, space.total, space.free / 2 + (1 << 30)] {
        let mut oci = image(&["content"]);
        oci.layers[0].3 = size;
        let shelf = Shelf::of(&oci);
        let error = pull(&bench.store, &shelf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(shelf.asked().iter().all(|what| !what.starts_with("blob")));
        assert_eq!(bench.names("tmp").len(), 0);
        assert!(bench.store.resolve("docker.io/library/here:1").unwrap().is_some(), "a claim removes nothing");
    }
}

#[test]
fn a_registry_that_claims_a_layer_and_sends_nothing_holds_nobody_up() {
    let bench = Bench::new();
    let limits = Limits { stall: Duration::from_millis(100), ..Limits::default() };
    let open = || Store::open_with(&bench.images(), limits.clone()).unwrap();
    // The same layer, once in the same blob and once in another one.
    let tar = layer("f0", "content");
    let mut other_blob = Oci::of(&[]);
    other_blob.push(&tar, tar.clone(), TAR);
    for oci in [image(&["content"]), other_blob] {
        let (mut slow, quick) = (Shelf::of(&oci), Shelf::of(&image(&["content"])));
        // Another registry with the same blob, or the same registry with another one.
        let same_blob = slow.root == quick.root;
        slow.registry = if same_blob { "evil.example".into() } else { "docker.io".into() };
        slow.is(Mood::Stalls);
        let slow_store = open();
        std::thread::scope(|scope| {
            let stuck = scope.spawn(|| slow_store.pull("docker.io/library/slow:1", None, &slow, &mut |_| {}).map(drop));
            while slow.asked.lock().unwrap().len() < 3 {
                std::thread::yield_now();
            }
            let imported = pull(&open(), &quick);
            let lease = bench.store.resolve(REFERENCE).unwrap();
            slow.is(Mood::Short);
            let line = stuck.join().unwrap().map_err(|error| error.to_string());
            assert_eq!(imported.unwrap().reused, 0);
            assert!(lease.unwrap().layers()[0].join("f0").exists());
            assert!(line.is_err(), "it got nothing, and yet: {line:?}");
        });
        bench.store.prune(Scope::All, &mut |_| {}).unwrap();
        assert!(bench.names("layers").is_empty() && bench.names("tmp").is_empty() && bench.names("partial").is_empty());
    }
}

#[test]
fn manifests_that_list_themselves_or_ten_thousand_layers_are_refused() {
    let bench = Bench::new();
    let mut shelf = Shelf::of(&image(&["content"]));
    // Its own digest is not to be had; a registry can only pretend.
    let itself = Digest::of(b"the digest it says it has");
    let media_type = "application/vnd.oci.image.index.v1+json";
    let entry = serde_json::json!({"mediaType": media_type, "digest": itself.to_string(), "size": 300});
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]});
    shelf.root = serde_json::to_vec(&index).unwrap();
    shelf.root_type = media_type.into();
    shelf.documents.insert(itself, shelf.root.clone());
    let error = pull(&bench.store, &shelf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error}");

    let mut oci = image(&["content"]);
    oci.layers = std::iter::repeat_n(oci.layers[0].clone(), 10_000).collect();
    oci.diff_ids = std::iter::repeat_n(oci.diff_ids[0], 10_000).collect();
    let error = pull(&bench.store, &Shelf::of(&oci)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    assert!(error.to_string().ends_with("10000 layers, more than 128"), "{error}");
    assert_nothing_came(&bench, "too many layers");
}

#[test]
fn who_pulls_from_the_same_registry_waits_however_slow_it_is() {
    let bench = Bench::new();
    let limits = Limits { stall: Duration::from_millis(50), ..Limits::default() };
    let open = || Store::open_with(&bench.images(), limits.clone()).unwrap();
    let (first, second) = (Shelf::of(&image(&["content"])), Shelf::of(&image(&["content"])));
    first.is(Mood::Stalls);
    let (store, other) = (open(), open());
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| store.pull("docker.io/library/slow:1", None, &first, &mut |_| {}).map(drop));
        while first.asked.lock().unwrap().len() < 3 {
            std::thread::yield_now();
        }
        let (waits, is_waiting) = std::sync::mpsc::channel();
        let waiting = scope.spawn(|| {
            let waits = waits;
            other.pull(REFERENCE, None, &second, &mut |progress| {
                if matches!(progress, runner_store::Progress::Waiting { .. }) {
                    waits.send(()).unwrap();
                }
            })
        });
        is_waiting.recv().unwrap();
        // Several times what another registry would be given.
        assert!(is_waiting.recv_timeout(Duration::from_millis(300)).is_err(), "it waits once, and goes on waiting");
        assert!(second.asked.lock().unwrap().iter().all(|what| !what.starts_with("blob")));
        first.is(Mood::Well);
        assert!(slow.join().unwrap().is_err(), "it got nothing");
        assert_eq!(waiting.join().unwrap().unwrap().0.reused, 0, "and then it was the other one's turn");
    });
}
