//! Mapped pool memory: RAII mappings, atomic words, and copies in and out.
//!
//! All unsafe access to pool memory by offset is here. Nobody gets a reference into it except to atomics; records are
//! copied word by word with relaxed atomics, because a peer may be writing them, and validated afterwards.

use crate::backing::Backing;
use crate::error::{Error, Result};
use crate::fault;
use crate::loss::Watch;
use crate::ownership::OwnershipWord;
use crate::persist::{Point, is_software_coherent, persist, refresh};
use crate::sync::{AtomicU64, Ordering, load_cached, store_cached};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::ops::Range;
use std::path::Path;
use std::ptr;

/// How a pool is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Nothing is ever written.
    ReadOnly,
    /// The pool may be changed.
    ReadWrite,
}

impl Access {
    fn protection(self) -> ProtFlags {
        match self {
            Self::ReadOnly => ProtFlags::READ,
            Self::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

/// Bytes of a pool mapped at one address; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    length: usize,
    watch: Option<Watch>,
}

// SAFETY: the mapping is plain memory that belongs to no thread; all access through `&self` is by atomics or by raw
// pointers whose users answer for themselves.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The range may be somebody else's as soon as it is unmapped.
        self.watch = None;
        #[cfg(all(test, not(loom)))]
        crate::medium::unmapped(self.start, self.length);
        // SAFETY: the range was mapped by `map` or `reserve`, and every reference into it borrows `self`.
        let unmapped = unsafe { mm::munmap(self.start.cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "a range that was mapped can be unmapped");
    }
}

impl Mapping {
    /// Maps `length` bytes from `offset` at an address of the kernel's choice.
    pub(crate) fn map(backing: &Backing, offset: u64, length: usize, access: Access) -> Result<Self> {
        // SAFETY: with a null hint the kernel picks an unused range, so no other mapping is touched.
        let start =
            unsafe { mm::mmap(ptr::null_mut(), length, access.protection(), MapFlags::SHARED, backing.file(), offset) };
        let start = start.map_err(|errno| no_mmap(backing, errno))?;
        #[cfg(all(test, not(loom)))]
        crate::medium::mapped(backing, offset, start.cast(), length);
        Ok(Self { start: start.cast(), length, watch: Watch::over(start.cast(), length) })
    }

    /// Reserves addresses from a multiple of the granule on, so that huge pages can back what is mapped there by
    /// [`map_over`]. `path` is what an error names.
    pub(crate) fn reserve(path: &Path, length: u64) -> Result<Self> {
        let failed = |errno: Errno| Error::NoMmap { path: path.to_owned(), source: errno.into() };
        let sizes = (usize::try_from(crate::GRANULE), usize::try_from(length));
        let (Ok(granule), Ok(length)) = sizes else { return Err(failed(Errno::NOMEM)) };
        let reserved = length.checked_add(granule).ok_or_else(|| failed(Errno::NOMEM))?;
        // SAFETY: as in `map`.
        let start = unsafe {
            mm::mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
        };
        let whole = Self { start: start.map_err(failed)?.cast(), length: reserved, watch: None };
        Ok(whole.trim(granule, length))
    }

    /// Cuts a reservation down to `length` bytes at the first multiple of `align`.
    fn trim(self, align: usize, length: usize) -> Self {
        let before = self.start.align_offset(align);
        let whole = std::mem::ManuallyDrop::new(self);
        let after = whole.length - before - length;
        // SAFETY: both ends belong to the reservation, nothing has been mapped or handed out there, and `before` is less
        // than `align`, by which the reservation is longer than `length`.
        unsafe {
            if before > 0 {
                let _ = mm::munmap(whole.start.cast(), before);
            }
            if after > 0 {
                let _ = mm::munmap(whole.start.add(before + length).cast(), after);
            }
            let start = whole.start.add(before);
            Self { start, length, watch: Watch::over(start, length) }
        }
    }

    /// Has the kernel bring in every page of a range, writable, so that nobody faults on one later.
    pub(crate) fn populate(&self, range: Range<usize>) -> std::io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.length, "bytes {range:#x?} of a mapping");
        // SAFETY: the assertion keeps the range inside this mapping; populating changes no contents.
        let populated = unsafe {
            let start = self.start.add(range.start).cast();
            mm::madvise(start, range.len(), mm::Advice::LinuxPopulateWrite)
        };
        Ok(populated?)
    }

    /// Whether its memory is no more: it reads as zeros, and what is written stays in this process.
    pub(crate) fn is_lost(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_lost)
    }

    /// Address of the first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Bytes mapped.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Pointer to `bytes` bytes at `offset`, checked against the mapping.
    pub(crate) fn at(&self, offset: u64, bytes: usize, align: usize) -> *mut u8 {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = offset.checked_add(bytes).filter(|end| *end <= self.length);
        assert!(end.is_some() && offset.is_multiple_of(align), "bytes {offset:#x}+{bytes:#x} of a mapping");
        // SAFETY: the assertion keeps the result inside the mapping.
        unsafe { self.start.add(offset) }
    }

    /// The word at `offset`.
    pub(crate) fn word(&self, offset: u64) -> &AtomicU64 {
        &self.words(offset, 1)[0]
    }

    /// `count` words from `offset`.
    pub(crate) fn words(&self, offset: u64, count: usize) -> &[AtomicU64] {
        let start = self.at(offset, count * 8, 8);
        // SAFETY: `at` checked bounds and alignment; the memory is mapped as long as `self` lives; every access by this
        // and other processes to these words is atomic, and any bit pattern is a valid AtomicU64.
        unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), count) }
    }

    /// The ownership word at `offset`.
    pub(crate) fn ownership_word(&self, offset: u64) -> &OwnershipWord {
        let word = self.at(offset, size_of::<u64>(), align_of::<u64>());
        // SAFETY: as in `words`; the type is nothing but such a word.
        unsafe { &*word.cast::<OwnershipWord>() }
    }

    /// Copies bytes out; they may be torn if somebody is writing them, so validate the copy.
    pub(crate) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        const { assert!(N.is_multiple_of(8)) }
        let mut bytes = [0; N];
        refresh(self.at(offset, N, 8), N);
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.words(offset, N / 8)) {
            bytes.copy_from_slice(&load_cached(word, Ordering::Relaxed).to_le_bytes());
        }
        bytes
    }

    /// Copies bytes in. Ordering with what publishes them, and writing them back, is the caller's business.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(bytes.len().is_multiple_of(8), "records are whole words");
        refresh(self.at(offset, bytes.len(), 8), bytes.len());
        for (bytes, word) in bytes.chunks_exact(8).zip(self.words(offset, bytes.len() / 8)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            fault::step();
            store_cached(word, u64::from_le_bytes(value), Ordering::Relaxed);
        }
    }

    /// Returns once these bytes are in the pool's memory.
    pub(crate) fn persist(&self, point: Point, offset: u64, bytes: usize) {
        persist(point, self.at(offset, bytes, 1), bytes);
    }
}

