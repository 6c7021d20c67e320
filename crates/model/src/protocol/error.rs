//! Why a request is refused: one line each, with the JSON path and never a value.

use super::json::{MAX_BYTES, MAX_DEPTH, MAX_VALUES};
use super::request::KNOWN_COMMANDS;

/// A request that cannot be carried out as it stands.
///
/// Every message is one line and free of the request's values, which may be secrets. Paths look like
/// `args.container.environmentVariables.FOO`; `request` stands for the document itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// More than [`MAX_BYTES`].
    #[error("request: larger than {} MiB; pass large values as files", MAX_BYTES / (1024 * 1024))]
    TooLarge,
    /// Nothing, or white space only.
    #[error("request: empty; expected one JSON object on standard input, as the official runner writes it")]
    Empty,
    /// Not UTF-8 text.
    #[error("request: not valid UTF-8 at byte {offset}; expected one JSON object in UTF-8")]
    NotUtf8 {
        /// Of the first bad byte.
        offset: usize,
    },
    /// The text ends inside the document.
    #[error("request: ends before its JSON object is complete; the writer stopped early")]
    Truncated,
    /// Not JSON.
    #[error("request: not JSON: {reason}")]
    NotJson {
        /// The parser's words, with line and column.
        reason: String,
    },
    /// Something follows the first document.
    #[error("request: more text after the first JSON document, at column {column}; expected exactly one document")]
    SecondDocument {
        /// Counted from 1, in the line where the rest begins.
        column: usize,
    },
    /// Arrays and objects nest deeper than [`MAX_DEPTH`].
    #[error("{path}: nested deeper than {MAX_DEPTH} levels")]
    TooDeep {
        /// Where the limit was passed.
        path: String,
    },
    /// More than [`MAX_VALUES`] values.
    #[error("request: more than {MAX_VALUES} values")]
    TooManyValues,
    /// An object has the same member twice.
    #[error("{path}: given twice; expected each member once")]
    Duplicate {
        /// Of the member.
        path: String,
    },
    /// A member has the wrong type or form.
    #[error("{path}: expected {expected}, found {found}")]
    Unexpected {
        /// Of the member.
        path: String,
        /// Type or form, with article.
        expected: &'static str,
        /// JSON type or a description, never the value.
        found: &'static str,
    },
    /// A member that the command needs is missing, null or empty.
    #[error("{path}: missing or empty; expected {expected}")]
    Missing {
        /// Of the member.
        path: String,
        /// Type or form, with article.
        expected: &'static str,
    },
    /// `command` is none of [`KNOWN_COMMANDS`].
    #[error("command: not known; expected one of {}", KNOWN_COMMANDS.join(", "))]
    UnknownCommand,
    /// A text that becomes an argument, variable, path or name holds a NUL character.
    #[error("{path}: contains a NUL character, which no argument, variable or path can hold")]
    Nul {
        /// Of the member.
        path: String,
    },
    /// A name that no environment variable can have.
    #[error("{path}: the variable's name {problem}; rename it in the workflow")]
    VariableName {
        /// Of the variable; a name with `=` is shown up to there, because the rest may be a value.
        path: String,
        /// Reads after "the variable's name".
        problem: &'static str,
    },
}
