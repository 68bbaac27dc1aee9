//! What a machine has besides its vCPUs: devices, and with an in-kernel irqchip its PICs, IOAPIC, PIT and clock.
//!
//! Frozen after the last vCPU has stopped, thawed before the first one runs.

use crate::devices::Devices;
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::state::{self, Kind};
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_irqchip, kvm_pit_config,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use nil_migrate::Part;
use nil_mover::GuestMemory;
use nil_pool::{SectionWriter, Sections};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::FromZeros;

/// The devices of a machine and its in-kernel irqchip, if it has one.
pub(crate) struct Machine {
    vm: Arc<VmFd>,
    irqchip: bool,
    devices: Arc<Mutex<Devices>>,
    memory: Arc<GuestMemory>,
    /// Memory that KVM must forget the translations of before the guest lands.
    replug: Option<Arc<GuestRam>>,
}

impl Machine {
    pub(crate) fn new(vm: Arc<VmFd>, irqchip: bool, devices: Devices, memory: Arc<GuestMemory>) -> Self {
        Self { vm, irqchip, devices: Arc::new(Mutex::new(devices)), memory, replug: None }
    }

    /// Creates the in-kernel irqchip and PIT. Must come before the vCPUs.
    pub(crate) fn create_irqchip(vm: &VmFd) -> Result<()> {
        vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(Error::kvm("KVM_CREATE_PIT2"))
    }

    /// Has KVM drop its shadows of the guest's page tables when the machine is loaded.
    pub(crate) fn replug_before_landing(&mut self, ram: Arc<GuestRam>) {
        self.replug = Some(ram);
    }

    /// The devices, for the vCPU threads. The lock belongs to this process: no peer can hold it.
    pub(crate) fn share_devices(&self) -> Arc<Mutex<Devices>> {
        Arc::clone(&self.devices)
    }

    fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save_irqchip(&self, out: &mut SectionWriter<'_>) -> Result<()> {
        for chip_id in 0..=KVM_IRQCHIP_IOAPIC {
            let mut chip = kvm_irqchip::new_zeroed();
            chip.chip_id = chip_id;
            self.vm.get_irqchip(&mut chip).map_err(Error::kvm("KVM_GET_IRQCHIP"))?;
            state::put(out, Kind::Irqchip, chip_id, &chip)?;
        }
        let pit = self.vm.get_pit2().map_err(Error::kvm("KVM_GET_PIT2"))?;
        state::put(out, Kind::Pit, 0, &pit)?;
        let clock = self.vm.get_clock().map_err(Error::kvm("KVM_GET_CLOCK"))?;
        state::put(out, Kind::Clock, 0, &clock)
    }

    fn load_irqchip(&self, sections: &Sections<'_>) -> Result<()> {
        let area = "machine area";
        for chip_id in 0..=KVM_IRQCHIP_IOAPIC {
            let chip: kvm_irqchip = state::parse(Kind::Irqchip, state::bytes(sections, area, Kind::Irqchip, chip_id)?)?;
            self.vm.set_irqchip(&chip).map_err(Error::kvm("KVM_SET_IRQCHIP"))?;
        }
        let pit: kvm_pit_state2 = state::parse(Kind::Pit, state::bytes(sections, area, Kind::Pit, 0)?)?;
        self.vm.set_pit2(&pit).map_err(Error::kvm("KVM_SET_PIT2"))?;
        let saved: kvm_clock_data = state::parse(Kind::Clock, state::bytes(sections, area, Kind::Clock, 0)?)?;
        // With KVM_CLOCK_REALTIME the kernel advances the clock by the time that has passed since it was saved.
        let flags = saved.flags & KVM_CLOCK_REALTIME;
        let clock = kvm_clock_data { clock: saved.clock, realtime: saved.realtime, flags, ..Default::default() };
        self.vm.set_clock(&clock).map_err(Error::kvm("KVM_SET_CLOCK"))
    }
}

impl Part for Machine {
    type Error = Error;

    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<()> {
        self.devices().serial.save(out)?;
        if self.irqchip { self.save_irqchip(out) } else { Ok(()) }
    }

    /// The source hands no guest over whose memory is not all in the pool. Nor is one taken: a granule that is not there
    /// would be a hole in the guest's memory.
    fn load(&mut self, sections: &Sections<'_>) -> Result<()> {
        let away = self.memory.placement().away();
        if away > 0 {
            return Err(Error::MemoryAway { granules: away });
        }
        if let Some(ram) = &self.replug {
            ram.replug(&self.vm)?;
        }
        self.devices().serial.load(sections)?;
        if self.irqchip { self.load_irqchip(sections) } else { Ok(()) }
    }
}
