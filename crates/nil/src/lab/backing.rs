//! Counting the bytes that a handoff copied.
//!
//! Guest memory that was copied must lie somewhere else than before. Where it lies is the kernel's knowledge, not ours: its
//! list of a process's mappings says which bytes of which file stand behind every address. So at every landing the lab
//! compares the new worker's list with the file ranges that the guest was booted in, and every byte of guest memory that the
//! worker does *not* have mapped, shared, from the same place of the same file counts as copied.
//!
//! What this cannot see: a byte that was copied onto itself, or somewhere and back again.

use anyhow::{Context, ensure};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The bytes of a pool's file that a guest's memory consists of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Backing {
    inode: u64,
    ranges: Vec<Range<u64>>,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Line {
    addresses: Range<u64>,
    shared: bool,
    offset: u64,
    inode: u64,
}

impl Backing {
    /// What stands behind the addresses at which this process has mapped the guest's memory from the pool at `path`.
    pub(crate) fn of_mapping(addresses: &Range<usize>, path: &Path) -> anyhow::Result<Self> {
        let inode = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.ino();
        let addresses = u64::try_from(addresses.start)?..u64::try_from(addresses.end)?;
        let maps = fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
        let backing = Self { inode, ranges: Vec::new() };
        let ranges: Vec<_> = backing.lines(&maps).filter_map(|line| line.file_range(&addresses)).collect();
        let found: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        ensure!(
            found == addresses.end - addresses.start,
            "the guest's memory is not all mapped from {}",
            path.display()
        );
        Ok(Self { ranges, ..backing })
    }

    /// Bytes of guest memory that the process `pid` does not have mapped from where they have always been.
    pub(crate) fn bytes_elsewhere(&self, pid: i32) -> anyhow::Result<u64> {
        let path = format!("/proc/{pid}/maps");
        let maps = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(self.missing_from(&maps))
    }

    /// Bytes of guest memory that the process `pid` maps by huge pages.
    pub(crate) fn huge_bytes(&self, pid: i32) -> anyhow::Result<u64> {
        let path = format!("/proc/{pid}/smaps");
        let smaps = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(self.huge_in(&smaps))
    }

    /// Every mapping is a line of `/proc/PID/maps` and many `Name: number kB` behind it. Only mappings that lie wholly
    /// in the guest's memory count.
    fn huge_in(&self, smaps: &str) -> u64 {
        let (mut ours, mut bytes) = (false, 0);
        for line in smaps.lines() {
            let value = |name| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
            match Line::parse(line) {
                Some(mapping) => ours = self.holds(&mapping),
                None if ours => {
                    let huge = value("ShmemPmdMapped:").or_else(|| value("FilePmdMapped:")).unwrap_or(0);
                    bytes += huge.saturating_mul(1024);
                }
                None => {}
            }
        }
        bytes
    }

    fn holds(&self, mapping: &Line) -> bool {
        let shown = mapping.file_range(&(0..u64::MAX)).unwrap_or_default();
        let ours = mapping.shared && mapping.inode == self.inode;
        ours && self.ranges.iter().any(|range| range.start <= shown.start && shown.end <= range.end)
    }

    fn missing_from(&self, maps: &str) -> u64 {
        let mapped: Vec<Range<u64>> = self.lines(maps).filter_map(|line| line.file_range(&(0..u64::MAX))).collect();
        self.ranges.iter().map(|range| missing(range, &mapped)).sum()
    }

    /// The shared mappings of our file.
    fn lines<'a>(&'a self, maps: &'a str) -> impl Iterator<Item = Line> + 'a {
        maps.lines().filter_map(Line::parse).filter(|line| line.shared && line.inode == self.inode)
    }
}

impl Line {
    /// `7f00-7f20 rw-s 00200000 00:2a 1234  /path`
    fn parse(line: &str) -> Option<Self> {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let shared = fields.next()?.ends_with('s');
        let offset = hex(fields.next()?)?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some(Self { addresses: hex(start)?..hex(end)?, shared, offset, inode })
    }

    /// The part of the file that this line shows at `addresses`.
    fn file_range(&self, addresses: &Range<u64>) -> Option<Range<u64>> {
        let start = self.addresses.start.max(addresses.start);
        let end = self.addresses.end.min(addresses.end);
        (start < end).then(|| self.offset + (start - self.addresses.start)..self.offset + (end - self.addresses.start))
    }
}

/// Bytes of `wanted` that lie in none of the `mapped` ranges.
fn missing(wanted: &Range<u64>, mapped: &[Range<u64>]) -> u64 {
    let mut cuts: Vec<&Range<u64>> = mapped.iter().filter(|m| m.start < wanted.end && wanted.start < m.end).collect();
    cuts.sort_by_key(|range| range.start);
    let (mut at, mut missing) = (wanted.start, 0);
    for range in cuts {
        missing += range.start.saturating_sub(at);
        at = at.max(range.end);
    }
    missing + wanted.end.saturating_sub(at)
}

/// Bytes that the process `pid` has read and written through system calls since it was started.
pub(crate) fn bytes_through_system_calls(pid: i32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/io");
    let io = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Ok(field("rchar:").unwrap_or(0).saturating_add(field("wchar:").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0000400000 rw-s 00200000 00:2a 77                         /mnt/pool
7f0000400000-7f0000600000 rw-s 00a00000 00:2a 77                         /mnt/pool
7f0000800000-7f0000a00000 rw-p 00600000 00:2a 77                         /mnt/pool
7f0000c00000-7f0000e00000 rw-s 00600000 00:2a 78                         /mnt/other
7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]
";

    fn backing<const N: usize>(ranges: [(u64, u64); N]) -> Backing {
        Backing { inode: 77, ranges: ranges.map(|(start, end)| start..end).to_vec() }
    }

    #[test]
    fn memory_that_is_mapped_from_where_it_was_is_not_copied() {
        let guest = backing([(0x20_0000, 0x60_0000), (0xa0_0000, 0xc0_0000)]);
        assert_eq!(guest.missing_from(MAPS), 0);
    }

    #[test]
    fn a_private_mapping_or_another_file_does_not_count_as_the_same_memory() {
        assert_eq!(backing([(0x60_0000, 0x80_0000)]).missing_from(MAPS), 0x20_0000);
    }

    #[test]
    fn every_byte_elsewhere_is_counted_once() {
        assert_eq!(backing([(0x10_0000, 0xb0_0000)]).missing_from(MAPS), 0x10_0000 + 0x40_0000);
        assert_eq!(backing([(0x10_0000, 0x20_0000)]).missing_from(""), 0x10_0000);
    }

    #[test]
    fn huge_pages_are_counted_in_our_file_only() {
        let smaps = "\
7f0000000000-7f0000400000 rw-s 00200000 00:2a 77                         /mnt/pool
Size:               4096 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         0 kB
7f0000c00000-7f0000e00000 rw-s 00600000 00:2a 78                         /mnt/other
ShmemPmdMapped:     2048 kB
";
        assert_eq!(backing([(0x20_0000, 0x60_0000)]).huge_in(smaps), 2 << 20);
        assert_eq!(backing([(0x60_0000, 0x80_0000)]).huge_in(smaps), 0);
    }

    #[test]
    fn a_mapping_of_this_process_is_found_in_its_own_list() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let unmapped = Backing::of_mapping(&(0x1000..0x2000), file.path());
        assert!(unmapped.is_err(), "nothing of the file is mapped there");
    }

    #[test]
    fn a_process_has_read_something_to_get_here() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        assert!(bytes_through_system_calls(pid).expect("our own figures") > 0);
    }
}
