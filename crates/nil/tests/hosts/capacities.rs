//! Capacity that is offered to hosts and asked back from them, and memory that is taken away from guests by force.

use crate::http;
use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that, kill};
use nil_pool::Tag;
use rustix::process::Signal;
use serde_json::Value;

/// Adds shared capacity for these hosts; gives its tag.
fn add(playground: &Playground, hosts: &str) -> String {
    let pool = playground.pool();
    let args = ["capacity", "add", &pool, "--class", "shared", "--tag", "new", "--size", "4M", "--hosts", hosts];
    playground.json(&args)["tag"].as_str().expect("a tag").to_owned()
}

/// What each host has answered.
fn answers(playground: &Playground, tag: &str) -> Vec<(String, String)> {
    let shown = playground.json(&["capacity", "show", &playground.pool(), tag]);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let lines = shown["access"].as_array().expect("a list").iter();
    lines.map(|line| (text(&line["name"]), text(&line["answer"]))).collect()
}

fn answer(name: &str, answer: &str) -> (String, String) {
    (name.to_owned(), answer.to_owned())
}

/// The tag of the guest's memory.
fn memory_of(playground: &Playground, guest: &str) -> String {
    playground.open_pool().find_guest(guest).expect("the guest").memory.to_string()
}

fn is_there(playground: &Playground, tag: &str) -> bool {
    playground.open_pool().find_capacity(tag.parse::<Tag>().expect("a tag")).is_some()
}

#[test]
fn capacity_is_accepted_by_the_hosts_that_it_is_offered_to_and_released_when_they_have_let_go() {
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let _c = playground.agent("C");
    let tag = add(&playground, "A,B");
    let accepted = [answer("A", "accepted"), answer("B", "accepted")];
    await_that("the hosts' acceptance", || answers(&playground, &tag) == accepted);
    let pool = playground.pool();
    let listed = playground.nil(&["capacity", "list", &pool]);
    assert!(listed.stdout.contains("2 of 2"), "{}", listed.stdout);
    playground.nil(&["capacity", "release", &pool, &tag]).refuses(1, &["is held by A, B", "--ask"]);
    let asked = playground.nil(&["capacity", "release", &pool, &tag, "--ask"]);
    assert!(asked.stdout.contains("when A, B have let go"), "{}{}", asked.stdout, asked.stderr);
    await_that("the release", || !is_there(&playground, &tag));
    assert!(playground.nil(&["pool", "check", &pool]).status.success());
}

#[test]
fn a_host_that_is_told_to_ask_leaves_an_offer_open_until_a_person_answers_it() {
    let playground = Playground::new();
    let pool = playground.pool();
    let ask = ["--pool", &pool, "--accept", "ask"];
    let (_a, b) = (playground.agent("A"), playground.agent_with("B", &ask));
    let mut events = http::ask(&playground, "B", "GET", "/v1/events", "");
    let tag = add(&playground, "A,B");
    let heard: serde_json::Value = serde_json::from_str(&events.data()).expect("an event");
    assert_eq!((&heard["event"], &heard["offer"]["tag"]), (&"offer".into(), &tag.clone().into()), "{heard}");
    assert_eq!(heard["offer"]["answer"], "offered");
    await_that("A's acceptance", || answers(&playground, &tag)[0] == answer("A", "accepted"));
    // B's agent has looked at it, as it has told, and it is open.
    assert_eq!(answers(&playground, &tag)[1], answer("B", "offered"));
    let shown = playground.nil(&["capacity", "show", &pool, &tag]).stdout;
    assert!(
        shown.contains(&format!("nil capacity accept {tag} --host B")) && shown.contains("1 of 2 (1 open)"),
        "{shown}"
    );
    let refused = playground.json(&["capacity", "refuse", &tag]);
    assert_eq!((&refused["host"], &refused["answer"]), (&"B".into(), &"declined_by_policy".into()));
    // It stays refused when B's agent is another, which does not ask.
    assert!(b.end(Signal::TERM).success());
    let _b = playground.agent("B");
    let second = add(&playground, "B");
    await_that("B's acceptance", || answers(&playground, &second) == [answer("B", "accepted")]);
    assert_eq!(answers(&playground, &tag)[1], answer("B", "declined_by_policy"));
    let accepted = playground.json(&["capacity", "accept", &tag, "--host", "B"]);
    assert_eq!(accepted["answer"], "accepted");
    assert_eq!(answers(&playground, &tag), [answer("A", "accepted"), answer("B", "accepted")]);
    playground.nil(&["capacity", "refuse", &tag, "--host", "B"]).refuses(1, &["has accepted", "--ask"]);
    let unknown = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    playground.nil(&["capacity", "accept", unknown, "--host", "B"]).refuses(1, &["is offered to host B"]);
}

