//! What a capacity is composed of: granules of its own pool, or legs in several pools.
//!
//! ```text
//! bytes of the striped capacity, weights 2 and 1
//! | leg 0      2 × granularity | leg 1  1 × granularity | leg 0 …     the last round may end anywhere on a granule
//! └──────────────────── one round ────────────────────┘
//! ```
//!
//! A leg is an ordinary capacity of its pool that says whose leg it is. It has exactly the bytes that fall to it, in the
//! order in which they fall. Pools and legs are named by UUID and tag, never by path.

use super::GRANULE;
use crate::bytes::Bytes;
use crate::ids::{PoolId, Tag};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Most legs of a capacity: the most interleave ways that CXL has.
pub const MAX_LEGS: usize = 16;
/// Largest weight of a leg.
pub const MAX_WEIGHT: u32 = 4096;
/// Most pieces that a striped capacity may be cut into: each is a mapping, of which a process has 65,530.
pub const MAX_PIECES: u64 = 16_384;

/// What a capacity is composed of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Composition {
    /// Granules of its pool.
    Plain,
    /// Granules of its pool, which are a part of a striped capacity.
    LegOf(Whole),
    /// Legs, and no granules of its own.
    Striped(Stripe),
}

/// The striped capacity that a leg belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Whole {
    /// The pool that has its record.
    pub pool: PoolId,
    /// Its tag there.
    pub tag: Tag,
}

/// One leg of a striped capacity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Leg {
    /// The pool that it lies in.
    pub pool: PoolId,
    /// Its tag there.
    pub tag: Tag,
    /// How many times the granularity it gets in each round.
    pub weight: u32,
}

/// How a capacity is spread over its legs.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Stripe {
    /// Bytes that a leg of weight 1 gets in each round.
    pub granularity: u64,
    /// The legs, in the order of a round.
    pub legs: Vec<Leg>,
}

/// Contiguous bytes of a striped capacity that lie in one leg.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Share {
    /// Index of the leg.
    pub leg: usize,
    /// Its bytes.
    pub bytes: Range<u64>,
}

/// Why a capacity cannot be striped like this.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadStripe {
    /// Stripes are made of granules.
    #[error("a stripe granularity of {}: it must be a positive multiple of 2 MiB", Bytes(*granularity))]
    Granularity {
        /// What was asked for.
        granularity: u64,
    },
    /// Too few or too many.
    #[error("a stripe over {legs} pools: it must be 1 to 16")]
    Legs {
        /// How many there are.
        legs: usize,
    },
    /// Too light or too heavy.
    #[error("a stripe of weight {weight} in pool {pool}: it must be 1 to 4096")]
    Weight {
        /// The pool.
        pool: PoolId,
        /// The weight.
        weight: u32,
    },
    /// Striping over one device twice gains nothing.
    #[error("pool {pool} is named twice as a stripe; give it a larger weight instead")]
    Twice {
        /// The pool.
        pool: PoolId,
    },
    /// A leg would get nothing.
    #[error("{} are too few to be striped: with these weights and granularity, all pools take part from {} on", Bytes(*bytes), Bytes(*least))]
    TooSmall {
        /// What was asked for.
        bytes: u64,
        /// What is needed.
        least: u64,
    },
    /// More mappings than a process should have for one capacity.
    #[error("{} would be cut into {pieces} pieces, more than the 16384 that can be mapped; take a granularity of at least {}", Bytes(*bytes), Bytes(*granularity))]
    TooManyPieces {
        /// What was asked for.
        bytes: u64,
        /// How many pieces that would be.
        pieces: u64,
        /// What granularity would do.
        granularity: u64,
    },
}

impl Stripe {
    /// Whether `bytes` bytes can be spread like this.
    ///
    /// # Errors
    /// [`BadStripe`] with the reason.
    pub fn validate(&self, bytes: u64) -> Result<(), BadStripe> {
        let Self { granularity, legs } = self;
        if *granularity == 0 || !granularity.is_multiple_of(GRANULE) {
            return Err(BadStripe::Granularity { granularity: *granularity });
        }
        if !(1..=MAX_LEGS).contains(&legs.len()) {
            return Err(BadStripe::Legs { legs: legs.len() });
        }
        for (index, leg) in legs.iter().enumerate() {
            if !(1..=MAX_WEIGHT).contains(&leg.weight) {
                return Err(BadStripe::Weight { pool: leg.pool, weight: leg.weight });
            }
            if legs[..index].iter().any(|other| other.pool == leg.pool) {
                return Err(BadStripe::Twice { pool: leg.pool });
            }
        }
        let least = self.before_last().saturating_add(GRANULE);
        if bytes < least {
            return Err(BadStripe::TooSmall { bytes, least });
        }
        let pieces = bytes.div_ceil(self.round()).saturating_mul(legs.len() as u64);
        if pieces > MAX_PIECES {
            let granularity = granularity.saturating_mul(pieces.div_ceil(MAX_PIECES));
            return Err(BadStripe::TooManyPieces { bytes, pieces, granularity });
        }
        Ok(())
    }

    /// Bytes of one round; at most [`u64::MAX`], which is more than any capacity has.
    fn round(&self) -> u64 {
        self.legs.iter().fold(0, |sum: u64, leg| sum.saturating_add(self.share(leg)))
    }

