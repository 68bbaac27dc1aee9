//! A guest's memory goes into the pool and comes back, while the guest runs.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that, kill};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

#[test]
fn a_guest_in_dram_takes_no_room_in_the_pool_for_its_memory() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let free = playground.free_bytes();
    let witness = playground.run_in_dram("g", "A");
    let guest = playground.guest("g").expect("it is listed");
    assert_eq!((&guest["memory"]["in"], &guest["memory"]["placed"]), (&"dram".into(), &false.into()));
    assert!(free - playground.free_bytes() < 16 * MIB);
    assert!(playground.nil(&["ps"]).stdout.contains("dram"));
    witness.verify();
    assert!(playground.nil(&["vm", "stop", "g"]).status.success());
    assert_eq!(playground.free_bytes(), free);
}

#[test]
fn memory_goes_to_the_pool_and_back_and_is_the_same() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    for _ in 0..2 {
        let report = playground.json(&["decouple", "g", "--fast"]);
        let moved = &report["moved"];
        assert_eq!((&moved["outcome"], &moved["total_bytes"]), (&"done".into(), &(64 * MIB).into()), "{report}");
        let bytes = |field: &str| moved[field].as_u64().expect("a number");
        assert_eq!(bytes("copied_bytes") + bytes("zero_bytes") + bytes("untouched_bytes"), 64 * MIB, "{report}");
        assert_eq!((report["memory"]["in"].as_str(), playground.memory_of("g")), (Some("pool"), "pool".into()));
        assert!(free - playground.free_bytes() >= 64 * MIB);
        witness.verify();

        let report = playground.json(&["recouple", "g", "--fast"]);
        assert_eq!(
            (&report["moved"]["outcome"], playground.memory_of("g")),
            (&"done".into(), "dram".into()),
            "{report}"
        );
        assert_eq!(playground.free_bytes(), free, "the capacity was not given back");
        witness.verify();
    }
    playground.check_pool();
}

#[test]
fn a_part_can_be_decoupled_and_the_rest_later() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    playground.json(&["decouple", "g", "--fast", "--range", "0x1000000+16M"]);
    let memory = &playground.guest("g").expect("the guest")["memory"];
    assert_eq!((&memory["in"], &memory["pooled_bytes"]), (&"both".into(), &(16 * MIB).into()));
    assert!(playground.nil(&["ps"]).stdout.contains("25 % in the pool"));
    witness.verify();
    let report = playground.json(&["decouple", "g", "--fast"]);
    assert_eq!(playground.memory_of("g"), "pool", "{report}");
    witness.verify();
}

#[test]
fn a_decoupling_that_is_called_off_puts_everything_back() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    let client = playground.start(&["--json", "decouple", "g", "--bandwidth", "4M"]);
    playground.await_moving("g");
    playground.nil(&["decouple", "g"]).refuses(1, &["being decoupled already"]);
    playground.nil(&["recouple", "g", "--cancel"]).refuses(1, &["being recoupled"]);
    let cancelled = playground.nil(&["decouple", "g", "--cancel"]);
    assert!(
        cancelled.status.success() && cancelled.stdout.contains("dram"),
        "{}{}",
        cancelled.stdout,
        cancelled.stderr
    );
    let report = client.answer();
    assert_eq!(report.status.code(), Some(1));
    let report = report.json();
    assert_eq!((&report["moved"]["outcome"], &report["moved_back"]["outcome"]), (&"cancelled".into(), &"done".into()));
    assert_eq!((playground.memory_of("g"), playground.free_bytes()), ("dram".into(), free));
    witness.verify();
}

#[test]
fn a_recoupling_that_is_called_off_leaves_everything_in_the_pool() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    playground.json(&["decouple", "g", "--fast"]);
    let client = playground.start(&["--json", "recouple", "g", "--bandwidth", "4M"]);
    playground.await_moving("g");
    assert!(playground.nil(&["recouple", "g", "--cancel"]).status.success());
    assert_eq!(client.answer().json()["moved"]["outcome"], "cancelled");
    assert_eq!(playground.memory_of("g"), "pool");
    witness.verify();
}

#[test]
fn a_move_goes_on_when_its_client_is_interrupted() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let client = playground.start(&["decouple", "g", "--bandwidth", "32M"]);
    playground.await_moving("g");
    kill(client.pid(), Signal::INT);
    assert!(!client.answer().status.success());
    await_that("the end of the move", || playground.memory_of("g") == "pool");
    witness.verify();
}

#[test]
fn progress_is_shown_and_the_report_has_the_figures() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let _witness = playground.run_in_dram("g", "A");
    let answer = playground.nil(&["decouple", "g", "--bandwidth", "64M"]);
    for word in ["Ctrl-C lets it go on", "nil decouple g --cancel", "guest g: decoupling, ", "of 64 MiB"] {
        assert!(answer.stderr.contains(word), "`{word}` is missing in: {}", answer.stderr);
    }
    for word in
        ["g on A: decoupled", "copied", "huge pages", "rate", "chunks", "guest stalled", "memory of g is in: pool"]
    {
        assert!(answer.stdout.contains(word), "`{word}` is missing in: {}", answer.stdout);
    }
}

#[test]
fn moves_share_the_bandwidth_of_their_host() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent_with("A", &["--pool", &playground.pool(), "--move-bandwidth", "8M"]);
    playground.run_in_dram("a", "A");
    playground.run_in_dram("b", "A");
    let limit_is = |guest: &str, limit: u64| {
        playground.await_guest(guest, "the fair share", |guest| guest["move_limit"] == limit);
    };
    let _first = playground.start(&["decouple", "a"]);
    limit_is("a", 8 * MIB);
    let _second = playground.start(&["decouple", "b", "--bandwidth", "2M"]);
    limit_is("a", 6 * MIB);
    limit_is("b", 2 * MIB);
    assert!(playground.nil(&["decouple", "b", "--cancel"]).status.success());
    limit_is("a", 8 * MIB);
    assert!(playground.nil(&["decouple", "a", "--cancel"]).status.success());
    assert!(playground.guest("a").expect("the guest")["move_limit"].is_null());
}
