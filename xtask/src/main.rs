//! Developer commands, run as `cargo xtask COMMAND`.

mod bench;
mod check;
mod child;
mod demo;
mod image;
mod install;
mod lab;
mod manifest;
mod progress;
mod sim;
mod soak;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use lab::{Instance, Lab, Request, Suite};
use workspace::{Profile, Workspace};

/// Exit code for our own failures where a program's code is passed on.
const OWN_FAILURE: u8 = 125;

/// Developer commands of runner-appliance.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo                           from nothing to a job in a guest
  cargo xtask lab up                         boot the lab host, build and install everything there
  cargo xtask lab exec -- journalctl -f      run a program in it
  cargo xtask lab exec --user runner -- id
  cargo xtask sim docs/examples/hello.yml    run a workflow's job in it
  cargo xtask lab down                       remove it and all it left
  cargo xtask test                           format, clippy, unit tests, lab tests";

#[derive(Subcommand)]
enum Command {
    /// The lab host: a nested machine with its own systemd, where the product is installed and tested
    #[command(subcommand)]
    Lab(LabCommand),
    /// Set everything up, run a job in a guest, and show that nothing is left
    #[command(after_help = "The first run makes the lab and compiles (minutes); later ones take seconds.")]
    Demo {
        #[command(flatten)]
        which: Which,
    },
    /// Build and install the product on this machine, as `packaging/files` says
    Install,
    /// Measure the hook and pulling in the lab with release builds
    #[command(
        after_help = "Pulling is compared with podman, and with skopeo and umoci; Debian's packages are added to the lab host for \
                            it.\n\nExamples:\n  cargo xtask bench\n  cargo xtask bench --jobs 0 --pulls 3\n  \
                            cargo xtask bench --json figures.json"
    )]
    Bench {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        amounts: bench::Amounts,
        /// Also write the figures as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Run a job of a workflow file in the lab host, by the official runner's stand-in and as its user
    #[command(
        after_help = "Exit status: the stand-in's, 0 or 1 with the job, 2 for a workflow or an option it cannot use; 125 if \
                            we failed. Paths in further arguments are the lab host's.\n\nExamples:\n  \
                            cargo xtask sim docs/examples/hello.yml\n  \
                            cargo xtask sim docs/examples/hello.yml build -- --cancel-after 2"
    )]
    Sim {
        #[command(flatten)]
        which: Which,
        /// Workflow file; local actions it names are looked for beside it
        workflow: PathBuf,
        /// Job id, if the file has several
        job: Option<String>,
        /// Further arguments of the stand-in
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Pull, run and collect many images in the lab while the broker and its helpers are killed at random
    #[command(
        after_help = "Removes every image of the lab host. Exit status: 0 if everything ran, and the store is clean and nothing \
                            is left.\n\nExamples:\n  cargo xtask soak\n  cargo xtask soak --images 50 --seed 7"
    )]
    Soak {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        amounts: soak::Amounts,
    },
    /// Check format and lints, run unit tests and lab tests, count what was skipped
    #[command(after_help = "With CI=true in the environment a skipped test is a failure.\n\nExamples:\n  \
                            cargo xtask test --no-lab\n  cargo xtask test cleanup_job")]
    Test {
        #[command(flatten)]
        which: Which,
        /// Leave the lab tests out
        #[arg(long)]
        no_lab: bool,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
}

#[derive(Subcommand)]
enum LabCommand {
    /// Boot the lab host unless it runs, build the workspace, install what changed, start the units
    #[command(after_help = "The first call makes the root tree (about 30 s) and compiles; later ones take seconds.")]
    Up {
        #[command(flatten)]
        which: Which,
        /// Install release builds
        #[arg(long)]
        release: bool,
        /// Only boot the host: build and install nothing
        #[arg(long)]
        host_only: bool,
    },
    /// Kill the lab host and remove everything it left on this machine, except the cached root tree
    Down {
        #[command(flatten)]
        which: Which,
        /// The host of every suite
        #[arg(long, conflicts_with = "suite")]
        all: bool,
        /// Remove the cached root tree as well
        #[arg(long)]
        purge: bool,
    },
    /// Say whether the lab host runs; exit 1 if it does not
    Status {
        #[command(flatten)]
        which: Which,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run a program in the lab host, with our standard streams (or a terminal there) and its exit status
    #[command(
        after_help = "Exit status: the program's own, 128 + N if signal N ended it, 127 if there is no such program, 126 if it \
                            cannot be run, 125 if we failed.\n\nExamples:\n  cargo xtask lab exec -- systemctl status\n  \
                            cargo xtask lab exec --user runner -- sh -c 'cat >file' <file\n  cargo xtask lab exec -- bash"
    )]
    Exec {
        #[command(flatten)]
        which: Which,
        /// User of the lab host, by name or number
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Copy a file or a folder into the lab host, owned by root
    #[command(
        after_help = "Examples:\n  cargo xtask lab put docs/examples /root/examples\n  cargo xtask lab put image.tar /root/"
    )]
    Put {
        #[command(flatten)]
        which: Which,
        /// File or folder on this machine
        source: PathBuf,
        /// Absolute path in the lab host; a file goes into a target that is a folder or ends with /
        target: String,
    },
    /// Reboot the lab host and wait until it runs again; its files stay
    Reboot {
        #[command(flatten)]
        which: Which,
        /// Kill all of it at once instead of a clean shutdown
        #[arg(long)]
        power_cut: bool,
    },
}

