//! Hosts die, or stand still for too long, and others fence them and take what they had.

use crate::crashes::{abandoned, control};
use crate::kvm::has_kvm;
use crate::playground::{Agent, Playground, await_that, kill};
use crate::witness::Witness;
use nil_guest_abi::layout::CONTROL_OFFSET;
use nil_guest_abi::{ControlBlock, VcpuBlock};
use nil_pool::{Epoch, Fence, GuestControl, Ownership};
use rustix::process::Signal;
use std::fs::{self, File};
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::Duration;

/// Long enough for anything that should not happen: several times the expiry.
const A_WHILE: Duration = Duration::from_millis(1500);

/// An agent whose lease expires soon.
fn quick(playground: &Playground, name: &str, takeover: &str, more: &[&str]) -> Agent {
    let pool = playground.pool();
    let lease = ["--lease-interval", "20", "--lease-expiry", "300", "--takeover", takeover];
    playground.agent_with(name, &[&["--pool", &pool], &lease[..], more].concat())
}

/// Hosts A and B.
fn both_quick(playground: &Playground, takeover: &str) -> (Agent, Agent) {
    (quick(playground, "A", takeover, &[]), quick(playground, "B", takeover, &[]))
}

/// Kills everything of a host.
fn end_host(playground: &Playground, name: &str, agent: Agent) {
    agent.end(Signal::KILL);
    playground.workers_of(name).into_iter().for_each(|pid| kill(pid, Signal::KILL));
}

/// Stops everything of a host, and returns its workers.
fn stop_host(playground: &Playground, name: &str, agent: &Agent) -> Vec<i32> {
    let workers = playground.workers_of(name);
    workers.iter().copied().chain([agent.pid()]).for_each(|pid| kill(pid, Signal::STOP));
    workers
}

fn fence_of(playground: &Playground, host: &str) -> Fence {
    let pool = playground.open_pool();
    let slot = pool.find_host(host).expect("the host").slot;
    pool.life(slot).expect("its life").fence
}

fn word(guest: &GuestControl) -> Ownership {
    guest.ownership().load().expect("a valid word")
}

fn is_lost(guest: &GuestControl) -> bool {
    matches!(word(guest), Ownership::Lost { .. })
}

/// The guest's own counter, read from the pool, whoever runs the guest.
struct Counter {
    pool: File,
    at: u64,
}

impl Counter {
    fn of(guest: &GuestControl) -> Self {
        let memory = guest.map_memory().expect("its memory");
        let byte = CONTROL_OFFSET + offset_of!(ControlBlock, vcpu) + offset_of!(VcpuBlock, counter);
        let source = memory.source_at(byte);
        Self { pool: File::open(&source.path).expect("the pool"), at: source.pool_offset.0 }
    }

    fn read(&self) -> u64 {
        let mut bytes = [0; 8];
        self.pool.read_exact_at(&mut bytes, self.at).expect("a word of the guest's memory");
        u64::from_le_bytes(bytes)
    }
}

/// What others see of a host's lease, as `nil host list` has it.
fn standing_of(playground: &Playground, host: &str) -> String {
    let hosts = playground.json(&["host", "list"])["hosts"].as_array().expect("hosts").clone();
    let found = hosts.into_iter().find(|known| known["name"] == host).expect("the host");
    found["standing"].as_str().unwrap_or("nobody looks").to_owned()
}

/// The reports of takeovers that have ended.
fn reports(playground: &Playground) -> Vec<serde_json::Value> {
    let jobs = playground.json(&["job", "list"])["jobs"].as_array().expect("a list of jobs").clone();
    let over = jobs.into_iter().filter(|job| job["kind"] == "takeover" && !job["outcome"].is_null());
    let id = |job: &serde_json::Value| job["id"].as_str().expect("its number").to_owned();
    over.map(|job| playground.json(&["job", "show", &id(&job)])["report"]["takeover"].clone()).collect()
}

