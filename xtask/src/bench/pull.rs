//! Pulling an image with nothing there, against podman and against skopeo with umoci, on the same machine in turn; and
//! what an image costs that is there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::lab::{Lab, PUBLIC_REGISTRY, tools};
use crate::progress::{Phase, note};

/// What is pulled, as the registry has it.
const REPOSITORY: &str = "library/node";
const TAG: &str = "22";

/// Measures images that are in the store. Installed in the lab only.
const RUNNER_BENCH_IMAGES: &str = "/usr/lib/runner/testbed/runner-bench-images";

/// Everything a pull writes; on the file system of the real store.
const SCRATCH: &str = "/var/lib/runner/bench-pull";

/// Our processes of a pull, as `/proc/PID/comm` has them.
const PROCESSES: [&str; 3] = ["runnerctl", "image-fetch", "layer-unpack"];

/// Time between two looks at their memory.
const SAMPLING: Duration = Duration::from_millis(2);

/// One way to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Puller {
    Ours,
    Podman,
    SkopeoUmoci,
}

impl Puller {
    const ALL: [Self; 3] = [Self::Ours, Self::Podman, Self::SkopeoUmoci];

    /// Its name in results.
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "image.pull.runnerctl",
            Self::Podman => "image.pull.podman",
            Self::SkopeoUmoci => "image.pull.skopeo_umoci",
        }
    }

    /// Shell commands that leave the image unpacked in the folder `$scratch`, which is empty.
    fn script(self) -> String {
        let remote = format!("{PUBLIC_REGISTRY}/{REPOSITORY}:{TAG}");
        match self {
            // By the name a workflow has, so through the mirror.
            Self::Ours => format!(r#"runnerctl image --store "$scratch/store" pull --quiet node:{TAG}"#),
            Self::Podman => format!(
                r#"podman --root "$scratch/root" --runroot "$scratch/run" --storage-driver overlay pull --quiet --tls-verify=false {remote}"#
            ),
            Self::SkopeoUmoci => format!(
                r#"skopeo copy --quiet --src-tls-verify=false docker://{remote} "oci:$scratch/image:{TAG}"
umoci unpack --image "$scratch/image:{TAG}" "$scratch/bundle""#
            ),
        }
    }
}

/// Pulls `rounds` times each way, in turn, and once more ours to see its memory.
pub(super) fn run(lab: &Lab, rounds: usize) -> Result<Value> {
    ensure!(rounds > 0, "a median needs at least one pull");
    tools::ensure(lab)?;
    let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let phase = Phase::start("pull", "pulling three ways in turn");
    for _ in 0..rounds {
        for puller in Puller::ALL {
            let took = pull(lab, puller).with_context(|| puller.name().to_owned())?;
            samples.entry(puller.name()).or_default().push(took);
        }
    }
    let memory = memory(lab)?;
    lab.inside(["rm", "--recursive", "--force", SCRATCH]).run()?;
    phase.end(&format!("{rounds} times each"));
    Ok(results(&samples, &memory))
}

/// Finding the image in the lab's own store by tag and by digest, and putting a root of many layers together.
pub(super) fn present(lab: &Lab) -> Result<Value> {
    let digest = lab.inside(["runnerctl", "image", "pull", "--quiet", &format!("node:{TAG}")]).read()?;
    let name = format!("docker.io/{REPOSITORY}");
    let (tag, digest) = (format!("{name}:{TAG}"), format!("{name}@{}", digest.trim()));
    lab.inside(["runnerctl", "image", "pull", "--quiet", &digest]).run()?;
    let document = lab.inside([RUNNER_BENCH_IMAGES, "--tag", &tag, "--digest", &digest]).read()?;
    serde_json::from_str(&document).context("the driver's results")
}

/// Milliseconds of one pull, taken in the lab host.
fn pull(lab: &Lab, puller: Puller) -> Result<f64> {
    // What earlier pulls wrote must be on the disk, or this one waits for it. `umoci` makes trees rm needs no rights for.
    let script = format!(
        "rm -rf {SCRATCH}; mkdir -m 0700 {SCRATCH}; scratch={SCRATCH}; sync\nstart=$(date +%s%N)\n{{\n{}\n}} >&2\n\
         end=$(date +%s%N)\necho $((end - start))",
        puller.script()
    );
    let printed = lab.inside(["sh", "-euc", &script]).read()?;
    let nanoseconds: f64 = printed.trim().parse().context("the time a pull took")?;
    Ok(nanoseconds / 1e6)
}

/// Peak memory of all our processes of one pull, in MiB: what they have to themselves and their share of the rest, and
/// the sum of each one's highest resident set, which counts shared pages and moments apart as if they were not.
fn memory(lab: &Lab) -> Result<Value> {
    let namespace = lab.process_namespace()?;
    let ended = AtomicBool::new(false);
    let (pulled, peak) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = Peak::default();
            while !ended.load(Ordering::Acquire) {
                peak.look(namespace);
                std::thread::sleep(SAMPLING);
            }
            peak
        });
        let pulled = pull(lab, Puller::Ours);
        ended.store(true, Ordering::Release);
        (pulled, watcher.join().expect("looking does not panic"))
    });
    pulled?;
    ensure!(!peak.highest.is_empty(), "no process of a pull was seen");
    if !peak.has_seen_all() {
        note(&format!("pull       only these processes were seen: {:?}", peak.names()));
    }
    Ok(json!({
        "image.pull.proportional": round(mebibytes(peak.proportional)),
        "image.pull.resident_sum": round(mebibytes(peak.highest.values().map(|(_, kib)| kib).sum())),
        "image.pull.by_process": peak.by_name(),
    }))
}

