//! Claiming, committing and freeing table slots, and the contest of two makers over one name.
//!
//! Works on slices of atomics, so that loom can walk through it.

use crate::fault;
use crate::format::slot_word::{BadSlotWord, LAST_GENERATION, Reference, SlotState};
use crate::mapping::exchange;
use crate::ownership::HostSlot;
use crate::sync::{AtomicU64, Ordering};

/// The slot words of one table.
#[derive(Clone, Copy, Debug)]
pub struct Slots<'a>(pub &'a [AtomicU64]);

/// How a contest over a name ended for the one who asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contest {
    /// Nobody else has it or can still get it, except by beating this maker's word.
    Won,
    /// The thing in this slot has it or will get it.
    Lost(usize),
}

impl Slots<'_> {
    /// Reads a slot's state (acquire).
    ///
    /// # Errors
    /// [`BadSlotWord`] when the word is damaged.
    pub fn load(&self, slot: usize) -> Result<SlotState, BadSlotWord> {
        SlotState::decode(self.0[slot].load(Ordering::Acquire))
    }

    /// Moves a slot from one state to another; false when it was not in the first.
    pub fn transition(&self, slot: usize, from: SlotState, to: SlotState) -> bool {
        exchange(&self.0[slot], from.encode(), to.encode()).is_ok()
    }

    /// Claims a free slot for `host`, looking from `start` on. `note` is told what is about to be claimed, each time
    /// before the attempt. `None` when every slot is taken.
    pub fn claim(&self, host: HostSlot, start: usize, mut note: impl FnMut(Reference)) -> Option<Reference> {
        let count = self.0.len();
        for slot in (0..count).map(|step| (start + step) % count) {
            let Ok(SlotState::Free { generation }) = self.load(slot) else { continue };
            let Ok(index) = u16::try_from(slot) else { continue };
            if generation == LAST_GENERATION {
                continue;
            }
            let made = Reference { slot: index, generation: generation + 1 };
            note(made);
            let making = SlotState::Making { host, generation: made.generation };
            if self.transition(slot, SlotState::Free { generation }, making) {
                return Some(made);
            }
        }
        None
    }

    /// `Making` → `Live`; false when a rival aborted it.
    pub fn commit(&self, made: Reference, host: HostSlot) -> bool {
        let Reference { generation, .. } = made;
        self.transition(made.slot.into(), SlotState::Making { host, generation }, SlotState::Live { generation })
    }

    /// `Making` → `Free`; false when it was aborted already.
    pub fn abort(&self, made: Reference, host: HostSlot) -> bool {
        let Reference { generation, .. } = made;
        self.transition(made.slot.into(), SlotState::Making { host, generation }, SlotState::Free { generation })
    }

    /// `Live` → `Unmaking`.
    pub fn begin_unmaking(&self, live: Reference, host: HostSlot) -> bool {
        let Reference { generation, .. } = live;
        self.transition(live.slot.into(), SlotState::Live { generation }, SlotState::Unmaking { host, generation })
    }

    /// `Unmaking` → `Live`.
    pub fn put_back(&self, unmade: Reference, host: HostSlot) -> bool {
        let Reference { generation, .. } = unmade;
        self.transition(unmade.slot.into(), SlotState::Unmaking { host, generation }, SlotState::Live { generation })
    }

    /// `Unmaking` → `Free`.
    pub fn end_unmaking(&self, unmade: Reference, host: HostSlot) -> bool {
        let Reference { generation, .. } = unmade;
        self.transition(unmade.slot.into(), SlotState::Unmaking { host, generation }, SlotState::Free { generation })
    }

    /// Whether the slot holds this very thing now, in whatever state.
    #[must_use]
    pub fn is_current(&self, reference: Reference) -> bool {
        let slot = usize::from(reference.slot);
        slot < self.0.len() && matches!(self.load(slot), Ok(state) if state.current() == Some(reference.generation))
    }

    /// Whether the thing is over, so that whoever refers to it refers to nothing. What cannot be judged because of
    /// damage is not over: nobody builds on a guess.
    #[must_use]
    pub fn is_over(&self, reference: Reference) -> bool {
        let slot = usize::from(reference.slot);
        if slot >= self.0.len() {
            return false;
        }
        match self.load(slot) {
            Ok(SlotState::Free { generation }) => reference.generation <= generation,
            Ok(state) => state.current().is_some_and(|current| reference.generation < current),
            Err(BadSlotWord(_)) => false,
        }
    }

    /// Decides the contest over a name between `made` and the `rivals` that carry it too.
    ///
    /// Call it after the name has been written and a sequentially consistent fence has been passed. Then of two makers
    /// at least one sees the other, and: a live rival wins; of two makers the one in the lower slot wins, by aborting
    /// the other, whose commit then fails.
    pub fn contest(&self, made: Reference, rivals: impl Iterator<Item = Reference>) -> Contest {
        for rival in rivals.filter(|rival| *rival != made) {
            let slot = usize::from(rival.slot);
            loop {
                match self.load(slot) {
                    Ok(state) if state.current() != Some(rival.generation) => break,
                    Ok(SlotState::Making { host, .. }) if rival.slot > made.slot => {
                        if self.abort(rival, host) {
                            break;
                        }
                    }
                    Ok(_) | Err(_) => return Contest::Lost(slot),
                }
            }
        }
        Contest::Won
    }
}

/// A write to a word outside the slot tables, for symmetry with [`exchange`].
pub(crate) fn clear(word: &AtomicU64) {
    fault::step();
    word.store(0, Ordering::Release);
}
