//! A job from set-up to completion (protocol section 16).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::action::{self, Action, ActionError, Runs};
use crate::cancel::{Cancel, Cause, Trigger};
use crate::context::{Run, Variables};
use crate::file_commands::FileCommands;
use crate::hook;
use crate::json::{Value, object, string_map};
use crate::layout::{Layout, copy_tree};
use crate::log_commands::Look;
use crate::process::Timings;
use crate::report::{Console, Ended, Record};
use crate::request;
use crate::response::{Described, Expect};
use crate::workflow::{Condition, Job, Step, Work, Workflow};

/// What stays the same for all jobs.
#[derive(Debug)]
pub struct Settings {
    /// Directories.
    pub layout: Layout,
    /// The hook's entry file.
    pub hook: PathBuf,
    /// The worker's environment.
    pub worker: Vec<(OsString, OsString)>,
    /// Refuse jobs without a container.
    pub require_job_container: bool,
    /// A tree to copy into the workspace before the job, in place of a checkout.
    pub checkout: Option<PathBuf>,
    /// Where `uses: OWNER/REPOSITORY@REF` finds actions: `DIR/OWNER/REPOSITORY/REF`.
    pub actions: Option<PathBuf>,
    /// Waiting times.
    pub timings: Timings,
}

/// What is left to say after a job.
#[derive(Debug)]
pub struct Finished {
    /// Everything, for the result file.
    pub report: Value,
    /// Whether the job passed, `continue-on-error` considered.
    pub passed: bool,
}

/// A step's limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) deadline: Option<Instant>,
    pub(crate) cancellable: bool,
}

/// How a step is announced and when it runs.
struct Head {
    title: String,
    id: Option<String>,
    stage: &'static str,
    condition: Condition,
    continue_on_error: bool,
    timeout: Option<Duration>,
}

/// An action's last stage, registered when its first one began.
struct Post {
    title: String,
    id: String,
    step: Step,
    action: Action,
}

/// A job under way.
pub struct JobRun<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) job: &'a Job,
    pub(crate) run: Run,
    pub(crate) console: Console,
    pub(crate) cancel: Cancel,
    pub(crate) triggers: Vec<Trigger>,
    /// Workflow and job `env`, and what steps added.
    pub(crate) env: Variables,
    /// Entries of `GITHUB_PATH`, the latest last.
    pub(crate) paths: Vec<String>,
    pub(crate) is_alpine: Option<bool>,
    pub(crate) state: Value,
    container: Option<Described>,
    services: Vec<(String, Described)>,
    pub(crate) files: FileCommands,
    /// State saved by an action's stages, by the step's id.
    pub(crate) saved: BTreeMap<String, Vec<(String, String)>>,
    posts: Vec<Post>,
    records: Vec<Record>,
    failed: bool,
    /// Nothing runs after a failed set-up.
    stopped: bool,
    pub(crate) tracking_id: String,
}

impl<'a> JobRun<'a> {
    /// Gets ready to run one job.
    ///
    /// # Errors
    /// No random identifier can be made.
    pub fn new(
        settings: &'a Settings,
        workflow: &Workflow,
        job: &'a Job,
        run: Run,
        console: Console,
        mut cancel: Cancel,
        triggers: Vec<Trigger>,
    ) -> std::io::Result<Self> {
        let mut env = Variables::default();
        env.extend(&workflow.env);
        env.extend(&job.env);
        if let Some(timeout) = job.timeout
            && let Some(due) = Instant::now().checked_add(timeout)
        {
            cancel.at(due, Cause::JobTimeout);
        }
        Ok(Self {
            settings,
            job,
            run,
            console,
            cancel,
            triggers,
            env,
            paths: Vec::new(),
            is_alpine: None,
            state: Value::Null,
            container: None,
            services: Vec::new(),
            files: FileCommands::default(),
            saved: BTreeMap::new(),
            posts: Vec::new(),
            records: Vec::new(),
            failed: false,
            stopped: false,
            tracking_id: format!("github_{}", hook::guid()?),
        })
    }