#[derive(Args)]
struct Which {
    /// Debian release of the lab host
    #[arg(long, value_enum, default_value_t = Suite::Trixie)]
    suite: Suite,
    /// Name of a lab host of your own, beside the others of the suite (or RUNNER_LAB_INSTANCE in the environment)
    #[arg(long, value_name = "NAME")]
    instance: Option<Instance>,
}

impl Which {
    fn lab(&self) -> Result<Lab> {
        Ok(Lab::new(self.suite, self.instance()?))
    }

    fn instance(&self) -> Result<Option<Instance>> {
        if self.instance.is_some() {
            return Ok(self.instance.clone());
        }
        match std::env::var("RUNNER_LAB_INSTANCE") {
            Ok(name) if !name.is_empty() => name.parse().map(Some).context("RUNNER_LAB_INSTANCE"),
            _ => Ok(None),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let own_failure = if passes_status_on(&arguments) { OWN_FAILURE } else { 1 };
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // There is nobody to tell when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(own_failure) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            progress::note(&format!("error: {error:#}"));
            ExitCode::from(own_failure)
        }
    }
}

/// Whether the command's exit status is another program's.
fn passes_status_on(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    match words.next() {
        Some("lab") => words.next() == Some("exec"),
        first => first == Some("sim"),
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Lab(command) => run_lab(command),
        Command::Sim { which, workflow, job, args } => sim::run(&which.lab()?, &workflow, job.as_deref(), &args),
        Command::Demo { which } => demo::run(&Workspace::find()?, &which.lab()?),
        Command::Install => install::run(&Workspace::find()?),
        Command::Bench { which, amounts, json } => {
            bench::run(&Workspace::find()?, &which.lab()?, &amounts, json.as_deref())
        }
        Command::Soak { which, amounts } => soak::run(&Workspace::find()?, &which.lab()?, &amounts),
        Command::Test { which, no_lab, filter } => {
            check::run(&Workspace::find()?, &check::Plan { filter, no_lab, lab: which.lab()? })
        }
    }
}

fn run_lab(command: LabCommand) -> Result<u8> {
    match command {
        LabCommand::Up { which, release, host_only } => {
            let profile = if release { Profile::Release } else { Profile::Dev };
            which.lab()?.up(&Workspace::find()?, profile, host_only)?;
        }
        LabCommand::Down { which, all, purge } => {
            let suites = if all { Suite::ALL.to_vec() } else { vec![which.suite] };
            for suite in suites {
                Lab::new(suite, which.instance()?).down(purge)?;
            }
        }
        LabCommand::Status { which, json } => {
            return Ok(u8::from(!which.lab()?.status(json)?));
        }
        LabCommand::Exec { which, user, command } => return which.lab()?.exec(&Request { user, command }),
        LabCommand::Put { which, source, target } => which.lab()?.put(&source, &target)?,
        LabCommand::Reboot { which, power_cut } => which.lab()?.reboot(power_cut)?,
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn own_failures_are_told_apart_where_a_status_is_passed_on() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(passes_status_on(&words("xtask lab exec --bad -- true")));
        assert!(passes_status_on(&words("xtask sim file")));
        assert!(!passes_status_on(&words("xtask lab up")));
        assert!(!passes_status_on(&words("xtask")));
    }

    #[test]
    fn arguments_of_a_program_are_not_ours() {
        let line = ["xtask", "lab", "exec", "--user", "runner", "--", "ls", "--user", "-l", "--", "x"];
        let Command::Lab(LabCommand::Exec { user, command, .. }) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not parsed as `lab exec`")
        };
        assert_eq!(user.as_deref(), Some("runner"));
        assert_eq!(command, ["ls", "--user", "-l", "--", "x"]);
    }
}
