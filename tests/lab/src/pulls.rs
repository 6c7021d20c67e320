//! Pulls while they go on: who does the work and with what rights, what a slow one prints, and what becomes of one that is
//! cut off.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::hook::{Runner, TEMP};
use crate::host::{self, is_gone, kill, run, sh, until};
use crate::lab::{Test, tests};
use crate::leftovers;
use crate::registry::{Faulty, STORE, forget, named, spread, wait_for_process};
use crate::request;

use runner_testbed::registry::{Access, Fault, When};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        whoever_fetches_and_unpacks_has_no_rights,
        a_password_is_in_no_argument_variable_log_or_file,
        a_slow_pull_shows_its_progress_folded_and_a_quick_one_nothing,
        a_cancelled_pull_is_over_in_time_and_leaves_nothing,
        a_pull_goes_on_where_a_killed_broker_left_it,
        a_killed_fetcher_or_unpacker_is_one_line_and_no_image,
        two_jobs_that_need_one_image_fetch_it_once,
    ]
}

const MIB: usize = 1 << 20;

/// An image whose pull stands still in the middle of its second layer, and again whenever it is taken up.
fn stuck(faulty: &Faulty, repository: &str) -> (String, String) {
    let (image, noise) = faulty.put(repository, 2 * MIB);
    faulty.registry.inject(When::path(&noise).times(1), Fault::HangAfter(MIB));
    faulty.registry.inject(When::path(&noise), Fault::HangAfter(1));
    (image, noise)
}

/// Bytes of this blob that a pull has left, or brought so far.
fn partial(digest: &str) -> Option<u64> {
    Some(fs::metadata(format!("{STORE}/partial/{}", &digest["sha256:".len()..])).ok()?.len())
}

#[track_caller]
fn wait_for_half(digest: &str) {
    until("half of the layer is here", || partial(digest).is_some_and(|bytes| bytes >= MIB as u64).then_some(()));
}

/// Fields of /proc/PID/status, by name.
fn status(pid: u32, field: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|error| panic!("{pid}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

fn namespace(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}"))
        .unwrap_or_else(|error| panic!("{pid}: {error}"))
        .display()
        .to_string()
}

/// No capability beyond `kept`, whatever the process does.
#[track_caller]
fn has_no_rights(pid: u32, kept: u64) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let field = status(pid, set).concat();
        let bits = u64::from_str_radix(&field, 16).unwrap_or_else(|error| panic!("{set} {field:?}: {error}"));
        assert_eq!(bits & !kept, 0, "{set} of {pid} is {field}");
    }
    assert_eq!((status(pid, "NoNewPrivs"), status(pid, "Seccomp")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("we are root").flatten();
    for link in files.filter_map(|entry| fs::read_link(entry.path()).ok()) {
        let link = link.display().to_string();
        let store = link.starts_with("/var/lib/runner") && !link.contains("/partial/") && !link.contains("/tmp/");
        assert!(!store && !link.starts_with("/etc/runner"), "{pid} has {link}");
    }
}

fn whoever_fetches_and_unpacks_has_no_rights() {
    let faulty = Faulty::start();
    let (image, noise) = stuck(&faulty, "lab/rights");
    let runner = Runner::new("runner 01");
    let call = runner.call(request::prepare(request::container(&image, &runner)));
    wait_for_half(&noise);

    let fetch = wait_for_process("image-fetch");
    let ids = status(fetch, "Uid");
    assert!(ids.iter().all(|id| id != "0"), "{ids:?}");
    has_no_rights(fetch, 0);
    for kind in ["mnt", "user"] {
        assert_ne!(namespace(&fetch.to_string(), kind), namespace("self", kind), "image-fetch's {kind}");
    }

    let unpack = wait_for_process("layer-unpack");
    let ids = status(unpack, "Uid");
    // The last 65,536 of RUNNER_UID_RANGE, which no guest gets.
    let range = 17_235_968..17_301_504_u64;
    assert!(ids.iter().all(|id| id.parse().is_ok_and(|id| range.contains(&id))), "{ids:?}");
    // What giving files their owners, modes and capabilities takes (capabilities(7): CHOWN, DAC_OVERRIDE, FOWNER, FSETID,
    // SETFCAP), in a user namespace of its own.
    has_no_rights(unpack, 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31);
    for kind in ["mnt", "user", "net", "pid"] {
        assert_ne!(namespace(&unpack.to_string(), kind), namespace("self", kind), "layer-unpack's {kind}");
    }
    let links = fs::read_to_string(format!("/proc/{unpack}/net/dev")).expect("we are root");
    let links: Vec<&str> = links.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(links, ["lo"]);
    let sockets = fs::read_to_string(format!("/proc/{unpack}/net/tcp")).expect("we are root");
    assert_eq!(sockets.lines().count(), 1, "{sockets}");

    call.signal(Signal::TERM);
    assert_ne!(call.end().status, 0);
    forget(&[&image]);
}

fn a_password_is_in_no_argument_variable_log_or_file() {
    let faulty = Faulty::start();
    let (image, noise) = stuck(&faulty, "lab/secret");
    let password = "kept-to-themselves-by-all-48151623";
    faulty.registry.require(Access::Basic { username: "ci".to_owned(), password: password.to_owned() });
    let header = sh(&format!("printf %s 'ci:{password}' | base64 --wrap=0"));
    let secrets = [password.as_bytes(), header.as_bytes()];
    let found = |bytes: &[u8]| secrets.iter().any(|secret| bytes.windows(secret.len()).any(|window| window == *secret));
    let since = sh("date +%s");

    let runner = Runner::new("runner 01");
    let mut container = request::container(&image, &runner);
    container["registry"] = json!({"username": "ci", "password": password, "serverUrl": faulty.registry.host()});
    let call = runner.call(request::prepare(container));
    wait_for_half(&noise);
    assert!(!named("image-fetch").is_empty() && !named("layer-unpack").is_empty());
    for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            assert!(!found(&bytes), "{}/{file}", entry.path().display());
        }
    }
    // While it goes on, and afterwards.
    fs::write("/root/lab-secrets", secrets.join(&b'\n')).expect("we are root");
    let on_disk = || {
        let places = format!("/var/lib/runner /run /etc/runner /tmp {TEMP}");
        run(["sh", "-c", &format!("grep -rlaFs --devices=skip --file=/root/lab-secrets {places}")]).text()
    };
    assert_eq!(on_disk(), "");
    call.signal(Signal::TERM);
    let ended = call.end();
    assert!(!found(&ended.stdout) && !found(&ended.stderr), "{}", ended.story());
    let journal =
        run(["sh", "-c", &format!("journalctl --sync; journalctl --output=export --no-pager --since=@{since}")]);
    assert!(journal.stdout.len() > 1000 && !found(&journal.stdout), "the journal has it");
    assert_eq!(on_disk(), "");
    sh("rm /root/lab-secrets");

    // They were the right ones: the rest comes with them, and not without.
    faulty.registry.heal();
    runner.call(request::prepare(request::container(&image, &runner))).end().own_failure(&["lab/secret"]);
    let mut container = request::container(&image, &runner);
    container["registry"] = json!({"username": "ci", "password": password, "serverUrl": faulty.registry.host()});
    runner.prepare_with(container);
    runner.cleanup();
    forget(&[&image]);
}

