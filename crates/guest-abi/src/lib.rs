//! What the test guests and the host agree on.
//!
//! A guest keeps its figures in a *control block* at a fixed guest-physical address, as atomics. The host maps the same
//! memory and reads them while the guest runs; it never stops the guest to ask. The same block lies at the same offset
//! of the memory file under QEMU, so the blackout of every peer is read by the same code.
//!
//! - [`layout`]: where things lie in guest-physical memory, and the port numbers.
//! - [`control`]: the control block, the gap ring, the commands.
//! - [`blackout`]: which gap is the one in which the guest changed hands.
//! - [`page`]: what a page under test holds, so that a lost, stale, misplaced or torn one shows.
//! - [`options`]: the guest's command line.
//! - [`start_info`]: the PVH boot information that RDI points to at the entry.
//!
//! This crate is compiled into the guests too: no `std`, no allocation, no dependencies.

#![no_std]

pub mod blackout;
pub mod control;
pub mod layout;
pub mod options;
pub mod page;
pub mod start_info;

pub use control::{
    Command, CommandWord, ControlBlock, ErrorKind, ErrorRecord, FirstError, Gap, GuestState, MemoryRange, VcpuBlock,
};
pub use layout::MAX_VCPUS;
pub use options::{BadOptions, Mode, Options, Program};
