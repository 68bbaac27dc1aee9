//! Between a guest's addresses and the bytes of its memory.
//!
//! A guest's memory is one sequence of bytes, whatever lies between its regions in the guest's address space. People name
//! parts of it by guest-physical addresses; everything that moves or pins memory counts from its first byte.

use crate::error::{Error, Result};
use crate::order::GuestRange;
use nil_mover::MoveRange;
use nil_pool::GRANULE;

/// Where a guest has its memory: (guest-physical address, bytes), ascending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout(Vec<(u64, u64)>);

impl Layout {
    /// The layout of a VM with so much memory.
    pub(crate) fn of_vm(memory_bytes: u64) -> Self {
        Self(nil_vmm::boot::ram_regions(memory_bytes))
    }

    /// The bytes of a range, wherever it begins and ends.
    ///
    /// # Errors
    /// It is empty, or not all of it is memory.
    pub(crate) fn bytes_of(&self, range: GuestRange) -> Result<MoveRange> {
        if range.bytes == 0 {
            return Err(Error::refused("a range of no bytes makes no sense here"));
        }
        let mut offset = 0;
        for &(address, bytes) in &self.0 {
            if let Some(inside) = range.address.checked_sub(address)
                && inside < bytes
                && range.bytes <= bytes - inside
            {
                return Ok(MoveRange { offset: offset + inside, bytes: range.bytes });
            }
            offset += bytes;
        }
        Err(Error::refused(format!("{range} is not all memory of the guest; its memory is {}", self.description())))
    }

    /// The bytes of a range of whole granules.
    ///
    /// # Errors
    /// As above, or it does not begin and end at multiples of a granule; then the nearest that does is named.
    pub(crate) fn granules_of(&self, range: GuestRange) -> Result<MoveRange> {
        let bytes = self.bytes_of(range)?;
        if range.address.is_multiple_of(GRANULE) && range.bytes.is_multiple_of(GRANULE) {
            return Ok(bytes);
        }
        let address = range.address - range.address % GRANULE;
        let around = GuestRange { address, bytes: (range.address - address + range.bytes).next_multiple_of(GRANULE) };
        Err(Error::refused(format!(
            "memory moves in pieces of {} MiB, and {range} does not begin and end at such; the nearest range is {around}",
            GRANULE >> 20
        )))
    }

    /// The range of a guest's address space whose first byte is that one.
    pub(crate) fn range_at(&self, offset: u64, bytes: u64) -> GuestRange {
        let mut first = 0;
        for &(address, length) in &self.0 {
            if offset - first < length {
                return GuestRange { address: address + (offset - first), bytes };
            }
            first += length;
        }
        // What a damaged table names beyond the end of memory is shown as it is.
        GuestRange { address: offset, bytes }
    }

    fn description(&self) -> String {
        let region = |&(address, bytes): &(u64, u64)| GuestRange { address, bytes }.to_string();
        self.0.iter().map(region).collect::<Vec<_>>().join(" and ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn range(address: u64, bytes: u64) -> GuestRange {
        GuestRange { address, bytes }
    }

    #[test]
    fn what_lies_above_the_hole_is_counted_on_from_what_lies_below() {
        let layout = Layout::of_vm(4 * GIB);
        let high = layout.bytes_of(range(4 * GIB + 64 * MIB, 2 * MIB)).expect("memory");
        assert_eq!(high, MoveRange { offset: 3 * GIB + 64 * MIB, bytes: 2 * MIB });
        assert_eq!(layout.range_at(high.offset, high.bytes), range(4 * GIB + 64 * MIB, 2 * MIB));
        assert_eq!(layout.range_at(MIB, 1), range(MIB, 1));
    }

    #[test]
    fn what_is_not_all_memory_is_refused_and_the_memory_is_named() {
        let layout = Layout::of_vm(4 * GIB);
        for bad in [range(3 * GIB, 2 * MIB), range(2 * GIB, 3 * GIB), range(5 * GIB, 1), range(u64::MAX, u64::MAX)] {
            let why = layout.bytes_of(bad).expect_err("no memory").to_string();
            assert!(why.contains("0x0+3072M and 0x100000000+1024M"), "{why}");
        }
        assert!(layout.bytes_of(range(0, 0)).is_err());
    }

    #[test]
    fn a_range_across_granules_is_refused_with_the_nearest_one_around_it() {
        let layout = Layout::of_vm(64 * MIB);
        assert_eq!(layout.granules_of(range(4 * MIB, 2 * MIB)).expect("aligned").offset, 4 * MIB);
        for (bad, nearest) in [(range(MIB, 2 * MIB), "0x0+4M"), (range(4 * MIB, 4096), "0x400000+2M")] {
            let why = layout.granules_of(bad).expect_err("not aligned").to_string();
            assert!(why.contains("pieces of 2 MiB") && why.ends_with(nearest), "{why}");
        }
    }
}
