//! The hook as the official runner calls it (protocol text, sections 2, 9, 11 and 15): `bash -e` on the wrapper, the
//! runner's environment, one JSON document on standard input, an empty response file, pipes that are read to their end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::host::{self, PATIENCE};
use crate::request::{self, Step};

/// The official runner's root folder.
pub(crate) const ROOT: &str = "/home/runner";
/// Its work folder, which jobs see as `/__w`.
pub(crate) const WORK: &str = "/home/runner/_work";
/// Its temporary folder, which jobs see as `/__w/_temp`.
pub(crate) const TEMP: &str = "/home/runner/_work/_temp";
/// The wrapper that `ACTIONS_RUNNER_CONTAINER_HOOKS` names.
const HOOK: &str = "/usr/lib/runner/container-hooks.sh";

/// How long the official runner waits for the end of the output after the hook has ended.
const END_OF_OUTPUT: Duration = Duration::from_secs(5);

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// The runner's user and group.
pub(crate) fn runner_ids() -> (u32, u32) {
    let id = |option: &str| host::sh(&format!("id {option} runner")).parse().expect("a number");
    (id("-u"), id("-g"))
}

/// Empties the temporary folder, as the official runner does at job boundaries, and makes the folders of the layout.
pub(crate) fn empty_temp() {
    for entry in fs::read_dir(TEMP).into_iter().flatten().flatten() {
        let path = entry.path();
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let names = ["_github_home", "_github_workflow", "_runner_file_commands", "_runner_hook_responses"];
    let below = names.map(|name| format!("{TEMP}/{name}"));
    let above =
        [ROOT.to_owned(), format!("{ROOT}/externals"), WORK.to_owned(), TEMP.to_owned(), format!("{WORK}/_tool")];
    for folder in above.iter().chain(&below) {
        make_folder(folder);
    }
}

/// A folder of the runner's user.
pub(crate) fn make_folder(path: &str) {
    fs::create_dir_all(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (uid, gid) = runner_ids();
    chown(path, Some(uid), Some(gid)).expect("we are root");
}

/// A file of the runner's user.
pub(crate) fn make_file(path: &str, content: &[u8]) {
    fs::write(path, content).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (uid, gid) = runner_ids();
    chown(path, Some(uid), Some(gid)).expect("we are root");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("we are root");
}

/// One official runner and the job it is at.
pub(crate) struct Runner {
    pub(crate) name: String,
    /// Repository without its owner; the job's folder below the work folder.
    pub(crate) repository: String,
    /// What the hook returned last.
    state: RefCell<Value>,
    variables: RefCell<BTreeMap<String, String>>,
}

impl Runner {
    /// A runner of this name that has checked out `octo/widgets`.
    pub(crate) fn new(name: &str) -> Self {
        Self::with_repository(name, "widgets")
    }

    /// The same with another repository, so that two can work at once.
    pub(crate) fn with_repository(name: &str, repository: &str) -> Self {
        let runner = Self {
            name: name.to_owned(),
            repository: repository.to_owned(),
            state: RefCell::new(Value::Null),
            variables: RefCell::default(),
        };
        fs::remove_dir_all(format!("{WORK}/{repository}")).or_else(missing_is_fine).expect("the old workspace goes");
        make_folder(&format!("{WORK}/{repository}"));
        make_folder(&runner.workspace());
        runner
    }

    /// The workspace on the host.
    pub(crate) fn workspace(&self) -> String {
        format!("{WORK}/{0}/{0}", self.repository)
    }

    /// The workspace in the container.
    pub(crate) fn workspace_inside(&self) -> String {
        format!("/__w/{0}/{0}", self.repository)
    }

    /// Sets a variable of the hook's own environment for all later calls.
    pub(crate) fn set(&self, name: &str, value: &str) {
        self.variables.borrow_mut().insert(name.to_owned(), value.to_owned());
    }

    /// The state the runner would send now.
    pub(crate) fn state(&self) -> Value {
        self.state.borrow().clone()
    }

    /// Makes the runner send another state.
    pub(crate) fn forge_state(&self, state: Value) {
        *self.state.borrow_mut() = state;
    }

    /// A script of the runner, at its host path; the second part is its path in the container.
    pub(crate) fn script(&self, text: &str) -> String {
        let name = format!("{}-{}.sh", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        make_file(&format!("{TEMP}/{name}"), text.as_bytes());
        format!("/__w/_temp/{name}")
    }

    /// `prepare_job` with nothing but an image; it must succeed. Returns the machine's name.
    #[track_caller]
    pub(crate) fn prepare(&self, image: &str) -> String {
        self.prepare_with(request::container(image, self))
    }

    /// `prepare_job` with this container; it must succeed. Returns the machine's name.
    #[track_caller]
    pub(crate) fn prepare_with(&self, container: Value) -> String {
        let ended = self.call(request::prepare(container)).end().expect(0);
        let response = ended.answer();
        response["context"]["container"]["id"].as_str().expect("the machine's name").to_owned()
    }

    /// A script step with `sh -e`, to its end.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> Ended {
        self.step(&Step::script(self, "sh", script))
    }

    /// A script step to its end.
    #[track_caller]
    pub(crate) fn step(&self, step: &Step) -> Ended {
        self.begin(step).end()
    }

    /// A script step under way.
    pub(crate) fn begin(&self, step: &Step) -> Call<'_> {
        self.call(step.request(self))
    }

    /// A script step under way that has printed this line.
    #[track_caller]
    pub(crate) fn begin_until(&self, script: &str, line: &str) -> Call<'_> {
        let call = self.begin(&Step::script(self, "sh", script));
        call.wait_for(line);
        call
    }

    /// `cleanup_job`; it must succeed and say nothing.
    #[track_caller]
    pub(crate) fn cleanup(&self) {
        let ended = self.call(request::cleanup()).end().expect(0);
        assert_eq!(ended.text(), "", "cleanup_job has nothing to say");
    }

    /// A call with an object that lacks `responseFile` and `state`, which the runner adds.
    pub(crate) fn call(&self, mut request: Value) -> Call<'_> {
        let response = new_response_file();
        request["responseFile"] = response.display().to_string().into();
        request["state"] = self.state();
        self.raw(&request.to_string().into_bytes(), Some(response))
    }

    /// A call with these very bytes.
    pub(crate) fn raw(&self, bytes: &[u8], response: Option<PathBuf>) -> Call<'_> {
        self.raw_read_when(bytes, response, None)
    }

    /// The same; its standard output is not read before the gate opens.
    pub(crate) fn raw_read_when(&self, bytes: &[u8], response: Option<PathBuf>, gate: Option<Arc<Gate>>) -> Call<'_> {
        let (uid, gid) = runner_ids();
        let mut child = Command::new("/bin/bash")
            .args(["-e", HOOK])
            .env_clear()
            .envs(self.environment())
            .current_dir(self.workspace())
            .uid(uid)
            .gid(gid)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash starts");
        let mut stdin = child.stdin.take().expect("it is a pipe");
        let bytes = bytes.to_owned();
        std::thread::spawn(move || {
            // A hook that ended early does not read all of it.
            let _ = stdin.write_all(&bytes).and_then(|()| stdin.write_all(b"\n"));
        });
        let stdout = Stream::read(child.stdout.take().expect("it is a pipe"), gate);
        let stderr = Stream::read(child.stderr.take().expect("it is a pipe"), None);
        Call { runner: self, child, stdout, stderr, response }
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let workspace = self.workspace();
        let mut variables: BTreeMap<String, String> = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", ROOT),
            ("ACTIONS_RUNNER_CONTAINER_HOOKS", HOOK),
            ("GITHUB_ACTIONS", "true"),
            ("CI", "true"),
            ("GITHUB_WORKSPACE", &workspace),
            ("GITHUB_REPOSITORY", &format!("octo/{}", self.repository)),
            ("GITHUB_WORKFLOW", "lab tests"),
            ("GITHUB_RUN_ID", "4711"),
            ("GITHUB_RUN_ATTEMPT", "1"),
            ("GITHUB_JOB", "build"),
            ("RUNNER_WORKSPACE", &format!("{WORK}/{}", self.repository)),
            ("RUNNER_TEMP", TEMP),
            ("RUNNER_TOOL_CACHE", &format!("{WORK}/_tool")),
            ("RUNNER_NAME", &self.name),
            ("RUNNER_OS", "Linux"),
            ("RUNNER_ARCH", "X64"),
            ("RUNNER_TRACKING_ID", "github_5a0a6d2e-0000-0000-0000-000000000001"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        variables.extend(self.variables.borrow().clone());
        variables
    }
}