    /// Runs the job to its end.
    #[must_use]
    pub fn run(mut self) -> Finished {
        let start = Instant::now();
        let title = self.job.name.clone().unwrap_or_else(|| self.job.id.clone());
        self.console.head(&format!("{} / {title}", self.run.workflow));
        let mut stuck = Vec::new();
        self.step(Head::of("Set up job"), |this, record, _| this.set_up(record, &mut stuck));
        self.stopped = self.failed;

        let steps = self.identified();
        let containers = self.job.container.is_some() || !self.job.services.is_empty();
        let mut prepared = false;
        if containers {
            self.step(Head::of("Initialize containers"), |this, record, bounds| {
                prepared = true;
                this.prepare(record, bounds)
            });
        }
        for (id, step) in &steps {
            self.pre(id, step);
        }
        for (id, step) in &steps {
            let head = Head {
                title: step.title(),
                id: Some(id.clone()),
                stage: "main",
                condition: step.condition,
                continue_on_error: step.continue_on_error,
                timeout: step.timeout,
            };
            self.step(head, |this, record, bounds| this.main(id, step, record, bounds));
        }
        while let Some(post) = self.posts.pop() {
            let head =
                Head { id: Some(post.id.clone()), stage: "post", ..Head::always(&format!("Post {}", post.title)) };
            self.step(head, |this, record, bounds| {
                this.with_files(&post.id, record, |this, record| {
                    this.action(&post.id, &post.step, &post.action, "post", record, bounds)
                })
            });
        }
        if prepared {
            self.step(Head::always("Stop containers"), |this, record, bounds| {
                let context = this.run.variables(&this.settings.layout);
                this.call(record, bounds, "cleanup_job", object([]), Expect::State, &context).0
            });
        }
        let orphans = self.complete(&mut stuck);
        self.finish(start, &orphans, &stuck)
    }

