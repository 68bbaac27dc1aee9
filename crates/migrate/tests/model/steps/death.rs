//! Death, and what the agents make of it.

use super::spend;
use crate::world::{Errand, Taker, Worker, World, slot_of};
use crate::{Handoffs, Rule};
use nil_migrate::protocol::{Event, Handoff, Role, step};
use nil_migrate::recovery::{Liveness, Resolution, recover};
use nil_pool::{HostSlot, Ownership};

pub(super) fn kill_worker(world: &mut World, host: usize) -> Option<()> {
    if world.hosts[host].worker == Worker::None {
        return None;
    }
    world.hosts[host].worker = Worker::None;
    spend(&mut world.budget.crashes)
}

pub(super) fn kill_host(world: &mut World, host: usize) -> Option<()> {
    let dying = &mut world.hosts[host];
    if !dying.up {
        return None;
    }
    (dying.up, dying.worker, dying.errand) = (false, Worker::None, None);
    spend(&mut world.budget.crashes)
}

pub(super) fn return_host(world: &mut World, host: usize) -> Option<()> {
    if world.hosts[host].up {
        return None;
    }
    world.hosts[host].up = true;
    spend(&mut world.budget.returns)
}

/// What the agent of host `by` knows of `host`: its own workers, and whether the other host is there.
pub(crate) fn liveness(world: &World, by: usize, sees_all: bool, host: HostSlot) -> Liveness {
    let index = host.index();
    match (&world.hosts[index].worker, world.hosts[index].up) {
        (_, false) => Liveness::Gone,
        (_, true) if index != by && !sees_all => Liveness::Unknown,
        (Worker::None, true) => Liveness::Idle,
        (Worker::Owner(_) | Worker::Taker(_), true) => Liveness::Working,
    }
}

pub(super) fn inspect(world: &mut World, host: usize, sees_all: bool) -> Option<()> {
    if !world.hosts[host].up || world.hosts[host].errand.is_some() {
        return None;
    }
    let seen = world.word;
    let resolution = recover(seen, |of| liveness(world, host, sees_all, of));
    let me = slot_of(host);
    let mine = match resolution {
        Resolution::SalvageOrBury(_) | Resolution::Bury(_) => true,
        Resolution::TakeBack(by) | Resolution::TakeOver(by) => by == me,
        Resolution::Nothing
        | Resolution::LeaveTo(_)
        | Resolution::Stranded { .. }
        | Resolution::Lost(_)
        | Resolution::BringBack(_)
        | Resolution::Retake(_) => false,
    };
    let whole = Handoff::of(seen).is_some_and(|handoff| world.is_whole(handoff.epoch()));
    world.hosts[host].errand = mine.then_some(Errand { seen, resolution, whole });
    mine.then_some(())
}

impl Handoffs {
    pub(super) fn rescue(&self, world: &mut World, host: usize) -> Option<()> {
        let Errand { seen, resolution, whole } = world.hosts[host].errand.take()?;
        match resolution {
            Resolution::Bury(dead) => change(world, seen, host, Event::Bury { dead }),
            Resolution::SalvageOrBury(dead) if whole && self.rule != Rule::BuryWithoutLooking => {
                change(world, seen, host, Event::Salvage { dead });
            }
            Resolution::SalvageOrBury(dead) => change(world, seen, host, Event::Bury { dead }),
            Resolution::TakeBack(_) => start_taker(world, host, Role::Home),
            Resolution::TakeOver(_) => start_taker(world, host, Role::Target),
            Resolution::Nothing
            | Resolution::LeaveTo(_)
            | Resolution::Stranded { .. }
            | Resolution::Lost(_)
            | Resolution::BringBack(_)
            | Resolution::Retake(_) => {}
        }
        Some(())
    }
}

pub(super) fn change(world: &mut World, seen: Ownership, host: usize, event: Event) {
    let next = step(seen, slot_of(host), event).expect("recovery asks for legal events");
    let owner_lives = seen.responsible().is_some_and(|of| world.hosts[of.index()].worker != Worker::None);
    let whole = Handoff::of(seen).is_some_and(|handoff| world.is_whole(handoff.epoch()));
    if world.swap(seen, next) {
        world.sins.buried_alive |= matches!(event, Event::Bury { .. }) && (owner_lives || whole);
        world.deeds.salvaged |= matches!(event, Event::Salvage { .. });
    }
}

/// A fresh worker looks at the word itself; what its agent saw may be past.
pub(super) fn start_taker(world: &mut World, host: usize, role: Role) {
    let Ownership::Frozen { .. } = world.word else { return };
    let Some(handoff) = Handoff::of(world.word) else { return };
    if world.hosts[host].worker == Worker::None && role.host(&handoff) == slot_of(host) {
        world.hosts[host].worker = Worker::Taker(Taker::new(role, handoff));
    }
}
