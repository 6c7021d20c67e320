//! Reading what a hook left in its response file, with every way in which the runner fails on it (protocol section 9).

use crate::json::Value;

/// What the response is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// `prepare_job` of a job with a container and this many services.
    Container(usize),
    /// `prepare_job` of a job with only this many services.
    Services(usize),
    /// Any other command: only the state is looked at.
    State,
}

/// A container as the hook describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// `id`.
    pub id: Option<String>,
    /// `network`.
    pub network: Option<String>,
    /// Container port to host port.
    pub ports: Vec<(String, String)>,
}

/// A response the runner accepts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Response {
    /// Whether JavaScript needs the musl build of node.
    pub is_alpine: Option<bool>,
    /// The job container.
    pub container: Option<Described>,
    /// Services by position.
    pub services: Vec<Described>,
}

/// The result of reading a response file.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The document, if it could be parsed.
    pub document: Option<Value>,
    /// The new state, if one came and the document as a whole has the right types.
    pub state: Option<Value>,
    /// The response, or why the call fails although the hook exited with 0.
    pub result: Result<Response, String>,
}

/// Reads the bytes of a response file; `None` is a file that is gone.
#[must_use]
pub fn read(bytes: Option<&[u8]>, expect: Expect) -> Read {
    let failed = |document, why: String| Read { document, state: None, result: Err(why) };
    let Some(bytes) = bytes else {
        let result = match expect {
            Expect::Container(_) => Err("the response file is gone, and a job container needs a response".to_owned()),
            Expect::Services(_) => Err(null("the response")),
            Expect::State => Ok(Response::default()),
        };
        return Read { document: None, state: None, result };
    };
    let document = match Value::parse(&String::from_utf8_lossy(bytes)) {
        Ok(document) => document,
        Err(error) => return failed(None, format!("the response is not valid: {error}")),
    };
    match document {
        None | Some(Value::Null) => {
            let result = match expect {
                Expect::Container(_) => Err("the response could not be read: it is empty".to_owned()),
                Expect::Services(_) => Err(null("the response")),
                Expect::State => Ok(Response::default()),
            };
            Read { document, state: None, result }
        }
        Some(Value::Object(_)) => bind(document.unwrap_or(Value::Null), expect),
        Some(other) => {
            let why = format!("the response is {}, not an object", other.kind());
            failed(Some(other), why)
        }
    }
}

/// The text of a null dereference in the runner.
fn null(what: &str) -> String {
    format!("Object reference not set to an instance of an object ({what})")
}

/// Types first, as the runner's deserializer does, then what the runner makes of them.
fn bind(document: Value, expect: Expect) -> Read {
    let bound = bind_types(&document, expect);
    let (state, result) = match bound {
        Err(why) => (None, Err(why)),
        Ok((state, bound)) => (state, bound.accept(expect)),
    };
    Read { document: Some(document), state, result }
}

/// `prepare_job`'s members with the right types; nulls are still told apart where the runner trips over them.
#[derive(Default)]
struct Bound {
    is_alpine: Option<bool>,
    context: Option<Context>,
}

#[derive(Default)]
struct Context {
    container: Option<Bare>,
    /// `None` for an explicit null.
    services: Option<Vec<Option<Bare>>>,
}

#[derive(Default)]
struct Bare {
    id: Option<String>,
    network: Option<String>,
    ports: Option<Vec<(String, String)>>,
}

