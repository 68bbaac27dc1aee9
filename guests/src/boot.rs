//! From the entry to a control block that the host can read.

use crate::cpu::Features;
use crate::serial::Serial;
use core::fmt::Write;
use core::sync::atomic::Ordering;
use nil_guest_abi::control::{FEATURE_AVX, FEATURE_FSGSBASE, MAGIC, VERSION};
use nil_guest_abi::layout::{COMMAND_LINE_BYTES, MAPPED_GIB, MAX_VCPUS};
use nil_guest_abi::page::PAGE_BYTES;
use nil_guest_abi::start_info::{self, MemoryMapEntry, StartInfo};
use nil_guest_abi::{ControlBlock, GuestState, Mode, Options, Program};

/// What the entry code hands over.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Address of the PVH start info.
    pub start_info: u64,
    /// This vCPU.
    pub index: u64,
    /// How many there are.
    pub vcpus: u64,
}

/// What a vCPU knows when it starts to work.
pub struct Guest {
    /// This vCPU.
    pub index: usize,
    /// How many there are.
    pub vcpus: usize,
    /// From the command line.
    pub options: Options,
    /// What this vCPU can do.
    pub features: Features,
    /// Memory under test, as (first byte, bytes).
    pub ranges: [(u64, u64); 2],
}

/// Why a guest does not start.
enum Refusal {
    /// A start info without the magic number.
    StartInfo,
    /// More vCPUs than the control block has places.
    Vcpus,
    /// A word of the command line, at this byte.
    Option(usize),
}

unsafe extern "C" {
    /// Behind the image (link.ld).
    static image_end: u8;
}

/// The control block.
#[must_use]
pub fn control() -> &'static ControlBlock {
    // SAFETY: guest memory is mapped one to one for as long as the guest lives, so its address 0 is guest-physical 0; no
    // code of this guest touches the block but through its atomics.
    unsafe { ControlBlock::in_memory(core::ptr::null()) }
}

/// Sets up this vCPU; vCPU 0 sets up the control block before the others go on. `None`: the guest was refused, and the
/// control block says why.
#[must_use]
pub fn boot(program: Program, entry: Entry) -> Option<Guest> {
    let features = Features::detect();
    let guest = read(entry, features);
    if entry.index == 0 {
        introduce(program, entry, &guest);
    }
    while !control().is_ready() {
        core::hint::spin_loop();
    }
    guest.ok()
}

/// Reads what the loader left for this vCPU.
fn read(entry: Entry, features: Features) -> Result<Guest, Refusal> {
    let index = usize::try_from(entry.index).map_err(|_| Refusal::Vcpus)?;
    let vcpus = usize::try_from(entry.vcpus).map_err(|_| Refusal::Vcpus)?;
    if vcpus == 0 || vcpus > MAX_VCPUS as usize || index >= vcpus {
        return Err(Refusal::Vcpus);
    }
    // SAFETY: the loader passes the address of a start info; it is read once, and checked before it is believed.
    let info = unsafe { (entry.start_info as *const StartInfo).read_unaligned() };
    if info.magic != start_info::MAGIC || info.version == 0 {
        return Err(Refusal::StartInfo);
    }
    let options = Options::parse(command_line(&info)).map_err(|bad| Refusal::Option(bad.at()))?;
    Ok(Guest { index, vcpus, options, features, ranges: under_test(&info, options.memory) })
}

fn command_line(info: &StartInfo) -> &'static [u8] {
    if info.command_line == 0 {
        return &[];
    }
    let line = info.command_line as *const u8;
    let mut bytes = 0;
    // SAFETY: a NUL-terminated string that the loader placed (start_info.h); reading stops at the longest one allowed.
    while bytes < COMMAND_LINE_BYTES as usize && unsafe { line.add(bytes).read() } != 0 {
        bytes += 1;
    }
    // SAFETY: these bytes were just read, lie below the image and are never written again.
    unsafe { core::slice::from_raw_parts(line, bytes) }
}

