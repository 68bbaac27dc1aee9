//! What a round kills, and when.

use super::dice::Dice;
use crate::lab::Side;
use nil_pool::{Arm, Epoch, HostSlot, Ownership};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// How long after a step of the protocol a kill comes at most.
const CLOSE: u64 = 300;
/// How much longer than an undisturbed migration the kill may wait, in percent.
const OVERRUN: u64 = 110;
/// How long a killed agent stays away at most, in milliseconds.
const AWAY: u64 = 300;
/// How long a target is made to stand still at most, in milliseconds: longer than its source waits for its claim, and
/// longer than an agent waits for it when its source has died.
const STALL: u64 = 2_500;

/// Of a hundred kills close to the freeze, how many find a target that stands still.
const STALLED: u64 = 50;

/// Who is killed, seen from the migration that is under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Victim {
    SourceWorker,
    TargetWorker,
    BothWorkers,
    SourceAgent,
    TargetAgent,
    /// The agent and the worker of the source.
    SourceHost,
    /// The agent and the worker of the target.
    TargetHost,
}

/// A step of the handoff that can be seen from outside, in the order in which they come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Step {
    Begun,
    Arming,
    Armed,
    Offered,
    Poised,
    Frozen,
    /// Claimed by the target, or taken back by the source.
    Over,
}

/// When the kill comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Moment {
    /// That long after the order to migrate.
    After(Duration),
    /// That long after a step was seen.
    Close { step: Step, delay: Duration },
}

/// The migration of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Journey {
    pub(super) from: Side,
    pub(super) source: HostSlot,
    pub(super) target: HostSlot,
    /// The epoch at which the source owns the guest.
    pub(super) epoch: Epoch,
}

/// What chance has decided for a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) victim: Victim,
    pub(super) moment: Moment,
    /// How long a killed agent stays away.
    pub(super) away: Duration,
    /// The target's worker is stopped (SIGSTOP) as soon as the guest is offered to it, for this long. Else the guest is
    /// frozen for microseconds only, and a kill hardly ever finds it so.
    pub(super) stall: Option<Duration>,
}

impl Plan {
    /// Draws a plan; `typical` is how long a migration takes when nobody is killed.
    pub(super) fn draw(dice: &mut Dice, typical: Duration) -> Self {
        let victim = dice.pick([
            (35, Victim::SourceWorker),
            (35, Victim::TargetWorker),
            (10, Victim::BothWorkers),
            (6, Victim::SourceAgent),
            (6, Victim::TargetAgent),
            (4, Victim::SourceHost),
            (4, Victim::TargetHost),
        ]);
        let typical = u64::try_from(typical.as_micros()).unwrap_or(u64::MAX / OVERRUN);
        let anywhere = Moment::After(Duration::from_micros(dice.below(typical * OVERRUN / 100)));
        let delay = Duration::from_micros(dice.below(CLOSE + 1));
        let close = |step| Moment::Close { step, delay };
        let moment = dice.pick([
            (30, anywhere),
            (5, close(Step::Arming)),
            (10, close(Step::Armed)),
            (20, close(Step::Offered)),
            (10, close(Step::Poised)),
            (18, close(Step::Frozen)),
            (7, close(Step::Over)),
        ]);
        let away = Duration::from_millis(dice.below(AWAY));
        let stall =
            dice.pick([(STALLED, true), (100 - STALLED, false)]).then(|| Duration::from_millis(dice.below(STALL)));
        Self { victim, moment, away, stall: stall.filter(|_| moment.is_close_to_the_freeze()) }
    }
}

impl Moment {
    fn is_close_to_the_freeze(self) -> bool {
        matches!(self, Self::Close { step: Step::Offered | Step::Poised | Step::Frozen, .. })
    }
}

impl Victim {
    /// The sides whose workers are killed.
    pub(super) fn workers(self, journey: &Journey) -> Vec<Side> {
        let (source, target) = (journey.from, journey.from.other());
        match self {
            Self::SourceWorker | Self::SourceHost => vec![source],
            Self::TargetWorker | Self::TargetHost => vec![target],
            Self::BothWorkers => vec![source, target],
            Self::SourceAgent | Self::TargetAgent => Vec::new(),
        }
    }