    /// Bytes of a round before its last leg.
    fn before_last(&self) -> u64 {
        let legs = self.legs.iter().take(self.legs.len().saturating_sub(1));
        legs.fold(0, |sum: u64, leg| sum.saturating_add(self.share(leg)))
    }

    /// Bytes of a leg in one round.
    fn share(&self, leg: &Leg) -> u64 {
        self.granularity.saturating_mul(leg.weight.into())
    }

    /// The shares of the legs in a valid striped capacity of `bytes` bytes, in the order of its bytes.
    pub fn shares(&self, bytes: u64) -> impl Iterator<Item = Share> + '_ {
        let (mut left, mut next) = (bytes, 0);
        let mut used = [0_u64; MAX_LEGS];
        std::iter::from_fn(move || {
            let (leg, used) = (self.legs.get(next)?, used.get_mut(next)?);
            let length = self.share(leg).min(left);
            if length == 0 {
                return None;
            }
            let share = Share { leg: next, bytes: *used..*used + length };
            *used += length;
            left -= length;
            next = (next + 1) % self.legs.len();
            Some(share)
        })
    }

    /// How many bytes of a valid striped capacity of `bytes` bytes fall to each leg.
    #[must_use]
    pub fn leg_bytes(&self, bytes: u64) -> Vec<u64> {
        let mut sizes = vec![0; self.legs.len()];
        for share in self.shares(bytes) {
            sizes[share.leg] = share.bytes.end;
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(digit: u8, weight: u32) -> Leg {
        Leg { pool: PoolId::from_bytes([digit; 16]), tag: Tag::from_bytes([digit; 16]), weight }
    }

    fn stripe(weights: &[u32]) -> Stripe {
        let legs = (1..).zip(weights).map(|(digit, weight)| leg(digit, *weight)).collect();
        Stripe { granularity: 2 * GRANULE, legs }
    }

    #[test]
    fn weights_share_every_round_and_the_last_one_may_be_short() {
        let stripe = stripe(&[2, 1]);
        let bytes = 15 * GRANULE;
        assert_eq!(stripe.validate(bytes), Ok(()));
        let shares: Vec<_> = stripe
            .shares(bytes)
            .map(|Share { leg, bytes }| (leg, bytes.start / GRANULE, bytes.end / GRANULE))
            .collect();
        assert_eq!(shares, [(0, 0, 4), (1, 0, 2), (0, 4, 8), (1, 2, 4), (0, 8, 11)]);
        assert_eq!(stripe.leg_bytes(bytes), [11 * GRANULE, 4 * GRANULE]);
    }

    #[test]
    fn every_leg_gets_something() {
        let stripe = stripe(&[2, 1]);
        assert_eq!(stripe.validate(5 * GRANULE), Ok(()));
        assert_eq!(stripe.leg_bytes(5 * GRANULE), [4 * GRANULE, GRANULE]);
        let too_small = BadStripe::TooSmall { bytes: 4 * GRANULE, least: 5 * GRANULE };
        assert_eq!(stripe.validate(4 * GRANULE), Err(too_small));
    }

    #[test]
    fn a_capacity_is_not_cut_into_more_pieces_than_can_be_mapped() {
        let stripe = Stripe { granularity: GRANULE, ..stripe(&[1, 1]) };
        assert_eq!(stripe.validate(MAX_PIECES * GRANULE), Ok(()));
        let Err(BadStripe::TooManyPieces { pieces, granularity, .. }) = stripe.validate((MAX_PIECES + 1) * GRANULE)
        else {
            panic!("too many pieces")
        };
        assert_eq!((pieces, granularity), (MAX_PIECES + 2, 2 * GRANULE));
        assert_eq!(Stripe { granularity, ..stripe }.validate((MAX_PIECES + 1) * GRANULE), Ok(()));
    }

    #[test]
    fn what_cannot_be_striped_is_refused() {
        let bytes = 1 << 30;
        let crooked = Stripe { granularity: GRANULE + 4096, ..stripe(&[1, 1]) };
        assert!(matches!(crooked.validate(bytes), Err(BadStripe::Granularity { .. })));
        assert!(matches!(stripe(&[]).validate(bytes), Err(BadStripe::Legs { legs: 0 })));
        assert!(matches!(stripe(&[1; 17]).validate(bytes), Err(BadStripe::Legs { legs: 17 })));
        assert!(matches!(stripe(&[1, 0]).validate(bytes), Err(BadStripe::Weight { weight: 0, .. })));
        assert!(matches!(stripe(&[1, 4097]).validate(bytes), Err(BadStripe::Weight { .. })));
        let twice = Stripe { legs: vec![leg(1, 1), leg(2, 1), leg(1, 1)], ..stripe(&[]) };
        assert_eq!(twice.validate(bytes), Err(BadStripe::Twice { pool: PoolId::from_bytes([1; 16]) }));
        let endless = Stripe { granularity: u64::MAX / GRANULE * GRANULE, ..stripe(&[1, 4096]) };
        assert!(matches!(endless.validate(bytes), Err(BadStripe::TooSmall { .. })));
    }
}
