//! Environment variables of containers and steps (protocol text, section 12).
//!
//! Values are carried byte for byte; nothing is expanded. Precedence in a step: image, then container creation, then
//! the step's own variables, then the computed `PATH`.

use std::collections::HashMap;
use std::fmt;

/// The `PATH` of a container whose image and creation environment name none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest `NAME=value` (or argument) in bytes that Linux accepts: `MAX_ARG_STRLEN`, 32 pages of 4 KiB, less the
/// closing NUL. execve(2).
pub const MAX_STRING: usize = 128 * 1024 - 1;

/// What arguments and environment may take together in bytes: a quarter of the default 8 MiB stack limit. execve(2).
pub const MAX_TOTAL: usize = 2 * 1024 * 1024;

/// Room the kernel takes from [`MAX_TOTAL`] for the program's path and the auxiliary strings.
const RESERVED: usize = 4096 + 512;

/// Variables in the order they were given, each name once.
///
/// `Debug` prints names only: values may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    /// No variables.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Sets `name`, in its old place if it is known, at the end otherwise. Linear; for many at once use
    /// [`Environment::overlay`].
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self.variables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.variables.push((name, value)),
        }
    }

    /// Sets `name` unless it has a value.
    pub fn insert_default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.variables.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Sets every variable of `upper`, which wins over `self`.
    pub fn overlay(&mut self, upper: &Self) {
        let known: HashMap<&str, usize> =
            self.variables.iter().enumerate().map(|(index, (name, _))| (name.as_str(), index)).collect();
        // Names within `upper` are unique, so new ones need no second look.
        let places: Vec<Option<usize>> = upper.iter().map(|(name, _)| known.get(name).copied()).collect();
        for ((name, value), place) in upper.variables.iter().zip(places) {
            match place {
                Some(index) => self.variables[index].1.clone_from(value),
                None => self.variables.push((name.clone(), value.clone())),
            }
        }
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many variables there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.variables.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty()
    }

    /// The `NAME=value` strings of execve(2), without NUL.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        self.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Takes `variables` whose names the caller has found to be unique.
    pub(crate) fn from_unique(variables: Vec<(String, String)>) -> Self {
        Self { variables }
    }
}

impl FromIterator<(String, String)> for Environment {
    /// Of two values for one name the later stays, in the place of the first.
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut unique: Vec<(String, String)> = Vec::new();
        for (name, value) in variables {
            match places.get(&name) {
                Some(&index) => unique[index].1 = value,
                None => {
                    places.insert(name.clone(), unique.len());
                    unique.push((name, value));
                }
            }
        }
        Self::from_unique(unique)
    }
}

impl From<Environment> for Vec<(String, String)> {
    fn from(environment: Environment) -> Self {
        environment.variables
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.iter().map(|(name, _)| name)).finish()
    }
}

/// Why an environment cannot be given to a program. Names variables, never shows their values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironError {
    /// An entry of the image's configuration cannot be a variable.
    #[error("the image's environment entry {position} {problem}; rebuild the image without it")]
    Image {
        /// Counted from 1.
        position: usize,
        /// Reads after the position.
        problem: &'static str,
    },
    /// One variable alone is longer than Linux can pass to a program.
    #[error(
        "the environment variable {name} takes {bytes} bytes with its name; Linux passes at most {MAX_STRING} \
         to a program: write the value to a file instead"
    )]
    VariableTooLong {
        /// Its name, shortened for display.
        name: String,
        /// Length of `NAME=value`.
        bytes: usize,
    },
    /// One argument alone is longer than Linux can pass to a program.
    #[error(
        "argument {position} takes {bytes} bytes; Linux passes at most {MAX_STRING} to a program: write it to a \
         file instead"
    )]
    ArgumentTooLong {
        /// Counted from 0, the program's own name.
        position: usize,
        /// Its length.
        bytes: usize,
    },
    /// All strings together are too much.
    #[error(
        "arguments and environment take {bytes} bytes; Linux passes at most {MAX_TOTAL} to a program{}",
        largest_hint(largest.as_ref())
    )]
    TotalTooLong {
        /// What the kernel would count.
        bytes: usize,
        /// The longest variable's name (shortened for display) and length.
        largest: Option<(String, usize)>,
    },
}

