//! A hook call as `container-hooks` receives it, and every decision the model takes on it.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use runner_model::config::{Fragment, Merged, Settings};
use runner_model::environ::{check_exec_size, container_environment, step_environment};
use runner_model::image_ref::Reference;
use runner_model::plan::{self, MountSource};
use runner_model::protocol::{self, Command, Container};
use runner_model::{create_options, message, words};

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let file = b"RUNNER_VOLUMES_ALLOW=/etc/ssl:ro /srv/data";
    let fragment = Fragment::parse("config.env", file).expect("a configuration");
    Merged::new([fragment]).and_then(|merged| merged.settings()).expect("settings")
});

fuzz_target!(|bytes: &[u8]| {
    let request = match protocol::parse(bytes) {
        Ok(request) => request,
        Err(error) => return one_line(&error),
    };
    // What logs of requests are made with.
    let _ = format!("{request:?}");
    match plan::response_file(&SETTINGS, request.response_file.as_deref()) {
        Ok(path) => assert!(
            path.is_empty() || (Path::new(&path).starts_with(SETTINGS.work.join("_temp")) && !has_parent(&path)),
            "a response file outside the temporary folder: {path:?}"
        ),
        Err(error) => one_line(&error),
    }
    match &request.command {
        Command::PrepareJob(prepare) => {
            prepare.container.iter().chain(&prepare.services).for_each(check_container);
        }
        Command::RunContainerStep(container) => check_container(container),
        Command::RunScriptStep(step) => {
            let words = words::recover(&step.entry_point_args).words;
            let environment = step_environment(&step.environment, &step.environment, &step.prepend_path);
            for string in environment.to_strings() {
                assert!(!string.contains('\0'), "a NUL byte in a variable: {string:?}");
            }
            if let Err(error) = check_exec_size(&words, &environment) {
                one_line(&error);
            }
        }
        Command::CleanupJob => {}
    }
});

fn check_container(container: &Container) {
    let _ = words::recover(&container.entry_point_args);
    if let Some(Err(error)) = container.image.reference().map(Reference::parse) {
        one_line(&error);
    }
    let options = match create_options::parse(container.create_options.as_deref().unwrap_or_default()) {
        Ok(options) => options,
        Err(error) => return one_line(&error),
    };
    if let Err(error) = container_environment(&["PATH=/bin".to_owned()], &container.environment, &options.environment) {
        one_line(&error);
    }
    let planned = plan::mounts(&SETTINGS, "args", &container.system_mounts, &container.user_mounts, &options.volumes);
    let mounts = match planned {
        Ok(mounts) => mounts,
        Err(error) => return one_line(&error),
    };
    for mount in mounts {
        let target = mount.target.to_str().expect("made of text");
        assert!(target.len() > 1 && target.starts_with('/') && !has_parent(target), "target {target:?}");
        for folder in ["/proc", "/sys", "/dev"] {
            assert!(!mount.target.starts_with(folder), "target {target:?} belongs to the guest");
        }
        if let MountSource::Below { root, path, .. } = &mount.source {
            assert!(path.starts_with(root), "{path:?} is not below {root:?}");
            assert!(!has_parent(path.to_str().expect("made of text")), "source {path:?}");
            let home = &SETTINGS.root;
            let known = [&SETTINGS.work, &SETTINGS.tool_cache, &home.join("externals")];
            let listed = SETTINGS.volumes_allow.iter().find(|allowed| path.starts_with(&allowed.path));
            assert!(
                known.iter().any(|known| path.starts_with(known)) || listed.is_some(),
                "{path:?} is nobody's to mount"
            );
            assert!(mount.read_only || !path.starts_with("/etc/ssl"), "{path:?} is allowed for reading only");
            assert!(mount.read_only || !path.starts_with(home.join("externals")), "{path:?} may be changed");
        }
    }
}

fn has_parent(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

/// Whatever a workflow writes, a failure stays one line of the log.
fn one_line(error: &dyn std::error::Error) {
    let line = message::error(&error.to_string());
    assert!(!line.trim_end_matches('\n').contains(['\n', '\r']), "more than one line: {line:?}");
}
