//! One chunk, from one side to the other.
//!
//! ```text
//! look ─▶ prepare ─▶ protect ─▶ look again ─▶ copy ─▶ ┌ recouple: word, place ┐ ─▶ wake
//!                       │                             └ decouple: place, word ┘
//!                       └─ pinned meanwhile, or memory failed ─▶ lift: the chunk stays
//! ```
//!
//! **When `place` fails**, the kernel may have unmapped the chunk: the pool, which has all of it, is mapped there.
//!
//! **Why no store is lost.** From `protect` until something else is mapped over the chunk no store reaches it, and what is
//! mapped then has been copied after `protect`. A store that waited tries again and finds what is mapped then.
//!
//! **Why the word is never too good.** Stores reach the new place as soon as it is mapped, before anybody is woken. So a
//! granule is written down as having left the pool before its memory is mapped, and as having arrived there after.
//!
//! **Why no pin for writing is overlooked.** A device writes its pin down before it takes hold of the pages, and pins are
//! looked at under protection: one that is not there yet belongs to a device that has still to take hold. If it does that
//! for writing, it waits for the chunk and gets the pages that it has then. If only for reading, it does not wait, and may
//! keep pages that are not the guest's any more.
#![allow(unsafe_code)]

use crate::barrier::{Barrier, Ground};
use crate::copy::{self, Failed};
use crate::dram::{Mirror, PAGE, granule_bytes, move_pages};
use crate::error::{Error, Result};
use crate::memory::GuestMemory;
use crate::pagemap::{PageMap, has_swap, is_resident};
use crate::precedence::Precedence;
use crate::report::Stall;
use crate::sides::Side;
use crate::userfault::Userfault;
use nil_pool::{BackingKind, CapacityMapping, Place, Placed};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod pinned;

pub use pinned::HOLDER;

/// Zeros to write where the pool holds something that the guest does not.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What one move moves chunks with.
#[derive(Debug)]
pub(crate) struct Carrier<'a> {
    memory: &'a GuestMemory,
    target: Target,
    barrier: Barrier,
    pool: Arc<CapacityMapping>,
    page_map: PageMap,
    userfault: Arc<Userfault>,
    haste: Haste,
    precedence: Precedence,
}

/// Where chunks go, and what they are filled in.
#[derive(Debug)]
pub(crate) enum Target {
    /// The pool, through its own mapping.
    Pool,
    /// This host's DRAM, which comes out of the mirror.
    Dram(Arc<Mirror>),
}

/// What became of an attempt.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// All of the granule is there already.
    Nothing,
    /// A chunk has moved.
    Moved(Moved),
    /// The granule must not move now.
    Blocked(Stall),
}

/// A chunk that has moved.
#[derive(Debug)]
pub(crate) struct Moved {
    /// Where it is.
    pub(crate) chunk: Range<usize>,
    /// How much of it has moved; all, but for what the kernel moves.
    pub(crate) bytes: usize,
    pub(crate) contents: Contents,
    pub(crate) huge: bool,
    /// How long stores were kept out.
    pub(crate) protected: Duration,
    /// Whether one waited.
    pub(crate) hit: bool,
}

/// What a chunk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Contents {
    /// Nothing: it has never been written.
    Untouched,
    /// Zeros.
    Zero,
    /// Something.
    Something,
}

impl<'a> Carrier<'a> {
    pub(crate) fn new(
        memory: &'a GuestMemory,
        target: Target,
        barrier: Barrier,
        pool: Arc<CapacityMapping>,
        userfault: Arc<Userfault>,
        haste: Haste,
    ) -> Result<Self> {
        let page_map = PageMap::open().map_err(|source| Error::PageMap { source })?;
        let precedence = Precedence::default();
        Ok(Self { memory, target, barrier, pool, page_map, userfault, haste, precedence })
    }

    /// The side that chunks go to.
    pub(crate) fn to(&self) -> Side {
        match self.target {
            Target::Pool => Side::Pool,
            Target::Dram(_) => Side::Dram,
        }
    }

