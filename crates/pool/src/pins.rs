//! The pin table: which parts of a guest's memory cannot move now, who holds them, and why.
//!
//! It lies in the guest's state capacity and is written by the owner's worker; any number of its threads may take and
//! release pins at once, because an entry is claimed by compare-and-swap on its word, as [`crate::format::pin`] draws it.
//! Readers validate a copy. An entry that is held but damaged is listed as a pin on all of the memory: what it pins is
//! not known, and a pin that is overlooked loses data.

use crate::capacity_mapping::CapacityMapping;
use crate::error::{Error, Result};
use crate::format::pin::{ENTRY_BYTES, LAST_USE, PINS, PinId, PinRecord, PinWord, RECORD};
use crate::format::{BadRecord, GRANULE};
use crate::mapping::exchange;
use crate::ownership::HostSlot;
use crate::persist::Point;
use crate::sync::{AtomicU64, Ordering, fence};
use std::sync::Arc;

/// Bytes of the table.
pub(crate) const TABLE_BYTES: u64 = PINS as u64 * ENTRY_BYTES;
/// How often an entry that changes while it is copied is read again.
const READ_ATTEMPTS: usize = 100;

/// A part of a guest's memory that cannot move now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin {
    /// Its name.
    pub id: PinId,
    /// Where it begins in the guest's memory (the contiguous range, not the guest's address space).
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Who holds it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// The host whose devices use it.
    pub host: HostSlot,
}

/// What pin is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinRequest {
    /// Where it begins in the guest's memory.
    pub offset: u64,
    /// Its length; not 0.
    pub bytes: u64,
    /// Who holds it: 1 to 31 bytes.
    pub owner: String,
    /// Why: at most 63 bytes.
    pub reason: String,
    /// The host whose devices use it.
    pub host: HostSlot,
}

/// A guest's pin table. Clones are cheap and show the same table.
#[derive(Clone, Debug)]
pub struct PinTable {
    mapping: Arc<CapacityMapping>,
    at: u64,
    memory_bytes: u64,
}

/// An entry as a reader found it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PinSeen {
    /// Nothing is pinned by it.
    Free,
    /// It is being written, or its writer died.
    Taking {
        /// Whose entry it is.
        host: HostSlot,
    },
    /// It pins something.
    Held(Pin),
    /// What it pins cannot be told.
    Damaged {
        /// What is wrong with it.
        why: String,
    },
}

impl PinTable {
    pub(crate) fn new(mapping: Arc<CapacityMapping>, at: u64, granules: u64) -> Self {
        Self { mapping, at, memory_bytes: granules * GRANULE }
    }

    fn entry_at(&self, entry: u16) -> u64 {
        self.at + u64::from(entry) * ENTRY_BYTES
    }

    fn word_at(&self, entry: u16) -> &AtomicU64 {
        assert!(usize::from(entry) < PINS, "pin entry {entry}");
        self.mapping.mapping().word(self.entry_at(entry))
    }

    fn entries() -> impl Iterator<Item = u16> {
        0..u16::try_from(PINS).unwrap_or(u16::MAX)
    }

