//! Images of registries, as jobs and operators get them: pulled once, shared, allowed or not, with credentials and without.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::hook::{Runner, TEMP};
use crate::host::{leader, property, run, sh};
use crate::lab::{Test, tests};
use crate::registry::{AccessLog, Configured, Faulty, PRIVATE, PUBLIC, STORE, archive, forget, inspect};
use crate::request;

use runner_testbed::registry::{Access, Family, Image};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_job_pulls_its_image_and_the_next_one_asks_for_nothing,
        images_on_one_base_share_its_layers,
        a_manifest_list_gives_the_image_of_this_machine,
        layers_in_zstd_are_stacked_with_their_whiteouts,
        a_private_image_needs_credentials,
        credentials_of_the_request_and_of_the_file_work,
        the_policy_decides_which_images_run,
        the_pull_policy_decides_when_the_registry_is_asked,
        what_ran_is_recorded_by_its_digest,
        an_image_that_cannot_be_had_is_one_line,
        an_operator_pulls_lists_inspects_verifies_and_removes,
        a_full_disk_is_one_line_and_the_store_stays_usable,
        a_hostile_image_stays_in_its_layer,
    ]
}

/// What is on the lab's base image, and the base image itself.
const ON_DEBIAN: [&str; 6] =
    ["node:22", "debian:trixie", "debian:latest", "ubuntu:latest", "postgres:16", "redis:latest"];

/// How many layers the store has.
fn layers(store: &str) -> usize {
    fs::read_dir(format!("{store}/layers")).map_or(0, Iterator::count)
}

fn a_job_pulls_its_image_and_the_next_one_asks_for_nothing() {
    forget(&ON_DEBIAN);
    let log = AccessLog::from_now();
    let runner = Runner::new("runner 01");
    runner.prepare("node:22");
    let version = runner.sh("node --version").expect(0).line();
    assert!(version.starts_with('v') && version[1..].starts_with(|c: char| c.is_ascii_digit()), "{version:?}");
    runner.cleanup();
    // Five layers and a configuration.
    let blobs = log.blobs();
    assert_eq!(blobs.len(), 6, "{blobs:#?}");

    let log = AccessLog::from_now();
    runner.prepare("node:22");
    assert_eq!(runner.sh("node --version").expect(0).line(), version);
    runner.cleanup();
    let requests = log.requests();
    assert!(requests.is_empty(), "the second job asked for {requests:#?}");
}

fn images_on_one_base_share_its_layers() {
    forget(&ON_DEBIAN[1..]);
    run(["runnerctl", "image", "pull", "--quiet", "node:22"]).expect(0);
    let before = layers(STORE);
    let log = AccessLog::from_now();
    // The base, the same by another name, and one with two layers more.
    for (name, all, new) in [("debian:trixie", 2, 0), ("ubuntu:latest", 2, 0), ("redis:latest", 4, 2)] {
        let pulled = run(["runnerctl", "image", "pull", "--json", name]).expect(0);
        let pulled: Value = serde_json::from_slice(&pulled.stdout).expect("JSON");
        assert_eq!((&pulled["layers"], &pulled["new_layers"]), (&json!(all), &json!(new)), "{pulled}");
    }
    assert_eq!(layers(STORE), before + 2);
    let blobs = log.blobs();
    assert_eq!(blobs.len(), 4, "two layers and the two images' configurations: {blobs:#?}");
    assert_eq!(inspect("ubuntu:latest")["image"], inspect("debian:trixie")["image"]);

    let listed = run(["runnerctl", "image", "ls", "--json"]).expect(0);
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).expect("JSON");
    let redis =
        listed.iter().find(|image| image["reference"] == "docker.io/library/redis:latest").expect("it is listed");
    let sizes = ["own", "shared", "size"].map(|key| redis[key].as_u64().unwrap_or_else(|| panic!("no {key}: {redis}")));
    assert!(sizes[0] > 0 && sizes[1] > sizes[0] && sizes[0] + sizes[1] == sizes[2], "{redis}");
}

fn a_manifest_list_gives_the_image_of_this_machine() {
    forget(&["busybox:latest"]);
    let ran = run(["ci-nspawn-run", "--image", "busybox", "--", "uname", "-m"]).expect(0);
    assert_eq!(ran.text(), format!("{}\n", sh("uname -m")));
    // The digest is the list's, and what ran is one of its images.
    let list = sh(&format!(
        "curl --silent --fail --header 'Accept: application/vnd.oci.image.index.v1+json' \
         http://{PUBLIC}/v2/library/busybox/manifests/latest | sha256sum | cut -d' ' -f1"
    ));
    let image = inspect("busybox");
    assert_eq!(image["digest"], format!("sha256:{list}"));
    assert_ne!(image["manifest"]["digest"], image["digest"]);
    assert_eq!(image["config"]["os"], "linux");
}

