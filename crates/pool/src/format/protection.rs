//! The protection of a guest: what its commits consist of, in a capacity of its own.
//!
//! ```text
//!        0  header, 64 bytes
//!       64  standing word      state << 56 | number of the last commit     Idle ─▶ Active ─▶ Active …
//!      128  settings word      output << 56 | interval in µs                 ▲        │ ╲
//!      192  applied word       the last commit that is in the image, all of it
//!      256  commit records     two, 64 bytes each                            └────────┘  ▶ Sealed
//!   64 KiB  state slots        two: machine area 64 KiB, then 32 KiB for each vCPU
//!        …  indexes            two: one entry of 16 bytes for each page of a log
//!        …  redo logs          two, from a multiple of 2 MiB on: pages of 4 KiB
//! ```
//!
//! Commit *n* lies in record, slot, index and log *n* & 1. What it consists of is written before the standing word names
//! it; the other half still holds commit *n* − 1 meanwhile.

use super::{BadRecord, GRANULE, check_seal, seal};
use crate::ids::{GuestId, Tag};
use crate::ownership::{Epoch, HostSlot};
use crate::state::slot_bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offset of the standing word.
pub const STANDING: u64 = 64;
/// Offset of the settings word.
pub const SETTINGS: u64 = 128;
/// Offset of the applied word: the number of the last commit that is in the image, all of it.
pub const APPLIED: u64 = 192;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a commit record.
pub const COMMIT_BYTES: usize = 64;
/// Bytes of an index entry.
pub const ENTRY_BYTES: usize = 16;
/// Bytes of a page of a redo log.
pub const LOG_PAGE: usize = 4 << 10;
/// Pages of a redo log come in whole granules.
pub const PAGES_PER_GRANULE: u64 = GRANULE / LOG_PAGE as u64;

const MAGIC: [u8; 8] = *b"nilprot1";
const COMMITS_AT: u64 = 256;
const SLOTS_AT: u64 = 64 << 10;
const LAST_NUMBER: u64 = (1 << 56) - 1;

/// The tag of the capacity with a guest's protection: the guest's UUID with this XORed.
const TAG_MASK: [u8; 16] = *b"nil protection\0\0";

/// The tag of the capacity with a guest's protection. Like that of its memory it stays for life, the capacity comes and goes.
#[must_use]
pub fn protection_tag(guest: GuestId) -> Tag {
    let id = guest.to_bytes();
    Tag::from_bytes(std::array::from_fn(|index| id[index] ^ TAG_MASK[index]))
}

/// What a guest's last commit is good for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "commit")]
pub enum Standing {
    /// There is none to go back to: protection has not begun, or is suspended. The last one had this number.
    Idle(u64),
    /// The guest can be brought back to this one.
    Active(u64),
    /// Somebody brings the guest back to this one, or has; its former owner commits nothing more.
    Sealed(u64),
}

impl Standing {
    /// Encodes into the on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        let (state, number) = match self {
            Self::Idle(number) => (0, number),
            Self::Active(number) => (1, number),
            Self::Sealed(number) => (2, number),
        };
        debug_assert!(number <= LAST_NUMBER);
        state << 56 | number
    }

    /// Decodes a word read from the pool; `None` for any value that [`Standing::encode`] does not produce.
    #[must_use]
    pub fn decode(word: u64) -> Option<Self> {
        let number = word & LAST_NUMBER;
        match (word >> 56, number) {
            (0, _) => Some(Self::Idle(number)),
            // Commits are counted from 1.
            (1 | 2, 0) => None,
            (1, _) => Some(Self::Active(number)),
            (2, _) => Some(Self::Sealed(number)),
            _ => None,
        }
    }

    /// The number of the last commit.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::Idle(number) | Self::Active(number) | Self::Sealed(number) => number,
        }
    }
}

/// What becomes of a guest's output before the commit that follows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OutputRule {
    /// It goes out at once: after a takeover the guest may say again, or otherwise, what the outside has seen.
    #[default]
    Pass,
    /// It is kept back: the outside never sees what is undone.
    Hold,
}

/// How a guest is to be protected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ProtectionSettings {
    /// How long from one commit to the next.
    pub interval: Duration,
    /// What becomes of output meanwhile.
    pub output: OutputRule,
}

