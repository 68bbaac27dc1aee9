//! `nil bench kills`, short runs of it: hosts and workers are killed at random instants of migrations and of moves of
//! memory, the guest survives whatever should let it survive, and nothing is left behind.
//!
//! Without KVM the tests that need it say `skipped:` and why.

mod kvm;

use kvm::has_kvm;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const KILLS: u64 = 20;

fn bench_kills(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nil"));
    command.args(["bench", "kills"]).args(arguments).env("TMPDIR", directory).stdin(Stdio::null());
    command.output().expect("nil runs")
}

/// Runs it with [`KILLS`] kills, and checks what holds of every run.
fn report_of(arguments: &[&str]) -> Value {
    let directory = tempfile::tempdir().expect("a directory");
    let kills = KILLS.to_string();
    let output =
        bench_kills(directory.path(), &[&["--kills", &kills, "--memory", "32M", "--json"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!((&report["kills"], &report["violations"]), (&KILLS.into(), &0.into()));
    assert_eq!((sum(&report, "outcomes", "count"), sum(&report, "phases", "kills")), (KILLS, KILLS), "{report:#}");
    let (survived, lost) = (sum(&report, "phases", "survived"), sum(&report, "phases", "lost"));
    assert_eq!(report["survived"], survived);
    assert_eq!(report["losses"].as_array().map(Vec::len), usize::try_from(lost).ok());
    assert!(survived > 0 && lost > 0, "{report:#}");
    assert!(seen(&report, "outcomes", "victim").len() >= 4, "{report:#}");
    assert!(report["pool_checks"].as_u64() >= Some(KILLS), "{report:#}");
    assert_eq!(fs::read_dir(directory.path()).expect("a listing").count(), 0);
    report
}

fn rows<'a>(report: &'a Value, table: &str) -> &'a [Value] {
    report[table].as_array().expect("rows")
}

fn sum(report: &Value, table: &str, field: &str) -> u64 {
    rows(report, table).iter().filter_map(|row| row[field].as_u64()).sum()
}

fn seen<'a>(report: &'a Value, table: &str, field: &str) -> BTreeSet<&'a str> {
    rows(report, table).iter().filter_map(|row| row[field].as_str()).collect()
}

#[test]
fn a_guest_in_the_pool_survives_every_kill_that_leaves_its_state_whole() {
    if !has_kvm() {
        return;
    }
    let report = report_of(&["--seed", "2"]);
    assert_eq!(
        (&report["memory_in"], &report["during"], &report["seed"]),
        (&"pool".into(), &"handoff".into(), &2.into())
    );
    assert!(seen(&report, "phases", "phase").contains("handoff"), "{report:#}");
    assert_eq!(seen(&report, "phases", "errand"), BTreeSet::from(["migration"]));
}

#[test]
fn a_guest_in_dram_survives_every_kill_but_those_of_its_owner_and_no_store_or_capacity_is_lost() {
    if !has_kvm() {
        return;
    }
    let report = report_of(&["--seed", "3", "--memory-in", "dram"]);
    assert_eq!((&report["memory_in"], &report["during"]), (&"dram".into(), &"any".into()));
    let phases = seen(&report, "phases", "phase");
    assert!(["decoupling", "handoff", "recoupling"].iter().all(|phase| phases.contains(phase)), "{report:#}");
    assert!(seen(&report, "phases", "errand").len() >= 2, "{report:#}");
    // Every guest that has survived has verified itself, and was moved once more: also where the kill came too late to
    // count as one.
    let count = |field: &str| report[field].as_u64().expect("a count");
    assert_eq!(count("verifications"), count("drills"));
    assert!(count("drills") >= count("survived"), "{report:#}");
}

#[test]
fn a_seed_names_a_plan_that_can_be_read_without_killing_anybody() {
    let directory = tempfile::tempdir().expect("a directory");
    let plan = |seed| {
        let arguments = ["--memory-in", "dram", "--during", "decouple", "--kills", "40", "--plan", "--seed", seed];
        let output = bench_kills(directory.path(), &arguments);
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).expect("text")
    };
    let text = plan("5");
    assert_eq!(plan("5"), text);
    assert_ne!(plan("6"), text);
    assert_eq!(text.lines().count(), 41, "{text}");
    assert!(text.contains("round 40: ") && text.contains("of the memory was seen decoupled"), "{text}");
    assert!(!text.contains("target's worker"), "{text}");
}

#[test]
fn a_run_without_kills_or_without_room_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let refusals: [(&[&str], i32, &str); 4] = [
        (&["--kills", "0"], 2, "0 is not in"),
        (&["--memory", "1M"], 1, "try --memory 64M"),
        (&["--vcpus", "17"], 2, "17"),
        (&["--memory-in", "disk"], 2, "dram, pool"),
    ];
    for (arguments, code, sentence) in refusals {
        let output = bench_kills(directory.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(sentence), "{arguments:?}: {stderr}");
    }
}
