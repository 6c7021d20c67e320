//! A soak of pulling, running and collecting images, inside the lab: many images from a registry of its own, several at a
//! time, while the broker and its helpers are killed at random moments. At the end the store must be clean and nothing of
//! any guest left.

mod chaos;
mod images;
mod judgement;

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::registry::{Fault, Registry, When};

use chaos::Chaos;
use images::Served;
use judgement::judge;

/// The appliance's configuration.
const CONFIG: &str = "/etc/runner/config.env";
/// Who comes after so many failures of one run gives up on it.
const MOST_TRIES: usize = 40;
/// No pull and run of an image of a few MiB takes this long, however busy the machine is.
const LIMIT_SECONDS: &str = "120";

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Images to serve; each is pulled and run at least once.
    pub images: usize,
    /// Decides about the images and about what is killed when; the machine's own timing does the rest.
    pub seed: u64,
    /// Port of the registry on 127.0.0.1.
    pub port: u16,
    /// How many images are run at once.
    pub workers: usize,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Images served.
    pub images: usize,
    /// Runs that ended well, and printed what only their image knows.
    pub succeeded: usize,
    /// Runs that failed while something was killed; they were tried again.
    pub cut_off: usize,
    /// How often the broker was killed.
    pub brokers: usize,
    /// How often an `image-fetch` was killed.
    pub fetchers: usize,
    /// How often a `layer-unpack` was killed.
    pub unpackers: usize,
    /// How often images were collected.
    pub collections: usize,
    /// Layers that a broken pull was taken up in the middle of.
    pub resumed: usize,
    /// How long it took.
    pub took: Duration,
    /// What must not be, one line each. None: the soak passed.
    pub faults: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "soak: {} images, {} runs succeeded, {} were cut off and tried again; killed: {} brokers, {} image-fetch, {} \
             layer-unpack; {} collections, {} layers resumed; {:.1} s; {} faults",
            self.images,
            self.succeeded,
            self.cut_off,
            self.brokers,
            self.fetchers,
            self.unpackers,
            self.collections,
            self.resumed,
            self.took.as_secs_f64(),
            self.faults.len()
        )
    }
}

/// Numbers that look random and are the same for the same seed (xorshift64).
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        // Zero would stay zero; neighbouring seeds begin alike.
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            dice.next();
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or_default() % end
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// Runs the soak; `say` hears how it goes on. Needs root, and the lab: it kills the broker and removes every image that no
/// job uses.
///
/// # Errors
/// When it cannot begin. What goes wrong later is in [`Outcome::faults`].
pub fn run(plan: &Plan, say: &(dyn Fn(&str) + Sync)) -> Result<Outcome> {
    ensure!(plan.images > 0 && plan.workers > 0, "a soak needs an image and a worker");
    let began = Instant::now();
    let registry = Registry::start_on(plan.port).with_context(|| format!("listen on port {}", plan.port))?;
    let served = images::serve(&registry, plan.images, plan.seed)?;
    slow_down(&registry, &served);
    let _configured = Configured::for_host(&registry.host())?;
    say(&format!("serving {} images on {}", served.len(), registry.host()));

    let soak = Soak {
        served: &served,
        todo: Mutex::new((0..served.len()).collect()),
        chaos: Chaos::new(plan.seed),
        say,
        ..Soak::empty()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.workers).map(|_| scope.spawn(|| soak.work())).collect();
        let chaos = scope.spawn(|| soak.chaos.run(&soak.succeeded, &soak.over));
        for worker in workers {
            // A worker that panicked is a fault, not the end of the others.
            if worker.join().is_err() {
                soak.fault("a worker of the soak panicked".to_owned());
            }
        }
        soak.over.store(true, Ordering::Relaxed);
        drop(chaos.join());
    });
    let mut outcome = soak.outcome(&registry);
    say("looking at what is left");
    outcome.faults.extend(judge(outcome.images)?);
    outcome.took = began.elapsed();
    Ok(outcome)
}

