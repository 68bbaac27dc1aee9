//! The pool's tables in mapped memory: words by name, records as validated copies.

use crate::exclusion::Tickets;
use crate::format::capacity::{self, CapacityRecord};
use crate::format::fence;
use crate::format::guest::{self, GuestRecord};
use crate::format::host::{self, HostRecord};
use crate::format::journal::{self, Entry};
use crate::format::layout::{CAPACITY_RECORD, HOST_ENTRY, HOST_LINES, LINE, Layout, Table};
use crate::format::lines;
use crate::format::report::{self, ReportRecord};
use crate::format::slot_word::{Reference, SlotState};
use crate::format::{BadRecord, GRANULE};
use crate::ids::{HostId, Tag};
use crate::mapping::Mapping;
use crate::owner_map::OwnerMap;
use crate::ownership::{HostSlot, OwnershipWord};
use crate::persist::{Point, refresh};
use crate::slots::Slots;
use crate::sync::{AtomicU64, Ordering};
use crate::tag_index::TagIndex;

/// How often a record that changes while it is copied is read again.
const READ_ATTEMPTS: usize = 100;

/// The mapped metadata of a pool.
#[derive(Debug)]
pub(crate) struct Tables {
    mapping: Mapping,
    layout: Layout,
}

/// A slot as a reader found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen<R> {
    /// Nothing is there.
    Free,
    /// Something, in this state, with this record; while it is being made the record may not be written yet.
    Used(SlotState, Result<R, BadRecord>),
    /// The slot's word is damaged.
    BadWord(u64),
}

impl Tables {
    pub(crate) fn new(mapping: Mapping, layout: Layout) -> Self {
        Self { mapping, layout }
    }