fn layers_in_zstd_are_stacked_with_their_whiteouts() {
    let runner = Runner::new("runner 01");
    runner.prepare("postgres:16");
    let types = inspect("postgres:16")["manifest"]["document"]["layers"].clone();
    let types: Vec<&str> =
        types.as_array().expect("layers").iter().filter_map(|layer| layer["mediaType"].as_str()).collect();
    assert!(types.iter().any(|kind| kind.ends_with("+zstd")), "{types:?}");
    let seen = runner.sh("postgres --version; ls /etc/motd 2>/dev/null || true; ls /etc/update-motd.d; \
                          stat -c %U:%a /var/lib/postgresql/data");
    let seen = seen.expect(0).text();
    let lines: Vec<&str> = seen.lines().collect();
    // The second layer removes one of these and hides all but one file of the other; those above are in zstd.
    assert!(lines[0].starts_with("postgres (PostgreSQL) "), "{seen}");
    assert_eq!(lines[1..], ["10-uname", "postgres:1777"], "{seen}");
    runner.cleanup();
    // What is missing above is there below: the base layer by itself was not touched.
    let base = inspect("postgres:16")["layers"][0]["layer"].as_str().expect("a layer").replace("sha256:", "");
    assert!(fs::metadata(format!("{STORE}/layers/{base}/root/etc/motd")).is_ok(), "the base has no such file");
}

fn tool() -> String {
    format!("{PRIVATE}/private/tool:1")
}

/// A container that brings credentials.
fn with_credentials(image: &str, runner: &Runner, username: &str, password: &str) -> Value {
    let mut container = request::container(image, runner);
    let server = image.split('/').next().unwrap_or_default();
    container["registry"] = json!({"username": username, "password": password, "serverUrl": server});
    container
}

fn a_private_image_needs_credentials() {
    forget(&[&tool()]);
    let runner = Runner::new("runner 01");
    let ended = runner.call(request::prepare(request::container(&tool(), &runner))).end();
    ended.own_failure(&["private/tool", PRIVATE, "/etc/runner/auth.json"]);
    let wrong = with_credentials(&tool(), &runner, "ci", "not-the-password");
    let error = runner.call(request::prepare(wrong)).end().own_failure(&["private/tool", PRIVATE, "refused"]);
    assert!(!error.contains("not-the-password"), "{error}");
    let ran = run(["runnerctl", "image", "pull", &tool()]);
    assert_eq!((ran.status, ran.errors().lines().count()), (1, 1), "{ran:?}");
    assert!(ran.errors().contains("auth.json"), "{}", ran.errors());
}

/// `/etc/runner/auth.json` with this content, until it is dropped.
struct AuthFile;

impl AuthFile {
    fn with(host: &str, username: &str, password: &str) -> Self {
        let auth = sh(&format!("printf %s '{username}:{password}' | base64 --wrap=0"));
        let path = "/etc/runner/auth.json";
        assert!(fs::metadata(path).is_err(), "the lab has credentials of its own");
        fs::write(path, json!({"auths": {host: {"auth": auth}}}).to_string()).expect("we are root");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("we are root");
        Self
    }
}

impl Drop for AuthFile {
    fn drop(&mut self) {
        let _ = fs::remove_file("/etc/runner/auth.json");
    }
}

fn credentials_of_the_request_and_of_the_file_work() {
    let password = sh("cat /etc/lab-registry/password");
    let runner = Runner::new("runner 01");
    forget(&[&tool()]);
    runner.prepare_with(with_credentials(&tool(), &runner, "ci", &password));
    assert_eq!(runner.sh("tool works").expect(0).line(), "tool 1: works");
    runner.cleanup();

    forget(&[&tool()]);
    let _file = AuthFile::with(PRIVATE, "ci", &password);
    runner.prepare(&tool());
    assert_eq!(runner.sh("tool works").expect(0).line(), "tool 1: works");
    runner.cleanup();
    forget(&[&tool()]);
    let ran = run(["runnerctl", "image", "pull", "--quiet", &tool()]).expect(0);
    assert!(ran.text().starts_with("sha256:"), "{}", ran.text());
}

