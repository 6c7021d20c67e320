//! Making one layer: what mmdebstrap and a script change in an overlay, packed as an archive of the image format.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

use super::recipe::{Compression, Content, EPOCH, LayerRecipe, RELEASE, layer};
use super::storage::{Blob, Storage, digest_of_file};
use crate::child::Program;
use crate::lab::overlay::Overlay;
use crate::lab::tree;

/// A layer that is in the registry.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// Digest of the archive before compression.
    pub(super) diff_id: String,
    /// The compressed archive.
    pub(super) blob: Blob,
    /// How it is compressed.
    pub(super) compression: Compression,
    /// `NAME=value` for the environment of images that have it.
    pub(super) environment: Vec<String>,
}

/// The folder layers are made in.
#[derive(Debug)]
pub(super) struct Workshop {
    folder: PathBuf,
}

impl Workshop {
    /// In this folder, which must be on a file system that can be an overlay's upper directory.
    pub(super) fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Makes a layer whose lower ones are made already, and moves its archive into the storage.
    pub(super) fn make(&self, recipe: &LayerRecipe, storage: &Storage) -> Result<Layer> {
        let tree = self.tree(recipe.name);
        let environment = self.fill(recipe, &tree).with_context(|| format!("make layer {}", recipe.name))?;
        let removals = Removals::find(&tree, &self.stack(recipe.below))?;
        let archive = self.folder.join(format!("{}.tar", recipe.name));
        self.pack(&tree, &removals, &archive)?;
        let diff_id = digest_of_file(&archive)?;
        let packed = compress(&archive, recipe.compression)?;
        let blob = storage.add_file(&packed)?;
        tree::remove(&archive)?;
        Ok(Layer { diff_id, blob, compression: recipe.compression, environment })
    }

    fn tree(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Trees of a layer and of those below it, highest first.
    fn stack(&self, top: Option<&str>) -> Vec<PathBuf> {
        std::iter::successors(top, |name| layer(name).below).map(|name| self.tree(name)).collect()
    }

    /// Makes the layer's own tree, as overlayfs writes it, and returns what the script printed.
    fn fill(&self, recipe: &LayerRecipe, tree: &Path) -> Result<Vec<String>> {
        let stack = self.stack(recipe.below);
        let printed = if stack.is_empty() {
            if recipe.content == Content::Debian {
                let words = mmdebstrap("minbase", &["--skip=cleanup/apt/lists"]);
                with(Program::tied(&words[0]).args(&words[1..]).arg(tree), &[]).run()?;
                // A container has devices of its own.
                empty(&tree.join("dev"))?;
            } else {
                fs::create_dir(tree).with_context(|| format!("create {}", tree.display()))?;
            }
            let shell = Program::tied("sh").args(["-euc", recipe.script]).dir(tree);
            with(shell, &self.variables(recipe)?).read()?
        } else {
            let words = match recipe.content {
                Content::Packages(packages) => {
                    // apt's lists are the lowest layer's.
                    let include = format!("--include={}", packages.join(","));
                    mmdebstrap("custom", &["--skip=check/empty,update,cleanup/apt/lists", &include])
                }
                _ => Vec::new(),
            };
            let variables = self.variables(recipe)?;
            let overlay = Overlay { lower: stack, upper: tree, scratch: &self.folder };
            overlay.run(&words, recipe.script, |program| with(program, &variables))?
        };
        Ok(printed.lines().map(str::to_owned).collect())
    }

    /// Variables of the script.
    fn variables(&self, recipe: &LayerRecipe) -> Result<Vec<(&'static str, PathBuf)>> {
        if !recipe.script.contains("$busybox") {
            return Ok(Vec::new());
        }
        let own = self.busybox(false)?;
        let busybox = if recipe.content == Content::Foreign { self.busybox(true)? } else { own.clone() };
        let applets = self.folder.join("applets");
        // Both are built from one source with one configuration, and only one of them can be asked here.
        let listed = Program::new(own.join("usr/bin/busybox")).arg("--list-full").read()?;
        fs::write(&applets, listed).with_context(|| format!("write {}", applets.display()))?;
        Ok(vec![("busybox", busybox), ("applets", applets)])
    }

    /// Packs a layer, the same bytes for the same tree.
    fn pack(&self, tree: &Path, removals: &Removals, archive: &Path) -> Result<()> {
        let mut names = fs::read_dir(tree)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
        names.retain(|name| !removals.nodes.contains(&PathBuf::from(name)));
        names.sort();
        ensure!(!names.is_empty(), "{} is empty", tree.display());
        // The tree itself keeps overlayfs's signs, because it is below other layers.
        let marks = self.folder.join("marks");
        tree::remove(&marks)?;
        for mark in &removals.marks {
            let path = marks.join(mark);
            fs::create_dir_all(path.parent().context("a file has a folder")?)?;
            fs::write(&path, "").with_context(|| format!("write {}", path.display()))?;
        }
        let mtime = format!("--mtime=@{EPOCH}");
        let mut tar = Program::new("tar")
            .args(["--create", "--sort=name", "--numeric-owner", "--format=posix", &mtime, "--clamp-mtime"])
            .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"])
            .args(["--xattrs", "--xattrs-include=security.capability", "--file"])
            .arg(archive)
            // apt's lists are only there for the layers above.
            .args(["--anchored", "--exclude=var/lib/apt/lists/?*", "--exclude=var/cache/apt/*.bin", "--no-wildcards"])
            .args(removals.nodes.iter().map(|node| format!("--exclude={}", node.display())))
            .arg("--directory")
            .arg(tree)
            .args(names);
        if !removals.marks.is_empty() {
            tar = tar.arg("--directory").arg(&marks).arg("--no-recursion").args(&removals.marks);
        }
        tar.run()
    }

    /// The package busybox-static, unpacked; `foreign` for the other kind of machine.
    fn busybox(&self, foreign: bool) -> Result<PathBuf> {
        let (own, other) = architectures()?;
        let architecture = if foreign { other } else { own };
        let folder = self.folder.join(format!("busybox-static-{architecture}"));
        if !folder.exists() {
            let aside = folder.with_extension("unfinished");
            // Nothing of it runs, so the machine need not be able to run it.
            let architecture = format!("--architectures={architecture}");
            let words = mmdebstrap("extract", &["--skip=check/qemu", "--include=busybox-static", &architecture]);
            with(Program::tied(&words[0]).args(&words[1..]).arg(&aside), &[]).run()?;
            fs::rename(&aside, &folder).with_context(|| format!("rename {}", aside.display()))?;
        }
        Ok(folder)
    }
}

/// This machine's architecture and another one, as Go and Debian call them.
pub(super) fn architectures() -> Result<(&'static str, &'static str)> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(("amd64", "arm64")),
        "aarch64" => Ok(("arm64", "amd64")),
        other => bail!("images can be made on x86_64 and aarch64, and this machine is {other}"),
    }
}

