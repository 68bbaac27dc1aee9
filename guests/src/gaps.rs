//! Records every pause of a vCPU.

use crate::cpu::tsc;
use core::sync::atomic::Ordering;
use nil_guest_abi::{ErrorKind, VcpuBlock};

/// Reads the TSC between any two slices of work, and writes a gap into the ring when it has jumped.
pub struct GapRecorder {
    vcpu: &'static VcpuBlock,
    threshold: u64,
    last: u64,
}

impl GapRecorder {
    /// Begins now.
    #[must_use]
    pub fn new(vcpu: &'static VcpuBlock, threshold: u64) -> Self {
        Self { vcpu, threshold, last: tsc() }
    }

    /// The latest reading.
    #[inline(always)]
    pub fn tick(&mut self) {
        let now = tsc();
        if now.wrapping_sub(self.last) > self.threshold {
            self.jumped(now);
        }
        self.last = now;
        self.vcpu.last_tsc.store(now, Ordering::Relaxed);
    }

    /// Begins anew after a pause that the guest itself has asked for, which is no gap.
    pub fn rested(&mut self) {
        let now = tsc();
        if now < self.last {
            self.vcpu.record_error(ErrorKind::TscBackwards, 0, self.last, now);
        }
        self.last = now;
        self.vcpu.last_tsc.store(now, Ordering::Relaxed);
    }

    #[cold]
    fn jumped(&mut self, now: u64) {
        if now < self.last {
            self.vcpu.record_error(ErrorKind::TscBackwards, 0, self.last, now);
        } else {
            self.vcpu.record_gap(self.last, now);
        }
    }
}
