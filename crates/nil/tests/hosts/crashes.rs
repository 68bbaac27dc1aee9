//! Agents and workers are killed in the middle of migrations.

use crate::http::{Response, ask};
use crate::kvm::has_kvm;
use crate::playground::{Agent, Playground, await_that, kill};
use nil_pool::{Epoch, GuestControl, HostSlot, Ownership};
use rustix::process::Signal;
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

/// Asks an agent, as another agent would, to get ready for a guest. Dropping the answer calls it off.
pub(crate) fn arm(playground: &Playground, host: &str, guest: &GuestControl) -> Response {
    let order = serde_json::json!({
        "pool": guest.pool().id(), "slot": guest.slot(), "id": guest.id(), "name": "g", "from": "A",
    });
    let mut response = ask(playground, host, "POST", "/v1/peer/arm", &order.to_string());
    let line = response.line();
    assert!(response.status == 200 && line.starts_with("{\"armed\":"), "{line}");
    response
}

pub(crate) fn control(playground: &Playground) -> GuestControl {
    let pool = playground.open_pool();
    let guest = pool.find_guest("g").expect("the guest");
    pool.guest(guest.slot, guest.id).expect("its record")
}

#[test]
fn a_target_goes_home_when_its_source_hangs_up() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    let source = arm(&playground, "B", &control(&playground));
    assert_eq!(playground.workers_of("B").len(), 1);
    drop(source);
    await_that("the end of the target's worker", || playground.workers_of("B").is_empty());
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
}

#[test]
fn a_target_whose_agent_is_killed_goes_home_when_the_agent_returns() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    let _source = arm(&playground, "B", &control(&playground));
    b.end(Signal::KILL);
    assert_eq!(playground.workers_of("B").len(), 1);
    let _b = playground.agent("B");
    await_that("the end of the target's worker", || playground.workers_of("B").is_empty());
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
}

#[test]
fn a_target_that_stands_still_does_not_get_the_guest() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    let control = control(&playground);
    let _target = arm(&playground, "B", &control);
    let target = playground.workers_of("B")[0];
    kill(target, Signal::STOP);
    let source = UnixStream::connect(playground.host_dir("A").join("workers/g.sock")).expect("the worker's socket");
    let slot = control.pool().find_host("B").expect("the host").slot.index();
    let order = serde_json::json!({"handoff": {"to": slot, "deadline_us": 200_000}});
    writeln!(&source, "{order}").expect("written");
    let mut reply = String::new();
    BufReader::new(&source).read_line(&mut reply).expect("a reply");
    assert!(reply.starts_with("{\"taken_back\":"), "{reply}");
    let guest = playground.await_state("g", "running");
    assert_eq!((&guest["host"], &guest["epoch"]), (&"A".into(), &2.into()));
    assert!(guest["detail"].as_str().expect("a reason").contains("target"), "{guest}");
    kill(target, Signal::CONT);
    await_that("the end of the target's worker", || playground.workers_of("B").is_empty());
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
}

#[test]
fn a_guest_whose_agent_was_killed_before_it_started_leaves_nothing() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let mut agent = Some(playground.agent("A"));
    let free = playground.free_bytes();
    let pool = playground.pool();
    for delay in [2, 5, 8, 12, 16, 25] {
        let args = ["vm", "run", "builtin:pages", "--memory", "64M", "--name", "g", "--pool", &pool];
        let mut client = playground.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nil");
        std::thread::sleep(Duration::from_millis(delay));
        agent.take().expect("it runs").end(Signal::KILL);
        client.wait().expect("its status");
        agent = Some(playground.agent("A"));
        await_that("the guest's running or its end", || match playground.guest("g") {
            Some(guest) if guest["state"] == "running" => playground.nil(&["vm", "stop", "g"]).status.success(),
            Some(_) => false,
            None => playground.workers().is_empty() && playground.free_bytes() == free,
        });
    }
}

/// A guest that was moved from A to B once, with nobody left alive who runs it; its word is then as `word` makes it from
/// A's slot and B's slot. The guest does nothing but jump in place, so that the registers with which it left A fit the
/// memory that it has after having run on B.
pub(crate) fn abandoned(playground: &Playground, word: impl Fn(HostSlot, HostSlot) -> Ownership) -> GuestControl {
    let (a, b) = (playground.agent("A"), playground.agent("B"));
    let image = playground.path("jump-in-place");
    std::fs::write(&image, [0xEB, 0xFE]).expect("an image");
    playground.run_image("g", "A", &image);
    playground.json(&["migrate", "g", "--to", "B"]);
    let control = control(playground);
    let slot_of = |name: &str| control.pool().find_host(name).expect("the host").slot;
    let word = word(slot_of("A"), slot_of("B"));
    a.end(Signal::KILL);
    b.end(Signal::KILL);
    for worker in playground.workers() {
        kill(worker, Signal::KILL);
    }
    await_that("the end of the workers", || playground.workers().is_empty());
    let now = control.ownership().load().expect("a valid word");
    assert!(control.ownership().transition(now, word));
    control
}

