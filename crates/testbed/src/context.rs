//! Variables the runner gives to a hook call and to a step: the `GITHUB_*` and `RUNNER_*` context, with host paths.

use crate::layout::Layout;

/// Ordered variables; a name comes once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Sets a variable, in its old place if it was there.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, slot)) => value.clone_into(slot),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Sets several.
    pub fn extend<'a>(&mut self, pairs: impl IntoIterator<Item = &'a (String, String)>) {
        for (name, value) in pairs {
            self.set(name, value);
        }
    }

    /// A variable's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All of them, in order.
    #[must_use]
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Changes every value.
    pub fn map_values(&mut self, change: impl Fn(&str) -> String) {
        for (_, value) in &mut self.0 {
            *value = change(value);
        }
    }
}

/// What is known about the run. There is no service behind it, so addresses are only well-formed.
#[derive(Debug, Clone)]
pub struct Run {
    /// `OWNER/NAME`.
    pub repository: String,
    /// Number of the run.
    pub run_id: u64,
    /// Name of the runner.
    pub runner_name: String,
    /// Name of the workflow.
    pub workflow: String,
    /// File name of the workflow.
    pub workflow_file: String,
    /// Id of the job.
    pub job: String,
    /// Debug logging is on.
    pub debug: bool,
}

/// The commit every run is said to be for: nothing is checked out, so there is no true one.
const SHA: &str = "ffac537e6cbbf934b08745a378932722df287a53";

impl Run {
    /// Context variables with host paths, without those that only a step has.
    #[must_use]
    pub fn variables(&self, layout: &Layout) -> Variables {
        let (owner, _) = self.repository.split_once('/').unwrap_or((&self.repository, ""));
        let path = |path: std::path::PathBuf| path.display().to_string();
        let workflow_ref = format!("{}/.github/workflows/{}@refs/heads/main", self.repository, self.workflow_file);
        let mut variables = Variables::default();
        for (name, value) in [
            ("GITHUB_ACTOR", "octocat"),
            ("GITHUB_ACTOR_ID", "583231"),
            ("GITHUB_API_URL", "https://api.github.com"),
            ("GITHUB_BASE_REF", ""),
            ("GITHUB_EVENT_NAME", "push"),
            ("GITHUB_EVENT_PATH", &path(layout.workflow().join("event.json"))),
            ("GITHUB_GRAPHQL_URL", "https://api.github.com/graphql"),
            ("GITHUB_HEAD_REF", ""),
            ("GITHUB_JOB", &self.job),
            ("GITHUB_REF", "refs/heads/main"),
            ("GITHUB_REF_NAME", "main"),
            ("GITHUB_REF_PROTECTED", "false"),
            ("GITHUB_REF_TYPE", "branch"),
            ("GITHUB_REPOSITORY", &self.repository),
            ("GITHUB_REPOSITORY_ID", "1296269"),
            ("GITHUB_REPOSITORY_OWNER", owner),
            ("GITHUB_REPOSITORY_OWNER_ID", "1"),
            ("GITHUB_RETENTION_DAYS", "90"),
            ("GITHUB_RUN_ATTEMPT", "1"),
            ("GITHUB_RUN_ID", &self.run_id.to_string()),
            ("GITHUB_RUN_NUMBER", "1"),
            ("GITHUB_SERVER_URL", "https://github.com"),
            ("GITHUB_SHA", SHA),
            ("GITHUB_TRIGGERING_ACTOR", "octocat"),
            ("GITHUB_WORKFLOW", &self.workflow),
            ("GITHUB_WORKFLOW_REF", &workflow_ref),
            ("GITHUB_WORKFLOW_SHA", SHA),
            ("GITHUB_WORKSPACE", &path(layout.workspace())),
            ("RUNNER_ARCH", architecture()),
            ("RUNNER_ENVIRONMENT", "self-hosted"),
            ("RUNNER_NAME", &self.runner_name),
            ("RUNNER_OS", "Linux"),
            ("RUNNER_TEMP", &path(layout.temp())),
            ("RUNNER_TOOL_CACHE", &path(layout.tools.clone())),
            ("RUNNER_WORKSPACE", &path(layout.job_folder())),
        ] {
            variables.set(name, value);
        }
        if self.debug {
            variables.set("RUNNER_DEBUG", "1");
        }
        variables
    }

    /// The payload of the event that started the run.
    #[must_use]
    pub fn event(&self) -> String {
        use crate::json::{Value, object};
        let (owner, name) = self.repository.split_once('/').unwrap_or((&self.repository, &self.repository));
        object([
            ("after", SHA.into()),
            ("ref", "refs/heads/main".into()),
            (
                "repository",
                object([
                    ("full_name", self.repository.as_str().into()),
                    ("id", Value::Integer("1296269".to_owned())),
                    ("name", name.into()),
                    ("owner", object([("login", owner.into())])),
                ]),
            ),
            ("sender", object([("login", "octocat".into())])),
        ])
        .pretty()
    }
}

/// The runner's word for this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "ARM64",
        "arm" => "ARM",
        "x86" => "X86",
        _ => "X64",
    }
}
