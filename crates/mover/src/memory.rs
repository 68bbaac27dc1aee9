//! A guest's memory in the process that runs it: one range of addresses, each granule of which is local or in the pool.
//!
//! ```text
//!              in_dram                               in_pool
//!                 │                                     │
//!                 ▼          Move (decouple)            ▼
//!          all granules local ─────────────▶ all granules pooled ──close──▶ handoff
//!                 ▲                                     │
//!                 └────────── Move (recouple) ──────────┘
//! ```
//!
//! Invariants: something is mapped at every address of the range, at every instant; what is mapped there agrees with the
//! placement map, except while the map says `Local` or `Mixed` of what has just come to the pool or is about to leave it;
//! nobody writes the map but in the name of the guest's owner, as the ownership word has it; nobody moves memory without
//! the turn ([`crate::turn`]), so none moves while it is closed.
#![allow(unsafe_code)]

use crate::copy::{self, Failed};
use crate::dram::{AddressRange, PAGE, granule_bytes};
use crate::error::{Error, Hole, Result};
use crate::lost::{LostMemory, Waited, Watch};
use crate::sides::{Side, Sides, Supply};
use crate::turn::{Turn, Turns};
use nil_pool::{
    CapacityMapping, Epoch, GuestControl, GuestPages, HostSlot, LOG_PAGE, Ownership, PinTable, Place, PlacementMap,
    StateArea,
};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// A guest's memory, mapped; unmapped on drop.
#[derive(Debug)]
pub struct GuestMemory {
    // Before the range: the handlers must have forgotten it when its addresses are given back.
    watch: Watch,
    range: AddressRange,
    home: RwLock<Home>,
    stretches: Vec<Stretch>,
    node: Option<u32>,
    /// Never locked while waiting for a turn.
    sides: Mutex<Sides>,
    supply: Turns<Supply>,
    /// A bit for each page that this process has written for the guest, until somebody takes it.
    host_writes: Box<[AtomicU64]>,
    /// Whether a bit is set.
    has_host_writes: AtomicBool,
}

// SAFETY: `range` maps all of its addresses as long as it lives, which is as long as `self`.
unsafe impl GuestPages for GuestMemory {
    fn pages(&self) -> u64 {
        (self.len() / LOG_PAGE) as u64
    }

    fn page(&self, index: u64) -> *mut u8 {
        assert!(index < self.pages(), "page {index} of {}", self.pages());
        self.range.at(usize::try_from(index).unwrap_or(usize::MAX) * LOG_PAGE)
    }
}

/// The guest's record, and what its state area says of the memory. They lie in one pool, and move to another when the
/// guest does.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) control: GuestControl,
    pub(crate) placement: PlacementMap,
    pub(crate) pins: PinTable,
}

impl Home {
    pub(crate) fn of(control: &GuestControl, state: &StateArea) -> Self {
        Self { control: control.clone(), placement: state.placement(), pins: state.pins() }
    }
}

/// A part of the memory that is contiguous in the guest's address space, too.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    offset: u64,
    guest_address: u64,
}

/// Why bytes of a guest could not be loaded or stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unreached {
    /// The guest has no memory there.
    NoMemory,
    /// It had, and that has failed.
    Lost(LostMemory),
}

/// A guest's memory of which nothing moves, all of it in the pool or none, as long as this lives.
#[derive(Debug)]
pub struct Closed<'a> {
    _turn: Turn<'a, Supply>,
}

impl GuestMemory {
    /// The memory of a guest that is to be booted in this host's DRAM. It has no pages yet; new ones come from `node`, if
    /// one is named.
    ///
    /// # Errors
    /// [`Error::Elsewhere`] when the placement map does not say that all of it is local; [`Error::Numa`] when the node has
    /// no memory for us; [`Error::Pool`], [`Error::NoAddressSpace`], [`Error::Watch`].
    pub fn in_dram(control: &GuestControl, state: &StateArea, node: Option<u32>) -> Result<Self> {
        require(state, "in this host's DRAM", |place| matches!(place, Place::Local { .. }))?;
        let memory = Self::reserve(control, state, node, None)?;
        if let Some(node) = node {
            crate::numa::bind(memory.as_ptr(), memory.len(), node)?;
        }
        Ok(memory)
    }

