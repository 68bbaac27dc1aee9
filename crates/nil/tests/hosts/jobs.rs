//! Jobs and events, as programs see them that talk HTTP to an agent.

use crate::http::{Response, ask};
use crate::kvm::has_kvm;
use crate::playground::{Playground, await_that};
use rustix::process::Signal;
use std::io::Write;
use std::os::unix::net::UnixStream;

fn get(playground: &Playground, host: &str, path: &str) -> serde_json::Value {
    ask(playground, host, "GET", path, "").json()
}

/// Orders something of the agent of A that takes long, and forgets about it. Returns where the job is.
fn order(playground: &Playground, path: &str, body: &serde_json::Value) -> String {
    let response = ask(playground, "A", "POST", path, &body.to_string());
    let (status, head) = (response.status, response.head.clone());
    assert_eq!(status, 202, "{}", response.body());
    let location = head.lines().find_map(|line| line.strip_prefix("location: "));
    location.unwrap_or_else(|| panic!("where is the job? {head}")).to_owned()
}

fn await_end(playground: &Playground, job: &str) -> serde_json::Value {
    await_that("the end of the job", || get(playground, "A", job)["phase"] == "ended");
    get(playground, "A", job)
}

#[test]
fn a_migration_goes_on_without_its_client_and_every_host_knows_its_report_also_later() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    let job = order(&playground, "/v1/guests/g/migrations", &serde_json::json!({"to": "B"}));
    let report = await_end(&playground, &job);
    assert_eq!(
        (&report["outcome"], &report["kind"], &report["to"]),
        (&"done".into(), &"migration".into(), &"B".into())
    );
    assert_eq!(report["report"]["migration"]["outcome"], "moved", "{report}");
    assert_eq!(playground.await_state("g", "running")["host"], "B");
    assert_eq!(get(&playground, "B", &job), report);
    assert!(a.end(Signal::INT).success());
    let _a = playground.agent("A");
    assert_eq!(get(&playground, "A", &job), report);
    let listed = get(&playground, "A", "/v1/jobs")[0].clone();
    let blackout = &report["report"]["migration"]["handoff"]["blackout_ns"];
    assert_eq!((&listed["id"], &listed["outcome"], &listed["blackout_ns"]), (&report["id"], &"done".into(), blackout));
    assert_eq!(listed.get("report"), None, "a list of jobs is short");
}

#[test]
fn a_job_is_called_off_by_its_number_and_its_memory_goes_back() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let _witness = playground.run_in_dram("g", "A");
    let slowly = serde_json::json!({"direction": "decouple", "budget": {"pace": "fast", "bandwidth": 16 << 20}});
    let job = order(&playground, "/v1/guests/g/moves", &slowly);
    playground.await_moving("g");
    let twice = ask(&playground, "A", "POST", "/v1/guests/g/moves", &slowly.to_string());
    assert_eq!(twice.status, 409);
    let cancelled = ask(&playground, "A", "POST", &format!("{job}/cancel"), "");
    let status = cancelled.status;
    let state = cancelled.json();
    assert!(status == 200 && state["state"].as_str().is_some_and(|state| state.contains("dram")), "{state}");
    let report = await_end(&playground, &job);
    assert_eq!(report["outcome"], "cancelled", "{report}");
    let late = ask(&playground, "A", "POST", &format!("{job}/cancel"), "");
    assert_eq!(late.status, 409);
    assert!(late.body().contains("too late"));
    assert_eq!(playground.memory_of("g"), "dram");
}

#[test]
fn a_job_whose_time_is_up_is_called_off() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let witness = playground.run_in_dram("g", "A");
    let budget = serde_json::json!({"pace": "fast", "bandwidth": 1 << 20});
    let slowly = serde_json::json!({"direction": "decouple", "budget": budget, "time_limit_us": 500_000});
    let job = order(&playground, "/v1/guests/g/moves", &slowly);
    let report = await_end(&playground, &job);
    assert_eq!(report["outcome"], "cancelled", "{report}");
    assert!(report["deadline_ms"].as_u64() > report["created_ms"].as_u64(), "{report}");
    assert_eq!(playground.memory_of("g"), "dram");
    witness.verify();
}

