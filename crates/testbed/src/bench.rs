//! The benchmark's driver: runs inside the lab as the runner's user, drives the hook as the official runner does, and
//! measures from the outside.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::context::{Run, Variables};
use crate::hook;
use crate::json::{Value, object};
use crate::layout::Layout;
use crate::request;
use crate::workflow;

/// What to measure with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The hook's entry file.
    pub hook: PathBuf,
    /// Image of the job container.
    pub image: String,
    /// Jobs measured one by one.
    pub jobs: usize,
    /// Jobs of ten steps.
    pub whole_jobs: usize,
    /// Rounds of eight jobs at once.
    pub rounds: usize,
}

/// Times of one case.
#[derive(Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// One more.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// Number, median, 95th percentile and maximum, in milliseconds.
    pub fn to_value(&self) -> Value {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |share: usize| {
            let index = (sorted.len().saturating_sub(1)) * share / 100;
            let took = sorted.get(index).copied().unwrap_or_default();
            // To a hundredth of a millisecond.
            Value::Float((took.as_secs_f64() * 100_000.0).round() / 100.0)
        };
        object([
            ("n", Value::Integer(sorted.len().to_string())),
            ("median_ms", at(50)),
            ("p95_ms", at(95)),
            ("max_ms", at(100)),
        ])
    }
}

/// One official runner: a layout, a name, and the state of its job.
struct Driver {
    plan: Plan,
    layout: Layout,
    environment: Vec<(OsString, OsString)>,
    state: Value,
}

/// What a hook call came to.
struct Called {
    took: Duration,
    output: u64,
    lines: u64,
}

impl Driver {
    fn new(plan: &Plan, name: &str) -> Result<Self> {
        let root = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?);
        let layout = Layout {
            work: root.join("_work"),
            tools: root.join("_work/_tool"),
            root,
            repository: format!("bench-{}", name.replace(' ', "-")),
        };
        layout.create()?;
        let run = Run {
            repository: format!("octo/{}", layout.repository),
            run_id: 1,
            runner_name: name.to_owned(),
            workflow: "bench".into(),
            workflow_file: "bench.yml".into(),
            job: "bench".into(),
            debug: false,
        };
        for folder in [layout.home(), layout.workflow(), layout.file_commands()] {
            std::fs::create_dir_all(folder)?;
        }
        let worker = hook::worker_environment(&layout.root)?;
        let environment = hook::environment(&worker, &run.variables(&layout), &hook::guid()?, &[]);
        Ok(Self { plan: plan.clone(), layout, environment, state: Value::Null })
    }

    fn call(&mut self, command: &str, arguments: Value) -> Result<Called> {
        let response = hook::new_response_file(&self.layout)?;
        let input = hook::input(&request::envelope(command, &response, arguments, self.state.clone()));
        let start = Instant::now();
        let mut child = Command::new("bash")
            .arg("-e")
            .arg(&self.plan.hook)
            .env_clear()
            .envs(self.environment.iter().cloned())
            .current_dir(self.layout.workspace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the hook")?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(&input)?;
        drop(stdin);
        let mut stderr = child.stderr.take().context("no standard error")?;
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text)
        });
        let mut stdout = child.stdout.take().context("no standard output")?;
        let mut buffer = vec![0; 256 * 1024];
        let (mut output, mut lines, mut head) = (0, 0, Vec::new());
        loop {
            let count = stdout.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            let read = buffer.get(..count).unwrap_or_default();
            output += count as u64;
            lines += read.iter().filter(|byte| **byte == b'\n').count() as u64;
            if head.len() < 1_000 {
                head.extend_from_slice(read.get(..count.min(1_000)).unwrap_or_default());
            }
        }
        let status = child.wait()?;
        let took = start.elapsed();
        let errors = errors.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))?;
        let text = std::fs::read_to_string(&response)?;
        std::fs::remove_file(&response)?;
        ensure!(status.success(), "{command} failed with {status}: {}{errors}", String::from_utf8_lossy(&head));
        let parsed = Value::parse(&text).ok().flatten();
        if let Some(state) = parsed.as_ref().and_then(|response| response.member("state")) {
            self.state = state.clone();
        }
        Ok(Called { took, output, lines })
    }

    fn prepare(&mut self) -> Result<Duration> {
        let text = format!(
            "jobs:\n  bench:\n    runs-on: x\n    container: '{}'\n    steps:\n      - run: 'true'\n",
            self.plan.image
        );
        let workflow = workflow::parse(&text).map_err(|mistake| anyhow::anyhow!("{mistake:?}"))?;
        let Some(job) = workflow.jobs.first() else { bail!("the benchmark's workflow has no job") };
        let arguments = request::prepare_job(job, &self.layout, &[]);
        Ok(self.call("prepare_job", arguments)?.took)
    }

    fn step(&mut self, program: &str, arguments: &str) -> Result<Called> {
        let directory = format!("/__w/{0}/{0}", self.layout.repository);
        let arguments = request::run_script_step(program, arguments, &Variables::default(), Vec::new(), &directory);
        self.call("run_script_step", arguments)
    }

    fn cleanup(&mut self) -> Result<Duration> {
        let took = self.call("cleanup_job", object([]))?.took;
        self.state = Value::Null;
        Ok(took)
    }

    fn machine(&self) -> Option<String> {
        match self.state.member("job") {
            Some(Value::String(job)) => Some(format!("runner-guest-{job}0.service")),
            _ => None,
        }
    }
}

