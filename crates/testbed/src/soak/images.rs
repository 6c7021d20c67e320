//! Images that share layers, each with one of its own.

use std::fs;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use super::Dice;
use crate::registry::{Compression, Family, Image, Registry};

/// Shared layers; each image has one of them, so that a layer is needed by many images, and never by all.
const SHARED: usize = 5;
/// The static busybox of the lab host.
const BUSYBOX: &str = "/usr/bin/busybox";

/// An image in the registry.
#[derive(Debug, Clone)]
pub(super) struct Served {
    /// As one asks for it.
    pub(super) name: String,
    /// What `cat /own /shared` prints in it.
    pub(super) prints: Vec<u8>,
    /// Digest of the layer no other image has.
    pub(super) own_layer: String,
}

/// Makes images and puts them into the registry.
pub(super) fn serve(registry: &Registry, count: usize, seed: u64) -> Result<Vec<Served>> {
    let mut dice = Dice::new(seed);
    let busybox = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    let base = base(&busybox)?;
    let shared = (0..SHARED).map(|number| shared(number, &mut dice)).collect::<Result<Vec<_>>>()?;
    (0..count)
        .map(|number| {
            let below = dice.below(SHARED);
            let repository = format!("soak/image-{number}");
            let own = own(number, seed, &mut dice)?;
            let (compression, family) = match dice.below(3) {
                0 => (Compression::Plain, Family::Docker),
                1 => (Compression::Gzip, Family::Docker),
                _ => (Compression::Zstd, Family::Oci),
            };
            let image = Image::new()
                .family(family)
                .config(r#"{"Env":["PATH=/bin"]}"#)
                .layer(base.clone())
                .layer(shared[below].clone())
                .layer_in(own, compression);
            let published = registry.put_image(&repository, "1", &image);
            Ok(Served {
                name: format!("{}/{repository}:1", registry.host()),
                prints: [own_words(number, seed), shared_words(below)].concat().into_bytes(),
                own_layer: published.layers[2].clone(),
            })
        })
        .collect()
}

fn own_words(number: usize, seed: u64) -> String {
    format!("image {number} of seed {seed}\n")
}

fn shared_words(number: usize) -> String {
    format!("shared layer {number}\n")
}

/// A userland.
fn base(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    layer.folder("bin")?.folder("etc")?.folder("removed")?.folder("hidden")?;
    layer.file("bin/busybox", 0o755, busybox)?;
    layer.link(EntryType::Symlink, "bin/cat", "busybox")?.link(EntryType::Symlink, "bin/sh", "busybox")?;
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
    layer.file("removed/file", 0o644, b"to be removed by a layer above\n")?;
    layer.file("hidden/file", 0o644, b"to be hidden by a layer above\n")?;
    layer.end()
}

/// A few hundred files in folders, and what a layer does to those below it.
fn shared(number: usize, dice: &mut Dice) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    layer.file("shared", 0o644, shared_words(number).as_bytes())?;
    layer.file(".wh.removed", 0o644, b"")?.folder("hidden")?.file("hidden/.wh..wh..opq", 0o644, b"")?;
    for folder in 0..8 {
        layer.folder(&format!("opt/{number}/{folder}"))?;
        for file in 0..25 {
            let size = dice.below(6_000);
            layer.file(&format!("opt/{number}/{folder}/{file}"), 0o644, &dice.bytes(size))?;
        }
        layer.link(EntryType::Link, &format!("opt/{number}/{folder}/again"), &format!("opt/{number}/{folder}/0"))?;
    }
    layer.end()
}

/// Noise, which takes its time on the way, and the words by which a run proves that it was this image's.
fn own(number: usize, seed: u64, dice: &mut Dice) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    layer.file("own", 0o644, own_words(number, seed).as_bytes())?;
    let size = 50_000 + dice.below(400_000);
    layer.file("noise", 0o600, &dice.bytes(size))?;
    layer.end()
}

struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(Builder::new(Vec::new()))
    }

    fn add(&mut self, kind: EntryType, path: &str, mode: u32, content: &[u8]) -> Result<&mut Layer> {
        let mut header = header(kind, mode, content.len());
        self.0.append_data(&mut header, path, content).with_context(|| path.to_owned())?;
        Ok(self)
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<&mut Layer> {
        self.add(EntryType::Regular, path, mode, content)
    }

    fn folder(&mut self, path: &str) -> Result<&mut Layer> {
        self.add(EntryType::Directory, &format!("{path}/"), 0o755, b"")
    }

    fn link(&mut self, kind: EntryType, path: &str, target: &str) -> Result<&mut Layer> {
        self.0.append_link(&mut header(kind, 0o777, 0), path, target).with_context(|| path.to_owned())?;
        Ok(self)
    }

    fn end(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}
