//! Ranges of this process's address space, and private memory in them.
//!
//! A guest's memory is a *range*: reserved once, at a multiple of the granule, never moved, with something mapped
//! everywhere. What goes into it comes out of a second range of the same length, the *mirror*: memory for a chunk is
//! brought in there, filled there, and then moved over the chunk by `mremap`, page tables and all. `MREMAP_DONTUNMAP` leaves
//! the mirror mapped and empty, so it can serve for ever; and as chunk and mirror agree in their offsets, neighbours that
//! came out of the mirror merge into one mapping again.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use crate::numa;
use nil_pool::GRANULE;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a page as the kernel protects and maps it.
pub(crate) const PAGE: usize = 4096;

/// Addresses that are ours. Unmapped on drop, whatever has been mapped there meanwhile.
#[derive(Debug)]
pub(crate) struct AddressRange {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the range belongs to no thread; all access is by raw pointers and system calls whose users answer for themselves.
unsafe impl Send for AddressRange {}
// SAFETY: as above.
unsafe impl Sync for AddressRange {}

impl Drop for AddressRange {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `private` and is ours alone; nobody has a reference into it.
        let unmapped = unsafe { munmap(self.start.cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a range that was mapped can be unmapped");
    }
}

impl AddressRange {
    /// Private memory without pages, at a multiple of the granule, huge pages advised.
    ///
    /// # Errors
    /// [`Error::NoAddressSpace`].
    pub(crate) fn private(bytes: usize) -> Result<Self> {
        let failed = |source: Errno| Error::NoAddressSpace { bytes, source: source.into() };
        let granule = granule_bytes();
        let reserved = bytes.checked_add(granule).ok_or_else(|| failed(Errno::NOMEM))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: with a null hint the kernel picks an unused range, so no other mapping is touched.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), reserved, protection, MapFlags::PRIVATE | MapFlags::NORESERVE) };
        let whole = std::mem::ManuallyDrop::new(Self { start: start.map_err(failed)?.cast(), bytes: reserved });
        let before = whole.start.align_offset(granule);
        let after = reserved - before - bytes;
        // SAFETY: both ends belong to the reservation, of which nothing has been handed out; `before` is less than the
        // granule, by which the reservation is longer than `bytes`.
        let range = unsafe {
            if before > 0 {
                let _ = munmap(whole.start.cast(), before);
            }
            if after > 0 {
                let _ = munmap(whole.start.add(before + bytes).cast(), after);
            }
            Self { start: whole.start.add(before), bytes }
        };
        // Refused where there are no huge pages, which costs only speed.
        let _ = range.advise(0..bytes, Advice::LinuxHugepage);
        Ok(range)
    }

    /// The address of the first byte.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// Its length.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Its addresses, as numbers.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let start = self.start.expose_provenance();
        start..start + self.bytes
    }

    /// The address of a byte.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes, "byte {offset:#x} of {:#x}", self.bytes);
        // SAFETY: the assertion keeps it in the range.
        unsafe { self.start.add(offset) }
    }

    /// Brings in the pages of a part, writable; what they hold stays.
    pub(crate) fn populate(&self, part: Range<usize>) -> io::Result<()> {
        self.advise(part, Advice::LinuxPopulateWrite)
    }

    /// Whether this process may store into a part.
    pub(crate) fn set_stores(&self, part: &Range<usize>, stores: Stores) -> io::Result<()> {
        let protection = match stores {
            Stores::Permitted => MprotectFlags::READ | MprotectFlags::WRITE,
            Stores::Refused => MprotectFlags::READ,
        };
        let _ = self.at(part.end);
        // SAFETY: the part lies in the range; who is refused a store waits for the barrier and tries again.
        Ok(unsafe { mprotect(self.at(part.start).cast(), part.len(), protection) }?)
    }

    /// Has no pages there any more.
    #[cfg(test)]
    pub(crate) fn give_back(&self, part: Range<usize>) {
        // SAFETY: the part lies in the range, whose owner, a test, wants it emptied.
        let emptied = unsafe { madvise(self.at(part.start).cast(), part.len(), Advice::LinuxDontNeed) };
        emptied.expect("private memory can be given back");
    }

    /// Keeps the pages of a part from being swapped.
    #[cfg(test)]
    pub(crate) fn lock(&self, part: Range<usize>) {
        let _ = self.at(part.end);
        // SAFETY: the part lies in the range; locking it changes nothing of what it holds.
        let locked = unsafe { rustix::mm::mlock(self.at(part.start).cast(), part.len()) };
        locked.expect("memory can be locked");
    }

    fn advise(&self, part: Range<usize>, advice: Advice) -> io::Result<()> {
        assert!(part.start <= part.end, "{part:?}");
        let _ = self.at(part.end);
        // SAFETY: the part lies in the range, which is ours, and the advice given here changes no contents.
        Ok(unsafe { madvise(self.at(part.start).cast(), part.len(), advice) }?)
    }
}

