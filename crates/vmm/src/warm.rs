//! Warming a target up, so that the guest does not fault its way through its first millisecond.
//!
//! Two levels of page tables stand between a guest and its memory. The first is this process's mapping of the pool
//! ([`GuestRam::populate`]). The second belongs to KVM and is only built when a vCPU touches memory. So a spare vCPU
//! runs a few instructions that the loader has left in the guest's low memory: they *read* one byte of every page,
//! through the guest's own page tables (where KVM shadows those, only that helps), and change nothing.

use crate::boot;
use crate::config::{Config, MachineConfig};
use crate::error::{Error, Result};
use crate::kvm::KvmHost;
use crate::memory::GuestRam;
use crate::vcpu::Vcpu;
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VmFd};

/// Reads all of the guest's memory through a spare vCPU of `vm`. Does nothing for a guest whose image has no stub.
pub(crate) fn second_level(vm: &VmFd, host: &KvmHost, config: &Config, ram: &GuestRam) -> Result<()> {
    let machine = &config.machine;
    if machine.prewarm_stub == 0 {
        return Ok(());
    }
    let most = u32::try_from(host.kvm().get_max_vcpu_id()).unwrap_or(u32::MAX);
    if machine.vcpus >= most {
        return Ok(());
    }
    let mut spare = Vcpu::new(vm, machine.vcpus, &config.cpuid, machine.irqchip())?;
    for (start, bytes) in ram.regions() {
        sweep(&mut spare, machine, start, start + bytes)?;
    }
    Ok(())
}

fn sweep(spare: &mut Vcpu, machine: &MachineConfig, start: u64, end: u64) -> Result<()> {
    let regs = kvm_regs { rip: machine.prewarm_stub, rbx: start, rcx: end, rflags: boot::RFLAGS, ..Default::default() };
    spare.enter_at(&regs, |sregs| boot::user_mode_64(sregs, machine.page_table_root))?;
    loop {
        match spare.run() {
            Ok(VcpuExit::IoOut(port, _)) if port == boot::PREWARM_PORT => return Ok(()),
            Ok(exit) => return Err(Error::Prewarm(format!("{exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(Error::kvm("KVM_RUN")(error)),
        }
    }
}
