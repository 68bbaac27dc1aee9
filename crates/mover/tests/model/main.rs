//! A move, checked exhaustively: a guest of two granules of two chunks each, a move that decouples it, a person who pulls
//! the first granule back and lets go of it later, a handoff at any instant, and the death of the worker between any two
//! steps; and the guest stores into every chunk at every instant.
//!
//! The steps of a chunk are those of the mover (`crates/mover/src/chunk.rs`) and of the placement map
//! (`crates/pool/src/placement.rs`), in their order. Every step is an instant: whatever is done to the memory of a chunk
//! is done while no store reaches it, so that no part of a step is ever seen.
//!
//! A checker that finds nothing may be blind. So each rule is also broken on purpose ([`Rule`]), and the checker has to
//! find out.

mod steps;
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use steps::Action;
use world::{Budget, CHUNKS, Handoff, Mover, Owner, Side, Word, World};

/// Which rule is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// None: the mover as it is.
    Kept,
    /// Stores are not kept out of a chunk that is copied.
    SkipProtection,
    /// Pins are looked at before stores are kept out, and not afterwards.
    LookTooEarly,
    /// Stores are let in again before the copy has taken the chunk's place.
    LiftBeforePlace,
    /// A granule is written down as having arrived before it has been copied.
    WordBeforeCopy,
    /// A granule is mapped outside the pool before it is written down as having left it.
    PlaceBeforeWord,
    /// A granule is taken from the count of those away before it is written down as having arrived.
    CountDownEarly,
    /// A granule is added to the count of those away after it is written down as having left.
    CountUpLate,
    /// A handoff looks at the count without taking the turn.
    CloseWithoutTurn,
    /// A handoff does not look at the count.
    CloseUnseen,
}

struct Moves {
    rule: Rule,
    budget: Budget,
}

const NO_STORE_LOST: &str = "the guest reads what it stored last";
const POOLED_IS_IN_THE_POOL: &str =
    "of a granule that is written down as pooled, the pool has all that was stored last";
const COUNT_NOT_TOO_LOW: &str = "no granule is away that is not counted";
const WHOLE_AT_THE_TARGET: &str = "at the target, all of the guest is in the pool, and stays there";
const SETTLED: &str = "every move ends, and leaves nothing protected and nobody's turn";

impl Model for Moves {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::booted(self.budget)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(steps::all().filter(|&action| self.take(world, action).is_some()));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.take(world, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_STORE_LOST, |_, world: &World| world.is_dead() || reads_what_it_stored(world)),
            Property::always(POOLED_IS_IN_THE_POOL, |_, world: &World| pooled_is_in_the_pool(world)),
            Property::always(COUNT_NOT_TOO_LOW, |_, world: &World| world.away >= world.not_pooled()),
            Property::always(WHOLE_AT_THE_TARGET, |_, world: &World| {
                world.owner != Owner::Target || world.not_pooled() == 0 && pooled_is_in_the_pool(world)
            }),
            Property::always(SETTLED, |model: &Self, world: &World| !model.is_quiet(world) || is_settled(world)),
            Property::sometimes("a guest is handed off and stores at the target", |_, world: &World| {
                world.deeds.stored_at_the_target
            }),
            Property::sometimes("a handoff is refused because of a hole", |_, world: &World| world.deeds.refused),
            Property::sometimes("a handoff is taken back and the move goes on", |_, world: &World| {
                world.handoff == Handoff::None && world.deeds.withdrawn && world.movers[1] == Mover::Ended
            }),
            Property::sometimes("a granule is pulled back and returns", |_, world: &World| {
                world.movers[1] == Mover::Ended && world.movers[0] == Mover::Ended && world.away == 0
            }),
            Property::sometimes("a move is called off halfway", |_, world: &World| {
                world.is_cancelled && world.movers[0] == Mover::Ended && world.words.contains(&Word::Mixed)
            }),
            Property::sometimes("a device stores into the pool while a move goes on", |_, world: &World| {
                world.deeds.device_stored && matches!(world.movers[0], Mover::At { .. })
            }),
            Property::sometimes(
                "a pin is seen only under protection, and the move ends all the same",
                |_, world: &World| world.deeds.pin_seen_late && world.movers[0] == Mover::Ended && world.away == 0,
            ),
            Property::sometimes("a worker dies and leaves a pooled granule beside a mixed one", |_, world: &World| {
                world.is_dead() && world.words == [Word::Pooled, Word::Mixed]
            }),
            Property::sometimes("a worker dies frozen, and the target takes over", |_, world: &World| {
                world.owner == Owner::Target && world.deeds.source_died
            }),
        ]
    }
}

