//! Guests whose memory in the pool is striped over two pools, from DRAM to another host's DRAM.

use crate::kvm::has_kvm;
use crate::playground::await_that;
use crate::two_pools::{TwoPools, open};
use crate::witness::Witness;
use nil_pool::{Composition, GRANULE, PoolId, Tag};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

impl TwoPools {
    /// Runs `nil --json` with these arguments and the stripes; it must succeed.
    fn striped(&self, args: &[&str]) -> serde_json::Value {
        self.playground.json(&[args, &self.stripes().each_ref().map(String::as_str)].concat())
    }

    /// Of guests of 64 MiB, 16 MiB are to lie in the first pool, and 48 MiB in the other.
    fn stripes(&self) -> [String; 4] {
        ["--stripe".to_owned(), format!("{}:1", self.first), "--stripe".to_owned(), format!("{}:3", self.other)]
    }

    /// The stripe of the guest's memory that lies in the other pool.
    fn leg(&self, guest: &str) -> Tag {
        let pool = open(&self.first);
        let tag = pool.find_guest(guest).expect("the guest").memory;
        let memory = pool.capacities().into_iter().find(|capacity| capacity.tag == tag).expect("its memory");
        let Composition::Striped(stripe) = memory.composition else { panic!("it is not striped: {memory:?}") };
        stripe.legs.iter().find(|leg| leg.pool == self.other_id()).expect("a stripe in the other pool").tag
    }

    fn other_id(&self) -> PoolId {
        open(&self.other).id()
    }
}

/// How much less is free than before.
fn taken(before: [u64; 2], now: [u64; 2]) -> [u64; 2] {
    [before[0] - now[0], before[1] - now[1]]
}

#[test]
fn memory_goes_to_two_pools_by_their_weights_and_comes_back_on_another_host() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let (_a, _b) = (pools.hop("A"), pools.hop("B"));
    let witness = pools.playground.run_in_dram("g", "A");
    let free = pools.free();
    let report = pools.striped(&["decouple", "g", "--fast"]);
    assert_eq!(report["moved"]["outcome"], "done", "{report}");
    assert_eq!(taken(free, pools.free()), [16 * MIB, 48 * MIB]);
    witness.verify();
    pools.check();

    let report = pools.playground.json(&["migrate", "g", "--to", "B"]);
    assert_eq!((&report["outcome"], &report["copied_bytes"]), (&"moved".into(), &0.into()), "{report}");
    assert_eq!(pools.playground.memory_of("g"), "pool");
    Witness::of(&pools.playground, "g").verify();

    pools.playground.json(&["recouple", "g", "--fast"]);
    assert_eq!(pools.playground.memory_of("g"), "dram");
    assert_eq!(pools.free(), free, "the stripes were not given back");
    Witness::of(&pools.playground, "g").verify();
    pools.check();
}

#[test]
fn a_migration_may_go_over_two_pools_and_a_stopped_guest_gives_both_back() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let (_a, _b) = (pools.hop("A"), pools.hop("B"));
    let unused = pools.free();
    pools.playground.run_in_dram("g", "A");
    let free = pools.free();
    let report = pools.striped(&["migrate", "g", "--to", "B", "--fast", "--granularity", "4M"]);
    assert_eq!((&report["outcome"], &report["remarks"]), (&"moved".into(), &serde_json::json!([])), "{report}");
    assert_eq!((&report["decouple"]["outcome"], &report["recouple"]["outcome"]), (&"done".into(), &"done".into()));
    assert_eq!((pools.playground.memory_of("g"), pools.free()), ("dram".into(), free));
    Witness::of(&pools.playground, "g").verify();

    pools.striped(&["migrate", "g", "--to", "A", "--fast", "--stay-in-pool"]);
    assert_eq!(taken(free, pools.free()), [16 * MIB, 48 * MIB]);
    Witness::of(&pools.playground, "g").verify();
    assert!(pools.playground.nil(&["vm", "stop", "g"]).status.success());
    assert_eq!(pools.free(), unused, "the stripes were not given back");
    pools.check();
}

#[test]
fn a_host_that_has_not_joined_every_pool_does_not_take_the_guest_and_is_told_which() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let (_a, _c) = (pools.hop("A"), pools.playground.agent("C"));
    let witness = pools.playground.run_in_dram("g", "A");
    let free = pools.free();
    let missing = format!("host C is not a member of pool {}", pools.other_id());
    let migrate = ["migrate", "g", "--to", "C", "--fast"];
    let stripes = pools.stripes();
    let order = [&migrate[..], &stripes.each_ref().map(String::as_str)].concat();
    pools.playground.nil(&order).refuses(1, &[&missing, "start its agent with --pool", "memory of guest g"]);
    assert_eq!((pools.playground.memory_of("g"), pools.free()), ("dram".into(), free), "it should not have moved");

    pools.striped(&["decouple", "g", "--fast"]);
    let leg = pools.leg("g").to_string();
    pools.playground.nil(&migrate).refuses(1, &[&missing, &leg, "start its agent with --pool"]);
    let guest = pools.playground.guest("g").expect("the guest");
    assert_eq!((&guest["host"], &guest["state"]), (&"A".into(), &"running".into()));
    witness.verify();
}