#[test]
fn what_a_killed_host_ran_is_lost_and_said_to_be_so() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = both_quick(&playground, "auto");
    playground.run_vm("g", "A");
    let guest = control(&playground);
    end_host(&playground, "A", a);
    await_that("the guest's being lost", || is_lost(&guest));
    assert_eq!(fence_of(&playground, "A"), Fence::Fenced);
    await_that("the report", || !reports(&playground).is_empty());
    let report = &reports(&playground)[0];
    assert_eq!(
        (&report["from"], &report["by"], &report["outcome"]["kind"]),
        (&"A".into(), &"B".into(), &"lost".into())
    );
    assert_eq!(report["sure"], true, "everything of it was gone: {report}");
    // Its memory is kept, and its state as it was when it last came to the pool: when it was booted.
    let core = playground.path("g.core");
    let dumped = playground.json(&["guest", "dump", "g", "--core", &core]);
    assert_eq!(
        (&dumped["memory_bytes"], &dumped["vcpus"], &dumped["state_epoch"]),
        (&(64 << 20).into(), &1.into(), &0.into())
    );
    let written = fs::read(&core).expect("the core file");
    assert!(written.starts_with(b"\x7FELF") && written.len() > 64 << 20);
}

#[test]
fn an_agent_that_dies_alone_costs_no_guest() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = both_quick(&playground, "auto");
    playground.run_vm("g", "A");
    let (guest, owned) = (control(&playground), word(&control(&playground)));
    let counter = Counter::of(&guest);
    a.end(Signal::KILL);
    std::thread::sleep(A_WHILE);
    assert_eq!((fence_of(&playground, "A"), word(&guest)), (Fence::Standing, owned), "its worker beats");
    let before = counter.read();
    let _a = quick(&playground, "A", "auto", &[]);
    await_that("the guest's going on", || counter.read() > before);
    assert_eq!(playground.await_state("g", "running")["host"], "A");
}

#[test]
fn a_host_that_cannot_be_talked_to_and_beats_is_left_alone() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = both_quick(&playground, "auto");
    playground.run_vm("g", "A");
    let (guest, owned) = (control(&playground), word(&control(&playground)));
    // It answers nobody; its worker beats.
    kill(a.pid(), Signal::STOP);
    std::thread::sleep(A_WHILE);
    let found = (fence_of(&playground, "A"), word(&guest));
    kill(a.pid(), Signal::CONT);
    assert_eq!(found, (Fence::Standing, owned));
}

#[test]
fn a_host_that_wakes_up_fenced_runs_nothing_and_ends() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = both_quick(&playground, "auto");
    playground.run_vm("g", "A");
    let guest = control(&playground);
    let counter = Counter::of(&guest);
    await_that("the guest's first turns", || counter.read() > 0);
    let workers = stop_host(&playground, "A", &a);
    await_that("the guest's being lost", || is_lost(&guest));
    let (stood, lease) = (counter.read(), guest.pool().find_host("A").expect("the host").lease);
    // The workers first: nobody else is there who could kill them.
    for pid in &workers {
        kill(*pid, Signal::CONT);
    }
    await_that("the end of the fenced worker", || playground.workers_of("A").is_empty());
    assert_eq!(counter.read(), stood, "the guest ran after its host had been fenced");
    assert_eq!(guest.pool().find_host("A").expect("the host").lease, lease, "the dead do not beat");
    kill(a.pid(), Signal::CONT);
    assert_eq!(a.wait().code(), Some(75), "{}", playground.agent_log("A"));
    // Started again, it is a new one, and finds out.
    let _a = quick(&playground, "A", "auto", &[]);
    assert_eq!(fence_of(&playground, "A"), Fence::Standing);
    assert_eq!(playground.await_state("g", "lost")["name"], "g");
}

#[test]
fn a_pause_that_is_shorter_than_the_expiry_costs_nothing() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let pool = playground.pool();
    let slow = ["--pool", &pool, "--lease-interval", "50", "--lease-expiry", "20000", "--takeover", "auto"];
    let (a, _b) = (playground.agent_with("A", &slow), playground.agent_with("B", &slow));
    playground.run_vm("g", "A");
    let (guest, owned) = (control(&playground), word(&control(&playground)));
    let all: Vec<i32> = playground.workers_of("A").into_iter().chain([a.pid()]).collect();
    all.iter().for_each(|pid| kill(*pid, Signal::STOP));
    std::thread::sleep(A_WHILE);
    all.iter().for_each(|pid| kill(*pid, Signal::CONT));
    let counter = Counter::of(&guest);
    let before = counter.read();
    await_that("the guest's going on", || counter.read() > before);
    assert_eq!((fence_of(&playground, "A"), word(&guest)), (Fence::Standing, owned));
}

