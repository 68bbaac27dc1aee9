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

/// In the largest unit that fits, with one decimal (rounded down) unless it is a whole number of them.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((letter, shift)) = UNITS.iter().find(|(_, shift)| self.0 >> shift != 0) else {
            return f.pad(&format!("{} B", self.0));
        };
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        let tenths = (u128::from(rest) * 10) >> shift;
        if rest == 0 { f.pad(&format!("{whole} {letter}iB")) } else { f.pad(&format!("{whole}.{tenths} {letter}iB")) }
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
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        for (bytes, text) in
            [(0, "0 B"), (512, "512 B"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB"), (u64::MAX, "16383.9 PiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>8}", Bytes(2 << 20)), "   2 MiB");
    }
}
