//! Runs one program in the container of the guest this process is in. Started by the guest's PID 1; reads what to do
//! from its standard input (`runner_inside::exec`). If the program cannot be started it says why through `STATUS=` of
//! sd_notify(3) and exits with `NOT_STARTED`.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;

use nix::errno::Errno;
use runner_inside::exec::{NOT_STARTED, Program, STATUS_PREFIX, Stdin};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::CapabilitySet;

/// No request comes near this; it only bounds what a damaged length could make us reserve.
const MAX_BLOCK: u64 = 64 * 1024 * 1024;

fn main() -> ExitCode {
    // The manager's socket lies outside the container's root, so it is connected to before the root changes.
    let notify = connect_notify();
    let Err(failure) = run();
    if let Some(socket) = notify {
        // A line end would end the text, and what follows it would be another assignment.
        let failure: String = failure.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        // Nothing is left to do about a message that cannot be sent; the exit status still says "not started".
        let _ = socket.send(format!("STATUS={STATUS_PREFIX}{failure}").as_bytes());
    }
    ExitCode::from(NOT_STARTED)
}

fn connect_notify() -> Option<UnixDatagram> {
    let path = std::env::var_os("NOTIFY_SOCKET")?;
    let socket = UnixDatagram::unbound().ok()?;
    if let Some(name) = path.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name).ok()?).ok()?;
    } else {
        socket.connect(path).ok()?;
    }
    Some(socket)
}

/// Replaces this process by the program. The error is `FIELD: reason`, for the person who reads the step's log.
fn run() -> Result<Infallible, String> {
    let program = read_program()?;

    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("standard input: cannot open /dev/null: {error}"))?;
    let terminal = match &program.stdin {
        Stdin::Terminal(path) => Some(open_terminal(path)?),
        Stdin::Null | Stdin::Rest => None,
    };

    rustix::process::chroot(OsStr::from_bytes(&program.root))
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(|error| format!("container root: cannot be entered: {error}"))?;
    become_user(&program)?;
    rustix::process::chdir(OsStr::from_bytes(&program.directory)).map_err(|error| {
        format!("workingDirectory: cannot enter '{}': {error}", String::from_utf8_lossy(&program.directory))
    })?;

    let streams = match (&program.stdin, &terminal) {
        (Stdin::Rest, _) => Ok(()),
        (_, Some(terminal)) => {
            dup2_stdin(terminal).and_then(|()| dup2_stdout(terminal)).and_then(|()| dup2_stderr(terminal))
        }
        (Stdin::Null | Stdin::Terminal(_), None) => dup2_stdin(&null),
    };
    streams.map_err(|error| format!("standard streams: {error}"))?;
    execute(&program)
}

fn read_program() -> Result<Program, String> {
    // Unbuffered on purpose: what follows the block belongs to the program.
    let mut input = std::fs::File::from(
        std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| format!("request: {error}"))?,
    );
    let mut length = [0; 8];
    input.read_exact(&mut length).map_err(|error| format!("request: {error}"))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_BLOCK {
        return Err(format!("request: {length} bytes are too many"));
    }
    let mut block = Vec::new();
    input.take(length).read_to_end(&mut block).map_err(|error| format!("request: {error}"))?;
    Program::decode(&block).map_err(|error| format!("request: {error}"))
}

fn open_terminal(path: &[u8]) -> Result<OwnedFd, String> {
    let fail = |error: rustix::io::Errno| format!("terminal: {}: {error}", String::from_utf8_lossy(path));
    // PID 1 made this process a session leader, so the first terminal it opens becomes the controlling one.
    let terminal =
        rustix::fs::open(OsStr::from_bytes(path), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
    Ok(terminal)
}

fn become_user(program: &Program) -> Result<(), String> {
    let fail = |error: rustix::io::Errno| format!("user: cannot become {}:{}: {error}", program.uid, program.gid);
    let groups: Vec<Gid> = program.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(program.uid), Gid::from_raw(program.gid));
    // What is inheritable would survive into programs with file capabilities, whoever starts them.
    let mut capabilities = rustix::thread::capabilities(None).map_err(fail)?;
    capabilities.inheritable = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, capabilities).map_err(fail)?;
    // Groups first: the right to set them goes away with the user id.
    rustix::thread::set_thread_groups(&groups).map_err(fail)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(fail)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(fail)
}

fn execute(program: &Program) -> Result<Infallible, String> {
    let c_strings = |strings: &[Vec<u8>], field: &str| {
        strings
            .iter()
            .map(|string| CString::new(string.as_slice()).map_err(|_| format!("{field}: contains a NUL byte")))
            .collect::<Result<Vec<_>, _>>()
    };
    let arguments = c_strings(&program.arguments, "entryPointArgs")?;
    let environment = c_strings(&program.environment, "environmentVariables")?;
    let name = program.arguments.first().ok_or("entryPoint: is empty")?;
    let shown = String::from_utf8_lossy(name);

    restore_sigpipe();
    let mut failure = Errno::ENOENT;
    for candidate in candidates(name, &program.environment) {
        let Ok(path) = CString::new(candidate) else { continue };
        let Err(error) = nix::unistd::execve(&path, &arguments, &environment);
        match error {
            // As execvp(3): a directory that lacks it is skipped, and a refusal is remembered.
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => failure = error,
            _ => return Err(explain(&shown, error)),
        }
    }
    Err(explain(&shown, failure))
}

/// Rust's runtime ignores SIGPIPE, and what is ignored stays so through execve(2). Programs expect to be ended by it:
/// `yes | head` would complain otherwise.
fn restore_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is installed, and this process has one thread.
    #[expect(unsafe_code, reason = "signal(2) has no safe form")]
    // SIGPIPE exists and has a default, so this cannot fail.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

fn explain(program: &str, error: Errno) -> String {
    match error {
        Errno::ENOENT => format!("entryPoint: '{program}' is not in the container (or its interpreter is not)"),
        Errno::EACCES => format!("entryPoint: '{program}' may not be executed: {}", error.desc()),
        Errno::E2BIG => "environmentVariables: arguments and environment together are too large for the kernel".into(),
        Errno::ENOEXEC => format!("entryPoint: '{program}' is not a program for this machine"),
        _ => format!("entryPoint: '{program}' cannot be executed: {}", error.desc()),
    }
}

/// The paths to try, in order.
fn candidates(name: &[u8], environment: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    path.split(|byte| *byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() { b"." } else { directory };
            [directory, b"/", name].concat()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::candidates;

    #[test]
    fn a_program_is_looked_up_like_execvp_does() {
        let environment = [b"PATH=/a::/b c".to_vec()];
        assert_eq!(candidates(b"sh", &environment), [b"/a/sh".to_vec(), b"./sh".to_vec(), b"/b c/sh".to_vec()]);
        assert_eq!(candidates(b"./x", &environment), [b"./x".to_vec()]);
        assert_eq!(candidates(b"sh", &[]), [b"/usr/bin/sh".to_vec(), b"/bin/sh".to_vec()]);
        assert_eq!(candidates(b"", &environment), Vec::<Vec<u8>>::new());
    }
}
