//! The table `packaging/files`: what is installed where.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Where the bytes of an installed file come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A binary of the workspace.
    Program {
        /// Its name, as in Cargo.toml.
        name: String,
        /// Linked without shared libraries.
        linked_statically: bool,
    },
    /// A file of the repository, relative to its root.
    File(PathBuf),
}

/// One row: a file and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    /// Where the bytes come from.
    pub(crate) source: Source,
    /// Absolute path on the machine.
    pub(crate) path: String,
    /// Permission bits.
    pub(crate) mode: u32,
    /// The unit to restart when the file changed.
    pub(crate) unit: Option<String>,
    /// Installed in the lab, never in the package.
    pub(crate) lab_only: bool,
}

/// The whole table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The files, in the table's order.
    pub(crate) files: Vec<Installed>,
    /// Units that are enabled and started.
    pub(crate) enabled: Vec<String>,
}

impl Manifest {
    /// Reads `packaging/files` below the repository's root.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let path = root.join("packaging/files");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Parses the table; an error names the line.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut manifest = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = index + 1;
            manifest.row(line).with_context(|| format!("line {number}"))?;
        }
        Ok(manifest)
    }

    fn row(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["enable", unit] = words[..] {
            self.enabled.push(unit.to_owned());
            return Ok(());
        }
        let (kind, name, path, mode, unit) = match words[..] {
            [kind, name, path, mode] => (kind, name, path, mode, None),
            [kind, name, path, mode, unit] => (kind, name, path, mode, Some(unit.to_owned())),
            _ => bail!("expected `kind source path mode [unit]` or `enable unit`, found `{line}`"),
        };
        let program = |linked_statically| Source::Program { name: name.to_owned(), linked_statically };
        let (source, lab_only) = match kind {
            "program" => (program(false), false),
            "static" => (program(true), false),
            "lab-program" => (program(false), true),
            "file" => (Source::File(name.into()), false),
            _ => bail!("unknown kind `{kind}`: use program, static, file, lab-program or enable"),
        };
        ensure!(path.starts_with('/') && !path.split('/').any(|part| part == ".."), "`{path}` is not an absolute path");
        ensure!(!self.files.iter().any(|file| file.path == path), "`{path}` is listed twice");
        let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
        let mode = mode.with_context(|| format!("the mode of `{path}` is not an octal number such as 0755"))?;
        self.files.push(Installed { source, path: path.to_owned(), mode, unit, lab_only });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_kind() {
        let text = "# comment\n\nprogram a /usr/bin/a 0755 a.service\nstatic b /usr/lib/b 0755\n\
                    file x/y /etc/y 0644\nlab-program sim /usr/lib/sim 0755\nenable a.socket\n";
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!(manifest.enabled, ["a.socket"]);
        let row = |source, path: &str, mode, unit: Option<&str>, lab_only| Installed {
            source,
            path: path.to_owned(),
            mode,
            unit: unit.map(str::to_owned),
            lab_only,
        };
        let program = |name: &str, linked_statically| Source::Program { name: name.to_owned(), linked_statically };
        assert_eq!(
            manifest.files,
            [
                row(program("a", false), "/usr/bin/a", 0o755, Some("a.service"), false),
                row(program("b", true), "/usr/lib/b", 0o755, None, false),
                row(Source::File("x/y".into()), "/etc/y", 0o644, None, false),
                row(program("sim", false), "/usr/lib/sim", 0o755, None, true),
            ]
        );
    }

    #[test]
    fn errors_name_the_line_and_the_remedy() {
        let cases = [
            (
                "\nprogram a /a\n",
                "line 2: expected `kind source path mode [unit]` or `enable unit`, found `program a /a`",
            ),
            ("thing a /a 0755", "line 1: unknown kind `thing`: use program, static, file, lab-program or enable"),
            ("file a a 0755", "line 1: `a` is not an absolute path"),
            ("file a /a/../b 0755", "line 1: `/a/../b` is not an absolute path"),
            ("file a /a 0998", "line 1: the mode of `/a` is not an octal number such as 0755"),
            ("file a /a 0644\nfile b /a 0644", "line 2: `/a` is listed twice"),
        ];
        for (text, expected) in cases {
            assert_eq!(format!("{:#}", Manifest::parse(text).unwrap_err()), expected, "{text}");
        }
    }

    #[test]
    fn the_shipped_table_parses() {
        let manifest = Manifest::parse(include_str!("../../packaging/files")).unwrap();
        assert!(manifest.files.iter().any(|file| file.path == "/usr/lib/runner/container-hooks.sh"));
        assert!(manifest.enabled.iter().any(|unit| unit == "runner-guestd.socket"), "{:?}", manifest.enabled);
        for unit in &manifest.enabled {
            let path = format!("/usr/lib/systemd/system/{unit}");
            assert!(manifest.files.iter().any(|file| file.path == path), "{unit} is enabled and not installed");
        }
    }
}
