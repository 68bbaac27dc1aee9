//! Finishing or undoing what a dead host left half done.
//!
//! | journal says     | and the slot is        | then                                                          |
//! |------------------|------------------------|---------------------------------------------------------------|
//! | add capacity     | `Making` by the host   | undo: give its granules back, take its tag out, free the slot |
//! | release capacity | `Unmaking` by the host | finish; or put back, if a guest uses it                       |
//! | create guest     | not `Live`             | undo its capacities, then the guest                           |
//! | destroy guest    | `Unmaking` by the host | finish if its ownership word is vacant, else put back         |
//! | anything         | report entry `Making`  | free it                                                       |
//! | anything         | anything else          | nothing: it was not begun, or came to its end                 |
//!
//! Every step is a compare-and-swap on a word that names the exact generation, so recovery may be interrupted, repeated,
//! and done by several peers at once.

use crate::format::capacity::{CapacityRecord, Extent};
use crate::format::guest::{ARM, BELL_SOURCE, BELL_TARGET};
use crate::format::journal::{Entry, Intent};
use crate::format::slot_word::{BadSlotWord, Reference, SlotState};
use crate::format::stripe::{Composition, Whole};
use crate::format::{BadRecord, GRANULE};
use crate::ownership::{HostSlot, Ownership};
use crate::pool::Pool;
use crate::slots::{Slots, clear};
use crate::sync::Ordering;
use crate::tables::Seen;
use serde::Serialize;

/// What recovery found to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Recovered {
    /// Half-made things that were undone.
    pub undone: u32,
    /// Half-done releases that were finished.
    pub finished: u32,
    /// Releases that were called off.
    pub put_back: u32,
}

impl Recovered {
    /// Whether there was anything to do.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// Changes a pool's tables in the name of the host in `host`: the host itself, or who recovers it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) host: HostSlot,
}

impl<'a> Actor<'a> {
    pub(crate) fn new(pool: &'a Pool, host: HostSlot) -> Self {
        Self { pool, host }
    }

    /// The last thing that the host noted in its journal.
    pub(crate) fn last_intent(&self) -> Option<Entry> {
        if self.host.index() >= self.pool.tables().layout().hosts.count as usize {
            return None;
        }
        let entries = self.pool.tables().journal(self.host).into_iter().filter_map(Result::<Entry, BadRecord>::ok);
        entries.max_by_key(|entry| (entry.incarnation, entry.sequence))
    }

