//! The handoff, as far as memory is concerned: it is closed, the guest stands still, the target claims it.

use super::{spend, when};
use crate::world::{Device, Handoff, Owner, Side, Turn, World};
use crate::{Moves, Rule};

impl Moves {
    /// The source closes the memory, or refuses because of a hole.
    pub(super) fn close(&self, world: &mut World) -> Option<()> {
        when(world.source_lives && world.owner == Owner::Source && world.handoff == Handoff::None)?;
        if self.rule != Rule::CloseWithoutTurn {
            when(world.turn.is_none())?;
        }
        spend(&mut world.budget.handoffs)?;
        if world.away > 0 && self.rule != Rule::CloseUnseen {
            world.deeds.refused = true;
            return Some(());
        }
        world.handoff = Handoff::Closed;
        if self.rule != Rule::CloseWithoutTurn {
            world.turn = Some(Turn::Handoff);
        }
        Some(())
    }
}

/// The guest stands still, and its devices with it.
pub(super) fn freeze(world: &mut World) -> Option<()> {
    when(world.source_lives && world.handoff == Handoff::Closed)?;
    world.handoff = Handoff::Frozen;
    world.device = Device::Idle;
    Some(())
}

/// The target may claim a frozen guest whether its source lives or not. It maps all of it from the pool.
pub(super) fn claim(world: &mut World) -> Option<()> {
    when(world.owner == Owner::Source && world.handoff == Handoff::Frozen)?;
    world.owner = Owner::Target;
    for chunk in &mut world.chunks {
        (chunk.mapped, chunk.protected) = (Side::Pool, false);
    }
    Some(())
}

pub(super) fn withdraw(world: &mut World) -> Option<()> {
    when(world.source_lives && world.owner == Owner::Source && world.handoff != Handoff::None)?;
    world.handoff = Handoff::None;
    if world.turn == Some(Turn::Handoff) {
        world.turn = None;
    }
    world.deeds.withdrawn = true;
    Some(())
}