    /// What chunks consist of at least, whichever way they go: the pool cannot be mapped in smaller parts.
    pub(crate) fn smallest_chunk(&self) -> usize {
        self.pool.placement_step()
    }

    /// Moves the next chunk of a granule, of at most `limit` bytes; but no smaller part than the pool is mapped in.
    pub(crate) fn move_next(&self, granule: usize, limit: usize) -> Result<Attempt> {
        let _turn = self.memory.turn();
        self.memory.require_owner()?;
        let placed = self.memory.placement().get(granule)?;
        let Some((chunk, after)) = self.choose(granule, placed, limit)? else { return Ok(Attempt::Nothing) };
        if let Some(stall) = self.pinned(granule) {
            return Ok(Attempt::Blocked(stall));
        }
        let expected = match self.look(&chunk)? {
            Contents::Something => Expected::Something(self.prepare(&chunk)?),
            contents => Expected::Nothing(contents),
        };
        let _first = self.precedence.take();
        let begun = Instant::now();
        let raised = self.barrier.raise(self.ground(), &chunk);
        let carried = raised.and_then(|()| self.carry(&chunk, (placed, after), expected));
        let waiting = self.barrier.waiting(self.ground(), &chunk);
        // Whatever else fails, who waits must go on; and what failed first is what is told.
        let opened = match &carried {
            Ok(Carried::Away(_) | Carried::Patched(_)) => self.barrier.replaced(self.ground(), &chunk),
            Ok(Carried::Stays(_)) | Err(_) => self.barrier.lift(self.ground(), &chunk),
        };
        if !matches!(carried, Ok(Carried::Away(_))) {
            self.tidy(&chunk, expected);
        }
        let carried = carried?;
        opened?;
        match carried {
            Carried::Stays(stall) => Ok(Attempt::Blocked(stall)),
            Carried::Patched(error) => Err(error),
            Carried::Away(contents) => {
                let hit = waiting? > 0;
                let protected = begun.elapsed();
                let huge = contents == Contents::Something && self.is_huge(&chunk);
                let bytes = chunk.len();
                Ok(Attempt::Moved(Moved { chunk, bytes, contents, huge, protected, hit }))
            }
        }
    }

    /// The next chunk of a granule, and where the granule is after that.
    fn choose(&self, granule: usize, placed: Placed, limit: usize) -> Result<Option<(Range<usize>, Place)>> {
        let sides = self.memory.sides();
        sides.check(granule, placed.place)?;
        // All that was moved before has been a multiple of the smallest chunk, and so is what is left.
        let chunk = sides.next_chunk(self.to(), granule, limit.max(self.smallest_chunk()));
        chunk.map(|chunk| sides.place_after(&chunk, self.to()).map(|after| (chunk, after))).transpose()
    }

    /// What is done while the chunk is protected.
    fn carry(&self, chunk: &Range<usize>, (placed, after): (Placed, Place), expected: Expected) -> Result<Carried> {
        if let Some(stall) = self.pinned(chunk.start / granule_bytes()) {
            return Ok(Carried::Stays(stall));
        }
        let contents = match expected {
            Expected::Something(destination) => {
                self.copy(chunk, destination)?;
                Contents::Something
            }
            Expected::Nothing(expected) => {
                let contents = self.look_again(chunk, expected)?;
                match contents {
                    Contents::Something => self.bring_in(chunk).and_then(|()| self.copy_bytes(chunk))?,
                    Contents::Untouched | Contents::Zero => self.clear(chunk)?,
                }
                contents
            }
        };
        Ok(match self.settle(chunk, placed, after) {
            Ok(()) => Carried::Away(contents),
            Err(error) => Carried::Patched(error),
        })
    }

    /// Maps what has been filled over the chunk, and writes that down; in which order, the top of this module says. If that
    /// fails, the pool's bytes are mapped there.
    fn settle(&self, chunk: &Range<usize>, before: Placed, after: Place) -> Result<()> {
        let granule = chunk.start / granule_bytes();
        let word = Placed { place: after, ..before };
        let placement = self.memory.placement();
        match self.to() {
            Side::Dram => {
                placement.put(granule, word);
                if let Err(error) = self.place(chunk) {
                    self.patch(chunk);
                    placement.put(granule, before);
                    return Err(error);
                }
                self.memory.sides().note(chunk, self.to());
                Ok(())
            }
            Side::Pool => {
                let placed = self.place(chunk);
                if placed.is_err() {
                    self.patch(chunk);
                }
                placement.put(granule, word);
                self.memory.sides().note(chunk, self.to());
                placed
            }
        }
    }

