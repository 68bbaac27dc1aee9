//! Guests go over several hosts, each of which is as if on a machine of its own: with a run directory of its own, where the
//! pools are called otherwise, and with nothing but mutual TLS between their agents.

use crate::http::ask;
use crate::kvm::has_kvm;
use crate::networks::{authority, configure};
use crate::playground::{Agent, Playground, await_that};
use crate::routes::legs;
use crate::witness::Witness;
use nil_host::Authority;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::fs::symlink;

/// A machine with one host.
struct Machine {
    playground: Playground,
    name: &'static str,
    config: String,
}

/// Pools, and whose certificates count.
struct Rack {
    pools: Playground,
    authority: Authority,
}

impl Rack {
    fn new() -> Self {
        let pools = Playground::new();
        pools.add_pool("other");
        pools.add_pool("third");
        let authority = authority(&pools, "ca");
        Self { pools, authority }
    }

    /// A machine whose host joins those pools, and its agent.
    fn machine(&self, name: &'static str, pools: &[&str]) -> (Machine, Agent) {
        let playground = Playground::new();
        let path = |pool: &&str| {
            let path = playground.path(&format!("{pool}-of-{name}"));
            symlink(self.pools.path(pool), &path).expect("a link");
            path
        };
        let paths: Vec<String> = pools.iter().map(path).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let config = configure(&playground, name, &paths, &self.authority);
        let machine = Machine { playground, name, config };
        let agent = machine.agent();
        (machine, agent)
    }

    /// Nothing is wrong in any pool.
    #[track_caller]
    fn check(&self) {
        let [pool, other, third] = ["pool", "other", "third"].map(|name| self.pools.path(name));
        for (pool, beside, too) in [(&pool, &other, &third), (&other, &pool, &third), (&third, &pool, &other)] {
            let check = self.pools.nil(&["pool", "check", pool, "--pool", beside, "--pool", too]);
            assert!(check.status.success(), "{}{}", check.stdout, check.stderr);
        }
    }
}

impl Machine {
    fn agent(&self) -> Agent {
        self.playground.agent_with(self.name, &["--config", &self.config])
    }

    /// Starts a guest in the pool of that name that is hard on its memory.
    fn run(&self, guest: &str, pool: &str, memory_in: &str) {
        let pool = self.playground.path(&format!("{pool}-of-{}", self.name));
        let run = ["vm", "run", "builtin:demo", "--memory", "64M", "--memory-in", memory_in, "--name", guest];
        self.playground.json(&[&run[..], &["--pool", &pool, "--host", self.name]].concat());
        Witness::of(&self.playground, guest).await_filled();
    }

    /// What is said here of the guest of that name that this host has.
    fn own(&self, name: &str) -> Option<Value> {
        let guests = self.playground.json(&["ps"])["guests"].clone();
        let mut guests = guests.as_array().expect("guests").iter();
        guests.find(|guest| guest["name"] == name && guest["host"] == self.name).cloned()
    }

    /// The guest comes to run here, whole.
    #[track_caller]
    fn has(&self, guest: &str) {
        await_that("the guest's coming", || self.own(guest).is_some_and(|guest| guest["state"] == "running"));
        Witness::of_guest(&self.own(guest).expect("the guest")).verify();
        await_that("one worker's remaining", || self.playground.workers().len() == 1);
    }

    /// Sends guest "g" to Z, slowly, and waits until its home moves at another host.
    fn send(&self, hop: &Self, bandwidth: &str) -> crate::playground::Started {
        let client = self.playground.start(&["--json", "migrate", "g", "--to", "Z", "--bandwidth", bandwidth]);
        hop.playground.await_guest("g", "the change of home", |guest| {
            guest["host"] == hop.name && guest["moving"]["done_bytes"].as_u64() > Some(0)
        });
        client
    }

    /// The guests' ways that this host's agent has, or had, a job for.
    fn routes(&self) -> Vec<Value> {
        let jobs = self.playground.json(&["job", "list"])["jobs"].clone();
        let jobs = jobs.as_array().expect("jobs").iter();
        jobs.filter(|job| job["kind"] == "route" && job["host"] == self.name).cloned().collect()
    }
}