#[test]
fn a_host_that_asks_takes_over_when_it_is_told_to() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = both_quick(&playground, "ask");
    playground.run_vm("g", "A");
    let guest = control(&playground);
    // B may not have seen enough of A yet to say so.
    await_that("a refusal, for A is alive", || {
        let refused = playground.nil(&["takeover", "A"]);
        assert!(!refused.status.success(), "{}", refused.stdout);
        refused.stderr.contains("alive")
    });
    assert_eq!(standing_of(&playground, "A"), "alive");
    end_host(&playground, "A", a);
    await_that("A's being known to be dead", || standing_of(&playground, "A") == "dead");
    playground.await_guest("g", "the advice", |guest| {
        guest["detail"].as_str().is_some_and(|detail| detail.contains("nil takeover A"))
    });
    assert!(!is_lost(&guest) && fence_of(&playground, "A") == Fence::Standing, "nobody has been told to");
    let told = playground.json(&["takeover", "A"]);
    assert_eq!(told["taken"][0]["outcome"]["kind"], "lost", "{told}");
    assert!(is_lost(&guest) && fence_of(&playground, "A") == Fence::Fenced);
    await_that("A's being known to be fenced", || standing_of(&playground, "A") == "fenced");
    assert!(playground.nil(&["ps"]).stdout.contains("fenced"));
}

/// A program that does that with what it finds in its environment.
fn program(playground: &Playground, name: &str, does: &str) -> String {
    let path = playground.path(name);
    fs::write(&path, format!("#!/bin/sh\n{does}\n")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be run");
    path
}

#[test]
fn nothing_is_taken_before_the_fence_command_has_succeeded() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (gate, called) = (playground.path("gate"), playground.path("called"));
    let does = format!("echo \"$NIL_FENCE_HOST by $NIL_FENCE_BY\" >> {called}; test -e {gate}");
    let command = program(&playground, "fence", &does);
    let (a, _b) =
        (quick(&playground, "A", "auto", &[]), quick(&playground, "B", "auto", &["--fence-command", &command]));
    playground.run_vm("g", "A");
    let guest = control(&playground);
    end_host(&playground, "A", a);
    await_that("the fence command", || fs::read_to_string(&called).is_ok_and(|text| text.contains("A by B")));
    std::thread::sleep(A_WHILE);
    assert!(!is_lost(&guest) && fence_of(&playground, "A") == Fence::Fencing, "the command has failed");
    assert_eq!(standing_of(&playground, "A"), "fencing");
    fs::write(&gate, "").expect("the gate is open");
    await_that("the guest's being lost", || is_lost(&guest));
    assert_eq!(fence_of(&playground, "A"), Fence::Fenced);
}

#[test]
fn a_peer_goes_on_where_a_fencer_was_killed() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let begun = playground.path("begun");
    // Nobody ends it with B. It ends when the playground goes.
    let does = format!("touch {begun}; while test -e {begun}; do sleep 0.05; done");
    let command = program(&playground, "fence", &does);
    let a = quick(&playground, "A", "auto", &[]);
    let b = quick(&playground, "B", "auto", &["--fence-command", &command]);
    playground.run_vm("g", "A");
    let guest = control(&playground);
    end_host(&playground, "A", a);
    await_that("the fence command", || fs::exists(&begun).is_ok_and(|begun| begun));
    let _c = quick(&playground, "C", "auto", &[]);
    std::thread::sleep(A_WHILE);
    assert!(!is_lost(&guest), "B is about to fence A, and lives");
    b.end(Signal::KILL);
    await_that("the guest's being lost", || is_lost(&guest));
    let pool = playground.open_pool();
    let life = pool.find_host("A").and_then(|host| host.life).expect("its life");
    let c = pool.find_host("C").expect("the host").slot;
    assert_eq!((life.fence, life.fencer), (Fence::Fenced, Some(c)));
}

#[test]
fn a_guest_that_is_frozen_between_two_dead_hosts_goes_on_at_a_third() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let guest = abandoned(&playground, |source, target| Ownership::Frozen { source, target, epoch: Epoch(1) });
    let _c = quick(&playground, "C", "auto", &[]);
    let taken = playground.await_state("g", "running");
    assert_eq!((&taken["host"], &taken["epoch"]), (&"C".into(), &2.into()));
    assert!(matches!(word(&guest), Ownership::Owned { epoch: Epoch(2), .. }));
    await_that("the report", || reports(&playground).iter().any(|report| report["outcome"]["kind"] == "rescued"));
}

