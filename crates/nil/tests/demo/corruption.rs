//! A demo whose guest's memory is changed by somebody else must not pass.
//!
//! The pool is kept, so it is an ordinary file in /dev/shm, and a write to the file is a write to the guest's memory.

use crate::kvm::has_kvm;
use crate::stage::{Running, Stage, json, wait_until};
use nil_guest_abi::control::MAGIC;
use nil_guest_abi::layout::CONTROL;
use nil_guest_abi::{ControlBlock, GuestState};
use nil_pool::GRANULE;
use std::fs::{self, File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The kept pool of a demo, removed in the end.
struct Victim {
    path: PathBuf,
    file: File,
}

impl Victim {
    fn of(running: &Running) -> Self {
        let path = running.await_kept_pool();
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("the pool");
        Self { path, file }
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at).expect("a word of the pool");
        u64::from_le_bytes(bytes)
    }

    /// Where the memory of the running guest begins in the file: its control block lies at a known place in it.
    fn memory(&self) -> Option<u64> {
        let size = self.file.metadata().expect("its size").len();
        let running = u64::from(GuestState::Running as u32) << 32;
        let state = u64::try_from(offset_of!(ControlBlock, version)).expect("a small offset");
        (0..size / GRANULE).map(|granule| granule * GRANULE).find(|start| {
            self.word(start + CONTROL) == MAGIC && self.word(start + CONTROL + state) >> 32 << 32 == running
        })
    }

    /// Changes one bit in each of many pages under test, so that the guest cannot have rewritten all of them unseen.
    fn corrupt(&self, memory: u64) {
        let ranges = memory + CONTROL + u64::try_from(offset_of!(ControlBlock, ranges)).expect("a small offset");
        let (start, bytes) = (self.word(ranges), self.word(ranges + 8));
        assert!(bytes > 0, "the guest tests no memory");
        for page in (0..bytes / 4096).step_by(64) {
            let at = memory + start + page * 4096 + 2048;
            let flipped = self.word(at) ^ 1 << 17;
            self.file.write_all_at(&flipped.to_le_bytes(), at).expect("a write into the pool");
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn one_flipped_bit_in_the_guests_memory_fails_the_demo() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let running = stage.start(&["demo", "--handoffs", "1000000", "--memory", "64M", "--keep", "--json"]);
    let victim = Victim::of(&running);
    assert!(wait_until(|| victim.memory().is_some()), "no guest runs in the pool");
    victim.corrupt(victim.memory().expect("it was there just now"));
    let output = running.finish();
    let report = json(&output);
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert_eq!(report["verified"], false);
    assert!(report["guest"]["errors"].as_u64() > Some(0), "{report}");
    assert!(report["guest"]["first_error"].as_str().expect("a sentence").contains("0x"), "{report}");
    assert_eq!(report["kept_pool"], victim.path.display().to_string());
}

#[test]
fn a_kept_pool_can_be_looked_at_afterwards() {
    if !has_kvm() {
        return;
    }
    let stage = Stage::new();
    let output = stage.run(&["demo", "--handoffs", "2", "--memory", "64M", "--keep", "--json"]);
    let report = json(&output);
    let path = PathBuf::from(report["kept_pool"].as_str().expect("a path"));
    let pool = nil_pool::Pool::open(&path, nil_pool::Access::ReadOnly).expect("a pool");
    assert_eq!(pool.guests().len(), 1, "the guest's record is to be looked at");
    drop(pool);
    fs::remove_file(&path).expect("removed");
    assert_eq!(output.status.code(), Some(0), "{report}");
    stage.assert_clean();
}
