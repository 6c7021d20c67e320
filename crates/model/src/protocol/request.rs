//! From the JSON tree to typed commands (protocol text, sections 4 to 8).

use std::fmt;

use super::error::RequestError;
use super::json::{self, Node, Path};
use super::state::StateHint;
use crate::environ::Environment;
use crate::secret::Secret;

/// The commands of the protocol, as `command` spells them.
pub const KNOWN_COMMANDS: [&str; 4] = ["prepare_job", "run_script_step", "run_container_step", "cleanup_job"];

/// One hook call.
///
/// `Debug` of the types in this module shows no argument, option or variable value: any of them may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Host path of the response file. Untrusted: whoever writes there must check it.
    pub response_file: Option<String>,
    /// What an earlier response of this job returned, as far as it can be recognised.
    pub state: StateHint,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make the job's containers.
    PrepareJob(PrepareJob),
    /// Run a program in the job container.
    RunScriptStep(RunScriptStep),
    /// Run a container action to its end.
    RunContainerStep(Container),
    /// Remove what `prepare_job` made.
    CleanupJob,
}

impl Command {
    /// As `command` spells it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::PrepareJob(_) => KNOWN_COMMANDS[0],
            Self::RunScriptStep(_) => KNOWN_COMMANDS[1],
            Self::RunContainerStep(_) => KNOWN_COMMANDS[2],
            Self::CleanupJob => KNOWN_COMMANDS[3],
        }
    }
}

/// Arguments of `prepare_job`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareJob {
    /// The job container; `None` for a job with services only.
    pub container: Option<Container>,
    /// In workflow order. The position is the identity.
    pub services: Vec<Container>,
}

/// Arguments of `run_script_step`.
#[derive(Clone, PartialEq, Eq)]
pub struct RunScriptStep {
    /// The program, to be found on the container's `PATH`.
    pub entry_point: String,
    /// As received, cut at spaces: see [`crate::words::recover`].
    pub entry_point_args: Vec<String>,
    /// The step's own variables, to lay over the container's: see [`crate::environ::step_environment`].
    pub environment: Environment,
    /// Most recently added first. Entries may contain anything but NUL.
    pub prepend_path: Vec<String>,
    /// Absolute path in the container, not normalised; `None` means the container's own.
    pub working_directory: Option<String>,
}

/// A container to create: job container, service or container action.
#[derive(Clone, PartialEq, Eq)]
pub struct Container {
    /// Where its root comes from.
    pub image: ImageSource,
    /// As received, cut at spaces: see [`crate::words::recover`].
    pub entry_point_args: Vec<String>,
    /// Overrides the image's; always `None` for job containers of the real runner.
    pub entry_point: Option<String>,
    /// Absolute path in the container, not normalised; `None` for services.
    pub working_directory: Option<String>,
    /// Raw text of `options:`, for [`crate::create_options::parse`].
    pub create_options: Option<String>,
    /// Credentials for the image.
    pub registry: Option<Registry>,
    /// Variables to create the container with: see [`crate::environ::container_environment`].
    pub environment: Environment,
    /// Raw texts of `ports:`.
    pub port_mappings: Vec<String>,
    /// The runner's own mounts, in its order (protocol text, 11.3 and 11.4). Sources may be missing on the host.
    pub system_mounts: Vec<Mount>,
    /// From `volumes:`.
    pub user_mounts: Vec<Mount>,
    /// The workflow's key of a service. No runner sends it yet; the published samples have it.
    pub context_name: Option<String>,
}

/// Where a container's root comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// An image reference as the workflow wrote it, for [`crate::image_ref::Reference::parse`].
    Reference(String),
    /// Absolute host path of a Dockerfile; container actions only.
    Dockerfile(String),
}

impl ImageSource {
    /// The image reference, unless the image has to be built.
    #[must_use]
    pub fn reference(&self) -> Option<&str> {
        match self {
            Self::Reference(reference) => Some(reference),
            Self::Dockerfile(_) => None,
        }
    }
}

/// A directory or file of the host, or a volume, in the container (protocol text, 4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The workflow's own words; `None` for the runner's mounts. Options other than `ro` survive only here.
    pub user_provided_value: Option<String>,
    /// Absolute host path, or the name of a volume; `None` for an anonymous volume.
    pub source: Option<String>,
    /// Absolute path in the container, not normalised.
    pub target: String,
    /// Whether the container may not write to it.
    pub read_only: bool,
}

/// Credentials for pulling an image (protocol text, 4.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Never empty.
    pub username: String,
    /// May be missing.
    pub password: Option<Secret>,
    /// Host and port, or empty for Docker Hub. A guess of the runner's from the image name.
    pub server_url: String,
}