/// Runs everything and returns the results as the benchmark's JSON document. `progress` gets a line for every case.
///
/// # Errors
/// A hook call failed, or lost output.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(&str)) -> Result<Value> {
    let mut floor = Samples::default();
    progress("floor: starting `true`");
    for _ in 0..100 {
        let start = Instant::now();
        Command::new("true").output().context("cannot start true")?;
        floor.add(start.elapsed());
    }

    let mut driver = Driver::new(plan, "bench")?;
    // The first job also starts the broker.
    driver.prepare()?;
    driver.step("true", "")?;
    driver.cleanup()?;
    let hook = hook_memory()?;
    let idle = broker_memory()?;

    let (mut prepare, mut step, mut cleanup, mut boot) =
        (Samples::default(), Samples::default(), Samples::default(), Samples::default());
    progress(&format!("{} jobs, one by one", plan.jobs));
    for _ in 0..plan.jobs {
        prepare.add(driver.prepare()?);
        for _ in 0..3 {
            step.add(driver.step("true", "")?.took);
        }
        boot.add(boot_time(&driver.machine().context("the response names no job")?)?);
        cleanup.add(driver.cleanup()?);
    }

    let mut whole = Samples::default();
    progress(&format!("{} jobs of ten steps", plan.whole_jobs));
    for _ in 0..plan.whole_jobs {
        let start = Instant::now();
        driver.prepare()?;
        for _ in 0..10 {
            driver.step("true", "")?;
        }
        driver.cleanup()?;
        whole.add(start.elapsed());
    }

    let mut at_once = Samples::default();
    progress(&format!("{} times eight such jobs at once", plan.rounds));
    for _ in 0..plan.rounds {
        at_once.add(eight_jobs(plan)?);
    }

    progress("output");
    driver.prepare()?;
    let lines = driver.step(
        "sh",
        "-c \"yes 'a line of output as builds print it, some eighty bytes long or so' | head -n 100000\"",
    )?;
    ensure!(lines.lines == 100_000, "100,000 lines were written and {} arrived", lines.lines);
    let bytes: u64 = 1 << 30;
    let flood = driver.step("sh", &format!("-c \"head -c {bytes} /dev/zero\""))?;
    ensure!(flood.output == bytes, "{bytes} bytes were written and {} arrived", flood.output);
    driver.cleanup()?;
    let rate = flood.output as f64 / 1e6 / flood.took.as_secs_f64();
    let line_rate = lines.output as f64 / 1e6 / lines.took.as_secs_f64();

    let number = |value: f64| Value::Float((value * 10.0).round() / 10.0);
    Ok(object([
        (
            "cases",
            object([
                ("floor.spawn_true", floor.to_value()),
                ("hook.prepare_job.cold", prepare.to_value()),
                ("hook.run_script_step.true", step.to_value()),
                ("hook.cleanup_job", cleanup.to_value()),
                ("guest.boot", boot.to_value()),
                ("job.10_steps", whole.to_value()),
                ("job.8_at_once", at_once.to_value()),
            ]),
        ),
        (
            "rates",
            object([
                ("step.mb_per_s", number(rate)),
                ("step.100k_lines_mb_per_s", number(line_rate)),
                ("hook.max_rss_mib", number(hook)),
                ("idle.rss_mib", number(idle)),
            ]),
        ),
    ]))
}

/// Eight runners, each with a job of ten steps; until the last is done.
fn eight_jobs(plan: &Plan) -> Result<Duration> {
    let mut drivers = (0..8).map(|index| Driver::new(plan, &format!("bench {index}"))).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let jobs: Vec<_> = drivers
            .iter_mut()
            .map(|driver| {
                scope.spawn(move || -> Result<()> {
                    driver.prepare()?;
                    for _ in 0..10 {
                        driver.step("true", "")?;
                    }
                    driver.cleanup()?;
                    Ok(())
                })
            })
            .collect();
        for job in jobs {
            job.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a driver panicked")))?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(start.elapsed())
}

fn show(unit: &str, properties: &str) -> Result<Vec<u64>> {
    let output = Command::new("systemctl").args(["show", "--value", "--property", properties, unit]).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// From the start of the guest's unit until it said it is ready, as the host's systemd saw it.
fn boot_time(unit: &str) -> Result<Duration> {
    match show(unit, "InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic")?.as_slice() {
        [one, other] => Ok(Duration::from_micros(one.abs_diff(*other))),
        other => bail!("systemctl show {unit} printed {other:?}"),
    }
}

/// Resident memory of the broker, in MiB.
fn broker_memory() -> Result<f64> {
    let pid = match show("runner-guestd.service", "MainPID")?.as_slice() {
        [pid] if *pid > 0 => *pid,
        other => bail!("the broker is not running: {other:?}"),
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}

/// The most memory any child so far had resident, in MiB. To be asked while all of them were hooks and `true`.
fn hook_memory() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    Ok(usage.max_rss() as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_samples() {
        let mut samples = Samples::default();
        for milliseconds in (1..=100).rev() {
            samples.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(samples.to_value().line(), r#"{"n":100,"median_ms":50.0,"p95_ms":95.0,"max_ms":100.0}"#);
        assert_eq!(Samples::default().to_value().line(), r#"{"n":0,"median_ms":0.0,"p95_ms":0.0,"max_ms":0.0}"#);
    }
}
