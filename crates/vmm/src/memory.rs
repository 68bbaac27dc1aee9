//! A guest's memory as this process sees it: one mapping of the pool, several guest-physical regions, one memory slot of
//! KVM for each.

use crate::boot;
use crate::error::{Error, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nil_pool::{CapacityMapping, GuestControl};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// The guest's RAM, mapped from the pool.
pub(crate) struct GuestRam {
    mapping: CapacityMapping,
    slots: Vec<kvm_userspace_memory_region>,
}

impl GuestRam {
    /// Maps the guest's memory and lays it out in guest-physical space.
    pub(crate) fn map(control: &GuestControl, memory_bytes: u64) -> Result<Self> {
        let mapping = control.map_memory()?;
        if mapping.len() as u64 != memory_bytes {
            return Err(Error::NotMappable { bytes: memory_bytes });
        }
        let mut slots = Vec::new();
        let mut offset = 0;
        for (slot, (guest_phys_addr, memory_size)) in (0..).zip(boot::ram_regions(memory_bytes)) {
            let userspace_addr = mapping.as_ptr() as u64 + offset;
            slots.push(kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr });
            offset += memory_size;
        }
        Ok(Self { mapping, slots })
    }

    /// Has the kernel establish every page of the mapping, so that neither KVM nor the guest faults on it later.
    pub(crate) fn populate(&self) -> Result<()> {
        self.mapping.populate().map_err(|source| Error::Populate { source })
    }

    /// Gives the memory to a VM.
    pub(crate) fn plug_into(&self, vm: &VmFd) -> Result<()> {
        for slot in &self.slots {
            // SAFETY: the range lies in `self.mapping`, which outlives the VM: `Vm` drops its `VmFd` first.
            unsafe { vm.set_user_memory_region(*slot) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
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

    /// The guest-physical regions: (address, bytes).
    pub(crate) fn regions(&self) -> impl Iterator<Item = (u64, u64)> {
        self.slots.iter().map(|slot| (slot.guest_phys_addr, slot.memory_size))
    }

    /// The memory by guest-physical address, for the loader and for devices.
    pub(crate) fn by_guest_address(&self) -> Result<GuestMemoryMmap> {
        let mut regions = Vec::new();
        for slot in &self.slots {
            let bytes =
                usize::try_from(slot.memory_size).map_err(|_| Error::NotMappable { bytes: slot.memory_size })?;
            let not_mappable = || Error::NotMappable { bytes: slot.memory_size };
            let host = slot.userspace_addr as *mut u8;
            // SAFETY: `host..host + bytes` lies in `self.mapping`; vm-memory does not unmap raw pointers, and the
            // result is used only while `self` lives.
            let region = unsafe {
                MmapRegionBuilder::new(bytes)
                    .with_raw_mmap_pointer(host)
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_SHARED)
                    .build()
            }
            .map_err(|_| not_mappable())?;
            regions.push(GuestRegionMmap::new(region, GuestAddress(slot.guest_phys_addr)).ok_or_else(not_mappable)?);
        }
        GuestMemoryMmap::from_regions(regions).map_err(|_| Error::NotMappable { bytes: self.mapping.len() as u64 })
    }
}
