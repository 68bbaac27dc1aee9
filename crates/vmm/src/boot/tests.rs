//! What the loader puts where, and what it refuses.

use super::{BootOptions, BootState, Error, ImageKind, LEAST_MEMORY, load, ram_regions};
use crate::boot::image::Image;
use nil_guest_abi::layout::{COMMAND_LINE, IMAGE, MEMORY_MAP, PAGE_TABLES, START_INFO};
use proptest::prelude::{any, proptest};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const GIB: u64 = 1 << 30;

fn options(memory_bytes: u64) -> BootOptions {
    BootOptions { memory_bytes, vcpus: 2, command_line: "mode=idle".into() }
}

/// Guest memory full of leftovers.
fn memory(bytes: u64) -> GuestMemoryMmap {
    let ranges: Vec<_> = ram_regions(bytes)
        .iter()
        .map(|&(start, bytes)| (GuestAddress(start), usize::try_from(bytes).expect("64 bits")))
        .collect();
    let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
    for page in (0..LEAST_MEMORY).step_by(4096) {
        memory.write_slice(&[0xAA; 4096], GuestAddress(page)).expect("RAM");
    }
    memory
}

fn word(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).expect("RAM")
}

fn refusal(image: &[u8]) -> Error {
    load(image, &memory(LEAST_MEMORY), &options(LEAST_MEMORY)).expect_err("it must be refused")
}

/// An ELF of one segment: 16 bytes of code at `IMAGE`, and 8192 bytes of memory.
#[derive(Clone)]
struct Elf(Vec<u8>);

impl Elf {
    const SEGMENT: usize = 64;
    const CODE: usize = 64 + 56;

    fn new() -> Self {
        let mut elf = Self(vec![0; Self::CODE + 16]);
        elf.0[..7].copy_from_slice(b"\x7FELF\x02\x01\x01");
        elf.set(16, &2u16.to_le_bytes()).set(18, &62u16.to_le_bytes()).set(24, &IMAGE.to_le_bytes());
        elf.set(32, &64u64.to_le_bytes()).set(54, &56u16.to_le_bytes()).set(56, &1u16.to_le_bytes());
        elf.set(Self::SEGMENT, &1u32.to_le_bytes()).set(Self::SEGMENT + 8, &(Self::CODE as u64).to_le_bytes());
        elf.place(IMAGE).set(Self::SEGMENT + 32, &16u64.to_le_bytes());
        elf.set(Self::SEGMENT + 40, &8192u64.to_le_bytes()).set(Self::CODE, &[0xC3; 16]);
        elf
    }

