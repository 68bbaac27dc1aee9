//! Carries out what [`crate::recovery::recover`] decides and what needs no worker: salvaging and burying.

use crate::error::Result;
use crate::protocol::{Event, Handoff, step};
use nil_pool::{Area, Arm, Epoch, GuestControl, HostSlot, Ownership, StateArea, decode};

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

/// The first half of that: publishes the state of a source that died after it had saved every part. Returns whether the
/// guest is frozen now; if not, nothing has been changed.
///
/// # Errors
/// [`crate::Error::Illegal`] when the guest is not offered by `dead`.
pub fn salvage(control: &GuestControl, state: &StateArea, by: HostSlot, dead: HostSlot) -> Result<bool> {
    let word = control.ownership().load()?;
    if !Handoff::of(word).is_some_and(|handoff| is_whole(state, handoff.epoch())) {
        return Ok(false);
    }
    Ok(matches!(change(control, word, by, Event::Salvage { dead })?, Ownership::Frozen { .. }))
}

/// For [`crate::recovery::Resolution::Bury`]: records that the state of a guest is lost. Returns the word afterwards.
///
/// # Errors
/// [`crate::Error::Illegal`] when the guest is not `dead`'s.
pub fn bury(control: &GuestControl, by: HostSlot, dead: HostSlot) -> Result<Ownership> {
    let word = control.ownership().load()?;
    change(control, word, by, Event::Bury { dead })
}

/// Takes the guest for `by`, because `dead` runs it no more (or, if it had taken it, brings it back no more). The commit
/// point of who takes a guest: of several, one succeeds. Returns the word if `by` is the taker now.
///
/// # Errors
/// [`crate::Error::Illegal`] when the guest is not `dead`'s.
pub fn take(control: &GuestControl, by: HostSlot, dead: HostSlot) -> Result<Option<Ownership>> {
    let word = control.ownership().load()?;
    let event = match word {
        Ownership::Taken { .. } => Event::Retake { dead },
        _ => Event::Take { dead },
    };
    let taken = step(word, by, event)?;
    Ok(control.ownership().transition(word, taken).then_some(taken))
}

/// Publishes the checkpoint that `by` has brought back: the guest is frozen for it. Returns the word afterwards.
///
/// # Errors
/// [`crate::Error::Illegal`] when `by` is not its taker; [`crate::Error::NotWhole`] when its state is not whole.
pub fn raise(control: &GuestControl, state: &StateArea, by: HostSlot) -> Result<Ownership> {
    let word = control.ownership().load()?;
    let raised = step(word, by, Event::Raise)?;
    if !raised.epoch().is_some_and(|epoch| is_whole(state, epoch)) {
        return Err(crate::Error::NotWhole { found: word });
    }
    // Whoever had armed for this guest before is not its target.
    control.arm().store(Arm::Idle);
    control.ownership().transition(word, raised);
    Ok(control.ownership().load()?)
}

/// Records that a guest which `by` has taken has no whole checkpoint. Returns the word afterwards.
///
/// # Errors
/// [`crate::Error::Illegal`] when `by` is not its taker.
pub fn give_up(control: &GuestControl, by: HostSlot) -> Result<Ownership> {
    let word = control.ownership().load()?;
    change(control, word, by, Event::GiveUp)
}

/// Takes a frozen guest for `by`, because its source and its target `dead` are gone. Returns the word afterwards.
///
/// # Errors
/// [`crate::Error::Illegal`] when the guest is not frozen for `dead`.
pub fn redirect(control: &GuestControl, by: HostSlot, dead: HostSlot) -> Result<Ownership> {
    let word = control.ownership().load()?;
    let redirected = step(word, by, Event::Redirect { dead })?;
    control.arm().store(Arm::Idle);
    control.ownership().transition(word, redirected);
    Ok(control.ownership().load()?)
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
