//! From a reference to a leased image: the real store, the real `image-fetch` in a thread, and a registry that misbehaves on
//! demand. Unpacking sets owners and attributes, so these tests need root, as the store's do.

#![expect(clippy::unwrap_used, reason = "what a test could not do is told by the panic")]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runner_fetch::Patience;
use runner_model::config::{Fragment, Merged, PullPolicy};
use runner_model::image_ref::Reference;
use runner_model::registry_auth::Credentials;
use runner_model::secret::Secret;
use runner_pull::{News, Obtained, PullError, Puller, Wanted};
use runner_store::Store;
use runner_testbed::registry::{Access, Fault, Image, Registry, TokenAccess, When};

const PASSWORD: &str = "hunter2-and-more";

/// A store, and what pulls into it.
struct Bench {
    folder: tempfile::TempDir,
    puller: Puller,
    store: Arc<Store>,
}

impl Bench {
    fn new(config: &str) -> Bench {
        assert!(rustix::process::geteuid().is_root(), "these tests must run as root: unpacking sets owners");
        let folder = tempfile::tempdir().unwrap();
        let fragment = Fragment::parse("config.env", config.as_bytes()).unwrap();
        let settings = Merged::new([fragment]).unwrap().settings().unwrap();
        let store = Arc::new(Store::open(&folder.path().join("images")).unwrap());
        let puller = Puller::new(Arc::clone(&store), &settings)
            .with_auth_file(&folder.path().join("auth.json"))
            .with_connect(Box::new(connect));
        Bench { folder, puller, store }
    }

    /// With plain HTTP to these registries, and further lines.
    fn with(registries: &[&Registry], further: &str) -> Bench {
        let hosts: Vec<String> = registries.iter().map(|registry| registry.host()).collect();
        Bench::new(&format!("RUNNER_REGISTRY_INSECURE=\"{}\"\n{further}\n", hosts.join(" ")))
    }

    async fn obtain(&self, image: &Reference) -> Result<Obtained, PullError> {
        self.obtain_as(image, None, None).await
    }

    async fn obtain_as(
        &self,
        image: &Reference,
        credentials: Option<Credentials>,
        policy: Option<PullPolicy>,
    ) -> Result<Obtained, PullError> {
        self.puller.obtain(&Wanted { image, credentials, policy }, |_| {}).await
    }

    /// The error's line, after the promises every failure keeps.
    async fn failure(&self, image: &Reference) -> String {
        let line = self.obtain(image).await.unwrap_err().to_string();
        assert!(!line.contains(char::is_control) && line.len() < 600, "{line:?}");
        assert!(line.contains(&image.familiar()), "names the image: {line}");
        assert!(!line.contains(PASSWORD), "{line}");
        for folder in ["tmp", "refs", "images"] {
            let left: Vec<PathBuf> =
                fs::read_dir(self.store.path().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "{folder} holds {left:?} after: {line}");
        }
        line
    }
}

/// Patience for tests: tenths of a second where a registry gets half a minute.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    silence: Duration::from_millis(300),
    window: Duration::from_millis(300),
    rate: 1024,
    tries: 3,
    tries_of_a_mirror: 1,
    tries_of_a_blob: 20,
    pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(4),
    longest_wait: Duration::from_secs(2),
};

fn connect() -> std::io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(runner_fetch::serve(theirs, PATIENCE)).unwrap();
        runtime.shutdown_background();
    });
    Ok(ours)
}

/// An archive of one file.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn image(content: &str) -> Image {
    Image::new()
        .architecture(if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" })
        .layer(tar("base", b"the same in all"))
        .layer(tar("content", content.as_bytes()))
}

fn reference(registry: &Registry, rest: &str) -> Reference {
    Reference::parse(&format!("{}/{rest}", registry.host())).unwrap()
}

/// What was asked, without what differs from run to run.
fn asked(registry: &Registry) -> Vec<String> {
    let requests = registry.requests();
    registry.forget_requests();
    let kind = |path: &str| if path.contains("/blobs/") { "blob" } else { "manifest" };
    requests.iter().map(|request| format!("{} {}", request.method, kind(&request.path))).collect()
}

