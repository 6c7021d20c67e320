//! `runner-sim call`: one request of the caller's making, sent to the hook as the runner would.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cancel::{Cancel, Trigger};
use crate::context::Run;
use crate::hook;
use crate::json::{Value, object};
use crate::layout::Layout;
use crate::process::{self, Control, Launch, Sink, Stream, Timings};
use crate::report::{lines, milliseconds, signals};

/// What to send and how.
#[derive(Debug)]
pub struct Request {
    /// The bytes as given.
    pub bytes: Vec<u8>,
    /// Send them unchanged instead of on one line.
    pub raw: bool,
    /// Put a new file into `responseFile`.
    pub fresh_response: bool,
    /// Where the response is expected, instead of the document's `responseFile`.
    pub response_file: Option<PathBuf>,
}

/// Why a call could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// A document that must be read cannot be.
    #[error("the request is not a JSON object ({0}): use --raw to send it as it is")]
    Request(String),
    /// The hook cannot be started.
    #[error(transparent)]
    Unusable(#[from] hook::Unusable),
    /// A file or a process.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

#[derive(Default)]
struct Collected(Vec<(Stream, String)>);

impl Sink for Collected {
    fn bytes(&mut self, _: Stream, _: &[u8]) {}

    fn line(&mut self, stream: Stream, line: &str) {
        self.0.push((stream, line.to_owned()));
    }
}

/// Makes the call and describes it: `exit_code`, `signal`, `output` (lines with their stream), `response_file`,
/// `response_text` (null when the file is gone), `response` (parsed, or null), `wall_ms`, `signals_sent`,
/// `output_held_open`.
///
/// # Errors
/// The call could not be made at all. A hook that fails is no error.
pub fn call(
    layout: &Layout,
    hook_path: &Path,
    worker: &[(OsString, OsString)],
    run: &Run,
    request: Request,
    control: (Timings, Cancel, Vec<Trigger>),
) -> Result<Value, CallError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| CallError::Io(what, error)
    };
    layout.create().map_err(failed("cannot lay out the work folder"))?;
    let (input, response_file) = prepare(layout, request)?;
    if let Some(path) = &response_file
        && path.parent().is_some_and(Path::is_dir)
    {
        hook::empty_file(path).map_err(failed("cannot make the response file"))?;
    }
    let tracking_id = format!("github_{}", hook::guid().map_err(failed("no random identifier"))?);
    let environment = hook::environment(worker, &run.variables(layout), &tracking_id, &[]);
    let path = hook::lookup(&environment, "PATH").unwrap_or_default();
    let interpreter = hook::interpreter(hook_path, path, &layout.externals())?;
    let launch = Launch {
        program: interpreter.program,
        arguments: interpreter.arguments.into_iter().map(Into::into).collect(),
        environment,
        directory: layout.workspace(),
        input,
    };
    let (timings, mut cancel, mut triggers) = control;
    let mut collected = Collected::default();
    let mut control =
        Control { timings, deadline: None::<Instant>, cancel: &mut cancel, cancellable: true, triggers: &mut triggers };
    let exit = process::run(&launch, &mut control, &mut collected).map_err(failed("cannot start the hook"))?;
    let text = response_file
        .as_ref()
        .and_then(|path| fs::read(path).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let parsed = text.as_deref().and_then(|text| Value::parse(text).ok().flatten());
    Ok(object([
        ("exit_code", exit.code.into()),
        ("signal", exit.signal.into()),
        ("output", lines(&collected.0)),
        ("response_file", response_file.map(|path| path.display().to_string()).into()),
        ("response_text", text.into()),
        ("response", parsed.into()),
        ("wall_ms", milliseconds(exit.wall)),
        ("signals_sent", signals(Some(&exit))),
        ("cancelled_because", exit.cause.map(crate::cancel::Cause::text).into()),
        ("output_held_open", exit.output_held.into()),
    ]))
}

/// The bytes to send and the response file to look at.
fn prepare(layout: &Layout, request: Request) -> Result<(Vec<u8>, Option<PathBuf>), CallError> {
    let document = Value::parse(&String::from_utf8_lossy(&request.bytes));
    let named = |document: &Value| match document.member("responseFile") {
        Some(Value::String(path)) => Some(PathBuf::from(path)),
        _ => None,
    };
    if request.raw {
        let file = request.response_file.or_else(|| document.ok().flatten().as_ref().and_then(named));
        return Ok((request.bytes, file));
    }
    let mut document = match document {
        Ok(Some(document @ Value::Object(_))) => document,
        Ok(Some(other)) => return Err(CallError::Request(format!("it is {}", other.kind()))),
        Ok(None) => return Err(CallError::Request("it is empty".to_owned())),
        Err(error) => return Err(CallError::Request(error.to_string())),
    };
    if request.fresh_response
        && let Value::Object(members) = &mut document
    {
        let file = hook::new_response_file(layout)
            .map_err(|error| CallError::Io("cannot make a response file".to_owned(), error))?;
        let value = Value::String(file.display().to_string());
        match members.iter_mut().find(|(name, _)| name == "responseFile") {
            Some((_, slot)) => *slot = value,
            None => members.push(("responseFile".to_owned(), value)),
        }
    }
    let file = request.response_file.or_else(|| named(&document));
    Ok((hook::input(&document), file))
}
