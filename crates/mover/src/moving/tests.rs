//! Moves under threads that store into every page as fast as they can.

mod storm;

use super::*;
use crate::plan::Budget;
use storm::{Ground, Storm};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn fast(direction: Direction) -> MovePlan {
    MovePlan { budget: Budget { pace: Pace::Fast, bandwidth: None }, ..MovePlan::of_everything(direction) }
}

fn movement(ground: &Ground, direction: Direction) -> Move {
    Move::new(Arc::clone(&ground.memory), fast(direction), Vec::new()).expect("a move")
}

fn run(movement: &Move) -> MoveReport {
    let report = movement.run(&MoveControl::default(), |_| ()).expect("a move that ends");
    assert_eq!(report.outcome, MoveOutcome::Done);
    report
}

fn both_ways(ground: &Ground, shape: impl Fn(Move) -> Move) {
    for direction in [Direction::Decouple, Direction::Recouple] {
        run(&shape(movement(ground, direction)));
    }
}

#[test]
fn no_store_is_lost_in_a_hundred_round_trips() {
    let ground = Ground::in_dram(64 * MIB);
    let storm = Storm::over(&ground, 2);
    for _ in 0..100 {
        both_ways(&ground, |movement| movement);
    }
    assert_eq!(storm.lost_stores(), 0);
}

#[test]
fn no_store_is_lost_whatever_the_size_of_chunks() {
    let ground = Ground::in_dram(16 * MIB);
    let storm = Storm::over(&ground, 3);
    for bytes in (12..=21).map(|shift| 1 << shift) {
        both_ways(&ground, |movement| movement.in_chunks_of(bytes));
    }
    assert_eq!(storm.lost_stores(), 0);
}

#[test]
fn no_store_is_lost_behind_mprotect() {
    let ground = Ground::in_dram(16 * MIB);
    let storm = Storm::over(&ground, 3);
    for bytes in [2 * MIB, 256 * KIB, 16 * KIB, 2 * MIB] {
        both_ways(&ground, |movement| movement.by_mprotect().in_chunks_of(bytes));
    }
    assert_eq!(storm.lost_stores(), 0);
}

#[test]
fn without_protection_stores_are_lost_and_the_test_sees_it() {
    let ground = Ground::in_dram(64 * MIB);
    let storm = Storm::over(&ground, 2);
    for _ in 0..20 {
        both_ways(&ground, Move::unprotected);
    }
    assert!(storm.lost_stores() > 0, "nothing was lost without any protection");
}
