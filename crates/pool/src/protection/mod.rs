//! The protection of a running guest: commits in the pool to which it can be brought back when its host dies.
//!
//! ```text
//!   guest in DRAM ──pages of an epoch──▶ redo log n & 1 ──after commit n──▶ image (the guest's memory capacity)
//!   vCPUs, machine ─────────────────────▶ slot n & 1
//!                                         standing word: Active(n − 1) ─▶ Active(n), by compare-and-swap
//! ```
//!
//! Invariants: while the standing word is `Active(n)` or `Sealed(n)`, the image holds every page as of commit *n* − 1 or *n*,
//! and redo log *n* & 1 holds all that differs; so applying it, once or more often, makes commit *n*. Log, index, slot and
//! record of the other half may be written then, because the word does not name them. Who takes the guest over seals the word
//! first: a former owner that wakes up commits nothing more.
//!
//! The capacity of a guest's protection is made and released like that of its memory ([`crate::memory`]), and as long as it
//! is there the memory capacity stays: it is the image.

mod capacity;
mod draft;
mod restore;
#[cfg(all(test, not(loom)))]
pub(crate) mod tests;

pub use draft::{Draft, LogFull};
pub use restore::Restored;

use crate::capacity_mapping::CapacityMapping;
use crate::control::GuestControl;
use crate::error::{Error, Result};
use crate::fault;
use crate::format::protection::{
    APPLIED, COMMIT_BYTES, Commit, ENTRY_BYTES, HEADER_BYTES, LOG_PAGE, LogEntry, ProtectionSettings, ProtectionShape,
    SETTINGS, STANDING, Standing, decode_index, protection_tag,
};
use crate::format::{BadRecord, checksum};
use crate::ids::GuestId;
use crate::mapping::{copy_across, copy_in, copy_out, exchange, put};
use crate::persist::{Point, persist};
use crate::pool::Pool;
use crate::state::{Area, MACHINE_AREA, Shape, VCPU_AREA};
use crate::sync::{AtomicU64, Ordering, fence};
use std::ops::Range;
use std::sync::Arc;

/// Pages that are brought into the image between two looks whether the guest is still its owner's.
const LOOK_AFTER: u64 = 64;

/// A guest's protection, mapped. Clones are cheap and show the same bytes.
#[derive(Clone, Debug)]
pub struct Protection {
    mapping: Arc<CapacityMapping>,
    shape: ProtectionShape,
}

/// Memory of a guest as a process has it mapped: where pages come from and go to.
///
/// # Safety
/// `page` gives an address with [`LOG_PAGE`] bytes that are mapped, readable and writable as long as `self` lives, for every
/// page below `pages`.
pub unsafe trait GuestPages {
    /// How many pages there are.
    fn pages(&self) -> u64;

    /// Where a page begins.
    fn page(&self, index: u64) -> *mut u8;
}

// SAFETY: the mapping is of that length for as long as it lives.
unsafe impl GuestPages for CapacityMapping {
    fn pages(&self) -> u64 {
        (self.len() / LOG_PAGE) as u64
    }

    fn page(&self, index: u64) -> *mut u8 {
        assert!(index < self.pages(), "page {index} of {}", self.pages());
        self.mapping().at(index * LOG_PAGE as u64, LOG_PAGE, LOG_PAGE)
    }
}

impl GuestControl {
    /// The guest's protection, if it has one.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not the one of this guest; [`Error::GuestGone`], [`Error::NoMmap`].
    pub fn protection(&self) -> Result<Option<Protection>> {
        let record = self.record()?;
        let Some(capacity) = self.protection_capacity() else { return Ok(None) };
        let mapping = self.pool().map_reference(capacity, protection_tag(self.id()))?;
        Protection::open(mapping, Shape::of(&record)).map(Some)
    }

    /// Whether the guest has a protection.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.protection_capacity().is_some()
    }

    pub(crate) fn protection_capacity(&self) -> Option<crate::format::slot_word::Reference> {
        let capacity = self.pool().capacity_by_tag(protection_tag(self.id()))?;
        (self.pool().tables().user_of(capacity.slot.into()) == Some(self.reference())).then_some(capacity)
    }
}

impl Pool {
    /// The tag of the capacity with the protection of a guest.
    #[must_use]
    pub fn protection_tag(guest: GuestId) -> crate::ids::Tag {
        protection_tag(guest)
    }
}

impl Protection {
    /// Writes the header of a new one; the rest of its capacity is zeros.
    fn format(mapping: &CapacityMapping, shape: ProtectionShape, settings: ProtectionSettings) {
        put(mapping.mapping().word(SETTINGS), settings.encode(), Ordering::Relaxed);
        mapping.mapping().write(0, &shape.encode());
        mapping.mapping().persist(Point::Protection, 0, HEADER_BYTES);
        mapping.mapping().persist(Point::Protection, SETTINGS, size_of::<u64>());
    }