#[tokio::test]
async fn what_is_here_is_not_asked_for_again() {
    let registry = Registry::start().unwrap();
    let published = registry.put_image("octo/tool", "1", &image("one"));
    let bench = Bench::with(&[&registry], "");
    let tagged = reference(&registry, "octo/tool:1");
    let first = bench.obtain(&tagged).await.unwrap();
    assert_eq!(first.lease.digest().map(|digest| digest.to_string()), Some(published.manifest.clone()));
    assert_eq!(first.pulled.map(|imported| (imported.layers, imported.reused)), Some((2, 0)));
    assert_eq!(fs::read(first.lease.layers()[0].join("content")).unwrap(), b"one");
    assert_eq!(asked(&registry).len(), 4, "manifest, configuration, two layers");
    let second = bench.obtain(&tagged).await.unwrap();
    assert!(second.pulled.is_none() && asked(&registry).is_empty());
    // By digest nothing is asked either: all of it is here.
    let pinned = reference(&registry, &format!("octo/tool@{}", published.manifest));
    bench.obtain(&pinned).await.unwrap();
    assert_eq!(asked(&registry), Vec::<String>::new());
}

#[tokio::test]
async fn a_tag_is_followed_when_it_is_old_and_not_before() {
    let registry = Registry::start().unwrap();
    registry.put_image("octo/tool", "1", &image("one"));
    let bench = Bench::with(&[&registry], "RUNNER_IMAGE_MAX_AGE=0");
    let tagged = reference(&registry, "octo/tool:1");
    let first = bench.obtain(&tagged).await.unwrap();
    asked(&registry);
    let same = bench.obtain(&tagged).await.unwrap();
    assert!(same.pulled.is_none());
    assert_eq!(asked(&registry), ["HEAD manifest"]);
    registry.put_image("octo/tool", "1", &image("two"));
    let moved = bench.obtain(&tagged).await.unwrap();
    assert_ne!(moved.lease.id(), first.lease.id());
    assert_eq!(moved.pulled.map(|imported| imported.reused), Some(1), "the base is here");
    assert_eq!(fs::read(first.lease.layers()[0].join("content")).unwrap(), b"one", "in use, so still here");

    registry.inject(When::always(), Fault::Status(503));
    let mut news = Vec::new();
    let wanted = Wanted { image: &tagged, credentials: None, policy: None };
    let offline = bench.puller.obtain(&wanted, |what| news.push(what)).await.unwrap();
    assert!(offline.pulled.is_none());
    let warned = |what: &News| matches!(what, News::Warning(text) if text.ends_with("using the image that is here"));
    assert!(news.iter().any(warned), "{news:?}");
    registry.heal();
    registry.inject(When::always(), Fault::Status(404));
    assert!(bench.obtain(&tagged).await.is_err(), "a tag that is gone is not the same as a registry that is down");
}

#[tokio::test]
async fn policies_of_pulling() {
    let registry = Registry::start().unwrap();
    registry.put_image("octo/tool", "1", &image("one"));
    let bench = Bench::with(&[&registry], "");
    let tagged = reference(&registry, "octo/tool:1");
    let never = bench.obtain_as(&tagged, None, Some(PullPolicy::Never)).await.unwrap_err().to_string();
    assert!(never.contains("not in the store") && never.contains("runnerctl image pull"), "{never}");
    assert!(asked(&registry).is_empty());
    bench.obtain(&tagged).await.unwrap();
    asked(&registry);
    let always = bench.obtain_as(&tagged, None, Some(PullPolicy::Always)).await.unwrap();
    assert_eq!(always.pulled.map(|imported| imported.reused), Some(2));
    assert_eq!(asked(&registry), ["GET manifest"], "one request, nothing twice");
    bench.obtain_as(&tagged, None, Some(PullPolicy::Never)).await.unwrap();
    assert!(asked(&registry).is_empty());
}

#[tokio::test]
async fn a_digest_is_no_key_to_images_of_others_when_the_registry_is_always_asked() {
    let (theirs, ours) = (Registry::start().unwrap(), Registry::start().unwrap());
    theirs.put_image("octo/secret", "1", &image("secret"));
    let bench = Bench::with(&[&theirs, &ours], "RUNNER_IMAGE_PULL=always");
    let secret = bench.obtain(&reference(&theirs, "octo/secret:1")).await.unwrap().lease;
    let digest = secret.digest().unwrap();
    let elsewhere = bench.obtain(&reference(&ours, &format!("octo/mine@{digest}"))).await;
    let line = elsewhere.map(|obtained| obtained.lease.layers().len()).unwrap_err().to_string();
    assert!(line.contains(&ours.host()) && line.contains("404"), "{line}");
    // Whose it is needs to ask once, and fetches nothing.
    theirs.forget_requests();
    bench.obtain(&reference(&theirs, &format!("octo/secret@{digest}"))).await.unwrap();
    assert_eq!(asked(&theirs), ["HEAD manifest"]);
}