impl ProtectionSettings {
    /// The shortest interval.
    pub const SHORTEST: Duration = Duration::from_millis(1);
    /// The longest.
    pub const LONGEST: Duration = Duration::from_secs(3600);

    /// The same, with an interval that the format can hold.
    #[must_use]
    pub fn clamped(self) -> Self {
        Self { interval: self.interval.clamp(Self::SHORTEST, Self::LONGEST), ..self }
    }

    /// Encodes into the on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        let output = match self.output {
            OutputRule::Pass => 0,
            OutputRule::Hold => 1,
        };
        output << 56 | u64::try_from(self.clamped().interval.as_micros()).unwrap_or(u64::MAX >> 8)
    }

    /// Decodes a word read from the pool; `None` for any value that [`ProtectionSettings::encode`] does not produce.
    #[must_use]
    pub fn decode(word: u64) -> Option<Self> {
        let interval = Duration::from_micros(word & LAST_NUMBER);
        let output = match word >> 56 {
            0 => OutputRule::Pass,
            1 => OutputRule::Hold,
            _ => return None,
        };
        let settings = Self { interval, output };
        (settings.clamped() == settings).then_some(settings)
    }
}

/// For what guest a protection is, and how much a commit of it can hold: it decides where everything lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProtectionShape {
    /// Whose.
    pub guest: GuestId,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Granules of its memory.
    pub granules: u64,
    /// Pages of each redo log: a multiple of [`PAGES_PER_GRANULE`], and no more than the guest has.
    pub log_pages: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    guest: [u8; 16],
    vcpus: U32,
    zero: U32,
    granules: U64,
    log_pages: U64,
    rest: [u8; 12],
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCommit {
    number: U64,
    pages: U64,
    taken: U64,
    epoch: U32,
    host: U32,
    index_crc: U32,
    rest: [u8; 24],
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    page: U64,
    crc: U32,
    zero: U32,
}

const _: () = {
    assert!(size_of::<RawHeader>() == HEADER_BYTES);
    assert!(std::mem::offset_of!(RawHeader, granules) == 32);
    assert!(std::mem::offset_of!(RawHeader, crc) == 60);
    assert!(size_of::<RawCommit>() == COMMIT_BYTES);
    assert!(std::mem::offset_of!(RawCommit, epoch) == 24);
    assert!(std::mem::offset_of!(RawCommit, crc) == 60);
    assert!(size_of::<RawEntry>() == ENTRY_BYTES);
    assert!(COMMITS_AT + 2 * COMMIT_BYTES as u64 <= SLOTS_AT);
};

impl ProtectionShape {
    /// The header that says so.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.guest = self.guest.to_bytes();
        raw.vcpus = self.vcpus.into();
        raw.granules = self.granules.into();
        raw.log_pages = self.log_pages.into();
        seal(zerocopy::transmute!(raw))
    }

    /// Validates a private copy of a header.
    ///
    /// # Errors
    /// [`BadRecord`] with what is wrong.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BadRecord> {
        check_seal(bytes)?;
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(BadRecord::Field("magic"));
        }
        let (granules, log_pages) = (raw.granules.get(), raw.log_pages.get());
        let most = granules.checked_mul(PAGES_PER_GRANULE).filter(|pages| *pages <= 1 << 38);
        let most = most.ok_or(BadRecord::Field("granules"))?;
        if log_pages == 0 || log_pages > most || !log_pages.is_multiple_of(PAGES_PER_GRANULE) {
            return Err(BadRecord::Field("log pages"));
        }
        Ok(Self { guest: GuestId::from_bytes(raw.guest), vcpus: raw.vcpus.get(), granules, log_pages })
    }

    /// Pages of the guest's memory.
    #[must_use]
    pub fn memory_pages(self) -> u64 {
        self.granules * PAGES_PER_GRANULE
    }

    /// Bytes that the protection takes: whole granules.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.log_at(2)
    }

    pub(crate) fn commit_at(half: usize) -> u64 {
        COMMITS_AT + (half * COMMIT_BYTES) as u64
    }

    pub(crate) fn slot_at(self, half: usize) -> u64 {
        SLOTS_AT + half as u64 * slot_bytes(self.vcpus)
    }

    pub(crate) fn index_at(self, half: usize) -> u64 {
        self.slot_at(2).next_multiple_of(LOG_PAGE as u64) + half as u64 * self.log_pages * ENTRY_BYTES as u64
    }

    pub(crate) fn log_at(self, half: usize) -> u64 {
        self.index_at(2).next_multiple_of(GRANULE) + half as u64 * self.log_pages * LOG_PAGE as u64
    }
}

