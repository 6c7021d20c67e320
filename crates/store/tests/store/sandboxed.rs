//! Layers unpacked by `layer-unpack`, as on a host. What comes out must be the same.
#![expect(clippy::duplicate_mod, reason = "the same tables, with another unpacker")]

pub(crate) use crate::fixtures::sandboxed as unpacker;

#[path = "hostile.rs"]
mod hostile;
#[path = "layers.rs"]
mod layers;