#[tokio::test]
async fn images_the_policy_forbids_are_not_asked_for() {
    let registry = Registry::start().unwrap();
    let published = registry.put_image("octo/tool", "1", &image("one"));
    let pinned = Bench::with(&[&registry], "RUNNER_IMAGE_POLICY=digest");
    let line = pinned.failure(&reference(&registry, "octo/tool:1")).await;
    assert!(line.contains("RUNNER_IMAGE_POLICY"), "{line}");
    assert!(asked(&registry).is_empty());
    pinned.obtain(&reference(&registry, &format!("octo/tool@{}", published.manifest))).await.unwrap();
    let allow = format!("RUNNER_IMAGE_POLICY=allow\nRUNNER_IMAGE_ALLOW=\"{}/octo/*\"", registry.host());
    let listed = Bench::with(&[&registry], &allow);
    asked(&registry);
    listed.failure(&reference(&registry, "other/tool:1")).await;
    assert!(asked(&registry).is_empty());
    listed.obtain(&reference(&registry, "octo/tool:1")).await.unwrap();
}

#[tokio::test]
async fn mirrors_come_first_and_what_they_lack_or_spoil_comes_from_the_origin() {
    let (mirror, origin) = (Registry::start().unwrap(), Registry::start().unwrap());
    let tagged = reference(&origin, "octo/tool:1");
    for registry in [&mirror, &origin] {
        registry.put_image("octo/tool", "1", &image("one"));
    }
    let config = format!("RUNNER_REGISTRY_MIRRORS=\"{}={}\"", origin.host(), mirror.url());
    let bench = || Bench::with(&[&mirror, &origin], &config);
    bench().obtain(&tagged).await.unwrap();
    assert_eq!((asked(&mirror).len(), asked(&origin).len()), (4, 0));

    mirror.inject(When::path("/blobs/"), Fault::WrongBytes);
    bench().obtain(&tagged).await.unwrap();
    assert!(asked(&origin).iter().all(|request| request == "GET blob"));
    mirror.heal();

    for fault in [Fault::Status(404), Fault::Status(500), Fault::Close, Fault::Hang] {
        mirror.inject(When::always(), fault.clone());
        let obtained = bench().obtain(&tagged).await;
        assert!(obtained.is_ok(), "{fault:?}: {obtained:?}");
        mirror.heal();
    }
}

