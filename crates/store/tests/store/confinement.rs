//! What `layer-unpack` is on the host while it works, and what becomes of it and of the store when it is not itself.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use runner_store::{BlobRequest, Digest, ErrorKind, Fetching, Imported, Progress, Remote, Store, StoreError, Unpacker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::fixtures::{BASE, Bench, Item, Oci, REFERENCE, TAR, Tar};

/// Bytes of a layer that come before the unpacker is looked at; progress is told every 4 MiB.
const FIRST: usize = 6 << 20;

/// A registry with an image of one layer, which keeps the layer's end back until it is told to go on.
struct Slow {
    oci: Oci,
    go_on: Mutex<Option<Receiver<()>>>,
}

impl Remote for Slow {
    fn registry(&self) -> &str {
        "docker.io"
    }

    fn root(&self) -> Result<(String, Vec<u8>), StoreError> {
        Ok((String::new(), self.oci.manifest_text()))
    }

    fn manifest(&self, _: &Digest) -> Result<Vec<u8>, StoreError> {
        unreachable!("there is no index")
    }

    fn configuration(&self, _: &Digest, _: u64) -> Result<Vec<u8>, StoreError> {
        Ok(self.oci.config_text())
    }

    fn has_mirrors(&self) -> bool {
        false
    }

    fn blob(&self, blob: &BlobRequest<'_>, file: OwnedFd) -> Result<Fetching, StoreError> {
        assert_eq!(blob.have, 0);
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let bytes = self.oci.layers[0].0.clone();
        let go_on = self.go_on.lock().unwrap().take();
        let writer = std::thread::spawn(move || {
            let (mut file, mut pipe) = (fs::File::from(file), fs::File::from(write));
            let (first, rest) = bytes.split_at(FIRST);
            let mut send = |bytes: &[u8]| file.write_all(bytes).and_then(|()| pipe.write_all(bytes));
            // A closed pipe is no failure of the registry's.
            if send(first).is_ok() {
                if let Some(go_on) = go_on {
                    let _ = go_on.recv();
                }
                let _ = send(rest);
            }
        });
        let outcome = Box::new(|| {
            writer.join().unwrap();
            Ok(())
        });
        Ok(Fetching { pipe: read, outcome })
    }
}

/// An image of one layer that does not compress, with `etc/own` at its beginning.
fn large() -> Oci {
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(2 * FIRST)
    .collect();
    let tar = Tar::new().file("etc/own", "x").add(Item { path: b"noise", data: &noise, ..Item::default() }).end();
    Oci::of(&[tar])
}

/// Pulls that image; `look` is given the unpacker's process when it has unpacked the layer's beginning and waits for the
/// rest.
fn pull(bench: &Bench, base: u32, mut look: impl FnMut(&Path) + Send) -> Result<Imported, StoreError> {
    let (go, go_on) = channel();
    let slow = Slow { oci: large(), go_on: Mutex::new(Some(go_on)) };
    let mut go = Some(go);
    let outcome = bench.store.pull(REFERENCE, None, &slow, &mut |progress| {
        if matches!(progress, Progress::Unpacking { done, .. } if done > 0)
            && let Some(go) = go.take()
        {
            look(&process_of(base));
            let _ = go.send(());
        }
    });
    outcome.map(|(imported, _)| imported)
}

/// A bench whose unpackers have ids of their own, by which they are told from those of other tests.
fn bench(base: u32) -> Bench {
    Bench::with(Unpacker::Sandboxed { program: env!("CARGO_BIN_EXE_layer-unpack").into(), base })
}

/// The folder in `/proc` of the process that runs as `base`.
fn process_of(base: u32) -> PathBuf {
    let mut found = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(|path| {
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        status.lines().any(|line| line == format!("Uid:\t{base}\t{base}\t{base}\t{base}"))
    });
    let process = found.next().unwrap_or_else(|| panic!("no process has the uid {base}"));
    assert_eq!(found.next(), None, "a second process has the uid {base}");
    process
}