    /// Maps the pool's bytes over a chunk of which nobody knows what is mapped there: the kernel unmaps what is in the way
    /// before it finds that it cannot go on. Whichever way the chunk was to go, the pool has all of it: there it came from,
    /// or there it has just been copied to.
    fn patch(&self, chunk: &Range<usize>) {
        // SAFETY: the chunk is the guest's range, which belongs to `self.memory`.
        let patched = unsafe { self.pool.map_onto(chunk.start, chunk.len(), self.memory.range().at(chunk.start)) };
        if patched.is_err() {
            self.memory.watch().lose(chunk.start);
        }
    }

    /// What the chunk seems to hold; the guest may change that at any time.
    fn look(&self, chunk: &Range<usize>) -> Result<Contents> {
        let untouched = match self.to() {
            // In a page table alone, a page that has gone to swap looks like one that is protected before it was ever
            // there; where there is swap, only the memory itself tells.
            Side::Pool => !has_swap() && !self.page_map.is_touched(&self.addresses(chunk)).unwrap_or(true),
            Side::Dram => !self.pool.has_data(chunk.clone()),
        };
        if untouched { Ok(Contents::Untouched) } else { self.read(chunk) }
    }

    /// What a chunk that seemed to hold nothing holds now that nobody can store into it.
    fn look_again(&self, chunk: &Range<usize>, seemed: Contents) -> Result<Contents> {
        let untouched = match self.to() {
            Side::Pool => !has_swap() && !is_resident(&self.addresses(chunk)).unwrap_or(true),
            Side::Dram => !self.pool.has_data(chunk.clone()),
        };
        if untouched && seemed == Contents::Untouched { Ok(Contents::Untouched) } else { self.read(chunk) }
    }

    fn read(&self, chunk: &Range<usize>) -> Result<Contents> {
        // SAFETY: the chunk lies in the source, which is mapped as long as `self` lives; `Watch::over` has installed the
        // handlers.
        let zero = unsafe { copy::is_zero(self.source(chunk), chunk.len()) };
        let zero = zero.map_err(|failed| self.source_failed(chunk, failed))?;
        Ok(if zero { Contents::Zero } else { Contents::Something })
    }

    /// Where the chunk's bytes are read. The pool's side is read apart from the guest's range, where a protected huge page
    /// would have to be split first.
    fn source(&self, chunk: &Range<usize>) -> *const u8 {
        match self.to() {
            Side::Pool => self.memory.range().at(chunk.start).cast_const(),
            Side::Dram => self.pool_at(chunk).cast_const(),
        }
    }

    /// Where the chunk's bytes go.
    fn destination(&self, chunk: &Range<usize>) -> *mut u8 {
        match &self.target {
            Target::Pool => self.pool_at(chunk),
            Target::Dram(mirror) => mirror.at(chunk.start),
        }
    }

    fn destination_addresses(&self, chunk: &Range<usize>) -> Range<usize> {
        let start = self.destination(chunk).expose_provenance();
        start..start + chunk.len()
    }

    fn pool_at(&self, chunk: &Range<usize>) -> *mut u8 {
        assert!(chunk.end <= self.pool.len(), "{chunk:#x?} of a capacity");
        // SAFETY: the assertion keeps it in the mapping.
        unsafe { self.pool.as_ptr().add(chunk.start) }
    }

