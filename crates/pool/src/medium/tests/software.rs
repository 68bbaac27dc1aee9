//! The same where the hosts' caches do not agree: what is not written back nobody else sees, what is not dropped is seen as it was.

use super::super::{copy_in, copy_out};
use super::handoff::{self, frozen, hand_over, is_whole, owned, prepare, source, target};
use super::{ENOUGH, Settings, Stage, Verdict, become_host, observers, operations, others, require, simulate, sound};
use crate::crash_tests::{Scene, guest, shared};
use crate::fault::armed::interrupted;
use crate::{Epoch, Error, Fence, GuestControl, MemoryHome, Ownership, StateArea, Tag};
use std::cell::RefCell;
use std::rc::Rc;

/// What a host does beside another one; whether it has done it.
pub(super) type Act = fn(&Stage) -> Result<bool, String>;

/// A host does something, and before each of its writes in turn another one does something as well; then both are judged.
pub(super) fn beside(
    settings: &Settings,
    stage: &Rc<Stage>,
    [(me, own), (it, other)]: [(usize, Act); 2],
    judge: impl Fn(&Stage, [bool; 2]) -> Result<(), String>,
) -> Verdict {
    let mut left_out = 0;
    for writes in 0..ENOUGH {
        stage.reset();
        let mut came = false;
        let run = simulate(settings, writes, || {
            let others = Rc::new(RefCell::new(Ok(false)));
            let (there, notes) = (Rc::clone(stage), Rc::clone(&others));
            let meanwhile = move || {
                become_host(it);
                *notes.borrow_mut() = other(&there);
                become_host(me);
            };
            become_host(me);
            let mine;
            (mine, came) = interrupted(writes, meanwhile, || own(stage));
            let others = others.borrow().clone()?;
            become_host(2);
            judge(stage, [mine?, others])
        });
        left_out += run.map_err(|wrong| format!("beside write {writes}: {wrong}"))?;
        if !came {
            return Ok(left_out);
        }
    }
    Err(format!("it makes more than {ENOUGH} writes"))
}