#[test]
fn capacity_that_an_absent_host_has_not_accepted_is_released_at_once() {
    let playground = Playground::new();
    let _a = playground.agent("A");
    let nobody = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    let tag = add(&playground, nobody);
    assert_eq!(answers(&playground, &tag), [answer("-", "offered")]);
    assert!(playground.nil(&["capacity", "release", &playground.pool(), &tag]).status.success());
    assert!(!is_there(&playground, &tag));
}

#[test]
fn a_guest_whose_memory_is_taken_away_stops_with_the_reason_and_nobody_else_notices() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    let pool = playground.pool();
    let free = playground.free_bytes();
    playground.run_vm("g", "A");
    let bystander = playground.run_in_dram("h", "A");
    playground.json(&["decouple", "h", "--fast"]);
    let tag = memory_of(&playground, "g");
    let taken = playground.nil(&["capacity", "release", &pool, &tag, "--force"]);
    assert!(taken.stdout.contains("guest 'g', which had its memory there, was stopped"), "{}", taken.stderr);
    assert!(!is_there(&playground, &tag));
    // What it had is others' now, who write it while the worker of the guest still lives.
    let again = ["capacity", "add", &pool, "--class", "shared", "--tag", "new", "--size", "64M"];
    let next = playground.json(&again)["tag"].as_str().expect("a tag").to_owned();
    let guest = playground.await_state("g", "stopped");
    let why = guest["detail"].as_str().expect("a reason").to_owned();
    assert!(why.starts_with(&format!("its memory, capacity {tag}, was taken away by force by ")), "{why}");
    bystander.verify();
    assert!(playground.nil(&["pool", "check", &pool]).status.success());
    assert!(playground.nil(&["capacity", "release", &pool, &next]).status.success());
    for name in ["g", "h"] {
        assert!(playground.nil(&["vm", "stop", name]).status.success());
    }
    assert_eq!(playground.free_bytes(), free);
    agent.end(Signal::TERM);
}

#[test]
fn a_worker_whose_agent_is_gone_still_gives_its_guests_memory_up() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    playground.run_vm("g", "A");
    agent.end(Signal::KILL);
    let tag = memory_of(&playground, "g");
    let pool = playground.pool();
    assert!(playground.nil(&["capacity", "release", &pool, &tag, "--force"]).status.success());
    let _agent = playground.agent("A");
    let guest = playground.await_state("g", "stopped");
    assert!(guest["detail"].as_str().expect("a reason").contains("was taken away by force"), "{guest}");
    assert!(playground.nil(&["vm", "stop", "g"]).status.success());
}

#[test]
fn a_worker_that_stands_still_is_killed_before_its_guests_memory_is_given_away() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    playground.run_vm("g", "A");
    let tag = memory_of(&playground, "g");
    kill(playground.workers_of("A")[0], Signal::STOP);
    let pool = playground.pool();
    let taken = playground.nil(&["capacity", "release", &pool, &tag, "--force", "--patience", "60s"]);
    assert!(taken.status.success(), "{}", taken.stderr);
    assert!(playground.agent_log("A").contains("killing the worker"));
    assert!(playground.workers().is_empty());
    playground.await_state("g", "lost");
    assert!(playground.nil(&["pool", "check", &pool]).status.success());
    assert!(playground.nil(&["vm", "stop", "g"]).status.success());
}

