//! A device that stores into memory by itself, to pages that it has taken hold of, wherever the guest's memory goes.

use super::{spend, when};
use crate::world::{DEVICE_CHUNK, Device, Handoff, Owner, Side, World};

/// The pin is written down.
pub(super) fn pin(world: &mut World) -> Option<()> {
    when(runs(world) && world.device == Device::Idle)?;
    spend(&mut world.budget.pins)?;
    world.device = Device::Declared;
    Some(())
}

/// The device takes hold of the pages that are mapped, for writing: so it waits for a protected chunk as a store does.
pub(super) fn hold(world: &mut World) -> Option<()> {
    let chunk = world.chunks[DEVICE_CHUNK];
    when(runs(world) && world.device == Device::Declared && !chunk.protected)?;
    world.device = Device::Holds(chunk.mapped);
    Some(())
}

/// The device stores; no protection keeps it out.
pub(super) fn store(world: &mut World) -> Option<()> {
    let Device::Holds(side) = world.device else { return None };
    when(runs(world))?;
    spend(&mut world.budget.stores)?;
    world.stores += 1;
    let chunk = &mut world.chunks[DEVICE_CHUNK];
    chunk.last = world.stores;
    match side {
        Side::Dram => chunk.dram = world.stores,
        Side::Pool => chunk.pool = world.stores,
    }
    world.deeds.device_stored |= side == Side::Pool;
    Some(())
}

pub(super) fn unpin(world: &mut World) -> Option<()> {
    when(runs(world) && world.device != Device::Idle)?;
    world.device = Device::Idle;
    Some(())
}

/// At the source only: how pins travel is the handoff's business.
fn runs(world: &World) -> bool {
    world.source_lives && world.owner == Owner::Source && world.handoff != Handoff::Frozen
}
