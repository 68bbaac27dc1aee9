//! Guests go over several hosts to one that shares no pool with theirs.

use crate::kvm::has_kvm;
use crate::playground::{Started, await_that, kill};
use crate::two_pools::TwoPools;
use crate::witness::Witness;
use rustix::process::Signal;

impl TwoPools {
    fn migrate(&self, guest: &str, to: &str) -> serde_json::Value {
        self.playground.json(&["migrate", guest, "--to", to, "--fast"])
    }

    /// Sends guest "g" to Z, slowly, and waits until its home moves at H.
    fn send_until_its_home_moves(&self) -> Started {
        let client = self.playground.start(&["--json", "migrate", "g", "--to", "Z", "--bandwidth", "48M"]);
        self.playground.await_guest("g", "the change of home", |guest| {
            guest["host"] == "H" && guest["moving"]["done_bytes"].as_u64() > Some(0)
        });
        client
    }

    /// The guest runs there, whole, and nowhere else.
    #[track_caller]
    fn runs_on(&self, guest: &str, host: &str) {
        assert_eq!(self.playground.await_state(guest, "running")["host"], host);
        Witness::of(&self.playground, guest).verify();
        await_that("one worker's remaining", || self.playground.workers().len() == 1);
        self.check();
    }
}

/// What was done, leg by leg.
pub(crate) fn legs(report: &serde_json::Value) -> Vec<(&str, &str)> {
    let legs = report["legs"].as_array().expect("legs");
    legs.iter().map(|leg| (leg["at"].as_str().expect("a host"), leg["leg"].as_str().expect("a kind"))).collect()
}

#[test]
fn a_guest_goes_over_a_hop_to_a_host_that_shares_no_pool_with_its_own_and_back() {
    if !has_kvm() {
        return;
    }
    let rack = TwoPools::new();
    let (_a, _h, _z) = (rack.near("A"), rack.hop("H"), rack.far("Z"));
    rack.run("g", "A");
    for (from, to) in [("A", "Z"), ("Z", "A")] {
        let report = rack.migrate("g", to);
        assert_eq!((&report["outcome"], &report["now_at"]), (&"arrived".into(), &to.into()), "{report}");
        assert_eq!(legs(&report), [(from, "handoff"), ("H", "rehoming"), ("H", "handoff")]);
        assert_eq!(report["plans"].as_array().map(Vec::len), Some(1));
        assert!(report["blackout_ns"].as_u64() > Some(0), "{report}");
        assert_eq!(report["remarks"], serde_json::json!([]));
        rack.runs_on("g", to);
    }
    let shown = rack.playground.nil(&["migrate", "g", "--to", "Z", "--fast"]);
    assert!(
        shown.stdout.contains("g moved from A to Z") && shown.stdout.contains("way: A –pool→ H –other→ Z"),
        "{}",
        shown.stdout
    );
}

#[test]
fn a_guest_in_dram_arrives_in_dram() {
    if !has_kvm() {
        return;
    }
    let rack = TwoPools::new();
    let (_a, _h, _z) = (rack.near("A"), rack.hop("H"), rack.far("Z"));
    rack.playground.run_in_dram("g", "A");
    let report = rack.migrate("g", "Z");
    assert_eq!((&report["outcome"], &report["recouple"]["outcome"]), (&"arrived".into(), &"done".into()), "{report}");
    assert_eq!(rack.playground.memory_of("g"), "dram");
    rack.runs_on("g", "Z");
}

#[test]
fn a_hop_that_dies_before_the_guest_comes_is_gone_around() {
    if !has_kvm() {
        return;
    }
    let rack = TwoPools::new();
    let (_a, h, _i, _z) = (rack.near("A"), rack.hop("H"), rack.hop("I"), rack.far("Z"));
    rack.playground.run_in_dram("g", "A");
    let client = rack.playground.start(&["--json", "migrate", "g", "--to", "Z", "--bandwidth", "48M"]);
    rack.playground.await_moving("g");
    h.end(Signal::KILL);
    let report = client.answer().json();
    assert_eq!((&report["outcome"], &report["now_at"]), (&"arrived".into(), &"Z".into()), "{report}");
    assert_eq!(legs(&report)[0], ("A", "failed"), "{report}");
    assert_eq!(legs(&report)[1..], [("A", "handoff"), ("I", "rehoming"), ("I", "handoff")]);
    assert_eq!(report["plans"].as_array().map(Vec::len), Some(2));
    rack.runs_on("g", "Z");
}

