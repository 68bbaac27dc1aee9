//! Which parts of the memory must not move, as far as it has been declared.

use super::Carrier;
use crate::dram::{PAGE, granule_bytes};
use crate::report::{Stall, StallReason};
use crate::sides::Side;
use nil_pool::Pin;
use std::ops::Range;

/// The owner of pins by which somebody keeps memory local that has been pulled back from the pool. They hold up what would
/// decouple it, and not what recouples it.
pub const HOLDER: &str = "nil recouple";

impl Carrier<'_> {
    /// What keeps the granule from moving.
    pub(crate) fn pinned(&self, granule: usize) -> Option<Stall> {
        let (start, end) = (granule * granule_bytes(), (granule + 1) * granule_bytes());
        let pins = self.memory.pins().list();
        let pin = pins.iter().find(|pin| {
            let overlaps = pin.offset < end as u64 && pin.offset.saturating_add(pin.bytes) > start as u64;
            overlaps && !(self.to() == Side::Dram && pin.owner == HOLDER)
        })?;
        Some(self.stall(pin.offset..pin.offset.saturating_add(pin.bytes), granule, reason(pin)))
    }

    /// A part of the memory that keeps a granule from moving, as far as it lies in that: whole pages.
    pub(crate) fn stall(&self, pinned: Range<u64>, granule: usize, reason: StallReason) -> Stall {
        let (start, end) = (granule * granule_bytes(), (granule + 1) * granule_bytes());
        let within = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).clamp(start, end);
        let first = within(pinned.start) / PAGE * PAGE;
        let bytes = within(pinned.end).next_multiple_of(PAGE) - first;
        let guest_address = self.memory.guest_address(first);
        Stall { guest_address, bytes: bytes as u64, reason }
    }
}

fn reason(pin: &Pin) -> StallReason {
    let (owner, reason) = (pin.owner.clone(), pin.reason.clone());
    if owner == HOLDER { StallReason::Held { owner, reason } } else { StallReason::Pinned { owner, reason } }
}
