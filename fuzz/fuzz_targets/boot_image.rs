//! Any bytes as a guest image: loaded within RAM or refused, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_vmm::boot::{BootOptions, load};
use std::sync::LazyLock;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 4 << 20;

static RAM: LazyLock<GuestMemoryMmap> =
    LazyLock::new(|| GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("4 MiB can be mapped"));

fuzz_target!(|image: &[u8]| {
    let options = BootOptions { memory_bytes: MEMORY as u64, vcpus: 1, command_line: String::new() };
    if let Ok(state) = load(image, &RAM, &options) {
        assert!((2 << 20..MEMORY as u64).contains(&state.vcpus[0].rip));
    }
});