#[tokio::test]
async fn credentials_go_to_their_registry_only_and_into_no_message() {
    let (mirror, origin) = (Registry::start().unwrap(), Registry::start().unwrap());
    origin.put_image("octo/tool", "1", &image("one"));
    let token = TokenAccess { username: "ci".into(), password: PASSWORD.into(), ..TokenAccess::default() };
    let config = format!("RUNNER_REGISTRY_MIRRORS=\"{}={}\"", origin.host(), mirror.url());
    let tagged = reference(&origin, "octo/tool:1");
    let credentials = |password: &str| {
        Some(Credentials { username: "ci".into(), password: Secret::new(password), identity_token: None })
    };
    for access in [Access::Basic { username: "ci".into(), password: PASSWORD.into() }, Access::Token(token)] {
        origin.require(access.clone());
        let bench = Bench::with(&[&mirror, &origin], &config);
        let line = bench.failure(&tagged).await;
        assert!(line.contains("auth.json"), "says where credentials belong: {line}");
        let refused = bench.obtain_as(&tagged, credentials("wrong-secret"), None).await.unwrap_err().to_string();
        assert!(refused.contains(&origin.host()) && !refused.contains("wrong-secret"), "{refused}");
        bench.obtain_as(&tagged, credentials(PASSWORD), None).await.unwrap();
        assert!(mirror.requests().iter().all(|request| request.authorization().is_none()));

        // The same from the file, for an image that is not here yet.
        let bench = Bench::with(&[&mirror, &origin], &config);
        let entry = format!(r#"{{"username":"ci","password":"{PASSWORD}"}}"#);
        let auths = format!(r#"{{"auths":{{"{}":{entry}}}}}"#, origin.host());
        fs::write(bench.folder.path().join("auth.json"), auths).unwrap();
        bench.obtain(&tagged).await.unwrap();
        assert!(mirror.requests().iter().all(|request| request.authorization().is_none()));
    }
}

#[tokio::test]
async fn failures_are_one_line_and_the_next_pull_works() {
    let cases: Vec<(When, Fault, &str)> = vec![
        (When::path("/manifests/"), Fault::Status(401), "credentials"),
        (When::path("/manifests/"), Fault::Status(403), "403"),
        (When::path("/manifests/"), Fault::Status(404), "404"),
        (When::path("/manifests/"), Fault::Status(429), "429"),
        (When::path("/manifests/"), Fault::RetryAfter(429, "3600".into()), "3600"),
        (When::path("/manifests/"), Fault::Status(500), "500"),
        (When::path("/manifests/"), Fault::Hang, ""),
        (When::path("/manifests/"), Fault::Answer(200, b"no manifest".to_vec()), "not valid"),
        (When::path("/manifests/"), Fault::Answer(200, vec![b' '; 5 << 20]), ""),
        (When::path("/blobs/"), Fault::Status(404), ""),
        (When::path("/blobs/"), Fault::Hang, ""),
        (When::path("/blobs/"), Fault::HangAfter(10), ""),
        (When::path("/blobs/"), Fault::Drip(1, Duration::from_millis(50)), ""),
        (When::path("/blobs/"), Fault::DropAfter(0), ""),
        (When::path("/blobs/"), Fault::WrongBytes, ""),
        (When::path("/blobs/"), Fault::Truncate(20), ""),
        (When::path("/blobs/"), Fault::Longer(b"and more".to_vec()), ""),
        (When::path("/blobs/"), Fault::header("Content-Length", "7"), ""),
    ];
    let registry = Registry::start().unwrap();
    registry.put_image("octo/tool", "1", &image("one"));
    let tagged = reference(&registry, "octo/tool:1");
    for (when, fault, says) in cases {
        let bench = Bench::with(&[&registry], "");
        let shown = format!("{fault:?}").chars().take(60).collect::<String>();
        registry.inject(when, fault);
        let line = bench.failure(&tagged).await;
        assert!(line.contains(says), "{shown}: {line}");
        registry.heal();
        let obtained = bench.obtain(&tagged).await;
        assert!(obtained.is_ok(), "after {shown}: {obtained:?}");
    }
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_again() {
    let registry = Registry::start().unwrap();
    let noise = noise(200_000);
    let image = image("one").layer(tar("noise", &noise));
    registry.put_image("octo/tool", "1", &image);
    registry.inject(When::path("/blobs/").times(6), Fault::DropAfter(30_000));
    let bench = Bench::with(&[&registry], "");
    bench.obtain(&reference(&registry, "octo/tool:1")).await.unwrap();
    assert!(registry.requests().iter().any(|request| request.header("range").is_some()));
}

#[tokio::test]
async fn two_jobs_that_want_one_image_fetch_it_once() {
    let registry = Registry::start().unwrap();
    registry.put_image("octo/tool", "1", &image("one"));
    let bench = Bench::with(&[&registry], "");
    let tagged = reference(&registry, "octo/tool:1");
    let (one, other) = tokio::join!(bench.obtain(&tagged), bench.obtain(&tagged));
    assert_eq!(one.unwrap().lease.id(), other.unwrap().lease.id());
    let blobs = asked(&registry).iter().filter(|request| *request == "GET blob").count();
    // The configuration is small enough for each to fetch its own.
    assert!(blobs <= 4, "{blobs} blobs were fetched");
}

#[tokio::test]
async fn giving_up_ends_the_fetching() {
    let registry = Registry::start().unwrap();
    registry.put_image("octo/tool", "1", &image("one").layer(tar("noise", &noise(100_000))));
    registry.inject(When::path("/blobs/").skip(1), Fault::Drip(1_024, Duration::from_millis(20)));
    let bench = Bench::with(&[&registry], "");
    let tagged = reference(&registry, "octo/tool:1");
    let wanted = Wanted { image: &tagged, credentials: None, policy: None };
    let given_up = tokio::time::timeout(Duration::from_millis(200), bench.puller.obtain(&wanted, |_| {})).await;
    assert!(given_up.is_err(), "it should have taken longer");
    registry.heal();
    // Waits for the locks of the pull that was given up, and for nothing else.
    let obtained = tokio::time::timeout(Duration::from_secs(20), bench.obtain(&tagged)).await;
    assert!(obtained.unwrap().is_ok());
    let left = fs::read_dir(bench.store.path().join("tmp")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn who_waits_is_told_what_for() {
    let registry = Registry::start().unwrap();
    let noise = noise(40_000);
    registry.put_image("octo/tool", "1", &image("one").layer(tar("noise", &noise)));
    registry.inject(When::path("/blobs/").skip(1), Fault::Drip(1_024, Duration::from_millis(50)));
    let bench = Bench::with(&[&registry], "");
    let tagged = reference(&registry, "octo/tool:1");
    let mut lines = Vec::new();
    let wanted = Wanted { image: &tagged, credentials: None, policy: None };
    let note = |what| match what {
        News::Progress(line) => lines.push(line.to_string()),
        News::Warning(text) => panic!("{text}"),
    };
    bench.puller.obtain(&wanted, note).await.unwrap();
    assert!(lines.iter().any(|line| line.starts_with("layer ") && line.contains("/s (")), "{lines:?}");
}
