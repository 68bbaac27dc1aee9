//! The guest's command line: `mode=hot threshold=4000 workset=64M`.
//!
//! The host writes it with [`Options`]' `Display`, the guest reads it with [`Options::parse`]. Words that the guest does
//! not know are refused rather than ignored: a misspelt option must not silently measure something else.

use core::fmt;

/// Which guest program it is (the binary knows; it is not an option).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Program {
    /// Records gaps, nothing else.
    TscGaps = 1,
    /// Dirties and verifies memory.
    Pages = 2,
    /// Exercises and verifies registers.
    Registers = 3,
    /// Draws tickets with `lock xadd`.
    Xadd = 4,
    /// All of it together.
    Demo = 5,
    /// All of it too, a little at a time, and rests in between.
    Rest = 6,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 6] = [Self::TscGaps, Self::Pages, Self::Registers, Self::Xadd, Self::Demo, Self::Rest];

    /// The name of the binary.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TscGaps => "tsc-gaps",
            Self::Pages => "pages",
            Self::Registers => "registers",
            Self::Xadd => "xadd",
            Self::Demo => "demo",
            Self::Rest => "rest",
        }
    }
}

/// What the guest does with its memory after it has filled it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Mode {
    /// Leaves it alone until it is told to verify.
    Idle = 1,
    /// Verifies and rewrites the working set without pause.
    #[default]
    Hot = 2,
    /// Stores one word into every page of the working set, again and again, each checked before it is replaced: no guest
    /// can dirty more pages a second, and none notices a lost store sooner.
    Stores = 3,
}

impl Mode {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Hot => "hot",
            Self::Stores => "stores",
        }
    }
}

/// The options of a test guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// What to do with memory.
    pub mode: Mode,
    /// A pause between two TSC readings of more than this many cycles is a gap; 0 lets the guest choose 1.5 µs, or
    /// [`Options::DEFAULT_THRESHOLD`] when it does not know the frequency.
    pub threshold: u64,
    /// Bytes that a hot guest rewrites, over all vCPUs; 0 is all memory under test.
    pub workset: u64,
    /// Bytes under test; 0 is all that there is.
    pub memory: u64,
    /// Frequency of the TSC in kHz, as the host knows it; 0 is unknown.
    pub tsc_khz: u64,
    /// Turns of the loop during which a register round stays loaded; 0 lets the program choose.
    pub dwell: u64,
    /// Microseconds that the guest rests after each stretch of work; 0 lets the program choose.
    pub rest: u64,
    /// After so many turns of its loop vCPU 0 says their number on the console, each time; 0 is never.
    pub say: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { mode: Mode::Hot, threshold: 0, workset: 0, memory: 0, tsc_khz: 0, dwell: 0, rest: 0, say: 0 }
    }
}

/// A command line that the guest does not understand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadOptions {
    /// The word that starts at this byte has no known name before `=`.
    Unknown {
        /// Offset in bytes.
        at: usize,
    },
    /// The word that starts at this byte has a value that is no number, too large, or no known mode.
    Value {
        /// Offset in bytes.
        at: usize,
    },
}

impl BadOptions {
    /// Offset of the offending word in bytes.
    #[must_use]
    pub const fn at(self) -> usize {
        match self {
            Self::Unknown { at } | Self::Value { at } => at,
        }
    }
}

impl fmt::Display for BadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { at } => {
                write!(f, "the guest knows no option like the one at byte {at} of its command line")
            }
            Self::Value { at } => write!(f, "the guest cannot use the value of the option at byte {at}"),
        }
    }
}

impl core::error::Error for BadOptions {}

impl Options {
    /// Gap threshold in cycles where the TSC's frequency is unknown.
    pub const DEFAULT_THRESHOLD: u64 = 4000;

    /// Reads a command line of ASCII words separated by blanks.
    ///
    /// # Errors
    /// [`BadOptions`] names the first word that is not understood.
    pub fn parse(line: &[u8]) -> Result<Self, BadOptions> {
        let mut options = Self::default();
        let mut at = 0;
        for word in line.split(u8::is_ascii_whitespace) {
            if !word.is_empty() {
                options.set(word, at)?;
            }
            at += word.len() + 1;
        }
        Ok(options)
    }

