//! The word that says what a table slot (host, capacity, guest) is used for.
//!
//! ```text
//! 63   60 59      48 47                                    0
//! | state | host     | generation                          |     host 0xFFF = none
//!
//!            claim                    commit
//! Free(g) ─────────► Making(h, g+1) ─────────► Live(g+1)
//!    ▲                    │ undo                   │ begin
//!    └────────────────────┴──── Unmaking(h, g+1) ◄─┘
//!    Free(g+1)              end        └────────► Live(g+1)   put back
//! ```
//!
//! The generation grows with every use of the slot and never repeats, so (slot, generation) names one thing forever: a
//! [`Reference`]. Whatever refers to a generation that is over refers to nothing.

use crate::ownership::HostSlot;
use std::fmt;

const NO_HOST: u64 = 0xFFF;
/// Generations have 48 bits; a slot that has reached this one is used up.
pub const LAST_GENERATION: u64 = (1 << 48) - 1;

/// The decoded slot word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SlotState {
    /// Unused; `generation` was its last use (0: never used).
    Free {
        /// The last generation that was used.
        generation: u64,
    },
    /// `host` is making something; nobody else may use it yet.
    Making {
        /// Who makes it.
        host: HostSlot,
        /// The generation that is being made.
        generation: u64,
    },
    /// In use.
    Live {
        /// The present generation.
        generation: u64,
    },
    /// `host` is taking it apart; nobody may use it any more.
    Unmaking {
        /// Who takes it apart.
        host: HostSlot,
        /// The generation that ends.
        generation: u64,
    },
}

/// A word that is not the encoding of any [`SlotState`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:#018x} is not a slot word")]
pub struct BadSlotWord(pub u64);

impl SlotState {
    /// Encodes into the on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        let word = |state: u64, host: u64, generation: u64| {
            debug_assert!(generation <= LAST_GENERATION);
            state << 60 | host << 48 | generation
        };
        match self {
            // A slot that was never used is all zeros, as a fresh pool is.
            Self::Free { generation: 0 } => 0,
            Self::Free { generation } => word(0, NO_HOST, generation),
            Self::Making { host, generation } => word(1, host.index() as u64, generation),
            Self::Live { generation } => word(2, NO_HOST, generation),
            Self::Unmaking { host, generation } => word(3, host.index() as u64, generation),
        }
    }

    /// Decodes a word read from the pool.
    ///
    /// # Errors
    /// [`BadSlotWord`] for any value that [`SlotState::encode`] does not produce.
    pub fn decode(word: u64) -> Result<Self, BadSlotWord> {
        let bad = BadSlotWord(word);
        let host = u16::try_from(word >> 48 & NO_HOST).ok().and_then(HostSlot::new);
        let generation = word & LAST_GENERATION;
        match (word >> 60, host, generation) {
            (0, _, 0) if word == 0 => Ok(Self::Free { generation }),
            (_, _, 0) => Err(bad),
            (0, None, _) => Ok(Self::Free { generation }),
            (1, Some(host), _) => Ok(Self::Making { host, generation }),
            (2, None, _) => Ok(Self::Live { generation }),
            (3, Some(host), _) => Ok(Self::Unmaking { host, generation }),
            _ => Err(bad),
        }
    }

    /// The generation that the slot holds now, if it holds anything.
    #[must_use]
    pub fn current(self) -> Option<u64> {
        match self {
            Self::Free { .. } => None,
            Self::Making { generation, .. } | Self::Live { generation } | Self::Unmaking { generation, .. } => {
                Some(generation)
            }
        }
    }

    /// Who is changing the slot.
    #[must_use]
    pub fn changed_by(self) -> Option<HostSlot> {
        match self {
            Self::Free { .. } | Self::Live { .. } => None,
            Self::Making { host, .. } | Self::Unmaking { host, .. } => Some(host),
        }
    }
}

/// A thing in a table by slot and generation: 16 bits of slot, 48 of generation. Zero stands for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Reference {
    /// Index into the table.
    pub slot: u16,
    /// Generation of the slot; never 0.
    pub generation: u64,
}

impl Reference {
    /// Encodes into an on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        debug_assert!(self.generation != 0 && self.generation <= LAST_GENERATION);
        u64::from(self.slot) << 48 | self.generation
    }

    /// Decodes a word read from the pool; `None` for zero and for what is no reference (generation 0).
    #[must_use]
    pub fn decode(word: u64) -> Option<Self> {
        let generation = word & LAST_GENERATION;
        let slot = u16::try_from(word >> 48).ok()?;
        (generation != 0).then_some(Self { slot, generation })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} generation {}", self.slot, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_the_specified_one() {
        let host = HostSlot::new(5).expect("a small slot");
        for (state, word) in [
            (SlotState::Free { generation: 0 }, 0),
            (SlotState::Free { generation: 7 }, 0x0FFF_0000_0000_0007),
            (SlotState::Making { host, generation: 7 }, 0x1005_0000_0000_0007),
            (SlotState::Live { generation: 7 }, 0x2FFF_0000_0000_0007),
            (SlotState::Unmaking { host, generation: LAST_GENERATION }, 0x3005_FFFF_FFFF_FFFF),
        ] {
            assert_eq!(state.encode(), word);
            assert_eq!(SlotState::decode(word), Ok(state));
        }
    }

    #[test]
    fn foreign_words_are_refused() {
        for word in
            [1, 0x0FFF_0000_0000_0000, 0x1FFF_0000_0000_0001, 0x2005_0000_0000_0001, 0x4FFF_0000_0000_0001, u64::MAX]
        {
            assert_eq!(SlotState::decode(word), Err(BadSlotWord(word)));
        }
    }

    #[test]
    fn a_reference_survives_the_round_trip_and_zero_is_none() {
        let reference = Reference { slot: 0xABCD, generation: 3 };
        assert_eq!(reference.encode(), 0xABCD_0000_0000_0003);
        assert_eq!(Reference::decode(reference.encode()), Some(reference));
        assert_eq!(Reference::decode(0), None);
        assert_eq!(Reference::decode(0x0001_0000_0000_0000), None);
    }
}
