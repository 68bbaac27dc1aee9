//! The pool's header: who it is, which version wrote it, where its tables lie.
//!
//! ```text
//!   0  magic       "nilpool\x1a"           96  tables[8]   offset u64, count u32, entry u32
//!   8  version     u32 (1)                224  data        u64
//!  12  coherence   u32 (0 hardware)       232  label       64 bytes
//!  16  uuid        16 bytes               296  reports     offset u64, count u32, entry u32
//!  32  compat      u64                   312  lines       of hosts and of guests, as above
//!  40  ro_compat   u64                   4092  crc         u32
//!  48  incompat    u64
//!  56  size        u64
//!  64  granule     u64 (2 MiB)
//!  72  created     u64 (ns since 1970)
//!  80  generation  u64
//!  88  reserved    u64 (0)
//! ```

use super::layout::{BadLayout, Layout, Lines, Table};
use super::text::{self, NAME_BYTES};
use super::{GRANULE, check_seal, seal};
use crate::ids::PoolId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First eight bytes of a pool.
pub const MAGIC: [u8; 8] = *b"nilpool\x1a";
/// The format version that this crate writes and reads.
pub const VERSION: u32 = 1;
/// Bytes of a header copy.
pub const HEADER_BYTES: usize = 4096;

/// `incompat` bit 0: no cache coherence between hosts. There are lines for what changes without the pool's lock.
pub const INCOMPAT_SOFTWARE_COHERENCE: u64 = 1;
/// `compat` bit 0: there is a ring of reports. Who does not know it leaves it alone.
pub const COMPAT_REPORTS: u64 = 1;
/// The bits that this crate knows.
const KNOWN_COMPAT: u64 = COMPAT_REPORTS;
const KNOWN_RO_COMPAT: u64 = 0;
const KNOWN_INCOMPAT: u64 = INCOMPAT_SOFTWARE_COHERENCE;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawTable {
    offset: U64,
    count: U32,
    entry: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    coherence: U32,
    uuid: [u8; 16],
    compat: U64,
    ro_compat: U64,
    incompat: U64,
    size: U64,
    granule: U64,
    created: U64,
    generation: U64,
    reserved: U64,
    tables: [RawTable; 8],
    data: U64,
    label: [u8; NAME_BYTES],
    reports: RawTable,
    lines: [RawTable; 2],
    zero: [u8; 3748],
    crc: U32,
}

const _: () = {
    assert!(size_of::<RawHeader>() == HEADER_BYTES);
    assert!(std::mem::offset_of!(RawHeader, tables) == 96);
    assert!(std::mem::offset_of!(RawHeader, label) == 232);
    assert!(std::mem::offset_of!(RawHeader, reports) == 296);
    assert!(std::mem::offset_of!(RawHeader, lines) == 312);
    assert!(std::mem::offset_of!(RawHeader, crc) == 4092);
};

/// How the hosts' caches agree on the contents of a pool or a capacity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coherence {
    /// By hardware: one machine, or CXL 3 back-invalidate. Plain atomics suffice.
    #[default]
    Hardware,
    /// By whoever writes flushing and whoever reads invalidating.
    Software,
}

impl Coherence {
    pub(crate) fn encode(self) -> u8 {
        match self {
            Self::Hardware => 0,
            Self::Software => 1,
        }
    }

    pub(crate) fn decode(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Hardware),
            1 => Some(Self::Software),
            _ => None,
        }
    }
}

impl fmt::Display for Coherence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
        })
    }
}

/// A text that is no coherence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no coherence of capacity; write hardware or software")]
pub struct BadCoherence(String);

impl FromStr for Coherence {
    type Err = BadCoherence;

    fn from_str(text: &str) -> Result<Self, BadCoherence> {
        match text {
            "hardware" => Ok(Self::Hardware),
            "software" => Ok(Self::Software),
            _ => Err(BadCoherence(text.to_owned())),
        }
    }
}

/// A validated copy of the header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The pool's name.
    pub id: PoolId,
    /// Format version.
    pub version: u32,
    /// How caches agree.
    pub coherence: Coherence,
    /// Feature bits that an implementation may ignore.
    pub compat: u64,
    /// Feature bits without which an implementation may only read.
    pub ro_compat: u64,
    /// Feature bits without which an implementation must not touch the pool.
    pub incompat: u64,
    /// Bytes of the whole pool.
    pub size: u64,
    /// Nanoseconds since 1970 at creation, by the creator's clock.
    pub created: u64,
    /// Counts the times that the header was written.
    pub generation: u64,
    /// Where the tables lie.
    pub layout: Layout,
    /// For people.
    pub label: String,
}

