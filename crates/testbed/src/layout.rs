//! Where things are on the host and what they are called in containers (protocol section 11).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The runner's directories for one repository.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Runner root, R.
    pub root: PathBuf,
    /// Work folder.
    pub work: PathBuf,
    /// Tool cache, possibly outside the work folder.
    pub tools: PathBuf,
    /// Last part of the repository's name.
    pub repository: String,
}

impl Layout {
    /// `<work>/_temp`, emptied at the ends of a job.
    #[must_use]
    pub fn temp(&self) -> PathBuf {
        self.work.join("_temp")
    }
    /// `<work>/_actions`, deleted at job start.
    #[must_use]
    pub fn actions(&self) -> PathBuf {
        self.work.join("_actions")
    }
    /// Node builds of the runner.
    #[must_use]
    pub fn externals(&self) -> PathBuf {
        self.root.join("externals")
    }
    /// `RUNNER_WORKSPACE`.
    #[must_use]
    pub fn job_folder(&self) -> PathBuf {
        self.work.join(&self.repository)
    }
    /// `GITHUB_WORKSPACE`.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.job_folder().join(&self.repository)
    }
    /// `HOME` of containers.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.temp().join("_github_home")
    }
    /// Holds `event.json`.
    #[must_use]
    pub fn workflow(&self) -> PathBuf {
        self.temp().join("_github_workflow")
    }
    /// Files of the step's file commands.
    #[must_use]
    pub fn file_commands(&self) -> PathBuf {
        self.temp().join("_runner_file_commands")
    }
    /// Response files of hook calls.
    #[must_use]
    pub fn responses(&self) -> PathBuf {
        self.temp().join("_runner_hook_responses")
    }

    /// Makes what must exist for a hook call, without removing anything.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn create(&self) -> io::Result<()> {
        for folder in [self.temp(), self.responses(), self.workspace(), self.tools.clone(), self.externals()] {
            fs::create_dir_all(&folder)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?;
        }
        Ok(())
    }

    /// Start of a job: an empty temp folder, no actions, the workspace as the last job left it, the event's payload.
    /// Returns what could not be removed, one line each.
    ///
    /// # Errors
    /// A directory or the event file cannot be made.
    pub fn begin(&self, event: &str) -> io::Result<Vec<String>> {
        let mut stuck = empty(&self.temp());
        remove(&self.actions(), &mut stuck);
        self.create()?;
        for folder in [self.home(), self.workflow(), self.file_commands()] {
            fs::create_dir_all(folder)?;
        }
        fs::write(self.workflow().join("event.json"), event)?;
        Ok(stuck)
    }

    /// End of a job: the temp folder is emptied. Returns what could not be removed, one line each.
    #[must_use]
    pub fn finish(&self) -> Vec<String> {
        empty(&self.temp())
    }

    /// Whether the tool cache lies in the work folder, and so needs no mount of its own name.
    #[must_use]
    pub fn tools_in_work(&self) -> bool {
        self.tools.starts_with(&self.work)
    }

    /// Where the tool cache is in a job container.
    #[must_use]
    pub fn tools_target(&self) -> String {
        match self.tools.strip_prefix(&self.work) {
            Ok(inside) => format!("/__w/{}", inside.display()),
            Err(_) => "/__t".to_owned(),
        }
    }

    /// Host paths and their names in the job container; the first match wins.
    #[must_use]
    pub fn job_container(&self) -> Translation {
        Translation(vec![
            (self.workflow(), "/github/workflow".to_owned()),
            (self.home(), "/github/home".to_owned()),
            (self.work.clone(), "/__w".to_owned()),
            (self.tools.clone(), "/__t".to_owned()),
            (self.externals(), "/__e".to_owned()),
        ])
    }

    /// Host paths and their names in a container action; the first match wins.
    #[must_use]
    pub fn container_action(&self) -> Translation {
        Translation(vec![
            (self.workspace(), "/github/workspace".to_owned()),
            (self.file_commands(), "/github/file_commands".to_owned()),
            (self.workflow(), "/github/workflow".to_owned()),
            (self.home(), "/github/home".to_owned()),
            (self.temp(), "/github/runner_temp".to_owned()),
        ])
    }
}

/// Names of host paths inside a container.
#[derive(Debug, Clone)]
pub struct Translation(Vec<(PathBuf, String)>);

impl Translation {
    /// An environment value as the container sees it: translated when the whole of it is a path. A list of absolute
    /// paths begins like one and is not (worked example of section 11.5).
    #[must_use]
    pub fn value(&self, value: &str) -> String {
        if value.contains(":/") { value.to_owned() } else { self.apply(value) }
    }

