//! An action's manifest, `action.yml`: container actions, and JavaScript ones so far as they become hook calls.

use std::path::{Path, PathBuf};

use crate::document::{At, Mistake, Pairs};
use crate::yaml;

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Folder it was found in; actions are run from there.
    pub folder: PathBuf,
    /// Inputs in order with their defaults.
    pub inputs: Vec<(String, Option<String>)>,
    /// How it runs.
    pub runs: Runs,
}

/// How an action runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runs {
    /// `using: docker`.
    Docker {
        /// A reference, or a file below the action's folder.
        image: Image,
        /// `pre-entrypoint`.
        pre: Option<String>,
        /// `entrypoint`.
        main: Option<String>,
        /// `post-entrypoint`.
        post: Option<String>,
        /// `args`; `None` leaves them to the step's input.
        arguments: Option<Vec<String>>,
        /// `env`.
        env: Pairs,
    },
    /// `using: node20` or `node24`.
    Node {
        /// Name of the folder in the externals.
        version: String,
        /// Script before the job's steps.
        pre: Option<String>,
        /// Script of the step.
        main: String,
        /// Script after the job's steps.
        post: Option<String>,
    },
}

/// What a container action runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// An image reference.
    Reference(String),
    /// Path of a Dockerfile, not normalised.
    Dockerfile(PathBuf),
}

/// Why an action cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// No manifest and no Dockerfile.
    #[error("no action.yml, action.yaml or Dockerfile in {0}: is the repository checked out?")]
    Missing(PathBuf),
    /// It could not be read.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// Its content is not understood.
    #[error("{0}: {1}")]
    Mistake(PathBuf, Mistake),
}

/// Reads the action of a folder: its manifest, or a Dockerfile alone.
///
/// # Errors
/// Nothing there, unreadable, or a manifest outside the subset.
pub fn load(folder: &Path) -> Result<Action, ActionError> {
    for name in ["action.yml", "action.yaml"] {
        let path = folder.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => return parse(folder, &text).map_err(|mistake| ActionError::Mistake(path, mistake)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(ActionError::Unreadable(path, error)),
        }
    }
    for name in ["Dockerfile", "dockerfile"] {
        let path = folder.join(name);
        if path.is_file() {
            let runs = Runs::Docker {
                image: Image::Dockerfile(path),
                pre: None,
                main: None,
                post: None,
                arguments: None,
                env: Vec::new(),
            };
            return Ok(Action { folder: folder.to_owned(), inputs: Vec::new(), runs });
        }
    }
    Err(ActionError::Missing(folder.to_owned()))
}

/// Reads a manifest's text.
///
/// # Errors
/// Anything outside the subset, with line and place.
pub fn parse(folder: &Path, text: &str) -> Result<Action, Mistake> {
    let node =
        yaml::parse(text).map_err(|error| Mistake { line: error.line, place: String::new(), what: error.what })?;
    let top = At::root(&node).fields(&["name", "description", "author", "branding", "inputs", "outputs", "runs"])?;
    let mut inputs = Vec::new();
    for (name, at) in top.get("inputs").map_or(Ok(Vec::new()), At::entries)? {
        let fields = at.fields(&["description", "required", "default", "deprecationMessage"])?;
        inputs.push((name.to_owned(), fields.text("default")?));
    }
    let runs = top.need("runs")?;
    let all = runs.fields(&[
        "using",
        "image",
        "pre-entrypoint",
        "entrypoint",
        "post-entrypoint",
        "args",
        "env",
        "pre",
        "main",
        "post",
    ])?;
    let using = all.need("using")?;
    let runs = match using.text()?.as_str() {
        "docker" => {
            runs.fields(&["using", "image", "pre-entrypoint", "entrypoint", "post-entrypoint", "args", "env"])?;
            Runs::Docker {
                image: image(folder, &all.need("image")?.text()?),
                pre: all.text("pre-entrypoint")?,
                main: all.text("entrypoint")?,
                post: all.text("post-entrypoint")?,
                arguments: all.get("args").map(At::texts).transpose()?,
                env: all.pairs("env")?,
            }
        }
        version @ ("node20" | "node24") => {
            runs.fields(&["using", "pre", "main", "post"])?;
            Runs::Node {
                version: version.to_owned(),
                pre: all.text("pre")?,
                main: all.need("main")?.text()?,
                post: all.text("post")?,
            }
        }
        other => return Err(using.mistake(format!("`{other}`: this program runs docker, node20 and node24 actions"))),
    };
    Ok(Action { folder: folder.to_owned(), inputs, runs })
}

/// A `runs.image` is a Dockerfile if its last part is called so; it is joined to the folder as it is written.
fn image(folder: &Path, text: &str) -> Image {
    if let Some(reference) = text.strip_prefix("docker://") {
        return Image::Reference(reference.to_owned());
    }
    let last = text.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    if last.starts_with("dockerfile.") || last.ends_with("dockerfile") {
        // `Path::join` keeps `./`; only an absolute path would replace the folder.
        Image::Dockerfile(folder.join(text.trim_start_matches('/')))
    } else {
        Image::Reference(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_a_dockerfile() {
        for (text, dockerfile) in [
            ("Dockerfile", true),
            ("Dockerfile.ci", true),
            ("sub/my.dockerfile", true),
            ("docker://octo/Dockerfile", false),
            ("alpine:3.20", false),
            ("docker://alpine", false),
        ] {
            assert_eq!(matches!(image(Path::new("/a"), text), Image::Dockerfile(_)), dockerfile, "{text}");
        }
    }

    #[test]
    fn manifests() {
        let action = parse(
            Path::new("/w/./act"),
            "name: x\ninputs: {who: {default: Mona}, other: {required: true}}\nruns:\n  using: docker\n  image: Dockerfile\n  post-entrypoint: /post.sh\n  args: [a, 'b c']\n  env: {E: 1}\n",
        )
        .unwrap();
        assert_eq!(action.inputs, [("who".into(), Some("Mona".into())), ("other".into(), None)]);
        let Runs::Docker { image, post, arguments, .. } = action.runs else { panic!("not docker") };
        assert_eq!(image, Image::Dockerfile("/w/./act/Dockerfile".into()));
        assert_eq!((post.as_deref(), arguments.unwrap().len()), (Some("/post.sh"), 2));
        for (text, word) in [
            ("runs: {using: composite, steps: []}", "unknown key `steps`"),
            ("runs: {using: composite}", "this program runs"),
            ("runs: {using: docker, image: a, main: x}", "unknown key `main`"),
            ("runs: {using: docker, image: a, args: ['${{ inputs.x }}']}", "expressions"),
            ("runs: {using: docker}", "`image` is missing"),
        ] {
            let mistake = parse(Path::new("/"), text).unwrap_err();
            assert!(mistake.what.contains(word), "{text}: {mistake}");
        }
    }
}