/// Why bytes are not the header of a pool that this crate can use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadHeader {
    /// Something else, or nothing.
    #[error("it does not begin with nil's magic")]
    Foreign,
    /// The checksum does not match.
    #[error("its checksum is wrong")]
    Checksum,
    /// A newer format.
    #[error("it has format version {0}, this nil knows version 1; use a newer nil")]
    Version(u32),
    /// Unknown features.
    #[error("it uses features that this nil does not know (incompat {0:#x}); use a newer nil")]
    Incompat(u64),
    /// A field has a value that the format does not know.
    #[error("its field '{0}' has an impossible value")]
    Field(&'static str),
    /// The tables contradict the size.
    #[error("its table of contents is wrong: {0}")]
    Layout(#[from] BadLayout),
}

impl Header {
    /// Encodes with a fresh checksum.
    ///
    /// # Panics
    /// When the label is longer than 64 bytes; every way to a `Header` checks it.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.version = self.version.into();
        raw.coherence = u32::from(self.coherence.encode()).into();
        raw.uuid = self.id.to_bytes();
        raw.compat = self.compat.into();
        raw.ro_compat = self.ro_compat.into();
        raw.incompat = self.incompat.into();
        raw.size = self.size.into();
        raw.granule = GRANULE.into();
        raw.created = self.created.into();
        raw.generation = self.generation.into();
        for (raw, (_, table)) in raw.tables.iter_mut().zip(self.layout.named()) {
            *raw = RawTable::of(table);
        }
        if let Some(ring) = self.layout.reports {
            raw.reports = RawTable::of(ring);
        }
        if let Some(lines) = self.layout.lines {
            raw.lines = [lines.hosts, lines.guests].map(RawTable::of);
        }
        raw.data = self.layout.data.into();
        raw.label = text::encode_label("label", &self.label).expect("labels are checked where they come in");
        seal(zerocopy::transmute!(raw))
    }

    /// Validates a private copy of a header; nothing is computed from a field before it has been checked.
    ///
    /// # Errors
    /// [`BadHeader`] with the reason.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>().ok_or(BadHeader::Foreign)?;
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(BadHeader::Foreign);
        }
        // A newer version may have its checksum elsewhere: say "newer" rather than "damaged".
        if raw.version.get() > VERSION {
            return Err(BadHeader::Version(raw.version.get()));
        }
        check_seal(bytes).map_err(|_| BadHeader::Checksum)?;
        if raw.version.get() != VERSION {
            return Err(BadHeader::Field("version"));
        }
        let coherence = raw.check_features()?;
        if raw.granule.get() != GRANULE {
            return Err(BadHeader::Field("granule"));
        }
        let layout = raw.layout(coherence);
        layout.validate(raw.size.get())?;
        // A feature that may be ignored is ignored where it makes no sense; an older nil that repairs a header drops it.
        let has_reports = raw.compat.get() & COMPAT_REPORTS != 0;
        let layout = if has_reports { layout.with_reports(raw.reports.table(), raw.size.get()) } else { layout };
        Ok(Self {
            id: PoolId::from_bytes(raw.uuid),
            version: raw.version.get(),
            coherence,
            compat: raw.compat.get(),
            ro_compat: raw.ro_compat.get(),
            incompat: raw.incompat.get(),
            size: raw.size.get(),
            created: raw.created.get(),
            generation: raw.generation.get(),
            layout,
            label: text::decode("label", &raw.label).map_err(|_| BadHeader::Field("label"))?,
        })
    }

    /// Feature bits that forbid this crate to write.
    #[must_use]
    pub fn unknown_ro_compat(&self) -> u64 {
        self.ro_compat & !KNOWN_RO_COMPAT
    }

    /// Feature bits that this crate does not know and may ignore.
    #[must_use]
    pub fn unknown_compat(&self) -> u64 {
        self.compat & !KNOWN_COMPAT
    }
}

impl RawTable {
    fn of(table: Table) -> Self {
        Self { offset: table.offset.into(), count: table.count.into(), entry: table.entry.into() }
    }

    fn table(&self) -> Table {
        Table { offset: self.offset.get(), count: self.count.get(), entry: self.entry.get() }
    }
}

impl RawHeader {
    fn check_features(&self) -> Result<Coherence, BadHeader> {
        let incompat = self.incompat.get();
        if incompat & !KNOWN_INCOMPAT != 0 {
            return Err(BadHeader::Incompat(incompat & !KNOWN_INCOMPAT));
        }
        let needs_lines = incompat & INCOMPAT_SOFTWARE_COHERENCE != 0;
        let coherence = Coherence::decode(self.coherence.get());
        coherence
            .filter(|coherence| (*coherence == Coherence::Software) == needs_lines)
            .ok_or(BadHeader::Field("coherence"))
    }

    fn layout(&self, coherence: Coherence) -> Layout {
        let [hosts, journals, capacity_words, tags, guest_words, owners, guests, capacities] =
            self.tables.map(|raw| raw.table());
        let data = self.data.get();
        let [host_lines, guest_lines] = self.lines.map(|raw| raw.table());
        let lines = (coherence == Coherence::Software).then_some(Lines { hosts: host_lines, guests: guest_lines });
        let reports = None;
        Layout { hosts, journals, capacity_words, tags, guest_words, owners, guests, capacities, reports, lines, data }
    }
}
