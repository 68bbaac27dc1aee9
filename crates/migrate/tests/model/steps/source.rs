//! The steps of the guest's owner: offer, save, publish, take back.

use crate::world::{Content, MACHINE, Owner, PARTS, Plan, Vcpu, Worker, World, slot_of, vcpus};
use crate::{Handoffs, Rule};
use nil_migrate::protocol::{Arrival, Event, Handoff, SourceTurn, Tally, source_turn, step};
use nil_pool::Epoch;

impl Handoffs {
    pub(super) fn offer(&self, world: &mut World, host: usize) -> Option<()> {
        let target = slot_of(1 - host);
        let arm = world.arm;
        let owner = world.owner_mut(host)?;
        let handoff = Handoff::new(slot_of(host), target, owner.epoch).ok()?;
        if owner.plan != Plan::None || arm != handoff.armed() {
            return None;
        }
        owner.plan = Plan::AwaitingPoise(handoff);
        if self.rule != Rule::LeaveOldState {
            world.slots[handoff.epoch().slot()] = [Content::Torn; PARTS];
        }
        world.swap(handoff.owned(), handoff.offered()).then_some(())
    }

    pub(super) fn look(&self, world: &mut World, host: usize, expired: bool) -> Option<()> {
        if expired && self.rule == Rule::NeverGiveUp {
            return None;
        }
        let (word, arm) = (world.word, world.arm);
        let owner = world.owner_mut(host)?;
        if owner.intent.is_some() {
            return None;
        }
        match owner.plan {
            Plan::None => None,
            Plan::AwaitingPoise(handoff) if arm == handoff.poised() => {
                owner.plan = Plan::Settling(handoff);
                owner.tally = Tally::open(handoff.epoch(), vcpus());
                world.freezes += 1;
                Some(())
            }
            Plan::AwaitingPoise(handoff) => {
                owner.intent = (expired || arm == handoff.refused()).then_some(Event::Withdraw);
                owner.intent.map(|_| ())
            }
            Plan::Settling(handoff) => {
                let failed = owner.tally.round == handoff.epoch() && owner.tally.failed;
                match source_turn(&handoff, word, arm, failed || expired) {
                    SourceTurn::Wait => return None,
                    SourceTurn::Withdraw => owner.intent = Some(Event::Withdraw),
                    SourceTurn::Cancel => owner.intent = Some(Event::Cancel),
                    SourceTurn::Released => world.hosts[host].worker = Worker::None,
                    SourceTurn::Displaced => world.sins.displaced = true,
                }
                Some(())
            }
        }
    }

    pub(super) fn swap(&self, world: &mut World, host: usize) -> Option<()> {
        let owner = world.owner_mut(host)?;
        let intent = owner.intent.take()?;
        let (Plan::AwaitingPoise(handoff) | Plan::Settling(handoff)) = owner.plan else { return None };
        let from = if intent == Event::Withdraw { handoff.offered() } else { handoff.frozen() };
        let mut kept = step(from, slot_of(host), intent).expect("the coordinator decides on legal events");
        if self.rule == Rule::KeepTheEpoch {
            kept = handoff.owned();
        }
        let unconditional = self.rule == Rule::CancelWithoutComparing && intent == Event::Cancel;
        if unconditional {
            world.word = kept;
        } else if !world.swap(from, kept) {
            return Some(());
        }
        world.deeds.cancelled |= intent == Event::Cancel;
        let owner = world.owner_mut(host)?;
        owner.epoch = if kept == handoff.kept() { handoff.next_epoch() } else { handoff.epoch() };
        owner.plan = Plan::None;
        owner.tally = Tally::closed(handoff.epoch());
        owner.settled = handoff.epoch();
        Some(())
    }

    pub(super) fn save(&self, world: &mut World, host: usize, vcpu: usize, well: bool) -> Option<()> {
        let of = world.freezes;
        let owner = world.owner_mut(host)?;
        let Vcpu::Saving(handoff) = owner.vcpus[vcpu] else { return None };
        let round = handoff.epoch();
        let (tally, mut arrival) = owner.tally.arrive(round, well);
        owner.tally = tally;
        if self.rule == Rule::PublishEarly && arrival == Arrival::Early && well {
            arrival = Arrival::LastOfAll;
        }
        owner.vcpus[vcpu] = match arrival {
            Arrival::LastOfAll => Vcpu::SavingMachine(handoff),
            Arrival::Early | Arrival::LastWithFailure | Arrival::TooLate => Vcpu::Parked(handoff),
        };
        if well {
            world.slots[round.slot()][vcpu] = Content::Whole { epoch: round, of };
        }
        if arrival == Arrival::LastOfAll {
            world.slots[round.slot()][MACHINE] = Content::Torn;
        }
        Some(())
    }

    pub(super) fn resume(&self, world: &mut World, host: usize, vcpu: usize) -> Option<()> {
        let owner = world.owner_mut(host)?;
        let Vcpu::Parked(handoff) = owner.vcpus[vcpu] else { return None };
        let told = owner.settled >= handoff.epoch();
        if !told && self.rule != Rule::RunOnUnasked {
            return None;
        }
        owner.vcpus[vcpu] = Vcpu::Running;
        Some(())
    }
}

pub(super) fn stop(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let owner = world.owner_mut(host)?;
    let (Plan::Settling(handoff), Vcpu::Running) = (owner.plan, owner.vcpus[vcpu]) else { return None };
    if !owner.tally.is_open() || owner.tally.round != handoff.epoch() {
        return None;
    }
    owner.vcpus[vcpu] = Vcpu::Saving(handoff);
    world.slots[handoff.epoch().slot()][vcpu] = Content::Torn;
    Some(())
}

pub(super) fn save_machine(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let of = world.freezes;
    let owner = world.owner_mut(host)?;
    let Vcpu::SavingMachine(handoff) = owner.vcpus[vcpu] else { return None };
    owner.vcpus[vcpu] = Vcpu::Publishing(handoff);
    world.slots[handoff.epoch().slot()][MACHINE] = Content::Whole { epoch: handoff.epoch(), of };
    Some(())
}

pub(super) fn publish(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let owner = world.owner_mut(host)?;
    let Vcpu::Publishing(handoff) = owner.vcpus[vcpu] else { return None };
    owner.vcpus[vcpu] = Vcpu::Parked(handoff);
    let frozen = step(handoff.offered(), slot_of(host), Event::Freeze).expect("a source may freeze what it offered");
    world.swap(handoff.offered(), frozen);
    Some(())
}

/// The slot that a vCPU thread of this worker is writing to, if it is.
pub(crate) fn writes_to(owner: &Owner) -> impl Iterator<Item = Epoch> {
    owner.vcpus.iter().filter_map(|vcpu| match vcpu {
        Vcpu::Saving(handoff) | Vcpu::SavingMachine(handoff) => Some(handoff.epoch()),
        Vcpu::Running | Vcpu::Publishing(_) | Vcpu::Parked(_) => None,
    })
}
