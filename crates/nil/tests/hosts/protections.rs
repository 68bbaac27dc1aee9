//! Guests that are protected: their host dies, they migrate, they are protected no more.

use crate::crashes::control;
use crate::kvm::has_kvm;
use crate::playground::{Agent, Playground, await_that, kill};
use nil_guest_abi::layout::CONTROL_OFFSET;
use nil_guest_abi::{Command, CommandWord, ControlBlock, VcpuBlock};
use nil_pool::Standing;
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::time::Duration;

fn run_protected(playground: &Playground, host: &str, vcpus: usize) -> Value {
    let (pool, vcpus) = (playground.pool(), vcpus.to_string());
    let vm = ["vm", "run", "builtin:pages", "--memory", "64M", "--name", "g", "--pool", &pool, "--host", host];
    playground.json(&[&vm[..], &["--vcpus", &vcpus, "--protect", "5ms", "--output", "hold"]].concat())
}

/// Waits until the guest can be brought back, and has been committed so often.
fn await_active(playground: &Playground, host: &str, commits: u64) {
    await_that("a protection that is in force", || {
        let Some(guest) = playground.guest("g") else { return false };
        let protection = &guest["protection"];
        guest["host"] == host && protection["state"] == "active" && protection["commit"].as_u64() >= Some(commits)
    });
}

/// A guest's control block, through the process that runs it.
struct Block {
    memory: File,
    at: u64,
    vcpus: usize,
}

impl Block {
    fn of(guest: &Value) -> Self {
        let pid = guest["worker_pid"].as_i64().expect("a worker");
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).expect("its memory");
        let vcpus = guest["vcpus"].as_u64().and_then(|vcpus| usize::try_from(vcpus).ok()).expect("its vCPUs");
        Self { memory, at: guest["memory_address"].as_u64().expect("an address") + CONTROL_OFFSET as u64, vcpus }
    }

    fn word(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, self.at + offset as u64).expect("a word of the block");
        u64::from_le_bytes(bytes)
    }

    /// That word of each vCPU's block.
    fn of_vcpus(&self, offset: usize) -> Vec<u64> {
        let vcpus = 0..self.vcpus;
        vcpus.map(|vcpu| self.word(offset_of!(ControlBlock, vcpu) + vcpu * size_of::<VcpuBlock>() + offset)).collect()
    }

    fn turns(&self) -> Vec<u64> {
        self.of_vcpus(offset_of!(VcpuBlock, counter))
    }

    /// Has every vCPU verify its pages, its registers and what it counts beside memory, and all of them that the tickets that
    /// each has drawn are together those that are gone: so memory and all vCPUs are of one instant. Then they go on.
    fn verify(&self) {
        let command = offset_of!(ControlBlock, command);
        let last = CommandWord::decode(self.word(command)).expect("a command");
        let word = last.then(Command::VerifyAll).encode();
        self.memory.write_all_at(&word.to_le_bytes(), self.at + command as u64).expect("written");
        let acknowledged = || self.of_vcpus(offset_of!(VcpuBlock, acknowledged));
        await_that("the guest's verification", || acknowledged().iter().all(|last| *last == word));
        assert!(
            self.of_vcpus(offset_of!(VcpuBlock, errors)).iter().all(|errors| *errors == 0),
            "the guest has found errors"
        );
        let turns = self.turns();
        await_that("the guest's going on", || self.turns().iter().zip(&turns).all(|(now, before)| now > before));
    }
}

/// An agent whose lease expires soon, and that takes what dead hosts had.
fn quick(playground: &Playground, name: &str) -> Agent {
    let pool = playground.pool();
    let lease = ["--lease-interval", "20", "--lease-expiry", "300", "--takeover", "auto"];
    playground.agent_with(name, &[&["--pool", &pool], &lease[..]].concat())
}

#[test]
fn a_guest_whose_host_is_killed_goes_on_elsewhere_from_its_last_commit_and_finds_nothing_wrong() {
    if !has_kvm() {
        return;
    }
    for (vcpus, delay) in [(1, 0), (1, 3), (1, 11), (1, 40), (2, 0), (2, 7), (4, 0), (4, 13)] {
        let playground = Playground::new();
        let (a, _b) = (quick(&playground, "A"), quick(&playground, "B"));
        run_protected(&playground, "A", vcpus);
        await_active(&playground, "A", 3);
        let control = control(&playground);
        std::thread::sleep(Duration::from_millis(delay));
        for worker in playground.workers_of("A") {
            kill(worker, Signal::KILL);
        }
        a.end(Signal::KILL);
        await_that("the guest's going on", || {
            playground.guest("g").is_some_and(|guest| guest["host"] == "B" && guest["state"] == "running")
        });
        let protection = control.protection().expect("sound").expect("it goes along");
        let last = protection.standing().expect("a word").number();
        assert!(last >= 3);
        Block::of(&playground.guest("g").expect("the guest")).verify();
        // Its protection goes on, once its memory is in the DRAM of its host.
        await_active(&playground, "B", last + 3);
        Block::of(&playground.guest("g").expect("the guest")).verify();
        assert!(playground.nil(&["pool", "check", &playground.pool()]).status.success());
        playground.json(&["vm", "stop", "g"]);
        assert_eq!(control.pool().usage().capacities, 0);
    }
}

#[test]
fn a_protected_guest_migrates_and_is_protected_there_and_nothing_else_moves_its_memory() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let (_a, _b) = (playground.agent("A"), playground.agent("B"));
    let free = playground.free_bytes();
    run_protected(&playground, "A", 2);
    await_active(&playground, "A", 2);
    playground.nil(&["decouple", "g"]).refuses(1, &["is protected", "nil unprotect g"]);
    for to in ["B", "A"] {
        let control = control(&playground);
        assert_eq!(playground.json(&["migrate", "g", "--to", to])["outcome"], "moved");
        let protection = control.protection().expect("sound").expect("it goes along");
        let before = protection.standing().expect("a word").number();
        await_active(&playground, to, before + 2);
        assert!(matches!(protection.standing(), Ok(Standing::Active(_))));
        Block::of(&playground.guest("g").expect("the guest")).verify();
    }
    playground.json(&["protect", "g", "--interval", "7ms"]);
    await_that("the other interval", || {
        playground.guest("g").is_some_and(|guest| guest["protection"]["interval_us"] == 7_000)
    });
    playground.json(&["unprotect", "g"]);
    playground.nil(&["unprotect", "g"]).refuses(1, &["is not protected"]);
    let guest = playground.guest("g").expect("the guest");
    assert_eq!(guest["protection"], Value::Null);
    await_that("room that is given back", || playground.open_pool().usage().capacities == 1);
    Block::of(&guest).verify();
    playground.json(&["vm", "stop", "g"]);
    assert_eq!(playground.free_bytes(), free);
}
