//! What moves of a guest's memory need while they last: taken when a move begins, put away when the last one ends.
//!
//! ```text
//! take ─▶ pool mapped ─▶ guest sampled ─▶ mirror ─▶ userfaultfd, barrier ─▶ [ chunks move ] ─▶ drop, of the last move:
//!                                                                              no userfaultfd, mirror empty, pool unmapped
//! ```
//!
//! Moves of one memory share the mirror and the userfaultfd (there can be but one on a mapping). Whatever fails on the way,
//! the drop puts things right.

use crate::barrier::{Barrier, Ground};
use crate::chunk::{Carrier, Haste, Target};
use crate::dram::{Mirror, granule_bytes};
use crate::error::{Error, Result};
use crate::heat::{Heat, Sampling};
use crate::memory::GuestMemory;
use crate::plan::{Direction, MovePlan, Pace};
use crate::userfault::Userfault;
use nil_pool::CapacityMapping;
use std::ops::Range;
use std::sync::Arc;

/// What a move needs its equipment for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs<'a> {
    pub(crate) plan: &'a MovePlan,
    pub(crate) granules: &'a Range<usize>,
    pub(crate) guard: Guard,
    pub(crate) guest: Guest,
}

/// What the guest does meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Guest {
    /// It runs: what it stores into is worth knowing.
    Runs,
    /// It has no vCPU that runs.
    Stands,
}

/// What stores are kept out with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Guard {
    /// What the memory permits.
    BestFit,
    #[cfg(any(test, feature = "testing"))]
    Protect,
    #[cfg(any(test, feature = "testing"))]
    Nothing,
}

/// What a move needs, taken for as long as it lasts. The last move to end leaves nothing behind: no userfaultfd, no
/// page in the mirror, and no mapping of a capacity that the guest has left, so that it can be released.
#[derive(Debug)]
pub(crate) struct Equipment<'a> {
    memory: &'a GuestMemory,
    carrier: Option<Carrier<'a>>,
}

impl<'a> Equipment<'a> {
    pub(crate) fn take(memory: &'a GuestMemory, needs: &Needs<'_>) -> Result<Self> {
        memory.turn().moves += 1;
        // From here on the drop, which takes a turn of its own, puts things right.
        let mut equipment = Self { memory, carrier: None };
        equipment.carrier = Self::carrier_of(memory, needs)?;
        Ok(equipment)
    }

    /// `None` when nothing can have to move: a recouple of a guest that is wholly local.
    fn carrier_of(memory: &'a GuestMemory, needs: &Needs<'_>) -> Result<Option<Carrier<'a>>> {
        let Needs { plan, granules, guard, guest } = needs;
        let mut supply = memory.turn();
        let Some(pool) = pool_of(memory, plan.direction)? else { return Ok(None) };
        // How warm it is is written into the map.
        memory.require_owner()?;
        // No other move has a userfaultfd on its memory. In the pool nothing is sampled: it would split the huge pages of
        // files, and what was hot before the guest came is in the map.
        let private = plan.direction == Direction::Decouple;
        if *guest == Guest::Runs && supply.moves == 1 && private {
            warm(memory, granules);
        }
        let target = match plan.direction {
            Direction::Decouple => Target::Pool,
            Direction::Recouple => {
                let mirror = match &supply.mirror {
                    Some(mirror) => Arc::clone(mirror),
                    None => Arc::clone(supply.mirror.insert(Arc::new(Mirror::of(memory.len())?))),
                };
                match plan.node.or(memory.node()) {
                    Some(node) => mirror.bind(&bytes_of(granules), node)?,
                    None => mirror.unbind(&bytes_of(granules))?,
                }
                Target::Dram(mirror)
            }
        };
        let userfault = match &supply.userfault {
            Some(userfault) => Arc::clone(userfault),
            None => Arc::clone(supply.userfault.insert(Arc::new(Userfault::open()?))),
        };
        let ground = Ground { range: memory.range(), watch: memory.watch() };
        let barrier = match guard {
            Guard::BestFit => Barrier::choose(Arc::clone(&userfault), ground, &bytes_of(granules))?,
            #[cfg(any(test, feature = "testing"))]
            Guard::Protect => Barrier::Protect,
            #[cfg(any(test, feature = "testing"))]
            Guard::Nothing => Barrier::Unprotected,
        };
        let haste = match plan.budget.pace {
            Pace::Fast => Haste::Fast,
            Pace::Paced { .. } => Haste::Careful,
        };
        Carrier::new(memory, target, barrier, pool, userfault, haste).map(Some)
    }

    pub(crate) fn carrier(&self) -> Option<&Carrier<'a>> {
        self.carrier.as_ref()
    }
}

impl Drop for Equipment<'_> {
    fn drop(&mut self) {
        self.carrier = None;
        let mut supply = self.memory.turn();
        supply.moves -= 1;
        if supply.moves > 0 {
            return;
        }
        supply.userfault = None;
        if let Some(mirror) = &supply.mirror {
            mirror.empty(0..self.memory.len());
        }
        let mut sides = self.memory.sides();
        if !sides.has_pooled() {
            sides.pool = None;
        }
    }
}

/// The pool's side, mapped; it is mapped now if the guest is wholly local.
pub(crate) fn pool_of(memory: &GuestMemory, direction: Direction) -> Result<Option<Arc<CapacityMapping>>> {
    let mut sides = memory.sides();
    if sides.pool.is_none() && direction == Direction::Decouple {
        let pool = memory.control().map_memory()?;
        let (record, found) = (memory.len() as u64, pool.len() as u64);
        if record != found {
            return Err(Error::Contradiction { record, what: "capacity", found });
        }
        sides.pool = Some(Arc::new(pool));
    }
    Ok(sides.pool.clone())
}

/// Has it written down what the guest stores into, so that the order of the move can follow it.
fn warm(memory: &GuestMemory, granules: &Range<usize>) {
    let bytes = bytes_of(granules);
    let start = memory.range().at(bytes.start).addr();
    Heat::sample(&(start..start + bytes.len()), Sampling::default()).write_down(&memory.placement(), granules.start);
}

pub(crate) fn bytes_of(granules: &Range<usize>) -> Range<usize> {
    granules.start * granule_bytes()..granules.end * granule_bytes()
}
