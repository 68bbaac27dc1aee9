//! An entry of the ring of reports, 8192 bytes: a word, and what somebody wants to be remembered about a job.
//!
//! ```text
//!    0  word      u64   built like a slot word; its generation is the report's sequence number
//!    8  sequence  u64   the same again
//!   16  job       16 bytes
//!   32  guest     16 bytes
//!   48  written   u64   ns since 1970
//!   56  length    u32   bytes of the report
//!   60  zero      u32
//!   64  report    8124 bytes, padded with zeros
//! 8188  crc       u32   of bytes 8..8188
//! ```

use super::layout::REPORT_ENTRY;
use super::{BadRecord, check_seal, seal};
use crate::ids::{GuestId, JobId};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offset of the word in the entry.
pub const WORD: u64 = 0;
/// Offset of the record.
pub const RECORD: u64 = 8;
/// Bytes of the record.
pub const RECORD_BYTES: usize = REPORT_ENTRY as usize - 8;
/// Most bytes of a report.
pub const MAX_REPORT: usize = 8124;

/// A validated copy of a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReportRecord {
    /// Counts all reports of the pool.
    pub sequence: u64,
    /// The job that it is about.
    pub job: JobId,
    /// The guest that the job was about.
    pub guest: GuestId,
    /// Nanoseconds since 1970 when it was written, by its writer's clock.
    pub written: u64,
    /// What it says; only its writer and its readers know the form.
    pub bytes: Vec<u8>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    sequence: U64,
    job: [u8; 16],
    guest: [u8; 16],
    written: U64,
    length: U32,
    zero: U32,
    report: [u8; MAX_REPORT],
    crc: U32,
}

const _: () = {
    assert!(size_of::<Raw>() == RECORD_BYTES);
    assert!(std::mem::offset_of!(Raw, report) == 56);
    assert!(std::mem::offset_of!(Raw, crc) == 8180);
};

impl ReportRecord {
    /// Encodes with its checksum.
    ///
    /// # Panics
    /// When the report is longer than [`MAX_REPORT`]; every way to a record checks it.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut report = [0; MAX_REPORT];
        report[..self.bytes.len()].copy_from_slice(&self.bytes);
        let raw = Raw {
            sequence: self.sequence.into(),
            job: self.job.to_bytes(),
            guest: self.guest.to_bytes(),
            written: self.written.into(),
            length: u32::try_from(self.bytes.len()).expect("a report is short").into(),
            zero: 0.into(),
            report,
            crc: 0.into(),
        };
        seal(zerocopy::transmute!(raw))
    }

    /// Validates a private copy.
    ///
    /// # Errors
    /// [`BadRecord`] with what is wrong.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, BadRecord> {
        check_seal(bytes)?;
        let raw: Raw = zerocopy::transmute!(*bytes);
        let length = usize::try_from(raw.length.get()).unwrap_or(usize::MAX);
        let report = raw.report.get(..length).ok_or(BadRecord::Field("length"))?;
        Ok(Self {
            sequence: raw.sequence.get(),
            job: JobId::from_bytes(raw.job),
            guest: GuestId::from_bytes(raw.guest),
            written: raw.written.get(),
            bytes: report.to_vec(),
        })
    }
}
