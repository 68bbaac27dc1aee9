//! The arm word: how far the target of a handoff has come with its preparations.
//!
//! ```text
//! 63      56 55       44 43       32 31                    0
//! | state   | host      | 0xFFF     | epoch                 |     Idle is 0
//! ```
//!
//! The epoch is the one of the ownership that the target wants to succeed. Only the protocol (`nil_migrate`) says when
//! which transition is made.

use crate::ownership::{Epoch, HostSlot};
use crate::sync::{AtomicU64, Ordering};
use std::fmt;

/// The decoded arm word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Arm {
    /// No target is preparing.
    Idle,
    /// `host` has begun to build the machine.
    Arming {
        /// The target.
        host: HostSlot,
        /// Epoch of the ownership that it would end.
        epoch: Epoch,
    },
    /// The machine stands; the target waits on its doorbell.
    Armed {
        /// The target.
        host: HostSlot,
        /// Epoch of the ownership that it would end.
        epoch: Epoch,
    },
    /// Every vCPU thread of the target spins on the ownership word.
    Poised {
        /// The target.
        host: HostSlot,
        /// Epoch of the ownership that it would end.
        epoch: Epoch,
    },
    /// The target cannot take the guest.
    Refused {
        /// The target.
        host: HostSlot,
        /// Epoch of the ownership that it would have ended.
        epoch: Epoch,
    },
}

/// A word that is not the encoding of any [`Arm`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:#018x} is not an arm word")]
pub struct BadArm(pub u64);

impl Arm {
    /// Encodes into the on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        let word = |state: u64, host: HostSlot, epoch: Epoch| {
            state << 56 | (host.index() as u64) << 44 | 0xFFF << 32 | u64::from(epoch.0)
        };
        match self {
            Self::Idle => 0,
            Self::Arming { host, epoch } => word(1, host, epoch),
            Self::Armed { host, epoch } => word(2, host, epoch),
            Self::Poised { host, epoch } => word(3, host, epoch),
            Self::Refused { host, epoch } => word(4, host, epoch),
        }
    }

    /// Decodes a word read from the pool.
    ///
    /// # Errors
    /// [`BadArm`] for any value that [`Arm::encode`] does not produce.
    pub fn decode(word: u64) -> Result<Self, BadArm> {
        let bad = BadArm(word);
        if word == 0 {
            return Ok(Self::Idle);
        }
        if word >> 32 & 0xFFF != 0xFFF {
            return Err(bad);
        }
        let host = u16::try_from(word >> 44 & 0xFFF).ok().and_then(HostSlot::new).ok_or(bad)?;
        let epoch = Epoch(u32::try_from(word & 0xFFFF_FFFF).map_err(|_| bad)?);
        match word >> 56 {
            1 => Ok(Self::Arming { host, epoch }),
            2 => Ok(Self::Armed { host, epoch }),
            3 => Ok(Self::Poised { host, epoch }),
            4 => Ok(Self::Refused { host, epoch }),
            _ => Err(bad),
        }
    }

    /// The target, if there is one.
    #[must_use]
    pub fn host(self) -> Option<HostSlot> {
        match self {
            Self::Idle => None,
            Self::Arming { host, .. }
            | Self::Armed { host, .. }
            | Self::Poised { host, .. }
            | Self::Refused { host, .. } => Some(host),
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => write!(f, "idle"),
            Self::Arming { host, epoch } => write!(f, "arming on {host} for epoch {epoch}"),
            Self::Armed { host, epoch } => write!(f, "armed on {host} for epoch {epoch}"),
            Self::Poised { host, epoch } => write!(f, "poised on {host} for epoch {epoch}"),
            Self::Refused { host, epoch } => write!(f, "refused by {host} for epoch {epoch}"),
        }
    }
}

/// The arm word in shared memory.
#[derive(Debug)]
#[repr(transparent)]
pub struct ArmWord(AtomicU64);

impl ArmWord {
    /// A word outside any pool, for tests and models.
    #[must_use]
    pub fn new(arm: Arm) -> Self {
        Self(AtomicU64::new(arm.encode()))
    }

    /// Reads the word (acquire).
    ///
    /// # Errors
    /// [`BadArm`] when the pool holds no valid word here.
    #[inline]
    pub fn load(&self) -> Result<Arm, BadArm> {
        Arm::decode(self.0.load(Ordering::Acquire))
    }

    /// Writes the word whatever it was (release). For a word that no other host may write at this moment.
    #[inline]
    pub fn store(&self, arm: Arm) {
        self.0.store(arm.encode(), Ordering::Release);
    }

    /// Moves the word from `from` to `to` if it still is `from` (acquire, release). Returns whether it did.
    #[inline]
    pub fn transition(&self, from: Arm, to: Arm) -> bool {
        self.0.compare_exchange(from.encode(), to.encode(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_the_round_trip() {
        let (host, epoch) = (HostSlot::new(9).expect("a small slot"), Epoch(77));
        for arm in [
            Arm::Idle,
            Arm::Arming { host, epoch },
            Arm::Armed { host, epoch },
            Arm::Poised { host, epoch },
            Arm::Refused { host, epoch },
        ] {
            assert_eq!(Arm::decode(arm.encode()), Ok(arm));
        }
    }

    #[test]
    fn the_encoding_is_the_specified_one() {
        let armed = Arm::Armed { host: HostSlot::new(3).expect("a small slot"), epoch: Epoch(7) };
        assert_eq!(armed.encode(), 0x0200_3FFF_0000_0007);
    }

    #[test]
    fn foreign_words_are_refused() {
        for word in [1, 0x0100_0000_0000_0000, 0x0500_0FFF_0000_0001, 0x01FF_FFFF_0000_0001, u64::MAX] {
            assert_eq!(Arm::decode(word), Err(BadArm(word)));
        }
    }
}