/// A validated copy of a commit's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Counts the guest's commits, from 1.
    pub number: u64,
    /// Pages in its redo log.
    pub pages: u64,
    /// When the guest stood still for it, in nanoseconds since 1970 by its owner's clock.
    pub taken: u64,
    /// The host that owned the guest.
    pub host: HostSlot,
    /// Since when it did: a commit is one of this ownership, and worth nothing to any other.
    pub epoch: Epoch,
    /// Checksum of the entries of its index.
    pub index_crc: u32,
}

impl Commit {
    /// Encodes with its checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; COMMIT_BYTES] {
        let mut raw = RawCommit::new_zeroed();
        raw.number = self.number.into();
        raw.pages = self.pages.into();
        raw.taken = self.taken.into();
        raw.epoch = self.epoch.0.into();
        raw.host = u32::try_from(self.host.index()).unwrap_or(u32::MAX).into();
        raw.index_crc = self.index_crc.into();
        seal(zerocopy::transmute!(raw))
    }

    /// Validates a private copy.
    ///
    /// # Errors
    /// [`BadRecord`] with what is wrong.
    pub fn decode(bytes: &[u8; COMMIT_BYTES]) -> Result<Self, BadRecord> {
        check_seal(bytes)?;
        let raw: RawCommit = zerocopy::transmute!(*bytes);
        let host = u16::try_from(raw.host.get()).ok().and_then(HostSlot::new).ok_or(BadRecord::Field("host"))?;
        let number = raw.number.get();
        if !(1..=LAST_NUMBER).contains(&number) {
            return Err(BadRecord::Field("number"));
        }
        let (pages, taken, epoch) = (raw.pages.get(), raw.taken.get(), Epoch(raw.epoch.get()));
        Ok(Self { number, pages, taken, host, epoch, index_crc: raw.index_crc.get() })
    }

    /// The epoch that its areas carry in their headers: its number, as far as that fits.
    #[must_use]
    pub fn mark(number: u64) -> Epoch {
        Epoch(u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0))
    }

    /// In which half of the protection it lies.
    #[must_use]
    pub fn half(number: u64) -> usize {
        usize::from(number & 1 == 1)
    }
}

/// What a page of a redo log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Which page of the guest's memory.
    pub page: u64,
    /// Checksum of its contents.
    pub crc: u32,
}

impl LogEntry {
    /// Encodes into the index.
    #[must_use]
    pub fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut raw = RawEntry::new_zeroed();
        raw.page = self.page.into();
        raw.crc = self.crc.into();
        zerocopy::transmute!(raw)
    }

    /// Validates a private copy of one, for a guest of so many pages.
    #[must_use]
    pub fn decode(bytes: &[u8; ENTRY_BYTES], memory_pages: u64) -> Option<Self> {
        let raw: RawEntry = zerocopy::transmute!(*bytes);
        let page = raw.page.get();
        (page < memory_pages && raw.zero == 0).then_some(Self { page, crc: raw.crc.get() })
    }
}

