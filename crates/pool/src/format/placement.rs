//! The placement word: where one granule of a guest's memory is.
//!
//! ```text
//! 63     56 55    48 47        36 35     32 31                    0
//! | state  | heat   | host       | zero    | epoch                 |     host 0xFFF = none
//!
//! 1 Local(h, e) ──begin──▶ 2 Mixed(h, e) ──all of it copied──▶ 3 Pooled           decouple
//! 3 Pooled      ──begin──▶ 2 Mixed(h, e) ──all of it copied──▶ 1 Local(h, e)      recouple
//! ```
//!
//! 0 is no state, so memory that was emptied is never taken for a placement.

use crate::ownership::{Epoch, HostSlot};
use std::fmt;

const LOCAL: u64 = 1;
const MIXED: u64 = 2;
const POOLED: u64 = 3;
const NO_HOST: u64 = 0xFFF;

/// Where a granule's contents are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In a host's DRAM.
    Local {
        /// Whose.
        host: HostSlot,
        /// The epoch in which it came there.
        epoch: Epoch,
    },
    /// Partly in a host's DRAM, partly in the pool: it is being moved, or its move stalled.
    Mixed {
        /// Whose DRAM.
        host: HostSlot,
        /// The epoch in which the move began.
        epoch: Epoch,
    },
    /// In the guest's memory capacity.
    Pooled,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { host, epoch } => write!(f, "in the DRAM of host {host} since epoch {epoch}"),
            Self::Mixed { host, epoch } => write!(f, "partly in the DRAM of host {host} since epoch {epoch}"),
            Self::Pooled => write!(f, "in the pool"),
        }
    }
}

/// The decoded placement word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Placed {
    /// Where it is.
    pub place: Place,
    /// How much it was used when that was last sampled: 0 coldest, 255 hottest.
    pub heat: u8,
}

/// A word that is not the encoding of any [`Placed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("granule {granule} of the guest's memory has no possible placement ({word:#018x}); run nil pool check")]
pub struct BadPlacement {
    /// Which granule.
    pub granule: usize,
    /// Its word.
    pub word: u64,
}

impl Place {
    /// Whether a part of it is outside the pool.
    #[must_use]
    pub fn is_away(self) -> bool {
        self != Self::Pooled
    }
}

impl Placed {
    /// A granule here, as cold as can be.
    #[must_use]
    pub fn cold(place: Place) -> Self {
        Self { place, heat: 0 }
    }

    /// Encodes into the on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        let word = |state: u64, host: u64, epoch: u32| {
            state << 56 | u64::from(self.heat) << 48 | host << 36 | u64::from(epoch)
        };
        match self.place {
            Place::Local { host, epoch } => word(LOCAL, host.index() as u64, epoch.0),
            Place::Mixed { host, epoch } => word(MIXED, host.index() as u64, epoch.0),
            Place::Pooled => word(POOLED, NO_HOST, 0),
        }
    }

    /// Decodes a word read from the pool; `None` for any value that [`Placed::encode`] does not produce.
    #[must_use]
    pub fn decode(word: u64) -> Option<Self> {
        let heat = u8::try_from(word >> 48 & 0xFF).ok()?;
        let host = u16::try_from(word >> 36 & NO_HOST).ok().and_then(HostSlot::new);
        let zero = word >> 32 & 0xF;
        let epoch = Epoch(u32::try_from(word & 0xFFFF_FFFF).ok()?);
        let place = match (word >> 56, zero, host) {
            (LOCAL, 0, Some(host)) => Place::Local { host, epoch },
            (MIXED, 0, Some(host)) => Place::Mixed { host, epoch },
            (POOLED, 0, None) if epoch == Epoch(0) => Place::Pooled,
            _ => return None,
        };
        Some(Self { place, heat })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(index: u16) -> HostSlot {
        HostSlot::new(index).expect("a small slot")
    }

    #[test]
    fn every_placement_survives_the_round_trip() {
        let (low, high) = (host(0), host(4094));
        for place in [
            Place::Local { host: low, epoch: Epoch(0) },
            Place::Mixed { host: high, epoch: Epoch(u32::MAX) },
            Place::Pooled,
        ] {
            for heat in [0, 1, 255] {
                let placed = Placed { place, heat };
                assert_eq!(Placed::decode(placed.encode()), Some(placed));
            }
        }
    }

    #[test]
    fn the_encoding_is_the_specified_one() {
        let local = Place::Local { host: host(1), epoch: Epoch(7) };
        assert_eq!(Placed { place: local, heat: 0x20 }.encode(), 0x0120_0010_0000_0007);
        assert_eq!(Placed::cold(Place::Pooled).encode(), 0x0300_FFF0_0000_0000);
    }

    #[test]
    fn foreign_words_are_refused() {
        let words = [
            0,
            u64::MAX,
            0x0300_0010_0000_0000,
            0x0300_FFF0_0000_0001,
            0x0100_FFF0_0000_0001,
            0x0100_0011_0000_0000,
            0x0400_FFF0_0000_0000,
        ];
        for word in words {
            assert_eq!(Placed::decode(word), None, "{word:#018x}");
        }
    }
}
