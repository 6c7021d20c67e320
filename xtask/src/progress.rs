//! What the commands say on standard error while they work.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

/// One long phase: shown while it runs when standard error is a terminal, and as one line with its duration when it ends.
pub(crate) struct Phase {
    name: &'static str,
    start: Instant,
    shown: bool,
}

impl Phase {
    /// Begins a phase; `doing` says what is being waited for.
    pub(crate) fn start(name: &'static str, doing: &str) -> Self {
        let shown = io::stderr().is_terminal();
        if shown {
            write(&format!("{name:<10} {doing} …"));
        }
        Self { name, start: Instant::now(), shown }
    }

    /// Ends the phase with what came of it.
    pub(crate) fn end(mut self, outcome: &str) {
        self.yield_terminal();
        write(&format!("{:<10} {outcome:<60} {:>6.1} s\n", self.name, self.start.elapsed().as_secs_f64()));
    }

    /// Takes the transient line away, so that a program can write to the terminal.
    pub(crate) fn yield_terminal(&mut self) {
        if std::mem::take(&mut self.shown) {
            write("\r\x1b[K");
        }
    }
}

impl Drop for Phase {
    /// A phase that failed leaves no half line before the error.
    fn drop(&mut self) {
        self.yield_terminal();
    }
}

/// One line for the person at the terminal.
pub(crate) fn note(text: &str) {
    write(&format!("{text}\n"));
}

/// One line of a command's result, on standard output.
pub(crate) fn result(text: &str) {
    // A reader that went away wants no more lines.
    let _ = writeln!(io::stdout(), "{text}");
}

fn write(text: &str) {
    // There is nobody to tell when standard error is gone.
    let _ = io::stderr().write_all(text.as_bytes());
}
