//! Agents and workers are killed while memory moves, and memory is lost.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that, kill};
use crate::witness::Witness;
use nil_pool::GRANULE;
use rustix::process::Signal;

#[test]
fn a_move_goes_on_without_its_agent_and_the_next_agent_sees_to_the_rest() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    let client = playground.start(&["decouple", "g", "--bandwidth", "16M"]);
    playground.await_moving("g");
    agent.end(Signal::KILL);
    assert!(!client.answer().status.success());
    let agent = playground.agent("A");
    playground.nil(&["recouple", "g"]).refuses(1, &["being decoupled"]);
    await_that("the end of the decoupling", || playground.memory_of("g") == "pool");
    witness.verify();
    // On the way back the capacity is the next agent's to give back.
    playground.await_guest("g", "the end of the job", |guest| guest["detail"].is_null());
    let client = playground.start(&["recouple", "g", "--bandwidth", "16M"]);
    playground.await_moving("g");
    agent.end(Signal::KILL);
    assert!(!client.answer().status.success());
    let _agent = playground.agent("A");
    await_that("the end of the recoupling", || playground.memory_of("g") == "dram" && playground.free_bytes() == free);
    witness.verify();
    playground.check_pool();
}

#[test]
fn a_worker_that_is_killed_while_memory_moves_leaves_a_lost_guest_and_no_leak() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let free = playground.free_bytes();
    for direction in ["decouple", "recouple"] {
        playground.run_in_dram("g", "A");
        if direction == "recouple" {
            playground.json(&["decouple", "g", "--fast"]);
        }
        let client = playground.start(&[direction, "g", "--bandwidth", "8M"]);
        playground.await_moving("g");
        kill(playground.workers()[0], Signal::KILL);
        client.answer().refuses(1, &["g"]);
        let guest = playground.await_state("g", "lost");
        assert_eq!(guest["memory"]["placed"], true, "its memory is kept until it is stopped: {guest}");
        playground.check_pool();
        assert!(playground.nil(&["vm", "stop", "g"]).status.success());
        assert_eq!(playground.free_bytes(), free);
    }
    playground.check_pool();
}

#[test]
fn a_guest_whose_agents_die_while_it_settles_runs_on_with_its_memory_known() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, b) = (playground.agent("A"), playground.agent("B"));
    let _witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    let client = playground.start(&["migrate", "g", "--to", "B", "--bandwidth", "24M"]);
    playground
        .await_guest("g", "the recoupling", |guest| guest["host"] == "B" && guest["moving"]["direction"] == "recouple");
    playground.nil(&["migrate", "g", "--cancel"]).refuses(1, &["too late"]);
    a.end(Signal::KILL);
    b.end(Signal::KILL);
    assert!(!client.answer().status.success());
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    await_that("the end of the recoupling", || playground.memory_of("g") == "dram" && playground.free_bytes() == free);
    assert_eq!(playground.await_state("g", "running")["host"], "B");
    Witness::of(&playground, "g").verify();
    playground.check_pool();
}

#[test]
fn a_guest_that_loses_its_memory_stops_and_no_other_does() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    // Its memory comes behind everything else, so that cutting the pool off takes nothing but that.
    let _cut = playground.run_in_dram("cut", "A");
    let other = playground.run_in_dram("other", "A");
    playground.json(&["decouple", "other", "--fast"]);
    playground.json(&["decouple", "cut", "--fast"]);
    let pool = playground.open_pool();
    let tag = pool.find_guest("cut").expect("the guest").memory;
    let capacities = pool.capacities();
    let last = |of: &nil_pool::CapacityInfo| of.extents.iter().map(|extent| extent.first + extent.count).max();
    let memory = capacities.iter().find(|capacity| capacity.tag == tag).expect("its memory");
    assert_eq!(last(memory), capacities.iter().filter_map(last).max(), "its memory is not the last");
    let end = u64::from(last(memory).expect("an extent")) * GRANULE;
    let file = std::fs::OpenOptions::new().write(true).open(playground.pool()).expect("the pool");
    file.set_len(end - 32 * GRANULE / 2).expect("the pool is cut off");
    let guest = playground.await_state("cut", "stopped");
    let detail = guest["detail"].as_str().expect("a reason");
    for word in ["0x", &tag.to_string(), &playground.pool()] {
        assert!(detail.contains(word), "`{word}` is missing in: {detail}");
    }
    let turns = other.turns();
    await_that("the other guest's running on", || other.turns() > turns);
    other.verify();
    assert_eq!(playground.await_state("other", "running")["host"], "A");
    assert_eq!(playground.json(&["host", "list"])["hosts"][0]["agent_pid"], agent.pid());
    // The file has its size again, so that stopping the guests finds their granules.
    assert!(playground.nil(&["vm", "stop", "cut"]).status.success());
    assert!(playground.nil(&["vm", "stop", "other"]).status.success());
}
