//! Root trees: one made with mmdebstrap and kept per set of inputs, and the writable copy a lab host runs on.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::registry;
use super::suite::Suite;
use crate::child::Program;
use crate::progress::Phase;

/// Mark of a tree that is being made. Only the holder of the lock makes trees, so one that is there is left over. No name
/// is used twice: children of a killed mmdebstrap may still write.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// The cached tree of this suite, made if it is not there.
pub(crate) fn cached(cache: &Path, suite: Suite) -> Result<PathBuf> {
    let tree = cache.join(suite.tree_name());
    if tree.is_dir() {
        return Ok(tree);
    }
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    remove_each(cache, |name| name.starts_with(suite.name()) && name.contains(UNFINISHED))?;
    let aside = cache.join(format!("{}{UNFINISHED}{}", suite.tree_name(), std::process::id()));
    let phase = Phase::start("root tree", &format!("making Debian {} with mmdebstrap (about 30 s)", suite.name()));
    let target = aside.to_str().context("the cache folder's name is not UTF-8")?;
    Program::tied("mmdebstrap").args(suite.mmdebstrap(target)).run().context("make the root tree")?;
    finish(&aside, suite).with_context(|| format!("finish {}", aside.display()))?;
    fs::rename(&aside, &tree).with_context(|| format!("rename {} to {}", aside.display(), tree.display()))?;
    phase.end(&format!("{} made in {}", suite.tree_name(), cache.display()));
    Ok(tree)
}

/// Removes every cached tree of this suite, and the images made for lab hosts of any.
pub(crate) fn purge(cache: &Path, suite: Suite) -> Result<()> {
    let prefix = format!("{}-", suite.name());
    let chosen = |name: &str| name.starts_with(&prefix) || name.starts_with(registry::PREFIX) || name == "images";
    remove_each(cache, chosen)
}

/// Removes the entries of a folder whose names are chosen.
pub(crate) fn remove_each(dir: &Path, chosen: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        if chosen(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// What every host of this suite needs, whatever its name.
fn finish(tree: &Path, suite: Suite) -> Result<()> {
    let units = tree.join("etc/systemd/system");
    for unit in suite.masked() {
        replace_link("/dev/null", &units.join(unit))?;
    }
    replace_link("/usr/lib/systemd/system/multi-user.target", &units.join("default.target"))?;
    // mmdebstrap copies these from the machine it runs on.
    for name in ["etc/hostname", "etc/resolv.conf", "etc/machine-id"] {
        remove(&tree.join(name))?;
    }
    Ok(())
}

/// Makes the writable tree of one lab host: a copy, because overlayfs takes no overlayfs as its upper directory and the
/// product's own overlays live on the lab host's file system.
pub(crate) fn copy(tree: &Path, root: &Path, name: &str) -> Result<()> {
    let parent = root.parent().context("the root directory has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    refuse_overlayfs(parent)?;
    remove(root)?;
    Program::tied("cp").args(["--archive", "--reflink=auto", "--"]).arg(tree).arg(root).run()?;
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").context("read a random id")?.replace('-', "");
    let files = [
        ("etc/machine-id", id),
        ("etc/hostname", format!("{name}\n")),
        ("etc/hosts", format!("127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n")),
        ("etc/resolv.conf", "# The lab host has its own network and no name server.\n".to_owned()),
    ];
    for (path, content) in files {
        let path = root.join(path);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn refuse_overlayfs(dir: &Path) -> Result<()> {
    const OVERLAYFS: u64 = 0x794c_7630;
    let kind = rustix::fs::statfs(dir).with_context(|| format!("statfs {}", dir.display()))?.f_type;
    let overlay = u64::try_from(kind).is_ok_and(|kind| kind == OVERLAYFS);
    ensure!(
        !overlay,
        "{} is on an overlay file system, which cannot hold the guests' own overlays: mount ext4, xfs or btrfs there",
        dir.display()
    );
    Ok(())
}

/// Removes a file or a tree, never anything mounted below it; what is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            Program::new("rm").args(["--recursive", "--force", "--one-file-system", "--"]).arg(path).run()
        }
        Ok(_) => fs::remove_file(path).with_context(|| format!("remove {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
    }
}

fn replace_link(target: &str, link: &Path) -> Result<()> {
    remove(link)?;
    symlink(target, link).with_context(|| format!("link {} to {target}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purging_a_suite_keeps_the_others_trees_and_nothing_all_share() {
        let cache = std::env::temp_dir().join(format!("xtask-purge-{}", std::process::id()));
        for name in ["trixie-1", "bookworm-1", "registry-1", "images"] {
            fs::create_dir_all(cache.join(name).join("usr")).unwrap();
        }
        for name in ["lock", "trixie-1-tools-2.tar"] {
            fs::write(cache.join(name), "").unwrap();
        }
        purge(&cache, Suite::Trixie).unwrap();
        let mut left: Vec<_> = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["bookworm-1", "lock"]);
        fs::remove_dir_all(&cache).unwrap();
    }
}
