//! Guests start, move, stop and die, while agents come and go.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that, kill};
use rustix::process::Signal;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_guest_runs_is_listed_and_gives_its_memory_back_when_it_is_stopped() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let free = playground.free_bytes();
    assert_eq!(playground.run_vm("g", "A")["state"], "running");
    let guest = playground.guest("g").expect("it is listed");
    assert_eq!((&guest["host"], &guest["memory_bytes"], &guest["vcpus"]), (&"A".into(), &(64 << 20).into(), &1.into()));
    assert!(playground.nil(&["vm", "stop", "g"]).status.success());
    assert!(playground.guest("g").is_none());
    assert_eq!(playground.free_bytes(), free);
    assert!(playground.workers().is_empty());
}

#[test]
fn a_guest_moves_there_and_back_again() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    for (to, epoch) in [("B", 2), ("A", 3), ("B", 4)] {
        let report = playground.json(&["migrate", "g", "--to", to]);
        assert_eq!(report["outcome"], "moved", "{report}");
        assert_eq!(report["copied_bytes"], 0);
        let guest = playground.guest("g").expect("it is listed");
        assert_eq!((&guest["host"], &guest["state"], &guest["epoch"]), (&to.into(), &"running".into(), &epoch.into()));
    }
}

#[test]
fn a_guest_with_two_vcpus_moves_too() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let pool = playground.pool();
    let run = ["vm", "run", "builtin:xadd", "--vcpus", "2", "--memory", "64M", "--host", "A", "--name", "g"];
    playground.json(&[&run[..], &["--pool", &pool]].concat());
    for to in ["B", "A"] {
        assert_eq!(playground.json(&["migrate", "g", "--to", to])["outcome"], "moved");
    }
    assert_eq!(playground.guest("g").expect("it is listed")["vcpus"], 2);
}

#[test]
fn two_migrations_at_once_leave_a_guest_that_runs_once() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b, _c) = (playground.agent("A"), playground.agent("B"), playground.agent("C"));
    playground.run_vm("g", "A");
    let migrate = |to: &str| {
        let mut command = playground.command(&["migrate", "g", "--to", to]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("nil")
    };
    let clients = [migrate("B"), migrate("C")];
    let outputs = clients.map(|client| client.wait_with_output().expect("its output"));
    assert!(outputs.iter().any(|output| output.status.success()), "{outputs:?}");
    await_that("the guest's running once", || {
        let guest = playground.guest("g").expect("the guest");
        guest["state"] == "running" && playground.workers().len() == 1
    });
}

#[test]
fn a_guest_outlives_its_agent_and_is_found_again() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    let worker = playground.run_vm("g", "A")["worker_pid"].clone();
    agent.end(Signal::KILL);
    assert_eq!(playground.workers().len(), 1);
    let again = playground.agent("A");
    assert_eq!(again.up["guests"], serde_json::json!(["g"]));
    let guest = playground.await_state("g", "running");
    assert_eq!(guest["worker_pid"], worker);
    let _b = playground.agent("B");
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
}

#[test]
fn an_agent_that_is_stopped_says_which_guests_run_on() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    playground.run_vm("g", "A");
    assert!(agent.end(Signal::TERM).success());
    assert_eq!(playground.workers().len(), 1);
    let listing = playground.json(&["host", "list"]);
    assert_eq!(listing["hosts"][0]["unattended"], serde_json::json!(["g"]));
    let again = playground.agent_with("A", &["--pool", &playground.pool(), "--stop-guests"]);
    let free = playground.free_bytes();
    assert!(again.end(Signal::INT).success());
    assert!(playground.workers().is_empty());
    assert!(playground.free_bytes() >= free + (64 << 20));
}

#[test]
fn a_guest_whose_worker_is_killed_is_lost_and_its_memory_is_kept_until_it_is_stopped() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let free = playground.free_bytes();
    playground.run_vm("g", "A");
    let used = playground.free_bytes();
    kill(playground.workers()[0], Signal::KILL);
    let guest = playground.await_state("g", "lost");
    assert!(guest["detail"].as_str().expect("a reason").contains("worker died"), "{guest}");
    assert!(playground.agent_log("A").contains("LOST"), "{}", playground.agent_log("A"));
    assert_eq!(playground.free_bytes(), used);
    assert!(playground.nil(&["vm", "stop", "g"]).status.success());
    assert_eq!(playground.free_bytes(), free);
}

#[test]
fn a_guest_that_died_while_its_agent_was_away_is_reported_lost_when_the_agent_returns() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    playground.run_vm("g", "A");
    agent.end(Signal::KILL);
    kill(playground.workers()[0], Signal::KILL);
    let _again = playground.agent("A");
    playground.await_state("g", "lost");
}

#[test]
fn the_targets_agent_may_be_killed_and_its_guest_stays() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    playground.json(&["migrate", "g", "--to", "B"]);
    b.end(Signal::KILL);
    let guest = playground.guest("g").expect("it is listed");
    assert_eq!((&guest["host"], &guest["state"]), (&"B".into(), &"running".into()));
    assert!(guest["detail"].as_str().expect("a reason").contains("nil host run --name B"), "{guest}");
    playground.nil(&["migrate", "g", "--to", "A"]).refuses(1, &["the agent of host B is not running"]);
    let _again = playground.agent("B");
    assert_eq!(playground.json(&["migrate", "g", "--to", "A"])["outcome"], "moved");
}

#[test]
fn a_source_worker_that_has_handed_its_guest_over_ends() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    playground.json(&["migrate", "g", "--to", "B"]);
    await_that("the end of the source's worker", || playground.workers().len() == 1);
}

#[test]
fn the_console_shows_what_the_guest_writes_and_goes_along_when_it_moves() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    let log = playground.path("console");
    let file = std::fs::File::create(&log).expect("a file");
    let mut console = playground
        .command(&["vm", "console", "g"])
        .stdout(file.try_clone().expect("a file"))
        .stderr(file)
        .spawn()
        .expect("nil");
    let shown = |text: &str| std::fs::read_to_string(&log).expect("the log").contains(text);
    await_that("the guest's first line", || shown("nil guest pages: 1 vCPUs"));
    playground.json(&["migrate", "g", "--to", "B"]);
    await_that("the move of the console", || shown("on host B"));
    assert!(playground.nil(&["vm", "stop", "g"]).status.success());
    assert!(console.wait().expect("its status").success());
    assert!(shown("guest g is gone"));
}

#[test]
fn a_client_that_is_interrupted_leaves_a_whole_guest_or_none() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let free = playground.free_bytes();
    let pool = playground.pool();
    for delay in [0, 2, 5, 10, 20, 40] {
        let args = ["vm", "run", "builtin:pages", "--memory", "64M", "--name", "g", "--pool", &pool];
        let mut client = playground.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nil");
        std::thread::sleep(Duration::from_millis(delay));
        kill(i32::try_from(client.id()).expect("a pid"), Signal::INT);
        client.wait().expect("its status");
        // Whatever was begun comes to its end: a guest that runs, or nothing.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let guest = playground.guest("g");
            let settled = match &guest {
                Some(guest) if guest["state"] == "running" => playground.nil(&["vm", "stop", "g"]).status.success(),
                Some(_) => false,
                None => playground.workers().is_empty() && playground.free_bytes() == free,
            };
            if settled && playground.guest("g").is_none() {
                break;
            }
            assert!(Instant::now() < deadline, "half a guest is left: {guest:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(playground.free_bytes(), free);
}
