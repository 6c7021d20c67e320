//! What people and machines get to see: the log on the terminal, the record of each step.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use crate::json::{Value, object};
use crate::log_commands::{Interpreter, Look, Masks, Shown};
use crate::process::{Exit, Sink, Stream, signal_number};

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All went well.
    Success,
    /// It failed.
    Failure,
    /// It was cancelled.
    Cancelled,
    /// Its condition did not hold.
    Skipped,
}

impl Ended {
    /// The context's word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

/// Everything known about one step.
#[derive(Debug)]
pub struct Record {
    /// Its title.
    pub name: String,
    /// Its name in the context, for steps of the workflow.
    pub id: Option<String>,
    /// The hook's command, or `host`.
    pub command: Option<&'static str>,
    /// `pre`, `main` or `post`.
    pub stage: &'static str,
    /// Before `continue-on-error`.
    pub outcome: Ended,
    /// After it.
    pub conclusion: Ended,
    /// From header to end.
    pub duration: Duration,
    /// How the process ended; `None` if none was started.
    pub exit: Option<Exit>,
    /// The process's lines, masked.
    pub output: Vec<(Stream, String)>,
    /// The step's log as the service keeps it, masked.
    pub log: Vec<String>,
    /// Why it failed, where the runner would only tell in its own log.
    pub cause: Option<String>,
    /// Outputs it set.
    pub outputs: Vec<(String, String)>,
    /// Its summary.
    pub summary: String,
    /// The request's arguments.
    pub request: Option<Value>,
    /// The response as parsed.
    pub response: Option<Value>,
    /// The job's state after the step.
    pub state: Value,
}

impl Record {
    /// A step about to begin.
    #[must_use]
    pub fn new(name: String, id: Option<String>, stage: &'static str) -> Self {
        Self {
            name,
            id,
            command: None,
            stage,
            outcome: Ended::Skipped,
            conclusion: Ended::Skipped,
            duration: Duration::ZERO,
            exit: None,
            output: Vec::new(),
            log: Vec::new(),
            cause: None,
            outputs: Vec::new(),
            summary: String::new(),
            request: None,
            response: None,
            state: Value::Null,
        }
    }

    /// For the result file.
    #[must_use]
    pub fn value(&self) -> Value {
        let pairs = crate::json::string_map(self.outputs.iter().map(|(name, value)| (name, value)));
        object([
            ("name", self.name.as_str().into()),
            ("id", self.id.as_deref().into()),
            ("command", self.command.into()),
            ("stage", self.stage.into()),
            ("outcome", self.outcome.name().into()),
            ("conclusion", self.conclusion.name().into()),
            ("duration_ms", self.duration.as_millis().into()),
            ("exit_code", self.exit.as_ref().map(|exit| exit.code).into()),
            ("hook_wall_ms", self.exit.as_ref().map(|exit| milliseconds(exit.wall)).into()),
            ("signal", self.exit.as_ref().and_then(|exit| exit.signal).into()),
            ("signals_sent", signals(self.exit.as_ref())),
            (
                "cancelled_because",
                self.exit.as_ref().and_then(|exit| exit.cause).map(crate::cancel::Cause::text).into(),
            ),
            ("output_held_open", self.exit.as_ref().is_some_and(|exit| exit.output_held).into()),
            ("cause", self.cause.as_deref().into()),
            ("output", lines(&self.output)),
            ("log", self.log.clone().into()),
            ("outputs", pairs),
            ("summary", self.summary.as_str().into()),
            ("request", self.request.clone().into()),
            ("response", self.response.clone().into()),
            ("state", self.state.clone()),
        ])
    }
}

/// Milliseconds with three decimals: hook calls are short.
#[must_use]
pub fn milliseconds(time: Duration) -> Value {
    let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    Value::Float(f64::from(micros) / 1000.0)
}

/// Signals sent to a process, for a result.
#[must_use]
pub fn signals(exit: Option<&Exit>) -> Value {
    let sent = exit.map_or(&[][..], |exit| &exit.sent);
    let values: Vec<Value> = sent
        .iter()
        .map(|(signal, after)| object([("number", signal_number(*signal).into()), ("after_ms", milliseconds(*after))]))
        .collect();
    values.into()
}

/// Lines of output, for a result.
#[must_use]
pub fn lines(output: &[(Stream, String)]) -> Value {
    let values: Vec<Value> = output
        .iter()
        .map(|(stream, text)| object([("stream", stream.name().into()), ("text", text.as_str().into())]))
        .collect();
    values.into()
}

/// The terminal, the masks, the raw log.
pub struct Console {
    out: io::Stdout,
    colours: bool,
    groups: usize,
    /// Values to hide.
    pub masks: Masks,
    /// Receives every byte the processes write, unmasked.
    pub raw: Option<File>,
    raw_error: Option<io::Error>,
}

impl Console {
    /// Writes to standard output, with colours only on a terminal.
    #[must_use]
    pub fn new(raw: Option<File>) -> Self {
        let out = io::stdout();
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { out, colours, groups: 0, masks: Masks::default(), raw, raw_error: None }
    }

