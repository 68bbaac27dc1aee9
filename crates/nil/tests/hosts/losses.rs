//! A pool is lost: its file is cut short while guests run.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that};
use std::fs::OpenOptions;

#[test]
fn an_agent_lives_on_when_a_pool_is_lost_says_so_and_its_guests_stop() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    playground.add_pool("other");
    let (pool, other) = (playground.pool(), playground.path("other"));
    let agent = playground.agent_with("A", &["--pool", &pool, "--pool", &other]);
    for (guest, home, memory_in) in [("pooled", &pool, "pool"), ("local", &pool, "dram"), ("spared", &other, "dram")] {
        let run = ["vm", "run", "builtin:demo", "--memory", "64M", "--name", guest, "--pool", home, "--host", "A"];
        playground.json(&[&run[..], &["--memory-in", memory_in]].concat());
    }
    OpenOptions::new().write(true).open(&pool).expect("the pool").set_len(0).expect("it is cut short");
    let host = || playground.json(&["host", "list"])["hosts"][0].clone();
    await_that("the loss", || host()["lost_pools"][0]["path"] == pool.as_str());
    let lost = host()["lost_pools"][0].clone();
    assert_eq!(lost["guests"], serde_json::json!(["local", "pooled"]), "{lost}");
    let why = format!("pool {pool} is lost");
    assert!(lost["why"].as_str().is_some_and(|text| text.starts_with(&why)), "{lost}");
    await_that("the end of the workers", || playground.workers_of("A").len() == 1);
    for guest in ["local", "pooled"] {
        let log = std::fs::read_to_string(playground.host_dir("A").join("workers").join(format!("{guest}.log")));
        let log = log.unwrap_or_else(|error| panic!("{guest}: {error}; {}", playground.agent_log("A")));
        assert!(log.contains(" is lost"), "{guest}: {log}");
    }
    assert!(playground.nil(&["ps"]).stdout.contains(&why));
    assert_eq!(playground.await_state("spared", "running")["host"], "A");
    assert!(playground.guest("pooled").is_none() && playground.guest("local").is_none());
    playground.json(&["vm", "stop", "spared"]);
    drop(agent);
}