/// Maps bytes of a backing over whatever is mapped at `address`; all three are multiples of the page size.
///
/// # Safety
/// The range from `address` on belongs to the caller, and nothing refers to what was mapped there before.
pub(crate) unsafe fn map_over(
    backing: &Backing,
    offset: u64,
    bytes: usize,
    access: Access,
    address: *mut u8,
) -> Result<()> {
    // SAFETY: the caller gives the range up to this mapping.
    let mapped = unsafe {
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        mm::mmap(address.cast(), bytes, access.protection(), flags, backing.file(), offset)
    };
    mapped.map_err(|errno| no_mmap(backing, errno))?;
    #[cfg(all(test, not(loom)))]
    crate::medium::mapped(backing, offset, address, bytes);
    Ok(())
}

/// Copies bytes from memory that somebody may be writing into mapped memory.
///
/// # Safety
/// As for [`copy_in`]; the bytes at `from` are readable, and other memory.
pub(crate) unsafe fn copy_across(from: *const u8, to: *mut u8, bytes: usize) {
    refresh(to, bytes);
    #[cfg(all(test, not(loom)))]
    // SAFETY: the caller's contract, and in a test nobody writes them.
    if crate::medium::copy_in(to, unsafe { std::slice::from_raw_parts(from, bytes) }) {
        return;
    }
    // SAFETY: the caller's contract.
    unsafe { ptr::copy_nonoverlapping(from, to, bytes) }
}

/// Copies bytes into mapped memory.
///
/// # Safety
/// The bytes at `to` are mapped and writable, and nobody else in this process writes them meanwhile.
pub(crate) unsafe fn copy_in(to: *mut u8, bytes: &[u8]) {
    refresh(to, bytes.len());
    #[cfg(all(test, not(loom)))]
    if crate::medium::copy_in(to, bytes) {
        return;
    }
    // SAFETY: the caller's contract; what is borrowed is not what is written.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
}

/// Copies bytes out of mapped memory. They may be torn if somebody is writing them, so validate the copy.
///
/// # Safety
/// The bytes at `from` are mapped and readable.
pub(crate) unsafe fn copy_out(from: *const u8, bytes: &mut [u8]) {
    refresh(from, bytes.len());
    #[cfg(all(test, not(loom)))]
    if crate::medium::copy_out(from, bytes) {
        return;
    }
    // SAFETY: the caller's contract; the copy is the caller's alone.
    unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
}

/// Asks for huge pages. It may be refused (there are none for this file), which costs only speed.
///
/// # Safety
/// The range is mapped, and belongs to the caller.
pub(crate) unsafe fn advise_huge(address: *mut u8, bytes: usize) {
    // SAFETY: advice changes no contents, and the range is the caller's.
    let _ = unsafe { mm::madvise(address.cast(), bytes, mm::Advice::LinuxHugepage) };
}

fn no_mmap(backing: &Backing, errno: Errno) -> Error {
    Error::NoMmap { path: backing.path().to_owned(), source: errno.into() }
}

/// Stores a word of the pool. Writing it back is the caller's business.
pub(crate) fn put(word: &AtomicU64, value: u64, ordering: Ordering) {
    fault::step();
    word.store(value, ordering);
}

/// Stores a word of the pool, and returns once it is in the pool's memory.
pub(crate) fn settle(word: &AtomicU64, value: u64) {
    put(word, value, Ordering::Release);
    written(word);
}

/// Returns once a word is in the pool's memory, where it is not by now in any case.
fn written(word: &AtomicU64) {
    if !is_software_coherent() {
        persist(Point::Word, ptr::from_ref(word).cast(), size_of::<u64>());
    }
}

/// Compare-and-swap of a word of the pool (acquire, release); the word's value if it was another one. A change is in the
/// pool's memory when this returns.
pub(crate) fn exchange(word: &AtomicU64, from: u64, to: u64) -> std::result::Result<(), u64> {
    fault::step();
    word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)?;
    written(word);
    Ok(())
}
