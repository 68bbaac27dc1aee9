//! Sections: how the state of a vCPU or a device lies in its area.
//!
//! ```text
//! area header, 32 bytes                         section, 16 bytes + payload, padded with zeros to 8
//!  0  magic     "nilarea1"                       0  kind      u16
//!  8  epoch     u32                              2  version   u16
//! 12  count     u32   sections                   4  instance  u32
//! 16  length    u32   bytes, with this header    8  length    u32   bytes of payload, without padding
//! 20  reserved  u64   zero                      12  crc       u32   CRC-32C of the 12 bytes above and the payload
//! 28  crc       u32   CRC-32C of bytes 0..28    16  payload
//! ```
//!
//! A writer first clears the magic, then appends sections, and writes the header last; so an area that was left half
//! written is recognised. Neither side allocates: the writer writes straight into shared memory, the reader decodes a
//! private copy ([`crate::Area::read_into`]).

use crate::mapping::copy_in;
use crate::ownership::Epoch;
use crate::persist::{Point, persist};
use crate::sync::{Ordering, fence};
use std::marker::PhantomData;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First eight bytes of an area that was written to its end.
pub(crate) const MAGIC: [u8; 8] = *b"nilarea1";
/// Payloads are padded to this.
const PADDING: usize = 8;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawArea {
    magic: [u8; 8],
    epoch: U32,
    count: U32,
    length: U32,
    reserved: U64,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSection {
    kind: U16,
    version: U16,
    instance: U32,
    length: U32,
    crc: U32,
}

pub(crate) const AREA_HEADER: usize = size_of::<RawArea>();
const SECTION_HEADER: usize = size_of::<RawSection>();
const _: () = assert!(AREA_HEADER == 32 && SECTION_HEADER == 16);

impl RawArea {
    /// The length that the header claims, if it is a header at all.
    pub(crate) fn claimed_length(bytes: &[u8; AREA_HEADER]) -> Option<usize> {
        let raw = Self::read_from_bytes(bytes).ok()?;
        (raw.magic == MAGIC).then_some(usize::try_from(raw.length.get()).ok()?)
    }

    fn sum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..AREA_HEADER - 4])
    }
}

impl RawSection {
    fn sum(&self, payload: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.as_bytes()[..SECTION_HEADER - 4]), payload)
    }
}

/// There is no room left in the area for a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("section {kind:#06x}/{instance} of {length} bytes does not fit into the {left} bytes left in its area")]
pub struct AreaFull {
    /// Kind of the section.
    pub kind: u16,
    /// Instance of the section.
    pub instance: u32,
    /// Length of its payload.
    pub length: usize,
    /// Bytes left for header, payload and padding.
    pub left: usize,
}

/// Writes sections straight into an area of shared memory. Nothing is readable before [`SectionWriter::finish`].
#[derive(Debug)]
pub struct SectionWriter<'a> {
    start: *mut u8,
    capacity: usize,
    position: usize,
    count: u32,
    epoch: Epoch,
    area: PhantomData<&'a mut [u8]>,
}

// SAFETY: the writer is the only one that writes these bytes (the contract of `SectionWriter::new`), and the pointer
// stays valid for 'a on whichever thread it is used.
unsafe impl Send for SectionWriter<'_> {}

impl<'a> SectionWriter<'a> {
    /// Begins an area of `capacity` bytes at `start`, and makes what it held unreadable.
    ///
    /// # Safety
    /// The bytes must be mapped and writable for `'a`, `start` aligned to 8, and nobody else in this process may
    /// write them meanwhile.
    pub(crate) unsafe fn new(start: *mut u8, capacity: usize, epoch: Epoch) -> Self {
        assert!(capacity >= AREA_HEADER, "an area has room for its header");
        let writer = Self { start, capacity, position: AREA_HEADER, count: 0, epoch, area: PhantomData };
        writer.copy_in(0, &[0; 8]);
        fence(Ordering::Release);
        writer
    }

    /// A writer into a private buffer, for tests and for state that is not in a pool.
    ///
    /// # Panics
    /// When the buffer is shorter than the area header.
    #[must_use]
    pub fn over(buffer: &'a mut [u8], epoch: Epoch) -> Self {
        // SAFETY: the exclusive borrow lasts for 'a; no alignment is needed because only byte copies are made.
        unsafe { Self::new(buffer.as_mut_ptr(), buffer.len(), epoch) }
    }

    /// Appends one section.
    ///
    /// # Errors
    /// [`AreaFull`] when it does not fit; the sections before it stay as they are.
    #[inline]
    pub fn put(&mut self, kind: u16, version: u16, instance: u32, payload: &[u8]) -> Result<(), AreaFull> {
        let left = self.capacity - self.position;
        let full = AreaFull { kind, instance, length: payload.len(), left };
        let length = u32::try_from(payload.len()).map_err(|_| full)?;
        let padded = payload.len().checked_next_multiple_of(PADDING).ok_or(full)?;
        if padded.checked_add(SECTION_HEADER).is_none_or(|whole| whole > left) {
            return Err(full);
        }
        let mut raw = RawSection {
            kind: kind.into(),
            version: version.into(),
            instance: instance.into(),
            length: length.into(),
            crc: 0.into(),
        };
        raw.crc = raw.sum(payload).into();
        self.copy_in(self.position, raw.as_bytes());
        self.copy_in(self.position + SECTION_HEADER, payload);
        self.copy_in(self.position + SECTION_HEADER + payload.len(), &[0; PADDING][..padded - payload.len()]);
        self.position += SECTION_HEADER + padded;
        self.count += 1;
        Ok(())
    }

