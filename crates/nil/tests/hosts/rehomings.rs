//! A guest's home moves from pool to pool, while it runs, is called off, or somebody is killed.

use crate::kvm::has_kvm;
use crate::playground::{await_that, kill};
use crate::two_pools::{TwoPools, open};
use crate::witness::Witness;
use nil_pool::HostKind;
use rustix::process::Signal;
use std::time::Duration;

impl TwoPools {
    /// How many records of guests each pool has.
    fn records(&self) -> [usize; 2] {
        [&self.first, &self.other].map(|path| open(path).guests().len())
    }

    fn rehome(&self, guest: &str, pool: &str) -> serde_json::Value {
        self.playground.json(&["rehome", guest, "--pool", pool, "--fast"])
    }
}

#[test]
fn a_guest_moves_from_pool_to_pool_and_back_while_it_runs_and_loses_nothing() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let _hop = pools.hop("H");
    let untouched = pools.free();
    let witness = pools.run("g", "H");
    let before = pools.playground.guest("g").expect("the guest");
    let free = pools.free();
    let taken = untouched[0] - free[0];
    for round in 0..5 {
        for (pool, left, left_path) in [(&pools.other, 0, &pools.first), (&pools.first, 1, &pools.other)] {
            let report = pools.rehome("g", pool);
            assert_eq!(report["outcome"], "rehomed", "{report}");
            assert_eq!((&report["from"], &report["to"]), (&left_path.as_str().into(), &pool.as_str().into()));
            assert_eq!(report["remarks"], serde_json::json!([]), "{report}");
            assert_eq!(report["decouple"]["total_bytes"], 64 << 20, "{report}");
            let guest = pools.playground.guest("g").expect("the guest");
            assert_eq!((&guest["pool"], &guest["state"]), (&pool.as_str().into(), &"running".into()), "{guest}");
            assert_eq!(guest["memory"]["in"], "pool", "{guest}");
            for same in ["id", "worker_pid", "memory_address", "host", "memory_bytes"] {
                assert_eq!(guest[same], before[same], "{same}");
            }
            assert!(guest["uptime_s"].as_u64() >= before["uptime_s"].as_u64());
            assert!(guest["epoch"].as_u64() > before["epoch"].as_u64());
            assert_eq!(pools.free()[left], untouched[left], "round {round}: something is left of it in {left_path}");
            assert_eq!(pools.free()[1 - left], untouched[1 - left] - taken);
            witness.verify();
        }
    }
    pools.check();
    assert!(pools.playground.nil(&["vm", "stop", "g"]).status.success());
    assert_eq!(pools.free(), untouched);
}

#[test]
fn a_guest_crosses_over_two_pools_and_a_hop_and_comes_back() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let playground = &pools.playground;
    let (_a, _hop) = (playground.agent("A"), pools.hop("H"));
    let _z = playground.agent_with("Z", &["--pool", &pools.other]);
    pools.run("g", "A");
    for way in [[("A", "H", "Z"), ("", "", "")], [("Z", "H", "A"), ("", "", "")]] {
        let (_, over, to) = way[0];
        let pool = if to == "Z" { &pools.other } else { &pools.first };
        assert_eq!(playground.json(&["migrate", "g", "--to", over])["outcome"], "moved");
        assert_eq!(pools.rehome("g", pool)["outcome"], "rehomed");
        let report = playground.json(&["migrate", "g", "--to", to]);
        assert_eq!((&report["outcome"], &report["copied_bytes"]), (&"moved".into(), &0.into()), "{report}");
        assert_eq!(playground.guest("g").expect("the guest")["host"], to);
        Witness::of(playground, "g").verify();
    }
    pools.check();
}

