//! Why an image is not booted.

use crate::boot::image::SEGMENTS;
use nil_guest_abi::layout::{COMMAND_LINE_BYTES, IMAGE};

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing there.
    #[error("the guest image is empty; give a static 64-bit ELF or a flat 64-bit image")]
    EmptyImage,
    /// An ELF file ends before something that its headers announce.
    #[error("the guest image is truncated: its {what} should end at byte {end}, and it has only {len} bytes")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// The length of the image.
        len: u64,
    },
    /// An ELF file of 32 bits.
    #[error("the guest image is a 32-bit ELF; nil boots 64-bit images (x86_64)")]
    NotElf64,
    /// An ELF file for another machine.
    #[error("the guest image is built for another CPU (ELF machine {machine}); nil boots x86_64 images (machine 62)")]
    OtherMachine {
        /// `e_machine`.
        machine: u16,
    },
    /// An ELF file of the wrong endianness.
    #[error("the guest image is a big-endian ELF; x86_64 is little-endian")]
    BigEndian,
    /// A relocatable, position-independent or core file.
    #[error("the guest image is {what}; link it statically at a fixed address (-static -no-pie)")]
    NotExecutable {
        /// What it is.
        what: &'static str,
    },
    /// It wants a dynamic linker.
    #[error("the guest image asks for a dynamic linker, and a guest has none; link it statically (-static)")]
    Dynamic,
    /// The program headers have an unknown size.
    #[error("the guest image is damaged: its ELF program headers are {found} bytes each instead of 56")]
    ProgramHeaderSize {
        /// `e_phentsize`.
        found: u16,
    },
    /// There is nothing to load, or too much.
    #[error("the guest image has {found} segments to load; nil takes 1 to {SEGMENTS}")]
    SegmentCount {
        /// How many.
        found: usize,
    },
    /// More bytes in the file than in memory.
    #[error(
        "the guest image is damaged: its segment at {address:#x} holds {file} bytes in the file but {memory} in memory"
    )]
    SegmentSize {
        /// Physical address of the segment.
        address: u64,
        /// `p_filesz`.
        file: u64,
        /// `p_memsz`.
        memory: u64,
    },
    /// Linked at other addresses than it is loaded at.
    #[error(
        "the guest image is linked at {virtual_address:#x} but loaded at {address:#x}, and guests run on an identity map; \
         is it a kernel? nil does not boot kernels yet"
    )]
    NotIdentity {
        /// `p_vaddr`.
        virtual_address: u64,
        /// `p_paddr`.
        address: u64,
    },
    /// A segment would overwrite what the loader puts into low memory.
    #[error("the guest image has a segment at {address:#x}; memory below {IMAGE:#x} is the loader's, link it higher")]
    ReservedAddress {
        /// Where the segment starts.
        address: u64,
    },
    /// A segment lies outside of RAM.
    #[error(
        "the guest image does not fit: its segment of {bytes} bytes at {address:#x} lies outside the guest's RAM; \
         give the guest more memory"
    )]
    OutsideRam {
        /// Where the segment starts.
        address: u64,
        /// Its bytes in memory.
        bytes: u64,
    },
    /// Two segments overlap.
    #[error("the guest image is damaged: its segments at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Where one starts.
        first: u64,
        /// Where the other starts.
        second: u64,
    },
    /// The entry point is in no segment.
    #[error("the guest image is damaged: its entry point {entry:#x} lies in none of its segments")]
    EntryOutside {
        /// `e_entry`.
        entry: u64,
    },
    /// A Linux kernel.
    #[error("the guest image is a Linux kernel (bzImage); nil does not speak the Linux boot protocol yet")]
    LinuxBzImage,
    /// Memory is not a multiple of a page.
    #[error("a guest cannot have {bytes} bytes of memory: it must be a multiple of 4 KiB")]
    UnalignedMemory {
        /// Asked for.
        bytes: u64,
    },
    /// Too little memory.
    #[error("a guest cannot have {bytes} bytes of memory: it needs at least {least}")]
    TooLittleMemory {
        /// Asked for.
        bytes: u64,
        /// The least possible.
        least: u64,
    },
    /// Too much memory.
    #[error("a guest cannot have {bytes} bytes of memory: its boot page tables map at most {most}")]
    TooMuchMemory {
        /// Asked for.
        bytes: u64,
        /// The most possible.
        most: u64,
    },
    /// Too many vCPUs, or none.
    #[error("a guest cannot have {vcpus} vCPUs: it takes 1 to {most}")]
    VcpuCount {
        /// Asked for.
        vcpus: u32,
        /// The most possible.
        most: u32,
    },
    /// The command line is too long.
    #[error("the guest's command line has {bytes} bytes; at most {} fit", COMMAND_LINE_BYTES - 1)]
    CommandLineTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A NUL byte would end the command line early.
    #[error("the guest's command line contains a NUL byte")]
    CommandLineNul,
    /// The memory given is less than the options say.
    #[error("the guest's memory was not prepared: {bytes} bytes at {address:#x} are not all there")]
    MemoryMissing {
        /// Where they should start.
        address: u64,
        /// How many there should be.
        bytes: u64,
    },
    /// Guest memory cannot be written.
    #[error("the guest's memory cannot be written at {address:#x}: {source}")]
    Memory {
        /// Where.
        address: u64,
        /// Why not.
        source: vm_memory::GuestMemoryError,
    },
}