/// RAM behind the image: the first two ranges of the memory map that have any, cut down to `limit` bytes if it is not 0.
fn under_test(info: &StartInfo, limit: u64) -> [(u64, u64); 2] {
    let begin = (&raw const image_end as u64).next_multiple_of(2 << 20);
    let mut left = if limit == 0 { u64::MAX } else { limit };
    let mut ranges = [(0, 0); 2];
    let mut found = 0;
    for index in 0..info.memory_map_entries as usize {
        let entry = (info.memory_map as *const MemoryMapEntry).wrapping_add(index);
        // SAFETY: the start info gives the address of this many entries.
        let entry = unsafe { entry.read_unaligned() };
        let start = entry.address.max(begin).next_multiple_of(PAGE_BYTES);
        let end = entry.address.saturating_add(entry.bytes).min(MAPPED_GIB << 30);
        let bytes = end.saturating_sub(start).min(left) / PAGE_BYTES * PAGE_BYTES;
        if entry.kind == start_info::MEMORY_RAM && bytes != 0 && found < ranges.len() {
            ranges[found] = (start, bytes);
            found += 1;
            left -= bytes;
        }
    }
    ranges
}

/// Fills the control block's header in and says hello.
fn introduce(program: Program, entry: Entry, guest: &Result<Guest, Refusal>) {
    let control = control();
    control.vcpus.store(entry.vcpus.min(u64::from(MAX_VCPUS)) as u32, Ordering::Relaxed);
    control.program.store(program as u32, Ordering::Relaxed);
    match guest {
        Ok(guest) => describe(control, program, guest),
        Err(refusal) => refuse(control, program, refusal),
    }
    control.version.store(VERSION, Ordering::Relaxed);
    control.magic.store(MAGIC, Ordering::Release);
}

fn describe(control: &ControlBlock, program: Program, guest: &Guest) {
    let Guest { options, features, .. } = guest;
    let bytes = guest.ranges.iter().map(|range| range.1).sum::<u64>();
    let workset = match (options.mode, options.workset) {
        (Mode::Idle, _) => 0,
        (Mode::Hot | Mode::Stores, 0) => bytes,
        (Mode::Hot | Mode::Stores, workset) => workset.min(bytes),
    };
    control.mode.store(options.mode as u32, Ordering::Relaxed);
    let avx = if features.avx { FEATURE_AVX } else { 0 };
    let fsgsbase = if features.fsgsbase { FEATURE_FSGSBASE } else { 0 };
    control.features.store(avx | fsgsbase, Ordering::Relaxed);
    control.tsc_khz.store(options.tsc_khz, Ordering::Relaxed);
    control.threshold.store(options.effective_threshold(), Ordering::Relaxed);
    for (range, (start, bytes)) in control.ranges.iter().zip(guest.ranges) {
        range.start.store(start, Ordering::Relaxed);
        range.bytes.store(bytes, Ordering::Relaxed);
    }
    control.workset.store(workset, Ordering::Relaxed);
    control.state.store(GuestState::Filling as u32, Ordering::Relaxed);
    // The serial port never fails.
    let _ = writeln!(
        Serial,
        "nil guest {}: {} vCPUs, {} MiB under test, {} MiB of them hot, gaps above {} cycles, avx {}, fsgsbase {}",
        program.name(),
        guest.vcpus,
        bytes >> 20,
        workset >> 20,
        options.effective_threshold(),
        features.avx,
        features.fsgsbase,
    );
}

fn refuse(control: &ControlBlock, program: Program, refusal: &Refusal) {
    let at = if let Refusal::Option(at) = refusal { *at as u64 } else { 0 };
    control.refused_at.store(at, Ordering::Relaxed);
    control.state.store(GuestState::Refused as u32, Ordering::Relaxed);
    // The serial port never fails.
    let _ = match refusal {
        Refusal::StartInfo => writeln!(Serial, "nil guest {}: refused: RDI is no PVH start info", program.name()),
        Refusal::Vcpus => writeln!(Serial, "nil guest {}: refused: it runs on 1 to {MAX_VCPUS} vCPUs", program.name()),
        Refusal::Option(at) => {
            writeln!(Serial, "nil guest {}: refused: the option at byte {at} of its command line", program.name())
        }
    };
}