#[test]
fn memory_of_a_guest_whose_host_is_silent_is_not_taken_and_the_guest_goes_on() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    playground.json(&["decouple", "g", "--fast"]);
    let worker = playground.workers_of("A")[0];
    let tag = memory_of(&playground, "g");
    let pool = playground.pool();
    kill(worker, Signal::STOP);
    kill(agent.pid(), Signal::STOP);
    let refused = playground.nil(&["capacity", "release", &pool, &tag, "--force", "--patience", "200ms"]);
    refused.refuses(1, &["host A", "guest 'g'", "nothing was taken", "goes on"]);
    kill(worker, Signal::CONT);
    kill(agent.pid(), Signal::CONT);
    witness.verify();
    assert!(is_there(&playground, &tag));
}

#[test]
fn a_guest_runs_on_no_host_but_those_that_may() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let _c = playground.agent("C");
    let pool = playground.pool();
    let run =
        ["vm", "run", "builtin:pages", "--memory", "64M", "--name", "g", "--pool", &pool, "--host", "A", "--hosts"];
    playground.nil(&[&run[..], &["B"]].concat()).refuses(1, &["host A is to run guest g", "not among"]);
    assert!(playground.nil(&[&run[..], &["A,B"]].concat()).status.success());
    playground.nil(&["migrate", "g", "--to", "C"]).refuses(1, &["host C is not among the hosts that may run guest g"]);
    assert_eq!(playground.json(&["migrate", "g", "--to", "B"])["outcome"], "moved");
    // Whatever an agent forgets to ask: the memory itself is not mapped for another host.
    let pool = playground.open_pool();
    let guest = pool.find_guest("g").expect("the guest");
    let c = pool.find_host("C").expect("the host").slot;
    let control = pool.on_behalf_of(c).expect("the host").guest(guest.slot, guest.id).expect("the guest");
    let refusal = control.map_memory().expect_err("it is not listed").to_string();
    assert!(refusal.contains("host C is not on the access list of capacity"), "{refusal}");
}

#[test]
fn a_host_that_cannot_open_what_a_capacity_lies_in_declines_it_until_it_can() {
    let playground = Playground::new();
    playground.add_pool("own");
    let (pool, own) = (playground.pool(), playground.path("own"));
    let (_a, b) = (playground.agent_with("A", &["--pool", &pool, "--pool", &own]), playground.agent("B"));
    // A file of its own: one stripe, in a pool that holds nothing else.
    let args = ["capacity", "add", &pool, "--class", "shared", "--tag", "new", "--size", "4M", "--hosts", "A,B"];
    let added = playground.json(&[&args[..], &["--stripe", &own]].concat());
    let tag = added["tag"].as_str().expect("a tag").to_owned();
    let answered = [answer("A", "accepted"), answer("B", "declined_as_unusable")];
    await_that("the hosts' answers", || answers(&playground, &tag) == answered);
    b.end(Signal::TERM);
    let _b = playground.agent_with("B", &["--pool", &pool, "--pool", &own]);
    let accepted = [answer("A", "accepted"), answer("B", "accepted")];
    await_that("the acceptance by both", || answers(&playground, &tag) == accepted);
}

#[test]
fn a_tag_leads_to_its_capacity_wherever_the_agents_of_this_machine_have_it() {
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let tag = add(&playground, "A");
    // Nothing is searched but what the agent has joined.
    let empty = playground.path("empty");
    std::fs::create_dir(&empty).expect("a directory");
    let place = playground.json(&["tag", "resolve", &tag, "--search", &empty]);
    assert_eq!((&place["kind"], &place["path"]), (&"capacity".into(), &playground.pool().into()));
    assert_eq!((&place["bytes"], &place["stretches"][0]["bytes"]), (&(4 << 20).into(), &(4 << 20).into()));
    let told = playground.nil(&["tag", "resolve", &tag, "--search", &empty]);
    assert!(told.stdout.contains("is a capacity of 4 MiB") && told.stdout.contains("by capacity c"), "{}", told.stdout);
    // A copy of the pool is another memory.
    std::fs::copy(playground.pool(), std::path::Path::new(&empty).join("copy")).expect("a copy");
    playground.nil(&["tag", "resolve", &tag, "--search", &empty]).refuses(1, &["in 2 places", "empty/copy"]);
    let nowhere = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    playground
        .nil(&["tag", "resolve", nowhere, "--search", &empty])
        .refuses(1, &["nothing on this machine", "--search"]);
}