/// A program that is told these variables and how old everything is to be.
fn with(program: Program, variables: &[(&str, PathBuf)]) -> Program {
    let program = program.env("SOURCE_DATE_EPOCH", EPOCH.to_string());
    variables.iter().fold(program, |program, (name, value)| program.env(name, value))
}

/// mmdebstrap and its arguments but the last, the folder.
fn mmdebstrap(variant: &str, options: &[&str]) -> Vec<String> {
    let mut words = vec!["mmdebstrap".to_owned(), "--mode=root".to_owned(), format!("--variant={variant}")];
    words.push(r#"--aptopt=Acquire::Languages "none""#.to_owned());
    words.extend(["doc", "info", "locale", "man"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")));
    words.extend(options.iter().map(|&option| option.to_owned()));
    words.extend(["--quiet", RELEASE].map(str::to_owned));
    words
}

/// What a layer takes away from those below it; paths are relative to its root.
#[derive(Debug, Default)]
struct Removals {
    /// overlayfs's whiteouts.
    nodes: Vec<PathBuf>,
    /// Names the image format has for them, and for folders that hide the ones below (OCI image-spec, `layer.md`,
    /// Whiteouts).
    marks: Vec<PathBuf>,
}

impl Removals {
    fn find(tree: &Path, below: &[PathBuf]) -> Result<Self> {
        let mut removals = Self::default();
        removals
            .look(tree, Path::new(""), below)
            .with_context(|| format!("look for whiteouts in {}", tree.display()))?;
        Ok(removals)
    }

    fn look(&mut self, tree: &Path, folder: &Path, below: &[PathBuf]) -> Result<()> {
        let mut names = fs::read_dir(tree.join(folder))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<std::io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            let inner = folder.join(&name);
            let path = tree.join(&inner);
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                // overlayfs may mark any new folder; where there is nothing to hide the mark says nothing.
                if is_opaque(&path)? && below.iter().any(|layer| layer.join(&inner).is_dir()) {
                    self.marks.push(inner.join(".wh..wh..opq"));
                }
                self.look(tree, &inner, below)?;
            } else if meta.file_type().is_char_device() && meta.rdev() == 0 {
                let mut mark = OsString::from(".wh.");
                mark.push(&name);
                self.marks.push(folder.join(mark));
                self.nodes.push(inner);
            }
        }
        Ok(())
    }
}

/// Whether overlayfs hides what is below this folder.
fn is_opaque(folder: &Path) -> Result<bool> {
    let mut value = [0_u8; 8];
    match rustix::fs::lgetxattr(folder, "trusted.overlay.opaque", &mut value[..]) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("read an attribute of {}", folder.display())),
    }
}

fn compress(archive: &Path, compression: Compression) -> Result<PathBuf> {
    let packed = archive.with_extension("packed");
    let words: &[&str] = match compression {
        Compression::Gzip => &["gzip", "--no-name", "--stdout", "--"],
        Compression::Zstd => &["zstd", "--quiet", "--stdout", "--"],
    };
    let output = File::create(&packed).with_context(|| format!("create {}", packed.display()))?;
    let program = Program::new(words[0]).args(&words[1..]).arg(archive);
    let line = program.line();
    let mut child = program.with_streams(Stdio::null(), Stdio::from(output), Stdio::inherit())?;
    let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
    ensure!(status.success(), "`{line}` failed: {status}");
    Ok(packed)
}

fn empty(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        tree::remove(&entry.with_context(|| format!("read {}", folder.display()))?.path())?;
    }
    Ok(())
}
