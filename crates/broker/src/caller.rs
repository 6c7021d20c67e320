//! Who asks, and for which job: the peer's credentials, and what the official runner says of itself.

use std::collections::HashMap;

/// The process at the other end of a connection, as the kernel tells (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id.
    pub pid: i32,
    /// User id.
    pub uid: u32,
}

/// One official runner. Its leftovers are its own, and nobody else's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RunnerKey {
    /// The user it runs as.
    pub uid: u32,
    /// `RUNNER_NAME`, which may contain anything.
    pub name: String,
}

/// A hook call's surroundings.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Which runner.
    pub runner: RunnerKey,
    /// What the job is called.
    pub labels: Labels,
    /// Whether the runner's debug logging is on.
    pub debug: bool,
}

/// Names of a job for people and logs. Never used to find or to allow anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// `GITHUB_REPOSITORY`
    pub repository: String,
    /// `GITHUB_WORKFLOW`
    pub workflow: String,
    /// `GITHUB_RUN_ID`
    pub run_id: String,
    /// `GITHUB_RUN_ATTEMPT`
    pub run_attempt: String,
    /// `GITHUB_JOB`
    pub job: String,
    /// `RUNNER_NAME`
    pub runner: String,
}

/// Longest value of a label in a log.
const LABEL: usize = 200;

impl Caller {
    /// From the variables the hook passes on.
    pub fn new(uid: u32, environment: &HashMap<String, String>) -> Self {
        let label = |name: &str| {
            let value = environment.get(name).map(String::as_str).unwrap_or_default();
            value.chars().filter(|character| !character.is_control()).take(LABEL).collect::<String>()
        };
        Self {
            runner: RunnerKey { uid, name: environment.get("RUNNER_NAME").cloned().unwrap_or_default() },
            labels: Labels {
                repository: label("GITHUB_REPOSITORY"),
                workflow: label("GITHUB_WORKFLOW"),
                run_id: label("GITHUB_RUN_ID"),
                run_attempt: label("GITHUB_RUN_ATTEMPT"),
                job: label("GITHUB_JOB"),
                runner: label("RUNNER_NAME"),
            },
            debug: environment.get("RUNNER_DEBUG").is_some_and(|value| value == "1"),
        }
    }
}

impl Labels {
    /// For `systemctl status`: "job build of octo/widgets (run 123)".
    pub fn describe(&self) -> String {
        let or = |text: &str, otherwise: &str| if text.is_empty() { otherwise.to_owned() } else { text.to_owned() };
        let mut text = format!("job {} of {}", or(&self.job, "?"), or(&self.repository, "?"));
        if !self.run_id.is_empty() {
            text.push_str(&format!(" (run {})", self.run_id));
        }
        text
    }

    /// Journal fields for the guest's lines on the host.
    pub fn journal_fields(&self, job_id: &str) -> Vec<String> {
        [
            ("RUNNER_JOB_ID", job_id),
            ("RUNNER_REPOSITORY", &self.repository),
            ("RUNNER_WORKFLOW", &self.workflow),
            ("RUNNER_RUN_ID", &self.run_id),
            ("RUNNER_JOB", &self.job),
            ("RUNNER_NAME", &self.runner),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_cut_and_carry_no_control_characters() {
        let environment = HashMap::from([
            ("GITHUB_REPOSITORY".to_owned(), "octo/widgets\nMESSAGE=forged".to_owned()),
            ("GITHUB_JOB".to_owned(), "x".repeat(1_000)),
            ("RUNNER_NAME".to_owned(), "rünner 1".to_owned()),
        ]);
        let caller = Caller::new(998, &environment);
        assert_eq!(caller.labels.repository, "octo/widgetsMESSAGE=forged");
        assert_eq!(caller.labels.job.len(), LABEL);
        assert_eq!(caller.runner.name, "rünner 1");
        assert_eq!(caller.labels.journal_fields("k7q2")[0], "RUNNER_JOB_ID=k7q2");
        assert!(caller.labels.describe().ends_with(" of octo/widgetsMESSAGE=forged"));
    }
}
