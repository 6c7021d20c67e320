//! The documents a hook reads: envelope, container objects, mounts, registries (protocol sections 3 to 8).

use std::path::Path;

use crate::action::Image;
use crate::arguments;
use crate::context::Variables;
use crate::json::{Value, object, string_map};
use crate::layout::Layout;
use crate::workflow::{Container, Job};

/// A request: command, response file, arguments, state.
#[must_use]
pub fn envelope(command: &str, response_file: &Path, arguments: Value, state: Value) -> Value {
    object([
        ("command", command.into()),
        ("responseFile", response_file.display().to_string().into()),
        ("args", arguments),
        ("state", state),
    ])
}

/// The variables for containers of a runner that is configured with proxies, in both spellings.
#[must_use]
pub fn proxies(lookup: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"] {
        let lower = name.to_ascii_lowercase();
        let value = lookup(&lower).or_else(|| lookup(name)).filter(|value| !value.is_empty());
        if let Some(value) = value {
            found.push((name.to_owned(), value.clone()));
            found.push((lower, value));
        }
    }
    found
}

/// `args` of `prepare_job`.
#[must_use]
pub fn prepare_job(job: &Job, layout: &Layout, proxies: &[(String, String)]) -> Value {
    let container = job.container.as_ref().map(|container| {
        let workspace = layout.job_container().apply(&layout.workspace().display().to_string());
        let mut env = with_proxies(container, proxies);
        env.set("HOME", "/github/home");
        container_object(container, Some(workspace), &env, job_container_mounts(layout))
    });
    let services: Vec<Value> = job
        .services
        .iter()
        .map(|(_, service)| container_object(service, None, &with_proxies(service, proxies), Vec::new()))
        .collect();
    object([("container", container.into()), ("services", services.into())])
}

/// `args` of `run_script_step`. `arguments` is the string before it is cut; `directory` and `env` are already
/// translated; `prepend_path` has the latest entry first.
#[must_use]
pub fn run_script_step(
    program: &str,
    arguments: &str,
    env: &Variables,
    prepend_path: Vec<String>,
    directory: &str,
) -> Value {
    object([
        ("entryPointArgs", arguments::pieces(arguments, true).into()),
        ("entryPoint", program.into()),
        ("environmentVariables", variables(env)),
        ("prependPath", prepend_path.into()),
        ("workingDirectory", directory.into()),
    ])
}

/// `args` of `run_container_step`. `arguments` is the string before it is cut; `env` is already translated.
#[must_use]
pub fn run_container_step(
    image: &Image,
    entry_point: Option<&str>,
    arguments: &str,
    env: &Variables,
    layout: &Layout,
) -> Value {
    let (image, dockerfile) = match image {
        Image::Reference(reference) => (Some(reference.as_str()), None),
        Image::Dockerfile(path) => (None, Some(path.display().to_string())),
    };
    object([
        ("image", image.into()),
        ("dockerfile", dockerfile.into()),
        ("entryPointArgs", arguments::pieces(arguments, false).into()),
        ("entryPoint", entry_point.into()),
        ("workingDirectory", "/github/workspace".into()),
        ("createOptions", Value::Null),
        ("registry", Value::Null),
        ("environmentVariables", variables(env)),
        ("portMappings", Value::Array(Vec::new())),
        ("systemMountVolumes", container_action_mounts(layout).into()),
        ("userMountVolumes", Value::Array(Vec::new())),
    ])
}

fn variables(env: &Variables) -> Value {
    string_map(env.pairs().iter().map(|(name, value)| (name, value)))
}

fn with_proxies(container: &Container, proxies: &[(String, String)]) -> Variables {
    let mut env = Variables::default();
    env.extend(&container.env);
    for (name, value) in proxies {
        if env.get(name).is_none() {
            env.set(name, value);
        }
    }
    env
}

fn container_object(
    container: &Container,
    directory: Option<String>,
    env: &Variables,
    system_mounts: Vec<Value>,
) -> Value {
    let command = arguments::pieces(container.command.as_deref().unwrap_or_default(), false);
    let volumes: Vec<Value> = container.volumes.iter().map(|text| volume(text)).collect();
    object([
        ("image", container.image.as_str().into()),
        ("dockerfile", Value::Null),
        ("entryPointArgs", command.into()),
        ("entryPoint", container.entrypoint.as_deref().into()),
        ("workingDirectory", directory.into()),
        ("createOptions", container.options.as_deref().into()),
        ("registry", registry(container)),
        ("environmentVariables", variables(env)),
        ("portMappings", container.ports.clone().into()),
        ("systemMountVolumes", system_mounts.into()),
        ("userMountVolumes", volumes.into()),
    ])
}