fn the_policy_decides_which_images_run() {
    let runner = Runner::new("runner 01");
    run(["runnerctl", "image", "pull", "--quiet", "busybox"]).expect(0);
    let digest = inspect("busybox")["digest"].as_str().expect("a digest").to_owned();
    let refused = |image: &str, words: &[&str]| {
        runner.call(request::prepare(request::container(image, &runner))).end().own_failure(words);
        let ran = run(["ci-nspawn-run", "--image", image, "--", "true"]);
        assert!(ran.status == 125 && ran.errors().lines().count() == 1, "{ran:?}");
        assert!(ran.errors().contains(words[0]), "{}", ran.errors());
    };
    {
        let _digest = Configured::with(&[("RUNNER_IMAGE_POLICY", "digest")]);
        refused("busybox:latest", &["RUNNER_IMAGE_POLICY=digest", "busybox", "@sha256:"]);
        runner.prepare(&format!("busybox@{digest}"));
        runner.cleanup();
    }
    let _allow = Configured::with(&[
        ("RUNNER_IMAGE_POLICY", "allow"),
        ("RUNNER_IMAGE_ALLOW", "docker.io/library/busybox ghcr.io/octo/**"),
    ]);
    refused("alpine:latest", &["RUNNER_IMAGE_ALLOW", "alpine"]);
    refused("evil.example/library/busybox", &["RUNNER_IMAGE_ALLOW", "evil.example"]);
    runner.prepare("busybox");
    runner.cleanup();
}

fn the_pull_policy_decides_when_the_registry_is_asked() {
    let runner = Runner::new("runner 01");
    let job = |image: &str| {
        runner.prepare(image);
        runner.cleanup();
    };
    forget(&["busybox:latest"]);
    {
        let _never = Configured::with(&[("RUNNER_IMAGE_PULL", "never")]);
        let log = AccessLog::from_now();
        let ended = runner.call(request::prepare(request::container("busybox", &runner))).end();
        ended.own_failure(&["busybox", "RUNNER_IMAGE_PULL=never", "runnerctl image pull"]);
        assert_eq!(log.requests(), Vec::<String>::new());
    }
    job("busybox");
    let always = Configured::with(&[("RUNNER_IMAGE_PULL", "always")]);
    let log = AccessLog::from_now();
    job("busybox");
    let requests = log.requests();
    assert!(log.blobs().is_empty() && (1..=2).contains(&requests.len()), "{requests:#?}");
    assert!(requests[0].ends_with("/v2/library/busybox/manifests/latest"), "{requests:#?}");
    drop(always);
    // An age of nothing: one request of the tag, without its manifest.
    let _age = Configured::with(&[("RUNNER_IMAGE_MAX_AGE", "0")]);
    let log = AccessLog::from_now();
    job("busybox");
    assert_eq!(log.requests(), ["HEAD /v2/library/busybox/manifests/latest"]);
}

fn what_ran_is_recorded_by_its_digest() {
    let runner = Runner::new("runner 01");
    let machine = runner.prepare("busybox");
    let digest = inspect("busybox")["digest"].as_str().expect("a digest").to_owned();
    let jobs = run(["runnerctl", "jobs", "--json"]).expect(0);
    let jobs: Vec<Value> = serde_json::from_slice(&jobs.stdout).expect("JSON");
    assert_eq!((jobs.len(), &jobs[0]["digest"]), (1, &json!(digest)), "{jobs:?}");
    // The journal of the guest's unit; PID 1 of the host writes about it with the same fields.
    let unit = format!("{}.service", machine.replace("runner-", "runner-guest-"));
    assert!(property(&unit, "LogExtraFields").contains(&format!("RUNNER_IMAGE_DIGEST={digest}")), "{unit}");
    assert!(leader(&machine) > 1);
    runner.cleanup();
    let written = sh(&format!(
        "journalctl --sync; journalctl --output=json --no-pager --lines=1 RUNNER_IMAGE_DIGEST={digest} _SYSTEMD_UNIT={unit}"
    ));
    let entry: Value = serde_json::from_str(&written).unwrap_or_else(|_| panic!("no entry: {written:?}"));
    assert_eq!(entry["RUNNER_IMAGE"], "docker.io/library/busybox:latest", "{entry}");
}

