//! The lines of a pool whose hosts' caches do not agree: each has one writer, or holds one word and nothing else.
//!
//! A line goes back to memory as a whole. So what changes without the pool's lock must not share one with what others write.

use crate::ownership::{Epoch, HostSlot, Ownership, fields, word};

/// Which of a host's lines says who wants to come into the entry.
pub const CANDIDATE: u64 = 0;
/// Which says whether somebody has come in.
pub const DOOR: u64 = 1;
/// Which is written by the host's processes only.
pub const OWN: u64 = 2;

/// Offset of the claim word in the host's own line.
pub const CLAIM: u64 = 0;
/// Offset of the ticket.
pub const TICKET: u64 = 8;
/// Offset of the lease.
pub const LEASE: u64 = 16;

/// Offset of a host's word about a guest in its line.
pub const WORD: u64 = 0;
/// Offset of the generation of the guest that the word is about.
pub const GENERATION: u64 = 8;

/// What a host has said last about a guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Said {
    /// Nothing about this guest.
    Nothing,
    /// What its owner says, or who has frozen, lost or taken it.
    Is(Ownership),
    /// The source of a handoff wants the guest back, and has yet to see that the target does not have it.
    Cancelling {
        /// Who has frozen it.
        source: HostSlot,
        /// Who may claim it.
        target: HostSlot,
        /// Of the freeze.
        epoch: Epoch,
    },
    /// The target of a handoff wants it, and has yet to see that the source does not want it back.
    Claiming {
        /// The target.
        target: HostSlot,
        /// Of the freeze.
        epoch: Epoch,
    },
    /// The target has given way.
    Yielded {
        /// The target.
        target: HostSlot,
        /// Of the freeze.
        epoch: Epoch,
    },
    /// The guest has come to its end.
    Ended {
        /// Its last owner.
        host: HostSlot,
        /// Of the last ownership.
        epoch: Epoch,
    },
}

impl Said {
    const CANCELLING: u64 = 8;
    const CLAIMING: u64 = 9;
    const YIELDED: u64 = 10;
    const ENDED: u64 = 11;

    /// Encodes into the word of a line: as an ownership word, with further states.
    #[must_use]
    pub fn encode(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Is(ownership) => ownership.encode(),
            Self::Cancelling { source, target, epoch } => word(Self::CANCELLING, source.bits(), target.bits(), epoch),
            Self::Claiming { target, epoch } => word(Self::CLAIMING, target.bits(), HostSlot::NONE, epoch),
            Self::Yielded { target, epoch } => word(Self::YIELDED, target.bits(), HostSlot::NONE, epoch),
            Self::Ended { host, epoch } => word(Self::ENDED, host.bits(), HostSlot::NONE, epoch),
        }
    }

    /// Decodes the word of a line.
    ///
    /// # Errors
    /// [`crate::BadOwnership`] for any value that [`Said::encode`] does not produce.
    pub fn decode(word: u64) -> Result<Self, crate::BadOwnership> {
        let (state, source, target, epoch) = fields(word);
        match (state, source, target) {
            (0, ..) if word == 0 => Ok(Self::Nothing),
            (Self::CANCELLING, Some(source), Some(target)) => Ok(Self::Cancelling { source, target, epoch }),
            (Self::CLAIMING, Some(target), None) => Ok(Self::Claiming { target, epoch }),
            (Self::YIELDED, Some(target), None) => Ok(Self::Yielded { target, epoch }),
            (Self::ENDED, Some(host), None) => Ok(Self::Ended { host, epoch }),
            _ => Ownership::decode(word).map(Self::Is),
        }
    }

    /// The ownership that follows, and of which epoch, if nobody speaks of a later one. Wishes decide nothing.
    #[must_use]
    pub fn ownership(self) -> Option<(Epoch, Ownership)> {
        match self {
            Self::Is(ownership) => Some((ownership.epoch()?, ownership)),
            Self::Cancelling { source, target, epoch } => Some((epoch, Ownership::Frozen { source, target, epoch })),
            Self::Ended { epoch, .. } => Some((epoch, Ownership::Vacant)),
            Self::Nothing | Self::Claiming { .. } | Self::Yielded { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_can_be_said_survives_the_round_trip_and_nothing_else_is_said() {
        let [host, other] = [3, 4094].map(|index| HostSlot::new(index).expect("a small slot"));
        let epoch = Epoch(7);
        for (said, word) in [
            (Said::Nothing, 0),
            (Said::Is(Ownership::Owned { host, epoch }), 0x0100_3FFF_0000_0007),
            (Said::Cancelling { source: host, target: other, epoch }, 0x0800_3FFE_0000_0007),
            (Said::Claiming { target: host, epoch }, 0x0900_3FFF_0000_0007),
            (Said::Yielded { target: host, epoch }, 0x0A00_3FFF_0000_0007),
            (Said::Ended { host, epoch }, 0x0B00_3FFF_0000_0007),
        ] {
            assert_eq!((said.encode(), Said::decode(word)), (word, Ok(said)));
        }
        for word in [1, 0x0800_3FFF_0000_0007, 0x0900_3001_0000_0007, 0x0CFF_F000_0000_0000, u64::MAX] {
            assert!(Said::decode(word).is_err(), "{word:#x}");
        }
    }
}
