//! A guest's memory gets another home: another record, another placement map, another pin table, in another pool.
//!
//! Only while every byte of it is in this host's DRAM. Then nothing refers to the old pool but these three, and nothing of
//! the memory is touched: the guest need not stand still. Where the memory goes afterwards is a move like any other.

use crate::error::{Error, Result};
use crate::memory::{GuestMemory, Home, require};
use crate::sides::Supply;
use crate::turn::Turn;
use nil_pool::{Epoch, GuestControl, HostSlot, Place, StateArea};

/// A home that has been found fit. Nothing moves as long as this lives.
#[derive(Debug)]
pub struct NewHome<'a> {
    memory: &'a GuestMemory,
    home: Home,
    _turn: Turn<'a, Supply>,
}

impl GuestMemory {
    /// Gets ready to have its home in the record and state area of another pool, which must say of every granule that it
    /// is in this host's DRAM, where it must be.
    ///
    /// # Errors
    /// [`Error::NotAllHere`], [`Error::Elsewhere`], [`Error::BadPlacement`], [`Error::Contradiction`]; nothing has changed.
    pub fn prepare_home(&self, control: &GuestControl, state: &StateArea) -> Result<NewHome<'_>> {
        let turn = self.turn();
        let refused = |why: &str| Err(Error::NotAllHere { why: why.to_owned() });
        if turn.moves > 0 {
            return refused("its memory is being moved");
        }
        if self.sides().has_pooled() {
            return refused("part of its memory is in the pool");
        }
        if let Some(pin) = self.pins().list().first() {
            return refused(&format!("part of its memory is pinned by {} ({})", pin.owner, pin.reason));
        }
        let home = Home::of(control, state);
        let (granules, found) = (self.placement().granules(), home.placement.granules());
        if granules != found {
            let (record, found) = (self.len() as u64, found as u64 * nil_pool::GRANULE);
            return Err(Error::Contradiction { record, what: "new placement map", found });
        }
        require(state, "in this host's DRAM", |place| matches!(place, Place::Local { .. }))?;
        Ok(NewHome { memory: self, home, _turn: turn })
    }
}

impl NewHome<'_> {
    /// From now on memory moves as that home says, in the name of this owner.
    pub fn enter(self, host: HostSlot, epoch: Epoch) {
        let Self { memory, home, .. } = self;
        let mut sides = memory.sides();
        sides.pool = None;
        sides.owner = Some((host, epoch));
        memory.set_home(home);
    }
}