fn pid_of(process: &Path) -> Pid {
    Pid::from_raw(process.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap()
}

#[test]
fn the_unpacker_is_nobody_and_sees_nothing_but_the_layer() {
    let base = BASE + 0x1_0000;
    let bench = bench(base);
    pull(&bench, base, |process| {
        let status = fs::read_to_string(process.join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        let ids = format!("{base}\t{base}\t{base}\t{base}");
        // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP: bits 0, 1, 3, 4, 31.
        let (five, none) = ("000000008000001b", "0000000000000000");
        for (name, expected) in [
            ("Uid", ids.as_str()),
            ("Gid", &ids),
            ("Groups", ""),
            ("CapInh", none),
            ("CapPrm", five),
            ("CapEff", five),
            ("CapBnd", five),
            ("CapAmb", none),
            ("NoNewPrivs", "1"),
        ] {
            assert_eq!(field(name), expected, "{name}");
        }
        assert!(field("NSpid").ends_with("\t1"), "{}", field("NSpid"));
        let memory: u64 = field("VmHWM").trim_end_matches(" kB").parse().unwrap();
        assert!(memory < 16 << 10, "{memory} KiB");

        for (namespace, own) in [("user", true), ("pid", true), ("net", true), ("mnt", false)] {
            let of = |folder: &Path| fs::read_link(folder.join("ns").join(namespace)).unwrap();
            assert_eq!(of(process) != of(Path::new("/proc/self")), own, "{namespace}");
        }
        let interfaces = fs::read_to_string(process.join("net/dev")).unwrap();
        assert_eq!(interfaces.lines().count(), 3, "two lines of heading and the loopback: {interfaces}");

        let root = process.join("root");
        let mut names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["etc", "noise"]);
        assert_eq!(fs::read_to_string(root.join("etc/own")).unwrap(), "x");
        assert!(!root.join("etc/passwd").exists());

        let descriptors = fs::read_dir(process.join("fd")).unwrap().map(|entry| entry.unwrap().path());
        let mut kinds = Vec::new();
        for descriptor in descriptors {
            let target = fs::read_link(&descriptor).unwrap().to_string_lossy().into_owned();
            let info = process.join("fdinfo").join(descriptor.file_name().unwrap());
            let info = fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            let writes = u32::from_str_radix(flags, 8).unwrap() & 0o3 != 0;
            let kind = match target.as_str() {
                "/dev/null" => "null",
                _ if target.starts_with("socket:") => "socket",
                _ if target.starts_with("pipe:") => "pipe",
                _ if target.contains("/partial/") => "packed",
                _ => match fs::metadata(&descriptor) {
                    Ok(metadata)
                        if metadata.is_dir() && metadata.dev() == fs::metadata(bench.images()).unwrap().dev() =>
                    {
                        "folder"
                    }
                    _ => "file",
                },
            };
            assert!(!writes || matches!(kind, "socket" | "null" | "file"), "{kind} {target} can be written");
            kinds.push(kind);
        }
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds, ["file", "folder", "null", "packed", "pipe", "socket"]);
        let limits = fs::read_to_string(process.join("limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    })
    .unwrap();
    let lease = bench.store.resolve(REFERENCE).unwrap().unwrap();
    let metadata = fs::metadata(lease.layers()[0].join("noise")).unwrap();
    assert_eq!((metadata.len(), metadata.uid(), metadata.gid()), (2 * FIRST as u64, 0, 0));
}

#[test]
fn an_unpacker_that_is_killed_leaves_nothing_and_the_pull_goes_on_later() {
    let base = BASE + 0x2_0000;
    let bench = bench(base);
    let error = pull(&bench, base, |process| kill_process(pid_of(process), Signal::KILL).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("layer-unpack ended without a result (signal: 9 (SIGKILL))"), "{error}");
    assert!(bench.names("tmp").is_empty(), "left {:?}", bench.names("tmp"));
    assert!(bench.names("layers").is_empty(), "left {:?}", bench.names("layers"));
    assert!(bench.store.resolve(REFERENCE).unwrap().is_none());
    assert_eq!(bench.names("partial").len(), 1, "what was fetched is kept");
}

/// Names the folder of the store, in the environment of the process that dies.
const DIES_IN: &str = "RUNNER_STORE_TEST_DIES_IN";

#[test]
fn an_unpacker_dies_with_whoever_started_it() {
    let base = BASE + 0x3_0000;
    if let Ok(folder) = std::env::var(DIES_IN) {
        let mut bench = bench(base);
        bench.store = Store::open(Path::new(&folder))
            .unwrap()
            .with_unpacker(Unpacker::Sandboxed { program: env!("CARGO_BIN_EXE_layer-unpack").into(), base });
        let _ = pull(&bench, base, |process| {
            writeln!(std::io::stderr(), "unpacker {}", pid_of(process).as_raw_pid()).unwrap();
            kill_process(rustix::process::getpid(), Signal::KILL).unwrap();
        });
        return;
    }
    let bench = bench(base);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "confinement::an_unpacker_dies_with_whoever_started_it"])
        .env(DIES_IN, bench.images())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let unpacker = lines
        .inspect(|line| said.push(line.clone()))
        .find_map(|line| line.strip_prefix("unpacker ").map(str::to_owned));
    let status = child.wait().unwrap();
    let pid = unpacker.unwrap_or_else(|| panic!("{status}: {said:?}")).parse().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}: {said:?}");
    // Gone already, or going.
    if let Ok(pidfd) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let ended = poll(&mut fds, Some(&Timespec { tv_sec: 30, tv_nsec: 0 })).unwrap();
        assert_eq!(ended, 1, "process {pid} lives on");
    }
    assert_eq!(bench.store.sweep().unwrap().debris, 1);
}