    /// Writes a line; a reader that went away does not stop the job.
    fn put(&mut self, colour: &str, text: &str) {
        let mut out = self.out.lock();
        let _ = if self.colours && !colour.is_empty() {
            writeln!(out, "\x1b[{colour}m{text}\x1b[0m")
        } else {
            writeln!(out, "{text}")
        };
    }

    /// A line outside of steps.
    pub fn head(&mut self, text: &str) {
        let text = self.masks.apply(text);
        self.put("1", &text);
    }

    /// Begins a step.
    pub fn begin(&mut self, record: &Record) {
        self.groups = 0;
        let name = self.masks.apply(&record.name);
        self.put("1", &format!("▶ {name}"));
    }

    /// Ends a step.
    pub fn end(&mut self, record: &Record) {
        let name = self.masks.apply(&record.name);
        let took = format!("{:.2} s", record.duration.as_secs_f64());
        let code = record.exit.as_ref().filter(|exit| exit.code != 0).map(|exit| format!("exit code {}, ", exit.code));
        let code = code.unwrap_or_default();
        let (colour, text) = match (record.outcome, record.conclusion) {
            (Ended::Success, _) => ("32", format!("✓ {name} ({took})")),
            (Ended::Skipped, _) => ("2", format!("– {name} (skipped)")),
            (Ended::Cancelled, _) => ("33", format!("✗ {name} (cancelled, {code}{took})")),
            (Ended::Failure, Ended::Success) => ("33", format!("✗ {name} ({code}{took}; the job goes on)")),
            (Ended::Failure, _) => ("31", format!("✗ {name} ({code}{took})")),
        };
        self.put(colour, &text);
    }

    /// Shows a line of a step's log and keeps it. The text is masked already.
    pub fn show(&mut self, record: &mut Record, shown: &Shown) {
        if shown.look != Look::Note {
            record.log.push(format!("{}{}", shown.look.mark(), shown.text));
        }
        if shown.look == Look::EndGroup {
            self.groups = self.groups.saturating_sub(1);
            return;
        }
        let margin = "  ".repeat(1 + self.groups.min(1));
        let (colour, lead) = match shown.look {
            Look::Plain => ("", ""),
            Look::Group => ("1;36", "▾ "),
            Look::Error => ("31", "Error: "),
            Look::Warning => ("33", "Warning: "),
            Look::Notice => ("36", "Notice: "),
            Look::Debug => ("35", "Debug: "),
            Look::Note | Look::EndGroup => ("2", "(runner-sim) "),
        };
        for (index, line) in shown.text.split('\n').enumerate() {
            let lead = if index == 0 { lead } else { "" };
            self.put(colour, &format!("{margin}{lead}{line}"));
        }
        if shown.look == Look::Group {
            self.groups += 1;
        }
    }

    /// A group of the runner's own, closed at once: the log has all of it, the terminal its title, as the service's pages
    /// show it. Without a title the terminal shows nothing; with `unfolded` it shows everything.
    pub fn fold(&mut self, record: &mut Record, title: &str, lines: &[String], unfolded: bool, show_title: bool) {
        if unfolded {
            self.say(record, Look::Group, title);
            for line in lines {
                self.say(record, Look::Plain, line);
            }
            self.say(record, Look::EndGroup, "");
            return;
        }
        let title = self.masks.apply(title);
        record.log.push(format!("{}{title}", Look::Group.mark()));
        record.log.extend(lines.iter().map(|line| self.masks.apply(line)));
        record.log.push(Look::EndGroup.mark().to_owned());
        if show_title {
            self.put("2", &format!("  ▸ {title}"));
        }
    }

    /// The runner says something in a step's log.
    pub fn say(&mut self, record: &mut Record, look: Look, text: &str) {
        let text = self.masks.apply(text);
        self.show(record, &Shown { look, text });
    }

    /// The first error of the raw log, if it could not be written.
    pub fn raw_error(&mut self) -> Option<io::Error> {
        self.raw_error.take()
    }
}

/// Feeds a process's output to log and record.
pub struct StepSink<'a> {
    /// Terminal and masks.
    pub console: &'a mut Console,
    /// The step.
    pub record: &'a mut Record,
    /// Commands in its output.
    pub interpreter: &'a mut Interpreter,
}

impl Sink for StepSink<'_> {
    fn bytes(&mut self, _: Stream, bytes: &[u8]) {
        if let Some(raw) = &mut self.console.raw
            && let Err(error) = raw.write_all(bytes)
        {
            self.console.raw_error.get_or_insert(error);
            self.console.raw = None;
        }
    }

    fn line(&mut self, stream: Stream, line: &str) {
        for shown in self.interpreter.line(line, &mut self.console.masks) {
            self.console.show(self.record, &shown);
        }
        // After the interpreter, so that a mask hides its own line here.
        self.record.output.push((stream, self.console.masks.apply(line)));
    }
}
