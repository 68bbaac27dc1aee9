//! The ownership word: who may run a guest.
//!
//! One 64-bit word per guest, the only word that hosts race on during a handoff:
//!
//! ```text
//! 63      56 55       44 43       32 31                    0
//! | state   | source    | target    | epoch                 |     host slots of 12 bits, 0xFFF = none
//! ```
//!
//! This module knows the encoding and the atomic access; which transition is allowed when, and by whom, is the
//! protocol's business (`nil_migrate::protocol`).

use crate::fault;
use crate::persist::{Point, persist};
use crate::sync::{AtomicU64, Ordering};
use std::fmt;
use std::ptr;

/// Index of a host in the pool's host table (0 ..= 4094).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostSlot(u16);

impl HostSlot {
    /// The value that stands for "no host" in the word.
    pub(crate) const NONE: u64 = 0xFFF;

    /// Wraps a host table index; `None` when it does not fit into 12 bits (or is the reserved 0xFFF).
    #[must_use]
    pub const fn new(index: u16) -> Option<Self> {
        if index < 0xFFF { Some(Self(index)) } else { None }
    }

    /// The index into the host table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0 as u64
    }

    fn from_bits(bits: u64) -> Option<Self> {
        u16::try_from(bits & Self::NONE).ok().and_then(Self::new)
    }
}

impl fmt::Debug for HostSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

impl fmt::Display for HostSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

/// Counts the changes of owner of one guest. Grows by one with every claim, cancel and withdraw.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch that follows, or `None` after 2³²−1 changes of owner.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    /// Which of the two state slots a freeze at this epoch writes.
    #[must_use]
    pub fn slot(self) -> usize {
        (self.0 & 1) as usize
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The decoded ownership word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ownership {
    /// The record holds no guest.
    Vacant,
    /// `host` may run the guest; nobody else may.
    Owned {
        /// The owner.
        host: HostSlot,
        /// Epoch of this ownership.
        epoch: Epoch,
    },
    /// `source` still runs the guest and is about to freeze it for `target`.
    Offered {
        /// The owner.
        source: HostSlot,
        /// Who is to take over.
        target: HostSlot,
        /// Epoch of the source's ownership.
        epoch: Epoch,
    },
    /// Nobody runs the guest; all of its state lies in state slot `epoch & 1`.
    Frozen {
        /// Who froze it, and may take it back.
        source: HostSlot,
        /// Who may claim it.
        target: HostSlot,
        /// Epoch of the source's ownership.
        epoch: Epoch,
    },
    /// The guest's CPU state is gone; its memory is kept.
    Lost {
        /// The last owner.
        host: HostSlot,
        /// Epoch of the last ownership.
        epoch: Epoch,
    },
    /// Nobody runs the guest: its owner was fenced. `taker`, and nobody else, brings it back to its last checkpoint, into
    /// state slot `epoch & 1`.
    Taken {
        /// Who ran it last.
        source: HostSlot,
        /// Who has taken it.
        taker: HostSlot,
        /// Epoch of the taking.
        epoch: Epoch,
    },
}

/// A word that is not the encoding of any [`Ownership`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:#018x} is not an ownership word")]
pub struct BadOwnership(pub u64);

/// Puts the fields of a word together: the state in bits 56..64, hosts in 44..56 and 32..44, the epoch below.
pub(crate) const fn word(state: u64, source: u64, target: u64, epoch: Epoch) -> u64 {
    state << 56 | source << 44 | target << 32 | epoch.0 as u64
}

/// Takes them apart again.
pub(crate) fn fields(word: u64) -> (u64, Option<HostSlot>, Option<HostSlot>, Epoch) {
    let [.., e3, e2, e1, e0] = word.to_be_bytes();
    (
        word >> 56,
        HostSlot::from_bits(word >> 44),
        HostSlot::from_bits(word >> 32),
        Epoch(u32::from_be_bytes([e3, e2, e1, e0])),
    )
}

impl Ownership {
    const VACANT: u64 = 0;
    const OWNED: u64 = 1;
    const OFFERED: u64 = 2;
    const FROZEN: u64 = 3;
    const LOST: u64 = 4;
    const TAKEN: u64 = 5;

    /// Encodes into the on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        match self {
            Self::Vacant => 0,
            Self::Owned { host, epoch } => word(Self::OWNED, host.bits(), HostSlot::NONE, epoch),
            Self::Offered { source, target, epoch } => word(Self::OFFERED, source.bits(), target.bits(), epoch),
            Self::Frozen { source, target, epoch } => word(Self::FROZEN, source.bits(), target.bits(), epoch),
            Self::Lost { host, epoch } => word(Self::LOST, host.bits(), HostSlot::NONE, epoch),
            Self::Taken { source, taker, epoch } => word(Self::TAKEN, source.bits(), taker.bits(), epoch),
        }
    }

    /// Decodes a word read from the pool.
    ///
    /// # Errors
    /// [`BadOwnership`] for any value that [`Ownership::encode`] does not produce.
    pub fn decode(word: u64) -> Result<Self, BadOwnership> {
        let (state, source, target, epoch) = fields(word);
        match (state, source, target) {
            (Self::VACANT, ..) if word == 0 => Ok(Self::Vacant),
            (Self::OWNED, Some(host), None) => Ok(Self::Owned { host, epoch }),
            (Self::OFFERED, Some(source), Some(target)) => Ok(Self::Offered { source, target, epoch }),
            (Self::FROZEN, Some(source), Some(target)) => Ok(Self::Frozen { source, target, epoch }),
            (Self::LOST, Some(host), None) => Ok(Self::Lost { host, epoch }),
            (Self::TAKEN, Some(source), Some(taker)) => Ok(Self::Taken { source, taker, epoch }),
            _ => Err(BadOwnership(word)),
        }
    }

    /// The host that holds responsibility for the guest: its owner, or who froze it, lost it, or has taken it.
    #[must_use]
    pub fn responsible(self) -> Option<HostSlot> {
        match self {
            Self::Vacant => None,
            Self::Owned { host, .. } | Self::Lost { host, .. } => Some(host),
            Self::Offered { source, .. } | Self::Frozen { source, .. } => Some(source),
            Self::Taken { taker, .. } => Some(taker),
        }
    }

    /// The epoch, which every word but `Vacant` has.
    #[must_use]
    pub fn epoch(self) -> Option<Epoch> {
        match self {
            Self::Vacant => None,
            Self::Owned { epoch, .. }
            | Self::Offered { epoch, .. }
            | Self::Frozen { epoch, .. }
            | Self::Lost { epoch, .. }
            | Self::Taken { epoch, .. } => Some(epoch),
        }
    }

    /// The hosts that the word names.
    #[must_use]
    pub fn hosts(self) -> [Option<HostSlot>; 2] {
        match self {
            Self::Vacant => [None, None],
            Self::Owned { host, .. } | Self::Lost { host, .. } => [Some(host), None],
            Self::Offered { source, target: other, .. }
            | Self::Frozen { source, target: other, .. }
            | Self::Taken { source, taker: other, .. } => [Some(source), Some(other)],
        }
    }
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vacant => write!(f, "vacant"),
            Self::Owned { host, epoch } => write!(f, "owned by {host}, epoch {epoch}"),
            Self::Offered { source, target, epoch } => write!(f, "offered {source}→{target}, epoch {epoch}"),
            Self::Frozen { source, target, epoch } => write!(f, "frozen {source}→{target}, epoch {epoch}"),
            Self::Lost { host, epoch } => write!(f, "lost by {host}, epoch {epoch}"),
            Self::Taken { source, taker, epoch } => write!(f, "taken from {source} by {taker}, epoch {epoch}"),
        }
    }
}

