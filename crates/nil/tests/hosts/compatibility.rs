//! Hosts that offer different CPUs: what guests are promised, and where they may go.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that};
use nil_pool::HostIdentity;
use serde_json::Value;

/// The features of a model that `nil cpu` prints.
fn features(model: &Value) -> Vec<String> {
    let features = model["features"].as_array().expect("a list of features");
    features.iter().map(|feature| feature.as_str().expect("a name").to_owned()).collect()
}

/// Whether this machine has all of x86-64-v3; says so if it has not.
fn has_v3(playground: &Playground) -> bool {
    let cpu = features(&playground.json(&["cpu", "show"])["cpu"]);
    let has = ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"]
        .iter()
        .all(|it| cpu.contains(&(*it).to_owned()));
    if !has {
        println!("skipped: this machine is no x86-64-v3");
    }
    has
}

fn run(playground: &Playground, name: &str, args: &[&str]) -> Value {
    let pool = playground.pool();
    let base = ["vm", "run", "builtin:demo", "--memory", "64M", "--pool", &pool, "--host", "A", "--name", name];
    playground.json(&[&base[..], args].concat())
}

#[test]
fn a_guest_of_a_common_model_goes_to_a_lesser_host_and_one_of_a_greater_is_refused_there_by_name() {
    let playground = Playground::new();
    if !has_kvm() || !has_v3(&playground) {
        return;
    }
    let pool = playground.pool();
    let (_a, _b) = (playground.agent("A"), playground.agent_with("B", &["--pool", &pool, "--cpu-limit", "x86-64-v2"]));
    run(&playground, "lesser", &["--cpu", "x86-64-v2"]);
    run(&playground, "greater", &["--cpu", "x86-64-v3"]);
    run(&playground, "agreed", &["--cpu", "cluster"]);

    let check = playground.nil(&["--json", "migrate", "greater", "--to", "B", "--check"]);
    assert_eq!((check.status.code(), check.json()["compatible"].clone()), (Some(1), false.into()));
    let reason = &check.json()["reasons"][0];
    assert_eq!(reason["reason"], "features");
    for name in ["fma", "movbe", "xsave", "avx", "f16c", "bmi1", "avx2", "bmi2", "lzcnt"] {
        let missing = reason["missing"].as_array().expect("names");
        assert!(missing.contains(&name.into()), "{name} is not in {missing:?}");
        assert!(reason["sentence"].as_str().expect("a sentence").contains(name));
    }
    let refused = playground.nil(&["--json", "migrate", "greater", "--to", "B"]);
    refused.refuses(1, &["guest greater cannot go to host B", "CPU model x86-64-v3", "avx2", "lzcnt"]);
    assert_eq!(refused.json()["reasons"], check.json()["reasons"]);
    assert_eq!(playground.await_state("greater", "running")["host"], "A");

    for name in ["lesser", "agreed"] {
        let check = playground.json(&["migrate", name, "--to", "B", "--check"]);
        assert_eq!((&check["compatible"], &check["reasons"]), (&true.into(), &Value::Array(Vec::new())));
        assert_eq!(playground.await_state(name, "running")["host"], "A", "a check moves nothing");
        playground.json(&["migrate", name, "--to", "B"]);
        assert_eq!(playground.await_state(name, "running")["host"], "B");
    }
    // What was agreed on goes back, too.
    playground.json(&["migrate", "agreed", "--to", "A"]);
}