/// The entries of a whole index, validated against its checksum and the guest's memory.
///
/// # Errors
/// [`BadRecord`].
pub fn decode_index(bytes: &[u8], crc: u32, memory_pages: u64) -> Result<Vec<LogEntry>, BadRecord> {
    if super::checksum(bytes) != crc {
        return Err(BadRecord::Checksum);
    }
    let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(BadRecord::Field("index"));
    }
    let decode = |entry| LogEntry::decode(entry, memory_pages).ok_or(BadRecord::Field("page"));
    entries.iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> ProtectionShape {
        ProtectionShape { guest: GuestId::from_bytes([7; 16]), vcpus: 3, granules: 9, log_pages: 1024 }
    }

    fn commit() -> Commit {
        let host = HostSlot::new(5).expect("a small slot");
        Commit { number: 8, pages: 3, taken: 17, host, epoch: Epoch(4), index_crc: 0xABCD }
    }

    #[test]
    fn every_word_survives_the_round_trip() {
        for standing in [Standing::Idle(0), Standing::Idle(9), Standing::Active(1), Standing::Sealed(LAST_NUMBER)] {
            assert_eq!(Standing::decode(standing.encode()), Some(standing));
        }
        for word in [1 << 56, 2 << 56, 3 << 56 | 1, u64::MAX] {
            assert_eq!(Standing::decode(word), None, "{word:#x}");
        }
        for (interval, output) in [(1, OutputRule::Pass), (25, OutputRule::Hold), (3_600_000, OutputRule::Pass)] {
            let settings = ProtectionSettings { interval: Duration::from_millis(interval), output };
            assert_eq!(ProtectionSettings::decode(settings.encode()), Some(settings));
        }
        for word in [0, 999, 2 << 56 | 25_000, u64::MAX] {
            assert_eq!(ProtectionSettings::decode(word), None, "{word:#x}");
        }
    }

    #[test]
    fn records_come_back_as_they_were_written_and_with_any_other_byte_are_damaged() {
        assert_eq!(ProtectionShape::decode(&shape().encode()), Ok(shape()));
        assert_eq!(Commit::decode(&commit().encode()), Ok(commit()));
        for at in 0..HEADER_BYTES {
            let (mut header, mut record) = (shape().encode(), commit().encode());
            header[at] ^= 0x10;
            record[at] ^= 0x10;
            assert_eq!(ProtectionShape::decode(&header), Err(BadRecord::Checksum), "byte {at}");
            assert_eq!(Commit::decode(&record), Err(BadRecord::Checksum), "byte {at}");
        }
    }

    #[test]
    fn an_impossible_log_is_damage() {
        for log_pages in [0, 1, 511, 10 * 512, u64::MAX] {
            let bytes = ProtectionShape { log_pages, ..shape() }.encode();
            assert_eq!(ProtectionShape::decode(&bytes), Err(BadRecord::Field("log pages")), "{log_pages}");
        }
        let bytes = ProtectionShape { granules: u64::MAX, ..shape() }.encode();
        assert_eq!(ProtectionShape::decode(&bytes), Err(BadRecord::Field("granules")));
    }

    #[test]
    fn what_lies_in_a_protection_does_not_overlap() {
        let shape = shape();
        let ends = [
            ProtectionShape::commit_at(2),
            shape.slot_at(0),
            shape.slot_at(2),
            shape.index_at(0),
            shape.index_at(2),
            shape.log_at(0),
            shape.log_at(2),
        ];
        assert!(ends.is_sorted(), "{ends:?}");
        assert_eq!(shape.bytes() % GRANULE, 0);
        assert_eq!(shape.log_at(1) % GRANULE, 0);
    }

    #[test]
    fn an_index_is_refused_whole_when_an_entry_is_outside_the_memory() {
        let bytes =
            |pages: &[u64]| -> Vec<u8> { pages.iter().flat_map(|&page| LogEntry { page, crc: 1 }.encode()).collect() };
        let good = bytes(&[0, 7]);
        let crc = super::super::checksum(&good);
        assert_eq!(decode_index(&good, crc, 8).expect("sound").len(), 2);
        assert_eq!(decode_index(&good, crc ^ 1, 8), Err(BadRecord::Checksum));
        assert_eq!(decode_index(&good, crc, 7), Err(BadRecord::Field("page")));
        assert_eq!(decode_index(&good[..15], super::super::checksum(&good[..15]), 8), Err(BadRecord::Field("index")));
    }

    #[test]
    fn a_guests_protection_has_a_tag_of_its_own() {
        let guest = GuestId::from_bytes([7; 16]);
        assert_ne!(protection_tag(guest).to_bytes(), guest.to_bytes());
        assert_ne!(protection_tag(guest), protection_tag(GuestId::from_bytes([8; 16])));
    }
}
