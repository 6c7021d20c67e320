//! Layers unpacked in the process itself, as under the fuzzer.

pub(crate) fn unpacker() -> runner_store::Unpacker {
    runner_store::Unpacker::InProcess
}

#[path = "hostile.rs"]
mod hostile;
#[path = "layers.rs"]
mod layers;
