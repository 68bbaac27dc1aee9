//! The bytes of a capacity, mapped.

use crate::error::{Error, Result};
use crate::format::GRANULE;
use crate::format::slot_word::Reference;
use crate::ids::Tag;
use crate::mapping::Mapping;
use crate::pool::Pool;

/// Memory from one or more capacities, mapped shared, contiguous from a multiple of 2 MiB. Unmapped on drop.
#[derive(Debug)]
pub struct CapacityMapping {
    mapping: Mapping,
}

impl CapacityMapping {
    /// Address of the first byte. Other processes may write these bytes at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.start()
    }

    /// Bytes mapped.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no capacity is empty")]
    pub fn len(&self) -> usize {
        self.mapping.length()
    }

    /// Brings in every page, so that neither this process nor a guest faults on one later.
    ///
    /// # Errors
    /// What the kernel says, most likely that memory is short.
    pub fn populate(&self) -> std::io::Result<()> {
        self.mapping.populate()
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl Pool {
    /// Maps a whole capacity.
    ///
    /// # Errors
    /// [`Error::NoCapacity`], [`Error::Damaged`], [`Error::NoMmap`], [`Error::OpenedReadOnly`].
    pub fn map_capacity(&self, tag: Tag) -> Result<CapacityMapping> {
        self.require_write()?;
        let capacity = self.capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        self.map_reference(capacity, tag)
    }

    pub(crate) fn map_reference(&self, capacity: Reference, tag: Tag) -> Result<CapacityMapping> {
        let record = self.tables().capacity_of(capacity).ok_or(Error::NoCapacity { tag })?;
        let pieces: Vec<_> =
            record.extents.iter().map(|extent| (u64::from(extent.first) * GRANULE, extent.bytes())).collect();
        self.map_pieces(&pieces)
    }

    /// The parts of the pool that hold `bytes` bytes of a capacity from `offset` on.
    pub(crate) fn pieces(&self, tag: Tag, offset: u64, bytes: u64) -> Result<Vec<(u64, u64)>> {
        let reference = self.capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        let record = self.tables().capacity_of(reference).ok_or(Error::NoCapacity { tag })?;
        let bad = || Error::Damaged {
            what: format!("a placement in capacity {tag}"),
            source: crate::format::BadRecord::Field("placement"),
        };
        let end = offset.checked_add(bytes).filter(|end| *end <= record.bytes).ok_or_else(bad)?;
        if !offset.is_multiple_of(GRANULE) || !bytes.is_multiple_of(GRANULE) {
            return Err(bad());
        }
        let (mut pieces, mut start) = (Vec::new(), 0);
        for extent in &record.extents {
            let (from, to) = (offset.max(start), end.min(start + extent.bytes()));
            if from < to {
                pieces.push((u64::from(extent.first) * GRANULE + (from - start), to - from));
            }
            start += extent.bytes();
        }
        Ok(pieces)
    }

    pub(crate) fn map_pieces(&self, pieces: &[(u64, u64)]) -> Result<CapacityMapping> {
        Ok(CapacityMapping { mapping: Mapping::map_pieces(&self.inner.backing, pieces, self.access())? })
    }
}
