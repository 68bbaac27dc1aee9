//! Amounts of memory, rates and times: how they are read and shown.

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

/// The suffixes of sizes, the largest first.
const UNITS: [(char, u32); 5] = [('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// More than any machine has: 1 EiB. Sums of 2³² of these and products with a percentage fit into 128 bits, and one
/// of these into the arithmetic of `u64` sixteen times.
const MOST: u64 = 1 << 60;

/// A number of bytes, at most 1 EiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Bytes(pub u64);

/// Bytes per second, at most 1 EiB/s.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Rate(pub u64);

/// A predicted time, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub u64);

impl Rate {
    /// How long `bytes` take, rounded up. At no rate at all: for ever.
    #[must_use]
    pub fn time_for(self, bytes: Bytes) -> Duration {
        if self.0 == 0 {
            return Duration(u64::MAX / 4);
        }
        let micros = (u128::from(bytes.0) * 1_000_000).div_ceil(u128::from(self.0));
        Duration(u64::try_from(micros).unwrap_or(u64::MAX / 4).min(u64::MAX / 4))
    }

    /// This part of the rate, in percent.
    #[must_use]
    pub fn percent(self, percent: u32) -> Self {
        let part = u128::from(self.0) * u128::from(percent) / 100;
        Self(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

impl Duration {
    /// Longer than anything that happens.
    pub const FOREVER: Self = Self(u64::MAX / 4);

    /// So many times this.
    pub(crate) fn times(self, count: u32) -> Self {
        Self(self.0.saturating_mul(u64::from(count)).min(Self::FOREVER.0))
    }

    /// So many thousandths of this.
    #[must_use]
    pub(crate) fn stretched(self, per_mille: u64) -> Self {
        let micros = (u128::from(self.0) * u128::from(per_mille)).div_ceil(1000);
        Self(u64::try_from(micros).unwrap_or(Self::FOREVER.0).min(Self::FOREVER.0))
    }
}

impl Add for Duration {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0).min(Self::FOREVER.0))
    }
}

impl AddAssign for Duration {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Duration {
    fn sum<I: Iterator<Item = Self>>(durations: I) -> Self {
        durations.fold(Self(0), Self::add)
    }
}

fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let upper = suffix.trim().to_ascii_uppercase();
    let shift = match upper.chars().next() {
        None => Some(0),
        Some('B') if upper.len() == 1 => Some(0),
        Some(first) if matches!(&upper[first.len_utf8()..], "" | "B" | "IB") => {
            UNITS.iter().find(|(letter, _)| *letter == first).map(|(_, shift)| *shift)
        }
        Some(_) => None,
    };
    let (false, Some(shift)) = (number.is_empty(), shift) else {
        let shown: String = text.chars().take(40).collect();
        return Err(format!("`{shown}` is no size; write a whole number with K, M, G, T or P behind it, such as 64G"));
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes <= MOST).ok_or_else(|| format!("`{text}` is more than 1 EiB"))
}

/// In the largest unit that fits, with one decimal unless it is a whole number of them.
fn show(amount: u64) -> String {
    let Some((letter, shift)) = UNITS.iter().find(|(_, shift)| amount >> shift != 0) else {
        return format!("{amount} B");
    };
    let (whole, rest) = (amount >> shift, amount & ((1 << shift) - 1));
    let tenths = (u128::from(rest) * 10) >> shift;
    if tenths == 0 { format!("{whole} {letter}iB") } else { format!("{whole}.{tenths} {letter}iB") }
}

/// With a suffix if that says exactly the same, as a configuration has it.
fn exact(amount: u64) -> String {
    let whole = UNITS.iter().find(|(_, shift)| amount >> shift != 0 && amount.trailing_zeros() >= *shift);
    whole.map_or_else(|| amount.to_string(), |(letter, shift)| format!("{}{letter}", amount >> shift))
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes, or a text such as \"64G\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        if number <= MOST { Ok(number) } else { Err(E::custom(format!("{number} is more than 1 EiB"))) }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
        let positive = u64::try_from(number).map_err(|_| E::custom(format!("{number} is less than nothing")))?;
        self.visit_u64(positive)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        parse(text).map_err(E::custom)
    }
}

macro_rules! size {
    ($type:ident, $behind:literal) => {
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!(concat!("{}", $behind), show(self.0)))
            }
        }

        impl $type {
            /// As a configuration has it: exactly, with a suffix where there is one for it.
            #[must_use]
            pub fn exact(self) -> String {
                exact(self.0)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(SizeVisitor).map(Self)
            }
        }
    };
}

size!(Bytes, "");
size!(Rate, "/s");

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = |unit: u64| format!("{}.{}", self.0 / unit, self.0 % unit * 10 / unit);
        let text = match self.0 {
            0..1_000 => format!("{} µs", self.0),
            1_000..1_000_000 => format!("{} ms", tenths(1_000)),
            1_000_000..60_000_000 => format!("{} s", tenths(1_000_000)),
            60_000_000..3_600_000_000 => format!("{} min {} s", self.0 / 60_000_000, self.0 / 1_000_000 % 60),
            _ if *self >= Self::FOREVER => "for ever".to_owned(),
            _ => format!("{} h {} min", self.0 / 3_600_000_000, self.0 / 60_000_000 % 60),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [("4096", 4096), ("64M", 64 << 20), ("2MiB", 2 << 20), ("1g", 1 << 30), ("3 kb", 3072)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "64X", "1MM", "ß", "2P2", "99999999999999999999", "2000P"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_exactly_is_read_as_the_same() {
        for bytes in [0, 1, 1023, 1024, 1 << 30, (1 << 30) + 1, 3 << 40, MOST] {
            assert_eq!(Bytes(bytes).exact().parse(), Ok(Bytes(bytes)));
        }
    }

    #[test]
    fn amounts_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Bytes((1 << 30) + 1).to_string(), "1 GiB");
        assert_eq!(Rate(64 << 30).to_string(), "64 GiB/s");
        for (micros, text) in [
            (150, "150 µs"),
            (1_540, "1.5 ms"),
            (4_300_000, "4.3 s"),
            (61_000_000, "1 min 1 s"),
            (3_700_000_000, "1 h 1 min"),
        ] {
            assert_eq!(Duration(micros).to_string(), text);
        }
    }

    #[test]
    fn nothing_overflows_however_slow_or_large() {
        assert_eq!(Rate(0).time_for(Bytes(1)), Duration::FOREVER);
        assert_eq!(Rate(1).time_for(Bytes(MOST)), Duration::FOREVER);
        assert_eq!(Duration::FOREVER + Duration::FOREVER, Duration::FOREVER);
        assert_eq!(Rate(1 << 30).time_for(Bytes(4 << 30)), Duration(4_000_000));
    }
}
