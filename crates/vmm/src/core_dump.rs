//! A guest's memory and last state as an ELF core file, for gdb and crash.
//!
//! ```text
//! ELF header · program headers · notes: for each vCPU NT_PRSTATUS ("CORE") and its control registers ("QEMU") · memory
//! ```
//!
//! Memory is laid out by guest-physical address. What is not in the pool (it died with its host's DRAM) is a segment
//! without contents. The vCPUs are those of the newest state that lies whole in the pool: of the last landing, the last freeze, or
//! a checkpoint that was brought back.
//!
//! The formats: `elf(5)`; `struct elf_prstatus` (linux/elfcore.h); `QEMUCPUState` (QEMU, target/i386/arch_dump.c), which crash reads.

use crate::error::{Error, Result};
use crate::state::{Kind, find, parse};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use nil_pool::{Area, Epoch, GRANULE, GuestControl, Place, StateArea, decode_any_epoch};
use serde::Serialize;
use std::io::{self, Write};

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const PRSTATUS_BYTES: usize = 336;
const PRSTATUS_REGS: usize = 112;
const QEMU_BYTES: usize = 440;
/// Where memory begins in the file: at pages.
const PAGE: u64 = 4096;

/// What a core file has of a guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CoreReport {
    /// Bytes of memory in it.
    pub memory_bytes: u64,
    /// Bytes of memory that are gone.
    pub missing_bytes: u64,
    /// vCPUs in it.
    pub vcpus: usize,
    /// The epoch of the guest's ownership from which their state is; `None` when none is left.
    pub state_epoch: Option<u32>,
}

/// Consecutive granules that are all there, or all gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segment {
    guest_address: u64,
    /// Where in the guest's memory.
    offset: u64,
    bytes: u64,
    present: bool,
}

/// Writes a core file of a guest that nobody runs.
///
/// # Errors
/// The guest's memory or state cannot be mapped; `out` takes no more.
pub fn write_core(control: &GuestControl, out: &mut impl Write) -> Result<CoreReport> {
    let state = control.map_state()?;
    let segments = segments(control, &state)?;
    let (epoch, vcpus) = vcpus(&state)?;
    let mut notes = Vec::new();
    for (index, (regs, sregs)) in vcpus.iter().enumerate() {
        note(&mut notes, "CORE", NT_PRSTATUS, &prstatus(index, regs, sregs));
    }
    for (regs, sregs) in &vcpus {
        note(&mut notes, "QEMU", 0, &qemu_state(regs, sregs));
    }
    let core = layout(&segments, &notes);
    out.write_all(&core).map_err(wrote)?;
    let present = segments.iter().filter(|segment| segment.present);
    if segments.iter().any(|segment| segment.present) {
        let memory = control.map_memory()?;
        let mut granule = vec![0; usize::try_from(GRANULE).unwrap_or(usize::MAX)];
        for segment in present.clone() {
            for offset in (segment.offset..segment.offset + segment.bytes).step_by(granule.len()) {
                memory.read_at(usize::try_from(offset).unwrap_or(usize::MAX), &mut granule);
                if memory.is_lost() {
                    return Err(nil_pool::Error::Lost { path: control.pool().path().to_owned() }.into());
                }
                out.write_all(&granule).map_err(wrote)?;
            }
        }
    }
    let memory_bytes = present.map(|segment| segment.bytes).sum();
    let all: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let state_epoch = epoch.map(|epoch| epoch.0);
    Ok(CoreReport { memory_bytes, missing_bytes: all - memory_bytes, vcpus: vcpus.len(), state_epoch })
}

fn wrote(source: io::Error) -> Error {
    Error::Core { source }
}

fn segments(control: &GuestControl, state: &StateArea) -> Result<Vec<Segment>> {
    let map = state.placement();
    let (mut segments, mut offset): (Vec<Segment>, u64) = (Vec::new(), 0);
    for region in control.placement()? {
        for within in (0..region.bytes / GRANULE).map(|granule| granule * GRANULE) {
            let index = usize::try_from(offset / GRANULE).unwrap_or(usize::MAX);
            let present = control.is_placed() && map.get(index).is_ok_and(|placed| placed.place == Place::Pooled);
            let guest_address = region.guest_address + within;
            match segments.last_mut() {
                Some(last) if last.present == present && last.guest_address + last.bytes == guest_address => {
                    last.bytes += GRANULE;
                }
                _ => segments.push(Segment { guest_address, offset, bytes: GRANULE, present }),
            }
            offset += GRANULE;
        }
    }
    Ok(segments)
}