fn bind_types(document: &Value, expect: Expect) -> Result<(Option<Value>, Bound), String> {
    let state = match document.member("state") {
        None | Some(Value::Null) => None,
        Some(state @ Value::Object(_)) => Some(state.clone()),
        Some(other) => return Err(format!("`state` is {}, not an object", other.kind())),
    };
    if expect == Expect::State {
        return Ok((state, Bound::default()));
    }
    let is_alpine = match document.member("isAlpine") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(value)) => Some(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Some(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Some(false),
        Some(Value::Integer(digits)) => Some(digits != "0"),
        Some(other) => return Err(format!("`isAlpine` is {}, not a boolean", other.kind())),
    };
    let context = match document.member("context") {
        None | Some(Value::Null) => None,
        Some(context @ Value::Object(_)) => {
            let container = match context.member("container") {
                None => None,
                Some(value) => bare(value, "context.container")?,
            };
            let services = match context.member("services") {
                None => Some(Vec::new()),
                Some(Value::Null) => None,
                Some(Value::Array(values)) => Some(
                    values
                        .iter()
                        .enumerate()
                        .map(|(index, value)| bare(value, &format!("context.services[{index}]")))
                        .collect::<Result<_, _>>()?,
                ),
                Some(other) => return Err(format!("`context.services` is {}, not an array", other.kind())),
            };
            Some(Context { container, services })
        }
        Some(other) => return Err(format!("`context` is {}, not an object", other.kind())),
    };
    Ok((state, Bound { is_alpine, context }))
}

fn bare(value: &Value, place: &str) -> Result<Option<Bare>, String> {
    match value {
        Value::Null => return Ok(None),
        Value::Object(_) => {}
        other => return Err(format!("`{place}` is {}, not an object", other.kind())),
    }
    let string = |value: Option<&Value>, name: &str| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(simple @ (Value::Integer(_) | Value::Float(_) | Value::Bool(_))) => Ok(Some(simple.line())),
        Some(other) => Err(format!("`{place}.{name}` is {}, not a string", other.kind())),
    };
    let ports = match value.member("ports") {
        None | Some(Value::Null) => None,
        Some(Value::Object(members)) => {
            let mut ports = Vec::new();
            for (port, host) in members {
                ports.push((port.clone(), string(Some(host), &format!("ports.{port}"))?.unwrap_or_default()));
            }
            Some(ports)
        }
        Some(other) => return Err(format!("`{place}.ports` is {}, not an object", other.kind())),
    };
    Ok(Some(Bare {
        id: string(value.member("id"), "id")?,
        network: string(value.member("network"), "network")?,
        ports,
    }))
}

