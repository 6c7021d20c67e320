//! The subset of a workflow file this program reads.

use std::time::Duration;

use crate::document::{At, Fields, Mistake, Pairs};
use crate::yaml;

/// A workflow file.
#[derive(Debug, Clone, PartialEq)]
pub struct Workflow {
    /// `name`.
    pub name: Option<String>,
    /// `env`.
    pub env: Pairs,
    /// Its jobs in order.
    pub jobs: Vec<Job>,
}

/// A job; workflow-level `defaults.run` are already in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its key.
    pub id: String,
    /// `name`.
    pub name: Option<String>,
    /// `container`; an empty image is none.
    pub container: Option<Container>,
    /// `services` in order; those with an empty image are left out.
    pub services: Vec<(String, Container)>,
    /// `env`.
    pub env: Pairs,
    /// `defaults.run.shell`.
    pub shell: Option<String>,
    /// `defaults.run.working-directory`.
    pub working_directory: Option<String>,
    /// `timeout-minutes`.
    pub timeout: Option<Duration>,
    /// `continue-on-error`.
    pub continue_on_error: bool,
    /// `steps`.
    pub steps: Vec<Step>,
}

/// A job or service container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Container {
    /// Image reference without `docker://`.
    pub image: String,
    /// `env`.
    pub env: Pairs,
    /// `options`, unparsed; empty text stays.
    pub options: Option<String>,
    /// `volumes`, unparsed.
    pub volumes: Vec<String>,
    /// `ports`, unparsed, exact repetitions left out.
    pub ports: Vec<String>,
    /// `credentials`: user name and perhaps a password.
    pub credentials: Option<(String, Option<String>)>,
    /// `entrypoint` of a service.
    pub entrypoint: Option<String>,
    /// `command` of a service.
    pub command: Option<String>,
}

/// When a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Condition {
    /// Nothing failed and nobody cancelled.
    #[default]
    Success,
    /// Something failed and nobody cancelled.
    Failure,
    /// In any case.
    Always,
    /// After a cancel.
    Cancelled,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// `name`.
    pub name: Option<String>,
    /// `id`.
    pub id: Option<String>,
    /// `if`.
    pub condition: Condition,
    /// `env`.
    pub env: Pairs,
    /// `continue-on-error`.
    pub continue_on_error: bool,
    /// `timeout-minutes`.
    pub timeout: Option<Duration>,
    /// What it does.
    pub work: Work,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// `run`.
    Run {
        /// The script.
        script: String,
        /// `shell`, of the step or by default.
        shell: Option<String>,
        /// `working-directory`, of the step or by default.
        directory: Option<String>,
    },
    /// `uses: docker://IMAGE`.
    Image {
        /// The reference.
        image: String,
        /// `with`.
        with: Pairs,
    },
    /// `uses: ./PATH`.
    Local {
        /// As written.
        path: String,
        /// `with`.
        with: Pairs,
    },
    /// `uses: OWNER/REPOSITORY[/PATH]@REF`.
    Repository {
        /// `OWNER/REPOSITORY`.
        repository: String,
        /// Folder in the repository, or empty.
        path: String,
        /// After the `@`.
        reference: String,
        /// `with`.
        with: Pairs,
    },
}

impl Step {
    /// The name people see.
    #[must_use]
    pub fn title(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        match &self.work {
            Work::Run { script, .. } => format!("Run {}", script.trim().lines().next().unwrap_or_default()),
            Work::Image { image, .. } => format!("Run docker://{image}"),
            Work::Local { path, .. } => format!("Run {path}"),
            Work::Repository { repository, path, reference, .. } if path.is_empty() => {
                format!("Run {repository}@{reference}")
            }
            Work::Repository { repository, path, reference, .. } => format!("Run {repository}/{path}@{reference}"),
        }
    }

    /// The step's name in the context before a number is added: `__run`, `__alpine_3_20`, `__self`, or its `id`.
    #[must_use]
    pub fn context_name(&self) -> String {
        let word = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' }).collect()
        };
        match (&self.id, &self.work) {
            (Some(id), _) => id.clone(),
            (None, Work::Run { .. }) => "__run".to_owned(),
            (None, Work::Image { image, .. }) => format!("__{}", word(image)),
            (None, Work::Local { .. }) => "__self".to_owned(),
            (None, Work::Repository { repository, .. }) => format!("__{}", word(repository)),
        }
    }
}

