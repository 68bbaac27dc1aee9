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
pub struct Slots<'a> {
    words: &'a [AtomicU64],
    /// Words from one slot word to the next.
    stride: usize,
}

/// How a contest over a name ended for the one who asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contest {
    /// Nobody else has it or can still get it, except by beating this maker's word.
    Won,
    /// The thing in this slot has it or will get it.
    Lost(usize),
}

impl<'a> Slots<'a> {
    /// Slot words that lie side by side.
    #[must_use]
    pub fn dense(words: &'a [AtomicU64]) -> Self {
        Self { words, stride: 1 }
    }

    /// Slot words that are the first of every `stride` words.
    #[must_use]
    pub fn strided(words: &'a [AtomicU64], stride: usize) -> Self {
        Self { words, stride }
    }

    /// How many slots there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.len().div_ceil(self.stride)
    }

    pub(crate) fn word(&self, slot: usize) -> &'a AtomicU64 {
        &self.words[slot * self.stride]
    }

    /// Reads a slot's state (acquire).
    ///
    /// # Errors
    /// [`BadSlotWord`] when the word is damaged, or (all ones) when there is no such slot.
    pub fn load(&self, slot: usize) -> Result<SlotState, BadSlotWord> {
        let word = self.words.get(slot * self.stride).ok_or(BadSlotWord(u64::MAX))?;
        SlotState::decode(word.load(Ordering::Acquire))
    }

    /// Moves a slot from one state to another; false when it was not in the first.
    pub fn transition(&self, slot: usize, from: SlotState, to: SlotState) -> bool {
        let word = self.words.get(slot * self.stride);
        word.is_some_and(|word| exchange(word, from.encode(), to.encode()).is_ok())
    }

    /// Claims a free slot for `host`, looking from `start` on. `note` is told what is about to be claimed, each time
    /// before the attempt. `None` when every slot is taken.
    pub fn claim(&self, host: HostSlot, start: usize, mut note: impl FnMut(Reference)) -> Option<Reference> {
        let count = self.count();
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
        matches!(self.load(reference.slot.into()), Ok(state) if state.current() == Some(reference.generation))
    }

    /// Whether the thing is over, so that whoever refers to it refers to nothing. What cannot be judged because of
    /// damage is not over: nobody builds on a guess.
    #[must_use]
    pub fn is_over(&self, reference: Reference) -> bool {
        match self.load(reference.slot.into()) {
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
