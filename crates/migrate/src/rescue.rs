//! Carries out what [`crate::recovery::recover`] decides and what needs no worker: salvaging and burying.

use crate::error::Result;
use crate::protocol::{Event, Handoff, step};
use nil_pool::{Area, Epoch, GuestControl, HostSlot, Ownership, StateArea, decode};

/// For [`crate::recovery::Resolution::SalvageOrBury`]: publishes the state of a source that died after it had saved
/// every part, or records that it is lost. Returns the word afterwards; look again with it.
///
/// That every area is whole at the epoch of an offer means that every vCPU has stopped: a vCPU thread runs on only after
/// the word has left `Offered` at that epoch.
///
/// # Errors
/// [`crate::Error::Illegal`] when the guest is not offered by `dead`.
pub fn salvage_or_bury(control: &GuestControl, state: &StateArea, by: HostSlot, dead: HostSlot) -> Result<Ownership> {
    let word = control.ownership().load()?;
    let event = match Handoff::of(word) {
        Some(handoff) if is_whole(state, handoff.epoch()) => Event::Salvage { dead },
        Some(_) | None => Event::Bury { dead },
    };
    change(control, word, by, event)
}

/// For [`crate::recovery::Resolution::Bury`]: records that the state of a guest is lost. Returns the word afterwards.
///
/// # Errors
/// [`crate::Error::Illegal`] when the guest is not `dead`'s.
pub fn bury(control: &GuestControl, by: HostSlot, dead: HostSlot) -> Result<Ownership> {
    let word = control.ownership().load()?;
    change(control, word, by, Event::Bury { dead })
}

fn change(control: &GuestControl, word: Ownership, by: HostSlot, event: Event) -> Result<Ownership> {
    let next = step(word, by, event)?;
    control.ownership().transition(word, next);
    Ok(control.ownership().load()?)
}

/// Whether every part of the guest is whole in the slot of this epoch.
fn is_whole(state: &StateArea, epoch: Epoch) -> bool {
    let mut copy = Vec::new();
    let mut whole = |area: Area| area.read_into(&mut copy).is_ok() && decode(&copy, epoch).is_ok();
    whole(state.machine(epoch.slot()))
        && (0..state.vcpus() as usize).all(|index| whole(state.vcpu(epoch.slot(), index)))
}