/// Makes some layers come slowly, so that what is killed is killed in the midst of them.
fn slow_down(registry: &Registry, served: &[Served]) {
    for served in served.iter().step_by(3) {
        registry.inject(When::path(&served.own_layer), Fault::Drip(16 << 10, Duration::from_millis(20)));
    }
}

struct Soak<'a> {
    served: &'a [Served],
    todo: Mutex<VecDeque<usize>>,
    chaos: Chaos,
    say: &'a (dyn Fn(&str) + Sync),
    succeeded: AtomicUsize,
    cut_off: AtomicUsize,
    over: AtomicBool,
    faults: Mutex<Vec<String>>,
}

impl Soak<'_> {
    fn empty() -> Soak<'static> {
        Soak {
            served: &[],
            todo: Mutex::default(),
            chaos: Chaos::new(0),
            say: &|_| (),
            succeeded: AtomicUsize::new(0),
            cut_off: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            faults: Mutex::default(),
        }
    }

    fn fault(&self, text: String) {
        (self.say)(&format!("FAULT {text}"));
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// Pulls and runs images until there are none.
    fn work(&self) {
        loop {
            let next = self.todo.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(number) = next else { return };
            self.until_it_ran(&self.served[number]);
            // Every few images an earlier one again: it is there, or was collected, or is being pulled by the other worker.
            if number % 4 == 3 {
                self.until_it_ran(&self.served[number / 2]);
            }
        }
    }

    fn until_it_ran(&self, served: &Served) {
        for _ in 0..MOST_TRIES {
            let before = self.chaos.disturbances();
            let attempt = match attempt(served) {
                Ok(attempt) => attempt,
                Err(error) => return self.fault(format!("{}: {error:#}", served.name)),
            };
            match attempt {
                Attempt::Ran => {
                    let count = self.succeeded.fetch_add(1, Ordering::Relaxed) + 1;
                    if count.is_multiple_of(20) {
                        (self.say)(&format!(
                            "{count} runs succeeded, {} cut off",
                            self.cut_off.load(Ordering::Relaxed)
                        ));
                    }
                    return;
                }
                Attempt::Lied(text) => return self.fault(format!("{}: {text}", served.name)),
                Attempt::Failed(text) if !self.chaos.disturbed_since(before) => {
                    return self.fault(format!("{}: failed although nothing was killed: {text}", served.name));
                }
                Attempt::Failed(_) => drop(self.cut_off.fetch_add(1, Ordering::Relaxed)),
            }
        }
        self.fault(format!("{}: did not run in {MOST_TRIES} tries", served.name));
    }

    fn outcome(self, registry: &Registry) -> Outcome {
        let kills = self.chaos.kills();
        let resumed = registry.requests().iter().filter(|request| request.header("range").is_some()).count();
        Outcome {
            images: self.served.len(),
            succeeded: self.succeeded.into_inner(),
            cut_off: self.cut_off.into_inner(),
            brokers: kills.brokers,
            fetchers: kills.fetchers,
            unpackers: kills.unpackers,
            collections: kills.collections,
            resumed,
            took: Duration::ZERO,
            faults: self.faults.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// How one run of an image ended.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// It ended well, and its output proves that it ran.
    Ran,
    /// It said that it ended well, and its output says otherwise; or it never ended.
    Lied(String),
    /// It said that it failed.
    Failed(String),
}

fn attempt(served: &Served) -> Result<Attempt> {
    let output = Command::new("timeout")
        .args([
            "--signal=KILL",
            LIMIT_SECONDS,
            "ci-nspawn-run",
            "--image",
            &served.name,
            "--",
            "cat",
            "/own",
            "/shared",
        ])
        .stdin(Stdio::null())
        .output()
        .context("start ci-nspawn-run")?;
    let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(verdict(output.status.code(), &output.stdout, &errors, &served.prints))
}

fn verdict(code: Option<i32>, stdout: &[u8], errors: &str, expected: &[u8]) -> Attempt {
    match code {
        Some(0) if stdout == expected => Attempt::Ran,
        Some(0) => {
            Attempt::Lied(format!("exit status 0, and it printed {}", String::from_utf8_lossy(stdout).escape_debug()))
        }
        // What timeout(1) itself is killed by, too.
        Some(137) | None => Attempt::Lied(format!("did not end within {LIMIT_SECONDS} s: {errors}")),
        Some(code) => Attempt::Failed(format!("exit status {code}: {errors}")),
    }
}

/// The appliance allowed to use the soak's registry, until this is dropped.
struct Configured {
    saved: Option<Vec<u8>>,
}

impl Configured {
    fn for_host(host: &str) -> Result<Configured> {
        let saved = match fs::read(CONFIG) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("read {CONFIG}")),
        };
        let text = String::from_utf8_lossy(saved.as_deref().unwrap_or_default()).into_owned();
        if let Some(folder) = Path::new(CONFIG).parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(CONFIG, allowing(&text, host)).with_context(|| format!("write {CONFIG}"))?;
        let configured = Configured { saved };
        chaos::systemctl(&["restart", chaos::BROKER])?;
        Ok(configured)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // The lab is thrown away if this fails; the tests after it would say so.
        let _ = match &self.saved {
            Some(text) => fs::write(CONFIG, text),
            None => fs::remove_file(CONFIG),
        };
        let _ = chaos::systemctl(&["restart", chaos::BROKER]);
    }
}