#[test]
fn a_guest_that_its_dead_source_had_frozen_is_taken_back() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    // The state with which it left A is still in the slot of that epoch.
    abandoned(&playground, |source, target| Ownership::Frozen { source, target, epoch: Epoch(1) });
    let _a = playground.agent("A");
    let guest = playground.await_state("g", "running");
    assert_eq!((&guest["host"], &guest["epoch"]), (&"A".into(), &2.into()));
    let _b = playground.agent("B");
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
}

#[test]
fn a_guest_whose_source_died_after_its_last_save_is_salvaged() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    abandoned(&playground, |source, target| Ownership::Offered { source, target, epoch: Epoch(1) });
    let _a = playground.agent("A");
    let guest = playground.await_state("g", "running");
    assert_eq!((&guest["host"], &guest["epoch"]), (&"A".into(), &2.into()));
}

#[test]
fn a_guest_whose_source_died_before_its_last_save_is_lost() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    // No state was ever saved for that epoch.
    abandoned(&playground, |source, target| Ownership::Offered { source, target, epoch: Epoch(5) });
    let _a = playground.agent("A");
    playground.await_state("g", "lost");
}

#[test]
fn workers_killed_at_any_moment_of_a_migration_leave_a_guest_that_runs_once_or_is_lost() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let mut outcomes = Vec::new();
    for (round, victim) in ["A", "B"].into_iter().cycle().take(16).enumerate() {
        playground.run_vm("g", "A");
        let mut client = playground.command(&["migrate", "g", "--to", "B"]);
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nil");
        std::thread::sleep(Duration::from_millis(7 * u64::try_from(round).expect("a small number")));
        for worker in playground.workers_of(victim) {
            kill(worker, Signal::KILL);
        }
        client.wait().expect("its status");
        outcomes.push(settle(&playground));
    }
    assert!(outcomes.iter().any(|outcome| outcome == "lost"), "no kill hit: {outcomes:?}");
    assert!(outcomes.iter().any(|outcome| outcome == "running"), "no guest survived: {outcomes:?}");
}

/// Waits until the guest runs in one worker or is lost with none; stops it and says which it was.
fn settle(playground: &Playground) -> String {
    let seen = || {
        let guest = playground.guest("g")?;
        let state = guest["state"].as_str()?.to_owned();
        let workers = playground.workers().len();
        matches!((state.as_str(), workers), ("running", 1) | ("lost", 0)).then_some(state)
    };
    // A worker that has handed its guest over lives a moment longer, and a death takes a moment to be noticed.
    let settled = Cell::new(None);
    await_that("the guest's settling", || {
        let first = seen();
        std::thread::sleep(Duration::from_millis(200));
        let second = seen();
        let stable = second.is_some() && first == second;
        settled.set(second);
        stable
    });
    let state = settled.take().expect("it has settled");
    let stopped = playground.nil(&["vm", "stop", "g"]);
    assert!(stopped.status.success(), "{}", stopped.stderr);
    state
}

#[test]
fn an_agent_killed_in_the_middle_of_a_migration_leaves_a_guest_that_runs() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let mut agents: [Option<Agent>; 2] = [Some(playground.agent("A")), Some(playground.agent("B"))];
    playground.run_vm("g", "A");
    for round in 0..8_u8 {
        let host = playground.guest("g").expect("the guest")["host"].as_str().expect("its host").to_owned();
        let target = if host == "A" { "B" } else { "A" };
        let mut client = playground.command(&["migrate", "g", "--to", target]);
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nil");
        std::thread::sleep(Duration::from_millis(10 * u64::from(round)));
        let victim = usize::from(round & 1);
        agents[victim].take().expect("it runs").end(Signal::KILL);
        client.wait().expect("its status");
        agents[victim] = Some(playground.agent(["A", "B"][victim]));
        await_that("the guest's running on in one worker", || {
            let guest = playground.guest("g").expect("the guest");
            assert_ne!(guest["state"], "lost");
            guest["state"] == "running" && playground.workers().len() == 1
        });
    }
}