#[test]
fn of_a_guest_in_dram_only_the_record_moves() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let _hop = pools.hop("H");
    let untouched = pools.free();
    let witness = pools.playground.run_in_dram("g", "H");
    let report = pools.rehome("g", &pools.other);
    assert_eq!((&report["outcome"], &report["recouple"]), (&"rehomed".into(), &serde_json::Value::Null), "{report}");
    assert_eq!(report["decouple"], serde_json::Value::Null, "{report}");
    assert_eq!(pools.playground.memory_of("g"), "dram");
    assert_eq!((pools.free()[0], pools.records()), (untouched[0], [0, 1]));
    assert!(untouched[1] - pools.free()[1] < 16 << 20, "room was kept that nothing needs");
    // Its new home takes its memory like any other.
    pools.playground.json(&["decouple", "g", "--fast"]);
    witness.verify();
    pools.check();
}

#[test]
fn what_was_in_dram_stays_there_and_what_was_in_the_pool_goes_to_the_other() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let _hop = pools.hop("H");
    let witness = pools.playground.run_in_dram("g", "H");
    pools.playground.json(&["decouple", "g", "--fast", "--range", "0x1000000+16M"]);
    assert_eq!(pools.rehome("g", &pools.other)["outcome"], "rehomed");
    let guest = pools.playground.guest("g").expect("the guest");
    assert_eq!((&guest["memory"]["in"], &guest["memory"]["pooled_bytes"]), (&"both".into(), &(16 << 20).into()));
    witness.verify();
    pools.check();
}

#[test]
fn a_rehoming_that_is_called_off_puts_everything_back() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let _hop = pools.hop("H");
    let witness = pools.run("g", "H");
    let free = pools.free();
    let client = pools.playground.start(&["--json", "rehome", "g", "--pool", &pools.other, "--bandwidth", "16M"]);
    pools.playground.await_moving("g");
    pools.playground.nil(&["migrate", "g", "--to", "H"]).refuses(1, &["g"]);
    pools.playground.nil(&["recouple", "g", "--cancel"]).refuses(1, &["nil rehome g --cancel"]);
    pools.playground.json(&["rehome", "g", "--cancel"]);
    let answer = client.answer();
    assert_eq!((answer.status.code(), &answer.json()["outcome"]), (Some(1), &"cancelled".into()));
    assert_eq!((pools.free(), pools.records()), (free, [1, 0]));
    assert_eq!(pools.playground.memory_of("g"), "pool");
    pools.playground.nil(&["rehome", "g", "--cancel"]).refuses(1, &["is not being moved"]);
    witness.verify();
    pools.check();
}

#[test]
fn what_cannot_be_rehomed_is_refused_before_anything_moves() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let playground = &pools.playground;
    let (_hop, _a) = (pools.hop("H"), playground.agent("A"));
    pools.run("g", "H");
    playground.run_vm("elsewhere", "A");
    let rehome = |guest: &str, pool: &str| playground.nil(&["rehome", guest, "--pool", pool]);
    rehome("g", &pools.first).refuses(1, &["has its home in pool", &pools.first, "already"]);
    rehome("elsewhere", &pools.other).refuses(1, &["host A is not a member of pool"]);
    rehome("g", &playground.path("nowhere")).refuses(1, &["there is no pool", "nowhere"]);
    let pin = ["pin", "add", "g", "--at", "0x1000000", "--size", "2M", "--owner", "disk", "--reason", "DMA"];
    let pin = playground.json(&pin)["pin"]["id"].as_str().expect("its id").to_owned();
    rehome("g", &pools.other).refuses(1, &["pinned", "disk", "DMA"]);
    assert!(playground.nil(&["pin", "release", "g", &pin]).status.success());
    let free = open(&pools.other).usage().free;
    let hog = (free - (16 << 20)).to_string();
    let tag = "00000000-0000-4000-8000-000000000001";
    playground.json(&["capacity", "add", &pools.other, "--class", "shared", "--size", &hog, "--tag", tag]);
    rehome("g", &pools.other).refuses(1, &[&pools.other, "free"]);
    assert_eq!(pools.records(), [2, 0]);
    assert_eq!(playground.memory_of("g"), "pool");
    pools.check();
}