/// The ownership word in shared memory.
#[derive(Debug)]
#[repr(transparent)]
pub struct OwnershipWord(AtomicU64);

impl OwnershipWord {
    /// A word outside any pool, for tests and models.
    #[must_use]
    pub fn new(ownership: Ownership) -> Self {
        Self(AtomicU64::new(ownership.encode()))
    }

    /// Reads the word; what was written before it by whoever wrote it is visible afterwards (acquire).
    ///
    /// # Errors
    /// [`BadOwnership`] when the pool holds no valid word here.
    #[inline]
    pub fn load(&self) -> Result<Ownership, BadOwnership> {
        Ownership::decode(self.0.load(Ordering::Acquire))
    }

    /// Moves the word from `from` to `to` if it still is `from`; all that was written before becomes visible with it
    /// (release). Returns whether it did, once the word is in the pool's memory; if not, the word was something else and is
    /// unchanged.
    #[inline]
    pub fn transition(&self, from: Ownership, to: Ownership) -> bool {
        fault::step();
        let moved = self.0.compare_exchange(from.encode(), to.encode(), Ordering::AcqRel, Ordering::Acquire).is_ok();
        if moved {
            persist(Point::Ownership, ptr::from_ref(&self.0).cast(), size_of::<u64>());
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(index: u16) -> HostSlot {
        HostSlot::new(index).expect("a small slot")
    }

    #[test]
    fn every_state_survives_the_round_trip() {
        let (source, target, epoch) = (host(3), host(4094), Epoch(u32::MAX));
        for ownership in [
            Ownership::Vacant,
            Ownership::Owned { host: source, epoch },
            Ownership::Offered { source, target, epoch },
            Ownership::Frozen { source, target, epoch },
            Ownership::Lost { host: target, epoch },
            Ownership::Taken { source, taker: target, epoch },
        ] {
            assert_eq!(Ownership::decode(ownership.encode()), Ok(ownership));
        }
    }

    #[test]
    fn the_encoding_is_the_specified_one() {
        let frozen = Ownership::Frozen { source: host(1), target: host(2), epoch: Epoch(7) };
        assert_eq!(frozen.encode(), 0x0300_1002_0000_0007);
        let owned = Ownership::Owned { host: host(0), epoch: Epoch(1) };
        assert_eq!(owned.encode(), 0x0100_0FFF_0000_0001);
        let taken = Ownership::Taken { source: host(1), taker: host(2), epoch: Epoch(8) };
        assert_eq!(taken.encode(), 0x0500_1002_0000_0008);
    }

    #[test]
    fn foreign_words_are_refused() {
        for word in
            [1, 0x0100_0000_0000_0000, 0x0500_0FFF_0000_0001, 0x0600_0FFF_0000_0001, 0x0300_1FFF_0000_0001, u64::MAX]
        {
            assert_eq!(Ownership::decode(word), Err(BadOwnership(word)));
        }
    }
}
