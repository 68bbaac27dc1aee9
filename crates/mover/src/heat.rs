//! Which granules of a guest the guest writes to, so that those it needs least go to the pool first and those it needs
//! most come back first.
//!
//! Measured by write protection (userfaultfd): the first store into a protected part waits for the moment that it takes to
//! note it down and to lift the protection ([`tracking`]).
//!
//! ```text
//! survey ─▶ protect ─▶ note the first store into each spot, for a while ─▶ next pass … ─▶ unregister (lifts all)
//!              ▲                                                   │
//!              └───────────────────────────────────────────────────┘
//! ```
//!
//! - A huge page is a spot of its own, protected and freed as a whole, so that it stays huge. (Protection that the kernel
//!   lifts by itself, `WP_ASYNC`, would split it at the first store: `wp_huge_pmd` in mm/memory.c.)
//! - Of small pages, one window of 64 KiB is protected in each spot and pass, each time another. A hypervisor forgets its
//!   second-level page tables for what is protected, so that all of a granule would cost the guest hundreds of faults.
//!   And as every window costs a call that interrupts all CPUs of the guest, a spot is as many granules as it takes for
//!   [`MOST_SPOTS`] to be enough.
//! - Pages that nobody has touched are not protected: that would give them page tables, and they could not become huge
//!   pages any more. Such granules are cold.
//!
//! So sampling costs the guest one short wait for each spot that it writes to and each pass, and in all no more than
//! sampling lasts. That is too short for a guest that writes to everything: of many gigabytes only a part is seen, and the
//! rest passes for cold. The worst case, measured by the test `the_cost_of_sampling` on two CPUs of a virtual machine with
//! one thread that stores to every page of 256 MiB as fast as it can (medians of 21): huge pages are sampled in 16 ms, of
//! which the thread loses 5; small anonymous ones in 44 ms (27), small shared ones in 37 ms (19).
//!
//! Only stores are seen: reading leaves no trace that a process could look at (accessed bits are shown to root by
//! `page_idle`, where the kernel has it, and a virtual machine's second-level page tables have theirs to themselves).
//!
//! A mapping has one userfaultfd at a time, so that sampling must be over before a move registers its own; and sampling a
//! mapping which has one is refused. Where the kernel cannot track a kind of memory (devices), nothing is known of it.

mod tracking;

use crate::pagemap::Page;
use nil_pool::PlacementMap;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};
use tracking::Tracking;

/// What is sampled, and what moves, at a time.
const GRANULE: usize = 2 << 20;
const _: () = assert!(GRANULE as u64 == nil_pool::GRANULE);
/// How much of a spot of small pages is protected in one pass.
const WINDOW: usize = 64 << 10;
/// How many spots of small pages there are at most.
const MOST_SPOTS: usize = 128;

/// How a guest is sampled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sampling {
    /// How often everything is protected.
    pub passes: u32,
    /// How long its stores are noted in each.
    pub each: Duration,
}

impl Default for Sampling {
    /// 15 ms in all.
    fn default() -> Self {
        Self { passes: 3, each: Duration::from_millis(5) }
    }
}

/// How hot each granule of a guest is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heat {
    /// 0 coldest … 255 hottest (written to at once in every pass), one for each granule.
    Known(Vec<u8>),
    /// Nothing could be sampled, and why.
    Unknown(String),
}

impl Heat {
    /// The heat of a granule; 0 when it is not known.
    #[must_use]
    pub fn of(&self, granule: usize) -> u8 {
        match self {
            Self::Known(heats) => heats.get(granule).copied().unwrap_or(0),
            Self::Unknown(_) => 0,
        }
    }

    /// Writes it down for the granules from `first` on, where it travels with the guest: whoever it goes to knows what is
    /// hot. What is not known changes nothing.
    pub fn write_down(&self, placement: &PlacementMap, first: usize) {
        if let Self::Known(heats) = self {
            heats.iter().enumerate().for_each(|(index, &heat)| placement.set_heat(first + index, heat));
        }
    }

