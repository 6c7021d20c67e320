//! Checking the store, and saying what was found.

use std::io::Write;
use std::time::{Duration, Instant};

use runner_pull::Size;
use runner_store::{Finding, Gravity, Store, Verifying};
use serde_json::{Value, json};

use super::{json_text, note};
use crate::Status;

/// Time between two lines of progress, and before the first.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn verify(store: &Store, as_json: bool, quiet: bool, out: &mut dyn Write) -> anyhow::Result<Status> {
    let mut last = Instant::now();
    let mut end = Verifying { done: 0, total: 0, bytes: 0 };
    let findings = store.verify(&mut |state| {
        end = state;
        if !quiet && last.elapsed() >= INTERVAL {
            last = Instant::now();
            let Verifying { done, total, bytes } = state;
            note(&format_args!("{done} of {total} blobs and layers, {}", Size(bytes)));
        }
    })?;
    let damaged = findings.iter().any(|finding| finding.gravity == Gravity::Damage);
    if as_json {
        writeln!(out, "{}", json_text(&object(&findings, end, damaged), false))?;
    } else {
        write!(out, "{}", lines(&findings, end))?;
    }
    Ok(if damaged { Status::Failure } else { Status::Success })
}

fn object(findings: &[Finding], end: Verifying, damaged: bool) -> Value {
    let findings: Vec<Value> =
        findings.iter().map(|finding| json!({"gravity": word(finding.gravity), "line": finding.line})).collect();
    json!({"clean": !damaged, "verified": end.done, "bytes": end.bytes, "findings": findings})
}

fn word(gravity: Gravity) -> &'static str {
    match gravity {
        Gravity::Damage => "damage",
        Gravity::Note => "note",
    }
}

/// One line for each finding, the worst first as they come, and a sum.
fn lines(findings: &[Finding], end: Verifying) -> String {
    let mut text: String =
        findings.iter().map(|finding| format!("{}: {}\n", word(finding.gravity), finding.line)).collect();
    let damaged = findings.iter().filter(|finding| finding.gravity == Gravity::Damage).count();
    let verdict = match damaged {
        0 => "all is well".to_owned(),
        1 => "1 is damage".to_owned(),
        more => format!("{more} are damage"),
    };
    let read = format!("Verified {} blobs and layers, {}", end.done, Size(end.bytes));
    text.push_str(&match findings.len() {
        0 => format!("{read}: {verdict}.\n"),
        1 => format!("{read}: 1 finding, {verdict}.\n"),
        more => format!("{read}: {more} findings, {verdict}.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(gravity: Gravity, line: &str) -> Finding {
        Finding { gravity, line: line.to_owned() }
    }

    #[test]
    fn findings_are_lines_and_a_verdict() {
        let end = Verifying { done: 7, total: 7, bytes: 3 << 20 };
        let damage = finding(Gravity::Damage, "layers/ab: files differ; pull it again");
        let note = finding(Gravity::Note, "tmp/x: left by interrupted work");
        for (findings, expected) in [
            (vec![], "Verified 7 blobs and layers, 3.0 MiB: all is well.\n"),
            (
                vec![note.clone()],
                "note: tmp/x: left by interrupted work\nVerified 7 blobs and layers, 3.0 MiB: 1 finding, all is well.\n",
            ),
            (
                vec![damage.clone(), note.clone()],
                "damage: layers/ab: files differ; pull it again\nnote: tmp/x: left by interrupted work\n\
                 Verified 7 blobs and layers, 3.0 MiB: 2 findings, 1 is damage.\n",
            ),
        ] {
            assert_eq!(lines(&findings, end), expected);
        }
        assert_eq!(
            object(&[damage], end, true),
            json!({
                "clean": false,
                "verified": 7,
                "bytes": 3 << 20,
                "findings": [{"gravity": "damage", "line": "layers/ab: files differ; pull it again"}],
            })
        );
    }
}
