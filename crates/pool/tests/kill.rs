//! Processes that change one pool at once and are killed at any instant. `NIL_KILLS` says how many (default 40).
#![cfg(not(loom))]

use nil_pool::{
    Access, CapacityRequest, CreateOptions, GRANULE, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity,
    HostKind, Liveness, Membership, MemoryHome, Pool, Tag,
};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Tells a worker which pool it is to change.
const POOL: &str = "NIL_KILL_POOL";
/// Tells a worker which host it is.
const HOST: &str = "NIL_KILL_HOST";
/// Workers at work at a time.
const WORKERS: usize = 3;

/// A small generator of numbers; the seed is printed with every failure.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// The body of a worker process: changes the pool until it is killed. Not a test of its own.
#[test]
#[ignore = "the body of the worker processes of the other test"]
fn churn_until_killed() {
    let (Ok(path), Ok(host)) = (std::env::var(POOL), std::env::var(HOST)) else { return };
    let pool = Pool::open(Path::new(&path), Access::ReadWrite).expect("the pool");
    let id: HostId = host.parse().expect("a host id");
    let mut dice = Dice(u64::from(std::process::id()));
    println!("ready");
    std::io::stdout().flush().expect("a parent");
    loop {
        let identity = HostIdentity { id, name: format!("host-{id}"), kind: HostKind::Agent, address: None };
        let member = pool.join(&identity).expect("membership");
        for _ in 0..dice.throw(200) {
            change(&member, &mut dice);
        }
        member.leave().expect("nothing holds it");
    }
}

/// One change; what is refused because a peer was faster is refused.
fn change(member: &Membership, dice: &mut Dice) {
    let pool = member.pool();
    match dice.throw(12) {
        0..=2 => {
            // Few tags, so that processes contend for the same.
            let tag = Tag::from_bytes([u8::try_from(dice.throw(12)).expect("small"); 16]);
            let bytes = GRANULE * (1 + dice.throw(4));
            let request = CapacityRequest { label: "kill".to_owned(), ..CapacityRequest::shared(tag, bytes) };
            let _ = member.add_capacity(&request);
        }
        3..=5 => {
            let _ = member.release_capacity(Tag::from_bytes([u8::try_from(dice.throw(12)).expect("small"); 16]));
        }
        6 => {
            let name = format!("guest-{}", dice.throw(4));
            let memory_bytes = GRANULE * (1 + dice.throw(3));
            let home = if dice.throw(2) == 0 { MemoryHome::Dram } else { MemoryHome::Pool };
            let request = GuestRequest { name, kind: GuestKind::Vm, memory_bytes, home, vcpus: 1, features: 0 };
            let _ = member.create_guest(&request);
        }
        7 => drop(some_guest(pool, dice).map(|control| member.destroy_guest(&control))),
        // Nobody but its creator may.
        8 | 9 => drop(some_guest(pool, dice).map(|control| member.place_memory(&control))),
        _ => drop(some_guest(pool, dice).map(|control| member.unplace_memory(&control))),
    }
}

fn some_guest(pool: &Pool, dice: &mut Dice) -> Option<GuestControl> {
    let info = pool.find_guest(&format!("guest-{}", dice.throw(4)))?;
    pool.guest(info.slot, info.id).ok()
}

fn spawn(path: &Path, host: HostId) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["churn_until_killed", "--exact", "--ignored", "--nocapture"])
        .env(POOL, path)
        .env(HOST, host.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("a worker");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("ready")), "a worker that gets to work");
    child
}

fn kill(mut child: Child) {
    let early = child.try_wait().expect("the state of a worker");
    assert_eq!(early, None, "a worker ends only when it is killed");
    child.kill().expect("killed");
    child.wait().expect("reaped");
}

#[test]
fn processes_killed_at_any_instant_leave_a_pool_that_loses_nothing() {
    let kills: u64 = std::env::var("NIL_KILLS").ok().map_or(40, |text| text.parse().expect("NIL_KILLS is a number"));
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    let options = CreateOptions { size: Some(32 * GRANULE), ..CreateOptions::default() };
    let pool = Pool::create(&path, &options).expect("a new pool");
    let empty = pool.usage().free;
    let hosts: [HostId; WORKERS] = std::array::from_fn(|_| HostId::random());
    let mut dice = Dice(u64::from(std::process::id()));
    let mut workers: Vec<_> = hosts.iter().map(|host| Some(spawn(&path, *host))).collect();
    for round in 0..kills {
        std::thread::sleep(Duration::from_micros(500 + dice.throw(20_000)));
        let victim = usize::try_from(dice.throw(WORKERS as u64)).expect("small");
        kill(workers[victim].take().expect("a worker"));
        // The others are at work. What is found must come from the dead, and be of the kind that can be mended.
        let report = pool.check(true);
        assert!(report.is_clean(), "after kill {round}: {report:#?}");
        workers[victim] = Some(spawn(&path, hosts[victim]));
    }
    workers.into_iter().flatten().for_each(kill);
    let report = pool.check(true);
    assert!(report.is_clean(), "{report:#?}");
    assert!(pool.hosts().iter().all(|host| host.liveness == Liveness::Dead));
    empty_out(&pool);
    let report = pool.check(false);
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(pool.usage().free, empty, "every granule is free again");
}

/// Destroys every guest and releases every capacity.
fn empty_out(pool: &Pool) {
    let member = pool.join(&HostIdentity::tool()).expect("membership");
    for info in pool.guests() {
        let control = pool.guest(info.slot, info.id).expect("the guest");
        member.destroy_guest(&control).expect("its creator is dead");
    }
    for info in pool.capacities() {
        member.release_capacity(info.tag).expect("nobody uses it");
    }
    assert!(pool.guests().is_empty() && pool.capacities().is_empty());
}
