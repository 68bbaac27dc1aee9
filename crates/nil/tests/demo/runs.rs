//! Runs that end well, and runs that cannot begin.

use crate::kvm::has_kvm;
use crate::stage::{Stage, json};

#[test]
fn five_handoffs_are_measured_and_verified_and_nothing_is_left_behind() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let output = stage.run(&["demo", "--handoffs", "5", "--memory", "64M", "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["handoffs"], 5);
    assert_eq!(report["verified"], true);
    assert_eq!(report["copied_bytes"], 0);
    assert_eq!(report["guest"]["errors"], 0);
    assert!(report["guest"]["pages"].as_u64() > Some(10_000), "{report}");
    let blackout = |quantile: &str| report["blackout_us"][quantile].as_f64().expect("a number");
    assert!(
        blackout("p50") > 1.0 && blackout("p50") <= blackout("p99") && blackout("p99") <= blackout("max"),
        "{report}"
    );
    stage.assert_clean();
}

#[test]
fn a_guest_with_two_vcpus_changes_hosts_whole() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let output = stage.run(&["demo", "--handoffs", "3", "--memory", "64M", "--vcpus", "2", "--json"]);
    let report = json(&output);
    assert_eq!(
        (output.status.code(), &report["verified"], &report["vcpus"]),
        (Some(0), &true.into(), &2.into()),
        "{report}"
    );
    stage.assert_clean();
}

#[test]
fn a_guest_takes_its_memory_along_from_dram_to_dram() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let output = stage.run(&["demo", "--memory-in", "dram", "--handoffs", "2", "--memory", "64M", "--json"]);
    let report = json(&output);
    assert_eq!((output.status.code(), &report["verified"]), (Some(0), &true.into()), "{report}");
    assert_eq!((&report["handoffs"], &report["guest"]["errors"]), (&2.into(), &0.into()));
    // Twice there and back; what the guest has never touched, and what is all zero, is not copied.
    assert!(report["moved_bytes"].as_u64() > Some(3 * (64 << 20)), "{report}");
    stage.assert_clean();
}

#[test]
fn the_benchmark_measures_every_case_and_names_what_it_skips() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let arguments = ["bench", "handoff", "--memory", "32M,1023T", "--samples", "3", "--dirty", "idle", "--json"];
    let output = stage.run(&arguments);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["cases"][0]["handoffs"], 3);
    assert_eq!(report["cases"][0]["dirty"], "idle");
    assert!(report["cases"][1]["skipped"].as_str().expect("a reason").contains("of memory"), "{report}");
    stage.assert_clean();
}

#[test]
fn impossible_demands_are_refused_in_one_sentence_that_says_what_to_do() {
    let refusals: [(&[&str], i32, &str); 7] = [
        (&["demo", "--memory", "0"], 2, "a size of zero"),
        (&["demo", "--memory", "4096T"], 1, "try a smaller guest with --memory"),
        (&["demo", "--memory", "65540K"], 1, "try --memory 66M"),
        (&["demo", "--memory", "1M"], 1, "try --memory 64M"),
        (&["demo", "--memory-in", "dram", "--keep"], 1, "leave --keep away"),
        (&["demo", "--handoffs", "0"], 2, "0 is not in"),
        (&["demo", "--vcpus", "17"], 2, "17 is not in 1..=16"),
    ];
    let stage = Stage::new();
    for (arguments, code, sentence) in refusals {
        let output = stage.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(sentence), "{arguments:?}: {stderr}");
    }
    stage.assert_clean();
}