fn registry(container: &Container) -> Value {
    container.credentials.as_ref().map_or(Value::Null, |(username, password)| {
        object([
            ("username", username.as_str().into()),
            ("password", password.as_deref().into()),
            ("serverUrl", server_of(&container.image).into()),
        ])
    })
}

/// The registry's host as the runner guesses it from an image reference; empty for the default registry.
#[must_use]
pub fn server_of(image: &str) -> &str {
    let parts: Vec<&str> = image.split('/').collect();
    match parts.as_slice() {
        [first, _] if first.contains(['.', ':']) => first,
        [first, _, _, ..] => first,
        _ => "",
    }
}

fn mount(user: Option<&str>, source: Option<&str>, target: &str, read_only: bool) -> Value {
    object([
        ("userProvidedValue", user.into()),
        ("sourceVolumePath", source.into()),
        ("targetVolumePath", target.into()),
        ("readOnly", read_only.into()),
    ])
}

/// A workflow's volume string as a mount (protocol section 4.2).
#[must_use]
pub fn volume(text: &str) -> Value {
    let read_only = |mode: &str| mode.eq_ignore_ascii_case("ro");
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts.as_slice() {
        [source, target, mode] => (Some(*source), *target, read_only(mode)),
        [target, mode] if read_only(mode) => (None, *target, true),
        [source, target] => (Some(*source), *target, false),
        _ => (None, text, false),
    };
    mount(Some(text), source, target, read_only)
}

fn job_container_mounts(layout: &Layout) -> Vec<Value> {
    let host = |path: &Path| path.display().to_string();
    [
        ("/var/run/docker.sock".to_owned(), "/var/run/docker.sock".to_owned(), false),
        (host(&layout.work), "/__w".to_owned(), false),
        (host(&layout.externals()), "/__e".to_owned(), true),
        (host(&layout.temp()), "/__w/_temp".to_owned(), false),
        (host(&layout.actions()), "/__w/_actions".to_owned(), false),
        (host(&layout.tools), layout.tools_target(), false),
        (host(&layout.home()), "/github/home".to_owned(), false),
        (host(&layout.workflow()), "/github/workflow".to_owned(), false),
    ]
    .iter()
    .map(|(source, target, read_only)| mount(None, Some(source), target, *read_only))
    .collect()
}

fn container_action_mounts(layout: &Layout) -> Vec<Value> {
    let host = |path: &Path| path.display().to_string();
    [
        ("/var/run/docker.sock".to_owned(), "/var/run/docker.sock"),
        (host(&layout.temp()), "/github/runner_temp"),
        (host(&layout.home()), "/github/home"),
        (host(&layout.workflow()), "/github/workflow"),
        (host(&layout.file_commands()), "/github/file_commands"),
        (host(&layout.workspace()), "/github/workspace"),
    ]
    .iter()
    .map(|(source, target)| mount(None, Some(source), target, false))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_strings_of_the_protocol_table() {
        for (text, source, target, read_only) in [
            ("a:b:ro", Some("a"), "b", true),
            ("a:b:RO", Some("a"), "b", true),
            ("a:b:z", Some("a"), "b", false),
            ("b:ro", None, "b", true),
            ("a:b", Some("a"), "b", false),
            ("b", None, "b", false),
            ("a:b:c:d", None, "a:b:c:d", false),
        ] {
            assert_eq!(volume(text), mount(Some(text), source, target, read_only), "{text}");
        }
    }

    #[test]
    fn registry_hosts_are_guessed_as_the_runner_does() {
        for (image, server) in [
            ("alpine:3.20", ""),
            ("localhost/x", ""),
            ("localhost:5000/x", "localhost:5000"),
            ("registry.example.com/x", "registry.example.com"),
            ("a/b/c", "a"),
            ("octo/widgets", ""),
        ] {
            assert_eq!(server_of(image), server, "{image}");
        }
    }

    #[test]
    fn both_spellings_of_a_proxy_unless_the_workflow_has_its_own() {
        let proxies = proxies(|name| (name == "http_proxy").then(|| "http://p:1".to_owned()));
        let container = Container { env: vec![("HTTP_PROXY".to_owned(), "mine".to_owned())], ..Container::default() };
        let env = with_proxies(&container, &proxies);
        assert_eq!((env.get("HTTP_PROXY"), env.get("http_proxy")), (Some("mine"), Some("http://p:1")));
        assert_eq!(env.get("NO_PROXY"), None);
    }
}
