//! What the page tables say about a range: `PAGEMAP_SCAN`, and `mincore` where that says too little.
//!
//! Structures and numbers are those of `include/uapi/linux/fs.h`; Documentation/admin-guide/mm/pagemap.rst says what they
//! mean. Linux 6.7 and later; what an older kernel cannot say counts as unknown.
#![allow(unsafe_code)]

use crate::dram::PAGE;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_HUGE: u64 = 1 << 6;

#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<Scan>() == 0x60 && size_of::<Region>() == 24);

/// Runs of pages that one call may find.
const AT_ONCE: usize = 64;

/// What kind of page is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Page {
    Small,
    Huge,
}

/// This process's page tables.
#[derive(Debug)]
pub(crate) struct PageMap {
    file: File,
}

impl PageMap {
    pub(crate) fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(|file| Self { file })
    }

    /// Whether any page of the range is in memory, in swap, or marked as protected before it was ever there.
    pub(crate) fn is_touched(&self, range: &Range<usize>) -> io::Result<bool> {
        self.any(range, PAGE_IS_PRESENT | PAGE_IS_SWAPPED)
    }

    /// Whether any of the range lies in huge pages.
    pub(crate) fn has_huge(&self, range: &Range<usize>) -> io::Result<bool> {
        self.any(range, PAGE_IS_HUGE)
    }

    /// Whether the range is one huge page.
    pub(crate) fn is_huge(&self, range: &Range<usize>) -> io::Result<bool> {
        Ok(self.first(range, PAGE_IS_HUGE)?.is_some_and(|found| found == *range))
    }

    fn any(&self, range: &Range<usize>, categories: u64) -> io::Result<bool> {
        Ok(self.first(range, categories)?.is_some())
    }

    /// The first run of pages in any of the categories.
    fn first(&self, range: &Range<usize>, categories: u64) -> io::Result<Option<Range<usize>>> {
        let mut found = [Region::default()];
        let (found, _) = self.scan(range, categories, categories, &mut found)?;
        Ok(found.first().map(Region::pages))
    }

    /// Tells each run of pages that are there, in order.
    pub(crate) fn present(&self, range: &Range<usize>, mut tell: impl FnMut(Range<usize>, Page)) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let mut found = [Region::default(); AT_ONCE];
            let shown = PAGE_IS_PRESENT | PAGE_IS_HUGE;
            let (found, end) = self.scan(&(at..range.end), PAGE_IS_PRESENT, shown, &mut found)?;
            for run in found {
                tell(run.pages(), if run.categories & PAGE_IS_HUGE == 0 { Page::Small } else { Page::Huge });
            }
            if end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN does not get on"));
            }
            at = end;
        }
        Ok(())
    }

    /// Runs of pages in any of the wanted categories, as many as there is room for, and how far it has looked.
    fn scan<'a>(
        &self,
        range: &Range<usize>,
        wanted: u64,
        shown: u64,
        found: &'a mut [Region],
    ) -> io::Result<(&'a [Region], usize)> {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: range.start as u64,
            end: range.end as u64,
            vec: found.as_mut_ptr().expose_provenance() as u64,
            vec_len: found.len() as u64,
            category_anyof_mask: wanted,
            return_mask: shown,
            ..Scan::default()
        };
        // SAFETY: the structure and the regions that it points to are alive and of the sizes that it says.
        let regions = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
        let regions = usize::try_from(regions).map_err(|_| io::Error::last_os_error())?;
        Ok((&found[..regions.min(found.len())], address(scan.walk_end)))
    }
}

impl Region {
    fn pages(&self) -> Range<usize> {
        address(self.start)..address(self.end)
    }
}

/// Whether any page of a range of private memory holds anything, on a host without swap.
///
/// A page that is on its way to another place in memory, or has failed, is not present by `PAGEMAP_SCAN`; like one that is
/// protected and was never there it counts as swapped. `mincore` tells them apart: only the last has nothing
/// (`mincore_pte_range` in mm/mincore.c).
pub(crate) fn is_resident(range: &Range<usize>) -> io::Result<bool> {
    let mut pages = vec![0u8; range.len().div_ceil(PAGE)];
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the call only writes a byte for each page of the range, and there is room for that.
    let result = unsafe { libc::mincore(start, range.len(), pages.as_mut_ptr()) };
    if result == 0 { Ok(pages.iter().any(|page| page & 1 == 1)) } else { Err(io::Error::last_os_error()) }
}

fn address(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Whether pages can be in swap on this machine, where page tables alone do not tell what they hold.
pub(crate) fn has_swap() -> bool {
    rustix::system::sysinfo().totalswap > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dram::{AddressRange, granule_bytes};
    use crate::userfault::Userfault;

    #[test]
    fn memory_that_is_protected_holds_nothing_where_it_was_never_stored_into() {
        let range = AddressRange::private(2 * granule_bytes()).expect("memory");
        let second = granule_bytes()..granule_bytes() + PAGE;
        range.populate(second).expect("pages");
        let addresses = range.addresses();
        let (first, second) =
            (addresses.start..addresses.start + granule_bytes(), addresses.start + granule_bytes()..addresses.end);
        let userfault = Userfault::open().expect("a userfaultfd");
        userfault.register(&addresses).expect("registered");
        userfault.protect(&addresses).expect("protected");
        let pages = PageMap::open().expect("/proc");
        assert!(pages.is_touched(&first).expect("Linux 6.7"), "a marker cannot be told from a page on its way");
        assert!(!is_resident(&first).expect("mapped") && is_resident(&second).expect("mapped"));
    }
}
