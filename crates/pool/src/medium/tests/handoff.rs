//! The words and areas of a handoff, when source or target dies with what its caches held.

use super::{Settings, Stage, Verdict, crash_everywhere, draw, require};
use crate::fault::armed::crash_after;
use crate::ownership::HostSlot;
use crate::{Area, Epoch, GuestControl, Ownership, StateArea, decode};

/// Sections of each area. The second one begins with a line: as a whole it can be of another epoch than the first.
const SECTIONS: u32 = 2;
const LENGTH: usize = 80;

pub(super) fn source() -> HostSlot {
    HostSlot::new(0).expect("a slot")
}

pub(super) fn target() -> HostSlot {
    HostSlot::new(1).expect("a slot")
}

fn areas(state: &StateArea, epoch: Epoch) -> [Area; 2] {
    [state.machine(epoch.slot()), state.vcpu(epoch.slot(), 0)]
}

/// The payload that was saved at an epoch.
fn payload(epoch: Epoch, section: u32) -> [u8; LENGTH] {
    [u8::try_from(epoch.0 * SECTIONS + section).expect("small"); LENGTH]
}

fn save(state: &StateArea, epoch: Epoch) {
    for area in areas(state, epoch) {
        let mut out = area.writer(epoch);
        for section in 0..SECTIONS {
            out.put(1, 1, section, &payload(epoch, section)).expect("there is room");
        }
        out.finish();
    }
}

/// Whether each area holds the whole state of this epoch. One that passes for that, and is not, is a finding.
pub(super) fn is_whole(state: &StateArea, epoch: Epoch) -> Result<bool, String> {
    let mut whole = true;
    for area in areas(state, epoch) {
        let mut copy = Vec::new();
        let read = area.read_into(&mut copy).is_ok();
        match decode(&copy, epoch) {
            Ok(sections) if read => {
                for section in 0..SECTIONS {
                    let found = sections.get(1, section).ok_or("a section is missing")?;
                    require(found.payload == payload(epoch, section), || {
                        format!("section {section} passes for one of epoch {epoch}, and is an earlier one")
                    })?;
                }
            }
            _ => whole = false,
        }
    }
    Ok(whole)
}

pub(super) fn owned(host: HostSlot, epoch: Epoch) -> Ownership {
    Ownership::Owned { host, epoch }
}

fn offered(epoch: Epoch) -> Ownership {
    Ownership::Offered { source: source(), target: target(), epoch }
}

pub(super) fn frozen(epoch: Epoch) -> Ownership {
    Ownership::Frozen { source: source(), target: target(), epoch }
}

/// The source's part of a handoff.
pub(super) fn hand_over(guest: &GuestControl, state: &StateArea, epoch: Epoch) {
    for area in areas(state, epoch) {
        drop(area.writer(epoch));
    }
    assert!(guest.ownership().transition(owned(source(), epoch), offered(epoch)));
    save(state, epoch);
    assert!(guest.ownership().transition(offered(epoch), frozen(epoch)));
}

/// The same slot has been used before, by a state of the same shape.
pub(super) fn prepare(stage: &Stage) -> (GuestControl, StateArea, Epoch) {
    let guest = stage.scene.guest("old");
    let state = guest.map_state().expect("its state");
    for epoch in [Epoch(1), Epoch(2)] {
        hand_over(&guest, &state, epoch);
        let back = owned(source(), epoch.next().expect("a later one"));
        assert!(guest.ownership().transition(frozen(epoch), back));
    }
    (guest, state, Epoch(3))
}

/// The source dies: what is frozen is whole, what passes for whole is this very state, and after the freeze the guest is not
/// anywhere else.
pub(super) fn source_dies(settings: &Settings) -> Verdict {
    let stage = Stage::of(settings);
    let (guest, state, epoch) = prepare(&stage);
    let work = || hand_over(&guest, &state, epoch);
    let judge = |ended: bool| {
        let word = guest.ownership().load().map_err(|bad| bad.to_string())?;
        let whole = is_whole(&state, epoch)?;
        match word {
            Ownership::Frozen { .. } => require(whole, || "it is frozen, and its state is not whole".to_owned())?,
            Ownership::Owned { host, epoch: at } => {
                require((host, at) == (source(), epoch), || format!("it is {word}"))?;
            }
            Ownership::Offered { .. } => {}
            Ownership::Vacant | Ownership::Lost { .. } | Ownership::Taken { .. } => {
                return Err(format!("it is {word}"));
            }
        }
        require(!ended || word == frozen(epoch), || format!("it was frozen, and is {word}"))
    };
    // What chance leaves has to be just so for a section to pass for an earlier one.
    let mut left_out = 0;
    for seed in 0..32 {
        left_out += crash_everywhere(&Settings { seed: 1000 * seed, ..settings.clone() }, || {}, work, judge)?;
    }
    Ok(left_out)
}

/// The target dies: once it has run the guest, no state from before that can be loaded.
pub(super) fn target_dies(settings: &Settings) -> Verdict {
    let stage = Stage::of(settings);
    let (guest, state, epoch) = prepare(&stage);
    hand_over(&guest, &state, epoch);
    let after = owned(target(), epoch.next().expect("a later one"));
    let ran = std::cell::Cell::new(false);
    let work = || {
        assert!(is_whole(&state, epoch).expect("this state"));
        ran.set(guest.ownership().transition(frozen(epoch), after));
        // It runs the guest, whose first store is one like any other.
        crate::fault::armed::step();
    };
    crash_everywhere(
        settings,
        || ran.set(false),
        work,
        |_| {
            let word = guest.ownership().load().map_err(|bad| bad.to_string())?;
            require(!ran.get() || word == after, || format!("it has run on the target, and is {word}"))
        },
    )
}

/// Claim against cancel, when both die at some instant: exactly one has it, or it is frozen still.
pub(super) fn both_die(settings: &Settings) -> Verdict {
    let stage = Stage::of(settings);
    let (guest, state, epoch) = prepare(&stage);
    hand_over(&guest, &state, epoch);
    let later = epoch.next().expect("a later one");
    let work = || {
        guest.ownership().transition(frozen(epoch), owned(source(), later));
    };
    crash_everywhere(
        settings,
        || {},
        work,
        |cancelled| {
            let claim = || guest.ownership().transition(frozen(epoch), owned(target(), later));
            let claimed = crash_after(draw(4), claim);
            super::die(1, super::Fate::Chance);
            super::become_host(2);
            let word = guest.ownership().load().map_err(|bad| bad.to_string())?;
            let of = |host| word == owned(host, later);
            require(!cancelled || (of(source()) && claimed != Some(true)), || {
                format!("it was cancelled, and is {word}")
            })?;
            require(claimed != Some(true) || of(target()), || format!("it was claimed, and is {word}"))?;
            require(of(source()) || of(target()) || word == frozen(epoch), || format!("it is {word}"))?;
            require(word != frozen(epoch) || is_whole(&state, epoch)?, || "its state is gone".to_owned())
        },
    )
}

#[test]
fn a_guest_that_was_frozen_survives_its_source() {
    source_dies(&Settings::default()).expect("every crash has an answer");
}

#[test]
fn a_guest_that_was_claimed_is_never_claimed_again() {
    target_dies(&Settings::default()).expect("every crash has an answer");
}

#[test]
fn of_claim_and_cancel_one_wins_whoever_dies() {
    both_die(&Settings::default()).expect("every crash has an answer");
}
