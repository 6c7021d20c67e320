//! runnerctl and ci-nspawn-run: what an operator types.