#[test]
fn a_stream_tells_the_steps_of_a_job_and_its_end_also_to_who_comes_late() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    playground.run_vm("g", "A");
    let job = order(&playground, "/v1/guests/g/migrations", &serde_json::json!({"to": "B"}));
    let report = await_end(&playground, &job);
    let stream = ask(&playground, "A", "GET", &format!("{job}/events"), "").body();
    assert!(stream.contains("event: progress") && stream.contains("B gets ready"), "{stream}");
    let end = stream.split("event: end\n").nth(1).and_then(|end| end.strip_prefix("data: ")).expect("an end");
    let end: serde_json::Value = serde_json::from_str(end.lines().next().expect("a line")).expect("a document");
    assert_eq!(end, report);
}

#[test]
fn a_watcher_sees_guests_come_and_go_and_jobs_begin_and_end() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let stream = UnixStream::connect(playground.host_dir("A").join("agent.sock")).expect("the agent's socket");
    (&stream).write_all(b"GET /v1/events HTTP/1.1\r\nhost: nil\r\n\r\n").expect("written");
    let mut watch = Response::of(stream);
    playground.run_vm("g", "A");
    playground.json(&["migrate", "g", "--to", "B"]);
    let mut happened: Vec<String> = Vec::new();
    // The worker's own news may come after the end of the job.
    while !["guest_gone", "job_ended done"].iter().all(|last| happened.iter().any(|event| event == last)) {
        let event: serde_json::Value = serde_json::from_str(&watch.data()).expect("a document");
        let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let more = [&event["state"], &event["job"]["outcome"]].map(word).concat();
        happened.push(format!("{} {more}", word(&event["event"])).trim_end().to_owned());
    }
    let comes = |what: &str| happened.iter().position(|event| event == what);
    for order in [["guest running", "job_begun", "job_ended done"], ["guest running", "guest migrating", "guest_gone"]]
    {
        let order = order.map(comes);
        assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{happened:?}");
    }
}

#[test]
fn a_guest_whose_orderer_hangs_up_before_it_runs_leaves_nothing() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agent = playground.agent("A");
    let free = playground.free_bytes();
    let order = serde_json::json!({
        "name": "g", "pool": playground.open_pool().id(), "memory_bytes": 64 << 20, "memory_in": "pool", "vcpus": 1,
        "image": {"builtin": "pages"}, "command_line": "",
    })
    .to_string();
    let mut stream = UnixStream::connect(playground.host_dir("A").join("agent.sock")).expect("the agent's socket");
    let length = order.len();
    write!(
        stream,
        "POST /v1/guests HTTP/1.1\r\nhost: nil\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{order}"
    )
    .expect("written");
    await_that("the guest's beginning", || !playground.workers().is_empty());
    drop(stream);
    await_that("the guest's end", || playground.workers().is_empty() && playground.free_bytes() == free);
    await_that("the log", || playground.agent_log("A").contains("has gone before it ran"));
}

#[test]
fn jobs_are_listed_shown_followed_and_called_off_from_the_command_line() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let _witness = playground.run_in_dram("g", "A");
    let slowly = ["--bandwidth", "1M", "--time-limit", "100ms"];
    let late = playground.nil(&[&["--json", "migrate", "g", "--to", "B"], &slowly[..]].concat());
    assert!(!late.status.success() && late.json()["outcome"] == "cancelled", "{}", late.stdout);
    playground.json(&["migrate", "g", "--to", "B", "--fast"]);
    let jobs = playground.json(&["job", "list", "--guest", "g"])["jobs"].clone();
    // Beside the recoupling at the target, which is a job of its own.
    let jobs: Vec<_> = jobs.as_array().expect("jobs").iter().filter(|job| job["kind"] == "migration").collect();
    let outcomes: Vec<_> = jobs.iter().map(|job| &job["outcome"]).collect();
    assert_eq!(outcomes, ["done", "cancelled"]);
    let job = jobs[0]["id"].as_str().expect("its number");
    let shown = playground.json(&["job", "show", job]);
    assert_eq!(shown["report"]["migration"]["handoff"]["blackout_ns"], jobs[0]["blackout_ns"]);
    assert_eq!(shown["ended_ms"], jobs[0]["ended_ms"]);
    assert_eq!(playground.json(&["job", "list", "--past", "0"])["jobs"], serde_json::json!([]));
    let followed = playground.nil(&["job", "follow", job]);
    assert!(followed.status.success() && followed.stdout.starts_with("migration of guest g on host A to B: done"));
    playground.nil(&["job", "cancel", job]).refuses(1, &["it came too late", job]);
    let nobody = "00000000-0000-4000-8000-000000000000";
    playground.nil(&["job", "show", nobody]).refuses(1, &["there is no job", nobody, "nil job list"]);
    assert_eq!(playground.json(&["job", "list", "--guest", "h"])["jobs"], serde_json::json!([]));
}