/// An empty file of the runner's user, as there is before each call.
pub(crate) fn new_response_file() -> PathBuf {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = format!("{TEMP}/_runner_hook_responses/{}-{number}.json", std::process::id());
    make_file(&path, b"");
    path.into()
}

fn missing_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Holds readers back until it is opened.
#[derive(Default)]
pub(crate) struct Gate(Mutex<bool>, Condvar);

impl Gate {
    /// Lets everybody through.
    pub(crate) fn open(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.1.notify_all();
    }

    fn pass(&self) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.1.wait_while(open, |open| !*open));
    }
}

/// What has come out of a pipe so far, and whether that was all.
#[derive(Default)]
struct Stream(Mutex<(Vec<u8>, bool)>, Condvar);

impl Stream {
    fn read(mut pipe: impl Read + Send + 'static, gate: Option<Arc<Gate>>) -> Arc<Self> {
        let stream = Arc::new(Self::default());
        let filled = Arc::clone(&stream);
        std::thread::spawn(move || {
            if let Some(gate) = gate {
                gate.pass();
            }
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut state = filled.lock();
                state.0.extend_from_slice(&buffer[..count]);
                state.1 = count == 0;
                filled.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        stream
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is so, or the time is over. The bytes, and whether it is so.
    fn wait(&self, limit: Duration, so: impl Fn(&(Vec<u8>, bool)) -> bool) -> (Vec<u8>, bool) {
        let waited = self.1.wait_timeout_while(self.lock(), limit, |state| !so(state));
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        (state.0.clone(), so(&state))
    }
}

/// A hook process.
pub(crate) struct Call<'a> {
    runner: &'a Runner,
    child: Child,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
    response: Option<PathBuf>,
}

impl Call<'_> {
    /// Its process: `container-hooks` itself, because the wrapper becomes it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until this text has come out of it.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        let has = |state: &(Vec<u8>, bool)| find(&state.0, text.as_bytes()).is_some();
        // The end of the output ends the waiting too.
        let (bytes, _) = self.stdout.wait(PATIENCE, |state| has(state) || state.1);
        let errors = String::from_utf8_lossy(&self.stderr.lock().0).into_owned();
        assert!(
            find(&bytes, text.as_bytes()).is_some(),
            "no {text:?} in\nstdout: {}\nstderr: {errors}",
            String::from_utf8_lossy(&bytes)
        );
    }