    /// Checks that a mapped capacity is the protection of a guest of this shape.
    pub(crate) fn open(mapping: CapacityMapping, guest: Shape) -> Result<Self> {
        let damaged = |source| Error::Damaged { what: format!("the protection of guest {}", guest.guest), source };
        let shape = ProtectionShape::decode(&mapping.mapping().read::<HEADER_BYTES>(0)).map_err(damaged)?;
        if (shape.guest, shape.vcpus, shape.granules) != (guest.guest, guest.vcpus, guest.granules) {
            return Err(damaged(BadRecord::Field("guest")));
        }
        if (mapping.len() as u64) < shape.bytes() {
            return Err(damaged(BadRecord::Field("log pages")));
        }
        Ok(Self { mapping: Arc::new(mapping), shape })
    }

    fn standing_word(&self) -> &AtomicU64 {
        self.mapping.mapping().word(STANDING)
    }

    /// Pages of each redo log: a commit holds no more.
    #[must_use]
    pub fn log_pages(&self) -> u64 {
        self.shape.log_pages
    }

    /// Bytes that it takes of the pool, beside the image.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.bytes()
    }

    /// What the last commit is good for.
    ///
    /// # Errors
    /// [`Error::DamagedWord`].
    pub fn standing(&self) -> Result<Standing> {
        let word = self.standing_word().load(Ordering::Acquire);
        Standing::decode(word).ok_or_else(|| self.damaged_word("standing", word))
    }

    /// How the guest is to be protected.
    ///
    /// # Errors
    /// [`Error::DamagedWord`].
    pub fn settings(&self) -> Result<ProtectionSettings> {
        let word = self.mapping.mapping().word(SETTINGS).load(Ordering::Acquire);
        ProtectionSettings::decode(word).ok_or_else(|| self.damaged_word("settings", word))
    }

    /// Has the guest protected otherwise from now on. By its owner's host.
    pub fn set_settings(&self, settings: ProtectionSettings) {
        put(self.mapping.mapping().word(SETTINGS), settings.encode(), Ordering::Release);
    }

    fn damaged_word(&self, which: &str, word: u64) -> Error {
        Error::DamagedWord { what: format!("{which} of the protection of guest {}", self.shape.guest), word }
    }

    /// The record of the commit with this number.
    ///
    /// # Errors
    /// [`Error::Damaged`] when another one, or none, lies in its place.
    pub fn commit(&self, number: u64) -> Result<Commit> {
        let at = ProtectionShape::commit_at(Commit::half(number));
        let damaged =
            |source| Error::Damaged { what: format!("commit {number} of guest {}", self.shape.guest), source };
        let commit = Commit::decode(&self.mapping.mapping().read::<COMMIT_BYTES>(at)).map_err(damaged)?;
        if commit.number != number {
            return Err(damaged(BadRecord::Field("number")));
        }
        if commit.pages > self.shape.log_pages {
            return Err(damaged(BadRecord::Field("pages")));
        }
        Ok(commit)
    }

    /// The machine's area in one half.
    #[must_use]
    pub fn machine(&self, half: usize) -> Area {
        Area::within(&self.mapping, self.shape.slot_at(half & 1), MACHINE_AREA)
    }

    /// A vCPU's area in one half.
    ///
    /// # Panics
    /// When there is no such vCPU.
    #[must_use]
    pub fn vcpu(&self, half: usize, index: usize) -> Area {
        assert!(index < self.shape.vcpus as usize, "vCPU {index} of {}", self.shape.vcpus);
        Area::within(&self.mapping, self.shape.slot_at(half & 1) + (MACHINE_AREA + index * VCPU_AREA) as u64, VCPU_AREA)
    }

    /// Copies a page of the guest into a place of a redo log. By the guest's owner, into the half that the standing word does
    /// not name.
    ///
    /// # Panics
    /// When there is no such place or page.
    pub fn log(&self, half: usize, place: u64, memory: &impl GuestPages, page: u64) {
        let from = memory.page(page);
        let to = self.log_page(half, place);
        fault::step();
        // SAFETY: the log's page lies in the mapping (`log_page` checks), the guest's page is readable (`GuestPages`), and the
        // two are different memory. The guest may write its page meanwhile: then it is dirty again, and copied again.
        unsafe { copy_across(from, to, LOG_PAGE) }
        persist(Point::Protection, to, LOG_PAGE);
    }

    /// The checksum of what lies in a place of a redo log.
    fn logged_checksum(&self, half: usize, place: u64) -> u32 {
        let mut copy = [0; LOG_PAGE];
        self.read_log(half, place, &mut copy);
        checksum(&copy)
    }

    fn log_page(&self, half: usize, place: u64) -> *mut u8 {
        assert!(place < self.shape.log_pages, "place {place} of a log of {} pages", self.shape.log_pages);
        self.mapping.mapping().at(self.shape.log_at(half & 1) + place * LOG_PAGE as u64, LOG_PAGE, LOG_PAGE)
    }

    /// Has pages of a redo log mapped; no more than advice.
    fn populate_log(&self, half: usize, places: Range<u64>) {
        let at = |place: u64| self.shape.log_at(half & 1) + place.min(self.shape.log_pages) * LOG_PAGE as u64;
        let at = |place: u64| usize::try_from(at(place)).unwrap_or(usize::MAX);
        let _ = self.mapping.mapping().populate(at(places.start)..at(places.end));
    }

    fn read_log(&self, half: usize, place: u64, copy: &mut [u8; LOG_PAGE]) {
        // SAFETY: the page lies in the mapping, which lives as long as `self`; if somebody writes it meanwhile, the copy is torn,
        // and its checksum says so.
        unsafe { copy_out(self.log_page(half, place), copy) }
    }

    /// Writes one entry of the index of a half.
    ///
    /// # Panics
    /// When there is no such place.
    fn enter(&self, half: usize, place: u64, entry: LogEntry) {
        assert!(place < self.shape.log_pages, "place {place} of a log of {} pages", self.shape.log_pages);
        self.mapping.mapping().write(self.shape.index_at(half & 1) + place * ENTRY_BYTES as u64, &entry.encode());
    }

    /// Makes `commit` the last one: its log, index and state are written. By the guest's owner.
    ///
    /// # Errors
    /// [`Error::ProtectionOver`] when the standing word is not that of the commit before it: somebody has taken the guest.
    fn publish(&self, commit: &Commit) -> Result<()> {
        self.mapping.require_there()?;
        let standing = self.standing()?;
        let before = match standing {
            Standing::Idle(number) if number < commit.number => standing,
            Standing::Active(number) if number.checked_add(1) == Some(commit.number) => standing,
            Standing::Idle(_) | Standing::Active(_) | Standing::Sealed(_) => return Err(self.over(standing)),
        };
        let at = ProtectionShape::commit_at(Commit::half(commit.number));
        self.mapping.mapping().write(at, &commit.encode());
        fence(Ordering::Release);
        let entries = usize::try_from(commit.pages.min(self.shape.log_pages)).unwrap_or(0);
        let index = self.shape.index_at(Commit::half(commit.number));
        self.mapping.mapping().persist(Point::Protection, index, entries * ENTRY_BYTES);
        self.mapping.mapping().persist(Point::Protection, at, COMMIT_BYTES);
        self.stand(before, Standing::Active(commit.number))
    }

    /// From now on there is no commit to go back to, and the image may be written: the guest's memory is about to move, or all
    /// of it to be copied anew. By the guest's owner. The number of the last commit.
    ///
    /// # Errors
    /// [`Error::ProtectionOver`] when somebody has taken the guest.
    pub fn suspend(&self) -> Result<u64> {
        match self.standing()? {
            Standing::Idle(number) => Ok(number),
            active @ Standing::Active(number) => self.stand(active, Standing::Idle(number)).map(|()| number),
            sealed @ Standing::Sealed(_) => Err(self.over(sealed)),
        }
    }

    /// The same, by who has brought the guest back, or found it frozen, and is about to run it: from then on the commit is
    /// nothing, whoever made it.
    ///
    /// # Errors
    /// [`Error::ProtectionOver`] when somebody else changes the word.
    pub fn retire(&self) -> Result<()> {
        let standing = self.standing()?;
        self.stand(standing, Standing::Idle(standing.number()))
    }

    fn stand(&self, from: Standing, to: Standing) -> Result<()> {
        exchange(self.standing_word(), from.encode(), to.encode()).map_err(|word| {
            Standing::decode(word).map_or_else(|| self.damaged_word("standing", word), |found| self.over(found))
        })
    }

    fn over(&self, found: Standing) -> Error {
        Error::ProtectionOver { guest: self.shape.guest, found }
    }

    /// The checksum of the first entries of an index.
    fn index_checksum(&self, half: usize, entries: u64) -> u32 {
        checksum(&self.index_bytes(half, entries))
    }

    /// A copy of the first entries of an index; no more than there are.
    fn index_bytes(&self, half: usize, entries: u64) -> Vec<u8> {
        let entries = usize::try_from(entries.min(self.shape.log_pages)).unwrap_or(0);
        let words = self.mapping.mapping().words(self.shape.index_at(half & 1), entries * ENTRY_BYTES / 8);
        words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
    }

    /// The validated index of a commit.
    fn index(&self, commit: &Commit) -> Result<Vec<LogEntry>> {
        let bytes = self.index_bytes(Commit::half(commit.number), commit.pages);
        decode_index(&bytes, commit.index_crc, self.shape.memory_pages()).map_err(|source| Error::Damaged {
            what: format!("the index of commit {} of guest {}", commit.number, self.shape.guest),
            source,
        })
    }

    /// Refuses a commit whose record or index is damaged. Its pages are checked by who goes back to it.
    pub(crate) fn require_whole(&self, number: u64) -> Result<()> {
        self.commit(number).and_then(|commit| self.index(&commit)).map(drop)
    }

    /// Brings the pages of a commit into the image, in the background: by the guest's owner, which knows what it has logged.
    ///
    /// # Panics
    /// When an entry is not one of the log or of the image.
    fn apply(
        &self,
        half: usize,
        entries: &[LogEntry],
        image: &CapacityMapping,
        still_ours: impl Fn() -> bool,
    ) -> Result<()> {
        let mut copy = [0; LOG_PAGE];
        for (place, entry) in (0..).zip(entries) {
            if place % LOOK_AFTER == 0 && !still_ours() {
                return Err(Error::TakenAgain { guest: self.shape.guest });
            }
            self.read_log(half, place, &mut copy);
            write_image(image, entry.page, &copy);
        }
        self.mapping.require_there()?;
        image.require_there()
    }

    /// Whether all of that commit is in the image.
    fn is_applied(&self, number: u64) -> bool {
        self.mapping.mapping().word(APPLIED).load(Ordering::Acquire) == number
    }

    /// Says that it is.
    fn note_applied(&self, number: u64) {
        put(self.mapping.mapping().word(APPLIED), number, Ordering::Release);
        self.mapping.mapping().persist(Point::Protection, APPLIED, size_of::<u64>());
    }

    /// Brings in every page of it, so that nobody faults on one while a guest stands still.
    ///
    /// # Errors
    /// What the kernel says, most likely that memory is short.
    pub fn populate(&self) -> std::io::Result<()> {
        self.mapping.populate()
    }
}

