//! The bytes of a pool: layout, header and records, as `docs/pool-format.md` specifies them.
//!
//! Everything here is pure: it encodes into bytes and decodes private copies of bytes. A decoder never trusts a length,
//! an index or a count before it has checked it, and never panics; all of them are fuzzed.

pub mod address;
pub mod answers;
pub mod capacity;
pub mod demand;
pub mod fence;
pub mod guest;
pub mod header;
pub mod host;
pub mod journal;
pub mod layout;
pub mod lines;
pub mod pin;
pub mod placement;
pub mod protection;
pub mod report;
pub mod slot_word;
pub mod stripe;
pub mod text;

/// The unit of allocation: 2 MiB.
pub const GRANULE: u64 = 2 << 20;

/// Why a record's bytes are not to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadRecord {
    /// The checksum does not match.
    #[error("its checksum is wrong")]
    Checksum,
    /// A field has a value that the format does not know.
    #[error("its field '{0}' has an impossible value")]
    Field(&'static str),
}

/// CRC-32C (Castagnoli; reflected, initial value and final XOR all ones), the checksum of everything in a pool.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Puts the checksum into the last four bytes of a record, over all bytes before them.
pub(crate) fn seal<const N: usize>(mut record: [u8; N]) -> [u8; N] {
    const { assert!(N > 4) }
    if let Some((bytes, sum)) = record.split_last_chunk_mut::<4>() {
        *sum = checksum(bytes).to_le_bytes();
    }
    record
}

/// Checks what [`seal`] has put there.
pub(crate) fn check_seal<const N: usize>(record: &[u8; N]) -> Result<(), BadRecord> {
    const { assert!(N > 4) }
    match record.split_last_chunk::<4>() {
        Some((bytes, sum)) if checksum(bytes).to_le_bytes() == *sum => Ok(()),
        Some(_) | None => Err(BadRecord::Checksum),
    }
}