impl fmt::Debug for RunScriptStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry_point, entry_point_args, environment, prepend_path, working_directory } = self;
        f.debug_struct("RunScriptStep")
            .field("entry_point", entry_point)
            .field("entry_point_args", &Count(entry_point_args.len()))
            .field("environment", environment)
            .field("prepend_path", prepend_path)
            .field("working_directory", working_directory)
            .finish()
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            image,
            entry_point_args,
            entry_point,
            working_directory,
            create_options,
            registry,
            environment,
            port_mappings,
            system_mounts,
            user_mounts,
            context_name,
        } = self;
        f.debug_struct("Container")
            .field("image", image)
            .field("entry_point_args", &Count(entry_point_args.len()))
            .field("entry_point", entry_point)
            .field("working_directory", working_directory)
            .field("create_options", &create_options.as_ref().map(|_| Count(1)))
            .field("registry", registry)
            .field("environment", environment)
            .field("port_mappings", port_mappings)
            .field("system_mounts", system_mounts)
            .field("user_mounts", user_mounts)
            .field("context_name", context_name)
            .finish()
    }
}

/// Stands for that many texts in `Debug` output.
struct Count(usize);

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} not shown>", self.0)
    }
}

/// Reads one request: the bytes of standard input up to its end.
///
/// # Errors
/// See [`RequestError`]. Never panics and never recurses deeper than [`json::MAX_DEPTH`] levels.
pub fn parse(bytes: &[u8]) -> Result<Request, RequestError> {
    let document = Path::Document;
    let mut request = Object::from_node(json::read(bytes)?, document)?;
    // Before anything else: a command we do not know may have arguments of any shape.
    let name = request
        .text("command")?
        .ok_or(RequestError::Missing { path: "command".to_owned(), expected: "the name of a command" })?;
    let command = KNOWN_COMMANDS.iter().position(|known| *known == name).ok_or(RequestError::UnknownCommand)?;
    let response_file = request.text("responseFile")?;
    let state = StateHint::from_node(&request.take("state"));
    let args_path = Path::Member(&document, "args");
    let args = Object::from_node(request.take("args"), args_path)?;
    let command = match command {
        0 => Command::PrepareJob(prepare_job(args)?),
        1 => Command::RunScriptStep(run_script_step(args)?),
        2 => Command::RunContainerStep(container(args, Role::Action)?),
        _ => Command::CleanupJob,
    };
    Ok(Request { command, response_file, state })
}

fn prepare_job(mut args: Object<'_>) -> Result<PrepareJob, RequestError> {
    let path = args.path;
    let container_node = match args.take("container") {
        Node::Null => None,
        node => Some(container(Object::from_node(node, Path::Member(&path, "container"))?, Role::Job)?),
    };
    let services = args.list("services", |node, path| container(Object::from_node(node, path)?, Role::Service))?;
    Ok(PrepareJob { container: container_node, services })
}

fn run_script_step(mut args: Object<'_>) -> Result<RunScriptStep, RequestError> {
    Ok(RunScriptStep {
        entry_point: args
            .text("entryPoint")?
            .ok_or_else(|| args.missing("entryPoint", "the program to run in the job container"))?,
        entry_point_args: args.texts("entryPointArgs")?,
        environment: args.environment("environmentVariables")?,
        prepend_path: args.text_or_texts("prependPath")?,
        working_directory: args.absolute_path("workingDirectory")?,
    })
}

/// What a container object is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Job,
    Service,
    Action,
}

fn container(mut args: Object<'_>, role: Role) -> Result<Container, RequestError> {
    let image = match (args.text("image")?, args.text("dockerfile")?) {
        // The published samples send both for container steps; the image wins there.
        (Some(reference), _) => ImageSource::Reference(reference),
        (None, Some(dockerfile)) if role == Role::Action => {
            if !dockerfile.starts_with('/') {
                return Err(args.unexpected("dockerfile", "an absolute host path", "a relative one"));
            }
            ImageSource::Dockerfile(dockerfile)
        }
        (None, _) if role == Role::Action => return Err(args.missing("image", "an image or a dockerfile")),
        (None, _) => return Err(args.missing("image", "an image")),
    };
    Ok(Container {
        image,
        entry_point_args: args.texts("entryPointArgs")?,
        entry_point: args.entry_point()?,
        working_directory: args.absolute_path("workingDirectory")?,
        create_options: args.text("createOptions")?,
        registry: args.registry()?,
        environment: args.environment("environmentVariables")?,
        port_mappings: args.texts("portMappings")?,
        system_mounts: args.list("systemMountVolumes", mount)?,
        user_mounts: args.list("userMountVolumes", mount)?,
        context_name: args.text("contextName")?,
    })
}

fn mount(node: Node, path: Path<'_>) -> Result<Mount, RequestError> {
    let mut mount = Object::from_node(node, path)?;
    Ok(Mount {
        user_provided_value: mount.text("userProvidedValue")?,
        source: mount.text("sourceVolumePath")?,
        target: mount
            .absolute_path("targetVolumePath")?
            .ok_or_else(|| mount.missing("targetVolumePath", "an absolute path in the container"))?,
        read_only: mount.boolean("readOnly")?,
    })
}

/// A JSON object being taken apart member by member.
struct Object<'a> {
    path: Path<'a>,
    members: Vec<(String, Node)>,
}

