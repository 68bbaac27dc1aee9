//! Memory that cannot move although nobody declared it: pins that the kernel knows of and the guest's record does not.
//!
//! A device (or the kernel on behalf of io_uring) that has pinned pages goes on writing to *these pages*, wherever the
//! guest's memory has gone. Whoever pins memory of a guest is to say so in the guest's record; this module finds those who
//! did not, so that a move stalls and names them instead of losing what they write.
//!
//! | What | Where the kernel tells | Exact? |
//! |---|---|---|
//! | registered buffers of io_uring | `/proc/self/fdinfo/FD` of every ring ([`rings`]) | address and length |
//! | RDMA, iommufd, rings without a descriptor | `VmPin` of `/proc/self/status` ([`counters`]) | how much only |
//! | VFIO (type 1), which counts as locked | `VmLck`, less what mlock has locked | how much only |
//! | mlock | `VmFlags: lo` of `/proc/self/smaps` | address and length; no pin: a move may take it |
//!
//! What the counters have beyond that which is known by address is a remainder *somewhere*, and no part of the guest may
//! move while there is one. The kernel counts a pinned piece of a huge page as the whole of it, even after the page has
//! been split (`io_buffer_account_pin` in io_uring/rsrc.c). So every known pin explains whole 2 MiB blocks, and an unknown
//! pin can hide behind a known one in the same block, but never causes a false alarm.

mod counters;
mod rings;

use crate::report::UndeclaredPin;
use counters::{Counters, locked_ranges};
use rings::RingBuffer;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;

/// Size of a huge page, which is pinned as a whole.
const BLOCK: u64 = 2 << 20;

/// What of the guest's memory something holds that never said so.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Undeclared {
    /// Pins: this memory (when the kernel does not tell which: any memory) must not move.
    pub pins: Vec<UndeclaredPin>,
    /// Memory that mlock keeps from being swapped. No device uses it, and it may move.
    pub locked: Vec<LockedMemory>,
}

/// A part of the guest's memory that mlock has locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockedMemory {
    /// Where in the guest's memory.
    pub offset: u64,
    /// How much.
    pub bytes: u64,
}

impl fmt::Display for LockedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.bytes >> 10;
        write!(
            f,
            "{kib} KiB at {:#x} of the guest's memory are locked by mlock, which does not keep them from moving",
            self.offset
        )
    }
}

/// A file of `/proc` that could not be read or does not say what it should.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot tell what is pinned: {source}; is /proc mounted?")]
pub struct Undetectable {
    pub(super) path: String,
    #[source]
    pub(super) source: io::Error,
}

impl Undetectable {
    fn of(path: &str) -> impl FnOnce(io::Error) -> Self {
        |source| Self { path: path.to_owned(), source }
    }

    fn garbled(path: &str, missing: &str) -> Self {
        Self::of(path)(io::Error::new(io::ErrorKind::InvalidData, format!("there is no {missing} in it")))
    }
}

/// Looks for what is pinned in `memory` (addresses of this process) and lies in none of the `declared` ranges.
///
/// # Errors
/// When `/proc` cannot be read, or does not say what it should.
pub fn undeclared_pins(memory: &Range<usize>, declared: &[Range<usize>]) -> Result<Undeclared, Undetectable> {
    let memory = address_range(memory);
    let declared: Vec<_> = declared.iter().map(address_range).collect();
    let buffers = rings::registered_buffers()?;
    let counters = Counters::read()?;
    let locked = if counters.locked > 0 { locked_ranges()? } else { Vec::new() };
    Ok(judge(&memory, &declared, &buffers, counters, &locked))
}

/// Tells cheaply (one read of `/proc/self/status`, about 20 µs) whether it is worth looking again while a move goes on.
///
/// Whoever gives up a pin and takes one of the same size between two questions is overlooked.
#[derive(Debug, Default)]
pub struct PinWatch {
    last: Option<Counters>,
}

impl PinWatch {
    /// Whether the process has more or less memory pinned or locked than when this was last asked, or it never was.
    ///
    /// # Errors
    /// As [`undeclared_pins`].
    pub fn has_changed(&mut self) -> Result<bool, Undetectable> {
        let now = Counters::read()?;
        Ok(self.last.replace(now) != Some(now))
    }

    /// The process has this much less locked, for a reason that is known: that is no change.
    pub(crate) fn expect_unlocked(&mut self, bytes: u64) {
        if let Some(last) = &mut self.last {
            last.locked = last.locked.saturating_sub(bytes);
        }
    }
}

fn judge(
    memory: &Range<u64>,
    declared: &[Range<u64>],
    buffers: &[RingBuffer],
    counters: Counters,
    locked: &[Range<u64>],
) -> Undeclared {
    let mut pins = Vec::new();
    for buffer in buffers {
        for part in without(intersection(&buffer.range, memory), declared) {
            let (offset, bytes) = (Some(part.start - memory.start), part.end - part.start);
            pins.push(UndeclaredPin { offset, bytes, holder: buffer.holder() });
        }
    }
    // VFIO counts as locked, everything else as pinned. A declared pin explains its size whichever it is.
    let by_mlock: u64 = locked.iter().map(|range| range.end - range.start).sum();
    let counted_as_locked = counters.locked.saturating_sub(by_mlock);
    let explained = explained(declared, buffers);
    let somewhere = (counters.pinned + counted_as_locked).saturating_sub(explained);
    let as_locked = somewhere.min(counted_as_locked);
    pins.extend(somewhere_in_it(
        as_locked,
        "a device under VFIO, or something else that VmLck counts and mlock did not lock,",
    ));
    pins.extend(somewhere_in_it(
        somewhere - as_locked,
        "something that VmPin counts (RDMA, iommufd, an io_uring without a descriptor)",
    ));
    let locked = locked.iter().map(|range| intersection(range, memory)).filter(|range| !range.is_empty());
    let locked =
        locked.map(|range| LockedMemory { offset: range.start - memory.start, bytes: range.end - range.start });
    Undeclared { pins, locked: locked.collect() }
}

fn somewhere_in_it(bytes: u64, holder: &str) -> Option<UndeclaredPin> {
    (bytes > 0).then(|| UndeclaredPin { offset: None, bytes, holder: holder.to_owned() })
}

/// The most that the kernel may count for what is known by address: each ring's buffers (every ring is counted for
/// itself), and the declared pins that are no ring's.
fn explained(declared: &[Range<u64>], buffers: &[RingBuffer]) -> u64 {
    let of_rings: BTreeSet<_> =
        buffers.iter().flat_map(|buffer| blocks(&buffer.range).map(|block| (buffer.ring, block))).collect();
    let of_any_ring: BTreeSet<_> = of_rings.iter().map(|&(_, block)| block).collect();
    let of_others: BTreeSet<_> =
        declared.iter().flat_map(blocks).filter(|block| !of_any_ring.contains(block)).collect();
    (of_rings.len() as u64 + of_others.len() as u64) * BLOCK
}

fn blocks(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    range.start / BLOCK..range.end.div_ceil(BLOCK)
}

fn address_range(range: &Range<usize>) -> Range<u64> {
    range.start as u64..range.end as u64
}

fn intersection(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

/// What of `range` lies in none of `others`, in order.
pub(crate) fn without(range: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = vec![range];
    for other in others {
        parts = parts
            .iter()
            .flat_map(|part| [part.start..part.end.min(other.start), part.start.max(other.end)..part.end])
            .collect();
        parts.retain(|part| !part.is_empty());
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests;
