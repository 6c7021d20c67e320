//! What having an image costs once it is in the store: finding it, and putting its root together.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use runner_store::Store;

use crate::bench::Samples;
use crate::json::{Value, object};

/// What to measure with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The store's folder.
    pub store: PathBuf,
    /// An image in it, in canonical form, with a tag.
    pub tag: String,
    /// The same with a digest.
    pub digest: String,
    /// An empty folder on the store's file system, for layers and writable layers; removed afterwards.
    pub scratch: PathBuf,
    /// How often.
    pub times: usize,
}

/// Layers of the image that is put together.
const LAYERS: usize = 20;
/// Ids nobody else has at the moment; guests' come from below.
const BASE: u32 = 1_879_048_192 - 65_536;

/// Measures, and gives cases as `runner-bench` does. Needs root.
///
/// # Errors
/// When an image is not in the store, or a mount fails.
pub fn run(plan: &Plan) -> Result<Value> {
    let store = Store::open(&plan.store)?;
    let resolve = |reference: &str| -> Result<Samples> {
        let mut samples = Samples::default();
        for _ in 0..plan.times {
            let start = Instant::now();
            let lease = store.resolve(reference)?;
            samples.add(start.elapsed());
            ensure!(lease.is_some(), "{reference} is not in the store");
        }
        Ok(samples)
    };
    let (tag, digest) = (resolve(&plan.tag)?, resolve(&plan.digest)?);
    fs::create_dir(&plan.scratch).with_context(|| format!("make {}", plan.scratch.display()))?;
    let assembled = assemble(&plan.scratch, plan.times);
    fs::remove_dir_all(&plan.scratch).with_context(|| format!("remove {}", plan.scratch.display()))?;
    Ok(object([(
        "cases",
        object([
            ("image.resolve.tag", tag.to_value()),
            ("image.resolve.digest", digest.to_value()),
            ("image.assemble.20_layers", assembled?.to_value()),
        ]),
    )]))
}

/// As the broker does it before a guest boots, the image's users and C library included.
fn assemble(scratch: &Path, times: usize) -> Result<Samples> {
    let layers: Vec<PathBuf> = (0..LAYERS).map(|index| scratch.join(format!("layer-{index}"))).collect();
    for (index, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer.join("etc"))?;
        fs::create_dir_all(layer.join("lib"))?;
        fs::write(layer.join(format!("etc/of-layer-{index}")), "content")?;
        fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    }
    let mut samples = Samples::default();
    for index in 0..times {
        let writable = scratch.join(format!("root-{index}"));
        let start = Instant::now();
        let root = runner_guest::assemble(&layers, &writable, BASE)?;
        samples.add(start.elapsed());
        ensure!(!root.1.passwd.is_empty(), "the root lacks a file of its layers");
    }
    Ok(samples)
}
