//! Processes that live and say nothing: stopped workers, stopped agents.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that, kill};
use crate::witness::Witness;
use rustix::process::Signal;

/// A guest on host A whose agent was killed, and whose worker is stopped: the worker's process, and what it is to keep.
fn silent_worker(playground: &Playground) -> (i32, Witness) {
    let agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    agent.end(Signal::KILL);
    let [worker] = playground.workers()[..] else { panic!("one worker") };
    kill(worker, Signal::STOP);
    (worker, witness)
}

#[test]
fn a_worker_that_does_not_answer_a_new_agent_is_left_alone_and_found_when_it_does() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (worker, witness) = silent_worker(&playground);
    let _again = playground.agent("A");
    assert!(playground.agent_log("A").contains("it is left alone"), "{}", playground.agent_log("A"));
    playground.nil(&["vm", "stop", "g"]).refuses(1, &["the worker of guest g lives, and does not answer"]);
    kill(worker, Signal::CONT);
    await_that("the worker's answer", || playground.agent_log("A").contains("its worker answers now"));
    assert_eq!(playground.await_state("g", "running")["worker_pid"], worker);
    witness.verify();
    playground.json(&["decouple", "g", "--fast"]);
    witness.verify();
    assert!(playground.nil(&["vm", "stop", "g"]).status.success());
}

#[test]
fn a_worker_that_dies_before_it_has_answered_a_new_agent_is_seen_to_then() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (worker, _witness) = silent_worker(&playground);
    let _again = playground.agent("A");
    kill(worker, Signal::KILL);
    playground.await_state("g", "lost");
    assert!(playground.nil(&["vm", "stop", "g"]).status.success());
    assert!(playground.guest("g").is_none());
}

#[test]
fn a_target_whose_agent_does_not_answer_keeps_nobody_waiting() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    let witness = playground.run_in_dram("g", "A");
    kill(b.pid(), Signal::STOP);
    let listing = playground.nil(&["host", "list"]);
    assert!(listing.stdout.contains("does not answer"), "{}", listing.stdout);
    playground.nil(&["migrate", "g", "--to", "B"]).refuses(1, &["host B has not answered in time"]);
    assert_eq!(playground.memory_of("g"), "dram");
    kill(b.pid(), Signal::CONT);
    assert_eq!(playground.json(&["migrate", "g", "--to", "B", "--fast"])["outcome"], "moved");
    drop(witness);
    Witness::of(&playground, "g").verify();
}

#[test]
fn an_agent_that_is_stopped_keeps_no_listing_waiting_and_is_named() {
    let playground = Playground::new();
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    kill(b.pid(), Signal::STOP);
    let jobs = playground.nil(&["job", "list"]);
    assert!(jobs.status.success() && jobs.stdout.contains("agent of host B does not answer"), "{}", jobs.stdout);
    let ps = playground.nil(&["ps"]);
    assert!(ps.status.success() && ps.stdout.contains("does not answer"), "{}", ps.stdout);
    let unknown = "6f9619ff-8b86-4d01-b42d-00c04fc964ff";
    playground.nil(&["job", "show", unknown]).refuses(1, &["host B", "in time"]);
    playground.nil(&["top", "--once"]);
    kill(b.pid(), Signal::CONT);
    await_that("an answer", || playground.json(&["job", "list"])["silent"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn a_client_that_is_stopped_holds_up_no_move() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let client = playground.start(&["decouple", "g", "--bandwidth", "16M"]);
    playground.await_moving("g");
    kill(client.pid(), Signal::STOP);
    await_that("the end of the move", || playground.memory_of("g") == "pool");
    await_that("the end of the job", || playground.nil(&["recouple", "g", "--fast"]).status.success());
    assert_eq!(playground.memory_of("g"), "dram");
    kill(client.pid(), Signal::CONT);
    assert!(client.answer().status.success());
    witness.verify();
}

#[test]
fn the_state_of_a_guest_cannot_be_asked_for() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    playground.run_vm("g", "A");
    let memory = playground.open_pool().find_guest("g").expect("the guest").memory.to_string();
    let listing = playground.json(&["capacity", "list", &playground.pool()]);
    let tags = listing["capacities"].as_array().expect("capacities").iter().map(|line| line["tag"].clone());
    let state = tags.map(|tag| tag.as_str().expect("a tag").to_owned()).find(|tag| *tag != memory).expect("the state");
    let release = |tag: &str, more: &[&str]| {
        let pool = playground.pool();
        playground.nil(&[&["capacity", "release", &pool, tag][..], more].concat())
    };
    release(&state, &["--ask"]).refuses(1, &["has the state of guest 'g'", "nil vm stop g"]);
    release(&memory, &[]).refuses(1, &["has memory of guest 'g'", "--ask"]);
}
