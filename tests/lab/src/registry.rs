//! Registries of tests: what those of the lab host were asked, one that fails on purpose, and the appliance configured to
//! use it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use runner_testbed::registry::{Compression, Image, Registry};

use crate::fixture;
use crate::host::{property, run, sh, until};

/// The registry that is configured as the mirror of docker.io.
pub(crate) const PUBLIC: &str = "127.0.0.1:5000";
/// The registry that wants a password.
pub(crate) const PRIVATE: &str = "127.0.0.1:5001";
/// The store's folder.
pub(crate) const STORE: &str = "/var/lib/runner/images";

const CONFIG: &str = "/etc/runner/config.env";

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A number that no other call gets in this run.
fn number() -> String {
    format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// What the public registry of the lab host is asked from here on.
pub(crate) struct AccessLog(String);

impl AccessLog {
    pub(crate) fn from_now() -> Self {
        Self(mark())
    }

    /// Requests so far, `GET /v2/library/node/manifests/22`.
    pub(crate) fn requests(&self) -> Vec<String> {
        let end = mark();
        let lines = log();
        let place = |mark: &str| lines.iter().position(|line| line.contains(mark)).expect("it was there a moment ago");
        lines[place(&self.0) + 1..place(&end)].to_vec()
    }

    /// Of those, the ones for blobs.
    pub(crate) fn blobs(&self) -> Vec<String> {
        self.requests().into_iter().filter(|line| line.starts_with("GET ") && line.contains("/blobs/")).collect()
    }
}

/// Asks the registry for something that can be found again in its log, and waits until it is there: then everything that
/// was answered before is there too.
fn mark() -> String {
    let mark = format!("/v2/?mark={}-", number());
    sh(&format!("curl --silent --output /dev/null 'http://{PUBLIC}{mark}'"));
    until("the registry's log shows what it was asked", || log().iter().any(|line| line.contains(&mark)).then_some(()));
    mark
}

/// Method and path of every request (Combined Log Format: the first quoted field).
fn log() -> Vec<String> {
    let text = sh("journalctl --sync; journalctl --unit lab-registry-public --output cat --no-pager");
    let request = |line: &str| line.split('"').nth(1)?.rsplit_once(" HTTP/").map(|(request, _)| request.to_owned());
    text.lines().filter_map(request).collect()
}

/// Further settings of the appliance, until this is dropped. The broker is restarted for them.
pub(crate) struct Configured {
    saved: Option<Vec<u8>>,
}

impl Configured {
    /// With these keys and values; they replace what is there.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        let saved = fs::read(CONFIG).ok();
        let text = String::from_utf8(saved.clone().unwrap_or_default()).expect("the lab's configuration is UTF-8");
        let mut lines: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        for (key, value) in settings {
            lines.insert((*key).to_owned(), format!("\"{value}\""));
        }
        let text: String = lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        fs::create_dir_all("/etc/runner").expect("we are root");
        fs::write(CONFIG, text).expect("we are root");
        // The guard comes first: a configuration the broker refuses is taken back too.
        let guard = Self { saved };
        restart_broker();
        guard
    }

    /// So that this registry, which speaks plain HTTP, may be used.
    pub(crate) fn for_registry(registry: &Registry, settings: &[(&str, &str)]) -> Self {
        let hosts = format!("{PUBLIC} {PRIVATE} {}", registry.host());
        let mut all = vec![("RUNNER_REGISTRY_INSECURE", hosts.as_str())];
        all.extend(settings);
        Self::with(&all)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let restored = match &self.saved {
            Some(text) => fs::write(CONFIG, text),
            None => fs::remove_file(CONFIG),
        };
        // A test that failed must not end the whole program.
        if restored.is_ok() && !std::thread::panicking() {
            restart_broker();
        } else {
            let _ = std::process::Command::new("systemctl").args(["restart", "runner-guestd.service"]).status();
        }
    }
}

