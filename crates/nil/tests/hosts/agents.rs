//! Agents come and go.

use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that};
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

#[test]
fn an_agent_that_is_stopped_in_order_leaves_no_socket_and_no_host_in_the_pool() {
    let playground = Playground::new();
    let agent = playground.agent("A");
    let socket = playground.host_dir("A").join("agent.sock");
    assert_eq!(fs::metadata(&socket).expect("its socket").permissions().mode() & 0o777, 0o600);
    assert_eq!(playground.json(&["host", "list"])["hosts"][0]["agent_pid"], agent.pid());
    let status = agent.end(Signal::INT);
    assert!(status.success(), "{status}");
    assert!(!socket.exists());
    assert!(playground.open_pool().find_host("A").is_none());
}

#[test]
fn a_second_agent_of_the_same_name_is_refused() {
    let playground = Playground::new();
    let first = playground.agent("A");
    let answer = playground.nil(&["host", "run", "--name", "A", "--pool", &playground.pool()]);
    answer.refuses(1, &["a host named A is running already", &first.pid().to_string(), "--name"]);
}

#[test]
fn a_second_host_of_the_same_name_from_another_run_directory_is_refused_by_the_pool() {
    let playground = Playground::new();
    let _first = playground.agent("A");
    let mut command = playground.command(&["host", "run", "--name", "A", "--pool", &playground.pool()]);
    let output = command.env("NIL_RUN_DIR", playground.path("elsewhere")).output().expect("nil runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains('A'), "{stderr}");
}

#[test]
fn a_killed_agent_is_shown_as_not_running_and_starts_again_over_its_stale_socket() {
    let playground = Playground::new();
    let agent = playground.agent("A");
    let id = playground.json(&["host", "list"])["hosts"][0]["id"].clone();
    agent.end(Signal::KILL);
    assert!(playground.host_dir("A").join("agent.sock").exists());
    let listing = playground.nil(&["host", "list"]);
    assert!(listing.stdout.contains("not running"), "{}", listing.stdout);
    let _again = playground.agent("A");
    assert_eq!(playground.json(&["host", "list"])["hosts"][0]["id"], id);
}

#[test]
fn a_host_keeps_its_slot_in_the_pool_when_its_agent_is_killed_and_started_again() {
    let playground = Playground::new();
    let (first, _second) = (playground.agent("A"), playground.agent("B"));
    let slot = |name: &str| {
        let hosts = playground.json(&["host", "list"])["hosts"].as_array().expect("hosts").clone();
        hosts.iter().find(|host| host["name"] == name).expect("the host")["pools"][0]["slot"].clone()
    };
    let before = slot("A");
    first.end(Signal::KILL);
    let _again = playground.agent("A");
    assert_eq!(slot("A"), before);
    assert_ne!(slot("B"), before);
}

#[test]
fn a_stale_worker_socket_is_removed() {
    let playground = Playground::new();
    let workers = playground.host_dir("A").join("workers");
    fs::create_dir_all(&workers).expect("a directory");
    fs::set_permissions(playground.host_dir("A"), fs::Permissions::from_mode(0o700)).expect("permissions");
    let socket = workers.join("ghost.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    let _agent = playground.agent("A");
    assert!(!socket.exists());
}

#[test]
fn a_confused_client_does_an_agent_no_harm() {
    let playground = Playground::new();
    let agent = playground.agent("A");
    let socket = playground.host_dir("A").join("agent.sock");
    for line in
        ["GET / HTTP/1.1\r\n", "GET / HTTP/9.9\r\n\r\n", "{\"run\":{}}\n", "[[[[\n", "\0\0\n", "POST /v1/guests"]
    {
        let mut stream = UnixStream::connect(&socket).expect("the agent's socket");
        stream.write_all(line.as_bytes()).expect("written");
    }
    assert_eq!(playground.json(&["host", "list"])["hosts"][0]["agent_pid"], agent.pid());
}

#[test]
fn an_agent_is_replaced_by_one_of_another_program_and_its_guest_runs_on() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    // On a disk: a copy of the program is larger than what /dev/shm should be asked for.
    let elsewhere = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let old = elsewhere.path().join("nil");
    fs::copy(env!("CARGO_BIN_EXE_nil"), &old).expect("a copy of the program");
    let mut command = std::process::Command::new(&old);
    command.args(["--json", "host", "run", "--name", "A", "--pool", &playground.pool()]);
    command.env("NIL_RUN_DIR", playground.run_dir()).stdin(std::process::Stdio::null());
    let agent = playground.agent_of("A", command);
    let before = playground.run_vm("g", "A");
    assert!(before["worker_pid"].is_number(), "{before}");

    // As a package manager does it: the new program comes, the old one is gone, the service is restarted.
    fs::remove_file(&old).expect("removed");
    assert!(agent.end(Signal::TERM).success());
    let agent = playground.agent("A");
    assert_eq!(agent.up["guests"], serde_json::json!(["g"]));
    let after = playground.await_state("g", "running");
    for same in ["worker_pid", "epoch", "sandbox"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    // Its worker is one of the old program, and takes the new agent's orders.
    playground.json(&["decouple", "g"]);
    playground.json(&["vm", "stop", "g"]);
    await_that("the end of the worker", || playground.workers().is_empty());
}