    /// Gets ready to copy the chunk: brings in what it is copied from and to, as far as that is worth it.
    fn prepare(&self, chunk: &Range<usize>) -> Result<Destination> {
        if self.to() == Side::Dram {
            // What cannot be read is found by the copy, which can name it.
            let _ = self.advise_pool(chunk, Advice::LinuxPopulateRead);
        }
        if self.haste == Haste::Fast && chunk.len() > PAGE {
            self.bring_in(&(chunk.start..chunk.start + PAGE))?;
            let destination = self.destination_addresses(chunk);
            let is_huge = self.page_map.is_huge(&granule_around(&destination)).unwrap_or(true);
            if !is_huge && self.userfault.register(&destination).is_ok() {
                return Ok(Destination::Bare);
            }
        }
        self.bring_in(chunk)?;
        Ok(Destination::There)
    }

    /// Brings in the pages that a part of the chunk is to be copied to.
    fn bring_in(&self, part: &Range<usize>) -> Result<()> {
        match &self.target {
            Target::Dram(mirror) => mirror
                .populate(part.clone())
                .map_err(|source| Error::Populate { what: "the guest's memory in this host's DRAM", source }),
            Target::Pool => self.advise_pool(part, Advice::LinuxPopulateWrite).map_err(|errno| match errno {
                // What a page that is poisoned or gone gives (madvise(2), MADV_POPULATE_WRITE).
                Errno::HWPOISON | Errno::FAULT => self.pool_failed(part.start),
                errno => Error::Populate { what: "the guest's memory in the pool", source: errno.into() },
            }),
        }
    }

    fn advise_pool(&self, part: &Range<usize>, advice: Advice) -> std::result::Result<(), Errno> {
        // SAFETY: the part lies in the capacity's mapping; populating, which is all that is asked for here, changes no
        // contents.
        unsafe { madvise(self.pool_at(part).cast(), part.len(), advice) }
    }

    /// Copies the chunk. Small pages that are not there yet are made and filled by the kernel in one go, which takes half
    /// the time of bringing them in (zeroed) and copying to them.
    fn copy(&self, chunk: &Range<usize>, destination: Destination) -> Result<()> {
        match destination {
            Destination::There => self.copy_bytes(chunk),
            Destination::Bare => {
                self.copy_bytes(&(chunk.start..chunk.start + PAGE))?;
                let rest = chunk.start + PAGE..chunk.end;
                let done = self.userfault.copy(&self.destination_addresses(&rest), self.source(&rest).addr());
                self.release(chunk)?;
                // Pages that were there already, after a chunk that was pulled back; or the source has failed.
                let rest = rest.start + done..rest.end;
                if rest.is_empty() { Ok(()) } else { self.bring_in(&rest).and_then(|()| self.copy_bytes(&rest)) }
            }
        }
    }

    /// The destination of a chunk belongs to the userfaultfd no longer: with it, it would never merge with its neighbours.
    fn release(&self, chunk: &Range<usize>) -> Result<()> {
        let released = self.userfault.unregister(&self.destination_addresses(chunk));
        released.map_err(|source| Error::Userfault { what: "take memory back from", source })
    }

    fn copy_bytes(&self, part: &Range<usize>) -> Result<()> {
        let (to, from) = (self.destination(part), self.source(part));
        // SAFETY: both lie in mappings that live as long as `self`, which are never the same; nobody else writes the
        // destination; `Watch::over` has installed the handlers.
        let copied = unsafe { copy::copy(to, from, part.len()) };
        copied.map_err(|failed| {
            let source = from.addr()..from.addr() + part.len();
            if source.contains(&failed.address) {
                self.source_failed(part, failed)
            } else {
                self.target_failed(part, failed)
            }
        })
    }

    /// Makes sure that the destination reads as zeros. What comes out of the mirror does; the pool may hold what the guest
    /// had there before.
    fn clear(&self, chunk: &Range<usize>) -> Result<()> {
        if self.to() == Side::Dram || !self.pool.has_data(chunk.clone()) {
            return Ok(());
        }
        let to = self.pool_at(chunk);
        // SAFETY: as in `copy`; the zeros are this program's own.
        let cleared = unsafe {
            match copy::is_zero(to, chunk.len()) {
                Ok(false) => (0..chunk.len())
                    .step_by(ZEROS.len())
                    .try_for_each(|at| copy::copy(to.add(at), ZEROS.as_ptr(), ZEROS.len().min(chunk.len() - at))),
                zero => zero.map(|_| ()),
            }
        };
        cleared.map_err(|failed| self.target_failed(chunk, failed))
    }

