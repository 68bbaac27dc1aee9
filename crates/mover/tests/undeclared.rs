//! Pins that nobody declared, made by the real kernel: registered buffers of io_uring over anonymous memory.
//!
//! What the kernel counts is counted per process, so these tests run one at a time.

use io_uring::IoUring;
use nil_mover::{PinWatch, Undeclared, UndeclaredPin, undeclared_pins};
use rustix::io::FdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const BYTES: usize = 8 << 20;
const KIB: usize = 1 << 10;

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Anonymous memory, as a guest has it.
struct Memory {
    address: *mut u8,
}

impl Memory {
    fn new() -> Self {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that there is.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        Self { address: address.expect("memory for a test").cast() }
    }

    fn range(&self) -> Range<usize> {
        self.address as usize..self.address as usize + BYTES
    }

    fn part(&self, offset: usize, bytes: usize) -> Range<usize> {
        self.address as usize + offset..self.address as usize + offset + bytes
    }

    fn buffer(&self, offset: usize, bytes: usize) -> libc::iovec {
        libc::iovec { iov_base: self.address.wrapping_add(offset).cast(), iov_len: bytes }
    }

    fn undeclared(&self, declared: &[Range<usize>]) -> Undeclared {
        undeclared_pins(&self.range(), declared).expect("/proc tells what is pinned")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference into it was ever made.
        let unmapped = unsafe { rustix::mm::munmap(self.address.cast(), BYTES) };
        unmapped.expect("the mapping is there");
    }
}

/// A ring with these buffers registered; `None`, said aloud, where there is no io_uring.
fn ring_with(buffers: &[libc::iovec]) -> Option<IoUring> {
    let ring = match IoUring::new(4) {
        Ok(ring) => ring,
        Err(error) => {
            eprintln!("skipped: this kernel lets nobody have an io_uring ({error})");
            return None;
        }
    };
    // SAFETY: the buffers lie in a `Memory` that outlives the ring in each of these tests.
    unsafe { ring.submitter().register_buffers(buffers) }.expect("buffers can be registered");
    Some(ring)
}

fn places(pins: &[UndeclaredPin]) -> Vec<(Option<u64>, u64)> {
    pins.iter().map(|pin| (pin.offset, pin.bytes)).collect()
}

#[test]
fn registered_buffers_are_found_until_they_are_declared_or_unregistered() {
    let _alone = alone();
    let memory = Memory::new();
    assert_eq!(memory.undeclared(&[]), Undeclared::default());
    let Some(ring) = ring_with(&[memory.buffer(4096, 8192), memory.buffer((4 << 20) + 100, 64 * KIB)]) else { return };

    let found = memory.undeclared(&[]);
    assert_eq!(places(&found.pins), [(Some(4096), 8192), (Some(4 << 20), 68 << 10)]);
    assert!(found.pins[0].holder.contains(&format!("descriptor {}", ring.as_raw_fd())), "{}", found.pins[0]);

    let declared = [memory.part(4096, 8192)];
    assert_eq!(places(&memory.undeclared(&declared).pins), [(Some(4 << 20), 68 << 10)]);
    assert_eq!(memory.undeclared(&[memory.range()]), Undeclared::default());

    ring.submitter().unregister_buffers().expect("buffers can be unregistered");
    assert_eq!(memory.undeclared(&[]), Undeclared::default());
}

#[test]
fn buffers_of_a_ring_that_only_another_process_has_open_are_somewhere() {
    let _alone = alone();
    let memory = Memory::new();
    let Some(ring) = ring_with(&[memory.buffer(0, 4 << 20)]) else { return };
    // SAFETY: the ring has its descriptor open until it is dropped, further down.
    let descriptor = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
    rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).expect("a descriptor can be inherited");
    let mut other =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat can be started");
    drop(ring);

    let found = memory.undeclared(&[]);
    assert_eq!(places(&found.pins), [(None, 4 << 20)]);
    assert!(found.pins[0].holder.contains("VmPin"), "{}", found.pins[0]);
    assert_eq!(memory.undeclared(&[memory.part(0, 4 << 20)]), Undeclared::default(), "a declared pin explains it");

    drop(other.stdin.take());
    other.wait().expect("cat ends with its input");
    // The kernel releases a ring's buffers some time after its last user is gone.
    while memory.undeclared(&[]) != Undeclared::default() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn locked_memory_is_told_of_and_is_no_pin() {
    let _alone = alone();
    let memory = Memory::new();
    // SAFETY: locking memory does not change what is in it; the range lies in the mapping.
    unsafe { rustix::mm::mlock(memory.address.wrapping_add(64 * KIB).cast(), 128 * KIB) }
        .expect("128 KiB can be locked");
    let found = memory.undeclared(&[]);
    assert_eq!(found.pins, []);
    let locked: Vec<_> = found.locked.iter().map(|locked| (locked.offset, locked.bytes)).collect();
    assert_eq!(locked, [(64 << 10, 128 << 10)]);
}

#[test]
fn the_watch_sees_that_something_was_pinned_or_released() {
    let _alone = alone();
    let memory = Memory::new();
    let mut watch = PinWatch::default();
    let mut changed = || watch.has_changed().expect("/proc tells what is pinned");
    assert!(changed());
    assert!(!changed());
    let Some(ring) = ring_with(&[memory.buffer(0, 8192)]) else { return };
    assert!(changed());
    assert!(!changed());
    ring.submitter().unregister_buffers().expect("buffers can be unregistered");
    assert!(changed());
}
