//! Capacity slots and records, and whether the owner map agrees with them.

use super::{Checker, Wrong};
use crate::format::capacity::{CapacityRecord, Extent};
use crate::format::slot_word::{Reference, SlotState};
use crate::ids::{CapacitySlot, Tag};
use crate::liveness::Liveness;
use crate::mapping::exchange;
use crate::owner_map::RESERVED;
use crate::ownership::HostSlot;
use crate::recovery::Actor;
use crate::sync::Ordering;
use crate::tables::Seen;
use std::collections::HashMap;

const KEEP: &str = "its bytes are kept and not given to others; save what you need of them and make the pool anew";

impl Checker<'_> {
    pub(super) fn check_capacities(&mut self) {
        let mut tags: HashMap<Tag, CapacitySlot> = HashMap::new();
        for slot in 0..u16::try_from(self.pool.tables().layout().capacities.count).unwrap_or(u16::MAX) {
            let (slot, place) = (CapacitySlot(slot), format!("capacity {}", CapacitySlot(slot)));
            match self.pool.tables().capacity(slot.index()) {
                Seen::Free => {}
                Seen::BadWord(word) => self.check_bad_word(slot, word),
                Seen::Used(state @ (SlotState::Making { host, .. } | SlotState::Unmaking { host, .. }), _) => {
                    self.check_changing(slot, state, host);
                }
                Seen::Used(_, Err(source)) => {
                    self.report(Wrong::error(place, format!("its record is damaged: {source}"), KEEP));
                }
                Seen::Used(state, Ok(record)) if state.current() != Some(record.generation) => {
                    self.report(Wrong::error(place, "its record belongs to another use of the slot", KEEP));
                }
                Seen::Used(_, Ok(record)) => {
                    if let Some(other) = tags.insert(record.tag, slot) {
                        let what = format!("its tag {} is also that of capacity {other}", record.tag);
                        self.report(Wrong::error(&place, what, "release one of the two, twice if need be"));
                    }
                    let reference = Reference { slot: slot.0, generation: record.generation };
                    self.check_granules(reference, &record, &place);
                    self.check_indexed(reference, &record, &place);
                    self.check_composition(reference, &record, &place);
                    self.check_demand(reference, record.tag, &place);
                    self.check_user(slot, place);
                }
            }
        }
    }

    /// The word is damaged; record and owner map together still prove what it was.
    fn check_bad_word(&mut self, slot: CapacitySlot, word: u64) {
        let (tables, place) = (self.pool.tables(), format!("capacity {slot}"));
        let what = format!("its slot word {word:#018x} is not a valid one");
        let proof = tables.capacity_record(slot.index()).ok().filter(|record| {
            let owner = Reference { slot: slot.0, generation: record.generation }.encode();
            let mut granules = record.extents.iter().flat_map(|extent| extent.granules());
            record.generation != 0
                && !record.extents.is_empty()
                && granules.all(|granule| tables.owners().words[granule].load(Ordering::Relaxed) == owner)
        });
        let Some(record) = proof else { return self.report(Wrong::error(place, what, KEEP)) };
        self.mend(Wrong::mendable(place, what), || {
            let live = SlotState::Live { generation: record.generation }.encode();
            exchange(tables.capacity_slots().word(slot.index()), word, live).is_ok()
        });
    }

    /// Half made or half released: its host's journal should know of it.
    fn check_changing(&mut self, slot: CapacitySlot, state: SlotState, host: HostSlot) {
        let actor = Actor::new(self.pool, host);
        if self.pool.liveness(host) != Liveness::Dead || actor.pending().is_some() {
            return;
        }
        let what = format!("it is half {}, and its host {host} is gone", half(state));
        let Some(generation) = state.current() else { return };
        let wrong = Wrong::mendable(format!("capacity {slot}"), what);
        self.mend(wrong, || !actor.settle_capacity(Reference { slot: slot.0, generation }).is_nothing());
    }

    fn check_granules(&mut self, reference: Reference, record: &CapacityRecord, place: &str) {
        let owners = self.pool.tables().owners();
        let (mut missing, mut foreign) = (Vec::new(), Vec::new());
        for granule in record.extents.iter().flat_map(|extent| extent.granules()) {
            let word = owners.words[granule].load(Ordering::Acquire);
            if word == reference.encode() {
                continue;
            }
            if self.contests(word, granule) { foreign.push(granule) } else { missing.push((granule, word)) }
        }
        if let Some(granule) = foreign.first() {
            let what = format!("{} of its granules, the first {granule}, belong to another capacity", foreign.len());
            self.report(Wrong::error(place, what, KEEP));
        }
        if overlaps(&record.extents) {
            self.report(Wrong::error(place, "two of its extents overlap", KEEP));
        }
        if !missing.is_empty() {
            let what = format!("{} of its granules are not marked as its own", missing.len());
            self.mend(Wrong::mendable(place, what), || {
                let mark = |(granule, word): &(usize, u64)| {
                    exchange(&owners.words[*granule], *word, reference.encode()).is_ok()
                };
                missing.iter().all(mark)
            });
        }
    }

    /// Whether the capacity that an owner word names has a claim to the granule: it is not over, and its record lists it
    /// or cannot be read.
    fn contests(&self, word: u64, granule: usize) -> bool {
        let tables = self.pool.tables();
        let Some(owner) = Reference::decode(word).filter(|_| word != RESERVED) else { return false };
        if !tables.capacity_slots().is_current(owner) {
            return tables.capacity_slots().load(owner.slot.into()).is_err()
                && usize::from(owner.slot) < tables.capacity_slots().count();
        }
        match tables.capacity_of(owner) {
            Some(record) => record.extents.iter().any(|extent| extent.granules().contains(&granule)),
            None => true,
        }
    }

    fn check_indexed(&mut self, reference: Reference, record: &CapacityRecord, place: &str) {
        let tables = self.pool.tables();
        if tables.with_tag(record.tag).all(|found| found != reference) {
            let wrong = Wrong::mendable(place, format!("its tag {} is not in the index", record.tag));
            self.mend(wrong, || tables.tags().insert(record.tag, reference));
        }
    }

    /// Whoever took it away from its guest may have died over it.
    fn check_demand(&mut self, reference: Reference, tag: Tag, place: &str) {
        let Some(demanded) = self.pool.demand_of(reference, tag) else { return };
        if self.pool.liveness(demanded.by) == Liveness::Dead {
            let what = format!("host {} died while it took it away from its guest", demanded.by);
            let remedy = "`nil capacity release --force` finishes that";
            self.report(Wrong { remedy, ..Wrong::note(place, what) });
        }
    }

    fn check_user(&mut self, slot: CapacitySlot, place: String) {
        let word = self.pool.tables().capacity_user(slot.index());
        let value = word.load(Ordering::Acquire);
        if value != 0 && self.pool.tables().user_of(slot.index()).is_none() {
            let wrong = Wrong::mendable(place, "it says that a guest uses it which is gone");
            self.mend(wrong, || exchange(word, value, 0).is_ok());
        }
    }
}

pub(super) fn half(state: SlotState) -> &'static str {
    if matches!(state, SlotState::Making { .. }) { "made" } else { "taken apart" }
}

fn overlaps(extents: &[Extent]) -> bool {
    let mut sorted = extents.to_vec();
    sorted.sort_by_key(|extent| extent.first);
    sorted.windows(2).any(|pair| pair[0].end() > u64::from(pair[1].first))
}
