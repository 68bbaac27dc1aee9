//! A guest's memory as KVM sees it: one range of this process, several guest-physical regions, one memory slot for each.
//!
//! What lies in the range, DRAM or the pool, is `nil_mover`'s business and changes while the guest runs: KVM follows the
//! process's page tables by itself.

use crate::boot;
use crate::error::{Error, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nil_mover::GuestMemory;
use nil_pool::{GuestControl, StateArea};
use std::sync::Arc;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// The guest's RAM.
pub(crate) struct GuestRam {
    memory: Arc<GuestMemory>,
    slots: Vec<kvm_userspace_memory_region>,
}

impl GuestRam {
    /// The memory of a guest that is about to boot: in DRAM or in the pool, as its placement says.
    pub(crate) fn new(control: &GuestControl, state: &StateArea, memory_bytes: u64) -> Result<Self> {
        if state.placement().away() > 0 {
            return Self::over(GuestMemory::in_dram(control, state, None)?, memory_bytes);
        }
        let ram = Self::over(GuestMemory::in_pool(control, state)?, memory_bytes)?;
        ram.memory.populate()?;
        Ok(ram)
    }

    /// The memory of a guest that comes from another host, or back: it lies in the pool. What has contents is brought in,
    /// so that neither KVM nor the guest faults on it later; what the guest has never touched stays unallocated.
    pub(crate) fn of_comer(control: &GuestControl, state: &StateArea, memory_bytes: u64) -> Result<Self> {
        let ram = Self::over(GuestMemory::in_pool(control, state)?, memory_bytes)?;
        ram.memory.populate_data()?;
        Ok(ram)
    }

    /// Lays memory out in guest-physical space.
    fn over(memory: GuestMemory, memory_bytes: u64) -> Result<Self> {
        if memory.len() as u64 != memory_bytes {
            return Err(Error::NotMappable { bytes: memory_bytes });
        }
        let mut slots = Vec::new();
        let mut userspace_addr = memory.as_ptr() as u64;
        for (slot, (guest_phys_addr, memory_size)) in (0..).zip(boot::ram_regions(memory_bytes)) {
            slots.push(kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr });
            userspace_addr += memory_size;
        }
        let memory = memory.laid_out(boot::ram_regions(memory_bytes));
        Ok(Self { memory: Arc::new(memory), slots })
    }

    /// Where the memory lies, and what moves it.
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Gives the memory to a VM.
    pub(crate) fn plug_into(&self, vm: &VmFd) -> Result<()> {
        for slot in &self.slots {
            // SAFETY: the range is `self.memory`'s, which outlives the VM: `Vm` drops its `VmFd` first.
            unsafe { vm.set_user_memory_region(*slot) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Its slots: number and bytes, in the order of the guest's memory.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.slots.iter().map(|slot| (slot.slot, slot.memory_size))
    }

    /// Changes what KVM does with the slots.
    pub(crate) fn set_flags(&self, vm: &VmFd, flags: u32) -> Result<()> {
        for slot in &self.slots {
            let changed = kvm_userspace_memory_region { flags, ..*slot };
            // SAFETY: as in `plug_into`; where the memory lies does not change.
            unsafe { vm.set_user_memory_region(changed) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Has KVM forget every translation of the guest's memory (needed where it shadows page tables that the guest has
    /// changed on another host: deleting and re-adding a slot drops all shadow pages).
    pub(crate) fn replug(&self, vm: &VmFd) -> Result<()> {
        for slot in &self.slots {
            let removed = kvm_userspace_memory_region { memory_size: 0, ..*slot };
            // SAFETY: a slot of size 0 is removed; no memory is referenced.
            unsafe { vm.set_user_memory_region(removed) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        self.plug_into(vm)
    }

    /// The parts of the memory of a guest in the pool that have contents, in guest-physical space: (address, bytes).
    pub(crate) fn touched(&self, control: &GuestControl) -> Result<Vec<(u64, u64)>> {
        let start = self.memory.as_ptr() as u64;
        let mut touched = Vec::new();
        for data in control.map_memory()?.data_ranges() {
            for slot in &self.slots {
                let offset = slot.userspace_addr - start;
                let (from, to) = (offset.max(data.start as u64), (offset + slot.memory_size).min(data.end as u64));
                if from < to {
                    touched.push((slot.guest_phys_addr + (from - offset), to - from));
                }
            }
        }
        Ok(touched)
    }

    /// The memory by guest-physical address, for the loader and for devices.
    pub(crate) fn by_guest_address(&self) -> Result<GuestMemoryMmap> {
        let mut regions = Vec::new();
        for slot in &self.slots {
            let bytes =
                usize::try_from(slot.memory_size).map_err(|_| Error::NotMappable { bytes: slot.memory_size })?;
            let not_mappable = || Error::NotMappable { bytes: slot.memory_size };
            let host = slot.userspace_addr as *mut u8;
            // SAFETY: `host..host + bytes` lies in `self.memory`; vm-memory does not unmap raw pointers, and the
            // result is used only while `self` lives.
            let region = unsafe {
                MmapRegionBuilder::new(bytes)
                    .with_raw_mmap_pointer(host)
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_PRIVATE)
                    .build()
            }
            .map_err(|_| not_mappable())?;
            regions.push(GuestRegionMmap::new(region, GuestAddress(slot.guest_phys_addr)).ok_or_else(not_mappable)?);
        }
        GuestMemoryMmap::from_regions(regions).map_err(|_| Error::NotMappable { bytes: self.memory.len() as u64 })
    }
}