fn a_slow_pull_shows_its_progress_folded_and_a_quick_one_nothing() {
    let faulty = Faulty::start();
    let (slow, noise) = faulty.put("lab/slow", MIB);
    faulty.registry.inject(When::path(&noise), spread(MIB, Duration::from_millis(2500)));
    let runner = Runner::new("runner 01");
    let ended = runner.call(request::prepare(request::container(&slow, &runner))).end().expect(0);
    let text = ended.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&format!("::group::Pulling {slow}").as_str()), "{text}");
    assert_eq!(lines.last(), Some(&"::endgroup::"), "{text}");
    // At most one a second, with bytes and rate.
    assert!((3..=6).contains(&lines.len()), "{text}");
    assert!(
        lines[1].contains("layer 2/2: ") && lines[1].contains(" of 1.0 MiB, ") && lines[1].contains("/s"),
        "{text}"
    );
    runner.cleanup();

    let (quick, _) = faulty.put("lab/quick", 1000);
    let ended = runner.call(request::prepare(request::container(&quick, &runner))).end().expect(0);
    assert_eq!(ended.text(), "");
    runner.cleanup();
    forget(&[&slow, &quick]);
}

/// No process of a pull is left; the next sweep removes what is unfinished.
#[track_caller]
fn nothing_of_a_pull_is_left() {
    for name in ["image-fetch", "layer-unpack"] {
        until(&format!("{name} has ended"), || named(name).is_empty().then_some(()));
    }
    run(["runnerctl", "image", "prune"]).expect(0);
    assert_eq!(sh(&format!("ls {STORE}/tmp")), "");
    let left = leftovers::look();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_cancelled_pull_is_over_in_time_and_leaves_nothing() {
    let faulty = Faulty::start();
    let (image, noise) = stuck(&faulty, "lab/cancelled");
    let runner = Runner::new("runner 01");
    for signal in [Signal::TERM, Signal::INT] {
        let call = runner.call(request::prepare(request::container(&image, &runner)));
        wait_for_half(&noise);
        wait_for_process("layer-unpack");
        let sent = Instant::now();
        call.signal(signal);
        let ended = call.end();
        let took = sent.elapsed();
        assert!(took < Duration::from_secs(7), "{took:?}");
        assert_eq!((ended.status, ended.errors().len()), (125, 1), "{}", ended.story());
        assert!(ended.errors()[0].contains("cancelled"), "{}", ended.story());
        nothing_of_a_pull_is_left();
        let listed = run(["runnerctl", "image", "ls"]).expect(0).text();
        assert!(!listed.contains("lab/cancelled"), "{listed}");
    }
    // A killed hook is as good as a cancel.
    let call = runner.call(request::prepare(request::container(&image, &runner)));
    wait_for_process("layer-unpack");
    call.signal(Signal::KILL);
    call.end();
    nothing_of_a_pull_is_left();
    faulty.registry.heal();
    runner.prepare(&image);
    runner.cleanup();
    forget(&[&image]);
}

fn a_pull_goes_on_where_a_killed_broker_left_it() {
    let faulty = Faulty::start();
    let (image, noise) = stuck(&faulty, "lab/resumed");
    let runner = Runner::new("runner 01");
    let call = runner.call(request::prepare(request::container(&image, &runner)));
    wait_for_half(&noise);
    let helpers = [wait_for_process("image-fetch"), wait_for_process("layer-unpack")];
    let broker = host::broker().expect("it runs");
    kill(broker, Signal::KILL);
    call.end().own_failure(&["broker"]);
    for pid in helpers {
        until("the helpers are gone with the broker", || is_gone(pid).then_some(()));
    }
    host::broker_after(broker);
    assert_eq!(partial(&noise), Some(MIB as u64));
    faulty.registry.heal();
    runner.forge_state(serde_json::Value::Null);
    runner.prepare(&image);
    assert_eq!(runner.sh("wc -c </noise").expect(0).line(), (2 * MIB).to_string());
    runner.cleanup();
    assert_eq!(faulty.asked_for(&noise), [0, MIB as u64]);
    assert_eq!(partial(&noise), None);
    run(["runnerctl", "image", "verify", "--quiet"]).expect(0);
    nothing_of_a_pull_is_left();
    forget(&[&image]);
}

fn a_killed_fetcher_or_unpacker_is_one_line_and_no_image() {
    let faulty = Faulty::start();
    let (image, noise) = stuck(&faulty, "lab/killed");
    let runner = Runner::new("runner 01");
    for name in ["image-fetch", "layer-unpack"] {
        let call = runner.call(request::prepare(request::container(&image, &runner)));
        wait_for_half(&noise);
        let pid = wait_for_process(name);
        let sent = Instant::now();
        kill(pid, Signal::KILL);
        call.end().own_failure(&["lab/killed", name]);
        assert!(sent.elapsed() < Duration::from_secs(7), "{name}: {:?}", sent.elapsed());
        nothing_of_a_pull_is_left();
    }
    faulty.registry.heal();
    runner.prepare(&image);
    assert_eq!(runner.sh("wc -c </noise").expect(0).line(), (2 * MIB).to_string());
    runner.cleanup();
    forget(&[&image]);
}

fn two_jobs_that_need_one_image_fetch_it_once() {
    let faulty = Faulty::start();
    let (image, noise) = faulty.put("lab/both", MIB);
    faulty.registry.inject(When::path(&noise), spread(MIB, Duration::from_millis(1000)));
    let runners = [Runner::with_repository("runner 01", "widgets"), Runner::with_repository("runner 02", "gadgets")];
    let first = runners[0].call(request::prepare(request::container(&image, &runners[0])));
    faulty.wait_for_blob(&noise);
    let second = runners[1].call(request::prepare(request::container(&image, &runners[1])));
    first.end().expect(0);
    second.end().expect(0);
    let requests = faulty.registry.requests();
    let mut blobs: Vec<&str> = requests
        .iter()
        .filter(|request| request.path.contains("/blobs/"))
        .map(|request| request.path.as_str())
        .collect();
    blobs.sort_unstable();
    let all = blobs.len();
    // Two layers. The configuration is a document, and small enough to be asked for by each of them.
    let layers = blobs.iter().filter(|path| path.ends_with(&noise)).count();
    assert_eq!(layers, 1, "{blobs:#?}");
    blobs.dedup();
    assert!(all <= blobs.len() + 1, "{requests:#?}");
    for runner in &runners {
        assert_eq!(runner.sh("wc -c </noise").expect(0).line(), MIB.to_string());
        runner.cleanup();
    }
    forget(&[&image]);
}
