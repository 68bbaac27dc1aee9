//! Sizes as people write them: `64M`, `1G`, `2MiB`, `4096`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A number of bytes. Suffixes K, M, G, T, P are powers of 1024, with or without `iB` or `B` behind them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    /// Not a number with an optional suffix.
    #[error("'{0}' is not a size; write a whole number with K, M, G, T or P behind it, such as 64M or 1G")]
    Syntax(String),
    /// More than 2⁶⁴−1 bytes.
    #[error("'{0}' is more than 16 EiB, which no pool can hold")]
    Huge(String),
    /// Nothing.
    #[error("a size of zero makes no sense here")]
    Zero,
}

/// The suffixes, the largest first.
const UNITS: [(char, u32); 5] = [('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl Bytes {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let syntax = || BadSize::Syntax(text.to_owned());
        let text_only = text.trim();
        let digits = text_only.find(|c: char| !c.is_ascii_digit()).unwrap_or(text_only.len());
        let (number, suffix) = text_only.split_at(digits);
        if number.is_empty() {
            return Err(syntax());
        }
        let shift = suffix_shift(suffix.trim()).ok_or_else(syntax)?;
        let number: u64 = number.parse().map_err(|_| BadSize::Huge(text.to_owned()))?;
        match number.checked_mul(1 << shift) {
            Some(0) => Err(BadSize::Zero),
            Some(bytes) => Ok(Self(bytes)),
            None => Err(BadSize::Huge(text.to_owned())),
        }
    }
}

fn suffix_shift(suffix: &str) -> Option<u32> {
    let upper = suffix.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Some(0);
    }
    let mut letters = upper.chars();
    let first = letters.next()?;
    let (_, shift) = UNITS.iter().find(|(letter, _)| *letter == first)?;
    matches!(letters.as_str(), "" | "B" | "IB").then_some(*shift)
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift));
        match unit {
            Some((letter, shift)) => write!(f, "{} {letter}iB", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases =
            [("4096", 4096), ("64M", 64 << 20), ("2MiB", 2 << 20), ("1g", 1 << 30), ("1 T", 1 << 40), ("3kb", 3072)];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_zero_and_the_huge_are_refused_with_their_reason() {
        for text in ["", "M", "-1", "1.5G", "64X", "1MM", "1iB"] {
            assert_eq!(text.parse::<Bytes>(), Err(BadSize::Syntax(text.to_owned())), "{text}");
        }
        assert_eq!("0G".parse::<Bytes>(), Err(BadSize::Zero));
        for text in ["16384P", "99999999999999999999999"] {
            assert_eq!(text.parse::<Bytes>(), Err(BadSize::Huge(text.to_owned())));
        }
    }

    #[test]
    fn what_is_displayed_reads_back_as_the_same_size() {
        for bytes in [1, 4096, 4097, 2 << 20, 3 << 30, 1 << 40, u64::MAX] {
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }
    }
}