    /// The side whose agent is killed.
    pub(super) fn agent(self, journey: &Journey) -> Option<Side> {
        match self {
            Self::SourceAgent | Self::SourceHost => Some(journey.from),
            Self::TargetAgent | Self::TargetHost => Some(journey.from.other()),
            Self::SourceWorker | Self::TargetWorker | Self::BothWorkers => None,
        }
    }

    /// Whether the source's worker is among the dead.
    pub(super) fn has_source_worker(self) -> bool {
        matches!(self, Self::SourceWorker | Self::SourceHost | Self::BothWorkers)
    }

    /// Whether the target's worker is among the dead.
    pub(super) fn has_target_worker(self) -> bool {
        matches!(self, Self::TargetWorker | Self::TargetHost | Self::BothWorkers)
    }
}

impl Journey {
    /// The epoch after the handoff.
    pub(super) fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch.0.saturating_add(1))
    }

    /// How far the handoff has come, by its words.
    pub(super) fn step(&self, word: Ownership, arm: Arm) -> Step {
        let here = |host, epoch| host == self.target && epoch == self.epoch;
        match (word, arm) {
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
            (Ownership::Owned { .. } | Ownership::Lost { .. } | Ownership::Vacant, _) => Step::Over,
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SourceWorker => "source's worker",
            Self::TargetWorker => "target's worker",
            Self::BothWorkers => "both workers",
            Self::SourceAgent => "source's agent",
            Self::TargetAgent => "target's agent",
            Self::SourceHost => "source's agent and worker",
            Self::TargetHost => "target's agent and worker",
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(delay) => write!(f, "{} µs after the order", delay.as_micros()),
            Self::Close { step, delay } => write!(f, "{} µs after {step:?} was seen", delay.as_micros()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn journey() -> Journey {
        let slot = |index| HostSlot::new(index).expect("a small slot");
        Journey { from: Side::A, source: slot(1), target: slot(2), epoch: Epoch(5) }
    }

    #[test]
    fn steps_are_told_by_both_words() {
        let journey = journey();
        let Journey { source, target, epoch, .. } = journey;
        let owned = Ownership::Owned { host: source, epoch };
        let offered = Ownership::Offered { source, target, epoch };
        let steps = [
            journey.step(owned, Arm::Idle),
            journey.step(owned, Arm::Arming { host: target, epoch }),
            journey.step(owned, Arm::Armed { host: target, epoch }),
            journey.step(offered, Arm::Armed { host: target, epoch }),
            journey.step(offered, Arm::Poised { host: target, epoch }),
            journey.step(Ownership::Frozen { source, target, epoch }, Arm::Poised { host: target, epoch }),
            journey.step(Ownership::Owned { host: target, epoch: Epoch(6) }, Arm::Poised { host: target, epoch }),
        ];
        assert!(steps.is_sorted(), "{steps:?}");
        assert_eq!((steps[0], steps[6]), (Step::Begun, Step::Over));
    }

    #[test]
    fn what_an_earlier_target_left_in_the_arm_word_is_no_step() {
        let journey = journey();
        let owned = Ownership::Owned { host: journey.source, epoch: journey.epoch };
        assert_eq!(journey.step(owned, Arm::Poised { host: journey.target, epoch: Epoch(4) }), Step::Begun);
    }

    #[test]
    fn plans_cover_every_victim_and_every_kind_of_moment() {
        let plans: Vec<Plan> =
            (0..2_000).map(|round| Plan::draw(&mut Dice::of_round(1, round), Duration::from_millis(50))).collect();
        let victims: std::collections::BTreeSet<Victim> = plans.iter().map(|plan| plan.victim).collect();
        assert_eq!(victims.len(), 7);
        assert!(plans.iter().any(|plan| plan.stall.is_some()));
        let late = |plan: &&Plan| matches!(plan.moment, Moment::After(at) if at > Duration::from_millis(45));
        assert!(plans.iter().any(|plan| late(&plan)));
        let close =
            |wanted| plans.iter().any(|plan| matches!(plan.moment, Moment::Close { step, .. } if step == wanted));
        assert!(
            [Step::Arming, Step::Armed, Step::Offered, Step::Poised, Step::Frozen, Step::Over].into_iter().all(close)
        );
    }
}
