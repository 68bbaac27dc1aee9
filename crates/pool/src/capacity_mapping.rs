//! The bytes of a capacity, mapped.
//!
//! A capacity lies in *pieces*: contiguous bytes of some pool. They are mapped one behind the other, so that offsets in
//! the mapping are offsets in the capacity. The mapping keeps the pools of its pieces open, can show the very same bytes
//! at another address, and knows for every byte where it comes from, so that memory that fails can be named. The pieces of
//! a striped capacity are those of its legs, each in its own pool, in the order of the stripes.

use crate::backing::BackingKind;
use crate::capacities::require_for_guests;
use crate::error::{Error, Result};
use crate::format::capacity::{CapacityRecord, Extent};
use crate::format::slot_word::Reference;
use crate::format::stripe::Composition;
use crate::format::{BadRecord, GRANULE};
use crate::ids::{PoolId, PoolOffset, Tag};
use crate::mapping::{Access, Mapping, advise_huge, map_over};
use crate::persist::refresh;
use crate::pool::Pool;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Contiguous bytes of one pool that are a part of a capacity.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Whose backing it is of.
    pub(crate) pool: Pool,
    /// The capacity that has the granules.
    pub(crate) capacity: Tag,
    /// Where in that capacity it begins.
    pub(crate) capacity_offset: u64,
    /// Where in the pool it begins.
    pub(crate) pool_offset: u64,
    /// Its length.
    pub(crate) bytes: u64,
}

impl Piece {
    /// Whether the two are one contiguous piece, in the capacity and in the pool.
    fn continues_in(&self, next: &Self) -> bool {
        self.pool.id() == next.pool.id()
            && self.capacity == next.capacity
            && self.capacity_offset + self.bytes == next.capacity_offset
            && self.pool_offset + self.bytes == next.pool_offset
    }

    /// Where its first byte comes from.
    fn source(&self) -> Source {
        Source {
            pool: self.pool.id(),
            path: self.pool.path().to_owned(),
            capacity: self.capacity,
            offset: self.capacity_offset,
            pool_offset: PoolOffset(self.pool_offset),
        }
    }

    /// The part of the piece that lies in `wanted`, where `start` is the offset of the piece itself.
    fn clip(&self, start: u64, wanted: &Range<u64>) -> Option<Self> {
        let (from, to) = (start.max(wanted.start), (start + self.bytes).min(wanted.end));
        let skipped = from - start;
        (from < to).then(|| Self {
            capacity_offset: self.capacity_offset + skipped,
            pool_offset: self.pool_offset + skipped,
            bytes: to - from,
            ..self.clone()
        })
    }
}

/// The parts of `pieces`, one behind the other, that lie in `wanted`.
fn clipped(pieces: &[Piece], wanted: &Range<u64>) -> Vec<Piece> {
    let mut start = 0;
    let clip = |piece: &Piece| {
        let clipped = piece.clip(start, wanted);
        start += piece.bytes;
        clipped
    };
    pieces.iter().filter_map(clip).collect()
}

/// Where a byte of a mapping comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The pool that it lies in.
    pub pool: PoolId,
    /// Where that pool was opened.
    pub path: PathBuf,
    /// The capacity there that it belongs to.
    pub capacity: Tag,
    /// Its offset in that capacity.
    pub offset: u64,
    /// Its offset in the pool.
    pub pool_offset: PoolOffset,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, path, capacity, offset, pool_offset } = self;
        write!(f, "byte {offset:#x} of capacity {capacity}, {pool_offset} in {} (pool {pool})", path.display())
    }
}

/// Memory from one or more capacities, mapped shared, contiguous from a multiple of 2 MiB. Unmapped on drop.
#[derive(Debug)]
pub struct CapacityMapping {
    mapping: Mapping,
    pieces: Vec<Piece>,
    access: Access,
}

