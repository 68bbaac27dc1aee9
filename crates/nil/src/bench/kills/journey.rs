//! What a round disturbs, and how far that has come by the guest's words in the pool.
//!
//! ```text
//! decouple    Begun · Placed · Leaving · Pooled
//! handoff                                       Arming · Armed · Offered · Poised · Frozen · Over
//! recouple                                                                                        Returning · Home · Cleared
//! ```
//!
//! A migration out of DRAM goes through all of them, one of a guest in the pool through the middle ones alone.

use super::trail::{Spread, Words};
use crate::lab::Side;
use nil_host::MemoryIn;
use nil_mover::Direction;
use nil_pool::{Arm, Epoch, HostSlot, Ownership};
use serde::Serialize;
use std::fmt;

/// What is done with the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Errand {
    /// It goes to the other host, and so does its memory if that is in DRAM.
    Migration,
    /// Its memory goes into the pool.
    Decouple,
    /// Its memory goes into DRAM.
    Recouple,
}

/// A step that can be seen from outside, in the order in which they come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Step {
    /// Ordered.
    Begun,
    /// There is room in the pool.
    Placed,
    /// Some of the memory is on its way to the pool, or there.
    Leaving,
    /// All of it is there.
    Pooled,
    Arming,
    Armed,
    Offered,
    Poised,
    Frozen,
    /// Claimed by the target, or taken back by the source.
    Over,
    /// Some of the memory is on its way to DRAM, or there.
    Returning,
    /// All of it is there.
    Home,
    /// And its room in the pool is free again.
    Cleared,
}

/// What an instant falls into, as the words tell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Nothing that can be seen is under way.
    Idle,
    Decoupling,
    Handoff,
    Recoupling,
}

/// What is done in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Journey {
    pub(super) errand: Errand,
    /// Where the memory lies before.
    pub(super) memory_in: MemoryIn,
    pub(super) from: Side,
    /// The host that runs the guest before.
    pub(super) source: HostSlot,
    /// The other one, to which it goes if it goes anywhere.
    pub(super) target: HostSlot,
    /// The epoch at which the source owns the guest.
    pub(super) epoch: Epoch,
}

impl Errand {
    /// Which way it moves memory, if that is all it does.
    pub(super) fn direction(self) -> Option<Direction> {
        match self {
            Self::Migration => None,
            Self::Decouple => Some(Direction::Decouple),
            Self::Recouple => Some(Direction::Recouple),
        }
    }
}

impl Journey {
    /// The epoch after the handoff.
    pub(super) fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch.0.saturating_add(1))
    }

    /// How far it has come.
    pub(super) fn step(&self, words: &Words) -> Step {
        match (self.errand, self.memory_in) {
            (Errand::Decouple, _) => leaving(words),
            (Errand::Recouple, _) => returning(words).unwrap_or(Step::Begun),
            (Errand::Migration, MemoryIn::Pool) => self.handing_over(words),
            (Errand::Migration, MemoryIn::Dram) => match self.handing_over(words) {
                Step::Begun => leaving(words),
                Step::Over => returning(words).unwrap_or(Step::Over),
                step => step,
            },
        }
    }

    /// How far the handoff has come.
    fn handing_over(&self, words: &Words) -> Step {
        let here = |host, epoch| host == self.target && epoch == self.epoch;
        match (words.ownership, words.arm) {
            (Ownership::Owned { epoch, .. }, Arm::Arming { host, epoch: of })
                if epoch == self.epoch && here(host, of) =>
            {
                Step::Arming
            }
            (
                Ownership::Owned { epoch, .. },
                Arm::Armed { host, epoch: of } | Arm::Poised { host, epoch: of } | Arm::Refused { host, epoch: of },
            ) if epoch == self.epoch && here(host, of) => Step::Armed,
            (Ownership::Owned { epoch, .. }, _) if epoch == self.epoch => Step::Begun,
            (Ownership::Offered { .. }, Arm::Poised { host, epoch }) if here(host, epoch) => Step::Poised,
            (Ownership::Offered { .. }, _) => Step::Offered,
            (Ownership::Frozen { .. }, _) => Step::Frozen,
            (Ownership::Owned { .. } | Ownership::Lost { .. } | Ownership::Taken { .. } | Ownership::Vacant, _) => {
                Step::Over
            }
        }
    }

    /// What an instant falls into.
    pub(super) fn phase(&self, words: &Words) -> Phase {
        let handing_over = self.handing_over(words);
        match (self.errand, handing_over, words.spread()) {
            (Errand::Migration, step, _) if (Step::Arming..=Step::Frozen).contains(&step) => Phase::Handoff,
            (_, _, Spread::Pool) => Phase::Idle,
            (_, _, Spread::Dram) if !words.has_capacity => Phase::Idle,
            (Errand::Decouple, ..) | (Errand::Migration, Step::Begun, _) => Phase::Decoupling,
            (Errand::Recouple | Errand::Migration, ..) => Phase::Recoupling,
        }
    }
}

fn leaving(words: &Words) -> Step {
    match words.spread() {
        Spread::Dram if !words.has_capacity => Step::Begun,
        Spread::Dram => Step::Placed,
        Spread::Both => Step::Leaving,
        Spread::Pool => Step::Pooled,
    }
}

