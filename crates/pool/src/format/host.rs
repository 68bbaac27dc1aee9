//! A host entry, 256 bytes: a line of racing words and a record.
//!
//! ```text
//!   0  claim    u64   which process holds the slot: kernel 20 bits, start 22 bits, pid 22 bits; 0 = none
//!   8  state    u64   slot word; its generation is the host's incarnation
//!  16  lease    u64   counted up by the host
//!  24  flags    u64   which host it is about, 32 bits (CRC-32C of its UUID); bit 0: cordoned, bit 1: takes over
//!  32  words about one life of the host: [`super::fence`]
//!  56  zero
//!  64  record, 192 bytes:
//!        0 id 16 · 16 name 64 · 80 kernel 16 · 96 incarnation u64 · 104 started u64 · 112 joined u64
//!      120 pid u32 · 124 kind u32 (1 agent, 2 tool) · 128 address 56 · 184 zero 4 · 188 crc u32
//! ```

use super::address::{ADDRESS_BYTES, HostAddress};
use super::text::{self, NAME_BYTES};
use super::{BadRecord, check_seal, checksum, seal};
use crate::ids::HostId;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offset of the claim word in the entry.
pub const CLAIM: u64 = 0;
/// Offset of the slot word.
pub const STATE: u64 = 8;
/// Offset of the lease counter.
pub const LEASE: u64 = 16;
/// Offset of the flags, which may change while the host is live.
pub const FLAGS: u64 = 24;
/// Offset of the record.
pub const RECORD: u64 = 64;
/// Bytes of the record.
pub const RECORD_BYTES: usize = 192;

/// What kind of process a host is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    /// An agent that may own guests; it stays a member until it leaves.
    Agent,
    /// A command that is a member for as long as it runs, and owns nothing.
    Tool,
}

/// A validated copy of a host's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostRecord {
    /// The host's name for life.
    pub id: HostId,
    /// Its name for people.
    pub name: String,
    /// What it is.
    pub kind: HostKind,
    /// The kernel that it runs on: boot id XOR pid namespace.
    pub kernel: [u8; 16],
    /// Generation of the slot that this record belongs to.
    pub incarnation: u64,
    /// Start time of its process, in clock ticks since boot.
    pub started: u64,
    /// Nanoseconds since 1970 when it joined, by its own clock.
    pub joined: u64,
    /// Its process.
    pub pid: u32,
    /// Where its agent answers other machines.
    pub address: Option<HostAddress>,
}

/// What may change about a host while it is live, and concerns no one life of it.
///
/// The word names the host by the checksum of its UUID in the upper half. About any other host that has the entry later
/// it says nothing, so that nobody need clear it; and what it says stays true when the host returns to the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFlags(u64);

impl HostFlags {
    const CORDONED: u64 = 1;
    const TAKES_OVER: u64 = 2;
    const BITS: u64 = u32::MAX as u64;

    /// What a word says about a host: nothing, if it is about another one.
    #[must_use]
    pub fn decode(word: u64, host: HostId) -> Self {
        let about = u64::from(checksum(&host.to_bytes())) << 32;
        Self(if word & !Self::BITS == about { word } else { about })
    }

    /// The on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        self.0
    }

    /// Whether no guests are to come to the host.
    #[must_use]
    pub fn cordoned(self) -> bool {
        self.0 & Self::CORDONED != 0
    }

    /// Whether its agent takes guests of fenced hosts by itself.
    #[must_use]
    pub fn takes_over(self) -> bool {
        self.0 & Self::TAKES_OVER != 0
    }

    /// The same, and its agent takes guests by itself, or does not.
    #[must_use]
    pub fn with_takeover(self, takes_over: bool) -> Self {
        if takes_over { Self(self.0 | Self::TAKES_OVER) } else { Self(self.0 & !Self::TAKES_OVER) }
    }

    /// The same, cordoned; bits that are not known stay.
    #[must_use]
    pub fn with_cordon(self) -> Self {
        Self(self.0 | Self::CORDONED)
    }

    /// The same, not cordoned.
    #[must_use]
    pub fn without_cordon(self) -> Self {
        Self(self.0 & !Self::CORDONED)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    id: [u8; 16],
    name: [u8; NAME_BYTES],
    kernel: [u8; 16],
    incarnation: U64,
    started: U64,
    joined: U64,
    pid: U32,
    kind: U32,
    address: [u8; ADDRESS_BYTES],
    zero: [u8; 4],
    crc: U32,
}

const _: () = {
    assert!(size_of::<Raw>() == RECORD_BYTES);
    assert!(std::mem::offset_of!(Raw, kernel) == 80);
    assert!(std::mem::offset_of!(Raw, pid) == 120);
    assert!(std::mem::offset_of!(Raw, address) == 128);
    assert!(std::mem::offset_of!(Raw, crc) == 188);
};

/// Id and incarnation in a private copy of a record, if it is valid.
#[must_use]
pub fn identity(bytes: &[u8; RECORD_BYTES]) -> Option<(HostId, u64)> {
    check_seal(bytes).ok()?;
    let raw: Raw = zerocopy::transmute!(*bytes);
    Some((HostId::from_bytes(raw.id), raw.incarnation.get()))
}

impl HostRecord {
    /// Encodes with its checksum.
    ///
    /// # Panics
    /// When the name is longer than 64 bytes; every way to a record checks it.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let raw = Raw {
            id: self.id.to_bytes(),
            name: text::encode_name("host name", &self.name).expect("names are checked where they come in"),
            kernel: self.kernel,
            incarnation: self.incarnation.into(),
            started: self.started.into(),
            joined: self.joined.into(),
            pid: self.pid.into(),
            kind: match self.kind {
                HostKind::Agent => 1,
                HostKind::Tool => 2,
            }
            .into(),
            address: HostAddress::encode(self.address.as_ref()),
            zero: [0; 4],
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
        let name = text::decode("name", &raw.name)?;
        text::encode_name("host name", &name).map_err(|_| BadRecord::Field("name"))?;
        Ok(Self {
            id: HostId::from_bytes(raw.id),
            name,
            kind: match raw.kind.get() {
                1 => HostKind::Agent,
                2 => HostKind::Tool,
                _ => return Err(BadRecord::Field("kind")),
            },
            kernel: raw.kernel,
            incarnation: raw.incarnation.get(),
            started: raw.started.get(),
            joined: raw.joined.get(),
            pid: raw.pid.get(),
            address: HostAddress::decode(&raw.address)?,
        })
    }
}