/// The configuration with `host` among those that are reached by plain HTTP.
fn allowing(text: &str, host: &str) -> String {
    const KEY: &str = "RUNNER_REGISTRY_INSECURE=";
    let mut hosts = Vec::new();
    let mut lines = String::new();
    for line in text.lines() {
        match line.strip_prefix(KEY) {
            Some(value) => {
                hosts.extend(value.trim_matches(['"', '\'']).split_whitespace().filter(|known| *known != host));
            }
            None => {
                lines.push_str(line);
                lines.push('\n');
            }
        }
    }
    hosts.push(host);
    format!("{lines}{KEY}\"{}\"\n", hosts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_takes_the_images_own_words() {
        let verdict = |code, stdout: &str| verdict(code, stdout.as_bytes(), "why", b"own words");
        assert_eq!(verdict(Some(0), "own words"), Attempt::Ran);
        assert!(matches!(verdict(Some(0), ""), Attempt::Lied(_)));
        assert!(matches!(verdict(Some(0), "own words and more"), Attempt::Lied(_)));
        assert!(matches!(verdict(Some(137), "own words"), Attempt::Lied(_)));
        assert!(matches!(verdict(None, "own words"), Attempt::Lied(_)));
        assert_eq!(verdict(Some(125), "own words"), Attempt::Failed("exit status 125: why".to_owned()));
    }

    #[test]
    fn the_registry_is_added_to_those_the_configuration_has() {
        let key = "RUNNER_REGISTRY_INSECURE";
        assert_eq!(allowing("", "127.0.0.1:5099"), format!("{key}=\"127.0.0.1:5099\"\n"));
        assert_eq!(
            allowing(&format!("A=b\n{key}=\"x:1 127.0.0.1:5099 y\"\nC=\"d e\"\n"), "127.0.0.1:5099"),
            format!("A=b\nC=\"d e\"\n{key}=\"x:1 y 127.0.0.1:5099\"\n")
        );
    }

    #[test]
    fn dice_are_the_same_for_a_seed_and_differ_between_seeds() {
        let throw = |seed| Dice::new(seed).bytes(32);
        assert_eq!(throw(7), throw(7));
        assert_ne!(throw(7), throw(8));
        assert_ne!(throw(0), vec![0; 32]);
        assert!((0..1000).all(|seed| Dice::new(seed).below(3) < 3));
    }
}