    fn set(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Moves the segment, with the entry.
    fn place(&mut self, address: u64) -> &mut Self {
        let bytes = address.to_le_bytes();
        self.set(24, &bytes).set(Self::SEGMENT + 16, &bytes).set(Self::SEGMENT + 24, &bytes)
    }

    /// Adds another segment of 8192 bytes without contents.
    fn and_at(&mut self, address: u64) -> &mut Self {
        let mut second = self.0[Self::SEGMENT..Self::SEGMENT + 56].to_vec();
        second[16..24].copy_from_slice(&address.to_le_bytes());
        second[24..32].copy_from_slice(&address.to_le_bytes());
        second[32..40].fill(0);
        self.0.splice(Self::SEGMENT + 56..Self::SEGMENT + 56, second);
        self.set(56, &2u16.to_le_bytes()).set(Self::SEGMENT + 8, &(Self::CODE as u64 + 56).to_le_bytes())
    }
}

fn boot(elf: &Elf, bytes: u64) -> (GuestMemoryMmap, BootState) {
    let memory = memory(bytes);
    let state = load(&elf.0, &memory, &options(bytes)).expect("a good image");
    (memory, state)
}

#[test]
fn an_elf_is_loaded_and_zeroed_behind_its_bytes() {
    let (memory, state) = boot(&Elf::new(), LEAST_MEMORY);
    assert_eq!(state.kind, ImageKind::Elf64);
    assert_eq!(word(&memory, IMAGE), 0xC3C3_C3C3_C3C3_C3C3);
    assert_eq!(word(&memory, IMAGE + 16), 0);
    assert_eq!(word(&memory, IMAGE + 8184), 0);
    assert_eq!(word(&memory, IMAGE + 8192), 0xAAAA_AAAA_AAAA_AAAA);
}

#[test]
fn each_vcpu_starts_at_the_entry_with_a_stack_of_its_own() {
    let (_, state) = boot(&Elf::new(), LEAST_MEMORY);
    let [first, second] = state.vcpus[..] else { panic!("two vCPUs") };
    assert_eq!((first.rip, first.rdi, first.rsi, first.rdx), (IMAGE, START_INFO, 0, 2));
    assert_eq!((second.rip, second.rsi), (IMAGE, 1));
    assert_eq!(second.rsp - first.rsp, 0x2000);
    assert_eq!(first.regs().rflags, 0x3002);
}

#[test]
fn a_flat_image_is_entered_at_its_first_byte() {
    let memory = memory(LEAST_MEMORY);
    let state = load(&[0x90; 100], &memory, &options(LEAST_MEMORY)).expect("a good image");
    assert_eq!((state.kind, state.vcpus[0].rip), (ImageKind::Flat, IMAGE));
    assert_eq!(word(&memory, IMAGE), 0x9090_9090_9090_9090);
}

#[test]
fn the_boot_information_tells_command_line_and_memory() {
    let (memory, _) = boot(&Elf::new(), LEAST_MEMORY);
    assert_eq!(word(&memory, START_INFO), 1 << 32 | 0x336E_C578);
    assert_eq!(word(&memory, START_INFO + 24), COMMAND_LINE);
    assert_eq!(word(&memory, START_INFO + 40), MEMORY_MAP);
    assert_eq!(word(&memory, START_INFO + 48), 1);
    assert_eq!((word(&memory, MEMORY_MAP), word(&memory, MEMORY_MAP + 8)), (0, LEAST_MEMORY));
    assert_eq!(word(&memory, COMMAND_LINE), u64::from_le_bytes(*b"mode=idl"));
    assert_eq!(word(&memory, COMMAND_LINE + 8), u64::from(b'e'));
}

/// Walks the page tables as the CPU does.
fn translate(memory: &GuestMemoryMmap, root: u64, address: u64) -> Option<u64> {
    let entry = |table: u64, shift: u32| word(memory, (table & !0xFFF) + (address >> shift & 511) * 8);
    let usable = |entry: u64| (entry & 7 == 7).then_some(entry);
    let pointers = usable(entry(root, 39))?;
    let directory = usable(entry(pointers, 30))?;
    let page = usable(entry(directory, 21))?;
    assert_eq!(page & 0x80, 0x80, "2 MiB pages");
    assert_eq!(page & 0x60, 0x60, "accessed and dirty already, so that no CPU writes here");
    Some(page & !0x1F_FFFF | address & 0x1F_FFFF)
}

#[test]
fn all_ram_is_mapped_one_to_one_and_the_hole_is_not() {
    let bytes = 5 * GIB;
    let (memory, state) = boot(&Elf::new(), bytes);
    let root = state.page_table_root;
    for address in [0, 0x1234, IMAGE, GIB, 3 * GIB - 1, 4 * GIB, 6 * GIB - 1] {
        assert_eq!(translate(&memory, root, address), Some(address), "{address:#x}");
    }
    for address in [3 * GIB, 4 * GIB - 1] {
        assert_eq!(translate(&memory, root, address), None, "{address:#x}");
    }
    assert_eq!(state.page_tables, PAGE_TABLES..PAGE_TABLES + 8 * 4096);
}

#[test]
fn ram_lies_as_in_qemus_pc() {
    assert_eq!(ram_regions(2 * GIB), [(0, 2 * GIB)]);
    assert_eq!(ram_regions(3 * GIB), [(0, 3 * GIB)]);
    assert_eq!(ram_regions(4 * GIB), [(0, 3 * GIB), (4 * GIB, GIB)]);
    assert_eq!(ram_regions(0), []);
}

#[test]
fn a_truncated_elf_is_refused() {
    let elf = Elf::new().0;
    for length in [5, 63, 64, 64 + 55, elf.len() - 1] {
        assert!(matches!(refusal(&elf[..length]), Error::Truncated { .. }), "{length}");
    }
    let far = Elf::new().set(Elf::SEGMENT + 8, &u64::MAX.to_le_bytes()).clone();
    assert!(matches!(refusal(&far.0), Error::Truncated { what: "segment", .. }));
    let far = Elf::new().set(32, &u64::MAX.to_le_bytes()).clone();
    assert!(matches!(refusal(&far.0), Error::Truncated { what: "program header", .. }));
}

#[test]
fn images_for_other_machines_are_refused() {
    assert!(matches!(refusal(&Elf::new().set(4, &[1]).0), Error::NotElf64));
    assert!(matches!(refusal(&Elf::new().set(5, &[2]).0), Error::BigEndian));
    let arm = refusal(&Elf::new().set(18, &183u16.to_le_bytes()).0);
    assert!(matches!(arm, Error::OtherMachine { machine: 183 }));
    assert_eq!(
        arm.to_string(),
        "the guest image is built for another CPU (ELF machine 183); nil boots x86_64 images (machine 62)"
    );
}

#[test]
fn images_that_need_more_than_a_cpu_are_refused() {
    assert!(matches!(refusal(&Elf::new().set(16, &3u16.to_le_bytes()).0), Error::NotExecutable { .. }));
    assert!(matches!(refusal(&Elf::new().set(Elf::SEGMENT, &3u32.to_le_bytes()).0), Error::Dynamic));
    assert!(matches!(refusal(&Elf::new().set(Elf::SEGMENT, &4u32.to_le_bytes()).0), Error::SegmentCount { found: 0 }));
    let kernel = Elf::new().set(Elf::SEGMENT + 16, &0xFFFF_FFFF_8100_0000u64.to_le_bytes()).clone();
    assert!(matches!(refusal(&kernel.0), Error::NotIdentity { .. }));
}

#[test]
fn a_linux_kernel_is_recognised_and_refused() {
    let mut image = vec![0; 4096];
    image[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    assert!(matches!(refusal(&image), Error::LinuxBzImage));
}

#[test]
fn an_image_goes_neither_into_low_memory_nor_beyond_ram() {
    assert!(matches!(refusal(&Elf::new().place(IMAGE - 4096).0), Error::ReservedAddress { .. }));
    assert!(matches!(refusal(&Elf::new().place(0).0), Error::ReservedAddress { address: 0 }));
    assert!(matches!(refusal(&Elf::new().place(LEAST_MEMORY - 4096).0), Error::OutsideRam { .. }));
    assert!(matches!(refusal(&Elf::new().place(u64::MAX - 100).0), Error::OutsideRam { .. }));
    let flat = vec![0x90; usize::try_from(LEAST_MEMORY).expect("64 bits")];
    assert!(matches!(refusal(&flat), Error::OutsideRam { .. }));
    assert!(matches!(refusal(&[]), Error::EmptyImage));
}

#[test]
fn segments_may_touch_but_not_overlap() {
    boot(Elf::new().and_at(IMAGE + 8192), LEAST_MEMORY);
    assert!(matches!(refusal(&Elf::new().and_at(IMAGE + 8191).0), Error::Overlap { .. }));
    assert!(matches!(refusal(&Elf::new().and_at(IMAGE).0), Error::Overlap { .. }));
}

#[test]
fn an_entry_outside_of_the_image_is_refused() {
    let elf = Elf::new().set(24, &(IMAGE + 8192).to_le_bytes()).clone();
    assert!(matches!(refusal(&elf.0), Error::EntryOutside { .. }));
}

#[test]
fn options_that_make_no_guest_are_refused() {
    let (image, memory) = (Elf::new().0, memory(LEAST_MEMORY));
    let with = |change: fn(&mut BootOptions)| {
        let mut options = options(LEAST_MEMORY);
        change(&mut options);
        load(&image, &memory, &options).expect_err("it must be refused")
    };
    assert!(matches!(with(|options| options.memory_bytes = 0), Error::TooLittleMemory { .. }));
    assert!(matches!(with(|options| options.memory_bytes += 1), Error::UnalignedMemory { .. }));
    assert!(matches!(with(|options| options.memory_bytes = 1 << 40), Error::TooMuchMemory { .. }));
    assert!(matches!(with(|options| options.vcpus = 0), Error::VcpuCount { .. }));
    assert!(matches!(with(|options| options.vcpus = 17), Error::VcpuCount { vcpus: 17, most: 16 }));
    assert!(matches!(with(|options| options.command_line = "x".repeat(4096)), Error::CommandLineTooLong { .. }));
    assert!(matches!(with(|options| options.command_line = "a\0b".into()), Error::CommandLineNul));
    assert!(matches!(with(|options| options.memory_bytes = 64 << 20), Error::MemoryMissing { .. }));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Image::parse(&bytes, &ram_regions(LEAST_MEMORY));
    }

    #[test]
    fn a_damaged_elf_never_panics_and_never_leaves_ram(at in 0usize..136, value: [u8; 8], more in any::<bool>()) {
        let mut elf = Elf::new();
        if more {
            elf.and_at(IMAGE + 8192);
        }
        let room = (elf.0.len() - at).min(8);
        elf.set(at, &value[..room]);
        let memory = memory(LEAST_MEMORY);
        if let Ok(state) = load(&elf.0, &memory, &options(LEAST_MEMORY)) {
            assert!((IMAGE..LEAST_MEMORY).contains(&state.vcpus[0].rip));
        }
    }
}