impl<'a> Object<'a> {
    /// `null` reads as `{}`.
    fn from_node(node: Node, path: Path<'a>) -> Result<Self, RequestError> {
        match node {
            Node::Object(members) => Ok(Self { path, members }),
            Node::Null if !matches!(path, Path::Document) => Ok(Self { path, members: Vec::new() }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Removes a member; missing reads as `null`.
    fn take(&mut self, name: &str) -> Node {
        match self.members.iter().position(|(known, _)| known == name) {
            Some(index) => self.members.swap_remove(index).1,
            None => Node::Null,
        }
    }

    fn missing(&self, name: &str, expected: &'static str) -> RequestError {
        RequestError::Missing { path: Path::Member(&self.path, name).to_string(), expected }
    }

    fn unexpected(&self, name: &str, expected: &'static str, found: &'static str) -> RequestError {
        RequestError::Unexpected { path: Path::Member(&self.path, name).to_string(), expected, found }
    }

    /// A string; missing, `null` and `""` are `None`.
    fn text(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        let node = self.take(name);
        let text = text_or_null(node, Path::Member(&self.path, name), "a string")?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    fn absolute_path(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        match self.text(name)? {
            Some(path) if !path.starts_with('/') => {
                Err(self.unexpected(name, "an absolute path in the container", "a relative one"))
            }
            path => Ok(path),
        }
    }

    fn boolean(&mut self, name: &str) -> Result<bool, RequestError> {
        match self.take(name) {
            Node::Null => Ok(false),
            Node::Bool(value) => Ok(value),
            other => Err(wrong_type(Path::Member(&self.path, name), "true or false", &other)),
        }
    }

    fn list<T>(
        &mut self,
        name: &str,
        element: impl Fn(Node, Path<'_>) -> Result<T, RequestError>,
    ) -> Result<Vec<T>, RequestError> {
        let path = Path::Member(&self.path, name);
        match self.members.iter().position(|(known, _)| known == name).map(|index| self.members.swap_remove(index).1) {
            None | Some(Node::Null) => Ok(Vec::new()),
            Some(Node::Array(nodes)) => {
                nodes.into_iter().enumerate().map(|(index, node)| element(node, Path::Element(&path, index))).collect()
            }
            Some(other) => Err(wrong_type(path, "an array", &other)),
        }
    }

    /// Strings, empty ones kept; a `null` element reads as empty.
    fn texts(&mut self, name: &str) -> Result<Vec<String>, RequestError> {
        self.list(name, |node, path| Ok(text_or_null(node, path, "a string")?.unwrap_or_default()))
    }

    /// An array of strings, or one string as runners up to 2.293.0 sent it.
    fn text_or_texts(&mut self, name: &str) -> Result<Vec<String>, RequestError> {
        let single = self.members.iter().any(|(known, node)| known == name && matches!(node, Node::String(_)));
        if single { Ok(self.text(name)?.into_iter().collect()) } else { self.texts(name) }
    }

    /// `entryPoint`, or `entrypoint` as the published samples spell it.
    fn entry_point(&mut self) -> Result<Option<String>, RequestError> {
        match (self.text("entryPoint")?, self.text("entrypoint")?) {
            (Some(ours), Some(other)) if ours != other => {
                Err(RequestError::Duplicate { path: Path::Member(&self.path, "entryPoint").to_string() })
            }
            (ours, other) => Ok(ours.or(other)),
        }
    }

    fn environment(&mut self, name: &str) -> Result<Environment, RequestError> {
        let node = self.take(name);
        let path = Path::Member(&self.path, name);
        let variables = Object::from_node(node, path)?;
        let mut environment = Vec::with_capacity(variables.members.len());
        for (variable, node) in variables.members {
            let path = Path::Member(&path, &variable);
            let problem = match variable.as_str() {
                "" => Some("is empty"),
                name if name.contains('=') => Some("contains `=`"),
                name if name.contains('\0') => Some("contains a NUL character"),
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(RequestError::VariableName { path: path.to_string(), problem });
            }
            let value = text_or_null(node, path, "a string")?.unwrap_or_default();
            environment.push((variable, value));
        }
        // The reader has refused duplicate members.
        Ok(Environment::from_unique(environment))
    }

    /// Credentials exist only with a user name.
    fn registry(&mut self) -> Result<Option<Registry>, RequestError> {
        let node = self.take("registry");
        let mut registry = Object::from_node(node, Path::Member(&self.path, "registry"))?;
        let username = registry.text("username")?;
        let password = registry.text("password")?.map(Secret::new);
        let server_url = registry.text("serverUrl")?.unwrap_or_default();
        Ok(username.map(|username| Registry { username, password, server_url }))
    }
}

fn text_or_null(node: Node, path: Path<'_>, expected: &'static str) -> Result<Option<String>, RequestError> {
    match node {
        Node::Null => Ok(None),
        Node::String(text) if text.contains('\0') => Err(RequestError::Nul { path: path.to_string() }),
        Node::String(text) => Ok(Some(text)),
        other => Err(wrong_type(path, expected, &other)),
    }
}

fn wrong_type(path: Path<'_>, expected: &'static str, found: &Node) -> RequestError {
    RequestError::Unexpected { path: path.to_string(), expected, found: found.kind() }
}
