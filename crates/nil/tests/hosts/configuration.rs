//! Agents that take their configuration from a file and are started by a service manager.

use crate::playground::Playground;
use rustix::process::Signal;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Writes a configuration; returns its path.
fn configure(playground: &Playground, text: &str) -> String {
    let path = playground.path("host.toml");
    fs::write(&path, text).expect("written");
    path
}

#[test]
fn an_agent_is_what_its_configuration_says() {
    let playground = Playground::new();
    // A relative path begins at the file, not where the agent was started.
    let config = configure(&playground, "name = \"A\"\npools = [\"pool\"]\n[log]\nlevel = \"debug\"\n");
    let mut command = playground.command(&["--json", "host", "run", "--config", &config]);
    command.current_dir("/");
    let agent = playground.agent_of("A", command);
    assert_eq!(agent.up["host"], "A");
    assert_eq!(playground.json(&["host", "list"])["hosts"][0]["pools"][0]["path"], playground.pool());
}

#[test]
fn a_pool_that_is_told_by_its_uuid_is_found_wherever_it_is() {
    let playground = Playground::new();
    let id = playground.open_pool().id().to_string();
    let folder = playground.path("");
    let text = |id: &str| format!("name = \"A\"\npools = [\"{id}\"]\nsearch = [\"{folder}\"]\n");
    let config = configure(&playground, &text(&id));
    assert_eq!(playground.json(&["host", "config", "check", &config])["pools"][0], id);
    let _agent = playground.agent_of("A", playground.command(&["--json", "host", "run", "--config", &config]));
    assert_eq!(playground.json(&["host", "list"])["hosts"][0]["pools"][0]["path"], playground.pool());
    // One that is nowhere is told with where was looked: among the pools of A, too.
    let nowhere = configure(&playground, &text("6f9619ff-8b86-4d01-b42d-00cf4fc964ff"));
    for args in [&["host", "run", "--name", "B", "--config", &nowhere][..], &["host", "config", "check", &nowhere]] {
        playground.nil(args).refuses(1, &["6f9619ff", "1 pool of this machine's agents", "below", &folder, "`search`"]);
    }
}

#[test]
fn the_command_line_overrules_the_configuration() {
    let playground = Playground::new();
    playground.add_pool("other");
    let config = configure(&playground, "name = \"A\"\npools = [\"pool\"]\n");
    let agent = playground.agent_with("B", &["--config", &config, "--pool", &playground.path("other")]);
    assert_eq!(agent.up["host"], "B");
    let host = playground.json(&["host", "list"])["hosts"][0].clone();
    assert_eq!(host["pools"].as_array().expect("pools").len(), 1);
    assert_eq!(host["pools"][0]["path"], playground.path("other"));
}

#[test]
fn a_mistake_in_a_configuration_is_told_with_its_line_and_nothing_is_started() {
    let playground = Playground::new();
    let config = configure(&playground, "name = \"A\"\npool = \"pool\"\n");
    for args in [["host", "run", "--config", &config], ["host", "config", "check", &config]] {
        playground.nil(&args).refuses(1, &["host.toml", "line 2", "unknown field `pool`", "`pools`"]);
    }
    let config = configure(&playground, "pools = [\"pool\"]\n");
    playground.nil(&["host", "run", "--config", &config]).refuses(1, &["no `name`", "--name"]);
    let config = configure(&playground, "name = \"A\"\n");
    playground.nil(&["host", "run", "--config", &config]).refuses(1, &["no `pools`", "--pool"]);
    assert!(!playground.run_dir().exists());
}

#[test]
fn a_configuration_is_checked_with_what_it_names() {
    let playground = Playground::new();
    let config = configure(&playground, "name = \"A\"\npools = [\"pool\"]\n");
    let checked = playground.json(&["host", "config", "check", &config]);
    assert_eq!((&checked["name"], &checked["pools"][0]), (&"A".into(), &playground.pool().into()));
    let config = configure(&playground, "name = \"A\"\npools = [\"nowhere\"]\n");
    playground.nil(&["host", "config", "check", &config]).refuses(1, &["no pool at", "nowhere"]);
}

#[test]
fn the_example_is_what_an_agent_can_be_started_with() {
    let playground = Playground::new();
    let example = playground.nil(&["host", "config", "example"]).stdout;
    let config = configure(&playground, &example.replace("/dev/shm/nil.pool", &playground.pool()));
    playground.json(&["host", "config", "check", &config]);
}

#[test]
fn a_service_manager_hears_when_the_agent_is_ready_and_when_it_stops() {
    let playground = Playground::new();
    let path = playground.path("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(30))).expect("patience");
    let heard = || {
        let mut news = [0; 4096];
        let length = manager.recv(&mut news).expect("news");
        String::from_utf8_lossy(&news[..length]).into_owned()
    };
    let mut command = playground.command(&["--json", "host", "run", "--name", "A", "--pool", &playground.pool()]);
    command.env("NOTIFY_SOCKET", &path);
    let agent = playground.agent_of("A", command);
    let ready = heard();
    assert!(ready.starts_with("READY=1\nSTATUS=host A is up on pool"), "{ready}");
    assert!(agent.end(Signal::TERM).success());
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn the_unit_file_is_one_that_systemd_understands() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/nil-host@.service");
    let unit = fs::read_to_string(unit).expect("the unit file");
    assert!(unit.contains("KillMode=process") && unit.contains("RuntimeDirectoryPreserve=yes"), "guests must live on");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("nil-host@.service");
    fs::write(&path, unit.replace("/usr/bin/nil", env!("CARGO_BIN_EXE_nil"))).expect("written");
    let verified = Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path).output();
    let Ok(verified) = verified else {
        return println!("skipped: there is no systemd-analyze; it is part of systemd");
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    // It came with systemd 254.
    let complaints: Vec<&str> = said.lines().filter(|line| !line.contains("'DelegateSubgroup'")).collect();
    assert!(verified.status.success() && complaints.is_empty(), "{complaints:#?}");
}
