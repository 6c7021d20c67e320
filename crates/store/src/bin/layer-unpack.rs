//! Unpacks one layer for the image store, in a sandbox it puts itself into. Started by [`runner_store::Store`] only:
//! standard input is a socket to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    runner_store::serve_layer_unpack()
}
