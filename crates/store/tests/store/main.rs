//! The store through its public interface: what ends up on disk, what is refused, what survives.
//!
//! Unpacking sets owners, makes device nodes (whiteouts) and `trusted.*` attributes, so these tests need root and say so
//! by failing.

mod fixtures;
mod hostile;
mod layers;
mod lifecycle;
mod sources;
