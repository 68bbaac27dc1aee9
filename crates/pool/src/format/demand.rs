//! The word by which a host takes a capacity away from the guest that uses it.
//!
//! ```text
//! 63   60 59   48 47                         0
//! | state | host | generation of the capacity |         0: nobody demands it
//!
//!        demand               heed
//! none ─────────▶ Standing(h) ─────▶ Heeded(h) ─────▶ the guest is Lost, the capacity is released
//!   ▲                  │ withdraw: nobody has heeded it in time
//!   └──────────────────┘
//! ```
//!
//! Of heed and withdraw exactly one wins. A demand of another generation is over.

use super::slot_word::LAST_GENERATION;
use crate::ownership::HostSlot;

/// The decoded word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Demand {
    /// A host wants the capacity, whatever becomes of the guest.
    Standing {
        /// Which.
        by: HostSlot,
    },
    /// The worker of the guest has seen it, and is stopping the guest.
    Heeded {
        /// For whom.
        by: HostSlot,
    },
}

impl Demand {
    /// The on-pool word, about the capacity of this generation.
    #[must_use]
    pub fn encode(self, generation: u64) -> u64 {
        let (state, by) = match self {
            Self::Standing { by } => (1, by),
            Self::Heeded { by } => (2, by),
        };
        state << 60 | (by.index() as u64) << 48 | generation & LAST_GENERATION
    }

    /// What a word demands of the capacity of this generation; nothing, if it is of another one, or none at all.
    #[must_use]
    pub fn decode(word: u64, generation: u64) -> Option<Self> {
        let by = HostSlot::new(u16::try_from(word >> 48 & 0xFFF).ok()?)?;
        if word & LAST_GENERATION != generation {
            return None;
        }
        match word >> 60 {
            1 => Some(Self::Standing { by }),
            2 => Some(Self::Heeded { by }),
            _ => None,
        }
    }

    /// Who wants it.
    #[must_use]
    pub fn by(self) -> HostSlot {
        match self {
            Self::Standing { by } | Self::Heeded { by } => by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_the_specified_one() {
        let by = HostSlot::new(5).expect("a small slot");
        for (demand, word) in
            [(Demand::Standing { by }, 0x1005_0000_0000_0007), (Demand::Heeded { by }, 0x2005_0000_0000_0007)]
        {
            assert_eq!(demand.encode(7), word);
            assert_eq!(Demand::decode(word, 7), Some(demand));
            assert_eq!(Demand::decode(word, 8), None);
        }
        for word in [0, 7, 0x1FFF_0000_0000_0007, 0x3005_0000_0000_0007, u64::MAX] {
            assert_eq!(Demand::decode(word, 7), None, "{word:#x}");
        }
    }
}