#[test]
fn a_pool_that_has_a_guest_of_that_name_is_refused() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let _hop = pools.hop("H");
    let _z = pools.playground.agent_with("Z", &["--pool", &pools.other]);
    pools.run("g", "H");
    let run = ["vm", "run", "builtin:pages", "--memory", "64M", "--name", "g", "--host", "Z"];
    pools.playground.json(&[&run[..], &["--pool", &pools.other]].concat());
    let listing = pools.playground.json(&["ps"]);
    let guests = listing["guests"].as_array().expect("guests");
    let id = guests.iter().find(|guest| guest["host"] == "H").expect("ours")["id"].as_str().expect("an id").to_owned();
    pools.playground.nil(&["rehome", &id, "--pool", &pools.other]).refuses(1, &["g", &pools.other]);
    assert_eq!(pools.records(), [1, 1]);
}

/// Kills the agent at moments that differ from round to round, and looks whether the next one finds one whole guest.
#[test]
fn an_agent_that_is_killed_while_a_home_moves_leaves_one_record_and_a_running_guest() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let mut hop = pools.hop("H");
    let witness = pools.run("g", "H");
    let mut rehomed = 0;
    for round in 0..12u64 {
        let home = pools.playground.guest("g").expect("the guest")["pool"].as_str().expect("a path").to_owned();
        let to = if home == pools.first { &pools.other } else { &pools.first };
        let client = pools.playground.start(&["rehome", "g", "--pool", to, "--fast"]);
        std::thread::sleep(Duration::from_millis(10 + 17 * round));
        hop.end(Signal::KILL);
        client.answer();
        hop = pools.hop("H");
        await_that("one record's remaining", || pools.records().iter().sum::<usize>() == 1);
        let idle = |guest: &serde_json::Value| guest["state"] == "running" && guest["detail"].is_null();
        pools.playground.await_guest("g", "the end of what was ordered", idle);
        witness.verify();
        let guest = pools.playground.guest("g").expect("the guest");
        rehomed += u32::from(guest["pool"].as_str() != Some(&home));
        assert_eq!(pools.playground.json(&["ps"])["guests"].as_array().map(Vec::len), Some(1));
        pools.playground.json(&["decouple", "g", "--fast"]);
        pools.check();
    }
    eprintln!("{rehomed} of 12 rehomings had come to the switch");
    assert!(pools.playground.nil(&["vm", "stop", "g"]).status.success());
    drop(hop);
}

#[test]
fn a_worker_that_is_killed_while_a_home_moves_leaves_one_lost_guest_and_no_leak() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let _hop = pools.hop("H");
    let free = pools.free();
    for round in 0..8u64 {
        pools.run("g", "H");
        let client = pools.playground.start(&["rehome", "g", "--pool", &pools.other, "--fast"]);
        std::thread::sleep(Duration::from_millis(10 + 20 * round));
        kill(pools.playground.workers()[0], Signal::KILL);
        client.answer();
        pools.playground.await_state("g", "lost");
        await_that("one record's remaining", || pools.records().iter().sum::<usize>() == 1);
        pools.check();
        assert!(pools.playground.nil(&["vm", "stop", "g"]).status.success());
        await_that("everything's being free again", || pools.free() == free);
    }
    pools.check();
}

#[test]
fn agent_and_worker_that_are_killed_together_leave_one_lost_guest_and_no_leak() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let mut hop = pools.hop("H");
    let free = pools.free();
    for round in 0..6u64 {
        pools.run("g", "H");
        let client = pools.playground.start(&["rehome", "g", "--pool", &pools.other, "--fast"]);
        std::thread::sleep(Duration::from_millis(10 + 25 * round));
        let worker = pools.playground.workers()[0];
        hop.end(Signal::KILL);
        kill(worker, Signal::KILL);
        client.answer();
        await_that("the worker's end", || pools.playground.workers().is_empty());
        hop = pools.hop("H");
        pools.playground.await_state("g", "lost");
        await_that("one record's remaining", || pools.records().iter().sum::<usize>() == 1);
        pools.check();
        assert!(pools.playground.nil(&["vm", "stop", "g"]).status.success());
        await_that("everything's being free again", || pools.free() == free);
    }
    drop(hop);
    let agents = |path: &str| open(path).hosts().iter().filter(|host| host.kind == HostKind::Agent).count();
    assert_eq!((agents(&pools.first), agents(&pools.other)), (1, 1));
}
