//! `nil bench kills`, a short run of it: hosts and workers are killed at random instants of migrations, and the guest
//! survives whatever should let it survive.
//!
//! Without KVM the tests that need it say `skipped:` and why.

mod kvm;

use kvm::has_kvm;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const KILLS: u64 = 30;

fn bench_kills(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nil"));
    command.args(["bench", "kills"]).args(arguments).env("TMPDIR", directory).stdin(Stdio::null());
    command.output().expect("nil runs")
}

#[test]
fn a_guest_survives_every_kill_that_leaves_its_state_whole_and_nothing_is_left_behind() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let kills = KILLS.to_string();
    let output = bench_kills(directory.path(), &["--kills", &kills, "--seed", "2", "--memory", "32M", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: serde_json::Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!((&report["kills"], &report["violations"], &report["seed"]), (&KILLS.into(), &0.into(), &2.into()));
    let rows = report["outcomes"].as_array().expect("rows");
    let counted: u64 = rows.iter().filter_map(|row| row["count"].as_u64()).sum();
    assert_eq!(counted, KILLS, "{report:#}");
    let seen = |field: &str| -> BTreeSet<&str> { rows.iter().filter_map(|row| row[field].as_str()).collect() };
    assert!(seen("victim").len() >= 4, "{report:#}");
    assert!(seen("outcome").contains("lost"), "no kill hit the guest's owner: {report:#}");
    assert!(report["survived"].as_u64() > Some(0) && report["pool_checks"].as_u64() >= Some(KILLS), "{report:#}");
    assert_eq!(fs::read_dir(directory.path()).expect("a listing").count(), 0);
}

#[test]
fn a_run_without_kills_or_without_room_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let refusals: [(&[&str], i32, &str); 3] = [
        (&["--kills", "0"], 2, "0 is not in"),
        (&["--memory", "1M"], 1, "try --memory 64M"),
        (&["--vcpus", "17"], 2, "17"),
    ];
    for (arguments, code, sentence) in refusals {
        let output = bench_kills(directory.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(sentence), "{arguments:?}: {stderr}");
    }
}
