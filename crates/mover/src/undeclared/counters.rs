//! What the kernel counts without saying where: `VmPin` and `VmLck` of `/proc/self/status`; and which mappings mlock has
//! locked, which explains the second: those with `lo` among the `VmFlags` in `/proc/self/smaps`.

use super::Undetectable;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::ops::Range;

const STATUS: &str = "/proc/self/status";
const SMAPS: &str = "/proc/self/smaps";

/// Bytes of this process that are pinned, and that are locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counters {
    pub(super) pinned: u64,
    pub(super) locked: u64,
}

impl Counters {
    pub(super) fn read() -> Result<Self, Undetectable> {
        let text = fs::read_to_string(STATUS).map_err(Undetectable::of(STATUS))?;
        let figure = |name| figure(&text, name).ok_or_else(|| Undetectable::garbled(STATUS, name));
        Ok(Self { pinned: figure("VmPin")?, locked: figure("VmLck")? })
    }
}

/// A line `NAME: 1036 kB`, in bytes.
fn figure(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The mappings of this process that are locked. Walks all page tables: not to be asked for nothing.
pub(super) fn locked_ranges() -> Result<Vec<Range<u64>>, Undetectable> {
    let smaps = BufReader::new(File::open(SMAPS).map_err(Undetectable::of(SMAPS))?);
    let mut locked = Vec::new();
    let mut mapping = None;
    for line in smaps.split(b'\n') {
        let line = line.map_err(Undetectable::of(SMAPS))?;
        let line = String::from_utf8_lossy(&line);
        match addresses(&line) {
            Some(range) => mapping = Some(range),
            None if is_locked(&line) => locked.extend(mapping.take()),
            None => {}
        }
    }
    Ok(locked)
}

/// The addresses in the first line of a mapping: `7f2c4ee00000-7f2c4ef00000 rw-p …`.
fn addresses(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

fn is_locked(line: &str) -> bool {
    line.strip_prefix("VmFlags:").is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| flag == "lo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let status = "Name:\tnil\nVmPeak:\t 9 kB\nVmLck:\t    1024 kB\nVmPin:\t    1036 kB\nVmPinned:\t 7 kB\n";
        assert_eq!(figure(status, "VmPin"), Some(1036 << 10));
        assert_eq!(figure(status, "VmLck"), Some(1024 << 10));
        assert_eq!(figure(status, "VmHWM"), None);
        assert_eq!(figure("VmPin:\t12 MB\n", "VmPin"), None);
        assert_eq!(figure("VmPin:\t18446744073709551615 kB\n", "VmPin"), None);
    }

    #[test]
    fn a_mapping_begins_with_its_addresses_and_tells_its_flags_last() {
        assert_eq!(
            addresses("7f2c4ee00000-7f2c4ef00000 rw-p 00000000 00:00 0 "),
            Some(0x7f2c_4ee0_0000..0x7f2c_4ef0_0000)
        );
        assert_eq!(addresses("AnonHugePages:         0 kB"), None);
        assert_eq!(addresses(""), None);
        assert!(is_locked("VmFlags: rd wr mr mw me lo ac "));
        assert!(!is_locked("VmFlags: rd wr mr mw me ac "));
        assert!(!is_locked("VmFlags: rd wr lou ac"));
        assert!(!is_locked("Locked:             1024 kB"));
    }
}
