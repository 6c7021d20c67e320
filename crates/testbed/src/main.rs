//! `runner-sim`: the command line of the official runner's stand-in.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use runner_testbed::call::{self, Request};
use runner_testbed::cancel::{Cancel, Cause, Trigger, seconds};
use runner_testbed::context::Run;
use runner_testbed::hook;
use runner_testbed::job::{JobRun, Settings};
use runner_testbed::layout::Layout;
use runner_testbed::process::Timings;
use runner_testbed::report::Console;
use runner_testbed::workflow;

/// Where a package puts the hook.
const DEFAULT_HOOK: &str = "/usr/lib/runner/container-hooks.sh";

/// Runs one job of a workflow file through a container hook, as the official runner would.
///
/// Exits 0 when the job passed, 1 when it did not, 2 for a workflow or an option it cannot use.
#[derive(Parser)]
#[command(name = "runner-sim", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    job: JobArguments,
}

#[derive(Subcommand)]
enum Verb {
    /// Send one request document to the hook and print output, response and exit code as JSON.
    ///
    /// Exits 0 however the hook ended, 2 if it could not be called.
    Call(CallArguments),
}

#[derive(Args)]
struct Common {
    /// The hook's entry file [default: ACTIONS_RUNNER_CONTAINER_HOOKS, else /usr/lib/runner/container-hooks.sh]
    #[arg(long, value_name = "PATH")]
    hook: Option<PathBuf>,
    /// Root folder of the runner
    #[arg(long, value_name = "DIR", default_value = "/home/runner")]
    root: PathBuf,
    /// Work folder [default: ROOT/_work]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Name of the runner
    #[arg(long, value_name = "NAME", default_value = "runner 01")]
    runner_name: String,
    /// Repository the job belongs to
    #[arg(long, value_name = "OWNER/NAME", default_value = "octo/widgets")]
    repository: String,
    /// Number of the run
    #[arg(long, value_name = "N", default_value_t = 1)]
    run_id: u64,
    /// Show debug lines and set RUNNER_DEBUG=1 for the hook
    #[arg(long)]
    debug: bool,
    /// Run although this is root, which the real runner refuses
    #[arg(long)]
    allow_root: bool,
    /// Cancel the job (in `call`: the call) after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    cancel_after: Option<Duration>,
    /// Cancel when a line of output contains this text
    #[arg(long, value_name = "TEXT")]
    cancel_on_line: Option<String>,
    /// Send a signal to the process: INT@2.5 after its start, or TERM@line:TEXT when it prints TEXT; each fires once
    #[arg(long, value_name = "SIGNAL@WHEN")]
    signal: Vec<Trigger>,
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = seconds, default_value = "7.5")]
    interrupt_grace: Duration,
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = seconds, default_value = "2.5")]
    terminate_grace: Duration,
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    output_wait: Duration,
}

#[derive(Args)]
struct JobArguments {
    /// Workflow file
    #[arg(required = true)]
    workflow: Option<PathBuf>,
    /// Job to run [default: the first]
    job: Option<String>,
    /// Write everything about the job to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write every byte the processes print to this file, unmasked
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Refuse a job without a container, as a runner with ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER does
    #[arg(long)]
    require_job_container: bool,
    /// Copy this folder into the workspace before the job, in place of a checkout
    #[arg(long, value_name = "DIR")]
    checkout: Option<PathBuf>,
    /// Take `uses: OWNER/REPOSITORY@REF` from DIR/OWNER/REPOSITORY/REF
    #[arg(long, value_name = "DIR")]
    actions: Option<PathBuf>,
}

#[derive(Args)]
struct CallArguments {
    #[command(flatten)]
    common: Common,
    /// The request document, or - for standard input
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Send the bytes unchanged, be they JSON or not
    #[arg(long)]
    raw: bool,
    /// Put the path of a new empty file into `responseFile`
    #[arg(long, conflicts_with = "raw")]
    fresh_response: bool,
    /// Expect the response here, whatever the document says
    #[arg(long, value_name = "FILE", conflicts_with = "fresh_response")]
    response_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Verb::Call(arguments)) => one_call(arguments),
        None => one_job(&cli.common, &cli.job),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "runner-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