fn an_image_that_cannot_be_had_is_one_line() {
    let faulty = Faulty::start();
    let (image, noise) = faulty.put("lab/broken", 1000);
    let host = faulty.registry.host();
    let runner = Runner::new("runner 01");
    let refused = |image: &str, words: &[&str]| {
        runner.call(request::prepare(request::container(image, &runner))).end().own_failure(words);
    };
    refused(&format!("{host}/no/such:image"), &["no/such:image", &host, "404"]);
    refused(&format!("{PUBLIC}/no/such:image"), &["no/such:image", PUBLIC]);
    faulty.registry.put_blob_as("lab/broken", &noise, vec![b'x'; 2560]);
    refused(&image, &["lab/broken:1", &noise["sha256:".len()..][..12]]);
    let other = Image::new().architecture("s390x").layer(archive(&[("x", b"")]));
    faulty.registry.put_index("lab/broken", "elsewhere", Family::Oci, &[other]);
    refused(&format!("{host}/lab/broken:elsewhere"), &["lab/broken:elsewhere", "linux/amd64"]);
    faulty.registry.require(Access::Basic { username: "u".to_owned(), password: "p".to_owned() });
    refused(&image, &["lab/broken:1", &host, "auth.json"]);
    run(["runnerctl", "image", "verify", "--quiet"]).expect(0);
}