type Registers = (kvm_regs, kvm_sregs);

/// The vCPUs of the newest slot in which all of them are whole.
fn vcpus(state: &StateArea) -> Result<(Option<Epoch>, Vec<Registers>)> {
    let mut newest: (Option<Epoch>, Vec<Registers>) = (None, Vec::new());
    for slot in 0..2 {
        let found: Option<Vec<_>> = (0..state.vcpus() as usize)
            .map(|index| registers(&state.vcpu(slot, index)).transpose())
            .collect::<Option<Result<Vec<_>>>>()
            .transpose()?;
        let Some(found) = found else { continue };
        let Some(epoch) = found.first().map(|(epoch, _)| *epoch) else { continue };
        if found.iter().all(|(of, _)| *of == epoch) && newest.0.is_none_or(|newest| newest < epoch) {
            newest = (Some(epoch), found.into_iter().map(|(_, registers)| registers).collect());
        }
    }
    Ok(newest)
}

/// What an area says of its vCPU, and since when; `None` when it is not whole.
fn registers(area: &Area) -> Result<Option<(Epoch, Registers)>> {
    let mut copy = Vec::with_capacity(area.len());
    if area.read_into(&mut copy).is_err() {
        return Ok(None);
    }
    let Ok(sections) = decode_any_epoch(&copy) else { return Ok(None) };
    let (Some(regs), Some(sregs)) = (find(&sections, Kind::Regs, 0)?, find(&sections, Kind::Sregs, 0)?) else {
        return Ok(None);
    };
    Ok(Some((sections.epoch(), (parse(Kind::Regs, regs)?, parse(Kind::Sregs, sregs)?))))
}

