//! Workers in their sandbox.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that, kill};
use nil_pool::{Access, Pool};
use rustix::process::Signal;
use std::fs;
use std::path::Path;

#[test]
fn a_guest_runs_in_a_sandbox_unless_that_is_switched_off() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _confined = playground.agent("A");
    let _not = playground.agent_with("B", &["--pool", &playground.pool(), "--sandbox", "off"]);
    playground.run_vm("g", "A");
    let worker = playground.workers_of("A")[0];
    let sandbox = playground.guest("g").expect("the guest")["sandbox"].clone();
    let layers: Vec<&str> = sandbox["layers"].as_array().expect("layers").iter().filter_map(|it| it.as_str()).collect();
    assert_eq!(layers[..], ["capabilities", "landlock", "seccomp"], "{sandbox}");
    let status = fs::read_to_string(format!("/proc/{worker}/status")).expect("its status");
    // CAP_SYS_NICE, where RLIMIT_RTPRIO cannot be raised: crates/host/src/worker/sandbox/privileges.rs.
    let none = |set: &str| ["0000000000000000", "0000000000800000"].map(|figure| format!("{set}:\t{figure}"));
    let figures =
        [none("CapEff"), none("CapBnd"), ["NoNewPrivs:\t1"; 2].map(Into::into), ["Seccomp:\t2"; 2].map(Into::into)];
    for figure in figures {
        assert!(figure.iter().any(|figure| status.contains(figure)), "{figure:?} is missing: {status}");
    }

    playground.json(&["migrate", "g", "--to", "B"]);
    let free = playground.await_state("g", "running")["sandbox"].clone();
    assert!(free["layers"].as_array().expect("layers").is_empty(), "{free}");
}

#[test]
fn a_worker_that_its_sandbox_kills_is_reported_with_the_reason_and_takes_nothing_along() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    playground.run_vm("g", "A");
    playground.run_vm("h", "A");
    let worker = playground.guest("g").expect("the guest")["worker_pid"].as_i64().expect("a pid");
    // What the kernel does to a process that makes a forbidden call.
    kill(i32::try_from(worker).expect("a pid"), Signal::SYS);
    let lost = playground.await_state("g", "lost");
    let detail = lost["detail"].as_str().expect("a reason");
    assert!(detail.contains("SIGSYS") && detail.contains("sandbox forbids"), "{detail}");
    assert!(playground.agent_log("A").contains("SIGSYS"), "{}", playground.agent_log("A"));
    assert_eq!(playground.await_state("h", "running")["state"], "running");
    assert_eq!(playground.json(&["host", "list"])["hosts"][0]["agent_pid"], agent.pid());
    playground.json(&["vm", "stop", "g"]);
    await_that("the end of the guest", || playground.guest("g").is_none());
}

#[test]
fn an_image_in_a_file_is_read_from_inside_the_sandbox() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let image = playground.path("image");
    // An endless loop.
    fs::write(&image, [0xEB, 0xFE]).expect("written");
    let run = ["vm", "run", &image, "--memory", "64M", "--name", "g", "--pool", &playground.pool(), "--host", "A"];
    playground.json(&run);
    playground.await_state("g", "running");
}

#[test]
fn a_mode_that_is_none_is_refused() {
    let playground = Playground::new();
    let run = ["host", "run", "--name", "A", "--pool", &playground.pool(), "--sandbox", "maybe"];
    playground.nil(&run).refuses(2, &["on, required and off"]);
}

#[test]
fn a_pool_that_its_host_joins_later_is_opened_for_a_worker_that_may_not_open_it() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let agent = playground.agent("A");
    let pool = playground.pool();
    let run = ["vm", "run", "builtin:pages", "--memory", "64M", "--memory-in", "dram", "--name", "g", "--pool", &pool];
    playground.json(&[&run[..], &["--host", "A"]].concat());
    agent.end(Signal::TERM);
    playground.add_pool("other");
    let other = playground.path("other");
    let _agent = playground.agent_with("A", &["--pool", &pool, "--pool", &other]);
    playground.await_state("g", "running");
    let free = || Pool::open(Path::new(&other), Access::ReadOnly).expect("the pool").usage().free;
    let before = free();
    playground.json(&["decouple", "g", "--stripe", &format!("{pool}:1"), "--stripe", &format!("{other}:1")]);
    assert_eq!(before - free(), 32 << 20, "half of its memory lies in the pool that came later");
    playground.json(&["recouple", "g"]);
    playground.json(&["vm", "stop", "g"]);
}

#[test]
fn a_worker_has_the_limits_that_are_configured_in_a_control_group_of_its_own() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let config = playground.path("host.toml");
    let text = "name = \"A\"\npools = [\"pool\"]\n[worker]\nmemory = \"512M\"\nthreads = 64\n";
    fs::write(&config, text).expect("written");
    let _agent = playground.agent_with("A", &["--config", &config]);
    let guest = playground.run_vm("g", "A");
    let worker = guest["worker_pid"].as_i64().expect("a pid");
    let missing: Vec<&str> =
        guest["sandbox"]["missing"].as_array().expect("a list").iter().filter_map(|it| it.as_str()).collect();
    if !missing.is_empty() {
        return println!("skipped: no control group for that here: {missing:?}");
    }
    let own = fs::read_to_string(format!("/proc/{worker}/cgroup")).expect("its groups");
    assert!(own.lines().any(|line| line.ends_with("/A.g")), "{own}");
    playground.json(&["vm", "stop", "g"]);
    let line = own.lines().find(|line| line.ends_with("/A.g")).expect("its group");
    let name = line.rsplit(':').next().expect("a path").to_owned();
    await_that("the end of the group", || {
        !["memory", "pids", "unified", ""]
            .iter()
            .any(|kind| fs::exists(format!("/sys/fs/cgroup/{kind}{name}")).unwrap_or(true))
    });
}
