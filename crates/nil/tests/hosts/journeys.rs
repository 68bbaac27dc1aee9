//! Guests in DRAM move to another host, or stay where they were.

use crate::kvm::has_kvm;
use crate::playground::Playground;
use crate::witness::Witness;

#[test]
fn a_guest_in_dram_moves_to_the_dram_of_another_host_and_back() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let _witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    for to in ["B", "A"] {
        let report = playground.json(&["migrate", "g", "--to", to, "--fast"]);
        assert_eq!((&report["outcome"], &report["copied_bytes"]), (&"moved".into(), &0.into()), "{report}");
        assert_eq!((&report["decouple"]["outcome"], &report["recouple"]["outcome"]), (&"done".into(), &"done".into()));
        assert_eq!(report["remarks"], serde_json::json!([]));
        let guest = playground.guest("g").expect("the guest");
        assert_eq!((&guest["host"], &guest["memory"]["in"]), (&to.into(), &"dram".into()));
        assert_eq!(playground.free_bytes(), free, "the capacity was not given back");
        Witness::of(&playground, "g").verify();
    }
    playground.check_pool();
}

#[test]
fn a_migration_shows_its_phases_while_they_last_and_in_its_report() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let _witness = playground.run_in_dram("g", "A");
    let answer = playground.nil(&["migrate", "g", "--to", "B", "--fast"]);
    for word in ["nil migrate g --cancel", "decoupling, ", "B gets ready", "B is ready after", "recoupling, "] {
        assert!(answer.stderr.contains(word), "`{word}` is missing in: {}", answer.stderr);
    }
    for word in ["g moved from A to B", "decoupled in ", "handed over in ", "kick", "recoupled in ", "handoff: 0 bytes"]
    {
        assert!(answer.stdout.contains(word), "`{word}` is missing in: {}", answer.stdout);
    }
}

#[test]
fn memory_stays_in_the_pool_if_that_is_wanted_and_then_nothing_is_moved_any_more() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let _witness = playground.run_in_dram("g", "A");
    let report = playground.json(&["migrate", "g", "--to", "B", "--fast", "--stay-in-pool"]);
    assert_eq!((&report["decouple"]["outcome"], &report["recouple"]), (&"done".into(), &serde_json::Value::Null));
    assert_eq!(playground.memory_of("g"), "pool");
    let report = playground.json(&["migrate", "g", "--to", "A"]);
    assert_eq!((&report["decouple"], &report["recouple"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert_eq!(playground.memory_of("g"), "pool");
    Witness::of(&playground, "g").verify();
}

#[test]
fn a_migration_that_is_called_off_while_it_decouples_leaves_the_guest_as_it_was() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    let client = playground.start(&["--json", "migrate", "g", "--to", "B", "--bandwidth", "4M"]);
    playground.await_moving("g");
    playground.nil(&["decouple", "g", "--cancel"]).refuses(1, &["nil migrate g --cancel"]);
    let cancelled = playground.nil(&["migrate", "g", "--cancel"]);
    assert!(cancelled.stdout.contains("guest g runs on at A"), "{}{}", cancelled.stdout, cancelled.stderr);
    let answer = client.answer();
    assert_eq!(answer.status.code(), Some(1));
    assert_eq!(answer.json()["outcome"], "cancelled");
    let guest = playground.guest("g").expect("the guest");
    assert_eq!((&guest["host"], &guest["state"], &guest["epoch"]), (&"A".into(), &"running".into(), &1.into()));
    assert_eq!((&guest["memory"]["in"], playground.free_bytes()), (&"dram".into(), free));
    witness.verify();
    playground.nil(&["migrate", "g", "--cancel"]).refuses(1, &["not being moved"]);
}

#[test]
fn a_migration_called_off_at_any_moment_leaves_a_guest_that_runs_where_it_was_or_has_arrived() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let _witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    for round in 0..8 {
        let from = playground.guest("g").expect("the guest")["host"].as_str().expect("its host").to_owned();
        let to = if from == "A" { "B" } else { "A" };
        let client = playground.start(&["--json", "migrate", "g", "--to", to, "--fast"]);
        std::thread::sleep(std::time::Duration::from_millis(25 * round));
        let cancelled = playground.nil(&["migrate", "g", "--cancel"]);
        let report = client.answer().json();
        let (outcome, there) =
            (report["outcome"].as_str().expect("an outcome"), playground.guest("g").expect("it runs"));
        match outcome {
            "moved" => assert!(!cancelled.status.success(), "{}", cancelled.stdout),
            "cancelled" => assert!(cancelled.status.success(), "{}", cancelled.stderr),
            other => panic!("{other}: {report}"),
        }
        let expected = if outcome == "moved" { to } else { &from };
        assert_eq!((&there["host"], &there["state"]), (&expected.into(), &"running".into()), "{report}");
        assert_eq!((&there["memory"]["in"], playground.free_bytes()), (&"dram".into(), free), "{report}");
        Witness::of(&playground, "g").verify();
    }
    playground.check_pool();
}

#[test]
fn a_migration_that_stalls_for_too_long_leaves_the_guest_as_it_was_and_says_why() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    playground.json(&["pin", "add", "g", "--at", "0x1000000", "--size", "4K", "--owner", "vfio", "--reason", "DMA"]);
    let answer = playground.nil(&["--json", "migrate", "g", "--to", "B", "--fast", "--stall-timeout", "300ms"]);
    assert_eq!(answer.status.code(), Some(1), "{}", answer.stdout);
    let report = answer.json();
    assert_eq!(report["outcome"], "stalled", "{report}");
    assert!(report["why"].as_str().expect("a sentence").contains("vfio has pinned it (DMA)"), "{report}");
    let guest = playground.guest("g").expect("the guest");
    assert_eq!((&guest["host"], &guest["memory"]["in"]), (&"A".into(), &"dram".into()));
    assert_eq!(playground.free_bytes(), free);
    witness.verify();
}

#[test]
fn a_migration_to_a_host_that_cannot_have_the_guest_leaves_its_memory_where_it_was() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    playground.add_pool("other");
    let _a = playground.agent("A");
    let _c = playground.agent_with("C", &["--pool", &playground.path("other")]);
    let witness = playground.run_in_dram("g", "A");
    playground.nil(&["migrate", "g", "--to", "C", "--fast"]).refuses(1, &["host C is not a member of pool"]);
    assert_eq!(playground.memory_of("g"), "dram");
    witness.verify();
}
