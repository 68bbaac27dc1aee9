//! What may happen next, and what comes of it.

mod device;
mod handoff;
mod mover;

use crate::Moves;
use crate::world::{CHUNKS, Handoff, MOVERS, Owner, Side, World};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Action {
    /// The guest stores into a chunk.
    Store(usize),
    /// A move does its next step: it takes its turn and a chunk, or goes on with one, or ends.
    Move(usize),
    /// Somebody pulls the first granule back.
    PullBack,
    /// They let go of it.
    LetGo,
    /// The decoupling is called off.
    Cancel,
    /// A handoff begins: nothing moves any more.
    Close,
    Freeze,
    /// The target makes the guest its own.
    Claim,
    /// The handoff is taken back.
    Withdraw,
    /// A device's pin is written down.
    Pin,
    Hold,
    DeviceStore,
    Unpin,
    /// The source's worker dies.
    Crash,
}

/// All that may ever happen.
pub(crate) fn all() -> impl Iterator<Item = Action> {
    let alone = [
        Action::PullBack,
        Action::LetGo,
        Action::Cancel,
        Action::Close,
        Action::Freeze,
        Action::Claim,
        Action::Withdraw,
        Action::Pin,
        Action::Hold,
        Action::DeviceStore,
        Action::Unpin,
        Action::Crash,
    ];
    (0..CHUNKS).map(Action::Store).chain((0..MOVERS).map(Action::Move)).chain(alone)
}

impl Moves {
    /// Takes one step, if it can be taken.
    pub(crate) fn take(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Store(chunk) => store(&mut next, chunk),
            Action::Move(mover) => self.advance(&mut next, mover),
            Action::PullBack => mover::pull_back(&mut next),
            Action::LetGo => mover::let_go(&mut next),
            Action::Cancel => mover::cancel(&mut next),
            Action::Close => self.close(&mut next),
            Action::Freeze => handoff::freeze(&mut next),
            Action::Claim => handoff::claim(&mut next),
            Action::Withdraw => handoff::withdraw(&mut next),
            Action::Pin => device::pin(&mut next),
            Action::Hold => device::hold(&mut next),
            Action::DeviceStore => device::store(&mut next),
            Action::Unpin => device::unpin(&mut next),
            Action::Crash => crash(&mut next),
        }?;
        Some(next)
    }
}

fn spend(budget: &mut u8) -> Option<()> {
    *budget = budget.checked_sub(1)?;
    Some(())
}

fn when(condition: bool) -> Option<()> {
    condition.then_some(())
}

/// A store reaches what is mapped; into a protected chunk it waits, which is as if it came later.
fn store(world: &mut World, chunk: usize) -> Option<()> {
    when(!world.is_dead() && (world.owner == Owner::Target || world.handoff != Handoff::Frozen))?;
    spend(&mut world.budget.stores)?;
    world.stores += 1;
    let chunk = &mut world.chunks[chunk];
    when(!chunk.protected)?;
    chunk.last = world.stores;
    match chunk.mapped {
        Side::Dram => chunk.dram = world.stores,
        Side::Pool => chunk.pool = world.stores,
    }
    world.deeds.stored_at_the_target |= world.owner == Owner::Target;
    Some(())
}

fn crash(world: &mut World) -> Option<()> {
    when(world.source_lives && world.owner == Owner::Source)?;
    spend(&mut world.budget.crashes)?;
    world.source_lives = false;
    world.deeds.source_died = true;
    Some(())
}
