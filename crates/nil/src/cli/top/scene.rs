//! A rack for tests to look at, made as agents tell it: from JSON.

use super::world::Sighting;
use nil_host::{GuestReport, GuestState, HostReport, HostStanding, JobReport, JobSummary, Survey};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;

const POOL: &str = "/dev/shm/rack.pool";

fn report<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("a report as agents make it")
}

fn id(number: u32) -> String {
    format!("6e696c00-0000-4000-8000-{number:012}")
}

fn host(name: &str, number: u32, guests: u32) -> HostReport {
    report(json!({
        "name": name,
        "id": id(number),
        "agent_pid": 4_000 + number,
        "pools": [{ "id": id(100), "path": POOL, "slot": number, "free_bytes": 11_u64 << 30, "total_bytes": 16_u64 << 30 }],
        "guests": guests,
        "unattended": [],
        "standing": "alive",
    }))
}

fn vm(name: &str, number: u32, host: &str, memory_bytes: u64) -> GuestReport {
    report(json!({
        "name": name,
        "id": id(200 + number),
        "kind": "vm",
        "host": host,
        "state": "running",
        "memory_bytes": memory_bytes,
        "vcpus": number % 3 + 1,
        "epoch": number * 7 + 1,
        "uptime_s": number * 1_000 + 42,
        "pool": POOL,
        "worker_pid": 5_000 + number,
        "memory": memory("pool", memory_bytes, memory_bytes),
        "memory_address": 0x7f00_0000_0000_u64,
    }))
}

fn memory(whereabouts: &str, pooled_bytes: u64, total_bytes: u64) -> Value {
    json!({
        "in": whereabouts, "pooled_bytes": pooled_bytes, "total_bytes": total_bytes, "placed": true, "pins": 0, "holds": 0
    })
}

/// A guest of which `done` MiB of so many bytes have moved.
fn moves(guest: GuestReport, direction: &str, done: u64, bytes_per_s: u64) -> GuestReport {
    let (done, total) = (done << 20, guest.memory_bytes);
    let pooled = if direction == "decouple" { done } else { total - done };
    let progress = json!({ "direction": direction, "done_bytes": done, "total_bytes": total, "bytes_per_s": bytes_per_s, "stall": null });
    GuestReport { moving: report(progress), memory: report(memory("both", pooled, total)), ..guest }
}

/// What an agent says of a job.
fn job(number: u32, kind: &str, guest: &str, hosts: (&str, Option<&str>), rest: Value) -> JobSummary {
    let mut job = json!({
        "id": id(300 + number), "kind": kind, "guest": guest, "host": hosts.0, "to": hosts.1, "created_ms": 1_000, "phase": "ended",
    });
    if let (Some(job), Value::Object(rest)) = (job.as_object_mut(), rest) {
        job.extend(rest);
    }
    JobSummary::from(&report::<JobReport>(job))
}

fn jobs() -> Vec<JobSummary> {
    let migrated = json!({ "migration": {
        "guest": "rover", "id": id(201), "from": "A", "to": "B", "outcome": "moved", "decouple": null, "prepare_us": 90_000,
        "total_us": 91_000, "copied_bytes": 0, "recouple": null, "remarks": [],
        "handoff": {
            "source": 0, "target": 1, "epoch": 9, "blackout_ns": 139_700,
            "phases": { "kick_ns": 139_700, "save_ns": 0, "publish_ns": 0, "notice_ns": 0, "load_ns": 0, "claim_ns": 0, "enter_ns": 0 }
        }
    }});
    let failure = json!({ "title": "Unprocessable Content", "status": 422, "detail": "host C does not answer" });
    let moving = json!({ "direction": "decouple", "done_bytes": 2600_u64 << 20, "total_bytes": 4_u64 << 30, "bytes_per_s": 3 << 28, "stall": null });
    vec![
        job(
            1,
            "migration",
            "rover",
            ("A", Some("B")),
            json!({ "outcome": "done", "ended_ms": 9_000, "report": migrated }),
        ),
        job(
            2,
            "migration",
            "lost",
            ("C", Some("A")),
            json!({ "outcome": "failed", "ended_ms": 4_000, "failure": failure }),
        ),
        job(
            3,
            "migration",
            "roamer",
            ("A", Some("B")),
            json!({
                "phase": "moving", "progress": { "step": "guest roamer: decoupling", "moving": moving }
            }),
        ),
    ]
}

/// Three hosts, one pool, a guest that is decoupled, one that is recoupled, one that waits, one that is lost.
pub(crate) fn rack() -> Sighting {
    let roamer = GuestReport {
        detail: Some("it is being moved to host B; decoupling, 2600 of 4096 MiB, 768 MiB/s".to_owned()),
        ..moves(vm("roamer", 2, "A", 4 << 30), "decouple", 2_600, 3 << 28)
    };
    let settler = moves(vm("settler", 3, "B", 4 << 30), "recouple", 800, 1 << 28);
    let mut pinned = moves(vm("pinned", 4, "C", 1 << 30), "decouple", 1_000, 0);
    pinned.moving.as_mut().expect("it moves").stall = report(json!({
        "guest_address": 0x40_0000, "bytes": 2 << 20, "reason": { "pinned": { "owner": "vfio", "reason": "DMA" } }
    }));
    pinned.memory.as_mut().expect("it is known").pins = 1;
    let lost = GuestReport {
        state: GuestState::Lost,
        detail: Some("its worker died while it ran; its memory is kept until `nil vm stop`".to_owned()),
        worker_pid: None,
        ..vm("lost", 5, "C", 64 << 20)
    };
    let rover = GuestReport {
        protection: report(json!({
            "state": "active", "interval_us": 25_000, "output": "hold", "commit": 1_704, "pages": 1_221, "standstill_us": 372
        })),
        ..vm("rover", 1, "A", 256 << 20)
    };
    let silent = HostReport {
        silent: Some("the agent of host C did not answer in time".to_owned()),
        agent_pid: None,
        standing: Some(HostStanding::Suspect),
        ..host("C", 2, 2)
    };
    let guests = vec![lost, pinned, roamer, rover, settler];
    let hosts = vec![host("A", 0, 2), host("B", 1, 1), silent];
    Sighting { at: Duration::from_secs(10), survey: Survey { guests, hosts, elsewhere: Vec::new() }, jobs: jobs() }
}

/// Many of everything.
pub(crate) fn hall() -> Sighting {
    let hosts = (0..40).map(|number| host(&format!("host-{number:02}"), number, 5)).collect();
    let guest = |number: u32| vm(&format!("guest-{number:03}"), number, &format!("host-{:02}", number % 40), 1 << 30);
    Sighting {
        at: Duration::from_secs(1),
        survey: Survey { guests: (0..200).map(guest).collect(), hosts, elsewhere: Vec::new() },
        jobs: Vec::new(),
    }
}

pub(super) fn guest<'a>(sighting: &'a mut Sighting, name: &str) -> &'a mut GuestReport {
    sighting.survey.guests.iter_mut().find(|guest| guest.name == name).expect("that guest")
}
