//! What nil itself takes for a guest: the memory of its worker that is not the guest's, and the guest's state in the pool.
//! Page tables are the kernel's and counted apart: every hypervisor that maps guest memory has them.

use anyhow::Context;
use serde::Serialize;
use std::fs;
use std::ops::Range;

/// Memory that is taken for a guest besides its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Overhead {
    /// Private memory of the worker outside of the guest's and of the pool, in bytes; the program itself, which all workers
    /// share, does not count.
    pub(crate) worker_bytes: u64,
    /// The guest's state in the pool, in bytes.
    pub(crate) state_bytes: u64,
    /// The worker's page tables, in bytes; not part of the share.
    pub(crate) page_table_bytes: u64,
}

impl Overhead {
    /// Of the guest whose worker is the process `pid`, with the guest's memory at `guest` in its address space.
    pub(crate) fn of(pid: i32, guest: &Range<u64>, state_bytes: u64) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        Ok(Self {
            worker_bytes: private_outside(&read("smaps")?, guest),
            state_bytes,
            page_table_bytes: kilobytes(&read("status")?, "VmPTE:").unwrap_or(0),
        })
    }

    /// Everything but the page tables, as a share of the guest's memory in percent.
    #[expect(clippy::cast_precision_loss, reason = "a percentage with two digits")]
    pub(crate) fn percent_of(&self, memory_bytes: u64) -> f64 {
        self.worker_bytes.saturating_add(self.state_bytes) as f64 / memory_bytes.max(1) as f64 * 100.0
    }
}

/// Bytes that a process has changed in private mappings that do not lie in `guest`. Every mapping is a line of `/proc/PID/maps` and many
/// `Name: number kB` behind it.
fn private_outside(smaps: &str, guest: &Range<u64>) -> u64 {
    let (mut outside, mut bytes) = (true, 0_u64);
    for line in smaps.lines() {
        if let Some((addresses, is_private)) = mapping(line) {
            outside = is_private && !(guest.start <= addresses.start && addresses.end <= guest.end);
        } else if outside {
            let changed = ["Private_Dirty:", "Private_Hugetlb:"];
            bytes += changed.iter().find_map(|name| kilobytes(line, name)).unwrap_or(0);
        }
    }
    bytes
}

/// The addresses of a mapping, and whether it is private: `7f00-7f20 rw-p …`
fn mapping(line: &str) -> Option<(Range<u64>, bool)> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    Some((hex(start)?..hex(end)?, fields.next()?.ends_with('p')))
}

/// The value of the line `name … number kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
Private_Clean:         0 kB
Private_Dirty:      4096 kB
7f0000400000-7f0000600000 rw-s 00a00000 00:2a 77                         /mnt/pool
Private_Dirty:      2048 kB
7f1000000000-7f1000002000 rw-p 00000000 00:00 0                          [heap]
Private_Clean:         4 kB
Private_Dirty:       100 kB
";

    #[test]
    fn the_guests_own_memory_is_no_overhead() {
        assert_eq!(private_outside(SMAPS, &(0x7f00_0000_0000..0x7f00_0040_0000)), 100 << 10);
        assert_eq!(private_outside(SMAPS, &(0..0)), (4096 + 100) << 10);
    }

    #[test]
    fn the_share_does_not_count_page_tables() {
        let overhead = Overhead { worker_bytes: 3 << 20, state_bytes: 2 << 20, page_table_bytes: 1 << 30 };
        assert!((overhead.percent_of(1000 << 20) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_process_has_overhead() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let overhead = Overhead::of(pid, &(0..0), 7).expect("our own figures");
        assert!(overhead.worker_bytes > 0 && overhead.page_table_bytes > 0, "{overhead:?}");
    }
}
