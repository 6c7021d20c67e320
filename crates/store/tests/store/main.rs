//! The store through its public interface: what ends up on disk, what is refused, what survives.
//!
//! Unpacking sets owners, makes device nodes (whiteouts) and `trusted.*` attributes, so these tests need root and say so
//! by failing.

#![expect(clippy::unwrap_used, reason = "what a test could not do is told by the panic")]

mod confinement;
mod fixtures;
mod in_process;
mod lifecycle;
mod remote;
mod sandboxed;
mod sources;
mod verify;
