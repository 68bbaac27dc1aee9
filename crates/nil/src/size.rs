//! Sizes as people write them: `512M`, `1G`, `2MiB`, or plain bytes.
//!
//! Units are powers of two whether or not the `i` is written, as with every other tool that sizes a VM. What is not
//! a positive whole number of bytes below 2⁶³ is refused with the reason.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// A positive number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Size(u64);

/// Why a text is no size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum BadSize {
    #[error("`{0}` is not a size; write a whole number with K, M, G or T, such as 512M or 1G")]
    Malformed(String),
    #[error("a size of zero makes no sense here; write something such as 512M or 1G")]
    Zero,
    #[error("`{0}` is larger than anything that can be mapped")]
    TooLarge(String),
}

impl Size {
    /// The number of bytes.
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }

    /// Wraps a number of bytes, for display.
    pub(crate) const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let malformed = || BadSize::Malformed(text.to_owned());
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(malformed());
        }
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(malformed()),
        };
        let too_large = || BadSize::TooLarge(text.to_owned());
        let number: u64 = number.parse().map_err(|_| too_large())?;
        let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes < 1 << 63).ok_or_else(too_large)?;
        if bytes == 0 { Err(BadSize::Zero) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            let one = 1_u64 << shift;
            if self.0 >= one {
                let (whole, rest) = (self.0 / one, self.0 % one);
                let tenths = u128::from(rest) * 10 / u128::from(one);
                let text = if rest == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") };
                return f.pad(&text);
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_two() {
        for (text, bytes) in
            [("1", 1), ("4096b", 4096), ("64K", 64 << 10), ("512m", 512 << 20), ("1GiB", 1 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        for text in ["", "G", "-1G", "1.5G", "1X", "1 G", "0x10", "1GG"] {
            assert_eq!(text.parse::<Size>(), Err(BadSize::Malformed(text.to_owned())));
        }
        assert_eq!("0G".parse::<Size>(), Err(BadSize::Zero));
        for text in ["8388608T", "99999999999999999999"] {
            assert_eq!(text.parse::<Size>(), Err(BadSize::TooLarge(text.to_owned())));
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(Size(512).to_string(), "512 B");
        assert_eq!(Size(1 << 30).to_string(), "1 GiB");
        assert_eq!(Size(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(format!("{:>8}", Size(2 << 20)), "   2 MiB");
    }
}
