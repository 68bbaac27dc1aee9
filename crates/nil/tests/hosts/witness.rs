//! What a test guest says of its own memory, read from the process that runs it, wherever that memory lies.

use crate::playground::{Playground, await_that};
use nil_guest_abi::layout::CONTROL_OFFSET;
use nil_guest_abi::{Command, CommandWord, ControlBlock, GuestState, VcpuBlock};
use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

/// The memory of a guest with one vCPU.
pub(crate) struct Witness {
    file: File,
    start: u64,
}

const VCPU: usize = offset_of!(ControlBlock, vcpu);

impl Witness {
    /// Of the guest of that name, on the host that runs it now.
    pub(crate) fn of(playground: &Playground, guest: &str) -> Self {
        Self::of_guest(&playground.guest(guest).expect("the guest"))
    }

    /// Of the guest that `nil ps` describes like this.
    pub(crate) fn of_guest(guest: &serde_json::Value) -> Self {
        let (pid, address) = (guest["worker_pid"].as_i64().expect("a pid"), guest["memory_address"].as_u64());
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let start = address.expect("an address") + CONTROL_OFFSET as u64;
        Self { file: file.expect("the worker's memory"), start }
    }

    fn word(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, self.start + at as u64).expect("a word of the guest's memory");
        u64::from_le_bytes(bytes)
    }

    /// Waits until the guest has filled its memory.
    pub(crate) fn await_filled(&self) {
        let running = u64::from(GuestState::Running as u32);
        // The state is the upper half of the word that begins with the version.
        await_that("the guest's filling its memory", || self.word(offset_of!(ControlBlock, version)) >> 32 == running);
    }

    /// Has the guest verify all of its memory and registers; it must find no error.
    #[track_caller]
    pub(crate) fn verify(&self) {
        let at = offset_of!(ControlBlock, command);
        let last = CommandWord::decode(self.word(at)).map_or(0, |word| word.sequence);
        let word = CommandWord { sequence: last + 1, command: Command::VerifyAll }.encode();
        self.file.write_all_at(&word.to_le_bytes(), self.start + at as u64).expect("a command to the guest");
        let (acknowledged, errors) = (offset_of!(VcpuBlock, acknowledged), offset_of!(VcpuBlock, errors));
        await_that("the guest's verification", || self.word(VCPU + acknowledged) == word);
        assert_eq!(self.word(VCPU + errors), 0, "the guest found errors in its memory");
        assert!(self.word(VCPU + offset_of!(VcpuBlock, pages_verified)) > 0, "the guest verified nothing");
    }

    /// How often the guest has been through its loop.
    pub(crate) fn turns(&self) -> u64 {
        self.word(VCPU + offset_of!(VcpuBlock, counter))
    }
}

/// Guests whose memory moves, as `nil ps` shows them.
impl Playground {
    /// Starts a VM whose memory is in DRAM, and which is hard on its memory.
    pub(crate) fn run_in_dram(&self, name: &str, host: &str) -> Witness {
        let pool = self.pool();
        let run = ["vm", "run", "builtin:demo", "--memory", "64M", "--memory-in", "dram", "--name", name];
        self.json(&[&run[..], &["--pool", &pool, "--host", host]].concat());
        let witness = Witness::of(self, name);
        witness.await_filled();
        witness
    }

    /// Waits until `nil ps` says that of a guest.
    #[track_caller]
    pub(crate) fn await_guest(&self, guest: &str, what: &str, is_so: impl Fn(&serde_json::Value) -> bool) {
        await_that(what, || self.guest(guest).is_some_and(|guest| is_so(&guest)));
    }

    /// Waits until a guest's memory is moving.
    #[track_caller]
    pub(crate) fn await_moving(&self, guest: &str) {
        self.await_guest(guest, "the move's beginning", |guest| guest["moving"]["done_bytes"].as_u64() > Some(0));
    }

    /// Waits until `nil ps` shows the guest waiting for something that is called so.
    #[track_caller]
    pub(crate) fn await_stall(&self, guest: &str, name: &str) {
        self.await_guest(guest, "the stall", |guest| {
            guest["detail"].as_str().is_some_and(|detail| detail.contains("it waits") && detail.contains(name))
        });
    }

    /// Where `nil ps` says that a guest's memory is.
    pub(crate) fn memory_of(&self, guest: &str) -> serde_json::Value {
        self.guest(guest).expect("the guest")["memory"]["in"].clone()
    }

    /// What `nil pool check` finds; nothing must be wrong.
    #[track_caller]
    pub(crate) fn check_pool(&self) {
        let check = self.nil(&["pool", "check", &self.pool()]);
        assert!(check.status.success(), "{}{}", check.stdout, check.stderr);
    }
}
