//! The state the runner carries from call to call (protocol text, section 10).

use serde_json::{Value, json};

use super::json::Node;
use crate::names::JobId;

/// Version of the state's shape; a later shape gets the next number.
const VERSION: u64 = 1;

/// What we return from `prepare_job`: `{"v":1,"job":"<id>"}`. Immutable for the job, so that overlapping calls of
/// background steps cannot disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The job that was prepared.
    pub job: JobId,
}

impl State {
    pub(super) fn to_value(&self) -> Value {
        json!({"v": VERSION, "job": self.job.as_str()})
    }
}

/// The state as it arrived: a hint for finding the job, never proof of anything. A step can rewrite the response file
/// and so choose these bytes; the broker's own records decide.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StateHint {
    /// Null or missing: nothing was prepared, or preparing failed.
    #[default]
    Absent,
    /// Our shape, our version, and the id is well formed.
    Job(JobId),
    /// Anything else: another version, another hook's state, or a forgery.
    Unknown,
}

impl StateHint {
    /// The job id, if the state has our shape.
    #[must_use]
    pub fn job(&self) -> Option<&JobId> {
        match self {
            Self::Job(job) => Some(job),
            Self::Absent | Self::Unknown => None,
        }
    }

    pub(super) fn from_node(node: &Node) -> Self {
        let members = match node {
            Node::Null => return Self::Absent,
            Node::Object(members) => members,
            _ => return Self::Unknown,
        };
        let member = |wanted: &str| members.iter().find(|(name, _)| name == wanted).map(|(_, node)| node);
        match (member("v"), member("job")) {
            (Some(Node::Number(Some(VERSION))), Some(Node::String(job))) => {
                JobId::parse(job).map_or(Self::Unknown, Self::Job)
            }
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::read;
    use super::*;

    #[test]
    fn only_our_shape_is_a_job() {
        let job = |id: &str| StateHint::Job(JobId::parse(id).expect("well formed"));
        for (text, expected) in [
            ("null", StateHint::Absent),
            (r#"{"v":1,"job":"a1b2"}"#, job("a1b2")),
            (r#"{"job":"zz99","v":1,"extra":[{}]}"#, job("zz99")),
            ("{}", StateHint::Unknown),
            (r#"{"v":2,"job":"a1b2"}"#, StateHint::Unknown),
            (r#"{"v":"1","job":"a1b2"}"#, StateHint::Unknown),
            (r#"{"v":1.0,"job":"a1b2"}"#, StateHint::Unknown),
            (r#"{"v":1,"job":"../x"}"#, StateHint::Unknown),
            (r#"{"v":1,"job":"A1B2"}"#, StateHint::Unknown),
            (r#"{"v":1,"job":"a1b2c"}"#, StateHint::Unknown),
            (r#"{"v":1,"job":null}"#, StateHint::Unknown),
            (r#"{"v":1,"job":"é12"}"#, StateHint::Unknown),
            ("[]", StateHint::Unknown),
            (r#""a1b2""#, StateHint::Unknown),
            ("7", StateHint::Unknown),
        ] {
            assert_eq!(StateHint::from_node(&read(text.as_bytes()).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn what_we_return_is_recognised() {
        let job = JobId::parse("k3v9").expect("well formed");
        let text = State { job: job.clone() }.to_value().to_string();
        assert_eq!(StateHint::from_node(&read(text.as_bytes()).unwrap()).job(), Some(&job), "{text}");
    }
}