/// The most seen so far.
#[derive(Debug, Default)]
struct Peak {
    /// KiB, of all processes at one moment (`Pss` of proc_pid_smaps_rollup(5)).
    proportional: u64,
    /// Each process's name and `VmHWM` in KiB, by its number.
    highest: BTreeMap<u32, (String, u64)>,
}

impl Peak {
    /// Looks at every process of a pull in this PID namespace. One that ends meanwhile counts as far as it was seen.
    fn look(&mut self, namespace: u64) {
        let mut sum = 0;
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let folder = Path::new("/proc").join(pid.to_string());
            let Ok(name) = fs::read_to_string(folder.join("comm")) else { continue };
            let name = name.trim_end();
            if !PROCESSES.contains(&name) || !is_inside(pid, namespace) {
                continue;
            }
            let read = |file: &str, key: &str| {
                let text = fs::read_to_string(folder.join(file)).ok()?;
                kibibytes(&text, key)
            };
            sum += read("smaps_rollup", "Pss:").unwrap_or(0);
            if let Some(kib) = read("status", "VmHWM:") {
                let known = self.highest.entry(pid).or_default();
                *known = (name.to_owned(), known.1.max(kib));
            }
        }
        self.proportional = self.proportional.max(sum);
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.highest.values().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn has_seen_all(&self) -> bool {
        self.names().len() == PROCESSES.len()
    }

    /// The highest of each name and how many there were.
    fn by_name(&self) -> Value {
        let mut result: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (name, kib) in self.highest.values() {
            let (count, highest) = result.entry(name).or_default();
            *count += 1;
            *highest = (*highest).max(*kib);
        }
        let entry = |(count, kib): (u64, u64)| json!({ "processes": count, "highest": round(mebibytes(kib)) });
        Value::Object(result.into_iter().map(|(name, row)| (name.to_owned(), entry(row))).collect())
    }
}

/// Whether a process is one of this PID namespace, or the child of one: `layer-unpack` gets a namespace of its own.
fn is_inside(pid: u32, namespace: u64) -> bool {
    let member = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/pid")).is_ok_and(|meta| meta.ino() == namespace);
    let parent = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        line.trim().parse().ok()
    };
    member(pid) || parent().is_some_and(member)
}

/// The number behind this key, of lines like `Pss:    123 kB`.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn mebibytes(kib: u64) -> f64 {
    Duration::from_millis(kib).as_secs_f64() * 1000.0 / 1024.0
}

/// To a hundredth.
fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// The section of the results: times as in the other cases, the ratio of our median to the best of the others, memory.
fn results(samples: &BTreeMap<&str, Vec<f64>>, memory: &Value) -> Value {
    let sorted = |name: &str| {
        let mut times = samples.get(name).cloned().unwrap_or_default();
        times.sort_by(f64::total_cmp);
        times
    };
    let at = |times: &[f64], share: usize| times.get(times.len().saturating_sub(1) * share / 100).copied();
    let median = |puller: Puller| at(&sorted(puller.name()), 50);
    let case = |name: &str| {
        let times = sorted(name);
        let at = |share| at(&times, share).map(round);
        json!({ "n": times.len(), "median_ms": at(50), "p95_ms": at(95), "max_ms": at(100) })
    };
    let others = [Puller::Podman, Puller::SkopeoUmoci].into_iter().filter_map(median);
    let fastest = others.min_by(f64::total_cmp);
    let ratio = median(Puller::Ours).zip(fastest).map(|(ours, fastest)| round(ours / fastest));
    let cases = samples.keys().map(|&name| (name.to_owned(), case(name))).collect();
    json!({ "cases": Value::Object(cases), "ratios": { "image.pull.to_fastest_other": ratio }, "memory_mib": memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_to_the_fastest_of_the_others() {
        let samples = BTreeMap::from([
            (Puller::Ours.name(), vec![900.0, 700.0, 650.0]),
            (Puller::Podman.name(), vec![2000.0, 1000.0, 900.0]),
            (Puller::SkopeoUmoci.name(), vec![3000.0]),
        ]);
        let results = results(&samples, &Value::Null);
        assert_eq!(results["ratios"]["image.pull.to_fastest_other"], 0.7);
        assert_eq!(
            results["cases"][Puller::Podman.name()],
            json!({ "n": 3, "median_ms": 1000.0, "p95_ms": 1000.0, "max_ms": 2000.0 })
        );
    }

    #[test]
    fn memory_is_read_from_lines_with_units() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(kibibytes(text, "VmHWM:"), Some(2048));
        assert_eq!(kibibytes(text, "Pss:"), None);
        assert_eq!(round(mebibytes(2048)), 2.0);
    }

    #[test]
    fn every_process_counts_once_and_by_its_name() {
        let entry = |name: &str, kib| (name.to_owned(), kib);
        let highest = BTreeMap::from([(1, entry("layer-unpack", 1024)), (2, entry("layer-unpack", 2048))]);
        let peak = Peak { proportional: 0, highest };
        assert_eq!(peak.by_name(), json!({ "layer-unpack": { "processes": 2, "highest": 2.0 } }));
        assert!(!peak.has_seen_all());
    }

    #[test]
    fn a_process_is_inside_its_own_namespace_and_no_other() {
        let namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
        assert!(is_inside(std::process::id(), namespace));
        assert!(!is_inside(std::process::id(), 1));
    }

    #[test]
    fn names_of_processes_are_not_cut_by_the_kernel() {
        for name in PROCESSES {
            assert!(name.len() <= 15, "{name}: TASK_COMM_LEN");
        }
    }
}