/// Whether it was done; not if it was another host's turn.
fn done<T>(outcome: crate::Result<T>) -> Result<bool, String> {
    match outcome {
        Ok(_) => Ok(true),
        Err(Error::PoolBusy { .. }) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// Two hosts that change the tables at once: each does so in its turn, or not at all.
pub(super) fn turns(settings: &Settings) -> Verdict {
    let stage = Rc::new(Stage::of(settings));
    let before = stage.scene.pool.capacities().len();
    let own = |stage: &Stage| done(stage.scene.host.add_capacity(&shared(Tag::random(), 1)));
    let other = |stage: &Stage| {
        let peer = stage.peer().ok_or("a peer")?;
        done(peer.create_guest(&guest("new", MemoryHome::Dram)))
    };
    beside(settings, &stage, [(0, own), (1, other)], |stage, [own, other]| {
        sound(&stage.scene.pool)?;
        let found = stage.scene.pool.capacities().len() - before;
        require(own && found == 1 + usize::from(other), || format!("own: {own}, other: {other}; {found} are new"))
    })
}

/// Claim against cancel: one of the two has the guest, and the target only with its whole state.
pub(super) fn claim_against_cancel(settings: &Settings) -> Verdict {
    let (cancel, claim) = ((0, cancel as Act), (1, claim as Act));
    let first = contended(settings, [cancel, claim], |[own, other]| [own, other])?;
    Ok(first + contended(settings, [claim, cancel], |[own, other]| [other, own])?)
}

fn contended(settings: &Settings, acts: [(usize, Act); 2], order: fn([bool; 2]) -> [bool; 2]) -> Verdict {
    let mut left_out = 0;
    for seed in 0..16 {
        let settings = Settings { seed: settings.seed.wrapping_add(seed << 40), ..settings.clone() };
        let stage = Rc::new(Stage::of(&settings));
        let (guest, state, epoch) = prepare(&stage);
        hand_over(&guest, &state, epoch);
        left_out += beside(&settings, &stage, acts, |stage, done| {
            let [cancelled, claimed] = order(done);
            let (guest, state, epoch) = theirs(stage);
            let later = epoch.next().ok_or("a later epoch")?;
            require(!(cancelled && claimed), || "both have got it".to_owned())?;
            let word = guest.ownership().load().map_err(|bad| bad.to_string())?;
            require(!cancelled || word == owned(source(), later), || format!("it was cancelled, and is {word}"))?;
            require(!claimed || word == owned(target(), later), || format!("it was claimed, and is {word}"))?;
            if cancelled || claimed {
                return Ok(());
            }
            // Each gave way to the other: it is as it was, for whoever asks again.
            require(word == frozen(epoch) && is_whole(&state, epoch)?, || format!("nobody has it, and it is {word}"))?;
            become_host(0);
            require(cancel(stage)?, || "nobody gets it any more".to_owned())
        })?;
    }
    Ok(left_out)
}

/// What the guest has stored before the freeze is what the target finds after it.
pub(super) fn memory(settings: &Settings) -> Verdict {
    let stage = Rc::new(Stage::of(settings));
    prepare(&stage);
    let own = |stage: &Stage| {
        let (guest, state, epoch) = theirs(stage);
        let memory = guest.map_memory().map_err(|error| error.to_string())?;
        // As a guest does, for which nobody drops or writes back anything.
        copy_in(memory.as_ptr(), &[7; 256]);
        guest.hand_memory_over().map_err(|error| error.to_string())?;
        hand_over(&guest, &state, epoch);
        crate::fault::step();
        Ok(true)
    };
    let other = |stage: &Stage| {
        let (guest, _, epoch) = theirs(stage);
        if guest.ownership().load() != Ok(frozen(epoch)) {
            return Ok(false);
        }
        guest.take_memory_over().map_err(|error| error.to_string())?;
        let memory = guest.map_memory().map_err(|error| error.to_string())?;
        let mut found = [0; 256];
        copy_out(memory.as_ptr(), &mut found);
        require(found == [7; 256], || "it is not what the guest has stored".to_owned())?;
        Ok(true)
    };
    let seen = std::cell::Cell::new(false);
    let left_out = beside(settings, &stage, [(0, own), (1, other)], |_, [_, other]| {
        seen.set(seen.get() || other);
        Ok(())
    })?;
    require(seen.get(), || "the target has never seen it frozen".to_owned())?;
    Ok(left_out)
}

/// The guest, its state, and the epoch at which it is handed over.
fn theirs(stage: &Stage) -> (GuestControl, StateArea, Epoch) {
    let guest = stage.scene.guest("old");
    let state = guest.map_state().expect("its state");
    (guest, state, Epoch(3))
}

fn cancel(stage: &Stage) -> Result<bool, String> {
    let (guest, _, epoch) = theirs(stage);
    let later = epoch.next().ok_or("a later epoch")?;
    Ok(guest.ownership().transition(frozen(epoch), owned(source(), later)))
}

fn claim(stage: &Stage) -> Result<bool, String> {
    let (guest, state, epoch) = theirs(stage);
    let later = epoch.next().ok_or("a later epoch")?;
    if guest.ownership().load() != Ok(frozen(epoch)) {
        return Ok(false);
    }
    require(is_whole(&state, epoch)?, || "its state is not whole".to_owned())?;
    Ok(guest.ownership().transition(frozen(epoch), owned(target(), later)))
}

/// A host is dead; whichever peer declares it dead fences it, and takes its guest.
fn take(stage: &Stage) -> Result<bool, String> {
    let peer = stage.peer().ok_or("a peer")?;
    let (dead, first) = (source(), stage.scene.host.epoch());
    let fenced = peer
        .declare_dead(dead, first)
        .and_then(|()| peer.begin_fencing(dead, first, None))
        .and_then(|()| peer.finish_fencing(dead, first));
    if let Err(error) = fenced {
        return match error {
            Error::HostNotDead { .. } | Error::PoolBusy { .. } => Ok(false),
            error => Err(error.to_string()),
        };
    }
    let guest = stage.scene.guest("old");
    let guest = peer.pool().guest(guest.slot(), guest.id()).map_err(|error| error.to_string())?;
    let epoch = Epoch(1);
    let taken = Ownership::Taken { source: dead, taker: peer.slot(), epoch: Epoch(2) };
    Ok(guest.ownership().transition(owned(dead, epoch), taken))
}

/// Of two peers that want to fence a host and take its guest one does.
pub(super) fn takeover(settings: &Settings) -> Verdict {
    let stage = Rc::new(Stage::of(settings));
    let acts: [Act; 2] = [
        |stage| {
            super::die(0, super::Fate::Chance);
            take(stage)
        },
        take,
    ];
    beside(settings, &stage, [(1, acts[0]), (2, acts[1])], |stage, taken| {
        let word = stage.scene.guest("old").ownership().load().map_err(|bad| bad.to_string())?;
        let by = |host: u16| matches!(word, Ownership::Taken { taker, .. } if taker.index() == usize::from(host));
        require(taken[0] != taken[1], || format!("taken: {taken:?}"))?;
        require(by(1) == taken[0] && by(2) == taken[1], || format!("taken: {taken:?}; it is {word}"))?;
        let fence = stage.scene.pool.life(source()).map(|life| life.fence);
        require(fence == Some(Fence::Fenced), || format!("its fence: {fence:?}"))
    })
}

fn survives(operation: fn(&Scene)) {
    operations::whole_or_nothing(&Settings::software(), operation).expect("every crash has an answer");
}

macro_rules! survives {
    ($($name:ident: $operation:expr;)*) => {
        $(
            #[test]
            fn $name() {
                survives($operation);
            }
        )*
    };
}

survives! {
    adding_capacity_survives_its_host: operations::add;
    releasing_capacity_survives_its_host: operations::release;
    destroying_a_guest_survives_its_host: Scene::destroy;
    placing_memory_survives_its_host: Scene::place;
    unplacing_memory_survives_its_host: Scene::unplace;
}

/// Every third write of a long operation, from one of the first three on.
fn survives_thirds(operation: fn(&Scene), first: usize) {
    let settings = Settings { every: 3, first, ..Settings::software() };
    operations::whole_or_nothing(&settings, operation).expect("every crash has an answer");
}

macro_rules! survives_thirds {
    ($($name:ident: $operation:expr, from $first:expr;)*) => {
        $(
            #[test]
            fn $name() {
                survives_thirds($operation, $first);
            }
        )*
    };
}

survives_thirds! {
    creating_a_guest_survives_its_host: operations::create, from 0;
    creating_a_guest_survives_its_host_at_other_writes: operations::create, from 1;
    creating_a_guest_survives_its_host_at_all_writes: operations::create, from 2;
    creating_a_guest_in_dram_survives_its_host: operations::create_in_dram, from 0;
    creating_a_guest_in_dram_survives_its_host_at_other_writes: operations::create_in_dram, from 1;
    creating_a_guest_in_dram_survives_its_host_at_all_writes: operations::create_in_dram, from 2;
}

macro_rules! holds {
    ($($name:ident: $scenario:expr;)*) => {
        $(
            #[test]
            fn $name() {
                $scenario(&Settings::software()).expect("it holds");
            }
        )*
    };
}

holds! {
    a_pin_survives_its_host: others::pin;
    a_report_survives_its_host: others::report;
    joining_survives_its_host: others::join;
    leaving_survives_its_host: others::leave;
    two_hosts_change_the_tables_in_turn: turns;
    two_hosts_never_get_the_same_name: observers::host_names;
    two_capacities_never_get_the_same_tag: observers::tags;
    two_guests_never_get_the_same_name: observers::guest_names;
    a_peer_never_sees_half_a_guest: observers::watched_creation;
    a_target_never_sees_half_a_state: observers::frozen;
    a_target_finds_the_memory_as_the_guest_left_it: memory;
    a_guest_that_was_frozen_survives_its_source: handoff::source_dies;
    a_guest_that_was_claimed_is_never_claimed_again: handoff::target_dies;
    of_claim_and_cancel_one_wins_whoever_dies: handoff::both_die;
    of_two_peers_one_takes_the_guest_of_a_dead_host: takeover;
    of_claim_and_cancel_one_wins_whenever_they_meet: claim_against_cancel;
}
