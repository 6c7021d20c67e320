//! Workflow commands in a step's output (`::error::…`, `##[group]…`) and the masking of secrets (protocol section 15.3).

/// Commands the runner knows; anything else between colons is ordinary text.
const KNOWN: [&str; 15] = [
    "add-mask",
    "add-matcher",
    "remove-matcher",
    "add-path",
    "set-env",
    "set-output",
    "save-state",
    "debug",
    "warning",
    "error",
    "notice",
    "group",
    "endgroup",
    "echo",
    "stop-commands",
];

/// A command found in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Lower-case name.
    pub name: String,
    /// Its properties, unescaped.
    pub properties: Vec<(String, String)>,
    /// Its data, unescaped.
    pub data: String,
}

impl Command {
    /// A property's value.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Finds `::name k=v,k=v::data` at the start of a line after spaces, or `##[name k=v;k=v]data` anywhere. `extra` is a
/// name to accept besides the known ones: the token that ends `stop-commands`.
#[must_use]
pub fn parse(line: &str, extra: Option<&str>) -> Option<Command> {
    let known = |name: &str| KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name)) || extra == Some(name);
    let modern = line.trim_start().strip_prefix("::").and_then(|rest| rest.split_once("::"));
    let legacy = || line.split_once("##[").and_then(|(_, rest)| rest.split_once(']'));
    let (head, data, separator, escapes): (_, _, _, &[(&str, &str)]) = match modern {
        Some((head, data)) if known(head.split(' ').next().unwrap_or_default()) => {
            (head, data, ',', &[("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")])
        }
        _ => {
            let (head, data) = legacy()?;
            (head, data, ';', &[("%3B", ";"), ("%0D", "\r"), ("%0A", "\n"), ("%5D", "]")])
        }
    };
    let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
    if !known(name) {
        return None;
    }
    let properties = properties
        .split(separator)
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(key, value)| (key.to_owned(), unescape(value, escapes)))
        .collect();
    let name = if extra == Some(name) { name.to_owned() } else { name.to_ascii_lowercase() };
    let data_escapes: Vec<_> = escapes.iter().copied().filter(|(code, _)| !matches!(*code, "%3A" | "%2C")).collect();
    Some(Command { name, properties, data: unescape(data, &data_escapes) })
}

/// `%25` last, so that an escaped escape stays text.
fn unescape(text: &str, escapes: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (code, plain) in escapes.iter().chain(&[("%25", "%")]) {
        text = text.replace(code, plain);
    }
    text
}

/// Values that must not be shown.
#[derive(Debug, Default)]
pub struct Masks(Vec<String>);

impl Masks {
    /// Hides the value, and each line of it, from now on. Empty text hides nothing.
    pub fn add(&mut self, value: &str) {
        for part in std::iter::once(value).chain(value.lines()) {
            let part = part.trim_end_matches(['\r', '\n']);
            if !part.trim().is_empty() && !self.0.iter().any(|known| known == part) {
                self.0.push(part.to_owned());
            }
        }
        // Longest first: a secret that contains another must go as a whole.
        self.0.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    /// The text with every hidden value replaced by `***`.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.0 {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), "***");
            }
        }
        text
    }
}

/// How a line of the log is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// As it is.
    Plain,
    /// Opens a group.
    Group,
    /// Closes a group.
    EndGroup,
    /// Marked as an error.
    Error,
    /// Marked as a warning.
    Warning,
    /// Marked as a notice.
    Notice,
    /// Only shown when debugging.
    Debug,
    /// Said by this program, not by the runner it stands for.
    Note,
}

impl Look {
    /// The mark the service's raw log puts in front.
    #[must_use]
    pub fn mark(self) -> &'static str {
        match self {
            Self::Plain | Self::Note => "",
            Self::Group => "##[group]",
            Self::EndGroup => "##[endgroup]",
            Self::Error => "##[error]",
            Self::Warning => "##[warning]",
            Self::Notice => "##[notice]",
            Self::Debug => "##[debug]",
        }
    }
}

/// One line of a step's log, masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// How to show it.
    pub look: Look,
    /// The text.
    pub text: String,
}

/// Reads the output of one process: ordinary lines pass, commands take effect. A `stop-commands` left open ends with it.
#[derive(Debug, Default)]
pub struct Interpreter {
    debug: bool,
    echo: bool,
    stopped: Option<String>,
    /// Outputs set by the deprecated command.
    pub outputs: Vec<(String, String)>,
    /// State saved by the deprecated command.
    pub state: Vec<(String, String)>,
    /// A refused command fails the step.
    pub failed: bool,
}

impl Interpreter {
    /// For one process; `debug` shows debug lines and echoes commands.
    #[must_use]
    pub fn new(debug: bool) -> Self {
        Self { debug, echo: debug, ..Self::default() }
    }

