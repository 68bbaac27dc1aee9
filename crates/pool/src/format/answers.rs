//! What the hosts on a capacity's access list have answered to the offer of it: three bits for each, in one word.
//!
//! ```text
//! 63          45 44  42            5   3 2   0
//! | generation  | host 14 | …    | host 1 | host 0 |      generation: the low 19 bits of the capacity's own
//!
//! Offered ──▶ Accepted ──▶ Released            a host lets go of it when its release is asked for
//!    └──────▶ Declined                         … and may accept again
//! ```
//!
//! A word of another generation is about an earlier use of the slot: nobody has answered yet.

use super::capacity::MAX_ACCESS;
use serde::{Deserialize, Serialize};
use std::fmt;

const BITS: u32 = 3;
const MASK: u64 = (1 << BITS) - 1;
#[expect(clippy::cast_possible_truncation, reason = "fifteen")]
const GENERATION_SHIFT: u32 = BITS * MAX_ACCESS as u32;
const GENERATION_MASK: u64 = u64::MAX >> GENERATION_SHIFT;

/// What a host has said to the offer of a capacity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nothing yet.
    Offered,
    /// The host may attach it.
    Accepted,
    /// The host has let go of it, because its release was asked for.
    Released,
    /// The host does not take it: somebody or something there decided so.
    DeclinedByPolicy,
    /// The host does not take it: it cannot be mapped there, for example because a pool with a stripe of it is missing.
    DeclinedAsUnusable,
}

impl Answer {
    fn code(self) -> u64 {
        match self {
            Self::Offered => 0,
            Self::Accepted => 1,
            Self::Released => 2,
            Self::DeclinedByPolicy => 3,
            Self::DeclinedAsUnusable => 4,
        }
    }

    /// Codes that are not known are those of hosts that have not accepted, whatever else they mean.
    fn of_code(code: u64) -> Self {
        match code {
            1 => Self::Accepted,
            2 => Self::Released,
            3 => Self::DeclinedByPolicy,
            4 => Self::DeclinedAsUnusable,
            _ => Self::Offered,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offered => "offered",
            Self::Accepted => "accepted",
            Self::Released => "released",
            Self::DeclinedByPolicy => "declined (by its policy)",
            Self::DeclinedAsUnusable => "declined (it cannot be mapped there)",
        })
    }
}

/// The decoded word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answers(u64);

impl Answers {
    /// What a word says about the capacity of this generation.
    #[must_use]
    pub fn decode(word: u64, generation: u64) -> Self {
        let about = (generation & GENERATION_MASK) << GENERATION_SHIFT;
        Self(if word >> GENERATION_SHIFT == generation & GENERATION_MASK { word } else { about })
    }

    /// The on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        self.0
    }

    /// The answer of the host at that place of the access list.
    #[must_use]
    pub fn get(self, place: usize) -> Answer {
        Answer::of_code(shift(place).map_or(0, |shift| self.0 >> shift & MASK))
    }

    /// The same with another answer of one host; a place beyond the longest list changes nothing.
    #[must_use]
    pub fn with(self, place: usize, answer: Answer) -> Self {
        match shift(place) {
            Some(shift) => Self(self.0 & !(MASK << shift) | answer.code() << shift),
            None => self,
        }
    }
}

fn shift(place: usize) -> Option<u32> {
    u32::try_from(place).ok().filter(|_| place < MAX_ACCESS).map(|place| place * BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Answer; 5] =
        [Answer::Offered, Answer::Accepted, Answer::Released, Answer::DeclinedByPolicy, Answer::DeclinedAsUnusable];

    #[test]
    fn the_encoding_is_the_specified_one() {
        let answers = Answers::decode(0, 7).with(0, Answer::Accepted).with(14, Answer::DeclinedAsUnusable);
        assert_eq!(answers.encode(), 0x0000_F000_0000_0001);
        assert_eq!(Answers::decode(answers.encode(), 7), answers);
        assert_eq!(Answers::decode(answers.encode(), 8).get(0), Answer::Offered);
        assert_eq!(answers.with(15, Answer::Accepted), answers);
    }

    proptest! {
        #[test]
        fn each_host_has_its_own_answer(word: u64, generation in 1_u64..1 << 48, place in 0_usize..MAX_ACCESS, which in 0_usize..5) {
            let before = Answers::decode(word, generation);
            let after = Answers::decode(before.with(place, ALL[which]).encode(), generation);
            for other in 0..MAX_ACCESS {
                prop_assert_eq!(after.get(other), if other == place { ALL[which] } else { before.get(other) });
            }
        }
    }
}