/// Starts a guest on A of which checkpoints are made, and waits for some.
fn protected(playground: &Playground) -> GuestControl {
    let pool = playground.pool();
    let run = ["vm", "run", "builtin:demo", "--memory", "64M", "--name", "g", "--pool", &pool, "--host", "A"];
    playground.json(&[&run[..], &["--protect", "25ms"]].concat());
    Witness::of(playground, "g").await_filled();
    let guest = control(playground);
    let owner = guest.pool().find_host("A").expect("the host").slot;
    let first = guest.last_commit(owner).expect("no damage").map_or(0, |commit| commit.number);
    await_that("checkpoints", || {
        guest.last_commit(owner).expect("no damage").is_some_and(|commit| commit.number > first + 2)
    });
    guest
}

/// The guest runs on one of these hosts, has found no error in its memory, and goes on.
fn goes_on(playground: &Playground, hosts: &[&str]) {
    let guest = playground.await_state("g", "running");
    assert!(hosts.contains(&guest["host"].as_str().expect("a host")), "{guest}");
    let witness = Witness::of_guest(&guest);
    witness.verify();
    let before = witness.turns();
    await_that("the guest's going on", || witness.turns() > before);
}

#[test]
fn a_protected_guest_of_a_killed_host_goes_on_at_another() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = both_quick(&playground, "auto");
    protected(&playground);
    end_host(&playground, "A", a);
    await_that("the report", || reports(&playground).iter().any(|report| report["outcome"]["kind"] == "resumed"));
    goes_on(&playground, &["B"]);
}

#[test]
fn a_host_that_wakes_up_does_not_disturb_a_guest_that_was_taken_from_it() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = both_quick(&playground, "auto");
    let guest = protected(&playground);
    let taker = guest.pool().find_host("B").expect("the host").slot;
    let workers = stop_host(&playground, "A", &a);
    // No command could be used here: it would ask the agent that stands still, too.
    await_that("the guest's running at B", || matches!(word(&guest), Ownership::Owned { host, .. } if host == taker));
    workers.iter().for_each(|pid| kill(*pid, Signal::CONT));
    await_that("the end of the fenced worker", || playground.workers_of("A").is_empty());
    kill(a.pid(), Signal::CONT);
    assert_eq!(a.wait().code(), Some(75));
    goes_on(&playground, &["B"]);
}

#[test]
fn a_worker_that_is_killed_alone_has_its_guest_brought_back_where_it_was() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = both_quick(&playground, "auto");
    let guest = protected(&playground);
    let before = word(&guest).epoch();
    playground.workers_of("A").into_iter().for_each(|pid| kill(pid, Signal::KILL));
    await_that(
        "the guest's being brought back",
        || matches!(word(&guest), Ownership::Owned { epoch, .. } if Some(epoch) > before),
    );
    goes_on(&playground, &["A"]);
    assert_eq!(fence_of(&playground, "A"), Fence::Standing);
}

#[test]
fn an_agent_that_dies_while_it_brings_a_guest_back_is_made_up_for_by_the_next() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = both_quick(&playground, "auto");
    protected(&playground);
    let former = playground.workers_of("A");
    former.iter().for_each(|pid| kill(*pid, Signal::KILL));
    // The next worker stands still before it has said a word, so that it has not been told what to do either.
    let next = || playground.workers_of("A").into_iter().find(|pid| !former.contains(pid));
    let next = (0..20_000).find_map(|_| next()).expect("the next worker");
    kill(next, Signal::STOP);
    a.end(Signal::KILL);
    kill(next, Signal::CONT);
    let _a = quick(&playground, "A", "auto", &[]);
    goes_on(&playground, &["A", "B"]);
}

#[test]
fn a_taker_that_is_killed_at_any_moment_is_replaced() {
    if !has_kvm() {
        return;
    }
    for delay in [0, 5, 10, 15, 20, 30, 40] {
        let playground = Playground::new();
        let (a, b) = both_quick(&playground, "auto");
        let _c = quick(&playground, "C", "auto", &[]);
        let guest = protected(&playground);
        end_host(&playground, "A", a);
        std::thread::sleep(Duration::from_millis(50 + delay));
        end_host(&playground, "B", b);
        // If B had got as far as to run it, it was not protected there yet, and is lost with B.
        await_that("the guest's end or its going on", || {
            let taken = guest.pool().find_host("C").expect("the host").slot;
            matches!(word(&guest), Ownership::Owned { host, .. } if host == taken) || is_lost(&guest)
        });
        if is_lost(&guest) {
            assert!(word(&guest).epoch() > Some(Epoch(2)), "it was lost before anybody ran it: {}", word(&guest));
        } else {
            goes_on(&playground, &["C"]);
        }
    }
}
