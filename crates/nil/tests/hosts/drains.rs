//! Hosts are cordoned, emptied and evened out.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that, kill};
use crate::witness::Witness;
use rustix::process::Signal;

/// Where each of these guests runs.
fn hosts_of(playground: &Playground, guests: &[&str]) -> Vec<String> {
    let host = |name: &&str| playground.guest(name).expect("the guest")["host"].as_str().expect("a host").to_owned();
    guests.iter().map(host).collect()
}

fn rest(playground: &Playground, name: &str, host: &str, memory_in: &str) {
    let pool = playground.pool();
    playground.json(&[
        "vm",
        "run",
        "builtin:rest",
        "--memory",
        "8M",
        "--memory-in",
        memory_in,
        "--name",
        name,
        "--pool",
        &pool,
        "--host",
        host,
    ]);
}

#[test]
fn a_cordoned_host_takes_no_guest_and_says_so_also_after_a_restart() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, b) = (playground.agent("A"), playground.agent("B"));
    rest(&playground, "g", "A", "pool");
    assert_eq!(playground.json(&["cordon", "B"]), serde_json::json!({"host": "B", "cordoned": true}));
    let pool = playground.pool();
    let refused = ["vm", "run", "builtin:rest", "--memory", "8M", "--name", "h", "--pool", &pool, "--host", "B"];
    playground.nil(&refused).refuses(1, &["host B is cordoned", "nil uncordon B"]);
    playground.nil(&["migrate", "g", "--to", "B"]).refuses(1, &["cordoned"]);
    // In order, so that it leaves its pools; and then the one that has a guest.
    assert!(b.end(Signal::TERM).success());
    let _b = playground.agent("B");
    playground.nil(&["migrate", "g", "--to", "B"]).refuses(1, &["cordoned"]);
    drop(a);
    let _a = playground.agent("A");
    assert_eq!(playground.json(&["uncordon", "B"]), serde_json::json!({"host": "B", "cordoned": false}));
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
    assert_eq!(hosts_of(&playground, &["g"]), ["B"]);
}

#[test]
fn a_host_is_emptied_as_a_dry_run_says_and_stays_cordoned() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b, _c) = (playground.agent("A"), playground.agent("B"), playground.agent("C"));
    let guests = ["g0", "g1", "g2", "g3"];
    for (number, guest) in guests.iter().enumerate() {
        rest(&playground, guest, "A", if number % 2 == 0 { "pool" } else { "dram" });
    }
    let plan = playground.json(&["drain", "A", "--dry-run", "--parallel", "2"]);
    let moves: Vec<&serde_json::Value> =
        plan["waves"].as_array().expect("waves").iter().flat_map(|wave| wave.as_array().expect("moves")).collect();
    assert_eq!((moves.len(), &plan["left"]), (4, &serde_json::json!([])), "{plan}");
    assert!(plan["waves"].as_array().expect("waves").iter().all(|wave| wave.as_array().expect("moves").len() <= 2));
    assert_eq!(hosts_of(&playground, &guests), ["A", "A", "A", "A"], "a dry run moves nothing");
    let answer = playground.nil(&["drain", "A", "--parallel", "2"]);
    assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stdout.contains("host A is empty: 4 guests left"), "{}", answer.stdout);
    assert!(answer.stderr.contains("of 4 guests have left, about "), "{}", answer.stderr);
    assert!(hosts_of(&playground, &guests).iter().all(|host| host != "A"));
    await_that("the end of A's workers", || playground.workers_of("A").is_empty());
    playground.nil(&["migrate", "g0", "--to", "A"]).refuses(1, &["cordoned"]);
    let report = playground.json(&["drain", "A"]);
    assert_eq!((&report["outcome"], &report["departures"]), (&"emptied".into(), &serde_json::json!([])));
    playground.check_pool();
}