    /// The memory of a guest that is in the pool.
    ///
    /// # Errors
    /// [`Error::Elsewhere`] when the placement map does not say that all of it is; [`Error::Pool`],
    /// [`Error::NoAddressSpace`], [`Error::Watch`].
    pub fn in_pool(control: &GuestControl, state: &StateArea) -> Result<Self> {
        require(state, "in the pool", |place| place == Place::Pooled)?;
        let memory = Self::reserve(control, state, None, Some(control.map_memory()?))?;
        let pool = memory.sides().pool.clone();
        if let Some(pool) = pool {
            // SAFETY: the range is `memory`'s, nobody else has been told of it, and it unmaps it on drop.
            unsafe { pool.map_onto(0, memory.len(), memory.as_ptr())? };
        }
        Ok(memory)
    }

    fn reserve(
        control: &GuestControl,
        state: &StateArea,
        node: Option<u32>,
        pool: Option<CapacityMapping>,
    ) -> Result<Self> {
        let record = control.config()?.memory_bytes;
        let contradiction = |what, found| Error::Contradiction { record, what, found };
        let placement = state.placement();
        let mapped = placement.granules().saturating_mul(granule_bytes());
        if mapped as u64 != record {
            return Err(contradiction("placement map", mapped as u64));
        }
        if let Some(pool) = &pool
            && pool.len() != mapped
        {
            return Err(contradiction("capacity", pool.len() as u64));
        }
        let range = AddressRange::private(mapped)?;
        let watch = Watch::over(range.addresses()).map_err(|source| Error::Watch { source })?;
        let mut stretches = Vec::new();
        let mut offset = 0;
        for region in control.placement()? {
            stretches.push(Stretch { offset, guest_address: region.guest_address });
            offset += region.bytes;
        }
        if offset != record {
            return Err(contradiction("list of regions", offset));
        }
        Ok(Self {
            watch,
            range,
            home: RwLock::new(Home::of(control, state)),
            sides: Mutex::new(Sides::new(placement.granules(), pool)),
            stretches,
            node,
            supply: Turns::new(Supply::default()),
            has_host_writes: AtomicBool::new(false),
            host_writes: (0..(mapped / LOG_PAGE).div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// The same memory in other regions of the guest's address space than its record says, in ascending order: (address,
    /// bytes). For a VMM that leaves holes between them.
    #[must_use]
    pub fn laid_out(mut self, regions: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut offset = 0;
        self.stretches = regions
            .into_iter()
            .map(|(guest_address, bytes)| {
                let stretch = Stretch { offset, guest_address };
                offset += bytes;
                stretch
            })
            .collect();
        self
    }

    /// Address of the first byte. The guest may write these bytes at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.range.as_ptr()
    }

    /// Its length.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no guest's memory is empty")]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Brings in every page, so that neither KVM nor the guest faults on one later.
    ///
    /// # Errors
    /// [`Error::Populate`].
    pub fn populate(&self) -> Result<()> {
        self.bring_in(0..self.len())
    }

    /// Brings in every page of the pool's that has contents; holes stay holes.
    ///
    /// # Errors
    /// [`Error::Populate`].
    pub fn populate_data(&self) -> Result<()> {
        let pool = self.sides().pool.clone();
        pool.map_or(Ok(()), |pool| pool.data_ranges().into_iter().try_for_each(|data| self.bring_in(data)))
    }

    fn bring_in(&self, part: Range<usize>) -> Result<()> {
        self.range.populate(part).map_err(|source| Error::Populate { what: "the guest's memory", source })
    }

    /// Says in whose name memory moves: who runs the guest, and since which epoch. Before any move.
    pub fn set_owner(&self, host: HostSlot, epoch: Epoch) {
        self.sides().owner = Some((host, epoch));
    }

    /// The guest has gone, or is about to be stopped: no move writes to its placement map any more. One that is under way
    /// ends with an error.
    pub fn disown(&self) {
        self.sides().owner = None;
    }

    /// Refuses to move memory of a guest that is not, or no longer, run by whom memory moves in the name of. One load.
    pub(crate) fn require_owner(&self) -> Result<()> {
        let (host, epoch) = self.sides().owner.ok_or(Error::NoOwner)?;
        let found = match self.home().control.ownership().load() {
            Ok(
                Ownership::Owned { host: owner, epoch: since } | Ownership::Offered { source: owner, epoch: since, .. },
            ) if (owner, since) == (host, epoch) => {
                return Ok(());
            }
            Ok(other) => other.to_string(),
            Err(damaged) => damaged.to_string(),
        };
        Err(Error::NotOwner { host, epoch, found })
    }

    /// Keeps everything where it is, if all of it is in the pool: by the placement map, and by what this process has mapped.
    ///
    /// # Errors
    /// [`Hole`] with the first part that is not.
    pub fn close(&self) -> std::result::Result<Closed<'_>, Hole> {
        let turn = self.supply.take();
        match self.home().placement.away() {
            0 if self.sides().is_pooled() => Ok(Closed { _turn: turn }),
            away => Err(self.hole(away, turn.moves)),
        }
    }

    /// Keeps everything where it is, if all of it is in this host's DRAM. Waits for what moves.
    ///
    /// # Errors
    /// [`Hole`] with a part that is not.
    pub fn keep_local(&self) -> std::result::Result<Closed<'_>, Hole> {
        let turn = self.supply.take();
        let placement = self.placement();
        let elsewhere =
            |granule: &usize| !placement.get(*granule).is_ok_and(|at| matches!(at.place, Place::Local { .. }));
        let first = (0..placement.granules()).find(elsewhere);
        if first.is_none() && self.sides().left(Side::Dram) == 0 {
            return Ok(Closed { _turn: turn });
        }
        let granule = first.unwrap_or(0);
        let place = placement.get(granule).ok().map(|placed| placed.place);
        let why = "a part of its memory is not in this host's DRAM; recouple the guest first".to_owned();
        Err(Hole { guest_address: self.guest_address(granule * granule_bytes()), place, why })
    }

    fn hole(&self, away: u64, moves: usize) -> Hole {
        let placement = self.placement();
        let (granule, place) = match placement.first_away() {
            Some((granule, placed)) => (granule, Some(placed.place)),
            None => ((0..placement.granules()).find(|&granule| placement.get(granule).is_err()).unwrap_or(0), None),
        };
        let what = if moves > 0 { "it is being moved" } else { "decouple the guest first" };
        let why =
            format!("{} MiB in all are not in the pool; {what}", away.saturating_mul(granule_bytes() as u64) >> 20);
        Hole { guest_address: self.guest_address(granule * granule_bytes()), place, why }
    }

    /// The first part of the memory that was found to be lost, if any was: by a vCPU, by a move or by a device.
    #[must_use]
    pub fn lost(&self) -> Option<LostMemory> {
        self.watch.lost().map(|offset| self.lost_at(offset))
    }

    /// Looks through the memory for a part that is lost, if none is known: for a guest whose `KVM_RUN` cannot reach its
    /// memory, and does not say where. Takes as long as reading a byte of every page does. Holes of the pool are left
    /// out: reading one would make it memory.
    #[must_use]
    pub fn find_lost(&self) -> Option<LostMemory> {
        let page_fails = |&offset: &usize| {
            let mut byte = 0u8;
            // SAFETY: the byte lies in the range, which this maps as long as it lives; the handlers are installed.
            unsafe { copy::copy(&raw mut byte, self.as_ptr().add(offset), 1) }.is_err()
        };
        let pool = self.sides().pool.clone();
        let filled = pool.map_or_else(Vec::new, |pool| pool.data_ranges());
        let readable = |offset: &usize| {
            self.sides().side_of(*offset) == Side::Dram || filled.iter().any(|part| part.contains(offset))
        };
        if self.watch.lost().is_none()
            && let Some(offset) = (0..self.len()).step_by(PAGE).filter(readable).find(page_fails)
        {
            self.watch.lose(offset);
        }
        self.lost()
    }

    pub(crate) fn lost_at(&self, offset: usize) -> LostMemory {
        let sides = self.sides();
        let pooled = sides.side_of(offset) == Side::Pool;
        let source = sides.pool.as_ref().filter(|_| pooled).map(|pool| pool.source_at(offset));
        LostMemory { guest_address: self.guest_address(offset), source }
    }

    /// For a vCPU thread whose `KVM_RUN` says `EFAULT`: waits while the chunk that it may have touched moves.
    pub fn wait_for_barrier(&self) -> Waited {
        self.watch.wait()
    }

    /// Its pins.
    #[must_use]
    pub fn pins(&self) -> PinTable {
        self.home().pins.clone()
    }

    /// Which granule is where.
    #[must_use]
    pub fn placement(&self) -> PlacementMap {
        self.home().placement.clone()
    }

    /// The guest-physical address of a byte.
    #[must_use]
    pub fn guest_address(&self, offset: usize) -> u64 {
        let offset = offset as u64;
        let next = self.stretches.partition_point(|stretch| stretch.offset <= offset);
        let stretch = self.stretches[..next].last();
        stretch.map_or(offset, |stretch| stretch.guest_address + (offset - stretch.offset))
    }

    /// Loads what KVM could not load for the guest, because it emulates the instruction: an MMIO exit in the midst of
    /// memory. Waits while the chunk moves.
    ///
    /// # Errors
    /// [`Unreached`].
    pub fn load(&self, guest_address: u64, bytes: &mut [u8]) -> std::result::Result<(), Unreached> {
        let offset = self.offset_of(guest_address, bytes.len()).ok_or(Unreached::NoMemory)?;
        // SAFETY: the bytes lie in the range, which this maps as long as it lives; the handlers are installed.
        self.insist(offset, || unsafe { copy::copy(bytes.as_mut_ptr(), self.range.at(offset), bytes.len()) })
    }

    /// Stores what KVM could not store for the guest, like [`GuestMemory::load`]: its emulation does not wait where pages
    /// are protected, and says that nothing is there. Not atomic: other vCPUs may see a part of it.
    ///
    /// # Errors
    /// [`Unreached`].
    pub fn store(&self, guest_address: u64, bytes: &[u8]) -> std::result::Result<(), Unreached> {
        let offset = self.offset_of(guest_address, bytes.len()).ok_or(Unreached::NoMemory)?;
        // SAFETY: as in `load`.
        let stored = self.insist(offset, || unsafe { copy::copy(self.range.at(offset), bytes.as_ptr(), bytes.len()) });
        self.note_host_write(offset, bytes.len());
        stored
    }

    /// Remembers that this process has written for the guest, which KVM does not notice. Whoever copies the page because of
    /// that finds all of it.
    fn note_host_write(&self, offset: usize, bytes: usize) {
        for page in offset / LOG_PAGE..=(offset + bytes.saturating_sub(1)) / LOG_PAGE {
            if let Some(word) = self.host_writes.get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::AcqRel);
            }
        }
        self.has_host_writes.store(true, Ordering::Release);
    }

    /// Tells the pages that this process has written for the guest since it was asked last.
    pub fn take_host_writes(&self, mut written: impl FnMut(u64)) {
        // There are hardly ever any.
        if !self.has_host_writes.swap(false, Ordering::AcqRel) {
            return;
        }
        for (index, word) in (0..).zip(&self.host_writes) {
            let mut left = if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) };
            while left != 0 {
                written(index * 64 + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
    }

    /// Where bytes lie that are contiguous in the guest's address space.
    fn offset_of(&self, guest_address: u64, bytes: usize) -> Option<usize> {
        let ends = self.stretches.iter().skip(1).map(|next| next.offset).chain([self.len() as u64]);
        let offset = self.stretches.iter().zip(ends).find_map(|(stretch, end)| {
            let offset = stretch.offset.checked_add(guest_address.checked_sub(stretch.guest_address)?)?;
            (offset.checked_add(bytes as u64)? <= end).then_some(offset)
        })?;
        usize::try_from(offset).ok()
    }

    /// Tries an access until it succeeds, or fails for another reason than that a chunk moves.
    fn insist(
        &self,
        offset: usize,
        mut access: impl FnMut() -> std::result::Result<(), Failed>,
    ) -> std::result::Result<(), Unreached> {
        while access().is_err() {
            if self.watch.wait() == Waited::NothingMoves {
                self.watch.lose(offset);
                return Err(Unreached::Lost(self.lost_at(offset)));
            }
        }
        Ok(())
    }

    pub(crate) fn sides(&self) -> MutexGuard<'_, Sides> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn turn(&self) -> Turn<'_, Supply> {
        self.supply.take()
    }

    pub(crate) fn range(&self) -> &AddressRange {
        &self.range
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(crate) fn control(&self) -> GuestControl {
        self.home().control.clone()
    }

    pub(crate) fn home(&self) -> RwLockReadGuard<'_, Home> {
        self.home.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_home(&self, home: Home) {
        *self.home.write().unwrap_or_else(PoisonError::into_inner) = home;
    }

    pub(crate) fn node(&self) -> Option<u32> {
        self.node
    }
}

/// Refuses memory of which a part is in another place.
pub(crate) fn require(state: &StateArea, wanted: &'static str, fits: impl Fn(Place) -> bool) -> Result<()> {
    let placement = state.placement();
    for granule in 0..placement.granules() {
        let place = placement.get(granule)?.place;
        if !fits(place) {
            return Err(Error::Elsewhere { wanted, granule, place });
        }
    }
    Ok(())
}
