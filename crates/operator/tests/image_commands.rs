//! `runnerctl image …` as a program, on a store of its own. Runs as root, like the store's tests.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A store, a configuration, and a root tree to import.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new(configuration: &str) -> Bench {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("config.env"), configuration).expect("a configuration");
        fs::create_dir_all(folder.path().join("tree/etc")).expect("a tree");
        fs::write(folder.path().join("tree/etc/hello"), "hello").expect("a file");
        Bench { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn runnerctl(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_runnerctl"))
            .arg("image")
            .args(["--store", &self.path("images"), "--config", &self.path("config.env")])
            .args(words)
            .output()
            .expect("runnerctl starts")
    }

    /// Standard output of a command that must end with this status.
    #[track_caller]
    fn expect(&self, status: i32, words: &[&str]) -> String {
        let output = self.runnerctl(words);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{words:?}\n{out}\n{err}");
        out
    }

    /// Standard error of a command that must fail, one line.
    #[track_caller]
    fn refusal(&self, status: i32, words: &[&str]) -> String {
        let output = self.runnerctl(words);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), &*out), (Some(status), ""), "{words:?}\n{err}");
        assert!(err.starts_with("runnerctl: ") && err.lines().count() == 1, "{words:?}\n{err}");
        err
    }

    fn import(&self, reference: &str) {
        self.expect(0, &["import", reference, &self.path("tree")]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The one file of that name below a folder.
fn find(folder: &Path, name: &str) -> Option<std::path::PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            return Some(path);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(found) = find(&path, name)
        {
            return Some(found);
        }
    }
    None
}

#[test]
fn an_image_comes_is_listed_and_goes() {
    let bench = Bench::new("");
    assert_eq!(bench.expect(0, &["ls"]), "No images.\n");
    assert_eq!(bench.expect(0, &["ls", "--json"]), "[]\n");
    bench.import("ci/base");
    bench.import("ci/other:1");

    let listed = json(&bench.expect(0, &["ls", "--json"]));
    let references: Vec<&Value> =
        listed.as_array().expect("an array").iter().map(|image| &image["reference"]).collect();
    assert_eq!(references, ["docker.io/ci/base:latest", "docker.io/ci/other:1"]);
    assert_eq!((&listed[0]["size"], &listed[0]["digest"]), (&Value::from(5), &Value::Null));
    let table = bench.expect(0, &["ls"]);
    assert!(table.starts_with("REFERENCE") && table.contains("\nci/base:latest"), "{table}");

    let inspected = json(&bench.expect(0, &["inspect", "ci/base"]));
    assert_eq!(inspected["image"], listed[0]["image"]);
    assert_eq!(inspected["layers"][0]["size"], 5);
    assert_eq!(inspected["config"]["rootfs"]["diff_ids"][0], inspected["layers"][0]["layer"]);

    let output = bench.runnerctl(&["rm", "ci/none", "ci/base"]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    assert!(err.contains("docker.io/ci/none:latest: not in the store"), "{err}");
    assert!(out.starts_with("Removed ci/base:latest"), "{out}");
    assert!(bench.refusal(1, &["inspect", "ci/base"]).contains("ci/base:latest: not in the store"));
}

#[test]
fn pruning_takes_what_was_asked_for() {
    let bench = Bench::new("RUNNER_IMAGE_COLLECT_START=100\nRUNNER_IMAGE_COLLECT_STOP=99\n");
    bench.import("ci/base");
    for words in [&["prune"][..], &["prune", "--auto"], &["prune", "--until", "1h"]] {
        let out = bench.expect(0, words);
        assert!(out.starts_with("Nothing to remove; "), "{words:?}: {out}");
    }
    let out = bench.expect(0, &["prune", "--all"]);
    assert!(out.starts_with("Removed ci/base:latest\nRemoved 1 image, 1 layer; freed 5 B; "), "{out}");
    assert_eq!(bench.expect(0, &["ls"]), "No images.\n");
    for words in [&["prune", "--auto", "--all"][..], &["prune", "--until", "1y"], &["pull"]] {
        assert_eq!(bench.runnerctl(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn watermarks_are_those_of_the_configuration() {
    // More than one percent of any disk the tests run on is in use.
    let bench = Bench::new("RUNNER_IMAGE_COLLECT_START=2\nRUNNER_IMAGE_COLLECT_STOP=1\n");
    bench.import("ci/base");
    let record =
        fs::read_dir(bench.path("images/refs")).expect("the store").next().expect("a reference").expect("it").path();
    // It may be the only copy, and a registry may have another image of this name.
    let out = bench.expect(0, &["prune", "--auto"]);
    assert!(out.starts_with("Nothing to remove; ") && out.contains("above RUNNER_IMAGE_COLLECT_STOP=1"), "{out}");
    let mut reference = json(&fs::read_to_string(&record).expect("a record"));
    reference["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    fs::write(&record, reference.to_string()).expect("as if it had been pulled");
    let out = bench.expect(0, &["prune", "--auto"]);
    assert!(out.starts_with("Removed ci/base:latest\n"), "{out}");
}

#[test]
fn verify_ends_with_one_when_a_file_was_changed() {
    let bench = Bench::new("");
    bench.import("ci/base");
    let out = bench.expect(0, &["verify"]);
    assert!(out.ends_with(": all is well.\n"), "{out}");
    assert_eq!(json(&bench.expect(0, &["verify", "--json"]))["clean"], true);

    let file = find(Path::new(&bench.path("images/layers")), "hello").expect("the layer's file");
    fs::write(&file, "hellO").expect("a change");
    let out = bench.expect(1, &["verify", "--quiet"]);
    assert!(out.starts_with("damage: layers/") && out.contains("ci/base"), "{out}");
    let found = json(&bench.expect(1, &["verify", "--json"]));
    assert_eq!((&found["clean"], &found["findings"][0]["gravity"]), (&false.into(), &"damage".into()));
}

#[test]
fn pulling_obeys_the_configuration() {
    let bench = Bench::new("RUNNER_IMAGE_POLICY=allow\nRUNNER_IMAGE_ALLOW='ci/*'\n");
    bench.import("ci/base");
    let id = json(&bench.expect(0, &["ls", "--json"]))[0]["image"].as_str().expect("an id").to_owned();
    assert_eq!(
        bench.expect(0, &["pull", "--policy", "missing", "ci/base"]),
        format!("ci/base:latest is here already: {id}\n")
    );
    assert_eq!(bench.expect(0, &["pull", "--policy", "never", "--quiet", "ci/base"]), format!("{id}\n"));
    let pulled = json(&bench.expect(0, &["pull", "--policy", "configured", "--json", "ci/base"]));
    assert_eq!((&pulled["image"], &pulled["asked"]), (&Value::from(id), &false.into()));
    let refused = bench.refusal(1, &["pull", "node:22"]);
    assert!(refused.contains("docker.io/library/node:22: RUNNER_IMAGE_POLICY=allow"), "{refused}");
    let refused = bench.refusal(1, &["pull", "--policy", "never", "ci/none"]);
    assert!(refused.contains("ci/none:latest: not in the store"), "{refused}");
    assert!(bench.refusal(1, &["pull", "Node"]).contains("lower case"));

    let broken = Bench::new("RUNNER_IMAGE_PULL=sometimes\n");
    let refused = broken.refusal(1, &["pull", "node"]);
    assert!(refused.contains("config.env:1: RUNNER_IMAGE_PULL=sometimes"), "{refused}");
}