fn an_operator_pulls_lists_inspects_verifies_and_removes() {
    // A store of its own: everything can be removed from it.
    let store = "/var/tmp/lab-store";
    sh(&format!("rm -rf {store}"));
    let image = |words: &[&str]| run([&["runnerctl", "image", "--store", store], words].concat());
    let pulled = image(&["pull", "alpine:3.10"]).expect(0).text();
    let digest = pulled.rsplit_once("sha256:").map(|(_, hex)| format!("sha256:{}", hex.trim())).expect("a digest");
    assert!(pulled.starts_with("Pulled alpine:3.10 (2 layers, 2 of them new)"), "{pulled}");
    image(&["pull", "--quiet", "alpine:latest"]).expect(0);
    let pinned = format!("alpine@{digest}");
    assert_eq!(image(&["pull", "--quiet", &pinned]).expect(0).text(), format!("{digest}\n"));

    let table = image(&["ls"]).expect(0).text();
    assert_eq!(table.lines().count(), 4, "{table}");
    let details: Value = serde_json::from_slice(&image(&["inspect", "alpine:3.10"]).expect(0).stdout).expect("JSON");
    assert_eq!(details["digest"], digest, "{details}");
    assert_eq!(details["layers"][0]["images"], 2, "{details}");

    image(&["verify"]).expect(0);
    // One byte of one file, with its time put back.
    let layer = details["layers"][1]["layer"].as_str().expect("a layer").replace("sha256:", "");
    let file = sh(&format!("find {store}/layers/{layer}/root -type f -size +0 | head -n 1"));
    sh(&format!(
        "touch -r {file} /var/tmp/lab-time; printf X | dd of={file} conv=notrunc status=none; touch -r /var/tmp/lab-time {file}; rm /var/tmp/lab-time"
    ));
    let ran = image(&["verify"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!((ran.text() + &ran.errors()).contains("alpine:3.10"), "{ran:?}");
    // It says what to do, and that helps.
    assert!(ran.text().contains("runnerctl image rm"), "{ran:?}");
    image(&["rm", "alpine:3.10", &pinned]).expect(0);
    image(&["pull", "--quiet", "alpine:3.10"]).expect(0);
    image(&["verify", "--quiet"]).expect(0);

    image(&["rm", "alpine:latest"]).expect(0);
    assert_eq!(layers(store), 2);
    let ran = image(&["rm", "alpine:latest"]);
    assert_eq!((ran.status, ran.errors().lines().count()), (1, 1), "{ran:?}");
    image(&["prune", "--all"]).expect(0);
    assert_eq!((layers(store), image(&["ls"]).expect(0).text()), (0, "No images.\n".to_owned()));
    sh(&format!("rm -r {store}"));
}

fn a_full_disk_is_one_line_and_the_store_stays_usable() {
    let place = "/var/tmp/lab-full";
    // Where the packed layers do not fit is known before anything is fetched; where only the unpacked ones do not, later.
    for (size, words) in [("16m", "are free"), ("64m", "No space left on device")] {
        sh(&format!("mkdir -p {place}; mount -t tmpfs -o size={size},mode=0700 lab-full {place}"));
        let outcome = std::panic::catch_unwind(|| {
            let store = format!("{place}/store");
            let image = |words: &[&str]| run([&["runnerctl", "image", "--store", &store], words].concat());
            image(&["pull", "--quiet", "busybox"]).expect(0);
            let ran = image(&["pull", "--quiet", "debian:trixie"]);
            assert_eq!((ran.status, ran.errors().lines().count()), (1, 1), "{ran:?}");
            assert!(ran.errors().contains("debian:trixie") && ran.errors().contains(words), "{}", ran.errors());
            image(&["prune"]).expect(0);
            image(&["pull", "--quiet", "alpine:latest"]).expect(0);
            image(&["verify", "--quiet"]).expect(0);
            // Busybox may have gone to make room.
            let listed = image(&["ls"]).expect(0).text();
            assert!(listed.contains("alpine:latest") && !listed.contains("debian"), "{listed}");
        });
        sh(&format!("umount {place}; rmdir {place}"));
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

/// One entry of an archive with a name that no library would write.
fn entry(kind: tar::EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn a_hostile_image_stays_in_its_layer() {
    let host_folder = "/var/tmp/lab-escape";
    sh(&format!(
        "rm -rf {host_folder}; mkdir {host_folder}; echo untouched >{host_folder}/victim; chmod 0777 {host_folder}"
    ));
    let faulty = Faulty::start();
    let up = "../../../../../../../../../../../..";
    let busybox = crate::fixture::busybox_layer();
    let file = |name: &str, mode, content: &[u8]| entry(tar::EntryType::Regular, name, "", mode, content);
    let link = |name: &str, target: &str| entry(tar::EntryType::Symlink, name, target, 0o777, b"");
    let hard = |name: &str, target: &str| entry(tar::EntryType::Link, name, target, 0o644, b"");
    let program = fs::read(sh("command -v busybox")).expect("the lab host has it");
    let end = archive(&[]);
    let put = |tag: &str, entries: &[Vec<u8>]| {
        let image = Image::new().layer(busybox.clone()).layer([entries.concat(), end.clone()].concat());
        faulty.registry.put_image("lab/hostile", tag, &image);
        format!("{}/lab/hostile:{tag}", faulty.registry.host())
    };
    let out = format!("{up}{host_folder}");
    for (tag, entries) in [
        ("dots", vec![file(&format!("{up}{host_folder}/planted"), 0o644, b"x")]),
        ("hard-link", vec![hard("grabbed", &format!("{up}/etc/shadow"))]),
        ("hard-link-absolute", vec![hard("grabbed", "/etc/shadow")]),
        (
            "hard-link-by-link",
            vec![link("out", &out), hard("grabbed", "out/victim"), file("grabbed", 0o644, b"changed")],
        ),
    ] {
        let ran = run(["runnerctl", "image", "pull", "--quiet", &put(tag, &entries)]);
        assert_eq!((ran.status, ran.errors().lines().count()), (1, 1), "{tag}: {ran:?}");
        assert!(ran.errors().contains(&format!("lab/hostile:{tag}")), "{tag}: {}", ran.errors());
    }
    // These are harmless where they are: below the layer's own root, and nowhere else.
    let image = put(
        "contained",
        &[
            link("out", &out),
            file("out/planted", 0o644, b"x"),
            link("abs", host_folder),
            file("abs/planted-too", 0o644, b"x"),
            file("set-user-id/busybox", 0o4755, &program),
        ],
    );
    let runner = Runner::new("runner 01");
    runner.prepare(&image);
    let seen = runner
        .sh(&format!("ls {host_folder}; stat -c %a:%u /set-user-id/busybox; /set-user-id/busybox echo ran"))
        .expect(0)
        .text();
    assert_eq!(seen, "planted\nplanted-too\n4755:0\nran\n");
    assert_eq!(sh(&format!("ls {host_folder}; cat {host_folder}/victim")), "victim\nuntouched");
    // The set-user-id program is on the host's disk, with root's number on it, and nobody gets there.
    let found = sh(&format!("find {STORE}/layers -name busybox -perm -4000 -user 0"));
    assert_eq!(found.lines().count(), 1, "{found}");
    for user in ["runner", "nobody"] {
        // By way of a shell: setpriv itself still has capabilities when it looks for the program.
        let ran =
            run(["setpriv", &format!("--reuid={user}"), "--clear-groups", "sh", "-c", &format!("exec {found} true")]);
        assert!(ran.status != 0 && ran.errors().contains("Permission denied"), "{ran:?}");
    }
    // Nor by way of the container's root, which the host's processes see as a mount without set-user-id bits, if at all.
    let mounts = fs::read_to_string("/proc/1/mountinfo").expect("/proc is there");
    let roots: Vec<&str> =
        mounts.lines().filter(|line| line.contains(" - overlay ") && !line.contains("nosuid")).collect();
    assert!(roots.is_empty(), "{roots:#?}");
    runner.cleanup();
    sh(&format!("rm -r {host_folder}; test -z \"$(ls {TEMP} | grep planted)\""));
    forget(&[&image]);
}
