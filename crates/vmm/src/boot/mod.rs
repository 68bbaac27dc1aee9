//! From an image to a guest that can take its first step.
//!
//! The loader puts an image into guest memory, with the little that it needs to run, and says where each vCPU starts:
//!
//! ```text
//! mode          64-bit, CPL 3, IOPL 3, interrupts off; paging on, identity map of all RAM in 2 MiB pages, user-accessible
//! RIP           the entry point of the ELF; of a flat image its first byte, at 2 MiB
//! RDI           the PVH hvm_start_info: memory map, command line
//! RSI, RDX      index of this vCPU, number of vCPUs
//! RSP           the top of a stack of 8 KiB of its own
//! ```
//!
//! Where everything lies is [`nil_guest_abi::layout`]'s business. Below 2 MiB all is the loader's: it is zeroed, and no
//! image may be loaded there. The page tables have their accessed and dirty bits set, so that no CPU ever writes to them:
//! they are the same on every host that maps them.
//!
//! A guest runs at CPL 3 because that is native everywhere: on VT-x and SVM, and on a KVM that has neither and emulates
//! whatever runs at CPL 0. The Linux boot protocol is a kind of image of its own ([`ImageKind::LinuxBzImage`]), which is
//! refused today.

mod elf;
mod error;
mod image;
mod low_memory;
mod registers;

pub use error::Error;
pub use image::ImageKind;
pub use nil_guest_abi::layout::PREWARM_PORT;
pub use registers::{EntryState, RFLAGS, user_mode_64};

use image::Image;
use low_memory::LowMemory;
use nil_guest_abi::MAX_VCPUS;
use nil_guest_abi::layout::{HIGH_RAM, LOW_RAM_END, MAPPED_GIB, PAGE_TABLES, PREWARM_STUB};
use std::ops::Range;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Result<T, E = Error> = std::result::Result<T, E>;

/// Memory comes in units of this many bytes.
const PAGE: u64 = 4096;
/// Least memory of a guest: the loader's 2 MiB and 2 MiB for an image.
const LEAST_MEMORY: u64 = 4 << 20;

/// What to boot an image with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootOptions {
    /// Bytes of guest memory, a multiple of 4 KiB.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The guest's command line.
    pub command_line: String,
}

/// A loaded image: how to start it, and what else the VMM should know of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootState {
    /// What kind of image it was.
    pub kind: ImageKind,
    /// One entry per vCPU.
    pub vcpus: Vec<EntryState>,
    /// Guest-physical address of the top-level page table.
    pub page_table_root: u64,
    /// Where the page tables lie.
    pub page_tables: Range<u64>,
    /// The guest does not change its page tables.
    pub static_page_tables: bool,
    /// Code that reads one byte of each page from RBX up to RCX and then writes to [`PREWARM_PORT`].
    pub prewarm_stub: Option<GuestAddress>,
}

/// The guest-physical regions of RAM, as (address, bytes): up to 3 GiB from address 0, the rest from 4 GiB.
#[must_use]
pub fn ram_regions(memory_bytes: u64) -> Vec<(u64, u64)> {
    let low = memory_bytes.min(LOW_RAM_END);
    let high = memory_bytes - low;
    [(0, low), (HIGH_RAM, high)].into_iter().filter(|(_, bytes)| *bytes != 0).collect()
}

/// Puts `image` into `memory`, which must hold the [`ram_regions`] of `options.memory_bytes`.
///
/// # Errors
/// Says what is wrong with the image or the options. The memory below 2 MiB, and where the image goes, may then have been
/// written.
pub fn load(image: &[u8], memory: &GuestMemoryMmap, options: &BootOptions) -> Result<BootState> {
    check(options)?;
    let ram = ram_regions(options.memory_bytes);
    for &(address, bytes) in &ram {
        let is_there = usize::try_from(bytes).is_ok_and(|bytes| memory.check_range(GuestAddress(address), bytes));
        if !is_there {
            return Err(Error::MemoryMissing { address, bytes });
        }
    }
    let image = Image::parse(image, &ram)?;
    let low = LowMemory::write(memory, options)?;
    image.write(memory)?;
    let vcpus = (0..options.vcpus).map(|index| EntryState::new(image.entry, index, options.vcpus)).collect();
    Ok(BootState {
        kind: image.kind,
        vcpus,
        page_table_root: PAGE_TABLES,
        page_tables: low.page_tables,
        static_page_tables: true,
        prewarm_stub: Some(GuestAddress(PREWARM_STUB)),
    })
}

fn check(options: &BootOptions) -> Result<()> {
    let bytes = options.memory_bytes;
    if !bytes.is_multiple_of(PAGE) {
        return Err(Error::UnalignedMemory { bytes });
    }
    if bytes < LEAST_MEMORY {
        return Err(Error::TooLittleMemory { bytes, least: LEAST_MEMORY });
    }
    let most = (MAPPED_GIB << 30) - (HIGH_RAM - LOW_RAM_END);
    if bytes > most {
        return Err(Error::TooMuchMemory { bytes, most });
    }
    if options.vcpus == 0 || options.vcpus > MAX_VCPUS {
        return Err(Error::VcpuCount { vcpus: options.vcpus, most: MAX_VCPUS });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