#[test]
fn a_guest_goes_over_a_hop_of_another_machine_to_a_host_of_a_third_and_back() {
    if !has_kvm() {
        return;
    }
    let rack = Rack::new();
    let (a, _a) = rack.machine("A", &["pool"]);
    let (z, _z) = rack.machine("Z", &["other"]);
    let (h, _h) = rack.machine("H", &["pool", "other"]);
    a.run("g", "pool", "dram");
    for (from, to) in [(&a, &z), (&z, &a)] {
        let report = from.playground.json(&["migrate", "g", "--to", to.name, "--fast"]);
        assert_eq!((&report["outcome"], &report["now_at"]), (&"arrived".into(), &to.name.into()), "{report}");
        assert_eq!(legs(&report), [(from.name, "handoff"), ("H", "rehoming"), ("H", "handoff")]);
        assert_eq!((report["plans"].as_array().map(Vec::len), &report["remarks"]), (Some(1), &json!([])), "{report}");
        assert_eq!(report["recouple"]["outcome"], "done", "{report}");
        to.has("g");
        assert_eq!(to.playground.memory_of("g"), "dram");
        // Out of DRAM, from pool to pool through DRAM, and back into DRAM.
        let copied = report["copied_bytes"].as_u64().expect("bytes");
        assert!(copied > 100 << 20, "{report}");
        let routes = from.routes();
        assert_eq!((&routes[0]["outcome"], &routes[0]["copied_bytes"]), (&"done".into(), &copied.into()), "{routes:?}");
        let shown = from.playground.nil(&["job", "show", routes[0]["id"].as_str().expect("a number")]);
        assert!(shown.stdout.contains("of its memory were copied"), "{}", shown.stdout);
    }
    // The hop's part of each way is a job of its own.
    let of_hop = h.routes();
    assert_eq!(of_hop.iter().map(|job| &job["outcome"]).collect::<Vec<_>>(), ["done", "done"], "{of_hop:?}");
    assert!(h.playground.workers().is_empty());
    rack.check();
}

#[test]
fn a_hop_of_another_machine_whose_agent_dies_with_the_guest_on_it_goes_on_when_it_is_there_again() {
    if !has_kvm() {
        return;
    }
    let rack = Rack::new();
    let (z, _z) = rack.machine("Z", &["other"]);
    let (h, h_agent) = rack.machine("H", &["pool", "other"]);
    let (a, _a) = rack.machine("A", &["pool"]);
    a.run("g", "pool", "pool");
    let client = a.send(&h, "48M");
    h_agent.end(Signal::KILL);
    let _h = h.agent();
    let report = client.answer().json();
    assert_eq!((&report["outcome"], &report["now_at"]), (&"arrived".into(), &"Z".into()), "{report}");
    assert_eq!(legs(&report), [("A", "handoff"), ("H", "rehoming"), ("H", "handoff")], "{report}");
    assert!(report["remarks"][0].as_str().is_some_and(|said| said.contains("agent of host H ended")), "{report}");
    z.has("g");
    rack.check();
}

#[test]
fn a_guest_whose_coordinator_dies_arrives_all_the_same_and_the_next_one_tells_so() {
    if !has_kvm() {
        return;
    }
    let rack = Rack::new();
    let (z, _z) = rack.machine("Z", &["other"]);
    let (h, _h) = rack.machine("H", &["pool", "other"]);
    let (a, a_agent) = rack.machine("A", &["pool"]);
    a.run("g", "pool", "pool");
    let client = a.send(&h, "48M");
    let job = a.routes()[0]["id"].as_str().expect("a number").to_owned();
    a_agent.end(Signal::KILL);
    drop(client);
    let _a = a.agent();
    z.has("g");
    await_that("the report", || a.playground.json(&["job", "show", &job])["phase"] == "ended");
    let told = a.playground.json(&["job", "show", &job])["report"].clone();
    let told = told.get("route").unwrap_or(&told);
    assert_eq!((&told["outcome"], &told["now_at"]), (&"arrived".into(), &"Z".into()), "{told}");
    rack.check();
}

#[test]
fn a_way_over_two_hops_is_planned_by_what_others_tell_and_followed_through_one_whose_agent_dies() {
    if !has_kvm() {
        return;
    }
    let rack = Rack::new();
    let (z, _z) = rack.machine("Z", &["third"]);
    let (i, _i) = rack.machine("I", &["other", "third"]);
    let (h, h_agent) = rack.machine("H", &["pool", "other"]);
    let (a, _a) = rack.machine("A", &["pool"]);
    a.run("g", "pool", "pool");
    let client = a.send(&i, "48M");
    // The guest has left it, and what it was to report is what comes of the rest.
    h_agent.end(Signal::KILL);
    let _h = h.agent();
    let report = client.answer().json();
    assert_eq!((&report["outcome"], &report["now_at"]), (&"arrived".into(), &"Z".into()), "{report}");
    assert_eq!(report["plans"].as_array().map(Vec::len), Some(1), "{report}");
    // What it had done itself died with it.
    assert_eq!(legs(&report), [("A", "handoff"), ("I", "rehoming"), ("I", "handoff")], "{report}");
    assert!(report["remarks"][0].as_str().is_some_and(|said| said.contains("agent of host H ended")), "{report}");
    z.has("g");
    rack.check();
}