    /// Sends a signal to the hook process alone, as the official runner does.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        host::kill(self.pid(), signal);
    }

    /// Whether the hook has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child can be waited for").is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE * 2;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("our own child can be waited for") {
                break status;
            }
            if Instant::now() > deadline {
                // A test that failed must not leave its hook behind.
                let _ = self.child.kill();
                let _ = self.child.wait();
                let (out, err) = (self.stdout.lock().0.clone(), self.stderr.lock().0.clone());
                let (out, err) =
                    (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned());
                panic!("the hook does not end\nstdout: {out}\nstderr: {err}");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let (stdout, whole) = self.stdout.wait(END_OF_OUTPUT, |state| state.1);
        let (stderr, whole_too) = self.stderr.wait(END_OF_OUTPUT, |state| state.1);
        let response = self.response.as_ref().and_then(|path| fs::read(path).ok());
        let ended =
            Ended { status: host::status_of(status), stdout, stderr, response, held_open: !(whole && whole_too) };
        if ended.status == 0
            && let Some(state) = ended.parsed().and_then(|response| response.get("state").cloned())
            && !state.is_null()
        {
            *self.runner.state.borrow_mut() = state;
        }
        ended
    }
}

/// A hook process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit status, or 128 + signal if a signal ended the hook itself.
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Content of the response file, `None` if it is gone or cannot be read as a file.
    pub(crate) response: Option<Vec<u8>>,
    /// Whether something held its output open for longer than the official runner waits.
    pub(crate) held_open: bool,
}

impl Ended {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output without the last line feed.
    pub(crate) fn line(&self) -> String {
        self.text().trim_end_matches('\n').to_owned()
    }

    /// What went wrong, for the person who reads the test's log.
    pub(crate) fn story(&self) -> String {
        let cut = |text: String| {
            if text.len() > 3_000 { format!("{}…", text.chars().take(3_000).collect::<String>()) } else { text }
        };
        format!("status {}\nstdout: {}\nstderr: {}", self.status, cut(self.text()), cut(self.error_text()))
    }

    /// Demands this status, and that nothing held the output open.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{}", self.story());
        assert!(!self.held_open, "something holds the hook's output open: {}", self.story());
        self
    }

    fn parsed(&self) -> Option<Value> {
        serde_json::from_slice(self.response.as_deref()?).ok()
    }

    /// The response, which must be one JSON object.
    #[track_caller]
    pub(crate) fn answer(&self) -> Value {
        let response = self.parsed().unwrap_or_else(|| panic!("no response: {:?}\n{}", self.response, self.story()));
        assert!(response.is_object(), "{response}");
        response
    }

    /// Lines that are errors of ours.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.text().lines().filter(|line| line.starts_with("::error::")).map(str::to_owned).collect()
    }

    /// Demands a failure of ours: status 125, one error line with all of these words as the last line, nothing on
    /// standard error, no response.
    #[track_caller]
    pub(crate) fn own_failure(self, words: &[&str]) -> String {
        assert_eq!(self.status, 125, "{}", self.story());
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "{}", self.story());
        let error = errors[0].clone();
        assert!(self.text().ends_with(&format!("{error}\n")), "the error is not last: {}", self.story());
        for word in words {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
        assert!(self.stderr.is_empty(), "{}", self.story());
        assert!(self.response.as_ref().is_none_or(Vec::is_empty), "a response was written: {:?}", self.response);
        assert!(error.len() < 2_000, "nobody reads {} bytes: {error}", error.len());
        error
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Whether this path exists, links not followed.
pub(crate) fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}
