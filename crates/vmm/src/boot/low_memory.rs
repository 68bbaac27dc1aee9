//! What the loader puts below 2 MiB: GDT, boot information, prewarm stub, page tables.

use crate::boot::image::{write, zero};
use crate::boot::{BootOptions, Error, Result, ram_regions};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_start_info,
};
use nil_guest_abi::layout::{
    COMMAND_LINE, COMMAND_LINE_BYTES, GDT, IMAGE, MEMORY_MAP, PAGE_TABLES, PREWARM_PORT, PREWARM_STUB, START_INFO,
};
use std::ops::Range;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Present, writable, user, accessed.
const TABLE: u64 = 0x27;
/// Present, writable, user, accessed, dirty, 2 MiB.
const LARGE_PAGE: u64 = 0xE7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const TABLE_BYTES: u64 = 4096;

/// The descriptors behind the selectors of [`nil_guest_abi::layout`]. Nothing loads them while a guest keeps to its
/// segments; a guest that reloads one finds the same.
const DESCRIPTORS: [u64; 4] = [
    0,
    0,
    0x00AF_FB00_0000_FFFF, // user code, 64-bit
    0x00CF_F300_0000_FFFF, // user data
];
/// Limit of the GDT.
pub(crate) const GDT_LIMIT: u16 = 4 * 8 - 1;

/// RBX = first byte, RCX = end. Reads one byte of each page, then writes to the prewarm port for ever.
const PREWARM_CODE: [u8; 20] = [
    0x48, 0x39, 0xCB, // next: cmp rbx, rcx
    0x73, 0x0B, //        jae done
    0x8A, 0x03, //        mov al, [rbx]
    0x48, 0x81, 0xC3, 0x00, 0x10, 0x00, 0x00, //  add rbx, 4096
    0xEB, 0xF0, //        jmp next
    0xE6, 0xF5, //        done: out 0xF5, al
    0xEB, 0xFC, //        jmp done
];
const _: () = assert!(PREWARM_PORT == PREWARM_CODE[17] as u16);

/// Low memory as the loader has left it.
pub(crate) struct LowMemory {
    pub(crate) page_tables: Range<u64>,
}

impl LowMemory {
    /// Zeroes everything below the image and writes what a guest finds there.
    pub(crate) fn write(memory: &GuestMemoryMmap, options: &BootOptions) -> Result<Self> {
        let ram = ram_regions(options.memory_bytes);
        zero(memory, 0, IMAGE)?;
        write(memory, GDT, &le_bytes(&DESCRIPTORS))?;
        write(memory, PREWARM_STUB, &PREWARM_CODE)?;
        write_command_line(memory, &options.command_line)?;
        write_start_info(memory, &ram)?;
        Ok(Self { page_tables: write_page_tables(memory, &ram)? })
    }
}

fn write_command_line(memory: &GuestMemoryMmap, line: &str) -> Result<()> {
    if line.len() as u64 >= COMMAND_LINE_BYTES {
        return Err(Error::CommandLineTooLong { bytes: line.len() });
    }
    if line.contains('\0') {
        return Err(Error::CommandLineNul);
    }
    // Low memory is zero: the NUL behind it stands there already.
    write(memory, COMMAND_LINE, line.as_bytes())
}

fn write_start_info(memory: &GuestMemoryMmap, ram: &[(u64, u64)]) -> Result<()> {
    let entry =
        |&(addr, size): &(u64, u64)| hvm_memmap_table_entry { addr, size, type_: XEN_HVM_MEMMAP_TYPE_RAM, reserved: 0 };
    let map: Vec<_> = ram.iter().map(entry).collect();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|_| Error::Memory {
        address: START_INFO,
        source: vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(START_INFO)),
    })
}

/// Maps all RAM one to one. One page directory per GiB from address 0; entries in the hole below 4 GiB stay empty.
fn write_page_tables(memory: &GuestMemoryMmap, ram: &[(u64, u64)]) -> Result<Range<u64>> {
    let (root, pointers, directories) = (PAGE_TABLES, PAGE_TABLES + TABLE_BYTES, PAGE_TABLES + 2 * TABLE_BYTES);
    let end = ram.iter().map(|(start, bytes)| start + bytes).max().unwrap_or(0);
    write(memory, root, &(pointers | TABLE).to_le_bytes())?;
    let gibibytes = end.div_ceil(GIB);
    for gib in 0..gibibytes {
        let directory = directories + gib * TABLE_BYTES;
        write(memory, pointers + gib * 8, &(directory | TABLE).to_le_bytes())?;
        let entries: Vec<u64> = (0..512).map(|index| large_page(gib * GIB + index * LARGE_PAGE_BYTES, ram)).collect();
        write(memory, directory, &le_bytes(&entries))?;
    }
    Ok(root..directories + gibibytes * TABLE_BYTES)
}

/// The page directory entry for the 2 MiB at `address`: empty where there is no RAM.
fn large_page(address: u64, ram: &[(u64, u64)]) -> u64 {
    let is_ram = ram.iter().any(|&(start, bytes)| address >= start && address < start + bytes);
    if is_ram { address | LARGE_PAGE } else { 0 }
}

fn le_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
