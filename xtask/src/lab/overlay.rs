//! Changing a root tree without changing it: programs run on an overlay, and what they change is a tree of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tree;
use crate::child::Program;

/// Mounts the overlay in a mount namespace of its own, so that no mount outlives the programs. The options keep out of the
/// upper tree what only overlayfs understands, but for whiteouts. mmdebstrap makes device nodes and must not find any, so
/// they are made on a file system of their own.
const IN_OVERLAY: &str = r#"
lower=$1 upper=$2 work=$3 root=$4 script=$5
shift 5
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work,redirect_dir=off,index=off,metacopy=off" "$root"
if [ -d "$root/dev" ]; then mount -t tmpfs -o mode=0755 devices "$root/dev"; fi
"$@" >&2
cd "$root"
sh -euc "$script"
"#;

/// An overlay to be mounted.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    /// Trees below, highest first; none of their paths has a colon or a comma.
    pub(crate) lower: Vec<PathBuf>,
    /// The tree that gets the changes.
    pub(crate) upper: &'a Path,
    /// A folder on the same file system for what is needed meanwhile.
    pub(crate) scratch: &'a Path,
}

impl Overlay<'_> {
    /// Runs a program with the path of the merged tree as its last argument (no words: none), then a shell script in the
    /// merged tree. Returns what the script printed. `prepare` may set variables of the environment.
    pub(crate) fn run(
        &self,
        words: &[String],
        script: &str,
        prepare: impl FnOnce(Program) -> Program,
    ) -> Result<String> {
        let [work, root] = ["work", "root"].map(|name| self.scratch.join(name));
        for dir in [self.upper, &work, &root] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let lower = self.lower.iter().map(|path| path.to_str().context("our own paths are UTF-8"));
        let lower = lower.collect::<Result<Vec<_>>>()?.join(":");
        let unshare = Program::tied("unshare").args(["--mount", "--propagation", "private"]);
        let shell = unshare.args(["sh", "-euc", IN_OVERLAY, "sh", &lower]).arg(self.upper).arg(&work).arg(&root);
        let program = shell.arg(script);
        let program = if words.is_empty() { program.arg("true") } else { program.args(words).arg(&root) };
        let printed = prepare(program).read()?;
        // Left by overlayfs with no permission at all, which does not keep root out.
        tree::remove(&work)?;
        Ok(printed)
    }
}