    /// What a line of output adds to the log.
    pub fn line(&mut self, line: &str, masks: &mut Masks) -> Vec<Shown> {
        let show = |look: Look, text: &str, masks: &Masks| vec![Shown { look, text: masks.apply(text) }];
        let Some(command) = parse(line, self.stopped.as_deref()) else {
            return show(Look::Plain, line, masks);
        };
        if let Some(token) = &self.stopped {
            if command.name == *token {
                self.stopped = None;
            }
            return show(Look::Plain, line, masks);
        }
        if command.name == "add-mask" {
            if command.data.trim().is_empty() {
                return show(Look::Warning, "add-mask without a value hides nothing", masks);
            }
            masks.add(&command.data);
            return if self.echo { show(Look::Plain, "::add-mask::***", masks) } else { Vec::new() };
        }
        let look = match command.name.as_str() {
            "group" => Look::Group,
            "endgroup" => Look::EndGroup,
            "error" => Look::Error,
            "warning" => Look::Warning,
            "notice" => Look::Notice,
            "debug" if self.debug => Look::Debug,
            "debug" => return Vec::new(),
            _ => return self.effect(&command, line, masks),
        };
        show(look, &command.data, masks)
    }

    fn effect(&mut self, command: &Command, line: &str, masks: &Masks) -> Vec<Shown> {
        let mut shown = Vec::new();
        let mut say = |look: Look, text: &str| shown.push(Shown { look, text: masks.apply(text) });
        if self.echo {
            say(Look::Plain, line);
        }
        match (command.name.as_str(), command.property("name")) {
            ("set-output", Some(name)) => self.outputs.push((name.to_owned(), command.data.clone())),
            ("save-state", Some(name)) => self.state.push((name.to_owned(), command.data.clone())),
            ("echo", _) if command.data.eq_ignore_ascii_case("on") => self.echo = true,
            ("echo", _) if command.data.eq_ignore_ascii_case("off") => self.echo = self.debug,
            ("stop-commands", _) => {
                let token = command.data.as_str();
                if token.is_empty() || KNOWN.iter().any(|known| known.eq_ignore_ascii_case(token)) {
                    say(Look::Error, "stop-commands needs a token that is not a command's name");
                    self.failed = true;
                } else {
                    say(Look::Plain, line);
                    self.stopped = Some(token.to_owned());
                }
            }
            // Problem matchers are not part of this program; the commands are accepted and have no effect.
            ("add-matcher" | "remove-matcher", _) => {}
            ("add-path" | "set-env", _) => {
                say(
                    Look::Error,
                    &format!("the `{}` command is switched off; write to the step's file instead", command.name),
                );
                self.failed = true;
            }
            (name, _) => {
                say(Look::Error, &format!("the `{name}` command cannot be used like this: {line}"));
                self.failed = true;
            }
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &[&str]) -> (Vec<String>, Interpreter) {
        let mut interpreter = Interpreter::new(false);
        let mut masks = Masks::default();
        let mut shown = Vec::new();
        for line in lines {
            for Shown { look, text } in interpreter.line(line, &mut masks) {
                shown.push(format!("{}{text}", look.mark()));
            }
        }
        (shown, interpreter)
    }

    #[test]
    fn lines_and_what_the_log_shows() {
        for (line, shown) in [
            ("plain", vec!["plain"]),
            ("  ::error file=a.c,line=3::no%25%0Away", vec!["##[error]no%\nway"]),
            ("x ::error::not at the start", vec!["x ::error::not at the start"]),
            ("before ##[warning]legacy%3B anywhere", vec!["##[warning]legacy; anywhere"]),
            ("::group::Build", vec!["##[group]Build"]),
            ("::endgroup::", vec!["##[endgroup]"]),
            ("::notice::n", vec!["##[notice]n"]),
            ("::debug::hidden", vec![]),
            ("::unknown::text", vec!["::unknown::text"]),
            ("::error:: and no more", vec!["##[error] and no more"]),
            ("::error without an end", vec!["::error without an end"]),
            ("::ERROR::case", vec!["##[error]case"]),
        ] {
            assert_eq!(run(&[line]).0, shown, "{line}");
        }
    }

    #[test]
    fn masks_hide_from_then_on_and_line_by_line() {
        let (shown, _) =
            run(&["hunter2", "::add-mask::hunter2", "a hunter2 b", "::error::hunter2", "::add-mask::p%0Aqq", "qq p"]);
        assert_eq!(shown, ["hunter2", "a *** b", "##[error]***", "*** ***"]);
    }

    #[test]
    fn stop_commands_until_its_token() {
        let (shown, _) = run(&["::stop-commands::tok", "::error::shown as text", "::tok::", "::error::works"]);
        assert_eq!(shown, ["::stop-commands::tok", "::error::shown as text", "::tok::", "##[error]works"]);
        assert!(run(&["::stop-commands::error"]).1.failed);
    }

    #[test]
    fn refused_and_deprecated_commands() {
        let (shown, after) = run(&["::set-env name=A::1"]);
        assert!(after.failed && shown[0].starts_with("##[error]"), "{shown:?}");
        let (_, after) = run(&["::set-output name=a%3Ab::c%2Cd", "::save-state name=s::t"]);
        assert_eq!(after.outputs, [("a:b".to_owned(), "c%2Cd".to_owned())]);
        assert_eq!(after.state, [("s".to_owned(), "t".to_owned())]);
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line in "[:#\\[\\] a-e%,=;-]{0,40}") {
            let _ = run(&[&line]);
        }
    }
}