impl CapacityMapping {
    /// Maps pieces one behind the other. `pool` is what an error names that is about all of them.
    fn map(pool: &Pool, pieces: Vec<Piece>, access: Access) -> Result<Self> {
        let length = pieces.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.bytes));
        let mapping = Mapping::reserve(pool.path(), length)?;
        let mapped = Self { mapping, pieces, access };
        // SAFETY: the pieces' lengths add up to the reservation's, which is ours alone and holds nothing yet.
        unsafe { mapped.map_pieces_at(&mapped.pieces, mapped.as_ptr())? };
        Ok(mapped)
    }

    /// Maps pieces one behind the other over whatever is mapped at `address`.
    ///
    /// # Safety
    /// As for [`CapacityMapping::map_onto`], with the sum of the pieces' lengths.
    unsafe fn map_pieces_at(&self, pieces: &[Piece], address: *mut u8) -> Result<()> {
        let mut at = 0;
        for piece in pieces {
            // No piece is longer than the reservation, whose length is a usize.
            let bytes = usize::try_from(piece.bytes).unwrap_or(usize::MAX);
            // SAFETY: the caller gives up the range, in which this piece lies.
            unsafe { map_over(&piece.pool.inner.backing, piece.pool_offset, bytes, self.access, address.add(at))? };
            at += bytes;
        }
        // SAFETY: the caller's range, which has just been mapped.
        unsafe { advise_huge(address, at) };
        // What this host has of an earlier use of the memory.
        refresh(address, at);
        Ok(())
    }

    /// Address of the first byte. Other processes may write these bytes at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.start()
    }

    /// Copies bytes out. They may be torn if somebody is writing them.
    ///
    /// # Panics
    /// When the range does not lie in the mapping, or does not begin and end at multiples of 4 KiB.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) {
        const STEP: usize = 4096;
        assert!(offset.is_multiple_of(STEP) && out.len().is_multiple_of(STEP), "{offset:#x}+{:#x}", out.len());
        for (at, page) in (offset as u64..).step_by(STEP).zip(out.chunks_exact_mut(STEP)) {
            page.copy_from_slice(&self.mapping.read::<STEP>(at));
        }
    }

    /// Bytes mapped.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no capacity is empty")]
    pub fn len(&self) -> usize {
        self.mapping.length()
    }

    /// What it lies in. Of several kinds the one that can do least: a device rather than a file of huge pages rather
    /// than a file.
    #[must_use]
    pub fn kind(&self) -> BackingKind {
        self.pieces.iter().map(|piece| piece.pool.inner.backing.kind()).max().unwrap_or(BackingKind::File)
    }

    /// What parts of it can be mapped elsewhere in: addresses, offsets and lengths are multiples of this. A page of a file,
    /// a huge page of a file of those, the alignment of a device; of several kinds the coarsest. At most the granule.
    #[must_use]
    pub fn placement_step(&self) -> usize {
        let coarsest = self.pieces.iter().map(|piece| piece.pool.inner.backing.step()).max();
        usize::try_from(coarsest.unwrap_or(GRANULE)).unwrap_or(usize::MAX)
    }

    /// Brings in every page, so that neither this process nor a guest faults on one later. Holes become memory.
    ///
    /// # Errors
    /// What the kernel says, most likely that memory is short.
    pub fn populate(&self) -> std::io::Result<()> {
        self.mapping.populate(0..self.len())
    }

    /// The parts that hold contents, in ascending order: all but the holes of a file; everything of a device, which
    /// cannot say. Bytes outside them read as zeros, until somebody writes there. What a file held that has been cut short
    /// counts as contents, too, and fails when it is read (SIGBUS).
    #[must_use]
    pub fn data_ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        for piece in &self.pieces {
            for data in piece.pool.inner.backing.data(piece.pool_offset..piece.pool_offset + piece.bytes) {
                let at = |offset: u64| usize::try_from(start + (offset - piece.pool_offset)).unwrap_or(self.len());
                let found = at(data.start)..at(data.end);
                match ranges.last_mut() {
                    Some(last) if last.end == found.start => last.end = found.end,
                    _ => ranges.push(found),
                }
            }
            start += piece.bytes;
        }
        ranges
    }

    /// Whether any of these bytes lies in a part that holds contents, as [`CapacityMapping::data_ranges`] has it now.
    /// Bytes past the end of the mapping hold nothing.
    #[must_use]
    pub fn has_data(&self, range: Range<usize>) -> bool {
        let pieces = clipped(&self.pieces, &(range.start as u64..range.end as u64));
        let has_data =
            |piece: &Piece| piece.pool.inner.backing.has_data(piece.pool_offset..piece.pool_offset + piece.bytes);
        pieces.iter().any(has_data)
    }

    /// Brings in every page that holds contents; holes stay holes.
    ///
    /// # Errors
    /// What the kernel says, most likely that memory is short.
    pub fn populate_data(&self) -> std::io::Result<()> {
        self.data_ranges().into_iter().try_for_each(|range| self.mapping.populate(range))
    }

    /// Maps `bytes` bytes from `offset` on a second time, over whatever is mapped at `address`, and asks for huge pages
    /// there. All three are multiples of [`CapacityMapping::placement_step`]; the kernel would unmap more than it maps, or
    /// unmap and then refuse. When [`Error::NoMmap`] comes, part of the range may have been mapped, and part unmapped.
    ///
    /// # Errors
    /// [`Error::OutsideMapping`], with nothing changed; [`Error::NoMmap`].
    ///
    /// # Safety
    /// The `bytes` bytes from `address` on are mapped and belong to the caller, no reference leads there, and it is the
    /// caller who unmaps them.
    pub unsafe fn map_onto(&self, offset: usize, bytes: usize, address: *mut u8) -> Result<()> {
        let end = offset.checked_add(bytes).filter(|end| *end <= self.len());
        let step = self.placement_step();
        let whole = [offset, bytes, address.addr()].iter().all(|number| number.is_multiple_of(step));
        let Some(end) = end.filter(|_| whole && bytes > 0) else {
            return Err(Error::OutsideMapping { offset, bytes, step, length: self.len() });
        };
        let pieces = clipped(&self.pieces, &(offset as u64..end as u64));
        // SAFETY: the pieces' lengths add up to `bytes`; the rest is the caller's promise.
        unsafe { self.map_pieces_at(&pieces, address) }
    }

    /// Where a byte comes from.
    ///
    /// # Panics
    /// When there is no such byte.
    #[must_use]
    pub fn source_at(&self, offset: usize) -> Source {
        let wanted = offset as u64;
        let found = clipped(&self.pieces, &(wanted..wanted.saturating_add(1)));
        let [piece] = found.as_slice() else { panic!("byte {offset:#x} of a mapping of {:#x}", self.len()) };
        piece.source()
    }

    /// Whether some of it is no more: then all of it reads as zeros, and what is written stays in this process. (Where it is
    /// mapped a second time, that is not concerned.)
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    /// Refuses what would read zeros for contents, or write to nobody.
    pub(crate) fn require_there(&self) -> Result<()> {
        let lost =
            || Error::Lost { path: self.pieces.first().map_or_else(PathBuf::new, |it| it.pool.path().to_owned()) };
        if self.is_lost() { Err(lost()) } else { Ok(()) }
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl Pool {
    /// Maps a whole capacity. One that has an access list is mapped only in the name of a host ([`Pool::on_behalf_of`], or
    /// the pool of a membership) that is on it and has accepted the capacity.
    ///
    /// # Errors
    /// [`Error::NotOnAccessList`], [`Error::NotAccepted`]; [`Error::NoCapacity`], [`Error::Damaged`], [`Error::NoMmap`], [`Error::OpenedReadOnly`]; [`Error::LegNotAtHand`]
    /// and [`Error::BadLeg`] with the leg of a striped one that is missing.
    pub fn map_capacity(&self, tag: Tag) -> Result<CapacityMapping> {
        self.require_write()?;
        let capacity = self.capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        let record = self.tables().capacity_of(capacity).ok_or(Error::NoCapacity { tag })?;
        self.require_accepted(capacity, &record)?;
        self.map_reference(capacity, tag)
    }

    /// Where the bytes of a capacity are, in their order: where each contiguous stretch begins, and how long it is.
    ///
    /// # Errors
    /// [`Error::NoCapacity`]; [`Error::LegNotAtHand`] and [`Error::BadLeg`] as for [`Pool::map_capacity`].
    pub fn stretches(&self, tag: Tag) -> Result<Vec<(Source, u64)>> {
        let capacity = self.capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        let record = self.tables().capacity_of(capacity).ok_or(Error::NoCapacity { tag })?;
        Ok(self.pieces_of(&record)?.iter().map(|piece| (piece.source(), piece.bytes)).collect())
    }

    /// Whether a whole capacity could be mapped: its pieces are all at hand.
    ///
    /// # Errors
    /// As for [`Pool::map_capacity`], but for what only mapping itself can tell.
    pub fn try_capacity(&self, tag: Tag) -> Result<()> {
        self.require_write()?;
        let capacity = self.capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        let record = self.tables().capacity_of(capacity).ok_or(Error::NoCapacity { tag })?;
        self.require_listed(&record)?;
        self.pieces_of(&record).map(|_| ())
    }

    pub(crate) fn map_reference(&self, capacity: Reference, tag: Tag) -> Result<CapacityMapping> {
        let record = self.tables().capacity_of(capacity).ok_or(Error::NoCapacity { tag })?;
        self.map_pieces(&self.pieces_of(&record)?)
    }

    pub(crate) fn map_pieces(&self, pieces: &[Piece]) -> Result<CapacityMapping> {
        CapacityMapping::map(self, pieces.to_vec(), self.access())
    }

    /// The parts of pools that hold `bytes` bytes of a capacity of guests from `offset` on.
    pub(crate) fn pieces(&self, tag: Tag, offset: u64, bytes: u64) -> Result<Vec<Piece>> {
        let capacity = self.capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        let record = self.tables().capacity_of(capacity).ok_or(Error::NoCapacity { tag })?;
        require_for_guests(&record)?;
        self.require_listed(&record)?;
        let end = offset.checked_add(bytes).filter(|end| *end <= record.bytes);
        let granules = offset.is_multiple_of(GRANULE) && bytes.is_multiple_of(GRANULE);
        let end = end.filter(|_| granules).ok_or_else(|| Error::Damaged {
            what: format!("a placement in capacity {tag}"),
            source: BadRecord::Field("placement"),
        })?;
        Ok(clipped(&self.pieces_of(&record)?, &(offset..end)))
    }

    /// The parts of pools that hold a capacity.
    fn pieces_of(&self, record: &CapacityRecord) -> Result<Vec<Piece>> {
        let Composition::Striped(stripe) = &record.composition else { return Ok(self.own_pieces(record)) };
        let legs = stripe.leg_bytes(record.bytes).into_iter().zip(&stripe.legs).map(|(bytes, leg)| {
            let (pool, record) = self.leg(record, leg, bytes)?;
            Ok(pool.own_pieces(&record))
        });
        let legs: Vec<Vec<Piece>> = legs.collect::<Result<_>>()?;
        let mut pieces: Vec<Piece> = Vec::new();
        for share in stripe.shares(record.bytes) {
            for piece in clipped(&legs[share.leg], &share.bytes) {
                match pieces.last_mut().filter(|last| last.continues_in(&piece)) {
                    Some(last) => last.bytes += piece.bytes,
                    None => pieces.push(piece),
                }
            }
        }
        Ok(pieces)
    }

    /// The extents of a capacity that has granules.
    fn own_pieces(&self, record: &CapacityRecord) -> Vec<Piece> {
        let mut capacity_offset = 0;
        let piece = |extent: &Extent| {
            let (pool, pool_offset) = (self.clone(), u64::from(extent.first) * GRANULE);
            let piece = Piece { pool, capacity: record.tag, capacity_offset, pool_offset, bytes: extent.bytes() };
            capacity_offset += extent.bytes();
            piece
        };
        record.extents.iter().map(piece).collect()
    }
}