fn largest_hint(largest: Option<&(String, usize)>) -> String {
    match largest {
        Some((name, bytes)) => format!(": the largest variable is {name} with {bytes} bytes"),
        None => String::new(),
    }
}

/// The environment a container is created with: image, then `options_env` (`--env` in the create options), then
/// `request` (the hook call's variables, which carry `HOME=/github/home` for job and action containers).
///
/// `GITHUB_ACTIONS` is always `true`, `CI` is `true` unless the request or the options give it, and `PATH` has a value.
/// `HOME` is added by [`set_default_home`], once the user is known.
///
/// # Errors
/// When an entry of `image_env` has no name or holds a NUL. Entries without `=` are ignored, as container engines do.
pub fn container_environment(
    image_env: &[String],
    request: &Environment,
    options_env: &Environment,
) -> Result<Environment, EnvironError> {
    let mut image = Vec::with_capacity(image_env.len());
    for (index, entry) in image_env.iter().enumerate() {
        let refuse = |problem| Err(EnvironError::Image { position: index + 1, problem });
        match entry.split_once('=') {
            _ if entry.contains('\0') => return refuse("contains a NUL character"),
            Some(("", _)) => return refuse("has no name"),
            Some((name, value)) => image.push((name.to_owned(), value.to_owned())),
            None => {}
        }
    }
    let mut environment: Environment = image.into_iter().collect();
    environment.overlay(options_env);
    environment.overlay(request);
    environment.insert("GITHUB_ACTIONS", "true");
    if options_env.get("CI").is_none() && request.get("CI").is_none() {
        environment.insert("CI", "true");
    }
    environment.insert_default("PATH", DEFAULT_PATH);
    Ok(environment)
}

/// Gives a container environment without `HOME` the home directory of its user, as container engines do. What image,
/// options or request say about `HOME` stands.
pub fn set_default_home(environment: &mut Environment, home: &str) {
    environment.insert_default("HOME", home);
}

/// The environment of a step in a container created with `container_env`.
///
/// `step_env` wins over the container. With a non-empty `prepend_path` (most recent first) `PATH` is those entries
/// before the *container's* `PATH`, whatever the step says about `PATH`; empty entries, which would mean the current
/// directory, are dropped.
#[must_use]
pub fn step_environment(container_env: &Environment, step_env: &Environment, prepend_path: &[String]) -> Environment {
    let mut environment = container_env.clone();
    environment.overlay(step_env);
    let mut entries: Vec<&str> = prepend_path.iter().map(String::as_str).filter(|entry| !entry.is_empty()).collect();
    if !entries.is_empty() {
        entries.push(container_env.get("PATH").filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH));
        environment.insert("PATH", entries.join(":"));
    }
    environment
}

/// Checks that Linux can start a program with these `arguments` (the program's name first) and `environment`, so that
/// the user reads which string is too long instead of "argument list too long".
///
/// # Errors
/// When one string or all of them together exceed the kernel's limits.
pub fn check_exec_size<A: AsRef<[u8]>>(arguments: &[A], environment: &Environment) -> Result<(), EnvironError> {
    // The kernel counts each string with its NUL and one pointer to it.
    const PER_STRING: usize = 1 + size_of::<u64>();
    let mut total = RESERVED;
    for (position, argument) in arguments.iter().enumerate() {
        let bytes = argument.as_ref().len();
        if bytes > MAX_STRING {
            return Err(EnvironError::ArgumentTooLong { position, bytes });
        }
        total = total.saturating_add(bytes + PER_STRING);
    }
    let mut largest: Option<(&str, usize)> = None;
    for (name, value) in environment.iter() {
        let bytes = name.len() + 1 + value.len();
        if bytes > MAX_STRING {
            return Err(EnvironError::VariableTooLong { name: display_name(name), bytes });
        }
        if largest.is_none_or(|(_, most)| bytes > most) {
            largest = Some((name, bytes));
        }
        total = total.saturating_add(bytes + PER_STRING);
    }
    if total > MAX_TOTAL {
        let largest = largest.map(|(name, bytes)| (display_name(name), bytes));
        return Err(EnvironError::TotalTooLong { bytes: total, largest });
    }
    Ok(())
}