#[test]
fn a_hop_that_refuses_the_guest_the_other_pool_is_gone_around_from_there() {
    if !has_kvm() {
        return;
    }
    let rack = TwoPools::new();
    let (_a, _h, _z) = (rack.near("A"), rack.hop("H"), rack.far("Z"));
    rack.run("g", "A");
    // A guest of that name in the other pool keeps it out, whatever the hop.
    let run = ["vm", "run", "builtin:pages", "--memory", "64M", "--name", "g", "--host", "Z", "--pool", &rack.other];
    rack.playground.json(&run);
    let id = rack.playground.json(&["ps"])["guests"]
        .as_array()
        .expect("guests")
        .iter()
        .find(|guest| guest["host"] == "A")
        .expect("ours")["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let answer = rack.playground.nil(&["--json", "migrate", &id, "--to", "Z", "--fast"]);
    let report = answer.json();
    assert_eq!((answer.status.code(), &report["outcome"]), (Some(1), &"stranded".into()), "{report}");
    assert_eq!(report["now_at"], "H");
    assert!(report["why"].as_str().is_some_and(|why| why.contains("its home moves")), "{report}");
    let guests = rack.playground.json(&["ps"])["guests"].clone();
    let ours = guests.as_array().expect("guests").iter().find(|guest| guest["id"] == id.as_str()).expect("ours");
    assert_eq!(ours["host"], "H");
    Witness::of_guest(ours).verify();
}

#[test]
fn a_hop_whose_agent_dies_with_the_guest_on_it_goes_on_when_it_is_there_again() {
    if !has_kvm() {
        return;
    }
    let rack = TwoPools::new();
    let (_a, h, _z) = (rack.near("A"), rack.hop("H"), rack.far("Z"));
    rack.run("g", "A");
    let client = rack.send_until_its_home_moves();
    h.end(Signal::KILL);
    let _h = rack.hop("H");
    let report = client.answer().json();
    assert_eq!((&report["outcome"], &report["now_at"]), (&"arrived".into(), &"Z".into()), "{report}");
    assert_eq!(legs(&report), [("A", "handoff"), ("H", "rehoming"), ("H", "handoff")], "{report}");
    assert!(report["remarks"][0].as_str().is_some_and(|said| said.contains("agent of host H ended")), "{report}");
    rack.runs_on("g", "Z");
}

#[test]
fn a_guest_that_dies_on_the_way_is_reported_as_lost() {
    if !has_kvm() {
        return;
    }
    let rack = TwoPools::new();
    let (_a, _h, _z) = (rack.near("A"), rack.hop("H"), rack.far("Z"));
    rack.run("g", "A");
    let client = rack.send_until_its_home_moves();
    kill(rack.playground.workers_of("H")[0], Signal::KILL);
    let report = client.answer().json();
    assert_eq!(report["outcome"], "stranded", "{report}");
    assert!(report["why"].as_str().is_some_and(|why| why.contains("was lost on host H")), "{report}");
    assert_eq!(rack.playground.await_state("g", "lost")["host"], "H");
}

#[test]
fn a_way_that_is_called_off_within_a_leg_leaves_the_guest_where_it_is() {
    if !has_kvm() {
        return;
    }
    let rack = TwoPools::new();
    let (_a, _h, _z) = (rack.near("A"), rack.hop("H"), rack.far("Z"));
    rack.run("g", "A");
    let client = rack.send_until_its_home_moves();
    let off = rack.playground.json(&["migrate", "g", "--cancel"]);
    assert!(off["state"].as_str().is_some_and(|state| state.contains("runs on host H")), "{off}");
    let answer = client.answer();
    let report = answer.json();
    assert_eq!((answer.status.code(), &report["outcome"]), (Some(1), &"cancelled".into()), "{report}");
    assert_eq!(report["now_at"], "H");
    assert_eq!(rack.playground.memory_of("g"), "pool");
    rack.runs_on("g", "H");
    let slowly = ["--json", "migrate", "g", "--to", "Z", "--bandwidth", "16M", "--time-limit", "500ms"];
    let late = rack.playground.nil(&slowly).json();
    assert_eq!((&late["outcome"], &late["now_at"]), (&"cancelled".into(), &"H".into()), "{late}");
    // From there it goes on when it is told to.
    assert_eq!(rack.migrate("g", "Z")["outcome"], "arrived");
    rack.runs_on("g", "Z");
}

#[test]
fn what_cannot_be_reached_is_refused_with_the_reason_before_anything_happens() {
    if !has_kvm() {
        return;
    }
    let rack = TwoPools::new();
    let (_a, h, _z) = (rack.near("A"), rack.hop("H"), rack.far("Z"));
    rack.run("g", "A");
    let worker = rack.playground.guest("g").expect("the guest")["worker_pid"].clone();
    rack.playground
        .nil(&["migrate", "g", "--to", "Z", "--avoid", "H"])
        .refuses(1, &["to host Z", "is not a member", "no way", "avoided"]);
    h.end(Signal::KILL);
    rack.playground
        .nil(&["migrate", "g", "--to", "Z"])
        .refuses(1, &["to host Z", "is not a member", "share no memory"]);
    assert_eq!(rack.playground.guest("g").expect("the guest")["worker_pid"], worker);
    rack.runs_on("g", "A");
}
