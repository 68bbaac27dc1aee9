//! Warming a target up, so that the guest does not fault its way through its first millisecond.
//!
//! Three things are cold in a fresh machine. This process's mapping of the pool (`GuestMemory::populate_data`). KVM's own
//! page tables, which are only built when a vCPU touches memory. And the vCPU itself, whose first run costs several times
//! as much as every later one. So each vCPU, on the very thread that will run it, first executes a few instructions that
//! the loader has left in the guest's low memory: they *read* a byte of every page of the vCPU's share of the memory (as
//! far as it has contents: what the guest has never touched is not to be allocated now), through the guest's own page
//! tables (where KVM shadows those, only that helps), and change nothing. The registers that this leaves behind are
//! replaced when the guest's state is loaded.

use crate::boot;
use crate::config::MachineConfig;
use crate::error::{Error, Result};
use crate::vcpu::Vcpu;
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuExit;

/// Shares of memory are multiples of this: a huge page is warmed up by one vCPU.
const UNIT: u64 = 2 << 20;

/// What the vCPUs of one machine are to warm up.
#[derive(Clone, Debug)]
pub(crate) struct WarmUp {
    machine: MachineConfig,
    /// Guest-physical regions with contents: (address, bytes).
    regions: Vec<(u64, u64)>,
}

impl WarmUp {
    pub(crate) fn new(machine: MachineConfig, regions: Vec<(u64, u64)>) -> Self {
        Self { machine, regions }
    }

    /// Has `vcpu` run, and read its share of the guest's memory. Does nothing for a guest whose image has no stub.
    pub(crate) fn run(&self, vcpu: &mut Vcpu, index: usize) -> Result<()> {
        if self.machine.prewarm_stub == 0 {
            return Ok(());
        }
        let shares = u64::from(self.machine.vcpus);
        self.regions.iter().try_for_each(|&region| match share(region, index as u64, shares) {
            (start, end) if start < end => self.read(vcpu, start, end),
            _ => Ok(()),
        })
    }

    fn read(&self, vcpu: &mut Vcpu, start: u64, end: u64) -> Result<()> {
        let rip = self.machine.prewarm_stub;
        let regs = kvm_regs { rip, rbx: start, rcx: end, rflags: boot::RFLAGS, ..Default::default() };
        vcpu.enter_at(&regs, |sregs| boot::user_mode_64(sregs, self.machine.page_table_root))?;
        loop {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(port, _)) if port == boot::PREWARM_PORT => return Ok(()),
                Ok(exit) => return Err(Error::Prewarm(format!("{exit:?}"))),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(Error::kvm("KVM_RUN")(error)),
            }
        }
    }
}

/// The part of a region that vCPU `index` of `shares` warms up: (start, end).
fn share((start, bytes): (u64, u64), index: u64, shares: u64) -> (u64, u64) {
    let each = bytes.div_ceil(shares).next_multiple_of(UNIT);
    let end = start + bytes;
    ((start + index * each).min(end), (start + (index + 1) * each).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_vcpus_are_the_whole_region() {
        for (bytes, shares) in [(64 << 20, 1), (64 << 20, 3), (4 << 20, 16), ((5 << 20) + 4096, 2)] {
            let parts: Vec<_> = (0..shares).map(|index| share((1 << 32, bytes), index, shares)).collect();
            assert_eq!(parts[0].0, 1 << 32);
            assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0), "{parts:?}");
            assert_eq!(parts[parts.len() - 1].1, (1 << 32) + bytes);
        }
    }
}