/// All of a guest's memory on its way into the image, while no commit relies on the image. Pages of zeros stay holes where the
/// image holds nothing yet.
#[derive(Debug)]
pub struct ImageCopy {
    /// Pages of the image that hold something, in ascending order.
    filled: Vec<Range<u64>>,
}

impl ImageCopy {
    /// Looks at what the image holds.
    #[must_use]
    pub fn begin(image: &CapacityMapping) -> Self {
        let page = LOG_PAGE as u64;
        let pages = |bytes: Range<usize>| bytes.start as u64 / page..(bytes.end as u64).div_ceil(page);
        Self { filled: image.data_ranges().into_iter().map(pages).collect() }
    }

    /// Copies what a page of the guest holds now.
    pub fn copy(&self, image: &CapacityMapping, memory: &impl GuestPages, page: u64) {
        let next = self.filled.partition_point(|filled| filled.end <= page);
        let is_filled = self.filled.get(next).is_some_and(|filled| filled.contains(&page));
        let mut copy = [0; LOG_PAGE];
        // SAFETY: the page is readable (`GuestPages`); the guest may write it meanwhile: then it is copied again.
        unsafe { std::ptr::copy_nonoverlapping(memory.page(page).cast_const(), copy.as_mut_ptr(), LOG_PAGE) }
        if is_filled || copy != [0; LOG_PAGE] {
            write_image(image, page, &copy);
        }
    }
}

/// Writes a page of the image, in two halves to the crash tests.
fn write_image(image: &CapacityMapping, page: u64, contents: &[u8; LOG_PAGE]) {
    let to = image.page(page);
    for half in [0, LOG_PAGE / 2] {
        fault::step();
        // SAFETY: the page lies in the mapping (`page` checks), and nobody else writes it: its guest runs in DRAM, or not at all.
        unsafe { copy_in(to.add(half), &contents[half..][..LOG_PAGE / 2]) }
    }
    persist(Point::Image, to, LOG_PAGE);
}

/// Whether a page of the image holds this already.
fn holds(image: &CapacityMapping, page: u64, contents: &[u8; LOG_PAGE]) -> bool {
    const STEP: usize = 256;
    let from = image.page(page);
    (0..LOG_PAGE).step_by(STEP).all(|at| {
        let mut copy = [0; STEP];
        // SAFETY: the page lies in the mapping (`page` checks), and the step in the page; it is copied before it is looked at.
        unsafe { copy_out(from.add(at), &mut copy) }
        copy == contents[at..at + STEP]
    })
}
