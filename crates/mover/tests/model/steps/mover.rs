//! The moves: the steps of a chunk, one at a time.

use super::{spend, when};
use crate::world::{CHUNKS, CHUNKS_PER_GRANULE, DEVICE_CHUNK, Device, Mover, PULLED_BACK, Side, Turn, Word, World};
use crate::{Moves, Rule};
use std::ops::Range;

/// A step of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Protect,
    /// Pins are looked at: a pinned chunk stays.
    Look,
    Copy,
    /// One more granule is away, if this chunk is the first of its granule to leave.
    CountUp,
    Word,
    /// One less is, if this chunk is the last of its granule to arrive.
    CountDown,
    /// What is mapped from now on is not protected.
    Place,
    Lift,
    /// The turn is given back.
    End,
}

impl Moves {
    /// The steps of a chunk on its way to a side, in their order.
    fn steps(&self, to: Side) -> &'static [Step] {
        use Step::{Copy, CountDown, CountUp, End, Lift, Look, Place, Protect, Word};
        match (to, self.rule) {
            (Side::Pool, Rule::SkipProtection) => &[Look, Copy, Place, Word, CountDown, Lift, End],
            (Side::Pool, Rule::LookTooEarly) => &[Look, Protect, Copy, Place, Word, CountDown, Lift, End],
            (Side::Pool, Rule::LiftBeforePlace) => &[Protect, Look, Copy, Lift, Place, Word, CountDown, End],
            (Side::Pool, Rule::WordBeforeCopy) => &[Protect, Look, Word, CountDown, Copy, Place, Lift, End],
            (Side::Pool, Rule::CountDownEarly) => &[Protect, Look, Copy, Place, CountDown, Word, Lift, End],
            (Side::Pool, _) => &[Protect, Look, Copy, Place, Word, CountDown, Lift, End],
            (Side::Dram, Rule::PlaceBeforeWord) => &[Protect, Look, Copy, Place, CountUp, Word, Lift, End],
            (Side::Dram, Rule::CountUpLate) => &[Protect, Look, Copy, Word, CountUp, Place, Lift, End],
            (Side::Dram, _) => &[Protect, Look, Copy, CountUp, Word, Place, Lift, End],
        }
    }

    /// A move takes its next step.
    pub(super) fn advance(&self, world: &mut World, mover: usize) -> Option<()> {
        when(world.source_lives)?;
        match world.movers[mover] {
            Mover::NotBegun | Mover::Ended => None,
            Mover::Between => begin_chunk(world, mover),
            Mover::At { chunk, done } => {
                let step = self.steps(side_of(mover))[done];
                if step == Step::Look && is_pinned(world, chunk) {
                    leave(world, mover, chunk);
                    return Some(());
                }
                take_step(world, step, chunk, side_of(mover));
                world.movers[mover] = Mover::At { chunk, done: done + 1 };
                if step == Step::End {
                    world.movers[mover] = Mover::Between;
                    world.turn = None;
                }
                Some(())
            }
        }
    }
}

/// The chunk stays where it is, and the turn goes to whoever is next.
fn leave(world: &mut World, mover: usize, chunk: usize) {
    world.chunks[chunk].protected = false;
    world.movers[mover] = Mover::Between;
    world.turn = None;
    world.deeds.pin_seen_late = true;
}

fn is_pinned(world: &World, chunk: usize) -> bool {
    world.device != Device::Idle && of_granule(DEVICE_CHUNK / CHUNKS_PER_GRANULE).contains(&chunk)
}

fn side_of(mover: usize) -> Side {
    if mover == 0 { Side::Pool } else { Side::Dram }
}

fn chunks_of(mover: usize) -> Range<usize> {
    if mover == 0 { 0..CHUNKS } else { of_granule(PULLED_BACK) }
}

fn of_granule(granule: usize) -> Range<usize> {
    granule * CHUNKS_PER_GRANULE..(granule + 1) * CHUNKS_PER_GRANULE
}

/// Takes the turn and the next chunk that can move; without one, the move ends, or stalls.
fn begin_chunk(world: &mut World, mover: usize) -> Option<()> {
    if mover == 0 && world.is_cancelled {
        world.movers[mover] = Mover::Ended;
        return Some(());
    }
    when(world.turn.is_none())?;
    let is_held = |chunk: usize| mover == 0 && world.is_held && of_granule(PULLED_BACK).contains(&chunk);
    let must_stay = |chunk: &usize| is_held(*chunk) || is_pinned(world, *chunk);
    let mut left = chunks_of(mover).filter(|&chunk| world.chunks[chunk].mapped != side_of(mover));
    if left.clone().next().is_none() {
        world.movers[mover] = Mover::Ended;
        return Some(());
    }
    let chunk = left.find(|chunk| !must_stay(chunk))?;
    world.turn = Some(Turn::Mover(mover));
    world.movers[mover] = Mover::At { chunk, done: 0 };
    Some(())
}

fn take_step(world: &mut World, step: Step, index: usize, to: Side) {
    let granule = index / CHUNKS_PER_GRANULE;
    let after = word_after(world, index, to);
    // A granule leaves with the first of its chunks: all others are still in the pool.
    let is_first_to_leave = others(world, index).all(|side| side == Side::Pool);
    let chunk = &mut world.chunks[index];
    match step {
        Step::Protect => chunk.protected = true,
        Step::Copy => match to {
            Side::Pool => chunk.pool = chunk.dram,
            Side::Dram => chunk.dram = chunk.pool,
        },
        Step::CountUp if is_first_to_leave => world.away += 1,
        Step::CountDown if after == Word::Pooled => world.away -= 1,
        Step::CountUp | Step::CountDown => {}
        Step::Word => world.words[granule] = after,
        Step::Place => (chunk.mapped, chunk.protected) = (to, false),
        Step::Lift => chunk.protected = false,
        Step::Look | Step::End => {}
    }
}

/// Where the other chunks of a chunk's granule are.
fn others(world: &World, index: usize) -> impl Iterator<Item = Side> {
    let granule = of_granule(index / CHUNKS_PER_GRANULE);
    granule.filter(move |&chunk| chunk != index).map(|chunk| world.chunks[chunk].mapped)
}

/// What the word is to be when this chunk has come to that side.
fn word_after(world: &World, index: usize, to: Side) -> Word {
    match (others(world, index).all(|side| side == to), to) {
        (true, Side::Pool) => Word::Pooled,
        (true, Side::Dram) => Word::Local,
        (false, _) => Word::Mixed,
    }
}

pub(super) fn pull_back(world: &mut World) -> Option<()> {
    when(world.source_lives && world.movers[1] == Mover::NotBegun)?;
    spend(&mut world.budget.pullbacks)?;
    world.is_held = true;
    world.movers[1] = Mover::Between;
    Some(())
}

pub(super) fn let_go(world: &mut World) -> Option<()> {
    when(world.source_lives && world.is_held && world.movers[1] == Mover::Ended)?;
    world.is_held = false;
    // Who decoupled the guest sees that some of it has come back, or is told to begin again.
    if !world.is_cancelled {
        world.movers[0] = if world.movers[0] == Mover::Ended { Mover::Between } else { world.movers[0] };
    }
    Some(())
}

pub(super) fn cancel(world: &mut World) -> Option<()> {
    when(world.source_lives && !world.is_cancelled && world.movers[0] != Mover::Ended)?;
    spend(&mut world.budget.cancels)?;
    world.is_cancelled = true;
    Some(())
}