#[test]
fn a_way_is_called_off_where_it_was_ordered_and_at_the_hop() {
    if !has_kvm() {
        return;
    }
    let rack = Rack::new();
    let (_z, _z_agent) = rack.machine("Z", &["other"]);
    let (h, _h) = rack.machine("H", &["pool", "other"]);
    let (a, _a) = rack.machine("A", &["pool"]);
    for at in [&a, &h] {
        a.run("g", "pool", "pool");
        let client = a.send(&h, "32M");
        let off = at.playground.json(&["migrate", "g", "--cancel"]);
        assert!(off["state"].as_str().is_some_and(|state| state.contains("runs on host H")), "{off}");
        let answer = client.answer();
        let report = answer.json();
        assert_eq!((answer.status.code(), &report["outcome"]), (Some(1), &"cancelled".into()), "{report}");
        assert_eq!(report["now_at"], "H", "{report}");
        h.has("g");
        assert_eq!(h.playground.memory_of("g"), "pool");
        h.playground.nil(&["vm", "stop", "g"]);
    }
    rack.check();
}

#[test]
fn a_hop_of_another_machine_that_refuses_the_guest_is_gone_around() {
    if !has_kvm() {
        return;
    }
    let rack = Rack::new();
    let (z, _z) = rack.machine("Z", &["other"]);
    let (h, _h) = rack.machine("H", &["pool", "other", "third"]);
    let (_i, _i_agent) = rack.machine("I", &["pool", "other"]);
    let (a, _a) = rack.machine("A", &["pool"]);
    // A host runs one guest of a name.
    h.run("g", "third", "pool");
    a.run("g", "pool", "pool");
    let report = a.playground.json(&["migrate", "g", "--to", "Z", "--fast"]);
    assert_eq!((&report["outcome"], &report["now_at"]), (&"arrived".into(), &"Z".into()), "{report}");
    assert_eq!(legs(&report), [("A", "failed"), ("A", "handoff"), ("I", "rehoming"), ("I", "handoff")], "{report}");
    z.has("g");
    h.has("g");
    rack.check();
}

#[test]
fn a_guest_that_cannot_go_on_is_reported_where_it_is() {
    if !has_kvm() {
        return;
    }
    let rack = Rack::new();
    let (z, _z) = rack.machine("Z", &["other"]);
    let (h, _h) = rack.machine("H", &["pool", "other"]);
    let (a, _a) = rack.machine("A", &["pool"]);
    // A guest of that name in the other pool keeps it out.
    z.run("g", "other", "pool");
    a.run("g", "pool", "pool");
    let answer = a.playground.nil(&["--json", "migrate", "g", "--to", "Z", "--fast"]);
    let report = answer.json();
    assert_eq!((answer.status.code(), &report["outcome"]), (Some(1), &"stranded".into()), "{report}");
    assert_eq!(report["now_at"], "H", "{report}");
    assert!(report["why"].as_str().is_some_and(|why| why.contains("at H, its home moves")), "{report}");
    h.has("g");
    rack.check();
}

#[test]
fn a_way_that_does_not_follow_from_the_arming_is_refused() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    let pool = playground.open_pool();
    let guest = pool.find_guest("g").expect("the guest");
    let order = |from: &str, steps: Value| {
        let onward = json!({
            "job": "5e1f0b1c-0000-4000-8000-00000000000a", "way": { "to": "Z" }, "steps": steps, "failed": [], "handoffs": 9,
        });
        let order = json!({
            "pool": pool.id(), "slot": guest.slot, "id": guest.id, "name": "g", "from": from, "onward": onward,
        });
        let answer = ask(&playground, "B", "POST", "/v1/peer/arm", &order.to_string());
        let status = answer.status;
        (status, answer.body())
    };
    let to = |from: &str, to: &str| json!({ "handoff": { "from": from, "to": to, "over": pool.id() } });
    for (from, steps, why) in [
        ("B", json!([to("B", "Z")]), "is not host B's to hand over: host A has it"),
        ("A", json!([]), "does not hand the guest over to host Z"),
        ("A", json!([to("A", "Z")]), "the guest is on host B, and host A is to do the next step"),
        ("A", json!([to("B", "C"), to("C", "B"), to("B", "Z")]), "host B twice"),
        ("A", json!([to("B", "C")]), "does not hand the guest over to host Z"),
    ] {
        let (status, said) = order(from, steps);
        assert!(status == 422 && said.contains(why), "{status} {said}");
    }
    let (status, said) = order("A", json!([{ "stop": { "at": "B" } }]));
    assert!(status == 400 && said.contains("stop"), "{status} {said}");
    assert!(playground.workers_of("B").is_empty(), "nothing was begun for any of them");
    assert_eq!(playground.await_state("g", "running")["host"], "A");
}