    /// Pins a part of the memory: from now on no chunk of it begins to move. One that is moving already may still do so: who
    /// takes a pin takes hold of the pages afterwards, and for writing, so that it waits for such a chunk.
    ///
    /// # Errors
    /// [`Error::PinOutside`], [`Error::BadText`], [`Error::PinTableFull`].
    pub fn take(&self, request: &PinRequest) -> Result<PinId> {
        let PinRequest { offset, bytes, host, .. } = *request;
        if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > self.memory_bytes) {
            return Err(Error::PinOutside { offset, bytes, memory: self.memory_bytes });
        }
        let (owner, reason) = (request.owner.clone(), request.reason.clone());
        let mut record = PinRecord { uses: 0, offset, bytes, owner, reason };
        for entry in Self::entries() {
            let word = self.word_at(entry);
            let free = word.load(Ordering::Acquire);
            let Some(PinWord::Free { uses: last }) = PinWord::decode(free) else { continue };
            if last == LAST_USE {
                continue;
            }
            record.uses = last + 1;
            let encoded = record.encode()?;
            let (taking, held) = (PinWord::Taking { host, uses: last + 1 }, PinWord::Held { host, uses: last + 1 });
            if exchange(word, free, taking.encode()).is_err() {
                continue;
            }
            // Whoever sees a byte of the new record sees that the word is no longer what it was.
            fence(Ordering::Release);
            self.mapping.mapping().write(self.entry_at(entry) + RECORD, &encoded);
            self.mapping.mapping().persist(Point::Pin, self.entry_at(entry) + RECORD, encoded.len());
            // A repair takes the entry back only from a worker that is dead.
            if exchange(word, taking.encode(), held.encode()).is_ok() {
                return Ok(PinId { entry, uses: record.uses });
            }
        }
        record.encode()?;
        Err(Error::PinTableFull { pins: PINS })
    }

    /// Ends a pin.
    ///
    /// # Errors
    /// [`Error::NoPin`] when it has ended already.
    pub fn release(&self, pin: PinId) -> Result<()> {
        self.change(pin, PinWord::Free { uses: pin.uses })
    }

    /// Hands a pin over to another host: pinned there, unpinned here. Its memory must be in the pool.
    ///
    /// # Errors
    /// [`Error::NoPin`] when it has ended already.
    pub fn rehost(&self, pin: PinId, host: HostSlot) -> Result<()> {
        self.change(pin, PinWord::Held { host, uses: pin.uses })
    }

    /// Moves the word of a pin that is held to another value.
    fn change(&self, pin: PinId, to: PinWord) -> Result<()> {
        let gone = || Error::NoPin { pin };
        let word = (usize::from(pin.entry) < PINS).then(|| self.word_at(pin.entry)).ok_or_else(gone)?;
        loop {
            let seen = word.load(Ordering::Acquire);
            match PinWord::decode(seen) {
                Some(PinWord::Held { uses, .. }) if uses == pin.uses => {}
                _ => return Err(gone()),
            }
            if exchange(word, seen, to.encode()).is_ok() {
                return Ok(());
            }
        }
    }

    /// All pins. An entry that is damaged pins all of the memory, until it is released or `nil pool check --repair` ends it.
    #[must_use]
    pub fn list(&self) -> Vec<Pin> {
        Self::entries()
            .filter_map(|entry| match self.look(entry) {
                PinSeen::Free | PinSeen::Taking { .. } => None,
                PinSeen::Held(pin) => Some(pin),
                PinSeen::Damaged { why } => Some(self.pin_on_everything(entry, &why)),
            })
            .collect()
    }

    fn pin_on_everything(&self, entry: u16, why: &str) -> Pin {
        let word = PinWord::decode(self.word_at(entry).load(Ordering::Acquire));
        let (host, uses) = match word {
            Some(PinWord::Taking { host, uses } | PinWord::Held { host, uses }) => (Some(host), uses),
            Some(PinWord::Free { uses }) => (None, uses),
            None => (None, 0),
        };
        let host = host.or_else(|| HostSlot::new(0)).expect("slot 0 is a slot");
        let (owner, reason) = (format!("damaged pin {entry}"), why.to_owned());
        Pin { id: PinId { entry, uses }, offset: 0, bytes: self.memory_bytes, owner, reason, host }
    }

    /// Frees an entry that is being written by nobody any more, or is damaged. Only when nobody runs the guest.
    pub(crate) fn free(&self, entry: u16) -> bool {
        let word = self.word_at(entry);
        let seen = word.load(Ordering::Acquire);
        let uses = match PinWord::decode(seen) {
            Some(PinWord::Free { .. }) => return false,
            Some(PinWord::Taking { uses, .. } | PinWord::Held { uses, .. }) => uses,
            // The use of its record, if that can be read, so that no use is repeated.
            None => self.record(entry).map_or(seen & LAST_USE, |record| record.uses & LAST_USE),
        };
        exchange(word, seen, PinWord::Free { uses }.encode()).is_ok()
    }

    fn record(&self, entry: u16) -> std::result::Result<PinRecord, BadRecord> {
        PinRecord::decode(&self.mapping.mapping().read(self.entry_at(entry) + RECORD))
    }

    /// One entry, copied between two looks at its word and validated.
    pub(crate) fn look(&self, entry: u16) -> PinSeen {
        let word = self.word_at(entry);
        let mut attempt = 0;
        loop {
            let before = word.load(Ordering::Acquire);
            let (host, uses) = match PinWord::decode(before) {
                Some(PinWord::Free { .. }) => return PinSeen::Free,
                Some(PinWord::Taking { host, .. }) => return PinSeen::Taking { host },
                Some(PinWord::Held { host, uses }) => (host, uses),
                None => return PinSeen::Damaged { why: format!("its word {before:#018x} is not a valid one") },
            };
            let record = self.record(entry);
            fence(Ordering::Acquire);
            attempt += 1;
            if word.load(Ordering::Relaxed) == before || attempt == READ_ATTEMPTS {
                return self.judge(PinId { entry, uses }, host, record);
            }
        }
    }

    fn judge(
        &self,
        id: PinId,
        host: HostSlot,
        record: std::result::Result<PinRecord, crate::format::BadRecord>,
    ) -> PinSeen {
        let damaged = |why: &str| PinSeen::Damaged { why: why.to_owned() };
        match record {
            Err(bad) => damaged(&bad.to_string()),
            Ok(record) if record.uses != id.uses => damaged("its record belongs to another use of the entry"),
            Ok(record) if record.offset + record.bytes > self.memory_bytes => {
                damaged("it reaches past the end of the guest's memory")
            }
            Ok(PinRecord { offset, bytes, owner, reason, .. }) => {
                PinSeen::Held(Pin { id, offset, bytes, owner, reason, host })
            }
        }
    }
}
