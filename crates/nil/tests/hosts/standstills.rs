//! Migrations that are disturbed while their target gets ready, or while the guest is handed over. The target's
//! agent or worker is stopped by a signal, so that the moment comes for sure.

use crate::crashes::{arm, control};
use crate::kvm::has_kvm;
use crate::playground::{Agent, Playground, await_that, kill};
use crate::witness::Witness;
use nil_host::{Client, GuestName, GuestRange, Migrate, MigrationOutcome, MigrationReport, MoveMemory, RunDir};
use nil_mover::{Budget, Direction, Pace};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// What is ordered of the agent of A while its target stands still. `nil` cannot be used here: it asks all agents how
/// things are.
type Then = fn(&mut Client) -> nil_host::Result<String>;

fn agent_of_a(playground: &Playground) -> Client {
    let a = "A".parse().expect("a good name");
    Client::connect(&RunDir::at(playground.run_dir()).host(&a)).expect("the agent")
}

/// Orders the migration of a guest in DRAM from A to B, whose agent stands still, and lets something happen when all of its
/// memory is in the pool and the target should get ready. Returns the answers to `then` and to the migration.
fn migrate_to_a_standstill(
    playground: &Playground,
    b: &Agent,
    then: Then,
    stalls: Stalls,
) -> (String, MigrationReport) {
    let placement = control(playground).map_state().expect("its state").placement();
    let budget = Budget { pace: Pace::Fast, bandwidth: Some(32 << 20) };
    let migrate = Migrate { budget, ..Migrate::new(guest(), "B".parse().expect("a good name")) };
    let all = placement.away();
    std::thread::scope(|scope| {
        let migration = scope.spawn(move || agent_of_a(playground).migrate(&migrate, |_| {}));
        // The target has been asked whether it can have the guest, and not yet to get ready.
        await_that("the beginning of decoupling", || placement.away() < all);
        kill(b.pid(), Signal::STOP);
        let stopped = GoesOn(b.pid());
        await_that("the end of decoupling", || placement.away() == 0);
        let answer = then(&mut agent_of_a(playground)).expect("an answer");
        drop(stopped);
        if stalls == Stalls::UntilDecoupled {
            playground.await_stall("g", "nil recouple holds it (a test)");
            assert_eq!(playground.guest("g").expect("the guest")["host"], "A");
            playground.json(&["decouple", "g", "--range", "0x1000000+2M"]);
        }
        (answer, migration.join().expect("no panic").expect("a report"))
    })
}

fn guest() -> GuestName {
    "g".parse().expect("a good name")
}

/// A process that goes on at the latest when this is dropped: by a test that has failed, too.
struct GoesOn(i32);

impl Drop for GoesOn {
    fn drop(&mut self) {
        kill(self.0, Signal::CONT);
    }
}

/// Whether the migration is to stall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stalls {
    No,
    UntilDecoupled,
}

#[test]
fn memory_that_is_pulled_back_while_the_target_gets_ready_sends_the_migration_back_to_decoupling() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    let _witness = playground.run_in_dram("g", "A");
    let pull_back: Then = |agent| {
        let range = Some(GuestRange { address: 0x100_0000, bytes: 2 << 20 });
        let (budget, reason) = (Budget { pace: Pace::Fast, bandwidth: None }, Some("a test".to_owned()));
        let order = MoveMemory { range, budget, reason, ..MoveMemory::all_of(guest(), Direction::Recouple) };
        Ok(agent.move_memory(&order, |_| {})?.remarks.join("; "))
    };
    let (pulled_back, migrated) = migrate_to_a_standstill(&playground, &b, pull_back, Stalls::UntilDecoupled);
    assert!(pulled_back.contains("held in DRAM"), "{pulled_back}");
    assert_eq!(migrated.outcome, MigrationOutcome::Moved);
    assert_eq!(playground.memory_of("g"), "dram");
    Witness::of(&playground, "g").verify();
}

#[test]
fn a_migration_that_is_called_off_while_its_target_gets_ready_puts_the_memory_back() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    let witness = playground.run_in_dram("g", "A");
    let free = playground.free_bytes();
    let cancel: Then = |agent| agent.cancel_migration(&guest());
    let (called_off, migrated) = migrate_to_a_standstill(&playground, &b, cancel, Stalls::No);
    assert!(called_off.contains("runs on at A"), "{called_off}");
    assert!(matches!(migrated.outcome, MigrationOutcome::Cancelled { .. }), "{migrated:?}");
    assert_eq!((playground.memory_of("g"), playground.free_bytes()), ("dram".into(), free));
    witness.verify();
    await_that("the end of the target's worker", || playground.workers_of("B").is_empty());
    assert_eq!(playground.json(&["migrate", "g", "--to", "B", "--fast"])["outcome"], "moved");
}

#[test]
fn a_handoff_that_is_called_off_leaves_the_guest_with_its_source() {
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
    let connect = || UnixStream::connect(playground.host_dir("A").join("workers/g.sock")).expect("the worker's socket");
    let ask = |stream: &UnixStream, order: &serde_json::Value| {
        let mut reply = String::new();
        writeln!(&*stream, "{order}").expect("written");
        BufReader::new(stream).read_line(&mut reply).expect("a reply");
        reply
    };
    let slot = control.pool().find_host("B").expect("the host").slot.index();
    let handoff = serde_json::json!({"handoff": {"to": slot, "deadline_us": 60_000_000}});
    std::thread::scope(|scope| {
        let handing_over = scope.spawn(|| ask(&connect(), &handoff));
        // It is refused until the handoff has begun.
        await_that("the call-off", || ask(&connect(), &"cancel_handoff".into()).contains("done"));
        let reply = handing_over.join().expect("no panic");
        assert!(reply.starts_with("{\"taken_back\":") && reply.contains("called off"), "{reply}");
    });
    assert_eq!(playground.await_state("g", "running")["host"], "A");
    kill(target, Signal::CONT);
    await_that("the end of the target's worker", || playground.workers_of("B").is_empty());
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
}
