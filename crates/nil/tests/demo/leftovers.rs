//! Runs that are ended from outside leave nothing behind: no process, no file, no mount.

use crate::kvm::has_kvm;
use crate::stage::{Stage, wait_until};
use rustix::process::Signal;

/// Starts a long demo and waits until both hosts and a worker are there.
fn demo_under_way(stage: &Stage) -> crate::stage::Running {
    let running = stage.start(&["demo", "--handoffs", "1000000", "--memory", "64M"]);
    let under_way = wait_until(|| stage.processes().iter().any(|line| line.contains(" worker ")));
    assert!(under_way, "no worker was started: {:?}", stage.processes());
    running
}

#[test]
fn ctrl_c_cleans_up_and_says_so() {
    if !has_kvm() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        let stage = Stage::new();
        let running = demo_under_way(&stage);
        running.signal(signal);
        let output = running.finish();
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
        assert_eq!(stage.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn even_a_demo_that_is_killed_leaves_nothing_behind() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let running = demo_under_way(&stage);
    running.signal(Signal::KILL);
    running.finish();
    stage.assert_clean();
}