    /// Maps the destination over the chunk.
    fn place(&self, chunk: &Range<usize>) -> Result<()> {
        let guest = self.memory.range().at(chunk.start);
        let failed = |source| Error::Place { guest_address: self.memory.guest_address(chunk.start), source };
        if matches!(self.target, Target::Pool) && self.pool.kind() != BackingKind::File {
            // SAFETY: the chunk is the guest's range, which belongs to `self.memory`.
            return Ok(unsafe { self.pool.map_onto(chunk.start, chunk.len(), guest) }?);
        }
        // SAFETY: both are mapped, one in the guest's range, one in the mirror or in the capacity's mapping, where a chunk
        // lies in one piece; nobody has references there.
        unsafe { move_pages(self.destination(chunk), chunk.len(), guest) }.map_err(failed)
    }

    /// A chunk stays: what was brought in for it is of no use, and may have been filled.
    fn tidy(&self, chunk: &Range<usize>, expected: Expected) {
        if let Expected::Something(Destination::Bare) = expected {
            // It may have been released already.
            let _ = self.release(chunk);
        }
        if let Target::Dram(mirror) = &self.target {
            mirror.empty(chunk.clone());
        }
    }

    /// Whether any of this part lies in huge pages.
    pub(crate) fn has_huge_pages(&self, part: &Range<usize>) -> bool {
        self.page_map.has_huge(&self.addresses(part)).unwrap_or(false)
    }

    fn is_huge(&self, chunk: &Range<usize>) -> bool {
        chunk.len() == granule_bytes() && self.page_map.is_huge(&self.addresses(chunk)).unwrap_or(false)
    }

    fn ground(&self) -> Ground<'_> {
        Ground { range: self.memory.range(), watch: self.memory.watch() }
    }

    fn addresses(&self, chunk: &Range<usize>) -> Range<usize> {
        let start = self.memory.range().at(chunk.start).addr();
        start..start + chunk.len()
    }

    /// The guest's memory is lost: it is written down, so that whoever runs the guest learns of it.
    fn source_failed(&self, chunk: &Range<usize>, failed: Failed) -> Error {
        let offset = chunk.start + failed.address.saturating_sub(self.source(chunk).addr()).min(chunk.len() - 1);
        self.memory.watch().lose(offset);
        Error::Lost(self.memory.lost_at(offset))
    }

    fn target_failed(&self, chunk: &Range<usize>, failed: Failed) -> Error {
        let into = failed.address.saturating_sub(self.destination(chunk).addr()).min(chunk.len() - 1);
        self.pool_failed(chunk.start + into)
    }

    fn pool_failed(&self, offset: usize) -> Error {
        let guest_address = self.memory.guest_address(offset);
        Error::PoolFailed { guest_address, place: Box::new(self.pool.source_at(offset)) }
    }
}

/// The granule that an address lies in, if the range around it begins at a multiple of granules.
fn granule_around(part: &Range<usize>) -> Range<usize> {
    let start = part.start / granule_bytes() * granule_bytes();
    start..start + granule_bytes()
}

/// What a chunk seemed to hold before it was protected.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// Something, for which the destination has been made ready.
    Something(Destination),
    /// One of the kinds of nothing.
    Nothing(Contents),
}

/// How far a chunk's destination is.
#[derive(Clone, Copy, Debug)]
enum Destination {
    /// Its pages are there.
    There,
    /// All but the first are not, and belong to the userfaultfd, which can make them.
    Bare,
}

/// How much the guest's stalls matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Haste {
    /// Not at all.
    Fast,
    /// They are to be short: all that can be is done before the chunk is protected.
    Careful,
}

/// What became of a chunk that was protected.
#[derive(Debug)]
enum Carried {
    /// It is on the other side.
    Away(Contents),
    /// It has not moved.
    Stays(Stall),
    /// It could not be placed; the pool's bytes are mapped there now.
    Patched(Error),
}