/// A program in place of the unpacker, which says something on its standard input, the socket.
fn imposter(bench: &Bench, script: &str) -> Unpacker {
    let program = bench.path("imposter");
    fs::write(&program, format!("#!/bin/sh\nhead -c 1 <&0 >/dev/null\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Unpacker::Sandboxed { program, base: BASE }
}

#[test]
fn whatever_an_unpacker_says_it_is_one_clean_error() {
    let nothing = r#"{"entries":0,"bytes":0,"opaque_root":false,"devices_dropped":0,"fifos_dropped":0,"xattrs_dropped":0,"mounts_skipped":0}"#;
    let done = |stats: &str, bytes: u64, entries: u64| {
        let digest = Digest::of(b"");
        format!(
            r#"printf '%s' '{{"Done":{{"diff_id":"{digest}","tree":"{digest}","stats":{stats},"marked_end":true,"bytes_left":{bytes},"entries_left":{entries}}}}}' >&0"#
        )
    };
    let too_much = nothing.replace(r#""entries":0"#, r#""entries":18446744073709551615"#);
    let cases = [
        ("silent", "exit 0".to_owned(), "imposter ended without a result (exit status: 0)"),
        ("fails", "exit 3".to_owned(), "imposter ended without a result (exit status: 3)"),
        ("killed", "kill -9 $$".to_owned(), "imposter ended without a result"),
        ("no json", "echo garbage >&0".to_owned(), "does not keep to the protocol"),
        ("too long", "head -c 30000 /dev/zero >&0".to_owned(), "does not keep to the protocol"),
        ("cut short", r#"printf '{"Packed":' >&0"#.to_owned(), "does not keep to the protocol"),
        ("no directory", r#"printf '"Opaque"' >&0"#.to_owned(), "does not keep to the protocol"),
        ("another diff id", done(nothing, 0, 0), "which is not its diff id"),
        ("more left than there was", done(nothing, u64::MAX, 0), "a result that cannot be true"),
        ("more than it cost", done(&too_much, 0, 0), "a result that cannot be true"),
        (
            "several lines",
            r#"printf '%s' '{"Failed":{"kind":"Io","cause":"first\n::error::second\u001b[0m"}}' >&0"#.to_owned(),
            "first?::error::second?[0m",
        ),
    ];
    for (name, script, expected) in cases {
        let mut bench = Bench::new();
        let unpacker = imposter(&bench, &script);
        bench.store = Store::open(&bench.images()).unwrap().with_unpacker(unpacker);
        let mut oci = Oci::of(&[]);
        let tar = Tar::new().file("f", "x").end();
        oci.push(&tar, tar.clone(), TAR);
        oci.write(&bench.path("oci"));
        let source = runner_store::Source::OciDirectory(bench.path("oci"));
        let line = bench.import(REFERENCE, &source).expect_err(name).to_string();
        assert!(line.contains(expected), "{name}: expected {expected:?} in: {line}");
        assert!(!line.contains(char::is_control), "{name}: {line:?}");
        assert!(bench.names("tmp").is_empty() && bench.names("layers").is_empty(), "{name}: something is left");
    }
    let mut bench = Bench::new();
    let program = bench.path("absent");
    bench.store = Store::open(&bench.images()).unwrap().with_unpacker(Unpacker::Sandboxed { program, base: BASE });
    Oci::of(&[Tar::new().file("f", "x").end()]).write(&bench.path("oci"));
    let source = runner_store::Source::OciDirectory(bench.path("oci"));
    let line = bench.import(REFERENCE, &source).unwrap_err().to_string();
    assert!(line.contains("cannot start ") && line.contains("No such file or directory"), "{line}");
}
