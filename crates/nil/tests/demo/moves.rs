//! `nil bench move`, short runs of it. How fast anything is, is nobody's business here.

use crate::kvm::has_kvm;
use crate::stage::{Running, Stage, json, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

/// The guest's memory.
const MEMORY: u64 = 64 << 20;

#[test]
fn both_ways_are_measured_with_either_page_and_no_store_is_lost() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let output = stage.run(&["bench", "move", "--memory", "64M,1023T", "--budget", "fast", "--samples", "1", "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    let cases = report["cases"].as_array().expect("cases");
    let kinds: Vec<_> = cases.iter().map(|case| (&case["page"], &case["direction"])).collect();
    let expected = ["2m", "4k"].map(|page| ["decouple", "recouple"].map(|way| (Value::from(page), Value::from(way))));
    assert_eq!(kinds[..4], expected.iter().flatten().map(|(page, way)| (page, way)).collect::<Vec<_>>()[..]);
    for case in &cases[..4] {
        assert_eq!((&case["memory_bytes"], &case["lost_stores"]), (&MEMORY.into(), &0.into()), "{case:#}");
        for figure in ["gb_per_s", "memcpy_gb_per_s"] {
            assert!(case[figure].as_f64() > Some(0.0), "{figure}: {case:#}");
        }
        // So short a move may find the guest waiting for a core, all the time.
        assert!(case["guest_speed_pct"].as_f64() >= Some(0.0), "{case:#}");
        assert!(case["mover"]["copied_bytes"].as_u64() > Some(MEMORY / 2), "{case:#}");
    }
    for case in &cases[4..] {
        assert!(case["skipped"].as_str().expect("a reason").contains("of memory"), "{case:#}");
    }
    assert!(report["journeys"][0]["copied_bytes"].as_u64() > Some(MEMORY), "there and back: {report:#}");
    stage.assert_clean();
}

#[test]
fn every_round_trip_of_a_guest_that_stores_everywhere_is_verified() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let output = stage.run(&["bench", "move", "--round-trips", "3", "--memory", "64M", "--page", "2m", "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    let trips = &report["round_trips"][0];
    assert_eq!((&trips["done"], &trips["verified"]), (&3.into(), &3.into()), "{trips:#}");
    assert_eq!((&trips["lost_stores"], &trips["vcpus"]), (&0.into(), &2.into()), "{trips:#}");
    assert!(trips["page_checks"].as_u64() > Some(3 * MEMORY / 4096 / 2), "{trips:#}");
    stage.assert_clean();
}

#[test]
fn memory_that_changes_on_its_way_fails_the_round_trips() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let arguments = ["bench", "move", "--round-trips", "100000", "--memory", "64M", "--page", "2m", "--json"];
    let running = stage.start(&arguments);
    assert!(wait_until(|| corrupt(&stage)), "no guest's memory could be changed");
    let output = running.finish();
    let report = json(&output);
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    let trips = &report["round_trips"][0];
    assert!(trips["lost_stores"].as_u64() > Some(0), "{trips:#}");
    assert!(trips["first_error"].as_str().expect("a sentence").contains("0x"), "{trips:#}");
    stage.assert_clean();
}

#[test]
fn ctrl_c_in_the_middle_of_a_move_cleans_up() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let running: Running =
        stage.start(&["bench", "move", "--round-trips", "100000", "--memory", "64M", "--page", "2m"]);
    assert!(wait_until(|| home(&stage).is_some()), "no guest runs");
    running.signal(Signal::INT);
    let output = running.finish();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    stage.assert_clean();
}

/// The memory of the process that runs the guest, and where the guest's begins in it.
fn home(stage: &Stage) -> Option<(PathBuf, u64)> {
    let racks = fs::read_dir(stage.path()).ok()?.flatten().map(|entry| entry.path().join("run"));
    let run_dir = racks.into_iter().find(|path| path.is_dir())?;
    let output = Command::new(env!("CARGO_BIN_EXE_nil")).args(["ps", "--json"]).env("NIL_RUN_DIR", run_dir).output();
    let listing: Value = serde_json::from_slice(&output.ok()?.stdout).ok()?;
    let guest = listing["guests"].as_array()?.iter().find(|guest| guest["worker_pid"].is_u64())?.clone();
    let memory = PathBuf::from(format!("/proc/{}/mem", guest["worker_pid"]));
    Some((memory, guest["memory_address"].as_u64()?))
}

/// Changes one word in the middle of a page under test, if the guest is there.
fn corrupt(stage: &Stage) -> bool {
    let changed = || {
        let (memory, start) = home(stage)?;
        let file = OpenOptions::new().read(true).write(true).open(memory).ok()?;
        let at = start + MEMORY / 2 + 2048;
        let mut word = [0; 8];
        file.read_exact_at(&mut word, at).ok()?;
        // A page that the guest has not filled yet would be filled over it.
        (word != [0; 8]).then_some(())?;
        word[3] ^= 1 << 5;
        file.write_all_at(&word, at).ok()
    };
    changed().is_some()
}
