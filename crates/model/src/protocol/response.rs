//! What goes into the response file (protocol text, section 9).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::state::State;

/// The answer to one command. The types leave no way to write what the runner chokes on: `isAlpine` and
/// `context.container` exist exactly when a job container was asked for, services are an array in the order of the
/// request, and `ports` is always an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// For steps and `cleanup_job`: `{}`, which leaves the runner's state alone. It is still written, always, so that
    /// nothing a step has put into the file is read.
    Empty,
    /// For `prepare_job`.
    Prepared(Prepared),
}

/// A prepared job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Sent back with every later call.
    pub state: State,
    /// `None` exactly if `args.container` was null.
    pub container: Option<JobContainer>,
    /// One per requested service, in the request's order: the position is the identity. More than requested is fatal
    /// in the runner.
    pub services: Vec<ContainerContext>,
}

/// The prepared job container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobContainer {
    /// Whether JavaScript actions need the musl build of node, as [`crate::musl`] finds.
    pub is_alpine: bool,
    /// What workflows see of it.
    pub context: ContainerContext,
}

/// A container as workflows see it in `job.container` and `job.services.<name>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerContext {
    /// `….id`; omitted if `None`.
    pub id: Option<String>,
    /// `….network`; omitted if `None`.
    pub network: Option<String>,
    /// Container port to host port, for published ports.
    pub ports: BTreeMap<u16, u16>,
}

impl ContainerContext {
    fn to_value(&self) -> Value {
        let mut members = Map::new();
        for (name, text) in [("id", &self.id), ("network", &self.network)] {
            if let Some(text) = text {
                members.insert(name.to_owned(), Value::from(text.as_str()));
            }
        }
        let ports: Map<String, Value> =
            self.ports.iter().map(|(inside, outside)| (inside.to_string(), Value::from(outside.to_string()))).collect();
        members.insert("ports".to_owned(), Value::Object(ports));
        Value::Object(members)
    }
}

impl Response {
    /// One JSON object on one line, without a line feed.
    #[must_use]
    pub fn to_json(&self) -> String {
        let Self::Prepared(Prepared { state, container, services }) = self else { return "{}".to_owned() };
        let mut context = Map::new();
        let mut document = json!({"state": state.to_value()});
        if let Some(container) = container {
            context.insert("container".to_owned(), container.context.to_value());
            document["isAlpine"] = Value::Bool(container.is_alpine);
        }
        context.insert("services".to_owned(), services.iter().map(ContainerContext::to_value).collect());
        document["context"] = Value::Object(context);
        document.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::JobId;

    fn context(id: &str, ports: &[(u16, u16)]) -> ContainerContext {
        ContainerContext {
            id: Some(id.to_owned()),
            network: Some("runner-a1b2".to_owned()),
            ports: ports.iter().copied().collect(),
        }
    }

    fn prepared(container: Option<JobContainer>, services: Vec<ContainerContext>) -> String {
        Response::Prepared(Prepared {
            state: State { job: JobId::parse("a1b2").expect("well formed") },
            container,
            services,
        })
        .to_json()
    }

    #[test]
    fn steps_answer_with_an_empty_object() {
        assert_eq!(Response::Empty.to_json(), "{}");
    }

    #[test]
    fn a_job_container_has_is_alpine_and_a_context() {
        let container = JobContainer { is_alpine: true, context: context("a1b20", &[]) };
        assert_eq!(
            prepared(Some(container), vec![]),
            r#"{"context":{"container":{"id":"a1b20","network":"runner-a1b2","ports":{}},"services":[]},"isAlpine":true,"state":{"job":"a1b2","v":1}}"#
        );
        let container = JobContainer { is_alpine: false, context: ContainerContext::default() };
        assert_eq!(
            prepared(Some(container), vec![]),
            r#"{"context":{"container":{"ports":{}},"services":[]},"isAlpine":false,"state":{"job":"a1b2","v":1}}"#
        );
    }

    #[test]
    fn services_alone_have_neither_is_alpine_nor_a_container() {
        assert_eq!(
            prepared(None, vec![context("a1b21", &[(5432, 49154), (80, 8080)]), ContainerContext::default()]),
            r#"{"context":{"services":[{"id":"a1b21","network":"runner-a1b2","ports":{"5432":"49154","80":"8080"}},{"ports":{}}]},"state":{"job":"a1b2","v":1}}"#
        );
    }
}