    /// Writes the header: from now on the area can be read. The sections are in the pool's memory before it, because each of
    /// them would pass for one of an earlier epoch that lay there, and the header when this returns. Publishing it (with a
    /// release) is the caller's business.
    ///
    /// # Panics
    /// Never: no area is as long as 4 GiB.
    pub fn finish(self) {
        let mut raw = RawArea {
            magic: MAGIC,
            epoch: self.epoch.0.into(),
            count: self.count.into(),
            length: u32::try_from(self.position).expect("areas are shorter than 4 GiB").into(),
            reserved: 0.into(),
            crc: 0.into(),
        };
        raw.crc = raw.sum().into();
        let bytes = raw.as_bytes();
        persist(Point::Sections, self.start, self.position);
        self.copy_in(MAGIC.len(), &bytes[MAGIC.len()..]);
        fence(Ordering::Release);
        self.copy_in(0, &MAGIC);
        persist(Point::Area, self.start, AREA_HEADER);
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        debug_assert!(offset + bytes.len() <= self.capacity);
        // SAFETY: every caller stays below `capacity` (the header fits, see `new`; `put` checks against what is left),
        // and `new`'s contract makes those bytes writable and ours alone.
        unsafe { copy_in(self.start.add(offset), bytes) }
    }
}

/// Why the bytes of an area are not to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// No header: the area was never written, or its writer did not come to the end.
    #[error("the area holds no finished state")]
    Unfinished,
    /// Header fields contradict each other or the bytes at hand.
    #[error("the area's header is damaged")]
    BadHeader,
    /// It is the state of another epoch.
    #[error("the area holds the state of epoch {found}, not of epoch {wanted}")]
    OtherEpoch {
        /// The epoch in the header.
        found: Epoch,
        /// The epoch asked for.
        wanted: Epoch,
    },
    /// A section does not end inside its area.
    #[error("the section at byte {at} reaches past the end of its area")]
    Truncated {
        /// Where the section begins.
        at: usize,
    },
    /// A section's checksum is wrong.
    #[error("section {kind:#06x}/{instance} is damaged (checksum)")]
    BadSection {
        /// Its kind.
        kind: u16,
        /// Its instance.
        instance: u32,
    },
}

/// One section of an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section<'a> {
    /// What it describes; the numbers are the VMM's.
    pub kind: u16,
    /// Which one, where there are several of a kind.
    pub instance: u32,
    /// Version of the payload's layout.
    pub version: u16,
    /// The payload, without padding.
    pub payload: &'a [u8],
}

/// The decoded, wholly validated sections of an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sections<'a> {
    epoch: Epoch,
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Sections<'a> {
    /// The epoch for which they were written.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The first section of this kind and instance.
    #[must_use]
    pub fn get(&self, kind: u16, instance: u32) -> Option<Section<'a>> {
        self.iter().find(|section| section.kind == kind && section.instance == instance)
    }

    /// All sections in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = Section<'a>> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (raw, section, after) = split_section(rest)?;
            rest = after;
            Some(Section {
                kind: raw.kind.get(),
                instance: raw.instance.get(),
                version: raw.version.get(),
                payload: section,
            })
        })
    }
}

/// Header, payload, and what follows the padding; `None` when the bytes do not hold a whole section.
fn split_section(bytes: &[u8]) -> Option<(RawSection, &[u8], &[u8])> {
    let (raw, rest) = RawSection::read_from_prefix(bytes).ok()?;
    let length = usize::try_from(raw.length.get()).ok()?;
    let padded = length.checked_next_multiple_of(PADDING)?;
    let (padded, after) = rest.split_at_checked(padded)?;
    Some((raw, &padded[..length], after))
}

/// Validates a private copy of an area: magic, header, epoch, bounds, every section's checksum.
///
/// # Errors
/// [`DecodeError`]; nothing of such an area is to be used.
pub fn decode(bytes: &[u8], epoch: Epoch) -> Result<Sections<'_>, DecodeError> {
    let sections = decode_any_epoch(bytes)?;
    if sections.epoch != epoch {
        return Err(DecodeError::OtherEpoch { found: sections.epoch, wanted: epoch });
    }
    Ok(sections)
}

