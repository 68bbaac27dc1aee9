//! Guest-physical addresses and ports.
//!
//! ```text
//! 0x0000_0000  unused (the real-mode vectors and BIOS data under QEMU)
//! 0x0000_1000  GDT                                        \
//! 0x0000_2000  PVH start info, memory map                  | written by nil's loader; under QEMU the guest's own
//! 0x0000_3000  command line                                | entry stub and QEMU provide them
//! 0x0000_4000  prewarm stub                               /
//! 0x0001_0000  control block: header, then one block per vCPU
//! 0x0007_0000  one stack of 8 KiB per vCPU
//! 0x0009_0000  (BIOS area and ROM holes under QEMU; RAM that nobody uses under nil)
//! 0x0010_0000  page tables: PML4, PDPT, one page directory per GiB mapped
//! 0x0020_0000  the guest's image
//! image end, rounded up to 2 MiB …  memory under test
//! ```

/// Most vCPUs that a test guest can have.
pub const MAX_VCPUS: u32 = 16;

/// The global descriptor table.
pub const GDT: u64 = 0x1000;
/// The PVH `hvm_start_info`; the memory map follows in the same page.
pub const START_INFO: u64 = 0x2000;
/// The memory map entries that the start info refers to.
pub const MEMORY_MAP: u64 = 0x2100;
/// The command line, NUL-terminated.
pub const COMMAND_LINE: u64 = 0x3000;
/// Most bytes of a command line, with its NUL.
pub const COMMAND_LINE_BYTES: u64 = 0x1000;
/// The stub that a spare vCPU runs to bring a target's second-level page tables into being.
pub const PREWARM_STUB: u64 = 0x4000;

/// The control block, as an offset into a mapping of guest memory.
pub const CONTROL_OFFSET: usize = 0x1_0000;
/// The control block.
pub const CONTROL: u64 = CONTROL_OFFSET as u64;

/// The lowest stack; vCPU `i` starts with RSP = `STACKS + (i + 1) * STACK_BYTES`.
pub const STACKS: u64 = 0x7_0000;
/// Bytes per vCPU's stack.
pub const STACK_BYTES: u64 = 0x2000;

/// The page tables: PML4, PDPT, page directories.
pub const PAGE_TABLES: u64 = 0x10_0000;
/// Where the page tables end at the latest.
pub const PAGE_TABLES_END: u64 = 0x20_0000;

/// GiB that the page tables can map from address 0: one page directory each.
pub const MAPPED_GIB: u64 = (PAGE_TABLES_END - PAGE_TABLES) / 4096 - 2;

/// The lowest address that an image may occupy; flat images are loaded and entered here.
pub const IMAGE: u64 = PAGE_TABLES_END;

/// Where RAM stops below 4 GiB; the rest of it starts at [`HIGH_RAM`], as in QEMU's `pc` machine.
pub const LOW_RAM_END: u64 = 3 << 30;
/// Where the RAM that does not fit below [`LOW_RAM_END`] starts.
pub const HIGH_RAM: u64 = 4 << 30;

/// First serial port: the guest's one line of greeting goes there.
pub const SERIAL_PORT: u16 = 0x3F8;
/// A guest that has ended writes one of the `EXIT_…` codes to this port, again and again.
pub const EXIT_PORT: u16 = 0xF4;
/// It was told to stop, and every vCPU has.
pub const EXIT_STOPPED: u8 = 0;
/// It was refused; see [`GuestState::Refused`](crate::GuestState::Refused).
pub const EXIT_REFUSED: u8 = 1;
/// It found a bug in itself.
pub const EXIT_PANICKED: u8 = 2;
/// A guest that has nothing to do for a while writes here, as one 32-bit word, for how many microseconds; at most
/// [`LONGEST_REST_US`]. Its vCPU takes no processor meanwhile, and goes on earlier when its host wants something of it.
/// (Code at CPL 3 cannot halt.)
pub const REST_PORT: u16 = 0xF6;
/// The longest rest, in microseconds; a longer one is cut short.
pub const LONGEST_REST_US: u32 = 1_000_000;
/// The prewarm stub writes here when it has read everything it was told to.
pub const PREWARM_PORT: u16 = 0xF5;

/// Selector of the 64-bit user code segment, with RPL 3.
pub const USER_CODE: u16 = 0x10 | 3;
/// Selector of the user data and stack segment, with RPL 3.
pub const USER_DATA: u16 = 0x18 | 3;

/// The ELF note that gives the 32-bit entry of a PVH image (`XEN_ELFNOTE_PHYS32_ENTRY`, Xen public/elfnote.h).
pub const PVH_NOTE_TYPE: u32 = 18;

const _: () = {
    assert!(CONTROL + size_of::<crate::ControlBlock>() as u64 <= STACKS);
    assert!(STACKS + MAX_VCPUS as u64 * STACK_BYTES <= 0x9_0000);
    assert!(COMMAND_LINE + COMMAND_LINE_BYTES <= PREWARM_STUB);
};