/// A variable's name as a message shows it: one line, at most 64 characters.
pub(crate) fn display_name(name: &str) -> String {
    const SHOWN: usize = 64;
    let mut shown = String::new();
    for c in name.chars().take(SHOWN) {
        match c {
            // `escape_debug` is for literals; in a message a quote is only a quote.
            '"' | '\'' | '\\' => shown.push(c),
            other => shown.extend(other.escape_debug()),
        }
    }
    if name.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_environment_keeps_order_and_hides_values() {
        let mut environment = env(&[("B", "1"), ("A", "2"), ("B", "3")]);
        environment.insert("A", "hunter2");
        environment.insert("C", "");
        assert_eq!(environment.to_strings(), ["B=3", "A=hunter2", "C="]);
        assert_eq!((environment.get("C"), environment.get("D")), (Some(""), None));
        assert_eq!(format!("{environment:?}"), r#"{"B", "A", "C"}"#);
    }

    #[test]
    fn container_precedence_is_image_options_request() {
        let environment = container_environment(
            &strings(&["PATH=/img/bin", "A=image", "B=image", "C=image", "HOME=/root", "IGNORED", "E=x=y"]),
            &env(&[("C", "request"), ("HOME", "/github/home")]),
            &env(&[("B", "options"), ("C", "options")]),
        )
        .unwrap();
        assert_eq!(
            environment.to_strings(),
            [
                "PATH=/img/bin",
                "A=image",
                "B=options",
                "C=request",
                "HOME=/github/home",
                "E=x=y",
                "GITHUB_ACTIONS=true",
                "CI=true"
            ]
        );
    }

    #[test]
    fn ci_is_true_unless_given_by_the_workflow() {
        let build = |image: &[&str], request: &[(&str, &str)], options: &[(&str, &str)]| {
            let environment = container_environment(&strings(image), &env(request), &env(options)).unwrap();
            assert_eq!(environment.get("GITHUB_ACTIONS"), Some("true"));
            environment.get("CI").unwrap().to_owned()
        };
        assert_eq!(build(&[], &[], &[]), "true");
        assert_eq!(build(&["CI=image"], &[], &[]), "true");
        assert_eq!(build(&[], &[("CI", "false"), ("GITHUB_ACTIONS", "no")], &[]), "false");
        assert_eq!(build(&[], &[], &[("CI", "")]), "");
    }

    #[test]
    fn home_and_path_have_defaults_that_give_way() {
        let mut bare = container_environment(&[], &env(&[]), &env(&[])).unwrap();
        set_default_home(&mut bare, "/home/app");
        assert_eq!((bare.get("PATH"), bare.get("HOME")), (Some(DEFAULT_PATH), Some("/home/app")));
        let mut given = container_environment(&strings(&["HOME=/img"]), &env(&[("PATH", "/p")]), &env(&[])).unwrap();
        set_default_home(&mut given, "/home/app");
        assert_eq!((given.get("PATH"), given.get("HOME")), (Some("/p"), Some("/img")));
    }

    #[test]
    fn broken_image_entries_are_named_by_position() {
        for (entry, problem) in [("=secret", "has no name"), ("A=se\0cret", "contains a NUL character")] {
            let error = container_environment(&strings(&["OK=1", entry]), &env(&[]), &env(&[])).unwrap_err();
            assert_eq!(error, EnvironError::Image { position: 2, problem });
            assert!(!error.to_string().contains("cret"), "{error}");
        }
    }

    #[test]
    fn step_path_rules() {
        let container = env(&[("PATH", "/img/bin"), ("HOME", "/github/home"), ("A", "container")]);
        let path = |container: &Environment, step: &[(&str, &str)], prepend: &[&str]| {
            step_environment(container, &env(step), &strings(prepend)).get("PATH").map(str::to_owned)
        };
        assert_eq!(path(&container, &[], &[]).unwrap(), "/img/bin");
        assert_eq!(path(&container, &[("PATH", "/step")], &[]).unwrap(), "/step");
        assert_eq!(path(&container, &[("PATH", "/step")], &["/b c", "/a=1"]).unwrap(), "/b c:/a=1:/img/bin");
        assert_eq!(path(&container, &[], &["", "/a", ""]).unwrap(), "/a:/img/bin");
        assert_eq!(path(&container, &[], &[""]).unwrap(), "/img/bin");
        assert_eq!(path(&env(&[("PATH", "")]), &[], &["/a"]).unwrap(), format!("/a:{DEFAULT_PATH}"));
        assert_eq!(path(&env(&[]), &[], &["/a"]).unwrap(), format!("/a:{DEFAULT_PATH}"));
        assert_eq!(path(&env(&[]), &[], &[]), None);
        let step = step_environment(&container, &env(&[("A", "step"), ("INPUT_FETCH-DEPTH", "1")]), &[]);
        assert_eq!(step.to_strings(), ["PATH=/img/bin", "HOME=/github/home", "A=step", "INPUT_FETCH-DEPTH=1"]);
    }

    #[test]
    fn exec_limits_name_the_culprit() {
        let longest = "x".repeat(MAX_STRING - 2);
        assert_eq!(check_exec_size(&["sh"], &env(&[("A", &longest)])), Ok(()));
        let error = check_exec_size(&["sh"], &env(&[("A", &format!("{longest}x"))])).unwrap_err();
        assert_eq!(error, EnvironError::VariableTooLong { name: "A".into(), bytes: MAX_STRING + 1 });

        let error = check_exec_size(&["sh".to_owned(), "x".repeat(MAX_STRING + 1)], &env(&[])).unwrap_err();
        assert_eq!(error, EnvironError::ArgumentTooLong { position: 1, bytes: MAX_STRING + 1 });

        let mut many: Vec<(String, String)> = (0..17).map(|i| (format!("V{i}"), "x".repeat(130_000))).collect();
        many[7].1.push('y');
        let error = check_exec_size(&["sh"], &many.into_iter().collect()).unwrap_err();
        let EnvironError::TotalTooLong { largest, .. } = &error else { panic!("{error}") };
        assert_eq!(*largest, Some(("V7".to_owned(), 130_004)));
        assert!(!error.to_string().contains("xxx"), "{error}");
    }

    #[test]
    fn displayed_names_are_short_single_lines() {
        assert_eq!(display_name("A\nB\u{1b}\u{202e}'"), "A\\nB\\u{1b}\\u{202e}'");
        assert_eq!(display_name(&"N".repeat(100)), format!("{}…", "N".repeat(64)));
    }

    proptest! {
        #[test]
        fn overlay_equals_repeated_insert(
            lower in proptest::collection::vec(("[A-E]", "[0-9]"), 0..8),
            upper in proptest::collection::vec(("[A-E]", "[0-9]"), 0..8),
        ) {
            let (lower, upper): (Environment, Environment) = (lower.into_iter().collect(), upper.into_iter().collect());
            let mut one_by_one = lower.clone();
            for (name, value) in upper.iter() {
                one_by_one.insert(name, value);
            }
            let mut at_once = lower;
            at_once.overlay(&upper);
            prop_assert_eq!(at_once, one_by_one);
        }
    }
}