#[track_caller]
fn restart_broker() {
    run(["systemctl", "restart", "runner-guestd.service"]).expect(0);
    until("the broker is ready", || (property("runner-guestd.service", "ActiveState") == "active").then_some(()));
}

/// A registry that fails as it is told to, and the appliance configured to use it.
pub(crate) struct Faulty {
    pub(crate) registry: Registry,
    _configured: Configured,
}

impl Faulty {
    /// Empty, and without faults.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further settings of the appliance.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        let registry = Registry::start().expect("a free port");
        let configured = Configured::for_registry(&registry, settings);
        Self { registry, _configured: configured }
    }

    /// Puts an image with busybox and `bytes` of noise, which no two images share; gives its name and the noise's blob.
    pub(crate) fn put(&self, repository: &str, bytes: usize) -> (String, String) {
        let noise = noise(bytes);
        let image = Image::new()
            .config(r#"{"Env":["PATH=/bin"]}"#)
            .layer(fixture::busybox_layer())
            .layer_in(archive(&[("noise", &noise)]), Compression::Plain);
        let published = self.registry.put_image(repository, "1", &image);
        (format!("{}/{repository}:1", self.registry.host()), published.layers[1].clone())
    }

    /// Waits until this blob is asked for.
    #[track_caller]
    pub(crate) fn wait_for_blob(&self, digest: &str) {
        until("the layer is asked for", || (!self.asked_for(digest).is_empty()).then_some(()));
    }

    /// The offsets this blob was asked for from.
    pub(crate) fn asked_for(&self, digest: &str) -> Vec<u64> {
        let requests = self.registry.requests();
        let asked = requests.iter().filter(|request| request.method == "GET" && request.path.ends_with(digest));
        let offset = |range: &str| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok();
        asked.map(|request| request.header("range").and_then(offset).unwrap_or(0)).collect()
    }
}

/// An archive of regular files of root.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, *content).expect("memory takes everything");
    }
    archive.into_inner().expect("memory takes everything")
}

/// Bytes that nothing compresses and that were never there before.
fn noise(count: usize) -> Vec<u8> {
    let mut state = u64::from(std::process::id()) << 32 | NUMBER.fetch_add(1, Ordering::Relaxed);
    std::iter::repeat_with(|| {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(count)
    .collect()
}

/// Takes images out of the store, pinned by digest too, and layers nobody needs any more. Names the store lacks are fine.
pub(crate) fn forget(references: &[&str]) {
    let listed = run(["runnerctl", "image", "ls", "--json"]).expect(0).text();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("JSON");
    let all: Vec<&str> = listed.iter().filter_map(|image| image["reference"].as_str()).collect();
    for reference in references {
        run(["runnerctl", "image", "rm", reference]);
        let repository = reference.split(':').next().unwrap_or(reference);
        // The benchmark leaves one.
        for pinned in all.iter().filter(|name| name.contains(&format!("/{repository}@sha256:"))) {
            run(["runnerctl", "image", "rm", pinned]).expect(0);
        }
    }
    run(["runnerctl", "image", "prune"]).expect(0);
}

/// What the store says about an image.
#[track_caller]
pub(crate) fn inspect(reference: &str) -> serde_json::Value {
    let text = run(["runnerctl", "image", "inspect", reference]).expect(0).text();
    serde_json::from_str(&text).expect("JSON")
}

/// Processes with this name (proc_pid_comm(5)).
pub(crate) fn named(name: &str) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("/proc is there").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name))
        .filter(|pid| !crate::host::is_gone(*pid))
        .collect()
}

/// Waits for the one process with this name.
#[track_caller]
pub(crate) fn wait_for_process(name: &str) -> u32 {
    until(&format!("{name} runs"), || named(name).first().copied())
}

/// A body that comes over so long a time, whatever its size: piece by piece.
pub(crate) fn spread(bytes: usize, time: Duration) -> runner_testbed::registry::Fault {
    const PIECES: u32 = 20;
    runner_testbed::registry::Fault::Drip(bytes / PIECES as usize + 1, time / PIECES)
}