fn returning(words: &Words) -> Option<Step> {
    match words.spread() {
        Spread::Pool => None,
        Spread::Both => Some(Step::Returning),
        Spread::Dram if words.has_capacity => Some(Step::Home),
        Spread::Dram => Some(Step::Cleared),
    }
}

impl fmt::Display for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Migration => "migration",
            Self::Decouple => "decouple",
            Self::Recouple => "recouple",
        })
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Decoupling => "decoupling",
            Self::Handoff => "handoff",
            Self::Recoupling => "recoupling",
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use nil_pool::PlacementSummary;

    pub(in super::super) fn journey() -> Journey {
        let slot = |index| HostSlot::new(index).expect("a small slot");
        let (errand, memory_in) = (Errand::Migration, MemoryIn::Dram);
        Journey { errand, memory_in, from: Side::A, source: slot(1), target: slot(2), epoch: Epoch(5) }
    }

    fn words(ownership: Ownership, arm: Arm, [local, mixed, pooled]: [u64; 3], has_capacity: bool) -> Words {
        Words { ownership, arm, places: PlacementSummary { local, mixed, pooled, damaged: 0 }, has_capacity }
    }

    /// What the words of a migration out of DRAM say, one after the other.
    fn migration() -> Vec<Words> {
        let Journey { source, target, epoch, .. } = journey();
        let owned = Ownership::Owned { host: source, epoch };
        let offered = Ownership::Offered { source, target, epoch };
        let claimed = Ownership::Owned { host: target, epoch: journey().next_epoch() };
        let poised = Arm::Poised { host: target, epoch };
        vec![
            words(owned, Arm::Idle, [4, 0, 0], false),
            words(owned, Arm::Idle, [4, 0, 0], true),
            words(owned, Arm::Idle, [2, 1, 1], true),
            words(owned, Arm::Idle, [0, 0, 4], true),
            words(owned, Arm::Arming { host: target, epoch }, [0, 0, 4], true),
            words(owned, Arm::Armed { host: target, epoch }, [0, 0, 4], true),
            words(offered, Arm::Armed { host: target, epoch }, [0, 0, 4], true),
            words(offered, poised, [0, 0, 4], true),
            words(Ownership::Frozen { source, target, epoch }, poised, [0, 0, 4], true),
            words(claimed, poised, [0, 0, 4], true),
            words(claimed, poised, [1, 1, 2], true),
            words(claimed, poised, [4, 0, 0], true),
            words(claimed, poised, [4, 0, 0], false),
        ]
    }

    #[test]
    fn a_migration_out_of_dram_goes_through_every_step() {
        use Step as S;
        let steps: Vec<Step> = migration().iter().map(|words| journey().step(words)).collect();
        let first = [S::Begun, S::Placed, S::Leaving, S::Pooled, S::Arming, S::Armed];
        let second = [S::Offered, S::Poised, S::Frozen, S::Over, S::Returning, S::Home, S::Cleared];
        assert_eq!(steps, [first.as_slice(), &second].concat());
        assert!(steps.is_sorted());
    }

    #[test]
    fn a_migration_of_a_guest_in_the_pool_is_a_handoff_alone() {
        let journey = Journey { memory_in: MemoryIn::Pool, ..journey() };
        let steps: Vec<Step> = migration()[3..=9].iter().map(|words| journey.step(words)).collect();
        assert_eq!((steps[0], steps[6]), (Step::Begun, Step::Over));
        assert!(steps.is_sorted(), "{steps:?}");
    }

    #[test]
    fn a_move_that_stands_alone_ends_where_it_leads() {
        let steps = |errand, words: &[Words]| -> Vec<Step> {
            words.iter().map(|words| Journey { errand, ..journey() }.step(words)).collect()
        };
        let there = migration()[..4].to_vec();
        let back: Vec<Words> = there.iter().rev().copied().collect();
        assert_eq!(steps(Errand::Decouple, &there), [Step::Begun, Step::Placed, Step::Leaving, Step::Pooled]);
        assert_eq!(steps(Errand::Recouple, &back), [Step::Begun, Step::Returning, Step::Home, Step::Cleared]);
    }

    #[test]
    fn every_instant_falls_into_a_phase() {
        use Phase as P;
        let phases: Vec<Phase> = migration().iter().map(|words| journey().phase(words)).collect();
        assert_eq!(phases[..4], [P::Idle, P::Decoupling, P::Decoupling, P::Idle]);
        assert_eq!(phases[4..9], [P::Handoff; 5]);
        assert_eq!(phases[9..], [P::Idle, P::Recoupling, P::Recoupling, P::Idle]);
        let alone = |errand| Journey { errand, ..journey() }.phase(&migration()[2]);
        assert_eq!((alone(Errand::Decouple), alone(Errand::Recouple)), (P::Decoupling, P::Recoupling));
    }

    #[test]
    fn what_an_earlier_target_left_in_the_arm_word_is_no_step() {
        let (journey, mut words) = (journey(), migration()[3]);
        words.arm = Arm::Poised { host: journey.target, epoch: Epoch(4) };
        assert_eq!((journey.step(&words), journey.phase(&words)), (Step::Pooled, Phase::Idle));
    }
}
