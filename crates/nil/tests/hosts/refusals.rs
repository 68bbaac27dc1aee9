//! Bad input is refused with a sentence, the right exit status, and nothing left behind.

use crate::kvm::has_kvm;
use crate::playground::Playground;
use rustix::process::Signal;
use std::fs;

#[test]
fn sizes_that_are_none_are_errors_of_usage() {
    let playground = Playground::new();
    for (memory, word) in [("0", "zero"), ("1X", "not a size"), ("-1G", "not a size"), ("99999999T", "16 EiB")] {
        let memory = format!("--memory={memory}");
        let answer =
            playground.nil(&["vm", "run", "builtin:pages", "--pool", &playground.pool(), "--name", "g", &memory]);
        answer.refuses(2, &[word]);
    }
}

#[test]
fn a_memory_that_is_no_multiple_of_the_granule_is_refused() {
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let pool = playground.pool();
    let run = |memory: &str| {
        playground.nil(&["vm", "run", "builtin:pages", "--pool", &pool, "--name", "g", "--memory", memory])
    };
    run("3M").refuses(1, &["multiple", "2 MiB"]);
    run("4K").refuses(1, &["multiple", "2 MiB"]);
}

#[test]
fn more_memory_than_the_pool_has_is_refused_and_nothing_is_kept() {
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let free = playground.free_bytes();
    let pool = playground.pool();
    let answer = playground.nil(&["vm", "run", "builtin:pages", "--pool", &pool, "--name", "g", "--memory", "1T"]);
    answer.refuses(1, &[]);
    assert_eq!(playground.free_bytes(), free);
    assert!(playground.guest("g").is_none());
}

#[test]
fn no_vcpu_is_an_error_of_usage() {
    let playground = Playground::new();
    let pool = playground.pool();
    playground.nil(&["vm", "run", "builtin:pages", "--pool", &pool, "--name", "g", "--vcpus", "0"]).refuses(2, &["0"]);
}

#[test]
fn names_that_are_no_file_names_are_errors_of_usage() {
    let playground = Playground::new();
    playground.nil(&["host", "run", "--name", "a/b", "--pool", "/pool"]).refuses(2, &["a/b", "host"]);
    let too_long = "x".repeat(32);
    playground.nil(&["host", "run", "--name", &too_long, "--pool", "/pool"]).refuses(2, &["31 characters"]);
}

#[test]
fn a_pool_that_is_none_is_refused_and_not_written_to() {
    let playground = Playground::new();
    let path = playground.path("notes.txt");
    fs::write(&path, "not a pool").expect("a file");
    for pool in [path.as_str(), &playground.path(""), &playground.path("missing")] {
        playground.nil(&["host", "run", "--name", "A", "--pool", pool]).refuses(1, &[pool.trim_end_matches('/')]);
    }
    assert_eq!(fs::read_to_string(&path).expect("the file"), "not a pool");
    assert!(!playground.host_dir("A").exists());
}

#[test]
fn a_guest_without_a_host_is_told_how_to_start_one() {
    let playground = Playground::new();
    let pool = playground.pool();
    let answer = playground.nil(&["vm", "run", "builtin:pages", "--pool", &pool, "--name", "g"]);
    answer.refuses(1, &["no host has joined", "nil host run --name A --pool", &pool]);
}

#[test]
fn of_several_hosts_one_must_be_chosen() {
    let playground = Playground::new();
    let (_first, _second) = (playground.agent("A"), playground.agent("B"));
    let pool = playground.pool();
    let answer = playground.nil(&["vm", "run", "builtin:pages", "--pool", &pool, "--name", "g"]);
    answer.refuses(1, &["--host", "A, B"]);
}

#[test]
fn a_host_that_has_not_joined_the_pool_is_refused() {
    let playground = Playground::new();
    playground.add_pool("other");
    let (_a, other) = (playground.agent("A"), playground.path("other"));
    let run = ["vm", "run", "builtin:pages", "--pool", &other, "--name", "g", "--host", "A"];
    playground.nil(&run).refuses(1, &["host A is not a member of pool", "--pool"]);
}

#[test]
fn an_image_that_is_missing_is_refused_before_anything_is_made() {
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let (pool, missing) = (playground.pool(), playground.path("missing.elf"));
    let run = |image: &str| playground.nil(&["vm", "run", image, "--pool", &pool, "--name", "g"]);
    run(&missing).refuses(1, &["missing.elf"]);
    run("builtin:nothing").refuses(1, &["no built-in image named nothing"]);
    run(&playground.path("")).refuses(1, &["no file"]);
    assert!(playground.guest("g").is_none());
}

