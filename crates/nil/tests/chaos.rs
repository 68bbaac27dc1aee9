//! `nil chaos`, short runs of it: hosts die, stand still and come back, guests move meanwhile and are taken over, and nothing
//! is lost that need not be, undone that was seen, or left behind.
//!
//! Without KVM the tests that need it say `skipped:` and why.

mod kvm;

use kvm::has_kvm;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn chaos(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nil"));
    command.arg("chaos").args(arguments).env("TMPDIR", directory).stdin(Stdio::null());
    command.output().expect("nil runs")
}

/// Plays some rounds, and checks what holds of every run.
fn report_of(arguments: &[&str]) -> Value {
    let directory = tempfile::tempdir().expect("a directory");
    let output = chaos(directory.path(), &[&["--guests", "5", "--lease", "20ms", "--json"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["violations"], 0);
    let count = |what: &str| report[what].as_u64().expect("a count");
    // Before the first round and after each; guests that are lost with the last are not verified again.
    assert!(count("verifications") > 5 * count("rounds") - count("lost"), "{report:#}");
    assert!(count("pool_checks") > count("rounds") && count("lines") > 0, "{report:#}");
    assert_eq!(count("boots"), 5 + count("lost"), "{report:#}");
    assert_eq!(fs::read_dir(directory.path()).expect("a listing").count(), 0);
    report
}

#[test]
fn nothing_comes_of_chaos_that_must_not() {
    if !has_kvm() {
        return;
    }
    let report = report_of(&["--seed", "1", "--rounds", "6"]);
    assert_eq!((&report["rounds"], &report["seed"], &report["output"]), (&6.into(), &1.into(), &"hold".into()));
    assert!(report["acts"].as_object().is_some_and(|acts| acts.len() > 3), "{report:#}");
    assert_eq!(report["repeated_lines"], 0, "held output is never undone");
}

#[test]
fn guests_of_dead_hosts_go_on_elsewhere_once_each() {
    if !has_kvm() {
        return;
    }
    let report = report_of(&["--seed", "5", "--mix", "deaths", "--takeovers", "8", "--output", "pass"]);
    let takeovers = &report["takeovers"];
    let went_on = ["resumed", "rescued"].into_iter().filter_map(|kind| takeovers[kind].as_u64()).sum::<u64>();
    assert!(went_on >= 8 && report["acts"]["kill_host"].as_u64() >= report["rounds"].as_u64(), "{report:#}");
}

#[test]
fn what_cannot_be_played_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let refusals: [(&[&str], i32, &str); 4] = [
        (&["--hosts", "2"], 2, "2 is not in 3"),
        (&["--memory", "5M"], 1, "try --memory 8M"),
        (&["--lease", "1s"], 1, "at least 3 intervals"),
        (&["--rounds", "0"], 2, "0 is not in"),
    ];
    for (arguments, code, sentence) in refusals {
        let output = chaos(directory.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(sentence), "{arguments:?}: {stderr}");
    }
}
