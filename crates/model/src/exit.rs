//! Exit codes of the hook and of `ci-nspawn-run`: a published interface.
//!
//! A program's own status is passed through. The official runner prints the same generic line for every non-zero
//! status (protocol text, 15.1), so a code of our own and an `::error::` line are all that tells our failure from
//! the program's.

/// The program ended well, or the command had nothing to run and succeeded.
pub const SUCCESS: u8 = 0;

/// The appliance itself failed (bad request, refused by policy, no broker, no image…), and one `::error::` line says
/// why. A program may also choose this number; then that line is missing.
pub const OWN_FAILURE: u8 = 125;

/// Added to the signal's number when a signal ended the program, as shells do.
pub const SIGNAL_BASE: u8 = 128;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It called `exit` with this status.
    Exited(u8),
    /// This signal ended it.
    Signaled(u8),
}

impl Outcome {
    /// The exit code to report: the status itself, or 128 + signal, at most 255. Never 0 for a signal.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => SIGNAL_BASE.saturating_add(signal),
        }
    }

    /// Whether the program ended by itself with status 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Exited(SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_pass_through_and_signals_are_offset() {
        for (outcome, code) in [
            (Outcome::Exited(0), 0),
            (Outcome::Exited(1), 1),
            (Outcome::Exited(255), 255),
            (Outcome::Signaled(2), 130),
            (Outcome::Signaled(9), 137),
            (Outcome::Signaled(15), 143),
            (Outcome::Signaled(64), 192),
        ] {
            assert_eq!(outcome.exit_code(), code, "{outcome:?}");
        }
    }

    #[test]
    fn no_signal_looks_like_success() {
        for signal in 0..=u8::MAX {
            let outcome = Outcome::Signaled(signal);
            assert!(outcome.exit_code() >= SIGNAL_BASE && !outcome.is_success(), "signal {signal}");
        }
    }
}