/// Whether stores get through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stores {
    /// They do.
    Permitted,
    /// They are refused, with SIGSEGV or EFAULT.
    Refused,
}

/// The mirror of a guest's memory: where its private memory comes from.
#[derive(Debug)]
pub(crate) struct Mirror {
    range: AddressRange,
    /// Whether any part has ever been bound to a node.
    bound: AtomicBool,
}

impl Mirror {
    /// A mirror for this many bytes.
    ///
    /// # Errors
    /// [`Error::NoAddressSpace`].
    pub(crate) fn of(bytes: usize) -> Result<Self> {
        // One granule more than is ever taken out of it: the kernel lets a mapping that is moved whole forget where its
        // pages belong (`anon_vma`), and what is moved out of it afterwards would not merge with what was moved before.
        let range = AddressRange::private(bytes + granule_bytes())?;
        let failed = |source| Error::Populate { what: "the mirror of the guest's memory", source };
        range.populate(bytes..bytes + PAGE).map_err(failed)?;
        let mirror = Self { range, bound: AtomicBool::new(false) };
        // The mapping knows its origin by now, and the page, which may be a huge one, has served.
        mirror.empty(bytes..bytes + granule_bytes());
        Ok(mirror)
    }

    /// The address that stands for a byte of the guest's memory.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        self.range.at(offset)
    }

    /// Brings in pages of zeros.
    pub(crate) fn populate(&self, part: Range<usize>) -> io::Result<()> {
        self.range.populate(part)
    }

    /// New pages of this part come from this node.
    ///
    /// # Errors
    /// [`Error::Numa`].
    pub(crate) fn bind(&self, part: &Range<usize>, node: u32) -> Result<()> {
        self.bound.store(true, Ordering::Relaxed);
        Ok(numa::bind(self.range.at(part.start), part.len(), node)?)
    }

    /// New pages of this part come from wherever the process's own policy says, whatever it was bound to before.
    ///
    /// # Errors
    /// [`Error::Numa`].
    pub(crate) fn unbind(&self, part: &Range<usize>) -> Result<()> {
        if self.bound.load(Ordering::Relaxed) {
            numa::unbind(self.range.at(part.start), part.len())?;
        }
        Ok(())
    }

    /// Has no pages any more: what was brought in and not taken is given back.
    pub(crate) fn empty(&self, part: Range<usize>) {
        let _ = self.range.at(part.end);
        // SAFETY: the pages are private to the mirror, which nobody else reads.
        let emptied = unsafe { madvise(self.range.at(part.start).cast(), part.len(), Advice::LinuxDontNeed) };
        debug_assert!(emptied.is_ok(), "private memory can be given back");
    }
}

/// Moves what is mapped at `from`, pages and all, over what is mapped at `to`. What was at `from` is mapped there still,
/// without pages. Nobody who looks at `to` finds nothing there: the kernel does it under one lock. Unless it fails: then
/// nothing may be mapped at `to`, or what was there before.
///
/// # Safety
/// Both ranges are mapped and the caller's, and `from` is one mapping. There are no references into either.
pub(crate) unsafe fn move_pages(from: *mut u8, bytes: usize, to: *mut u8) -> io::Result<()> {
    #[cfg(test)]
    failing::instead_of_moving(to, bytes)?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: the caller's promise.
    let moved = unsafe { libc::mremap(from.cast(), bytes, bytes, flags, to) };
    if moved == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The granule as a length in memory.
pub(crate) const fn granule_bytes() -> usize {
    const BYTES: usize = 2 << 20;
    const { assert!(BYTES as u64 == GRANULE) }
    BYTES
}

/// Pages that cannot be moved.
#[cfg(test)]
pub(crate) mod failing {
    use super::{io, munmap};
    use std::cell::Cell;

    thread_local! {
        static FAILS: Cell<bool> = const { Cell::new(false) };
    }

    /// The next pages that this thread would move are not, and nothing is mapped where they were to go: what the kernel
    /// does when it finds too late that there are too many mappings.
    pub(crate) fn once() {
        FAILS.set(true);
    }

    pub(super) fn instead_of_moving(to: *mut u8, bytes: usize) -> io::Result<()> {
        if !FAILS.take() {
            return Ok(());
        }
        // SAFETY: whoever moves pages gives up what is mapped there.
        unsafe { munmap(to.cast(), bytes)? };
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }
}