    /// The host's last intent, if it was begun and has not come to its end.
    pub(crate) fn pending(&self) -> Option<Intent> {
        let intent = self.last_intent()?.intent;
        let tables = self.pool.tables();
        let ours = |slots: Slots<'_>, what: Reference| {
            let state = slots.load(what.slot.into());
            self.is_making(state, what) || self.is_unmaking(state, what)
        };
        let pending = match intent {
            Intent::Idle => false,
            Intent::AddCapacity(capacity) | Intent::ReleaseCapacity(capacity) => {
                ours(tables.capacity_slots(), capacity)
            }
            Intent::CreateGuest { guest, memory, state } | Intent::DestroyGuest { guest, memory, state } => {
                let mut capacities = [memory, state].into_iter().flatten();
                ours(tables.guest_slots(), guest) || capacities.any(|capacity| ours(tables.capacity_slots(), capacity))
            }
        };
        pending.then_some(intent)
    }

    /// Settles a capacity that is half made or half released by the host, whatever its journal says.
    pub(crate) fn settle_capacity(&self, capacity: Reference) -> Recovered {
        let mut recovered = Recovered::default();
        self.undo_capacity(capacity, &mut recovered);
        self.settle_release(capacity, &mut recovered);
        recovered
    }

    /// Settles a guest that is half made or half destroyed by the host, whatever its journal says.
    pub(crate) fn settle_guest(&self, guest: Reference, capacities: [Option<Reference>; 2]) -> Recovered {
        let mut recovered = Recovered::default();
        self.settle_creation(guest, capacities, &mut recovered);
        self.settle_destruction(guest, capacities, &mut recovered);
        recovered
    }

    /// Settles the host's last intent. The caller knows that the host does nothing more.
    pub(crate) fn recover(&self) -> Recovered {
        let mut recovered = Recovered::default();
        match self.last_intent().map(|entry| entry.intent) {
            None | Some(Intent::Idle) => {}
            Some(Intent::AddCapacity(capacity)) => self.undo_capacity(capacity, &mut recovered),
            Some(Intent::ReleaseCapacity(capacity)) => self.settle_release(capacity, &mut recovered),
            Some(Intent::CreateGuest { guest, memory, state }) => {
                self.settle_creation(guest, [memory, state], &mut recovered);
            }
            Some(Intent::DestroyGuest { guest, memory, state }) => {
                self.settle_destruction(guest, [memory, state], &mut recovered);
            }
        }
        recovered.undone += self.free_reports();
        recovered
    }

    /// Frees the entries of reports that the host was writing; gives how many they were.
    fn free_reports(&self) -> u32 {
        let Some(entries) = self.pool.tables().report_slots() else { return 0 };
        let free = |entry: &usize| match entries.load(*entry) {
            Ok(state @ SlotState::Making { host, generation }) if host == self.host => {
                entries.transition(*entry, state, SlotState::Free { generation })
            }
            Ok(_) | Err(_) => false,
        };
        u32::try_from((0..entries.count()).filter(free).count()).unwrap_or(u32::MAX)
    }

    /// Undoes a capacity that is `Making` by the host; leaves any other alone.
    fn undo_capacity(&self, capacity: Reference, recovered: &mut Recovered) {
        if self.is_making(self.pool.tables().capacity_slots().load(capacity.slot.into()), capacity) {
            self.dismantle(capacity);
            self.pool.tables().capacity_slots().abort(capacity, self.host);
            recovered.undone += 1;
        }
    }

    fn settle_release(&self, capacity: Reference, recovered: &mut Recovered) {
        let slots = self.pool.tables().capacity_slots();
        if !self.is_unmaking(slots.load(capacity.slot.into()), capacity) {
            return;
        }
        if self.pool.tables().user_of(capacity.slot.into()).is_some() {
            slots.put_back(capacity, self.host);
            recovered.put_back += 1;
        } else {
            self.finish_release(capacity);
            recovered.finished += 1;
        }
    }

    fn settle_creation(&self, guest: Reference, capacities: [Option<Reference>; 2], recovered: &mut Recovered) {
        let guests = self.pool.tables().guest_slots();
        if usize::from(guest.slot) >= guests.count() {
            return;
        }
        let live = SlotState::Live { generation: guest.generation };
        let state = guests.load(guest.slot.into());
        // Live, or already being destroyed by somebody: the creation came to its end.
        if state == Ok(live)
            || matches!(state, Ok(SlotState::Unmaking { generation, .. }) if generation == guest.generation)
        {
            return;
        }
        self.undo_creation(guest, capacities, recovered);
    }

    /// Takes apart what there is of a guest that never went live.
    pub(crate) fn undo_creation(
        &self,
        guest: Reference,
        capacities: [Option<Reference>; 2],
        recovered: &mut Recovered,
    ) {
        for capacity in capacities.into_iter().flatten() {
            self.undo_capacity(capacity, recovered);
            self.release_from_guest(capacity, guest, recovered);
        }
        if self.pool.tables().guest_slots().abort(guest, self.host) {
            recovered.undone += 1;
        }
    }

    fn settle_destruction(&self, guest: Reference, capacities: [Option<Reference>; 2], recovered: &mut Recovered) {
        let guests = self.pool.tables().guest_slots();
        if !self.is_unmaking(guests.load(guest.slot.into()), guest) {
            return;
        }
        if self.pool.ownership_in(guest.slot.into()).load() == Ok(Ownership::Vacant) {
            self.finish_destruction(guest, capacities, recovered);
            recovered.finished += 1;
        } else {
            guests.put_back(guest, self.host);
            recovered.put_back += 1;
        }
    }

    /// The guest is `Unmaking` and vacant: release its capacities, empty its words, free its slot.
    pub(crate) fn finish_destruction(
        &self,
        guest: Reference,
        capacities: [Option<Reference>; 2],
        recovered: &mut Recovered,
    ) {
        for capacity in capacities.into_iter().flatten() {
            self.release_from_guest(capacity, guest, recovered);
        }
        let tables = self.pool.tables();
        for field in [ARM, BELL_SOURCE, BELL_TARGET] {
            clear(tables.mapping().word(tables.guest_at(guest.slot.into()) + field));
        }
        tables.guest_slots().end_unmaking(guest, self.host);
    }

    /// Releases a capacity that this guest uses, or that is already being released for it.
    fn release_from_guest(&self, capacity: Reference, guest: Reference, recovered: &mut Recovered) {
        let tables = self.pool.tables();
        if !tables.capacity_slots().is_current(capacity) {
            return;
        }
        let user = tables.capacity_user(capacity.slot.into()).load(Ordering::Acquire);
        if user == guest.encode() {
            tables.capacity_slots().begin_unmaking(capacity, self.host);
        }
        if self.is_unmaking(tables.capacity_slots().load(capacity.slot.into()), capacity) {
            self.finish_release(capacity);
            recovered.finished += 1;
        }
    }

    /// The capacity is `Unmaking` by the host: give everything back, free the slot.
    pub(crate) fn finish_release(&self, capacity: Reference) {
        self.release_leg_here(capacity);
        self.dismantle(capacity);
        self.pool.tables().capacity_slots().end_unmaking(capacity, self.host);
    }

    /// A striped capacity that ends takes its leg in its own pool along. Legs in other pools are for whoever has joined
    /// those: they are orphans from now on.
    fn release_leg_here(&self, striped: Reference) {
        let (tables, id) = (self.pool.tables(), self.pool.id());
        let record = tables.capacity_record(striped.slot.into()).ok();
        let Some(record) = record.filter(|record| record.generation == striped.generation) else { return };
        let Composition::Striped(stripe) = record.composition else { return };
        let Some(leg) = stripe.legs.iter().find(|leg| leg.pool == id) else { return };
        let whole = Composition::LegOf(Whole { pool: id, tag: record.tag });
        // Not by the index: whoever began this may have taken the leg's tag out before dying.
        for slot in 0..tables.capacity_slots().count() {
            let Seen::Used(state, Ok(record)) = tables.capacity(slot) else { continue };
            let (Some(generation), Ok(slot)) = (state.current(), u16::try_from(slot)) else { continue };
            if (record.generation, record.tag) != (generation, leg.tag) || record.composition != whole {
                continue;
            }
            let leg = Reference { slot, generation };
            tables.capacity_slots().begin_unmaking(leg, self.host);
            if self.is_unmaking(tables.capacity_slots().load(slot.into()), leg) {
                self.dismantle(leg);
                tables.capacity_slots().end_unmaking(leg, self.host);
            }
        }
    }

    /// Takes a capacity's tag out of the index and gives its granules back.
    fn dismantle(&self, capacity: Reference) {
        let tables = self.pool.tables();
        let record = tables.capacity_record(capacity.slot.into()).ok();
        match record.filter(|record| record.generation == capacity.generation) {
            Some(record) => self.dismantle_recorded(capacity, &record),
            // It died before its record was written: what it claimed stands in the owner map only.
            None => self.give_back(capacity, &tables.owners().owned(capacity)),
        }
    }

    pub(crate) fn dismantle_recorded(&self, capacity: Reference, record: &CapacityRecord) {
        self.pool.tables().tags().remove(record.tag, capacity);
        self.give_back(capacity, &record.extents);
    }

    /// Gives granules back, their memory first: a free granule of a file holds nothing.
    pub(crate) fn give_back(&self, capacity: Reference, extents: &[Extent]) {
        let owners = self.pool.tables().owners();
        for extent in extents {
            // While the word still says that it is ours. If a peer has given it back before us, it may have a new owner.
            let ours = extent.granules().all(|granule| {
                owners.words.get(granule).is_some_and(|word| word.load(Ordering::Acquire) == capacity.encode())
            });
            if ours {
                self.pool.inner.backing.punch(u64::from(extent.first) * GRANULE, extent.bytes());
            }
            owners.release(capacity, std::slice::from_ref(extent));
        }
    }

    fn is_making(&self, state: Result<SlotState, BadSlotWord>, what: Reference) -> bool {
        matches!(state, Ok(SlotState::Making { host, generation }) if host == self.host && generation == what.generation)
    }

    fn is_unmaking(&self, state: Result<SlotState, BadSlotWord>, what: Reference) -> bool {
        matches!(state, Ok(SlotState::Unmaking { host, generation }) if host == self.host && generation == what.generation)
    }
}