/// Reads a workflow file.
///
/// # Errors
/// Bad YAML, a key that is not read here, a wrong type, an expression: with line and place.
pub fn parse(text: &str) -> Result<Workflow, Mistake> {
    let node =
        yaml::parse(text).map_err(|error| Mistake { line: error.line, place: String::new(), what: error.what })?;
    let top = At::root(&node).fields(&["name", "on", "env", "defaults", "jobs"])?;
    let defaults = Defaults::read(&top, &Defaults::default())?;
    let jobs = top.need("jobs")?;
    let jobs: Vec<Job> =
        jobs.entries()?.into_iter().map(|(id, at)| job(id, &at, &defaults)).collect::<Result<_, _>>()?;
    if jobs.is_empty() {
        return Err(top.need("jobs")?.mistake("no job"));
    }
    Ok(Workflow { name: top.text("name")?, env: top.pairs("env")?, jobs })
}

#[derive(Default)]
struct Defaults {
    shell: Option<String>,
    directory: Option<String>,
}

impl Defaults {
    fn read(fields: &Fields<'_>, outer: &Self) -> Result<Self, Mistake> {
        let mut found = Self { shell: outer.shell.clone(), directory: outer.directory.clone() };
        if let Some(defaults) = fields.get("defaults")
            && let Some(run) = defaults.fields(&["run"])?.get("run")
        {
            let run = run.fields(&["shell", "working-directory"])?;
            found.shell = run.text("shell")?.or(found.shell);
            found.directory = run.text("working-directory")?.or(found.directory);
        }
        Ok(found)
    }
}

fn job(id: &str, at: &At<'_>, outer: &Defaults) -> Result<Job, Mistake> {
    if !is_identifier(id) {
        return Err(at.mistake("a job id has letters, digits, `-` and `_`, and begins with a letter or `_`"));
    }
    let fields = at.fields(&[
        "name",
        "runs-on",
        "container",
        "services",
        "env",
        "defaults",
        "timeout-minutes",
        "continue-on-error",
        "steps",
    ])?;
    let defaults = Defaults::read(&fields, outer)?;
    let container = fields.get("container").map(|at| container(at, false)).transpose()?;
    let mut services = Vec::new();
    for (name, at) in fields.get("services").map_or(Ok(Vec::new()), At::entries)? {
        services.push((name.to_owned(), self::container(&at, true)?));
    }
    services.retain(|(_, service)| !service.image.is_empty());
    let steps = fields.need("steps")?.items()?;
    let steps: Vec<Step> = steps.iter().map(|at| step(at, &defaults)).collect::<Result<_, _>>()?;
    for (index, step) in steps.iter().enumerate() {
        if let Some(id) = &step.id
            && steps[..index].iter().any(|other| other.id.as_ref() == Some(id))
        {
            return Err(fields.need("steps")?.items()?[index].mistake(format!("id `{id}` is already another step's")));
        }
    }
    Ok(Job {
        id: id.to_owned(),
        name: fields.text("name")?,
        container: container.filter(|container| !container.image.is_empty()),
        services,
        env: fields.pairs("env")?,
        shell: defaults.shell,
        working_directory: defaults.directory,
        timeout: fields.get("timeout-minutes").map(At::minutes).transpose()?,
        continue_on_error: fields.get("continue-on-error").map_or(Ok(false), At::boolean)?,
        steps,
    })
}

