//! Any bytes as a guest image: loaded within RAM or refused, never a panic.
//!
//! Half of the inputs are images as they are. The other half are laid over a good ELF by exclusive or, so that the headers
//! behind the first few checks are reached too.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_vmm::boot::{BootOptions, load};
use std::sync::LazyLock;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 4 << 20;
const IMAGE: u64 = 2 << 20;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

static RAM: LazyLock<GuestMemoryMmap> = LazyLock::new(|| {
    let bytes = usize::try_from(MEMORY).expect("64 bits");
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).expect("4 MiB can be mapped")
});

fuzz_target!(|input: &[u8]| {
    let image = match input.split_first() {
        Some((1, difference)) => good_elf_but_for(difference),
        _ => input.to_vec(),
    };
    let options = BootOptions { memory_bytes: MEMORY, vcpus: 1, command_line: String::new() };
    if let Ok(state) = load(&image, &RAM, &options) {
        assert!((IMAGE..MEMORY).contains(&state.vcpus[0].rip));
    }
});

/// An ELF of two segments, 4 KiB at 2 MiB and the next 4 KiB, with these bytes laid over it.
fn good_elf_but_for(difference: &[u8]) -> Vec<u8> {
    let mut elf = vec![0; HEADER + 2 * PROGRAM_HEADER + 64];
    elf[..7].copy_from_slice(b"\x7FELF\x02\x01\x01");
    put(&mut elf, 16, &[2, 0, 62, 0]);
    put(&mut elf, 24, &IMAGE.to_le_bytes());
    put(&mut elf, 32, &(HEADER as u64).to_le_bytes());
    put(&mut elf, 54, &[56, 0, 2, 0]);
    for (at, address) in [(HEADER, IMAGE), (HEADER + PROGRAM_HEADER, IMAGE + 4096)] {
        let words = [(HEADER + 2 * PROGRAM_HEADER) as u64, address, address, 64, 4096];
        put(&mut elf, at, &[1]);
        for (index, word) in words.iter().enumerate() {
            put(&mut elf, at + 8 * (index + 1), &word.to_le_bytes());
        }
    }
    elf.iter_mut().zip(difference).for_each(|(byte, difference)| *byte ^= difference);
    elf
}

fn put(elf: &mut [u8], at: usize, bytes: &[u8]) {
    elf[at..at + bytes.len()].copy_from_slice(bytes);
}
