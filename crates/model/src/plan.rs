//! From a request to what the engine should do: which mounts, from where, and which are refused.
//!
//! This is the policy on files of the host. A workflow names paths; only those below the runner's own folders, or those
//! the administrator listed, become mounts, and each refusal names the rule.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::config::Settings;
use crate::protocol::Mount;

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A path below a folder that policy trusts. Links below that folder are not followed.
    Below {
        /// The trusted folder.
        root: PathBuf,
        /// The path, `root` or below it.
        path: PathBuf,
        /// Whether a missing folder is made, for the runner's user.
        create: bool,
    },
    /// A named volume of the job.
    Volume(String),
    /// Nothing: a fresh directory of the container's own writable layer.
    Fresh,
}

/// A mount as it should be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMount {
    /// Where from.
    pub source: MountSource,
    /// Absolute path in the container, without `.` and `..`.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// A mount that policy or good sense refuses: the field, the reason, the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct MountError {
    /// Path of the field in the request.
    pub field: String,
    /// What is wrong and what to do.
    pub problem: String,
}

/// Docker's socket, under both its names. The official runner offers it to every container, even without Docker.
const DOCKER_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/docker.sock"];

/// Folders that belong to the guest itself.
const GUEST_FOLDERS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The mounts of a container: the runner's own (`args.….systemMountVolumes`), the workflow's
/// (`args.….userMountVolumes`) and those of `--volume`, parents before children.
pub fn mounts(
    settings: &Settings,
    field: &str,
    system: &[Mount],
    user: &[Mount],
    options: &[Mount],
) -> Result<Vec<PlannedMount>, MountError> {
    let mut planned = Vec::new();
    for (index, mount) in system.iter().enumerate() {
        let field = format!("{field}.systemMountVolumes[{index}]");
        planned.extend(system_mount(settings, &field, mount)?);
    }
    for (name, mounts) in [("userMountVolumes", user), ("createOptions --volume ", options)] {
        for (index, mount) in mounts.iter().enumerate() {
            planned.push(user_mount(settings, &format!("{field}.{name}[{index}]"), mount)?);
        }
    }
    Ok(without_repetition(planned))
}

fn system_mount(settings: &Settings, field: &str, mount: &Mount) -> Result<Option<PlannedMount>, MountError> {
    let source = mount.source.as_deref().unwrap_or_default();
    if DOCKER_SOCKETS.contains(&source) {
        return Ok(None);
    }
    let path = absolute(&format!("{field}.sourceVolumePath"), source)?;
    let target = target(field, &mount.target)?;
    let externals = settings.root.join("externals");
    for (root, read_only) in [(&settings.work, false), (&settings.tool_cache, false), (&externals, true)] {
        if path.starts_with(root) {
            return Ok(Some(PlannedMount {
                source: MountSource::Below { root: root.clone(), path, create: !read_only },
                target,
                // The official runner's own programs are never a job's to change.
                read_only: mount.read_only || read_only,
            }));
        }
    }
    Err(MountError {
        field: format!("{field}.sourceVolumePath"),
        problem: format!(
            "'{source}' is outside the runner's folders; if the official runner lives elsewhere, set RUNNER_ROOT, \
             RUNNER_WORK and RUNNER_TOOL_CACHE in /etc/runner/config.env"
        ),
    })
}

fn user_mount(settings: &Settings, field: &str, mount: &Mount) -> Result<PlannedMount, MountError> {
    let target = target(field, &mount.target)?;
    let planned = |source, read_only| PlannedMount { source, target: target.clone(), read_only };
    let Some(source) = mount.source.as_deref().filter(|source| !source.is_empty()) else {
        return Ok(planned(MountSource::Fresh, mount.read_only));
    };
    if !source.starts_with('/') {
        return if is_volume_name(source) {
            Ok(planned(MountSource::Volume(source.to_owned()), mount.read_only))
        } else {
            Err(MountError {
                field: format!("{field}.sourceVolumePath"),
                problem: format!(
                    "'{source}' is neither an absolute path nor a volume name (letters, digits, '_', '.', '-'; at \
                     least two of them)"
                ),
            })
        };
    }
    let field = format!("{field}.sourceVolumePath");
    let path = absolute(&field, source)?;
    if path.starts_with(&settings.work) {
        let source = MountSource::Below { root: settings.work.clone(), path, create: true };
        return Ok(planned(source, mount.read_only));
    }
    if let Some(allowed) = settings.volumes_allow.iter().find(|allowed| path.starts_with(&allowed.path)) {
        if allowed.read_only && !mount.read_only {
            return Err(MountError {
                field,
                problem: format!("'{source}' may be mounted read-only only (RUNNER_VOLUMES_ALLOW); write '…:ro'"),
            });
        }
        let source = MountSource::Below { root: allowed.path.clone(), path, create: false };
        return Ok(planned(source, mount.read_only));
    }
    Err(MountError {
        field,
        problem: format!(
            "'{source}' is a path of the host, and workflows may mount none but those listed in RUNNER_VOLUMES_ALLOW \
             in /etc/runner/config.env"
        ),
    })
}