#[test]
fn an_image_that_is_none_is_refused_and_nothing_is_kept() {
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let free = playground.free_bytes();
    let (pool, image) = (playground.pool(), playground.path("image.elf"));
    let run = || playground.nil(&["vm", "run", &image, "--pool", &pool, "--name", "g", "--memory", "64M"]);
    // An ELF header for another machine (AArch64).
    let mut header = [0_u8; 64];
    header[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0");
    fs::write(&image, header).expect("an image");
    run().refuses(1, &[]);
    let large = fs::File::create(&image).expect("an image");
    large.set_len(65 << 20).expect("a large image");
    run().refuses(1, &["--memory"]);
    assert_eq!(playground.free_bytes(), free);
    assert!(playground.guest("g").is_none());
    assert!(playground.workers().is_empty());
}

#[test]
fn an_unknown_guest_is_answered_with_the_known_ones() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.nil(&["migrate", "g", "--to", "B"]).refuses(1, &["there is no guest named g", "no guest is known"]);
    playground.run_vm("known", "A");
    for command in [&["migrate", "g", "--to", "B"][..], &["vm", "stop", "g"], &["vm", "console", "g"]] {
        playground.nil(command).refuses(1, &["there is no guest named g", "known: known"]);
    }
}

#[test]
fn a_guest_is_not_moved_to_a_host_that_cannot_have_it() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    playground.add_pool("other");
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    let _c = playground.agent_with("C", &["--pool", &playground.path("other")]);
    playground.run_vm("g", "A");
    let migrate = |to: &str| playground.nil(&["migrate", "g", "--to", to]);
    migrate("X").refuses(1, &["there is no host named X", "A, B, C"]);
    migrate("A").refuses(1, &["on host A already"]);
    migrate("C").refuses(1, &["host C is not a member of pool"]);
    b.end(Signal::KILL);
    migrate("B").refuses(1, &["the agent of host B is not running", "nil host run --name B"]);
    playground.nil(&["migrate", "g", "--to", "B", "--deadline", "1h"]).refuses(2, &["not a time"]);
    playground.nil(&["migrate", "g", "--to", "C", "--deadline", "0s"]).refuses(1, &["1 ms and 60 s"]);
    assert_eq!(playground.await_state("g", "running")["host"], "A");
}

#[test]
fn a_failure_is_one_json_document_for_programs() {
    let playground = Playground::new();
    let answer = playground.nil(&["--json", "vm", "stop", "g"]);
    answer.refuses(1, &["no guest named g"]);
    let document: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON");
    assert!(document["error"].as_str().expect("a sentence").contains("no guest named g"));
}

#[test]
fn two_guests_of_one_name_do_not_fit_on_one_host() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    playground.run_vm("g", "A");
    let pool = playground.pool();
    let run = ["vm", "run", "builtin:pages", "--pool", &pool, "--name", "g", "--memory", "64M"];
    playground.nil(&run).refuses(1, &["guest named g already"]);
    assert_eq!(playground.await_state("g", "running")["host"], "A");
}

#[test]
fn memory_is_not_moved_by_bad_orders() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    playground.nil(&["decouple", "g"]).refuses(1, &["there is no guest named g"]);
    let run = ["vm", "run", "builtin:pages", "--memory", "64M", "--memory-in", "dram", "--name", "g", "--host", "A"];
    playground.json(&[&run[..], &["--pool", &playground.pool()]].concat());
    let with = |args: &[&str]| playground.nil(&[&["decouple", "g"], args].concat());
    with(&["--range", "0x100000+2M"]).refuses(1, &["pieces of 2 MiB", "the nearest range is 0x0+4M"]);
    with(&["--range", "0x3e00000+4M"]).refuses(1, &["not all memory of the guest", "0x0+64M"]);
    with(&["--range", "64M"]).refuses(2, &["ADDRESS+SIZE"]);
    with(&["--range", "0x0+0"]).refuses(2, &["zero"]);
    with(&["--fast", "--max-stall", "1ms"]).refuses(2, &["--fast", "--max-stall"]);
    with(&["--max-stall", "0us"]).refuses(2, &["zero"]);
    with(&["--max-slowdown", "0%"]).refuses(2, &["between 1% and 100%"]);
    with(&["--bandwidth", "0"]).refuses(2, &["zero"]);
    with(&["--cancel"]).refuses(1, &["nothing of guest g's memory is being decoupled"]);
    with(&["--cancel", "--range", "0x0+2M"]).refuses(2, &["--range"]);
    let pin = |args: &[&str]| playground.nil(&[&["pin", "add", "g", "--reason", "test"], args].concat());
    pin(&["--at", "0x4000000", "--size", "4K", "--owner", "x"]).refuses(1, &["not all memory"]);
    pin(&["--at", "0x0", "--size", "4K", "--owner", "nil recouple"]).refuses(1, &["nil recouple g --range"]);
    pin(&["--at", "0x0", "--size", "4K", "--owner", &"x".repeat(99)]).refuses(1, &["owner"]);
    playground.nil(&["pin", "release", "g", "p0.1"]).refuses(1, &["there is no pin p0.1", "nil pin list"]);
    playground.nil(&["migrate", "g"]).refuses(2, &["--to"]);
    playground.nil(&["migrate", "g", "--cancel", "--to", "A"]).refuses(2, &["--to"]);
    let guest = playground.guest("g").expect("the guest");
    assert_eq!(
        (&guest["memory"]["in"], &guest["memory"]["pins"], &guest["state"]),
        (&"dram".into(), &0.into(), &"running".into())
    );
}