    /// A path as the container sees it; any other path stays as it is.
    #[must_use]
    pub fn apply(&self, value: &str) -> String {
        for (host, inside) in &self.0 {
            if let Some(rest) = host.to_str().and_then(|host| value.strip_prefix(host))
                && (rest.is_empty() || rest.starts_with('/'))
            {
                return format!("{inside}{rest}");
            }
        }
        value.to_owned()
    }
}

fn empty(folder: &Path) -> Vec<String> {
    let mut stuck = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return stuck,
        Err(error) => return vec![format!("{}: {error}", folder.display())],
    };
    for entry in entries.flatten() {
        remove(&entry.path(), &mut stuck);
    }
    stuck
}

/// Removes as much of a tree as can be removed; a link is removed, never followed.
fn remove(path: &Path, stuck: &mut Vec<String>) {
    let result = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => Err(error),
        Ok(data) if data.is_dir() => {
            let before = stuck.len();
            stuck.extend(empty(path));
            if stuck.len() > before {
                return;
            }
            fs::remove_dir(path)
        }
        Ok(_) => fs::remove_file(path),
    };
    if let Err(error) = result {
        stuck.push(format!("{}: {error}", path.display()));
    }
}

/// Copies a tree: directories, files with their mode, links as links.
///
/// # Errors
/// Any of it cannot be read or written; the message names the path.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let named = |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    fs::create_dir_all(to).map_err(|error| named(to, error))?;
    for entry in fs::read_dir(from).map_err(|error| named(from, error))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            let _ = fs::remove_file(&target);
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target).map_err(|error| named(&target, error))?;
        } else {
            fs::copy(&source, &target).map_err(|error| named(&source, error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            root: "/home/runner".into(),
            work: "/home/runner/_work".into(),
            tools: "/home/runner/_work/_tool".into(),
            repository: "widgets".to_owned(),
        }
    }

    #[test]
    fn worked_example_of_the_protocol() {
        let (job, action) = (layout().job_container(), layout().container_action());
        for (host, in_job, in_action) in [
            ("/home/runner/_work/widgets/widgets", "/__w/widgets/widgets", "/github/workspace"),
            ("/home/runner/_work/widgets", "/__w/widgets", "/home/runner/_work/widgets"),
            ("/home/runner/_work/_temp", "/__w/_temp", "/github/runner_temp"),
            ("/home/runner/_work/_tool", "/__w/_tool", "/home/runner/_work/_tool"),
            (
                "/home/runner/_work/_temp/_github_workflow/event.json",
                "/github/workflow/event.json",
                "/github/workflow/event.json",
            ),
            (
                "/home/runner/_work/_temp/_runner_file_commands/set_env_G",
                "/__w/_temp/_runner_file_commands/set_env_G",
                "/github/file_commands/set_env_G",
            ),
            (
                "/home/runner/externals/node20/bin/node",
                "/__e/node20/bin/node",
                "/home/runner/externals/node20/bin/node",
            ),
            (
                "/home/runner/_work/a:/home/runner/_work/b",
                "/home/runner/_work/a:/home/runner/_work/b",
                "/home/runner/_work/a:/home/runner/_work/b",
            ),
            ("/home/runner/_workshop", "/home/runner/_workshop", "/home/runner/_workshop"),
        ] {
            assert_eq!(job.value(host), in_job);
            assert_eq!(action.value(host), in_action);
        }
    }

    #[test]
    fn outside_tool_cache_gets_its_own_name() {
        let mut layout = layout();
        assert_eq!(layout.tools_target(), "/__w/_tool");
        layout.tools = "/opt/hostedtoolcache".into();
        assert_eq!(layout.tools_target(), "/__t");
        assert_eq!(layout.job_container().apply("/opt/hostedtoolcache/node"), "/__t/node");
    }

    #[test]
    fn a_job_starts_with_an_empty_temp_and_without_actions() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout {
            root: root.path().to_owned(),
            work: root.path().join("_work"),
            tools: root.path().join("_work/_tool"),
            repository: "widgets".to_owned(),
        };
        fs::create_dir_all(layout.temp().join("old/deep")).unwrap();
        fs::create_dir_all(layout.actions().join("octo")).unwrap();
        fs::create_dir_all(layout.workspace()).unwrap();
        fs::write(layout.workspace().join("kept"), "").unwrap();
        std::os::unix::fs::symlink(layout.workspace(), layout.temp().join("link")).unwrap();
        assert_eq!(layout.begin("{}").unwrap(), Vec::<String>::new());
        assert!(!layout.temp().join("old").exists() && !layout.temp().join("link").exists());
        assert!(!layout.actions().exists() && layout.workspace().join("kept").exists());
        assert_eq!(fs::read_to_string(layout.workflow().join("event.json")).unwrap(), "{}");
        assert_eq!(layout.finish(), Vec::<String>::new());
        assert_eq!(fs::read_dir(layout.temp()).unwrap().count(), 0);
    }
}