    /// Samples this memory (addresses of this process; whole granules) while its guest runs, on the calling thread, which
    /// sleeps most of the time. Afterwards the memory is as it was.
    #[must_use]
    pub fn sample(memory: &Range<usize>, sampling: Sampling) -> Self {
        match sample(memory, sampling) {
            Ok(heats) => Self::Known(heats),
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}

/// Why memory cannot be sampled.
#[derive(Debug, thiserror::Error)]
enum Unsampled {
    #[error("{0:#x}..{1:#x} are no whole granules")]
    Uneven(usize, usize),
    #[error(transparent)]
    NoTracking(#[from] crate::Error),
    #[error("stores into this memory cannot be noted (device memory, or another userfaultfd has it): {0}")]
    Unsuitable(#[source] io::Error),
    #[error("it cannot be told which pages there are (PAGEMAP_SCAN, Linux 6.7 and later): {0}")]
    Unsurveyed(#[source] io::Error),
    #[error("stores cannot be noted: {0}")]
    Unwatched(#[source] io::Error),
}

fn sample(memory: &Range<usize>, sampling: Sampling) -> Result<Vec<u8>, Unsampled> {
    if !memory.start.is_multiple_of(GRANULE) || !memory.len().is_multiple_of(GRANULE) {
        return Err(Unsampled::Uneven(memory.start, memory.end));
    }
    let tracking = Tracking::new()?;
    let registered = tracking.register(memory).map_err(Unsampled::Unsuitable)?;
    let backings = survey(&tracking, memory).map_err(Unsampled::Unsurveyed)?;
    let mut spots = Spots::of(memory.start, &backings);
    for pass in 0..sampling.passes {
        spots.take_pass(&tracking, pass, sampling.each).map_err(Unsampled::Unwatched)?;
    }
    registered.release().map_err(Unsampled::Unsuitable)?;
    Ok(spots.heats(sampling.passes))
}

/// What pages a granule consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backing {
    /// None.
    Untouched,
    /// Small ones, or some of each.
    Small,
    /// One huge page.
    Huge,
}

/// Tells what each granule consists of.
fn survey(tracking: &Tracking, memory: &Range<usize>) -> io::Result<Vec<Backing>> {
    let mut backings = vec![Backing::Untouched; memory.len() / GRANULE];
    tracking.page_map.present(memory, |run, page| {
        let (first, end) = ((run.start - memory.start) / GRANULE, (run.end - memory.start).div_ceil(GRANULE));
        for (index, backing) in backings.iter_mut().enumerate().take(end).skip(first) {
            let start = memory.start + index * GRANULE;
            let is_whole = run.start <= start && start + GRANULE <= run.end;
            *backing = if is_whole && page == Page::Huge { Backing::Huge } else { Backing::Small };
        }
    })?;
    Ok(backings)
}

/// Neighbouring granules of one kind that are watched as one.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Spot {
    granules: Range<usize>,
    backing: Backing,
    /// The sum of its heats in all passes.
    heat: u32,
    /// The last pass in which it was written to. (Several stores may wait at once.)
    written_in: Option<u32>,
}

#[derive(Debug)]
struct Spots {
    /// Address of the first granule.
    start: usize,
    spots: Vec<Spot>,
    /// For each granule, its spot; none where nobody has touched it.
    spot_of: Vec<Option<usize>>,
}

impl Spots {
    fn of(start: usize, backings: &[Backing]) -> Self {
        let small = backings.iter().filter(|&&backing| backing == Backing::Small).count();
        let together = small.div_ceil(MOST_SPOTS);
        let (mut spots, mut spot_of) = (Vec::<Spot>::new(), Vec::new());
        for (index, &backing) in backings.iter().enumerate() {
            let joins = |last: &&mut Spot| {
                let is_neighbour = last.granules.end == index && last.backing == Backing::Small;
                is_neighbour && backing == Backing::Small && last.granules.len() < together
            };
            match spots.last_mut().filter(joins) {
                _ if backing == Backing::Untouched => {}
                Some(last) => last.granules.end = index + 1,
                None => spots.push(Spot { granules: index..index + 1, backing, heat: 0, written_in: None }),
            }
            spot_of.push(spots.len().checked_sub(1).filter(|_| backing != Backing::Untouched));
        }
        Self { start, spots, spot_of }
    }

    /// Protects a part of each spot, and notes who is written to within this time.
    fn take_pass(&mut self, tracking: &Tracking, pass: u32, each: Duration) -> io::Result<()> {
        for window in self.windows(pass) {
            tracking.userfault.protect(&window)?;
            self.note(tracking, pass, Duration::ZERO, u8::MAX)?;
        }
        let began = Instant::now();
        loop {
            let passed = began.elapsed();
            let Some(left) = each.checked_sub(passed).filter(|left| !left.is_zero()) else { return Ok(()) };
            self.note(tracking, pass, left, heat_after(passed, each))?;
        }
    }

    /// What is to be protected in this pass; huge pages that lie side by side at once.
    fn windows(&self, pass: u32) -> Vec<Range<usize>> {
        let mut windows: Vec<Range<usize>> = Vec::new();
        for spot in &self.spots {
            let window = self.window(spot, pass);
            match windows.last_mut().filter(|last| last.end == window.start) {
                Some(last) => last.end = window.end,
                None => windows.push(window),
            }
        }
        windows
    }

    fn window(&self, spot: &Spot, pass: u32) -> Range<usize> {
        let start = self.start + spot.granules.start * GRANULE;
        match spot.backing {
            Backing::Huge => start..start + GRANULE,
            Backing::Small | Backing::Untouched => {
                // An odd factor visits every window of a granule in 32 passes, neighbours in time far apart.
                let pass = pass as usize;
                let (granule, window) = (pass % spot.granules.len(), pass * 11 % (GRANULE / WINDOW));
                let start = start + granule * GRANULE + window * WINDOW;
                start..start + WINDOW
            }
        }
    }

    /// Waits so long at most for stores, and lets those through that wait, with a note of the spot's heat.
    fn note(&mut self, tracking: &Tracking, pass: u32, wait: Duration, heat: u8) -> io::Result<()> {
        tracking.userfault.stores(wait, |address| {
            let offset = address.wrapping_sub(self.start);
            let Some(&Some(spot)) = self.spot_of.get(offset / GRANULE) else { return Ok(()) };
            let spot = &mut self.spots[spot];
            if spot.written_in.replace(pass) != Some(pass) {
                spot.heat += u32::from(heat);
            }
            let unit = if spot.backing == Backing::Huge { GRANULE } else { WINDOW };
            let start = address - offset % unit;
            tracking.userfault.unprotect(&(start..start + unit))
        })
    }

    fn heats(&self, passes: u32) -> Vec<u8> {
        let heat = |spot: &Option<usize>| spot.map_or(0, |spot| self.spots[spot].heat.div_ceil(passes.max(1)));
        self.spot_of.iter().map(|spot| u8::try_from(heat(spot)).unwrap_or(u8::MAX)).collect()
    }
}

/// The heat of what was first written to so long after it was protected: what is written to all the time is written to
/// at once.
fn heat_after(passed: Duration, each: Duration) -> u8 {
    let share = passed.as_micros() * 127 / each.as_micros().max(1);
    u8::MAX - u8::try_from(share).unwrap_or(127).min(127)
}

#[cfg(test)]
mod tests;