#[test]
fn a_target_that_cannot_open_the_pool_of_a_stripe_any_more_refuses_by_the_stripes_name() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let (_a, _b) = (pools.hop("A"), pools.hop("B"));
    let witness = pools.playground.run_in_dram("g", "A");
    pools.striped(&["decouple", "g", "--fast"]);
    let (leg, other) = (pools.leg("g").to_string(), pools.other_id().to_string());
    let hidden = format!("{}.hidden", pools.other);
    std::fs::rename(&pools.other, &hidden).expect("the pool is put away");
    let refused = pools.playground.nil(&["migrate", "g", "--to", "B"]);
    refused.refuses(1, &["host B cannot take the guest", &leg, &other, "join that pool too: --pool PATH"]);
    witness.verify();

    std::fs::rename(&hidden, &pools.other).expect("the pool is back");
    pools.playground.json(&["migrate", "g", "--to", "B"]);
    Witness::of(&pools.playground, "g").verify();
}

#[test]
fn memory_that_has_room_in_the_pool_already_is_striped_otherwise_only_when_it_has_left() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let (_a, _b) = (pools.hop("A"), pools.hop("B"));
    let witness = pools.playground.run_in_dram("g", "A");
    pools.playground.json(&["decouple", "g", "--fast", "--range", "0x1000000+16M"]);
    let stripes = pools.stripes();
    let stripes = stripes.each_ref().map(String::as_str);
    for order in [&["decouple", "g"][..], &["migrate", "g", "--to", "B"]] {
        let refused = pools.playground.nil(&[order, &stripes].concat());
        refused.refuses(1, &["not striped like that", "`nil recouple g`", "without --stripe"]);
    }
    pools.playground.json(&["recouple", "g", "--fast"]);
    let free = pools.free();
    pools.striped(&["decouple", "g", "--fast", "--range", "0x1000000+16M"]);
    pools.striped(&["decouple", "g", "--fast"]);
    assert_eq!(taken(free, pools.free()), [16 * MIB, 48 * MIB]);
    witness.verify();
}

#[test]
fn a_pool_that_an_agent_joins_later_takes_stripes_of_the_guests_that_run_already() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let agent = pools.playground.agent("A");
    let witness = pools.playground.run_in_dram("g", "A");
    let free = pools.free();
    let stripes = pools.stripes();
    let order = [&["decouple", "g", "--fast"][..], &stripes.each_ref().map(String::as_str)].concat();
    pools.playground.nil(&order).refuses(1, &[&format!("host A is not a member of pool {}", pools.other_id())]);
    assert_eq!((pools.playground.memory_of("g"), pools.free()), ("dram".into(), free));
    agent.end(Signal::KILL);
    let _agent = pools.hop("A");
    pools.striped(&["decouple", "g", "--fast"]);
    assert_eq!(taken(free, pools.free()), [16 * MIB, 48 * MIB]);
    witness.verify();
}

#[test]
fn a_stripe_that_is_asked_for_brings_the_guests_memory_home_and_frees_both_pools() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let _agent = pools.hop("A");
    let witness = pools.playground.run_in_dram("g", "A");
    let free = pools.free();
    pools.striped(&["decouple", "g", "--fast"]);
    let asked = pools.playground.nil(&["capacity", "release", &pools.other, &pools.leg("g").to_string(), "--ask"]);
    assert!(asked.status.success(), "{}", asked.stderr);
    await_that("the release of both stripes", || pools.free() == free);
    assert_eq!(pools.playground.memory_of("g"), "dram");
    witness.verify();
    pools.check();
}

#[test]
fn a_guest_that_loses_a_stripe_stops_and_names_its_pool() {
    if !has_kvm() {
        return;
    }
    let pools = TwoPools::new();
    let _agent = pools.hop("A");
    let unused = pools.free();
    pools.playground.run_in_dram("g", "A");
    pools.striped(&["decouple", "g", "--fast"]);
    let (leg, pool) = (pools.leg("g"), open(&pools.other));
    let stripe = pool.capacities().into_iter().find(|capacity| capacity.tag == leg).expect("the stripe");
    let end = stripe.extents.iter().map(|extent| extent.first + extent.count).max().expect("an extent");
    let file = std::fs::OpenOptions::new().write(true).open(&pools.other).expect("the other pool");
    let size = file.metadata().expect("its size").len();
    file.set_len(u64::from(end) * GRANULE - 24 * MIB).expect("the pool is cut off");
    let guest = pools.playground.await_state("g", "stopped");
    let detail = guest["detail"].as_str().expect("a reason");
    for word in ["0x", &leg.to_string(), &pools.other] {
        assert!(detail.contains(word), "`{word}` is missing in: {detail}");
    }
    file.set_len(size).expect("the pool has its size again");
    assert!(pools.playground.nil(&["vm", "stop", "g"]).status.success());
    assert_eq!(pools.free(), unused);
    pools.check();
}
