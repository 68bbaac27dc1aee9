//! The PVH boot information, as a guest reads it.
//!
//! Source: Xen `public/arch-x86/hvm/start_info.h`, version 1. Plain numbers, little-endian; [`StartInfo`] is what RDI
//! points to at the 64-bit entry, and what EBX points to at the PVH entry.

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336E_C578;
/// Memory map type of usable RAM.
pub const MEMORY_RAM: u32 = 1;

/// `struct hvm_start_info`, version 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartInfo {
    /// [`MAGIC`].
    pub magic: u32,
    /// 1 when the memory map is there.
    pub version: u32,
    /// SIF flags.
    pub flags: u32,
    /// Number of modules.
    pub modules: u32,
    /// Address of the module list.
    pub modules_address: u64,
    /// Address of the NUL-terminated command line, or 0.
    pub command_line: u64,
    /// Address of the ACPI RSDP, or 0.
    pub rsdp: u64,
    /// Address of the memory map.
    pub memory_map: u64,
    /// Number of entries of the memory map.
    pub memory_map_entries: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// Guest-physical start.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
    /// [`MEMORY_RAM`] or another type of the E820 numbering.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<StartInfo>() == 56);
    assert!(core::mem::offset_of!(StartInfo, command_line) == 24);
    assert!(core::mem::offset_of!(StartInfo, memory_map) == 40);
    assert!(size_of::<MemoryMapEntry>() == 24);
};