    /// The threshold in cycles that the guest uses.
    #[must_use]
    pub const fn effective_threshold(&self) -> u64 {
        match (self.threshold, self.tsc_khz) {
            (0, 0) => Self::DEFAULT_THRESHOLD,
            (0, khz) => khz.saturating_mul(3) / 2000,
            (threshold, _) => threshold,
        }
    }

    fn set(&mut self, word: &[u8], at: usize) -> Result<(), BadOptions> {
        let unknown = BadOptions::Unknown { at };
        let equals = word.iter().position(|&byte| byte == b'=').ok_or(unknown)?;
        let (name, value) = (&word[..equals], &word[equals + 1..]);
        let size = || parse_size(value).ok_or(BadOptions::Value { at });
        match name {
            b"mode" => {
                self.mode = match value {
                    b"idle" => Mode::Idle,
                    b"hot" => Mode::Hot,
                    b"stores" => Mode::Stores,
                    _ => return Err(BadOptions::Value { at }),
                }
            }
            b"threshold" => self.threshold = size()?,
            b"workset" => self.workset = size()?,
            b"memory" => self.memory = size()?,
            b"tsc_khz" => self.tsc_khz = size()?,
            b"dwell" => self.dwell = size()?,
            b"rest" => self.rest = size()?,
            b"say" => self.say = size()?,
            _ => return Err(unknown),
        }
        Ok(())
    }
}

/// A decimal number with an optional K, M or G (powers of 1024).
fn parse_size(text: &[u8]) -> Option<u64> {
    let (digits, shift) = match text {
        [digits @ .., b'K'] => (digits, 10),
        [digits @ .., b'M'] => (digits, 20),
        [digits @ .., b'G'] => (digits, 30),
        digits => (digits, 0),
    };
    if digits.is_empty() {
        return None;
    }
    digits
        .iter()
        .try_fold(0u64, |sum, digit| {
            let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
            sum.checked_mul(10)?.checked_add(digit)
        })?
        .checked_mul(1 << shift)
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mode={}", self.mode.name())?;
        let numbers = [
            ("threshold", self.threshold),
            ("workset", self.workset),
            ("memory", self.memory),
            ("tsc_khz", self.tsc_khz),
            ("dwell", self.dwell),
            ("rest", self.rest),
            ("say", self.say),
        ];
        numbers.iter().filter(|(_, value)| *value != 0).try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn what_the_host_writes_the_guest_reads() {
        let options = Options {
            mode: Mode::Idle,
            threshold: 3600,
            workset: 64 << 20,
            memory: 0,
            tsc_khz: 2_400_000,
            dwell: 9,
            rest: 20_000,
            say: 64,
        };
        assert_eq!(Options::parse(options.to_string().as_bytes()), Ok(options));
        assert_eq!(Options::parse(Options::default().to_string().as_bytes()), Ok(Options::default()));
        let stores = Options { mode: Mode::Stores, ..Options::default() };
        assert_eq!(Options::parse(stores.to_string().as_bytes()), Ok(stores));
    }

    #[test]
    fn sizes_take_suffixes_and_blanks_are_free() {
        let options = Options::parse(b"  workset=64M  mode=idle memory=2G threshold=3K ").expect("well-formed");
        assert_eq!((options.workset, options.memory, options.threshold), (64 << 20, 2 << 30, 3072));
        assert_eq!(options.mode, Mode::Idle);
    }

    #[test]
    fn a_misspelt_option_is_refused_with_its_place() {
        assert_eq!(Options::parse(b"mode=hot thresold=3"), Err(BadOptions::Unknown { at: 9 }));
        assert_eq!(Options::parse(b"mode=warm"), Err(BadOptions::Value { at: 0 }));
        assert_eq!(Options::parse(b"verbose"), Err(BadOptions::Unknown { at: 0 }));
        for value in ["", "M", "1x", "-1", "18446744073709551616", "18446744073709551615K"] {
            let line = std::format!("workset={value}");
            assert_eq!(Options::parse(line.as_bytes()), Err(BadOptions::Value { at: 0 }), "{value}");
        }
    }

    #[test]
    fn the_threshold_is_one_and_a_half_microseconds_where_the_frequency_is_known() {
        assert_eq!(Options { tsc_khz: 2_400_000, ..Options::default() }.effective_threshold(), 3600);
        assert_eq!(Options::default().effective_threshold(), Options::DEFAULT_THRESHOLD);
        assert_eq!(Options { threshold: 7, tsc_khz: 1, ..Options::default() }.effective_threshold(), 7);
    }
}