#[test]
fn the_baseline_of_hosts_is_what_all_have_and_can_be_kept_in_a_file() {
    let playground = Playground::new();
    if !has_kvm() || !has_v3(&playground) {
        return;
    }
    let pool = playground.pool();
    let (_a, _b) = (playground.agent("A"), playground.agent_with("B", &["--pool", &pool, "--cpu-limit", "x86-64-v2"]));
    let file = playground.path("model.json");
    let baseline = playground.json(&["cpu", "baseline", "--hosts", "A,B", "--name", "lab", "--save", &file]);
    assert_eq!((&baseline["model"]["name"], &baseline["level"]), (&"cluster-lab".into(), &"x86-64-v2".into()));
    assert!(!features(&baseline["model"]).contains(&"avx".to_owned()));
    assert!(features(&baseline["hosts"][0]).contains(&"avx".to_owned()), "A has it beyond that");
    assert_eq!(playground.json(&["cpu", "baseline"])["model"]["features"], baseline["model"]["features"]);
    let guest = run(&playground, "kept", &["--cpu", &file]);
    assert_eq!(guest["cpu_model"], "cluster-lab");
    playground.json(&["migrate", "kept", "--to", "B"]);
    await_that("its model to be told by its new host", || {
        playground.guest("kept").is_some_and(|guest| guest["host"] == "B" && guest["cpu_model"] == "cluster-lab")
    });
}

#[test]
fn a_host_gives_no_guest_more_than_its_limit() {
    let playground = Playground::new();
    if !has_kvm() || !has_v3(&playground) {
        return;
    }
    let pool = playground.pool();
    let _a = playground.agent_with("A", &["--pool", &pool, "--cpu-limit", "x86-64-v2"]);
    let base = ["vm", "run", "builtin:demo", "--memory", "64M", "--pool", &pool, "--name", "g"];
    let refused = playground.nil(&[&base[..], &["--cpu", "x86-64-v3"]].concat());
    refused.refuses(1, &["no more than CPU model x86-64-v2", "x86-64-v3", "avx2"]);
    assert_eq!(playground.json(&base)["cpu_model"], "x86-64-v2");
}

#[test]
fn odd_models_are_refused_by_name() {
    let playground = Playground::new();
    if !has_kvm() {
        return;
    }
    let _a = playground.agent("A");
    let pool = playground.pool();
    let with = |model: &str| {
        let base = ["vm", "run", "builtin:demo", "--memory", "64M", "--pool", &pool, "--name", "g", "--cpu", model];
        playground.nil(&base)
    };
    with("x86-64-v9").refuses(1, &["no CPU model named x86-64-v9", "x86-64-v1, x86-64-v2"]);
    let file = playground.path("odd.json");
    for (text, word) in [
        ("{\"name\": \"odd\", \"features\": [\"avx3\"]}", "odd.json holds no CPU model"),
        ("not JSON", "odd.json holds no CPU model"),
        ("{\"name\": \"odd\", \"features\": [\"sse2\"]}", "odd.json holds no CPU model"),
    ] {
        std::fs::write(&file, text).expect("a file");
        with(&file).refuses(1, &[word]);
    }
    assert!(playground.guest("g").is_none());
}

#[test]
fn every_reason_against_a_host_is_told_at_once() {
    let playground = Playground::new();
    if !has_kvm() || !has_v3(&playground) {
        return;
    }
    playground.add_pool("other");
    let other = playground.path("other");
    let (_a, _c) = (playground.agent("A"), playground.agent_with("C", &["--pool", &other, "--cpu-limit", "x86-64-v2"]));
    run(&playground, "g", &["--cpu", "x86-64-v3"]);
    let refused = playground.nil(&["migrate", "g", "--to", "C"]);
    refused.refuses(1, &["host C is not a member of pool", "avx2", "no way leads there"]);
    assert_eq!(refused.stderr.lines().count(), 4, "{}", refused.stderr);
}

#[test]
fn a_cordoned_host_is_given_no_guest_until_it_is_opened_again() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    run(&playground, "g", &[]);
    let pool = playground.open_pool();
    let tool = pool.join(&HostIdentity::tool()).expect("a free slot");
    let slot = pool.hosts().into_iter().find(|host| host.name == "B").expect("B has joined").slot;
    tool.cordon(slot).expect("B is a member");
    let check = playground.nil(&["--json", "migrate", "g", "--to", "B", "--check"]);
    assert_eq!(check.json()["reasons"][0]["reason"], "cordoned");
    playground.nil(&["migrate", "g", "--to", "B"]).refuses(1, &["host B", "cordoned", "nil uncordon"]);
    tool.uncordon(slot).expect("B is a member");
    playground.json(&["migrate", "g", "--to", "B"]);
    drop(b);
}
