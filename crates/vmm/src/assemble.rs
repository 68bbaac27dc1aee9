//! Putting a machine together: memory, VM, irqchip, vCPUs, devices. The same steps for a machine that boots and for one
//! that is to receive a guest, so that both are the same machine.

use crate::boot::{self, BootOptions};
use crate::config::{Config, MachineConfig};
use crate::cpu::CpuModel;
use crate::devices::{Console, Devices, SerialPort};
use crate::error::{Error, Result};
use crate::kvm::KvmHost;
use crate::machine::Machine;
use crate::memory::GuestRam;
use crate::vcpu::Vcpu;
use crate::vm::BootRequest;
use kvm_ioctls::VmFd;
use nil_migrate::Part;
use nil_pool::{Area, Epoch, StateArea};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Where KVM may put three pages for real mode on CPUs that need them: in the hole below 4 GiB, as everybody does.
const TSS_ADDRESS: usize = 0xFFFB_D000;
/// COM1's interrupt line.
const COM1_GSI: u32 = 4;

/// A machine that does not run yet. Fields are dropped in order: nothing of KVM outlives the memory.
pub(crate) struct Assembled {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) machine: Machine,
    pub(crate) console: Console,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: Arc<GuestRam>,
    /// Frequency of the guest's and this host's TSC.
    pub(crate) tsc_hz: u64,
}

impl Assembled {
    /// Creates the VM around the guest's memory, and everything in it.
    pub(crate) fn new(host: &KvmHost, ram: GuestRam, config: &Config) -> Result<Self> {
        let vcpus = config.machine.vcpus;
        let irqchip = config.machine.irqchip();
        let vm = host.kvm().create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        ram.plug_into(&vm)?;
        if irqchip {
            Machine::create_irqchip(&vm)?;
        }
        let vcpus =
            (0..vcpus).map(|index| Vcpu::new(&vm, index, &config.cpuid, irqchip)).collect::<Result<Vec<_>>>()?;
        let console = Console::default();
        let serial = SerialPort::new(console.clone(), serial_interrupt(&vm, irqchip)?);
        let (vm, ram) = (Arc::new(vm), Arc::new(ram));
        let memory = Arc::clone(ram.memory());
        let machine = Machine::new(Arc::clone(&vm), irqchip, Devices::new(serial), memory);
        let tsc_hz = vcpus.first().map_or(0, Vcpu::tsc_hz);
        Ok(Self { vcpus, machine, console, vm, ram, tsc_hz })
    }

    /// Fixes which MSRs travel with the vCPUs.
    pub(crate) fn carry(&mut self, msr_indices: &[u32]) -> Result<()> {
        self.vcpus.iter_mut().try_for_each(|vcpu| vcpu.carry_msrs(msr_indices))
    }

    /// Loads the image and puts every vCPU at its entry point; completes the configuration with what that decided.
    pub(crate) fn load_image(&mut self, host: &KvmHost, config: &mut Config, request: &BootRequest) -> Result<()> {
        let MachineConfig { vcpus, memory_bytes, .. } = config.machine;
        let options = BootOptions { memory_bytes, vcpus, command_line: request.command_line.clone() };
        let state = boot::load(&request.image, &self.ram.by_guest_address()?, &options)?;
        config.tsc_khz = u32::try_from(self.tsc_hz / 1000).ok().filter(|&khz| khz != 0);
        let machine = &mut config.machine;
        machine.page_table_root = state.page_table_root;
        machine.prewarm_stub = state.prewarm_stub.map_or(0, |stub| stub.0);
        if state.static_page_tables {
            machine.flags |= MachineConfig::STATIC_PAGE_TABLES;
        }
        for (vcpu, entry) in self.vcpus.iter_mut().zip(&state.vcpus) {
            vcpu.enter_at(&entry.regs(), |sregs| boot::user_mode_64(sregs, state.page_table_root))?;
        }
        let permitted = request.cpu.as_ref().and_then(CpuModel::msrs);
        let mut indices = self.vcpus.first().map_or(Ok(Vec::new()), |vcpu| vcpu.restorable_msrs(host))?;
        indices.retain(|index| permitted.is_none_or(|permitted| permitted.contains(index)));
        config.msr_indices = indices;
        self.carry(&config.msr_indices)
    }

    /// Writes the state that the guest boots with as that of epoch 0, so that its first target can load it ahead.
    pub(crate) fn write_boot_state(&mut self, state: &StateArea) -> Result<()> {
        let epoch = Epoch(0);
        write(&state.machine(epoch.slot()), epoch, &mut self.machine)?;
        let slot = |index| state.vcpu(epoch.slot(), index);
        self.vcpus.iter_mut().enumerate().try_for_each(|(index, vcpu)| write(&slot(index), epoch, vcpu))
    }
}

fn serial_interrupt(vm: &VmFd, irqchip: bool) -> Result<Option<EventFd>> {
    if !irqchip {
        return Ok(None);
    }
    let line = EventFd::new(0).map_err(|source| Error::Kvm { ioctl: "eventfd", source })?;
    vm.register_irqfd(&line, COM1_GSI).map_err(Error::kvm("KVM_IRQFD"))?;
    Ok(Some(line))
}

fn write(area: &Area, epoch: Epoch, part: &mut impl Part<Error = Error>) -> Result<()> {
    let mut out = area.writer(epoch);
    part.save(&mut out)?;
    out.finish();
    Ok(())
}