fn target(field: &str, target: &str) -> Result<PathBuf, MountError> {
    let field = format!("{field}.targetVolumePath");
    let path = absolute(&field, target)?;
    if path == Path::new("/") {
        return Err(MountError { field, problem: "the container's root itself cannot be a mount point".into() });
    }
    match GUEST_FOLDERS.into_iter().find(|folder| path.starts_with(folder)) {
        Some(folder) => {
            Err(MountError { field, problem: format!("'{target}' lies in {folder}, which belongs to the guest") })
        }
        None => Ok(path),
    }
}

/// An absolute path, without `.` and empty parts. `..` is refused: what it means depends on links.
fn absolute(field: &str, path: &str) -> Result<PathBuf, MountError> {
    let refuse = |problem: String| MountError { field: field.to_owned(), problem };
    let mut clean = PathBuf::from("/");
    if !path.starts_with('/') {
        return Err(refuse(format!("'{path}' is not an absolute path")));
    }
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => return Err(refuse(format!("'{path}' contains '..'"))),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

/// Docker's rule for names of volumes.
fn is_volume_name(name: &str) -> bool {
    name.len() >= 2
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// Parents first, the last of several mounts on one target, and none that only repeats what a parent shows there
/// anyway: the official runner lists its work folder and then four folders in it.
fn without_repetition(planned: Vec<PlannedMount>) -> Vec<PlannedMount> {
    let mut unique: Vec<PlannedMount> = Vec::new();
    for mount in planned {
        unique.retain(|earlier| earlier.target != mount.target);
        unique.push(mount);
    }
    unique.sort_by_key(|mount| mount.target.components().count());
    let all = unique.clone();
    unique.retain(|mount| {
        // The nearest mount above it is what would be seen without it.
        let above = all
            .iter()
            .filter(|other| other.target != mount.target && mount.target.starts_with(&other.target))
            .max_by_key(|other| other.target.components().count());
        let Some(PlannedMount { source: MountSource::Below { path: outer, .. }, target, read_only }) = above else {
            return true;
        };
        let MountSource::Below { path: inner, .. } = &mount.source else { return true };
        let shown = mount.target.strip_prefix(target).map(|rest| outer.join(rest));
        shown.as_ref() != Ok(inner) || *read_only != mount.read_only
    });
    unique
}

/// Whether the official runner may be answered there: below its own temporary folder.
pub fn response_file(settings: &Settings, path: Option<&str>) -> Result<String, MountError> {
    let Some(path) = path.filter(|path| !path.is_empty()) else { return Ok(String::new()) };
    let field = "responseFile";
    let clean = absolute(field, path)?;
    let temp = settings.work.join("_temp");
    if clean != temp && clean.starts_with(&temp) {
        return Ok(path.to_owned());
    }
    Err(MountError {
        field: field.into(),
        problem: format!(
            "'{path}' is not below the runner's temporary folder '{}'; if the official runner works elsewhere, set \
             RUNNER_WORK in /etc/runner/config.env",
            temp.display()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Fragment, Merged};
    use crate::protocol::{Command, parse};

    fn settings(text: &str) -> Settings {
        let fragment = Fragment::parse("config.env", text.as_bytes()).expect("a configuration");
        Merged::new([fragment]).and_then(|merged| merged.settings()).expect("settings")
    }

    fn example(name: &str) -> crate::protocol::Container {
        let path = format!("{}/../../tests/protocol/{name}.request.json", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        match parse(&bytes).expect("an example parses").command {
            Command::PrepareJob(prepare) => prepare.container.expect("a job container"),
            other => panic!("{name} is {}", other.name()),
        }
    }

    fn mount(source: Option<&str>, target: &str, read_only: bool) -> Mount {
        Mount { user_provided_value: None, source: source.map(str::to_owned), target: target.to_owned(), read_only }
    }

    fn below(root: &str, path: &str, create: bool) -> MountSource {
        MountSource::Below { root: root.into(), path: path.into(), create }
    }

    #[test]
    fn the_runners_eight_mounts_become_four() {
        let container = example("prepare-job.minimal");
        let planned =
            mounts(&settings(""), "args.container", &container.system_mounts, &container.user_mounts, &[]).unwrap();
        let work = "/home/runner/_work";
        let expected = [
            (below(work, work, true), "/__w", false),
            (below("/home/runner/externals", "/home/runner/externals", false), "/__e", true),
            (below(work, "/home/runner/_work/_temp/_github_home", true), "/github/home", false),
            (below(work, "/home/runner/_work/_temp/_github_workflow", true), "/github/workflow", false),
        ]
        .map(|(source, target, read_only)| PlannedMount { source, target: target.into(), read_only });
        assert_eq!(planned, expected);
    }

    #[test]
    fn a_tool_cache_elsewhere_is_mounted_by_itself() {
        let container = example("prepare-job.external-tool-cache");
        let tools = container
            .system_mounts
            .iter()
            .find(|mount| mount.target == "/__t")
            .and_then(|mount| mount.source.clone())
            .expect("a tool cache");
        let settings = settings(&format!("RUNNER_TOOL_CACHE={tools}"));
        let planned = mounts(&settings, "args.container", &container.system_mounts, &[], &[]).unwrap();
        assert!(
            planned
                .iter()
                .any(|mount| mount.target == Path::new("/__t") && mount.source == below(&tools, &tools, true)),
            "{planned:?}"
        );
    }

    #[test]
    fn host_paths_need_the_administrators_word() {
        let plan = |text: &str, mount: Mount| mounts(&settings(text), "args.container", &[], &[mount], &[]);
        let certificates = || mount(Some("/etc/ssl/certs"), "/certs", true);
        let error = plan("", certificates()).unwrap_err();
        assert_eq!(error.field, "args.container.userMountVolumes[0].sourceVolumePath");
        assert!(error.problem.contains("RUNNER_VOLUMES_ALLOW"), "{error}");
        assert_eq!(
            plan("RUNNER_VOLUMES_ALLOW=/etc/ssl:ro", certificates()).unwrap()[0].source,
            below("/etc/ssl", "/etc/ssl/certs", false)
        );
        let error = plan("RUNNER_VOLUMES_ALLOW=/etc/ssl:ro", mount(Some("/etc/ssl"), "/x", false)).unwrap_err();
        assert!(error.problem.contains("read-only"), "{error}");
        // A name that merely starts with an allowed one is another folder.
        plan("RUNNER_VOLUMES_ALLOW=/srv/data", mount(Some("/srv/database"), "/x", false)).unwrap_err();
    }

    #[test]
    fn what_is_no_sensible_mount_is_refused() {
        let plan = |mount: Mount| mounts(&settings(""), "args.container", &[], &[mount], &[]);
        for (mount, expected) in [
            (mount(Some("/home/runner/_work/../.ssh"), "/x", false), "contains '..'"),
            (mount(None, "relative", false), "not an absolute path"),
            (mount(None, "/a/../b", false), "contains '..'"),
            (mount(None, "/", false), "root itself"),
            (mount(None, "/proc/sys", false), "belongs to the guest"),
            (mount(None, "/dev", false), "belongs to the guest"),
            (mount(Some("a b"), "/x", false), "neither an absolute path nor a volume name"),
            (mount(Some(".."), "/x", false), "neither an absolute path nor a volume name"),
        ] {
            let error = plan(mount).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert_eq!(plan(mount(None, "/scratch", false)).unwrap()[0].source, MountSource::Fresh);
        assert_eq!(plan(mount(Some("cache_1"), "/c", false)).unwrap()[0].source, MountSource::Volume("cache_1".into()));
    }

    #[test]
    fn system_mounts_outside_the_runner_are_refused_and_the_socket_is_dropped() {
        let plan =
            |source: &str| mounts(&settings(""), "args.container", &[mount(Some(source), "/x", false)], &[], &[]);
        assert_eq!(plan("/var/run/docker.sock"), Ok(vec![]));
        assert_eq!(plan("/run/docker.sock"), Ok(vec![]));
        for source in ["/etc", "/home/runner/.ssh", "/home/runner/_workshop", "/", ""] {
            let error = plan(source).unwrap_err();
            assert_eq!(error.field, "args.container.systemMountVolumes[0].sourceVolumePath", "{source}");
        }
    }

    #[test]
    fn a_child_that_shows_something_else_stays() {
        let work = "/home/runner/_work";
        let planned = mounts(
            &settings(""),
            "args.container",
            &[
                mount(Some(&format!("{work}/b")), "/__w/a", false),
                mount(Some(work), "/__w", false),
                mount(Some(&format!("{work}/c")), "/__w/c", true),
                mount(Some(&format!("{work}/d")), "/__w/d", false),
            ],
            &[],
            &[],
        )
        .unwrap();
        let targets: Vec<_> = planned.iter().map(|mount| mount.target.to_str().unwrap()).collect();
        assert_eq!(targets, ["/__w", "/__w/a", "/__w/c"]);
    }

    #[test]
    fn the_answer_goes_below_the_runners_temporary_folder_or_nowhere() {
        let settings = settings("");
        let good = "/home/runner/_work/_temp/_runner_hook_responses/a.json";
        assert_eq!(response_file(&settings, Some(good)), Ok(good.into()));
        assert_eq!(response_file(&settings, None), Ok(String::new()));
        for bad in ["/etc/passwd", "/home/runner/_work/_temp", "/home/runner/_work/_temp/../x", "a.json"] {
            assert_eq!(response_file(&settings, Some(bad)).unwrap_err().field, "responseFile", "{bad}");
        }
    }
}
