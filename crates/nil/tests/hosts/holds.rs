//! Memory that must not move: pins, and parts that were pulled back.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that};

const RANGE: &str = "0x1000000+4M";

#[test]
fn a_pin_stalls_a_decoupling_which_names_its_owner_and_goes_on_when_it_ends() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let pin = ["pin", "add", "g", "--at", "0x1100000", "--size", "64K", "--owner", "vfio-pci", "--reason", "DMA ring"];
    let pin = playground.json(&pin)["pin"].clone();
    assert_eq!(
        (&pin["range"]["address"], &pin["owner"], &pin["host"]),
        (&0x110_0000.into(), &"vfio-pci".into(), &"A".into())
    );
    assert_eq!(playground.guest("g").expect("the guest")["memory"]["pins"], 1);
    let client = playground.start(&["decouple", "g", "--fast"]);
    playground.await_stall("g", "vfio-pci has pinned it (DMA ring)");
    assert_eq!(playground.memory_of("g"), "both");
    let id = pin["id"].as_str().expect("a name");
    assert!(playground.nil(&["pin", "list", "g"]).stdout.contains(id));
    assert!(playground.nil(&["pin", "release", "g", id]).status.success());
    let answer = client.answer();
    assert!(answer.status.success() && answer.stderr.contains("vfio-pci"), "{}{}", answer.stdout, answer.stderr);
    assert_eq!(playground.memory_of("g"), "pool");
    assert_eq!(playground.json(&["pin", "list", "g"])["pins"], serde_json::json!([]));
    playground.nil(&["pin", "release", "g", id]).refuses(1, &["there is no pin"]);
    witness.verify();
}

#[test]
fn a_decoupling_that_stalls_for_too_long_puts_everything_back() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    playground.json(&["pin", "add", "g", "--at", "0x1100000", "--size", "4K", "--owner", "rdma", "--reason", "QP 7"]);
    let answer = playground.nil(&["decouple", "g", "--fast", "--stall-timeout", "300ms"]);
    assert_eq!(answer.status.code(), Some(1), "{}", answer.stdout);
    assert!(answer.stdout.contains("rdma has pinned it (QP 7)"), "{}", answer.stdout);
    assert_eq!((playground.memory_of("g"), playground.free_bytes()), ("dram".into(), free));
    witness.verify();
}

#[test]
fn a_part_that_is_pulled_back_stalls_a_migration_until_it_is_let_go() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let _witness = playground.run_in_dram("g", "A");
    playground.json(&["decouple", "g", "--fast"]);
    let answer = playground.nil(&["recouple", "g", "--fast", "--range", RANGE, "--reason", "driver update"]);
    assert!(answer.stdout.contains(&format!("nil decouple g --range {RANGE}")), "{}{}", answer.stdout, answer.stderr);
    let memory = playground.guest("g").expect("the guest")["memory"].clone();
    assert_eq!((&memory["in"], &memory["holds"], &memory["pins"]), (&"both".into(), &1.into(), &0.into()));
    let client = playground.start(&["--json", "migrate", "g", "--to", "B", "--fast"]);
    playground.await_stall("g", "nil recouple holds it (driver update)");
    assert_eq!(playground.guest("g").expect("the guest")["host"], "A");
    let lifted = playground.nil(&["decouple", "g", "--range", RANGE]);
    assert!(lifted.stdout.contains("the hold on 0x1000000+4M is lifted"), "{}{}", lifted.stdout, lifted.stderr);
    let report = client.answer().json();
    assert_eq!(report["outcome"], "moved", "{report}");
    assert!(report["decouple"]["stalled_us"].as_u64() > Some(0), "{report}");
    let witness = crate::witness::Witness::of(&playground, "g");
    witness.verify();
}

#[test]
fn a_part_that_is_pulled_back_during_a_decoupling_stalls_it() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let client = playground.start(&["--json", "decouple", "g", "--bandwidth", "16M"]);
    playground.await_moving("g");
    playground.json(&["recouple", "g", "--fast", "--range", RANGE]);
    playground.await_stall("g", "nil recouple holds it");
    let lifted = playground.json(&["decouple", "g", "--range", RANGE]);
    assert!(lifted["moved"].is_null(), "{lifted}");
    assert_eq!(client.answer().json()["moved"]["outcome"], "done");
    assert_eq!(playground.memory_of("g"), "pool");
    witness.verify();
}

#[test]
fn capacity_whose_release_is_asked_for_is_given_back() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    playground.json(&["decouple", "g", "--fast"]);
    let pool = playground.open_pool();
    let tag = pool.find_guest("g").expect("the guest").memory.to_string();
    assert!(playground.nil(&["capacity", "release", &playground.pool(), &tag, "--ask"]).status.success());
    await_that("the return of the memory", || playground.memory_of("g") == "dram" && playground.free_bytes() == free);
    assert!(playground.agent_log("A").contains("the release of its capacity was asked for"));
    // The hold goes, too: nothing keeps the guest from being decoupled again.
    await_that("the end of the hold", || playground.guest("g").expect("the guest")["memory"]["holds"] == 0);
    witness.verify();
    playground.json(&["decouple", "g", "--fast"]);
    witness.verify();
}

#[test]
fn pins_on_memory_in_the_pool_travel_with_the_guest() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    playground.json(&["pin", "add", "g", "--at", "0x1000000", "--size", "2M", "--owner", "rdma", "--reason", "MR 1"]);
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
    await_that("the pin's arrival", || playground.json(&["pin", "list", "g"])["pins"][0]["host"] == "B");
}