impl Bound {
    fn accept(self, expect: Expect) -> Result<Response, String> {
        let requested = match expect {
            Expect::State => return Ok(Response::default()),
            Expect::Container(services) | Expect::Services(services) => services,
        };
        let with_container = matches!(expect, Expect::Container(_));
        if with_container && self.is_alpine.is_none() {
            return Err("`isAlpine` is required for a job container".to_owned());
        }
        let mut response = Response { is_alpine: self.is_alpine, ..Response::default() };
        let Some(context) = self.context else { return Ok(response) };
        if let Some(bare) = context.container {
            if !with_container && (bare.id.is_some() || bare.network.is_some()) {
                return Err(null("`context.container` without a job container"));
            }
            response.container =
                Some(Described { id: bare.id, network: bare.network, ports: bare.ports.unwrap_or_default() });
        }
        let services = context.services.ok_or_else(|| null("`context.services`"))?;
        for (index, service) in services.into_iter().enumerate() {
            if index >= requested {
                return Err(format!("Index was out of range (`context.services` has more than {requested} elements)"));
            }
            let service = service.ok_or_else(|| null(&format!("`context.services[{index}]`")))?;
            let ports = service.ports.ok_or_else(|| null(&format!("`context.services[{index}].ports`")))?;
            response.services.push(Described { id: service.id, network: service.network, ports });
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of section 9: the file, and whether the call passes with a job container, services only, otherwise.
    #[test]
    fn the_failure_matrix() {
        let one = |text: &str| format!("{{\"isAlpine\":false,\"context\":{text}}}");
        let rows: Vec<(Option<String>, [bool; 3])> = vec![
            (None, [false, false, true]),
            (Some(String::new()), [false, false, true]),
            (Some(" \n".into()), [false, false, true]),
            (Some("null".into()), [false, false, true]),
            (Some("{}".into()), [false, true, true]),
            (Some(r#"{"isAlpine":false}"#.into()), [true, true, true]),
            (Some("\u{feff}{\"isalpine\":true}\n".into()), [true, true, true]),
            (Some(r#"{"isAlpine":null}"#.into()), [false, true, true]),
            (Some(r#"{"alpine":true}"#.into()), [false, true, true]),
            (Some(r#"{"is_alpine":true}"#.into()), [false, true, true]),
            (Some(r#"{"isAlpine":false}{"isAlpine":false}"#.into()), [false, false, false]),
            (Some(r#"{"isAlpine":false} junk"#.into()), [false, false, false]),
            (Some(r#"{"isAlpine":fal"#.into()), [false, false, false]),
            (Some("[]".into()), [false, false, false]),
            (Some("\"x\"".into()), [false, false, false]),
            (Some("1".into()), [false, false, false]),
            (Some(r#"{"isAlpine":false,"state":[]}"#.into()), [false, false, false]),
            (Some(r#"{"isAlpine":false,"state":"x"}"#.into()), [false, false, false]),
            (Some(r#"{"isAlpine":false,"state":1}"#.into()), [false, false, false]),
            (Some(r#"{"isAlpine":false,"state":null}"#.into()), [true, true, true]),
            (Some(r#"{"isAlpine":false,"state":{}}"#.into()), [true, true, true]),
            (Some(one(r#"{"services":{"db":{"ports":{}}}}"#)), [false, false, true]),
            (Some(one(r#"{"services":null}"#)), [false, false, true]),
            (Some(one(r#"{"services":[{"ports":{}},{"ports":{}}]}"#)), [false, false, true]),
            (Some(one(r#"{"services":[{"id":"x"}]}"#)), [false, false, true]),
            (Some(one(r#"{"services":[{"ports":null}]}"#)), [false, false, true]),
            (Some(one(r#"{"services":[{"ports":[]}]}"#)), [false, false, true]),
            (Some(one(r#"{"container":{"ports":[]}}"#)), [false, false, true]),
            (Some(one(r#"{"container":{"id":"x"}}"#)), [true, false, true]),
            (Some(one(r#"{"container":{"network":"x"}}"#)), [true, false, true]),
            (Some(one(r#"{"container":{"ports":{}}}"#)), [true, true, true]),
            (Some(one(r#"{"services":[{"ports":{"80":8080}}]}"#)), [true, true, true]),
            (Some(one(r#"{"services":[]}"#)), [true, true, true]),
            (Some(one("null")), [true, true, true]),
        ];
        for (file, expected) in rows {
            for (expect, passes) in [Expect::Container(1), Expect::Services(1), Expect::State].into_iter().zip(expected)
            {
                let read = read(file.as_deref().map(str::as_bytes), expect);
                assert_eq!(read.result.is_ok(), passes, "{file:?} for {expect:?}: {:?}", read.result);
            }
        }
    }

    #[test]
    fn only_an_object_replaces_the_state() {
        for (text, state) in [
            (r#"{"isAlpine":true,"state":{"v":1}}"#, Some(r#"{"v":1}"#)),
            (r#"{"isAlpine":true,"state":{}}"#, Some("{}")),
            (r#"{"isAlpine":true,"state":null}"#, None),
            (r#"{"isAlpine":true}"#, None),
            (r#"{"state":{"v":1},"isAlpine":[]}"#, None),
        ] {
            let read = read(Some(text.as_bytes()), Expect::Container(0));
            assert_eq!(read.state.map(|state| state.line()).as_deref(), state, "{text}");
        }
    }

    #[test]
    fn numbers_become_ports() {
        let read =
            read(Some(br#"{"context":{"services":[{"id":"a","ports":{"80":8080,"81":"9"}}]}}"#), Expect::Services(2));
        let services = read.result.unwrap().services;
        assert_eq!(services[0].ports, [("80".into(), "8080".into()), ("81".into(), "9".into())]);
    }
}
