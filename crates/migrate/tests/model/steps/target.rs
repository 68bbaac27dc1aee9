//! The steps of a worker that means to take the guest: the target's, or one that thaws it at home.

use super::spend;
use crate::world::{Content, Lander, MACHINE, Owner, PARTS, Taker, Worker, World, slot_of};
use crate::{Handoffs, Rule};
use nil_migrate::protocol::{ArmEvent, Arrival, Handoff, Role, TargetTurn, arm_step, step, target_turn};
use nil_pool::Ownership;

pub(super) fn plan(world: &mut World, host: usize) -> Option<()> {
    let Ownership::Owned { host: source, epoch } = world.word else { return None };
    let me = slot_of(host);
    if source == me || !world.hosts[host].up || world.hosts[host].worker != Worker::None {
        return None;
    }
    spend(&mut world.budget.plans)?;
    let handoff = Handoff::new(source, me, epoch).ok()?;
    let cleared = arm_step(world.arm, source, epoch, ArmEvent::Clear).ok()?;
    world.arm = arm_step(cleared, me, epoch, ArmEvent::Begin).ok()?;
    world.hosts[host].worker = Worker::Taker(Taker::new(Role::Target, handoff));
    Some(())
}

pub(super) fn ready(world: &mut World, host: usize) -> Option<()> {
    advance_arm(world, host, ArmEvent::Ready)
}

/// Moves the arm word on for the taker of this host, if it is its to move.
pub(super) fn advance_arm(world: &mut World, host: usize, event: ArmEvent) -> Option<()> {
    let arm = world.arm;
    let taker = world.taker_mut(host)?;
    if taker.role == Role::Home {
        return None;
    }
    world.arm = arm_step(arm, taker.handoff.target(), taker.handoff.epoch(), event).ok()?;
    Some(())
}

pub(super) fn watch(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let word = world.word;
    let taker = world.taker_mut(host)?;
    if taker.landers[vcpu] != Lander::Waiting {
        return None;
    }
    match target_turn(taker.role, &taker.handoff, word) {
        TargetTurn::Wait => None,
        TargetTurn::Poise if vcpu == 0 => advance_arm(world, host, ArmEvent::Poise),
        TargetTurn::Poise => None,
        TargetTurn::Load => {
            taker.landers[vcpu] = Lander::Loading;
            Some(())
        }
        TargetTurn::TearDown => {
            arrive_without(world, host, vcpu);
            Some(())
        }
    }
}

pub(super) fn fail_to_load(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    match world.taker_mut(host)?.landers[vcpu] {
        Lander::Loading => {
            advance_arm(world, host, ArmEvent::Refuse);
            arrive_without(world, host, vcpu);
            Some(())
        }
        // The last thread has arrived already: the landing is over.
        Lander::LoadingMachine => {
            advance_arm(world, host, ArmEvent::Refuse);
            world.hosts[host].worker = Worker::None;
            Some(())
        }
        Lander::Waiting | Lander::Committing | Lander::Arrived => None,
    }
}

pub(super) fn abort(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    if world.taker_mut(host)?.landers[vcpu] != Lander::Waiting {
        return None;
    }
    advance_arm(world, host, ArmEvent::Refuse);
    arrive_without(world, host, vcpu);
    Some(())
}

pub(super) fn arrive_without(world: &mut World, host: usize, vcpu: usize) {
    let taker = world.taker_mut(host).expect("only a taker lands");
    let (tally, arrival) = taker.tally.arrive(taker.handoff.epoch(), false);
    taker.tally = tally;
    taker.landers[vcpu] = Lander::Arrived;
    if arrival == Arrival::LastWithFailure {
        world.hosts[host].worker = Worker::None;
    }
}

impl Handoffs {
    pub(super) fn load(&self, world: &mut World, host: usize, vcpu: usize) -> Option<()> {
        let slots = world.slots;
        let taker = world.taker_mut(host)?;
        if taker.landers[vcpu] != Lander::Loading {
            return None;
        }
        let round = taker.handoff.epoch();
        taker.loaded[vcpu] = slots[round.slot()][vcpu];
        let (tally, mut arrival) = taker.tally.arrive(round, true);
        taker.tally = tally;
        if self.rule == Rule::ClaimEarly && arrival == Arrival::Early {
            arrival = Arrival::LastOfAll;
        }
        match arrival {
            Arrival::LastOfAll => taker.landers[vcpu] = Lander::LoadingMachine,
            Arrival::Early | Arrival::TooLate => taker.landers[vcpu] = Lander::Arrived,
            Arrival::LastWithFailure => world.hosts[host].worker = Worker::None,
        }
        Some(())
    }

    pub(super) fn commit(&self, world: &mut World, host: usize, vcpu: usize) -> Option<()> {
        let of = world.freezes;
        let taker = world.taker_mut(host)?.clone();
        if taker.landers[vcpu] != Lander::Committing {
            return None;
        }
        let handoff = taker.handoff;
        let committed = step(handoff.frozen(), taker.role.host(&handoff), taker.role.commit());
        let committed = committed.expect("a role commits by a legal event");
        let unconditional = self.rule == Rule::ClaimWithoutComparing && taker.role == Role::Target;
        if unconditional {
            world.word = committed;
        } else if !world.swap(handoff.frozen(), committed) {
            world.hosts[host].worker = Worker::None;
            world.deeds.late_claim_failed = true;
            return Some(());
        }
        let frozen = Content::Whole { epoch: handoff.epoch(), of };
        world.sins.committed_unwhole |= taker.loaded != [frozen; PARTS];
        world.deeds.thawed_at_home |= taker.role == Role::Home;
        if taker.role == Role::Target {
            world.deeds.claims += 1;
            world.deeds.taken_over |= !world.hosts[1 - host].up;
        }
        world.hosts[host].worker = Worker::Owner(Owner::new(handoff.next_epoch()));
        Some(())
    }
}

pub(super) fn load_machine(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let slots = world.slots;
    let taker = world.taker_mut(host)?;
    if taker.landers[vcpu] != Lander::LoadingMachine {
        return None;
    }
    taker.loaded[MACHINE] = slots[taker.handoff.epoch().slot()][MACHINE];
    taker.landers[vcpu] = Lander::Committing;
    Some(())
}