    /// Whether their memory is no more.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn table_words(&self, table: Table) -> &[AtomicU64] {
        self.mapping.words(table.offset, table.count as usize)
    }

    // Hosts.

    pub(crate) fn host_slots(&self) -> impl Iterator<Item = HostSlot> + use<> {
        (0..self.layout.hosts.count).filter_map(|index| HostSlot::new(u16::try_from(index).ok()?))
    }

    /// The place of a host's lines.
    fn host_line(&self, slot: HostSlot, line: u64) -> Option<u64> {
        Some(self.layout.lines?.hosts.at(slot.index()) + line * u64::from(LINE))
    }

    /// A word that only this host's processes write: in the host's own line, where there is one.
    fn own_word(&self, slot: HostSlot, in_line: u64, field: u64) -> &AtomicU64 {
        match self.host_line(slot, lines::OWN) {
            Some(line) => self.mapping.word(line + in_line),
            None => self.host_word(slot, field),
        }
    }

    /// The tickets of the hosts, where they need them.
    pub(crate) fn tickets(&self) -> Option<Tickets<'_>> {
        let table = self.layout.lines?.hosts;
        let skipped = lines::OWN * u64::from(LINE) + lines::TICKET;
        let words = usize::try_from((table.bytes() - skipped) / 8).ok()?;
        Some(Tickets::new(self.mapping.words(table.offset + skipped, words), HOST_LINES as usize / 8))
    }

    /// Who wants to come into an entry, and whether somebody has; where compare-and-swap cannot decide it.
    pub(crate) fn door(&self, slot: HostSlot) -> Option<[&AtomicU64; 2]> {
        let word = |line| Some(self.mapping.word(self.host_line(slot, line)?));
        Some([word(lines::CANDIDATE)?, word(lines::DOOR)?])
    }

    fn host_word(&self, slot: HostSlot, field: u64) -> &AtomicU64 {
        self.mapping.word(self.layout.hosts.at(slot.index()) + field)
    }

    pub(crate) fn host_claim(&self, slot: HostSlot) -> &AtomicU64 {
        self.own_word(slot, lines::CLAIM, host::CLAIM)
    }

    pub(crate) fn host_state_word(&self, slot: HostSlot) -> &AtomicU64 {
        self.host_word(slot, host::STATE)
    }

    /// The host table's slot words.
    pub(crate) fn hosts(&self) -> Slots<'_> {
        let first = self.layout.hosts.offset + host::STATE;
        let words = usize::try_from((self.layout.hosts.bytes() - host::STATE) / 8).unwrap_or(0);
        Slots::strided(self.mapping.words(first, words), HOST_ENTRY as usize / 8)
    }

    pub(crate) fn host_lease(&self, slot: HostSlot) -> &AtomicU64 {
        self.own_word(slot, lines::LEASE, host::LEASE)
    }

    pub(crate) fn host_flags(&self, slot: HostSlot) -> &AtomicU64 {
        self.host_word(slot, host::FLAGS)
    }

    pub(crate) fn host_terms(&self, slot: HostSlot) -> &AtomicU64 {
        self.host_word(slot, fence::TERMS)
    }

    pub(crate) fn host_fence(&self, slot: HostSlot) -> &AtomicU64 {
        self.host_word(slot, fence::FENCE)
    }

    pub(crate) fn host_presence(&self, slot: HostSlot) -> &AtomicU64 {
        self.host_word(slot, fence::PRESENCE)
    }

    pub(crate) fn host(&self, slot: HostSlot) -> Seen<HostRecord> {
        see(self.host_state_word(slot), || {
            HostRecord::decode(&self.mapping.read(self.layout.hosts.at(slot.index()) + host::RECORD))
        })
    }

    /// Id and incarnation of a host's record, without anything that is allocated.
    pub(crate) fn host_identity(&self, slot: HostSlot) -> Option<(HostId, u64)> {
        let record = self.mapping.read(self.layout.hosts.at(slot.index()) + host::RECORD);
        crate::sync::fence(Ordering::Acquire);
        host::identity(&record)
    }

    pub(crate) fn write_host(&self, slot: HostSlot, record: &HostRecord) {
        let (at, bytes) = (self.layout.hosts.at(slot.index()) + host::RECORD, record.encode());
        self.mapping.write(at, &bytes);
        self.mapping.persist(Point::Host, at, bytes.len());
    }

    /// Both entries of a host's journal.
    pub(crate) fn journal(&self, slot: HostSlot) -> [Result<Entry, BadRecord>; 2] {
        let at = self.layout.journals.at(slot.index());
        [0, journal::ENTRY_BYTES as u64].map(|offset| Entry::decode(&self.mapping.read(at + offset)))
    }

    pub(crate) fn write_journal(&self, slot: HostSlot, entry: &Entry) {
        let bank = (entry.sequence & 1) * journal::ENTRY_BYTES as u64;
        let at = self.layout.journals.at(slot.index()) + bank;
        self.mapping.write(at, &entry.encode());
        crate::sync::fence(Ordering::Release);
        self.mapping.persist(Point::Journal, at, journal::ENTRY_BYTES);
    }

    // Reports.

    /// The words of the ring's entries, if there is a ring.
    pub(crate) fn report_slots(&self) -> Option<Slots<'_>> {
        let ring = self.layout.reports?;
        let words = usize::try_from(ring.bytes() / 8).ok()?;
        Some(Slots::strided(self.mapping.words(ring.offset, words), ring.entry as usize / 8))
    }

    /// An entry of the ring; nothing where there is no such entry.
    pub(crate) fn report(&self, entry: usize) -> Seen<ReportRecord> {
        let Some((ring, slots)) = self.layout.reports.zip(self.report_slots()) else { return Seen::Free };
        see(slots.word(entry), || ReportRecord::decode(&self.mapping.read(ring.at(entry) + report::RECORD)))
    }

    pub(crate) fn write_report(&self, entry: usize, record: &ReportRecord) {
        if let Some(ring) = self.layout.reports {
            let (at, bytes) = (ring.at(entry) + report::RECORD, record.encode());
            self.mapping.write(at, &bytes);
            self.mapping.persist(Point::Report, at, bytes.len());
        }
    }

    // Capacities.

    pub(crate) fn capacity_slots(&self) -> Slots<'_> {
        Slots::dense(self.table_words(self.layout.capacity_words))
    }

    pub(crate) fn owners(&self) -> OwnerMap<'_> {
        OwnerMap {
            words: self.table_words(self.layout.owners),
            capacities: self.capacity_slots(),
            first_data: self.layout.first_data_granule(),
        }
    }

    pub(crate) fn tags(&self) -> TagIndex<'_> {
        TagIndex { words: self.table_words(self.layout.tags), capacities: self.capacity_slots() }
    }

    fn capacity_at(&self, slot: usize) -> u64 {
        self.layout.capacities.at(slot)
    }

    pub(crate) fn capacity(&self, slot: usize) -> Seen<CapacityRecord> {
        see(self.capacity_slots().word(slot), || self.capacity_record(slot))
    }

    /// The record as it lies there, whatever the slot's state.
    pub(crate) fn capacity_record(&self, slot: usize) -> Result<CapacityRecord, BadRecord> {
        let record = CapacityRecord::decode(&self.mapping.read::<{ capacity::RECORD_BYTES }>(self.capacity_at(slot)))?;
        let granules = u64::from(self.layout.owners.count);
        if !record.fits(self.layout.data / GRANULE, granules) {
            return Err(BadRecord::Field("extents"));
        }
        Ok(record)
    }

    /// The words beside the record are the caller's to write; then [`Tables::persist_capacity`].
    pub(crate) fn write_capacity(&self, slot: usize, record: &CapacityRecord) {
        self.mapping.write(self.capacity_at(slot), &record.encode());
    }

    /// Returns once a capacity's record and the words beside it are in the pool's memory.
    pub(crate) fn persist_capacity(&self, slot: usize) {
        self.mapping.persist(Point::Capacity, self.capacity_at(slot), CAPACITY_RECORD as usize);
    }

    pub(crate) fn capacity_user(&self, slot: usize) -> &AtomicU64 {
        self.mapping.word(self.capacity_at(slot) + capacity::USER)
    }

    /// Holds the capacity's generation while its release is asked for.
    pub(crate) fn capacity_asked(&self, slot: usize) -> &AtomicU64 {
        self.mapping.word(self.capacity_at(slot) + capacity::ASKED)
    }

    /// Names the host that makes the striped capacity of a leg.
    pub(crate) fn capacity_maker(&self, slot: usize) -> &AtomicU64 {
        self.mapping.word(self.capacity_at(slot) + capacity::MAKER)
    }

    /// What the hosts on its access list have answered.
    pub(crate) fn capacity_answers(&self, slot: usize) -> &AtomicU64 {
        self.mapping.word(self.capacity_at(slot) + capacity::ANSWERS)
    }

    /// By which it is taken away from the guest that uses it.
    pub(crate) fn capacity_demand(&self, slot: usize) -> &AtomicU64 {
        self.mapping.word(self.capacity_at(slot) + capacity::DEMAND)
    }

    /// When that was demanded.
    pub(crate) fn capacity_demanded_at(&self, slot: usize) -> &AtomicU64 {
        self.mapping.word(self.capacity_at(slot) + capacity::DEMANDED_AT)
    }

    /// The record of exactly this capacity.
    pub(crate) fn capacity_of(&self, reference: Reference) -> Option<CapacityRecord> {
        match self.capacity(reference.slot.into()) {
            Seen::Used(state, Ok(record)) if state.current() == Some(reference.generation) => {
                (record.generation == reference.generation).then_some(record)
            }
            Seen::Used(..) | Seen::Free | Seen::BadWord(_) => None,
        }
    }

    /// The capacities with this tag; more than one only while two are contending for it.
    pub(crate) fn with_tag(&self, tag: Tag) -> impl Iterator<Item = Reference> + '_ {
        self.tags().candidates(tag).filter(move |reference| self.tag_of(*reference) == Some(tag))
    }

    /// The tag of a capacity that is entered in the index, without checking its whole record.
    fn tag_of(&self, reference: Reference) -> Option<Tag> {
        let bytes = self.mapping.read::<24>(self.capacity_at(reference.slot.into()));
        let (tag, generation) = bytes.split_at(16);
        (generation == reference.generation.to_le_bytes()).then(|| Tag::from_bytes(tag.try_into().unwrap_or_default()))
    }

    /// The guest that uses a capacity now.
    pub(crate) fn user_of(&self, slot: usize) -> Option<Reference> {
        let word = self.capacity_user(slot).load(Ordering::Acquire);
        Reference::decode(word).filter(|guest| self.guest_slots().is_current(*guest))
    }

    // Guests.

    pub(crate) fn guest_slots(&self) -> Slots<'_> {
        Slots::dense(self.table_words(self.layout.guest_words))
    }

    /// Where a guest's racing page begins.
    pub(crate) fn guest_at(&self, slot: usize) -> u64 {
        self.layout.guests.at(slot)
    }

    pub(crate) fn guest(&self, slot: usize) -> Seen<GuestRecord> {
        see(self.guest_slots().word(slot), || self.guest_record(slot))
    }

    pub(crate) fn guest_record(&self, slot: usize) -> Result<GuestRecord, BadRecord> {
        GuestRecord::decode(&self.mapping.read::<{ guest::RECORD_BYTES }>(self.guest_at(slot) + guest::RECORD))
    }

    pub(crate) fn write_guest(&self, slot: usize, record: &GuestRecord) {
        let (at, bytes) = (self.guest_at(slot) + guest::RECORD, record.encode());
        self.mapping.write(at, &bytes);
        self.mapping.persist(Point::Guest, self.guest_at(slot), guest::RACING_BYTES);
        self.mapping.persist(Point::Guest, at, bytes.len());
    }

    /// The same word, by its type.
    pub(crate) fn ownership_word(&self, slot: usize) -> &OwnershipWord {
        self.mapping.ownership_word(self.guest_at(slot) + guest::OWNERSHIP)
    }

    /// Where a host speaks of a guest, if hosts have lines: the word, and the generation of which guest it is about.
    pub(crate) fn guest_line(&self, slot: usize, host: HostSlot) -> Option<[&AtomicU64; 2]> {
        let at = self.layout.lines?.guests.at(slot) + host.index() as u64 * u64::from(LINE);
        (host.index() < self.layout.hosts.count as usize)
            .then(|| [lines::WORD, lines::GENERATION].map(|field| self.mapping.word(at + field)))
    }

    /// All of them as they are in memory now, if hosts have lines.
    pub(crate) fn refreshed_guest_lines(&self, slot: usize) -> impl Iterator<Item = (HostSlot, [&AtomicU64; 2])> {
        if let Some(lines) = self.layout.lines {
            let (at, bytes) = (lines.guests.at(slot), lines.guests.entry as usize);
            refresh(self.mapping.at(at, bytes, 8), bytes);
        }
        self.host_slots().filter_map(move |host| Some((host, self.guest_line(slot, host)?)))
    }

    pub(crate) fn guest_ownership(&self, slot: usize) -> &AtomicU64 {
        self.mapping.word(self.guest_at(slot) + guest::OWNERSHIP)
    }
}

/// Copies a record between two looks at its slot's word, so that the copy belongs to the state.
fn see<R>(word: &AtomicU64, record: impl Fn() -> Result<R, BadRecord>) -> Seen<R> {
    let mut attempt = 0;
    loop {
        let before = word.load(Ordering::Acquire);
        let state = match SlotState::decode(before) {
            Ok(SlotState::Free { .. }) => return Seen::Free,
            Ok(state) => state,
            Err(_) => return Seen::BadWord(before),
        };
        let record = record();
        crate::sync::fence(Ordering::Acquire);
        attempt += 1;
        if word.load(Ordering::Relaxed) == before || attempt == READ_ATTEMPTS {
            return Seen::Used(state, record);
        }
    }
}