impl Moves {
    fn is_quiet(&self, world: &World) -> bool {
        steps::all().all(|action| self.take(world, action).is_none())
    }
}

fn reads_what_it_stored(world: &World) -> bool {
    world.chunks.iter().all(|chunk| match chunk.mapped {
        Side::Dram => chunk.dram == chunk.last,
        Side::Pool => chunk.pool == chunk.last,
    })
}

fn pooled_is_in_the_pool(world: &World) -> bool {
    (0..CHUNKS)
        .all(|chunk| world.word_of(chunk) != Word::Pooled || world.chunks[chunk].pool == world.chunks[chunk].last)
}

/// Whether everything is in order when nothing more happens.
fn is_settled(world: &World) -> bool {
    let is_at_rest = world.turn.is_none() && world.chunks.iter().all(|chunk| !chunk.protected);
    let is_over = world.movers.iter().all(|mover| matches!(mover, Mover::Ended | Mover::NotBegun));
    world.is_dead() || world.owner == Owner::Target || is_at_rest && is_over && world.handoff == Handoff::None
}

/// Searches everything (or until what is looked for is found), prints how much that was, and returns the checker.
fn search(rule: Rule, budget: Budget, until: HasDiscoveries) -> impl Checker<Moves> {
    let checker = Moves { rule, budget }.checker().threads(2).finish_when(until).spawn_bfs().join();
    println!("{rule:?}, {budget:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker
}

fn assert_found(rule: Rule, property: &'static str) {
    let checker = search(rule, SMALL, HasDiscoveries::AnyOf([property].into()));
    assert!(checker.discovery(property).is_some(), "{rule:?} breaks \"{property}\", and the checker does not see it");
}

const SMALL: Budget = Budget { stores: 1, pins: 1, pullbacks: 1, handoffs: 1, cancels: 0, crashes: 1 };

#[test]
fn the_model_of_a_move_holds() {
    let budget = Budget { stores: 2, pins: 1, pullbacks: 1, handoffs: 1, cancels: 1, crashes: 1 };
    search(Rule::Kept, budget, HasDiscoveries::All).assert_properties();
}

#[test]
fn the_model_of_a_move_with_several_handoffs_holds() {
    let budget = Budget { stores: 2, pins: 0, pullbacks: 1, handoffs: 2, cancels: 1, crashes: 1 };
    let checker = search(Rule::Kept, budget, HasDiscoveries::All);
    for property in [NO_STORE_LOST, POOLED_IS_IN_THE_POOL, COUNT_NOT_TOO_LOW, WHOLE_AT_THE_TARGET, SETTLED] {
        checker.assert_no_discovery(property);
    }
}

#[test]
fn the_model_finds_a_chunk_that_is_copied_without_protection() {
    assert_found(Rule::SkipProtection, NO_STORE_LOST);
}

#[test]
fn the_model_finds_a_pin_that_is_overlooked() {
    assert_found(Rule::LookTooEarly, NO_STORE_LOST);
}

#[test]
fn the_model_finds_protection_that_is_lifted_before_the_copy_is_in_place() {
    assert_found(Rule::LiftBeforePlace, NO_STORE_LOST);
}

#[test]
fn the_model_finds_a_word_that_is_written_before_the_copy() {
    assert_found(Rule::WordBeforeCopy, POOLED_IS_IN_THE_POOL);
}

#[test]
fn the_model_finds_memory_that_leaves_the_pool_before_its_word_says_so() {
    assert_found(Rule::PlaceBeforeWord, POOLED_IS_IN_THE_POOL);
}

#[test]
fn the_model_finds_a_granule_that_is_counted_too_early_as_having_arrived() {
    assert_found(Rule::CountDownEarly, COUNT_NOT_TOO_LOW);
}

#[test]
fn the_model_finds_a_granule_that_is_counted_too_late_as_having_left() {
    assert_found(Rule::CountUpLate, COUNT_NOT_TOO_LOW);
}

#[test]
fn the_model_finds_a_handoff_that_does_not_take_the_turn() {
    assert_found(Rule::CloseWithoutTurn, WHOLE_AT_THE_TARGET);
}

#[test]
fn the_model_finds_a_handoff_that_does_not_look_for_holes() {
    assert_found(Rule::CloseUnseen, WHOLE_AT_THE_TARGET);
}