impl Common {
    fn check(&self) -> anyhow::Result<()> {
        if rustix::process::geteuid().is_root() && !self.allow_root {
            bail!("must not run as root, like the real runner: run it as the user `runner`, or pass --allow-root");
        }
        let parts: Vec<&str> = self.repository.split('/').collect();
        if parts.len() != 2 || parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
            bail!("--repository {}: write OWNER/NAME", self.repository);
        }
        Ok(())
    }

    fn timings(&self) -> Timings {
        Timings { interrupt: self.interrupt_grace, terminate: self.terminate_grace, end_of_output: self.output_wait }
    }

    fn cancel(&self) -> anyhow::Result<Cancel> {
        let mut cancel = Cancel::never();
        cancel.watch_signals().context("cannot watch for signals")?;
        cancel.on_line(self.cancel_on_line.clone());
        if let Some(due) = self.cancel_after.and_then(|after| Instant::now().checked_add(after)) {
            cancel.at(due, Cause::User);
        }
        Ok(cancel)
    }

    fn layout(&self, worker: &[(std::ffi::OsString, std::ffi::OsString)]) -> anyhow::Result<Layout> {
        let absolute =
            |path: &PathBuf| std::path::absolute(path).with_context(|| format!("bad path {}", path.display()));
        let root = absolute(&self.root)?;
        let work = self.work.as_ref().map_or_else(|| Ok(root.join("_work")), absolute)?;
        let tools = ["RUNNER_TOOL_CACHE", "RUNNER_TOOLSDIRECTORY", "AGENT_TOOLSDIRECTORY"]
            .iter()
            .find_map(|name| hook::lookup(worker, name).filter(|value| !value.is_empty()))
            .map_or_else(|| work.join("_tool"), PathBuf::from);
        let repository = self.repository.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Layout { root, work, tools, repository })
    }

    fn hook(&self, worker: &[(std::ffi::OsString, std::ffi::OsString)]) -> PathBuf {
        let configured = hook::lookup(worker, "ACTIONS_RUNNER_CONTAINER_HOOKS").filter(|path| !path.is_empty());
        self.hook.clone().unwrap_or_else(|| configured.unwrap_or(DEFAULT_HOOK).into())
    }

    fn run(&self, workflow: String, workflow_file: String, job: String) -> Run {
        Run {
            repository: self.repository.clone(),
            run_id: self.run_id,
            runner_name: self.runner_name.clone(),
            workflow,
            workflow_file,
            job,
            debug: self.debug,
        }
    }
}

fn one_job(common: &Common, arguments: &JobArguments) -> anyhow::Result<ExitCode> {
    common.check()?;
    let file = arguments.workflow.as_ref().context("no workflow file")?;
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let workflow = workflow::parse(&text).with_context(|| file.display().to_string())?;
    let job = match &arguments.job {
        None => workflow.jobs.first().context("no job")?,
        Some(id) => workflow.jobs.iter().find(|job| job.id == *id).with_context(|| {
            let ids: Vec<&str> = workflow.jobs.iter().map(|job| job.id.as_str()).collect();
            format!("{}: no job `{id}`; there is {}", file.display(), ids.join(", "))
        })?,
    };
    let worker = hook::worker_environment(&common.root).context("cannot read the runner's .env")?;
    let raw = arguments
        .log
        .as_ref()
        .map(|path| File::create(path).with_context(|| format!("cannot write {}", path.display())))
        .transpose()?;
    // Made before the job, so that a bad path does not cost a whole run.
    let mut json = arguments
        .json
        .as_ref()
        .map(|path| File::create(path).with_context(|| format!("cannot write {}", path.display())))
        .transpose()?;
    let settings = Settings {
        layout: common.layout(&worker)?,
        hook: common.hook(&worker),
        worker,
        require_job_container: arguments.require_job_container,
        checkout: arguments.checkout.clone(),
        actions: arguments.actions.clone(),
        timings: common.timings(),
    };
    let file_name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = workflow.name.clone().unwrap_or_else(|| format!(".github/workflows/{file_name}"));
    let run = common.run(name, file_name, job.id.clone());
    let triggers = common.signal.clone();
    let job = JobRun::new(&settings, &workflow, job, run, Console::new(raw), common.cancel()?, triggers)?;
    let finished = job.run();
    if let Some(json) = &mut json {
        json.write_all(finished.report.pretty().as_bytes()).context("cannot write the result file")?;
    }
    Ok(if finished.passed { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn one_call(arguments: &CallArguments) -> anyhow::Result<ExitCode> {
    let common = &arguments.common;
    common.check()?;
    let bytes = if arguments.request.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
        bytes
    } else {
        fs::read(&arguments.request).with_context(|| format!("cannot read {}", arguments.request.display()))?
    };
    let worker = hook::worker_environment(&common.root).context("cannot read the runner's .env")?;
    let layout = common.layout(&worker)?;
    let request = Request {
        bytes,
        raw: arguments.raw,
        fresh_response: arguments.fresh_response,
        response_file: arguments.response_file.clone(),
    };
    let run = common.run("call".to_owned(), "call.yml".to_owned(), "call".to_owned());
    let control = (common.timings(), common.cancel()?, common.signal.clone());
    let result = call::call(&layout, &common.hook(&worker), &worker, &run, request, control)?;
    std::io::stdout().write_all(result.pretty().as_bytes()).context("cannot write the result")?;
    Ok(ExitCode::SUCCESS)
}