/// Like [`decode`], for a reader that takes the state of whatever epoch is there.
///
/// # Errors
/// [`DecodeError`] as in [`decode`], but never `OtherEpoch`.
pub fn decode_any_epoch(bytes: &[u8]) -> Result<Sections<'_>, DecodeError> {
    let (raw, _) = RawArea::read_from_prefix(bytes).map_err(|_| DecodeError::Unfinished)?;
    if raw.magic != MAGIC {
        return Err(DecodeError::Unfinished);
    }
    let length = usize::try_from(raw.length.get()).map_err(|_| DecodeError::BadHeader)?;
    if raw.crc.get() != raw.sum() || raw.reserved.get() != 0 || length < AREA_HEADER {
        return Err(DecodeError::BadHeader);
    }
    let body = bytes.get(AREA_HEADER..length).ok_or(DecodeError::BadHeader)?;
    let mut rest = body;
    for _ in 0..raw.count.get() {
        let at = AREA_HEADER + body.len() - rest.len();
        let (section, payload, after) = split_section(rest).ok_or(DecodeError::Truncated { at })?;
        if section.crc.get() != section.sum(payload) {
            return Err(DecodeError::BadSection { kind: section.kind.get(), instance: section.instance.get() });
        }
        rest = after;
    }
    if !rest.is_empty() {
        return Err(DecodeError::BadHeader);
    }
    Ok(Sections { epoch: Epoch(raw.epoch.get()), count: raw.count.get(), bytes: body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(sections: &[(u16, u16, u32, Vec<u8>)], epoch: Epoch) -> Vec<u8> {
        let mut buffer = vec![0xAA; 1 << 16];
        let mut writer = SectionWriter::over(&mut buffer, epoch);
        for (kind, version, instance, payload) in sections {
            writer.put(*kind, *version, *instance, payload).expect("the buffer is large enough");
        }
        writer.finish();
        buffer
    }

    #[test]
    fn the_bytes_are_the_specified_ones() {
        let bytes = written(&[(0x0102, 3, 4, vec![0xEE; 5])], Epoch(7));
        let header = b"nilarea1\x07\0\0\0\x01\0\0\0\x38\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(&bytes[..28], header);
        assert_eq!(bytes[28..32], crc32c::crc32c(header).to_le_bytes());
        let section = b"\x02\x01\x03\0\x04\0\0\0\x05\0\0\0";
        assert_eq!(&bytes[32..44], section);
        let sum = crc32c::crc32c(&[section.as_slice(), &[0xEE; 5]].concat());
        assert_eq!(bytes[44..48], sum.to_le_bytes());
        assert_eq!(&bytes[48..56], b"\xEE\xEE\xEE\xEE\xEE\0\0\0");
        assert_eq!(bytes[56], 0xAA, "nothing is written behind the last section");
    }

    #[test]
    fn an_area_that_was_not_finished_holds_nothing() {
        let mut buffer = written(&[(1, 1, 0, vec![1; 8])], Epoch(1));
        let mut writer = SectionWriter::over(&mut buffer, Epoch(2));
        writer.put(1, 1, 0, &[2; 8]).expect("it fits");
        let SectionWriter { .. } = writer;
        assert_eq!(decode(&buffer, Epoch(2)), Err(DecodeError::Unfinished));
        assert_eq!(decode(&buffer, Epoch(1)), Err(DecodeError::Unfinished));
    }

    #[test]
    fn the_state_of_another_epoch_is_refused() {
        let bytes = written(&[], Epoch(4));
        assert_eq!(decode(&bytes, Epoch(6)), Err(DecodeError::OtherEpoch { found: Epoch(4), wanted: Epoch(6) }));
    }

    #[test]
    fn a_section_that_does_not_fit_is_refused_and_the_others_stay() {
        let mut buffer = [0; 32 + 24];
        let mut writer = SectionWriter::over(&mut buffer, Epoch(1));
        writer.put(1, 1, 0, &[7; 8]).expect("it fits exactly");
        assert_eq!(writer.put(2, 1, 9, &[]), Err(AreaFull { kind: 2, instance: 9, length: 0, left: 0 }));
        writer.finish();
        assert_eq!(decode(&buffer, Epoch(1)).expect("a valid area").count(), 1);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(
            sections in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            epoch in any::<u32>(),
        ) {
            let bytes = written(&sections, Epoch(epoch));
            let decoded = decode(&bytes, Epoch(epoch)).expect("a valid area");
            let back: Vec<_> = decoded.iter().map(|s| (s.kind, s.version, s.instance, s.payload.to_vec())).collect();
            prop_assert_eq!(back, sections);
        }

        #[test]
        fn a_flipped_bit_is_noticed(payload in prop::collection::vec(any::<u8>(), 1..64), bit in any::<prop::sample::Index>()) {
            let mut bytes = written(&[(1, 2, 3, payload.clone())], Epoch(9));
            let bit = bit.index((AREA_HEADER + SECTION_HEADER + payload.len()) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&bytes, Epoch(9)).is_err());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..256), forge in any::<bool>()) {
            if forge && bytes.len() >= AREA_HEADER {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[20..28].fill(0);
                let sum = crc32c::crc32c(&bytes[..28]);
                bytes[28..32].copy_from_slice(&sum.to_le_bytes());
            }
            if let Ok(sections) = decode_any_epoch(&bytes) {
                prop_assert_eq!(sections.iter().count(), sections.count() as usize);
            }
        }
    }
}