#[test]
fn a_drain_that_cannot_finish_says_which_guests_are_left_and_why() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    rest(&playground, "g", "A", "pool");
    rest(&playground, "lost", "A", "pool");
    let worker = playground.guest("lost").expect("the guest")["worker_pid"].as_i64().expect("a pid");
    kill(i32::try_from(worker).expect("a pid"), Signal::KILL);
    playground.await_state("lost", "lost");
    playground.json(&["cordon", "B"]);
    let answer = playground.nil(&["--json", "drain", "A"]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    let report = answer.json();
    assert_eq!((&report["outcome"], &report["departures"]), (&"incomplete".into(), &serde_json::json!([])));
    let why = |guest: &str| {
        let left = report["left"].as_array().expect("a list").iter().find(|stay| stay["guest"] == guest);
        left.unwrap_or_else(|| panic!("{guest}: {report}"))["why"].as_str().expect("a reason").to_owned()
    };
    assert!(why("g").contains("cordoned"), "{report}");
    assert!(why("lost").contains("it is lost"), "{report}");
    assert_eq!(playground.guest("g").expect("the guest")["state"], "running");
    // As soon as there is somewhere to go, what can go goes.
    playground.json(&["uncordon", "B"]);
    let report = playground.nil(&["--json", "drain", "A"]).json();
    assert_eq!((&report["outcome"], &report["departures"][0]["to"]), (&"incomplete".into(), &"B".into()), "{report}");
    assert_eq!(report["left"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_drain_goes_around_a_host_that_dies_and_can_be_called_off() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, b, _c) = (playground.agent("A"), playground.agent("B"), playground.agent("C"));
    let guests = ["g0", "g1", "g2"];
    guests.iter().for_each(|guest| rest(&playground, guest, "A", "pool"));
    // Its entry in the pool is still there, and it does not answer.
    kill(b.pid(), Signal::KILL);
    let report = playground.json(&["drain", "A", "--parallel", "1"]);
    assert_eq!(report["outcome"], "emptied", "{report}");
    assert_eq!(hosts_of(&playground, &guests), ["C", "C", "C"]);
    drop(b);
    let _b = playground.agent("B");
    let witness = playground.run_in_dram("slow", "C");
    let drain = playground.start(&["--json", "drain", "C", "--parallel", "1"]);
    await_that("the drain", || {
        playground.nil(&["migrate", "slow", "--to", "C"]).stderr.contains("cordoned")
            || playground.guest("slow").is_some_and(|guest| guest["moving"] != serde_json::Value::Null)
    });
    let cancelled = playground.nil(&["drain", "C", "--cancel"]);
    let answer = drain.answer();
    let report = answer.json();
    if cancelled.status.success() {
        assert_eq!((answer.status.code(), &report["outcome"]), (Some(1), &"cancelled".into()), "{report}");
    }
    playground.nil(&["drain", "C", "--cancel"]).refuses(1, &["is not being emptied"]);
    drop(witness);
    playground.check_pool();
}

#[test]
fn the_time_of_a_drain_can_be_limited() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    rest(&playground, "g", "A", "pool");
    let answer = playground.nil(&["--json", "drain", "A", "--deadline", "0s"]);
    assert_eq!(answer.status.code(), Some(1));
    let report = answer.json();
    assert_eq!((&report["outcome"], report["left"].as_array().map(Vec::len)), (&"time_up".into(), Some(1)), "{report}");
    assert!(report["left"][0]["why"].as_str().is_some_and(|why| why.contains("the time was up")), "{report}");
    assert_eq!(hosts_of(&playground, &["g"]), ["A"]);
}

#[test]
fn hosts_that_are_used_evenly_are_left_alone() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    rest(&playground, "g", "A", "pool");
    let plan = playground.json(&["rebalance", "--dry-run"]);
    assert_eq!(plan["plan"]["waves"], serde_json::json!([]), "{plan}");
    let report = playground.json(&["rebalance", "--host", "B"]);
    assert_eq!((&report["outcome"], &report["moved"]), (&"done".into(), &serde_json::json!([])), "{report}");
    playground.nil(&["rebalance", "--cancel"]).refuses(1, &["no agent is evening hosts out"]);
    playground.nil(&["rebalance", "--cancel", "--host", "B"]).refuses(1, &["host B is not evening hosts out"]);
    assert_eq!(hosts_of(&playground, &["g"]), ["A"]);
}

#[test]
fn a_host_with_busy_guests_gives_some_to_one_without() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let witnesses = ["g0", "g1"].map(|guest| {
        playground.run_image(guest, "A", "builtin:demo");
        Witness::of(&playground, guest)
    });
    let plan = playground.json(&["rebalance", "--dry-run", "--tolerance", "0"]);
    assert!(!plan["plan"]["waves"].as_array().expect("waves").is_empty(), "{plan}");
    // The agent of a host that has none of the guests has the say.
    let report = playground.json(&["rebalance", "--tolerance", "0", "--host", "B"]);
    let moved = &report["moved"][0];
    assert_eq!(
        (&report["outcome"], &moved["from"], &moved["to"]),
        (&"done".into(), &"A".into(), &"B".into()),
        "{report}"
    );
    let jobs = playground.json(&["job", "list"]);
    let kinds: Vec<(&str, &str)> = jobs["jobs"]
        .as_array()
        .expect("jobs")
        .iter()
        .map(|job| (job["kind"].as_str().expect("a kind"), job["host"].as_str().expect("a host")))
        .collect();
    assert!(kinds.contains(&("rebalance", "B")) && kinds.contains(&("migration", "A")), "{kinds:?}");
    let hosts = hosts_of(&playground, &["g0", "g1"]);
    assert_eq!(hosts.iter().filter(|host| *host == "B").count(), 1, "{hosts:?}");
    drop(witnesses);
    ["g0", "g1"].iter().for_each(|guest| Witness::of(&playground, guest).verify());
    playground.check_pool();
}

#[test]
fn a_drain_moves_a_guests_home_where_that_is_the_only_way_out() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    playground.add_pool("other");
    let (pool, other) = (playground.pool(), playground.path("other"));
    let (_a, _z) = (
        playground.agent_with("A", &["--pool", &pool, "--pool", &other]),
        playground.agent_with("Z", &["--pool", &other]),
    );
    playground.run_image("g", "A", "builtin:demo");
    Witness::of(&playground, "g").await_filled();
    let plan = playground.json(&["drain", "A", "--dry-run"]);
    assert_eq!((&plan["waves"][0][0]["to"], &plan["waves"][0][0]["rehomed"]), (&"Z".into(), &true.into()), "{plan}");
    let answer = playground.nil(&["drain", "A"]);
    assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("g: A –other→ Z") && answer.stdout.contains("A –other→ Z"), "{}", answer.stderr);
    assert_eq!(hosts_of(&playground, &["g"]), ["Z"]);
    Witness::of(&playground, "g").verify();
    for pool in [&pool, &other] {
        assert!(playground.nil(&["pool", "check", pool]).status.success());
    }
}