fn is_identifier(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn image(at: &At<'_>) -> Result<String, Mistake> {
    let text = at.text()?;
    Ok(text.strip_prefix("docker://").unwrap_or(&text).to_owned())
}

fn container(at: &At<'_>, service: bool) -> Result<Container, Mistake> {
    if at.is_scalar() {
        return Ok(Container { image: image(at)?, ..Container::default() });
    }
    let mut known = vec!["image", "env", "options", "volumes", "ports", "credentials"];
    if service {
        known.extend(["entrypoint", "command"]);
    }
    let fields = at.fields(&known)?;
    let mut ports: Vec<String> = Vec::new();
    for port in fields.texts("ports")? {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let credentials = match fields.get("credentials") {
        None => None,
        Some(at) => {
            let fields = at.fields(&["username", "password"])?;
            fields.text("username")?.map(|name| Ok((name, fields.text("password")?))).transpose()?
        }
    };
    Ok(Container {
        image: fields.get("image").map_or(Ok(String::new()), image)?,
        env: fields.pairs("env")?,
        options: fields.text("options")?,
        volumes: fields.texts("volumes")?,
        ports,
        credentials,
        entrypoint: fields.text("entrypoint")?,
        command: fields.text("command")?,
    })
}

fn step(at: &At<'_>, defaults: &Defaults) -> Result<Step, Mistake> {
    let fields = at.fields(&[
        "name",
        "id",
        "if",
        "run",
        "shell",
        "env",
        "with",
        "working-directory",
        "continue-on-error",
        "timeout-minutes",
        "uses",
    ])?;
    let work = match (fields.get("run"), fields.get("uses")) {
        (Some(run), None) => {
            if let Some(with) = fields.get("with") {
                return Err(with.mistake("`with` belongs to `uses`, not to `run`"));
            }
            Work::Run {
                script: run.text()?,
                shell: fields.text("shell")?.or_else(|| defaults.shell.clone()),
                directory: fields.text("working-directory")?.or_else(|| defaults.directory.clone()),
            }
        }
        (None, Some(uses)) => {
            for name in ["shell", "working-directory"] {
                if let Some(other) = fields.get(name) {
                    return Err(other.mistake(format!("`{name}` belongs to `run`, not to `uses`")));
                }
            }
            self::uses(uses, fields.pairs("with")?)?
        }
        (Some(_), Some(uses)) => return Err(uses.mistake("a step has either `run` or `uses`")),
        (None, None) => return Err(fields.at().mistake("a step needs `run` or `uses`")),
    };
    let id = fields.text("id")?;
    if let (Some(id), Some(at)) = (&id, fields.get("id"))
        && !is_identifier(id)
    {
        return Err(at.mistake("an id has letters, digits, `-` and `_`, and begins with a letter or `_`"));
    }
    Ok(Step {
        name: fields.text("name")?,
        id,
        condition: fields.get("if").map_or(Ok(Condition::Success), condition)?,
        env: fields.pairs("env")?,
        continue_on_error: fields.get("continue-on-error").map_or(Ok(false), At::boolean)?,
        timeout: fields.get("timeout-minutes").map(At::minutes).transpose()?,
        work,
    })
}

fn condition(at: &At<'_>) -> Result<Condition, Mistake> {
    match at.text()?.replace(' ', "").as_str() {
        "success()" => Ok(Condition::Success),
        "failure()" => Ok(Condition::Failure),
        "always()" => Ok(Condition::Always),
        "cancelled()" => Ok(Condition::Cancelled),
        other => Err(at.mistake(format!(
            "`{other}`: only success(), failure(), always() and cancelled() are evaluated by this program"
        ))),
    }
}

fn uses(at: &At<'_>, with: Pairs) -> Result<Work, Mistake> {
    let text = at.text()?;
    if let Some(image) = text.strip_prefix("docker://") {
        return match image {
            "" => Err(at.mistake("no image after `docker://`")),
            image => Ok(Work::Image { image: image.to_owned(), with }),
        };
    }
    if text.starts_with("./") || text == "." {
        return Ok(Work::Local { path: text, with });
    }
    let parts = text.split_once('@').and_then(|(name, reference)| {
        let mut parts = name.splitn(3, '/');
        let (owner, name, path) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
        let plain = |text: &str| !text.is_empty() && !text.split('/').any(|part| matches!(part, ".." | "."));
        (plain(owner) && plain(name) && plain(reference) && (path.is_empty() || plain(path)))
            .then(|| (format!("{owner}/{name}"), path.to_owned(), reference.to_owned()))
    });
    match parts {
        Some((repository, path, reference)) => Ok(Work::Repository { repository, path, reference, with }),
        None => Err(at.mistake(format!("`{text}` is none of docker://IMAGE, ./PATH, OWNER/REPOSITORY[/PATH]@REF"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(job: &str) -> Result<Job, Mistake> {
        let body: String = job.lines().map(|line| format!("    {line}\n")).collect();
        parse(&format!("on: push\njobs:\n  build:\n{body}")).map(|workflow| workflow.jobs[0].clone())
    }

    #[test]
    fn a_whole_job_is_read() {
        let workflow = parse(
            "name: ci
on: [push]
env: {LEVEL: workflow, V: 1.10}
defaults: {run: {shell: bash}}
jobs:
  build:
    runs-on: self-hosted
    container:
      image: docker://node:22
      env: {A: ''}
      options: ''
      volumes: ['/a:/b:ro']
      ports: [80, 80, '8080:80']
      credentials: {username: me, password: pw}
    services:
      db: {image: 'postgres:16', ports: [5432], entrypoint: /x, command: a b}
      none: ''
    env: {LEVEL: job}
    defaults: {run: {working-directory: sub}}
    timeout-minutes: 0.5
    steps:
      - run: |
          echo one
          echo two
      - name: Two
        id: two
        if: always()
        uses: docker://alpine:3.20
        with: {args: -c x, entryPoint: /bin/sh}
        continue-on-error: true
        timeout-minutes: 2
      - uses: ./.github/actions/x
      - uses: octo/act/sub/dir@v1
",
        )
        .unwrap();
        assert_eq!(workflow.env, [("LEVEL".into(), "workflow".into()), ("V".into(), "1.1".into())]);
        let job = &workflow.jobs[0];
        let container = job.container.as_ref().unwrap();
        assert_eq!((container.image.as_str(), container.options.as_deref()), ("node:22", Some("")));
        assert_eq!(container.ports, ["80", "8080:80"]);
        assert_eq!(container.credentials, Some(("me".into(), Some("pw".into()))));
        assert_eq!(job.services.len(), 1);
        assert_eq!(job.services[0].1.command.as_deref(), Some("a b"));
        assert_eq!(job.timeout, Some(Duration::from_secs(30)));
        let titles: Vec<String> = job.steps.iter().map(Step::title).collect();
        assert_eq!(titles, ["Run echo one", "Two", "Run ./.github/actions/x", "Run octo/act/sub/dir@v1"]);
        let names: Vec<String> = job.steps.iter().map(Step::context_name).collect();
        assert_eq!(names, ["__run", "two", "__self", "__octo_act"]);
        assert_eq!(
            job.steps[0].work,
            Work::Run {
                script: "echo one\necho two\n".into(),
                shell: Some("bash".into()),
                directory: Some("sub".into())
            }
        );
        assert!(job.steps[1].continue_on_error && job.steps[1].condition == Condition::Always);
    }

    #[test]
    fn short_and_empty_containers() {
        assert_eq!(one("container: node:22\nsteps: []").unwrap().container.unwrap().image, "node:22");
        assert_eq!(one("container: ''\nsteps: []").unwrap().container, None);
        assert_eq!(one("container: {image: ''}\nsteps: []").unwrap().container, None);
        assert_eq!(one("container:\nsteps: []").unwrap().container, None);
    }

    #[test]
    fn mistakes_name_key_line_and_place() {
        for (job, line, place, what) in [
            ("steps:\n- run: x\n  nmae: y", 6, "jobs.build.steps[0]", "unknown key `nmae`"),
            ("strategy: {}\nsteps: []", 4, "jobs.build", "unknown key `strategy`"),
            ("steps:\n- run: echo ${{ github.sha }}", 5, "jobs.build.steps[0].run", "expressions"),
            ("env: {A: '${{ 1 }}'}\nsteps: []", 4, "jobs.build.env.A", "expressions"),
            ("steps:\n- run: x\n  if: failure() || cancelled()", 6, "jobs.build.steps[0].if", "only success()"),
            ("container: {image: a, entrypoint: b}\nsteps: []", 4, "jobs.build.container", "unknown key `entrypoint`"),
            ("steps:\n- run: x\n  uses: ./y", 6, "jobs.build.steps[0].uses", "either"),
            ("steps:\n- name: x", 5, "jobs.build.steps[0]", "needs `run` or `uses`"),
            ("steps:\n- uses: nothing", 5, "jobs.build.steps[0].uses", "none of"),
            ("steps:\n- uses: a/../..@v1", 5, "jobs.build.steps[0].uses", "none of"),
            ("steps:\n- run: x\n  timeout-minutes: 0", 6, "jobs.build.steps[0].timeout-minutes", "positive"),
            ("steps:\n- run: x\n  continue-on-error: maybe", 6, "jobs.build.steps[0].continue-on-error", "neither"),
            ("steps:\n- run: [x]", 5, "jobs.build.steps[0].run", "text is expected"),
            ("steps: x", 4, "jobs.build.steps", "a list"),
            ("runs-on: x", 4, "jobs.build", "`steps` is missing"),
            ("steps:\n- {run: x, id: a}\n- {run: y, id: a}", 6, "jobs.build.steps[1]", "already another"),
        ] {
            let mistake = one(job).unwrap_err();
            assert_eq!((mistake.line, mistake.place.as_str()), (line, place), "{job}: {mistake}");
            assert!(mistake.what.contains(what), "{job}: {mistake}");
        }
    }
}
