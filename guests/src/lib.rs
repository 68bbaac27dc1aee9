//! The parts of the test guests.
//!
//! A guest is a static 64-bit image that runs at CPL 3 on an identity map, takes no interrupts and makes no calls: it
//! computes, and keeps its figures in the control block ([`nil_guest_abi::control`]). Under nil every vCPU is started at
//! `_start` directly; under QEMU (`-kernel`) the PVH entry brings its only vCPU there. See [`entry`].
//!
//! Work is done in slices of well under a microsecond, with a reading of the TSC between any two: a pause of the vCPU
//! shows as a gap, wherever it falls.

#![no_std]

pub mod boot;
pub mod cpu;
pub mod entry;
pub mod gaps;
mod memory;
pub mod pages;
mod panic;
pub mod registers;
pub mod run;
mod serial;
pub mod tickets;

/// Makes a binary of a [`Program`](nil_guest_abi::Program): the function that [`entry`] calls on every vCPU.
#[macro_export]
macro_rules! program {
    ($program:expr) => {
        /// Called by the entry code with the address of the start info, this vCPU's index and the number of vCPUs.
        #[unsafe(no_mangle)]
        extern "C" fn guest_main(start_info: u64, index: u64, vcpus: u64) -> ! {
            $crate::run::run($program, $crate::boot::Entry { start_info, index, vcpus })
        }
    };
}