/// Everything before the memory.
fn layout(segments: &[Segment], notes: &[u8]) -> Vec<u8> {
    let count = u16::try_from(segments.len() + 1).unwrap_or(u16::MAX);
    let notes_at = HEADER + u64::from(count) * PROGRAM_HEADER;
    let mut memory_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE);
    let mut out = Vec::new();
    // ELF, 64 bits, little-endian, version 1; ET_CORE, EM_X86_64.
    out.extend([0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(4_u16.to_le_bytes());
    out.extend(62_u16.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    for word in [0, HEADER, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(0_u32.to_le_bytes());
    for half in [64, 56, count, 64, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    let mut program_header = |kind: u32, offset: u64, address: u64, in_file: u64, in_memory: u64| {
        out.extend(kind.to_le_bytes());
        out.extend(if kind == PT_LOAD { 7_u32 } else { 0 }.to_le_bytes());
        for word in [offset, address, address, in_file, in_memory, if kind == PT_LOAD { PAGE } else { 4 }] {
            out.extend(word.to_le_bytes());
        }
    };
    program_header(PT_NOTE, notes_at, 0, notes.len() as u64, 0);
    let first = memory_at;
    for segment in segments {
        let in_file = if segment.present { segment.bytes } else { 0 };
        program_header(PT_LOAD, memory_at, segment.guest_address, in_file, segment.bytes);
        memory_at += in_file;
    }
    out.extend(notes);
    out.resize(usize::try_from(first).unwrap_or(usize::MAX), 0);
    out
}

fn note(out: &mut Vec<u8>, name: &str, kind: u32, payload: &[u8]) {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    out.extend(length(name.len() + 1));
    out.extend(length(payload.len()));
    out.extend(kind.to_le_bytes());
    out.extend(name.as_bytes());
    out.resize((out.len() + 1).next_multiple_of(4), 0);
    out.extend(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn prstatus(index: usize, regs: &kvm_regs, sregs: &kvm_sregs) -> [u8; PRSTATUS_BYTES] {
    let mut out = [0; PRSTATUS_BYTES];
    let thread = i32::try_from(index + 1).unwrap_or(i32::MAX);
    out[32..36].copy_from_slice(&thread.to_le_bytes());
    let values = [
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        u64::MAX,
        regs.rip,
        sregs.cs.selector.into(),
        regs.rflags,
        regs.rsp,
        sregs.ss.selector.into(),
        sregs.fs.base,
        sregs.gs.base,
        sregs.ds.selector.into(),
        sregs.es.selector.into(),
        sregs.fs.selector.into(),
        sregs.gs.selector.into(),
    ];
    for (place, value) in out[PRSTATUS_REGS..].chunks_exact_mut(8).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    out
}

fn qemu_state(regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<u8> {
    let mut out = Vec::with_capacity(QEMU_BYTES);
    out.extend(1_u32.to_le_bytes());
    out.extend(440_u32.to_le_bytes());
    let general = [regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, regs.rbp];
    let more = [regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15, regs.rip, regs.rflags];
    for value in general.into_iter().chain(more) {
        out.extend(value.to_le_bytes());
    }
    for segment in [&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss, &sregs.ldt, &sregs.tr] {
        let words = [u32::from(segment.selector), segment.limit, flags(segment), 0];
        words.into_iter().for_each(|word| out.extend(word.to_le_bytes()));
        out.extend(segment.base.to_le_bytes());
    }
    for kvm_dtable { base, limit, .. } in [sregs.gdt, sregs.idt] {
        [0, u32::from(limit), 0, 0].into_iter().for_each(|word: u32| out.extend(word.to_le_bytes()));
        out.extend(base.to_le_bytes());
    }
    for value in [sregs.cr0, 0, sregs.cr2, sregs.cr3, sregs.cr4, 0] {
        out.extend(value.to_le_bytes());
    }
    out
}

/// A segment's attributes where QEMU has them: in bits 8 to 23, as in a descriptor.
fn flags(segment: &kvm_segment) -> u32 {
    let bit = |value: u8, at: u32| u32::from(value) << at;
    bit(segment.type_, 8)
        | bit(segment.s, 12)
        | bit(segment.dpl, 13)
        | bit(segment.present, 15)
        | bit(segment.avl, 20)
        | bit(segment.l, 21)
        | bit(segment.db, 22)
        | bit(segment.g, 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    #[test]
    fn memory_lies_where_its_headers_say_and_what_is_gone_takes_no_room() {
        let segment = |guest_address, offset, granules, present| Segment {
            guest_address,
            offset,
            bytes: granules * GRANULE,
            present,
        };
        let segments =
            [segment(0, 0, 1, true), segment(GRANULE, GRANULE, 2, false), segment(8 << 20, 3 * GRANULE, 1, true)];
        let mut notes = Vec::new();
        note(&mut notes, "CORE", NT_PRSTATUS, &[7; 5]);
        assert_eq!(notes.len(), 12 + 8 + 8, "name and payload are padded to words");
        let core = layout(&segments, &notes);
        assert_eq!((&core[..4], core[16], core[18]), (&b"\x7FELF"[..], 4, 62));
        assert_eq!(core.len() as u64 % PAGE, 0);
        let header = |index: usize| &core[64 + 56 * index..][..56];
        assert_eq!((header(0)[0], word(header(0), 32)), (4, notes.len() as u64));
        let (first, gone, last) = (header(1), header(2), header(3));
        assert_eq!((word(first, 8), word(first, 24), word(first, 32)), (core.len() as u64, 0, GRANULE));
        assert_eq!((word(gone, 24), word(gone, 32), word(gone, 40)), (GRANULE, 0, 2 * GRANULE));
        assert_eq!((word(last, 8), word(last, 24)), (core.len() as u64 + GRANULE, 8 << 20));
    }

    #[test]
    fn registers_stand_where_debuggers_look_for_them() {
        let regs = kvm_regs { rip: 0x1234, rsp: 0x5678, rax: 0x9A, rdi: 0xBC, ..Default::default() };
        let mut sregs = kvm_sregs { cr3: 0xDEF0, cr0: 0x11, cr4: 0x22, ..Default::default() };
        (sregs.fs.base, sregs.cs.selector, sregs.cs.l, sregs.cs.present) = (0x77, 0x33, 1, 1);
        let status = prstatus(1, &regs, &sregs);
        let reg = |index: usize| word(&status, PRSTATUS_REGS + 8 * index);
        assert_eq!((reg(10), reg(14), reg(16), reg(17), reg(19), reg(21)), (0x9A, 0xBC, 0x1234, 0x33, 0x5678, 0x77));
        assert_eq!(status[32], 2, "threads are counted from 1");
        let qemu = qemu_state(&regs, &sregs);
        assert_eq!((qemu.len(), word(&qemu, 8), word(&qemu, 8 + 16 * 8)), (QEMU_BYTES, 0x9A, 0x1234));
        let control = QEMU_BYTES - 48;
        assert_eq!((word(&qemu, control), word(&qemu, control + 24), word(&qemu, control + 32)), (0x11, 0xDEF0, 0x22));
        assert_eq!(qemu[8 + 18 * 8 + 8..][..4], (1_u32 << 21 | 1 << 15).to_le_bytes());
    }
}
