//! Guest slots, records, words, and whether their capacities are there.

use super::{Checker, Wrong};
use crate::arm::Arm;
use crate::format::guest::{ARM, GuestRecord, OWNERSHIP};
use crate::format::slot_word::{Reference, SlotState};
use crate::ids::{GuestSlot, Tag};
use crate::liveness::Liveness;
use crate::mapping::exchange;
use crate::ownership::{HostSlot, Ownership};
use crate::recovery::Actor;
use crate::state::StateArea;
use crate::sync::{AtomicU64, Ordering};
use crate::tables::Seen;
use std::collections::HashMap;

const LOST: &str = "its memory is kept; destroy it, or bring its owner back";

impl Checker<'_> {
    pub(super) fn check_guests(&mut self) {
        let mut names: HashMap<String, GuestSlot> = HashMap::new();
        for slot in 0..u16::try_from(self.pool.tables().layout().guests.count).unwrap_or(u16::MAX) {
            let (slot, place) = (GuestSlot(slot), format!("guest {}", GuestSlot(slot)));
            match self.pool.tables().guest(slot.index()) {
                Seen::Free => self.check_free(slot, place),
                Seen::BadWord(word) => {
                    self.report(Wrong::error(place, format!("its slot word {word:#018x} is not a valid one"), LOST));
                }
                Seen::Used(state @ (SlotState::Making { host, .. } | SlotState::Unmaking { host, .. }), record) => {
                    self.check_guest_changing(slot, state, host, record.ok());
                }
                Seen::Used(_, Err(source)) => {
                    self.report(Wrong::error(place, format!("its record is damaged: {source}"), LOST));
                }
                Seen::Used(state, Ok(record)) if state.current() != Some(record.generation) => {
                    self.report(Wrong::error(place, "its record belongs to another use of the slot", LOST));
                }
                Seen::Used(_, Ok(record)) => {
                    if let Some(other) = names.insert(record.name.clone(), slot) {
                        let what = format!("its name '{}' is also that of guest {other}", record.name);
                        self.report(Wrong::error(&place, what, "destroy one of the two, by its UUID"));
                    }
                    self.check_words(slot, &place, &record);
                    self.check_capacities_of(slot, &place, &record);
                }
            }
        }
    }

    fn guest_word(&self, slot: GuestSlot, field: u64) -> &AtomicU64 {
        let tables = self.pool.tables();
        tables.mapping().word(tables.guest_at(slot.index()) + field)
    }

    /// A vacant record has a vacant ownership word. (It is emptied again before the slot is used.)
    fn check_free(&mut self, slot: GuestSlot, place: String) {
        let pool = self.pool;
        let word = pool.tables().guest_ownership(slot.index());
        let value = word.load(Ordering::Acquire);
        if value != 0 {
            let wrong = Wrong::mendable(place, "nobody is there, but somebody seems to own it");
            self.mend(wrong, || exchange(word, value, 0).is_ok());
        }
    }

    fn check_guest_changing(&mut self, slot: GuestSlot, state: SlotState, host: HostSlot, record: Option<GuestRecord>) {
        let actor = Actor::new(self.pool, host);
        if self.pool.liveness(host) != Liveness::Dead || actor.pending().is_some() {
            return;
        }
        let Some(generation) = state.current() else { return };
        let what = format!("it is half {}, and its host {host} is gone", super::capacities::half(state));
        let record = record.filter(|record| record.generation == generation);
        let by_tag = |tag: Tag| self.pool.capacity_by_tag(tag);
        let capacities = record.map_or([None, None], |record| [by_tag(record.memory()), by_tag(record.state)]);
        let wrong = Wrong::mendable(format!("guest {slot}"), what);
        self.mend(wrong, || !actor.settle_guest(Reference { slot: slot.0, generation }, capacities).is_nothing());
    }

    fn check_words(&mut self, slot: GuestSlot, place: &str, record: &GuestRecord) {
        let value = self.guest_word(slot, OWNERSHIP).load(Ordering::Acquire);
        let Ok(ownership) = Ownership::decode(value) else {
            let what = format!("its ownership word {value:#018x} is not a valid one");
            return self.report(Wrong::error(place, what, LOST));
        };
        for host in ownership.hosts().into_iter().flatten() {
            let known = host.index() < self.pool.tables().layout().hosts.count as usize;
            if !known || self.pool.tables().host(host) == Seen::Free {
                let what = format!("it is {ownership}, but there is no host {host}");
                self.report(Wrong::error(place, what, LOST));
            } else if self.pool.liveness(host) == Liveness::Dead {
                let what = format!("'{}' is {ownership}, and host {host} is dead", record.name);
                self.report(Wrong::note(place, what));
            }
        }
        let arm = self.pool.tables().mapping().word(self.pool.tables().guest_at(slot.index()) + ARM);
        let value = arm.load(Ordering::Acquire);
        let moving = matches!(ownership, Ownership::Offered { .. } | Ownership::Frozen { .. });
        if Arm::decode(value).is_err() {
            let what = format!("its arm word {value:#018x} is not a valid one");
            if moving {
                self.report(Wrong::error(place, what, "wait until the handoff has failed, then check again"));
            } else {
                self.mend(Wrong::mendable(place, what), || exchange(arm, value, Arm::Idle.encode()).is_ok());
            }
        }
    }

    fn check_capacities_of(&mut self, slot: GuestSlot, place: &str, record: &GuestRecord) {
        let reference = Reference { slot: slot.0, generation: record.generation };
        let state = if self.check_capacity_of(reference, place, record.state, 1, "state") {
            self.pool.state_of(record).map_err(|reason| self.report(Wrong::error(place, reason.to_string(), LOST))).ok()
        } else {
            None
        };
        let memory = self.pool.capacity_by_tag(record.memory());
        let strange = memory.filter(|memory| state.as_ref().is_some_and(|state| self.is_strange(*memory, state)));
        // Without a map that says that it need not be there, it must be.
        if strange.is_some() {
            self.tell_strange(slot, place, record);
        } else if memory.is_some() || state.is_none() {
            self.check_capacity_of(reference, place, record.memory(), record.memory_extent(), "memory");
        }
        if let Some(state) = state {
            self.check_placement(slot, place, record, &state, memory.is_some() && strange.is_none());
        }
    }

    /// Whether a capacity that has the tag of a guest's memory is not that memory: no guest uses it, and this one has
    /// nothing in the pool. It was added under the tag after the guest's own had been given back, or taken.
    fn is_strange(&self, memory: Reference, state: &StateArea) -> bool {
        let summary = state.placement().summary();
        let nothing_there = summary.mixed + summary.pooled + summary.damaged == 0;
        nothing_there && self.pool.tables().user_of(memory.slot.into()).is_none()
    }

    /// A guest that is lost needs no memory; to one that may still go to the pool such a capacity is in the way.
    fn tell_strange(&mut self, slot: GuestSlot, place: &str, record: &GuestRecord) {
        let word = self.guest_word(slot, OWNERSHIP).load(Ordering::Acquire);
        let what = format!("another capacity has the tag {} of its memory", record.memory());
        self.report(match Ownership::decode(word) {
            Ok(Ownership::Lost { .. }) => Wrong::note(place, format!("{what}, which was taken from it")),
            _ => Wrong::error(place, format!("{what}, and keeps that out of the pool"), "release that capacity"),
        });
    }

    /// Whether the capacity is there and large enough; its user word is set right.
    fn check_capacity_of(&mut self, guest: Reference, place: &str, tag: Tag, end: u64, what: &str) -> bool {
        let tables = self.pool.tables();
        let found = self.pool.capacity_by_tag(tag).and_then(|found| Some((found, tables.capacity_of(found)?)));
        let Some((capacity, record)) = found else {
            self.report(Wrong::error(place, format!("the capacity {tag} of its {what} is not there"), LOST));
            return false;
        };
        if end > record.bytes {
            let what = format!("its {what} reaches past the end of capacity {tag}");
            self.report(Wrong::error(place, what, LOST));
            return false;
        }
        let word = tables.capacity_user(capacity.slot.into());
        let value = word.load(Ordering::Acquire);
        if value == guest.encode() {
            return true;
        }
        if tables.user_of(capacity.slot.into()).is_some() {
            let what = format!("the capacity {tag} of its {what} says that another guest uses it");
            self.report(Wrong::error(place, what, "destroy one of the two"));
        } else {
            let wrong = Wrong::mendable(place, format!("the capacity {tag} of its {what} is not marked as used by it"));
            self.mend(wrong, || exchange(word, value, guest.encode()).is_ok());
        }
        true
    }
}