    fn set_up(&mut self, record: &mut Record, stuck: &mut Vec<String>) -> Ended {
        let settings = self.settings;
        let hook = settings.hook.display();
        self.console.say(record, Look::Plain, &format!("Runner name: '{}'", self.run.runner_name));
        self.console.say(record, Look::Plain, &format!("Container hook: {hook}"));
        let truthy = |text: &str| matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "$true");
        let required = settings.require_job_container
            || hook::lookup(&settings.worker, "ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER").is_some_and(truthy);
        if required && self.job.container.is_none() {
            let text = "this runner takes only jobs with a job container: add a `container:` to the job";
            self.console.say(record, Look::Error, text);
            return Ended::Failure;
        }
        match self.lay_out() {
            Ok(left) => stuck.extend(left),
            Err(error) => {
                self.console.say(record, Look::Error, &error);
                return Ended::Failure;
            }
        }
        for line in stuck {
            self.console.say(record, Look::Warning, &format!("cannot remove what an earlier job left: {line}"));
        }
        Ended::Success
    }

    fn lay_out(&self) -> Result<Vec<String>, String> {
        let layout = &self.settings.layout;
        let stuck = layout
            .begin(&self.run.event())
            .map_err(|error| format!("cannot lay out {}: {error}", layout.work.display()))?;
        if let Some(source) = &self.settings.checkout {
            copy_tree(source, &layout.workspace())
                .map_err(|error| format!("cannot copy {} into the workspace: {error}", source.display()))?;
        }
        for step in &self.job.steps {
            let Work::Repository { repository, reference, .. } = &step.work else { continue };
            let name = Path::new(repository).join(reference);
            let source =
                self.settings.actions.as_ref().map(|folder| folder.join(&name)).filter(|folder| folder.is_dir());
            let source = source.ok_or_else(|| {
                format!(
                    "{repository}@{reference} cannot be downloaded here: put it in DIR/{} of --actions DIR",
                    name.display()
                )
            })?;
            copy_tree(&source, &layout.actions().join(&name))
                .map_err(|error| format!("cannot take {repository}@{reference}: {error}"))?;
        }
        Ok(stuck)
    }

    /// Steps with their names in the context; a name used again gets a number.
    fn identified(&self) -> Vec<(String, Step)> {
        let mut used: BTreeMap<String, usize> = BTreeMap::new();
        self.job
            .steps
            .iter()
            .map(|step| {
                let name = step.context_name();
                let count = used.entry(name.clone()).or_default();
                *count += 1;
                (if *count == 1 { name } else { format!("{name}_{count}") }, step.clone())
            })
            .collect()
    }

    fn holds(&self, condition: Condition) -> bool {
        let cancelled = self.cancel.cause().is_some();
        match condition {
            Condition::Always => true,
            Condition::Cancelled => cancelled,
            Condition::Success => !cancelled && !self.failed,
            Condition::Failure => !cancelled && self.failed,
        }
    }

    fn step(&mut self, head: Head, body: impl FnOnce(&mut Self, &mut Record, Bounds) -> Ended) {
        let mut record = Record::new(head.title, head.id, head.stage);
        let start = Instant::now();
        self.cancel.check(start);
        if !self.stopped && self.cancel.cause() != Some(Cause::Shutdown) && self.holds(head.condition) {
            self.console.begin(&record);
            let bounds = Bounds {
                deadline: head.timeout.and_then(|timeout| start.checked_add(timeout)),
                cancellable: !matches!(head.condition, Condition::Always | Condition::Cancelled),
            };
            record.outcome = body(self, &mut record, bounds);
            record.conclusion = match record.outcome {
                Ended::Failure if head.continue_on_error => Ended::Success,
                other => other,
            };
            self.failed |= record.conclusion == Ended::Failure;
            record.duration = start.elapsed();
        }
        record.state = self.state.clone();
        self.console.end(&record);
        self.records.push(record);
    }

    fn prepare(&mut self, record: &mut Record, bounds: Bounds) -> Ended {
        let proxies = request::proxies(|name| hook::lookup(&self.settings.worker, name).map(str::to_owned));
        let arguments = request::prepare_job(self.job, &self.settings.layout, &proxies);
        let count = self.job.services.len();
        let expect = if self.job.container.is_some() { Expect::Container(count) } else { Expect::Services(count) };
        let context = self.run.variables(&self.settings.layout);
        let (ended, response) = self.call(record, bounds, "prepare_job", arguments, expect, &context);
        if let Some(response) = response {
            self.is_alpine = response.is_alpine;
            self.container = response.container;
            let names = self.job.services.iter().map(|(name, _)| name.clone());
            self.services = names.zip(response.services).collect();
        }
        ended
    }

    /// The first stage of an action that is there before the steps begin. A local action is not, so its `pre` never runs.
    fn pre(&mut self, id: &str, step: &Step) {
        if self.stopped || !matches!(step.work, Work::Repository { .. }) {
            return;
        }
        let Ok(action) = self.resolve(&step.work) else { return };
        let has_pre = match &action.runs {
            Runs::Docker { pre, .. } | Runs::Node { pre, .. } => pre.is_some(),
        };
        if has_pre {
            let head = Head { id: Some(id.to_owned()), stage: "pre", ..Head::always(&format!("Pre {}", step.title())) };
            self.step(head, |this, record, bounds| {
                this.with_files(id, record, |this, record| {
                    this.register(id, step, &action);
                    this.action(id, step, &action, "pre", record, bounds)
                })
            });
        }
    }

    fn main(&mut self, id: &str, step: &Step, record: &mut Record, bounds: Bounds) -> Ended {
        self.with_files(id, record, |this, record| match &step.work {
            Work::Run { script, shell, directory } => {
                this.script(id, step, script, shell.as_deref(), directory.as_deref(), record, bounds)
            }
            Work::Image { image, with } => this.image(id, step, image, with, record, bounds),
            work @ (Work::Local { .. } | Work::Repository { .. }) => match this.resolve(work) {
                Ok(action) => {
                    let local = matches!(work, Work::Local { .. });
                    if local
                        && matches!(&action.runs, Runs::Docker { pre: Some(_), .. } | Runs::Node { pre: Some(_), .. })
                    {
                        let text = format!("{}: the runner does not run `pre` of a local action", step.title());
                        this.console.say(record, Look::Warning, &text);
                    }
                    this.register(id, step, &action);
                    this.action(id, step, &action, "main", record, bounds)
                }
                Err(error) => {
                    this.console.say(record, Look::Error, &error.to_string());
                    Ended::Failure
                }
            },
        })
    }

    fn resolve(&self, work: &Work) -> Result<Action, ActionError> {
        let layout = &self.settings.layout;
        let folder = match work {
            Work::Local { path, .. } => layout.workspace().join(path),
            Work::Repository { repository, path, reference, .. } => {
                layout.actions().join(repository).join(reference).join(path)
            }
            Work::Run { .. } | Work::Image { .. } => layout.workspace(),
        };
        action::load(&folder)
    }

    fn register(&mut self, id: &str, step: &Step, action: &Action) {
        let has_post = match &action.runs {
            Runs::Docker { post, .. } | Runs::Node { post, .. } => post.is_some(),
        };
        if has_post && !self.posts.iter().any(|post| post.id == id) {
            self.posts.push(Post {
                title: step.title(),
                id: id.to_owned(),
                step: step.clone(),
                action: action.clone(),
            });
        }
    }

    /// Runs something with fresh files for file commands and takes up what it asked for, also when it failed.
    fn with_files(
        &mut self,
        id: &str,
        record: &mut Record,
        body: impl FnOnce(&mut Self, &mut Record) -> Ended,
    ) -> Ended {
        let renewed = hook::guid().and_then(|suffix| self.files.renew(&self.settings.layout.file_commands(), &suffix));
        if let Err(error) = renewed {
            self.console.say(record, Look::Error, &format!("cannot make the step's files: {error}"));
            return Ended::Failure;
        }
        let ended = body(self, record);
        let asked = self.files.read();
        self.env.extend(&asked.env);
        for entry in asked.path {
            self.paths.retain(|known| *known != entry);
            self.paths.push(entry);
        }
        self.saved.entry(id.to_owned()).or_default().extend(asked.state);
        record.outputs.extend(asked.outputs);
        record.summary = asked.summary;
        for error in &asked.errors {
            self.console.say(record, Look::Error, error);
        }
        if ended == Ended::Success && !asked.errors.is_empty() { Ended::Failure } else { ended }
    }

    /// End of the job: processes of the job are killed, the temp folder is emptied.
    fn complete(&mut self, stuck: &mut Vec<String>) -> Vec<(i32, String)> {
        let orphans = kill_orphans(&self.tracking_id);
        for (pid, name) in &orphans {
            self.console.head(&format!("Terminate orphan process: pid ({pid}) ({name})"));
        }
        for line in self.settings.layout.finish() {
            self.console.head(&format!("Cannot remove {line}"));
            stuck.push(line);
        }
        orphans
    }

    fn finish(mut self, start: Instant, orphans: &[(i32, String)], stuck: &[String]) -> Finished {
        let cause = self.cancel.cause();
        let outcome = match cause {
            Some(_) => Ended::Cancelled,
            None if self.failed => Ended::Failure,
            None => Ended::Success,
        };
        let result = if outcome == Ended::Failure && self.job.continue_on_error { Ended::Success } else { outcome };
        let duration = start.elapsed();
        self.console.head(&format!("Job {}: {} ({:.2} s)", self.job.id, outcome.name(), duration.as_secs_f64()));
        let described = |described: &Described| {
            object([
                ("id", described.id.as_deref().into()),
                ("network", described.network.as_deref().into()),
                ("ports", string_map(described.ports.iter().map(|(port, host)| (port, host)))),
            ])
        };
        let services = self.services.iter().map(|(name, service)| (name.clone(), described(service))).collect();
        let steps: Vec<Value> = self.records.iter().map(Record::value).collect();
        let node = self.job.container.as_ref().map(|_| self.node_in_container("node20"));
        let orphans: Vec<Value> = orphans
            .iter()
            .map(|(pid, name)| object([("pid", (*pid).into()), ("name", name.as_str().into())]))
            .collect();
        let report = object([
            ("workflow", self.run.workflow.as_str().into()),
            ("job", self.job.id.as_str().into()),
            ("repository", self.run.repository.as_str().into()),
            ("runner_name", self.run.runner_name.as_str().into()),
            ("run_id", Value::Integer(self.run.run_id.to_string())),
            ("result", result.name().into()),
            ("outcome", outcome.name().into()),
            ("cancelled_because", cause.map(Cause::text).into()),
            ("duration_ms", duration.as_millis().into()),
            ("is_alpine", self.is_alpine.into()),
            ("node", node.into()),
            ("container", self.container.as_ref().map(described).into()),
            ("services", Value::Object(services)),
            ("state", self.state),
            ("orphans", orphans.into()),
            ("not_removed", stuck.to_vec().into()),
            ("steps", steps.into()),
        ]);
        Finished { report, passed: result == Ended::Success }
    }
}

impl Head {
    fn of(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            id: None,
            stage: "main",
            condition: Condition::Success,
            continue_on_error: false,
            timeout: None,
        }
    }

    fn always(title: &str) -> Self {
        Self { condition: Condition::Always, ..Self::of(title) }
    }
}

/// Kills every process whose environment holds the job's tracking id, and names them.
fn kill_orphans(tracking_id: &str) -> Vec<(i32, String)> {
    let wanted = format!("RUNNER_TRACKING_ID={tracking_id}");
    let mut killed = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return killed };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // The descriptor comes first, so that the process looked at is the one killed.
        let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            continue;
        };
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
            && pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
        {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            killed.push((pid, name.trim().to_owned()));
        }
    }
    killed
}
