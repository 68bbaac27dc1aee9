//! `nil bench rack`, a short run of it: guests move among hosts that share several pools, orders are called off, agents are
//! killed and started again, and every guest runs exactly once all the same, and nothing is left behind.
//!
//! Without KVM the tests that need it say `skipped:` and why.

mod kvm;

use kvm::has_kvm;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn bench_rack(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nil"));
    command.args(["bench", "rack"]).args(arguments).env("TMPDIR", directory).stdin(Stdio::null());
    command.output().expect("nil runs")
}

#[test]
fn no_guest_is_lost_or_runs_twice_and_nothing_leaks_while_agents_are_killed() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let arguments =
        ["--hosts", "4", "--guests", "6", "--migrations", "20", "--agent-kills", "2", "--seed", "7", "--json"];
    let output = bench_rack(directory.path(), &arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!((&report["violations"], &report["agent_kills"], &report["seed"]), (&0.into(), &2.into(), &7.into()));
    let count = |outcome: &str| report["outcomes"][outcome].as_u64().unwrap_or(0);
    let answered: u64 = ["moved", "taken_back", "called_off", "stalled", "stranded"].into_iter().map(count).sum();
    assert_eq!(answered, 20, "{report:#}");
    assert!(count("moved") > 0 && report["routes"].as_u64() > Some(0), "{report:#}");
    assert!(report["jobs_at_most"].as_u64().is_some_and(|jobs| jobs > 0), "{report:#}");
    assert_eq!(report["orders"].as_u64(), Some(answered + count("refused") + count("agent_gone")));
    // Before the first order, after each stretch, and at the end.
    let quiet_points = report["quiet_points"].as_u64().expect("a count");
    assert!(quiet_points >= 2);
    assert_eq!(report["verifications"].as_u64(), Some(6 * quiet_points));
    assert_eq!(report["pool_checks"].as_u64(), Some(2 * (quiet_points + 1)));
    assert_eq!(fs::read_dir(directory.path()).expect("a listing").count(), 0);
}

#[test]
fn a_rack_that_cannot_be_built_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let refusals: [(&[&str], i32, &str); 4] = [
        (&["--hosts", "1"], 2, "1 is not in 2"),
        (&["--memory", "5M"], 1, "try --memory 8M"),
        (&["--hosts", "2", "--pools", "3"], 1, "try fewer with --pools"),
        (&["--migrations", "0"], 2, "0 is not in"),
    ];
    for (arguments, code, sentence) in refusals {
        let output = bench_rack(directory.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(sentence), "{arguments:?}: {stderr}");
    }
}
