//! What a round does, whom it kills, and when.
//!
//! All of it is drawn before anything is measured, so that the same seed draws the same plans on any machine.

use super::journey::{Errand, Journey, Step};
use crate::lab::Side;
use crate::lab::dice::Dice;
use nil_host::MemoryIn;
use nil_mover::{Direction, Pace};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// How long after a step a kill comes at most, in microseconds.
const CLOSE: u64 = 300;
/// How long after the order, or after the capacity was seen, a kill comes at most that is to hit what a move does before
/// the first of the memory has moved, in microseconds.
const EARLY: u64 = 15_000;
/// How much longer than an undisturbed errand the kill may wait, in thousandths.
const OVERRUN: u64 = 1_100;
/// How long a killed agent stays away at most, in milliseconds.
const AWAY: u64 = 300;
/// Of a hundred kills, after how many agents are started again at once: what the dead ones had ordered has hardly begun.
const AT_ONCE: u64 = 40;
/// How long a target is made to stand still at most, in milliseconds: longer than its source waits for its claim, and
/// longer than an agent waits for it when its source has died.
const STALL: u64 = 2_500;
/// Of a hundred kills close to the freeze, how many find a target that stands still.
const STALLED: u64 = 50;
/// Of a hundred rounds that the guest survives, after how many it is stopped, and another one booted.
const STOPPED: u64 = 8;

/// What rounds are to disturb.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum During {
    /// Migrations, close to the steps of the handoff; all over them if the memory is in the pool.
    Handoff,
    /// Memory on its way to the pool: alone, and in migrations if it is in DRAM.
    Decouple,
    /// Memory on its way to DRAM: alone, and in migrations if it was in DRAM.
    Recouple,
    /// All of these, and whole migrations.
    Any,
}

/// Which rounds may be drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Scope {
    pub(super) memory_in: MemoryIn,
    pub(super) during: During,
}

/// Who is killed, seen from what is under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Victim {
    SourceWorker,
    TargetWorker,
    BothWorkers,
    SourceAgent,
    TargetAgent,
    BothAgents,
    /// The agent and the worker of the source.
    SourceHost,
    /// The agent and the worker of the target.
    TargetHost,
    BothHosts,
}

/// When the kill comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Moment {
    /// After so many thousandths of the time that the errand takes when nobody is killed.
    After { thousandths: u64 },
    /// That long after a step was seen.
    Close { step: Step, delay: Duration },
    /// That long after so many thousandths of the memory were seen to have arrived.
    Amid { direction: Direction, thousandths: u64, delay: Duration },
}

/// What becomes of a guest that has survived its round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Afterwards {
    Kept,
    Stopped,
}

/// What chance has decided for a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) errand: Errand,
    pub(super) pace: Pace,
    pub(super) victim: Victim,
    pub(super) moment: Moment,
    /// How long a killed agent stays away.
    pub(super) away: Duration,
    /// The target's worker is stopped (SIGSTOP) as soon as the guest is offered to it, for this long. Else the guest is
    /// frozen for microseconds only, and a kill hardly ever finds it so.
    pub(super) stall: Option<Duration>,
    pub(super) afterwards: Afterwards,
}

/// The part of an errand that a kill is to hit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stretch {
    Whole,
    Decoupling,
    Handoff,
    Recoupling,
}

impl Scope {
    /// What rounds may be about.
    pub(super) fn errands(self) -> &'static [Errand] {
        match (self.during, self.memory_in) {
            (During::Handoff, _) => &[Errand::Migration],
            (During::Decouple, MemoryIn::Pool) => &[Errand::Decouple],
            (During::Recouple, MemoryIn::Pool) => &[Errand::Recouple],
            (During::Decouple, MemoryIn::Dram) => &[Errand::Migration, Errand::Decouple],
            (During::Recouple, MemoryIn::Dram) => &[Errand::Migration, Errand::Recouple],
            (During::Any, _) => &[Errand::Migration, Errand::Decouple, Errand::Recouple],
        }
    }

    /// Whether memory moves in some of them.
    pub(super) fn has_moves(self) -> bool {
        self.memory_in == MemoryIn::Dram || self.during != During::Handoff
    }

    fn draw(self, dice: &mut Dice) -> (Errand, Stretch) {
        use {Errand as E, Stretch as S};
        match (self.during, self.memory_in) {
            (During::Handoff, MemoryIn::Dram) => (E::Migration, S::Handoff),
            (During::Handoff, MemoryIn::Pool) => {
                dice.pick([(30, (E::Migration, S::Whole)), (70, (E::Migration, S::Handoff))])
            }
            (During::Decouple, MemoryIn::Pool) => (E::Decouple, S::Decoupling),
            (During::Recouple, MemoryIn::Pool) => (E::Recouple, S::Recoupling),
            (During::Decouple, MemoryIn::Dram) => {
                dice.pick([(50, (E::Decouple, S::Decoupling)), (50, (E::Migration, S::Decoupling))])
            }
            (During::Recouple, MemoryIn::Dram) => {
                dice.pick([(50, (E::Recouple, S::Recoupling)), (50, (E::Migration, S::Recoupling))])
            }
            (During::Any, MemoryIn::Pool) => dice.pick([
                (15, (E::Migration, S::Whole)),
                (35, (E::Migration, S::Handoff)),
                (25, (E::Decouple, S::Decoupling)),
                (25, (E::Recouple, S::Recoupling)),
            ]),
            (During::Any, MemoryIn::Dram) => dice.pick([
                (20, (E::Migration, S::Whole)),
                (15, (E::Migration, S::Decoupling)),
                (20, (E::Migration, S::Handoff)),
                (15, (E::Migration, S::Recoupling)),
                (15, (E::Decouple, S::Decoupling)),
                (15, (E::Recouple, S::Recoupling)),
            ]),
        }
    }
}

impl Plan {
    pub(super) fn draw(dice: &mut Dice, scope: Scope) -> Self {
        let (errand, stretch) = scope.draw(dice);
        let moment = Moment::draw(dice, errand, stretch);
        let victim = Victim::draw(dice, errand, stretch);
        let paced = matches!(moment, Moment::After { .. });
        let pace = if paced { Pace::default() } else { dice.pick([(1, Pace::default()), (1, Pace::Fast)]) };
        let away = Duration::from_millis(dice.below(AWAY));
        let away = dice.pick([(AT_ONCE, Duration::ZERO), (100 - AT_ONCE, away)]);
        let stall =
            dice.pick([(STALLED, true), (100 - STALLED, false)]).then(|| Duration::from_millis(dice.below(STALL)));
        let stall = stall.filter(|_| moment.is_close_to_the_freeze());
        let afterwards = dice.pick([(STOPPED, Afterwards::Stopped), (100 - STOPPED, Afterwards::Kept)]);
        Self { errand, pace, victim, moment, away, stall, afterwards }
    }
}

impl Moment {
    fn draw(dice: &mut Dice, errand: Errand, stretch: Stretch) -> Self {
        let delay = Duration::from_micros(dice.below(CLOSE + 1));
        let close = |step| Self::Close { step, delay };
        let delay_of_early = Duration::from_micros(dice.below(EARLY));
        let early = |step| Self::Close { step, delay: delay_of_early };
        let thousandths = dice.below(1_000);
        let amid = |direction| Self::Amid { direction, thousandths, delay };
        match stretch {
            Stretch::Whole => Self::After { thousandths: thousandths * OVERRUN / 1_000 },
            Stretch::Decoupling => dice.pick([
                (10, early(Step::Begun)),
                (5, close(Step::Placed)),
                (20, early(Step::Placed)),
                (5, close(Step::Leaving)),
                (45, amid(Direction::Decouple)),
                (15, close(Step::Pooled)),
            ]),
            Stretch::Handoff => dice.pick([
                (5, close(Step::Arming)),
                (10, close(Step::Armed)),
                (20, close(Step::Offered)),
                (10, close(Step::Poised)),
                (18, close(Step::Frozen)),
                (7, close(Step::Over)),
            ]),
            Stretch::Recoupling => dice.pick([
                (10, if errand == Errand::Recouple { early(Step::Begun) } else { close(Step::Over) }),
                (10, close(Step::Returning)),
                (50, amid(Direction::Recouple)),
                (20, close(Step::Home)),
                (10, close(Step::Cleared)),
            ]),
        }
    }

    fn is_close_to_the_freeze(self) -> bool {
        matches!(self, Self::Close { step: Step::Offered | Step::Poised | Step::Frozen, .. })
    }
}

impl Victim {
    fn draw(dice: &mut Dice, errand: Errand, stretch: Stretch) -> Self {
        match (errand, stretch) {
            (Errand::Migration, Stretch::Whole | Stretch::Handoff) => dice.pick([
                (32, Self::SourceWorker),
                (32, Self::TargetWorker),
                (10, Self::BothWorkers),
                (6, Self::SourceAgent),
                (6, Self::TargetAgent),
                (3, Self::BothAgents),
                (4, Self::SourceHost),
                (4, Self::TargetHost),
                (3, Self::BothHosts),
            ]),
            // The guest has left its source; whose worker ends by itself.
            (Errand::Migration, Stretch::Recoupling) => dice.pick([
                (35, Self::TargetWorker),
                (10, Self::SourceAgent),
                (25, Self::TargetAgent),
                (15, Self::BothAgents),
                (15, Self::TargetHost),
            ]),
            // Nobody has a worker at the target.
            (Errand::Migration | Errand::Decouple | Errand::Recouple, _) => dice.pick([
                (35, Self::SourceWorker),
                (25, Self::SourceAgent),
                (10, Self::TargetAgent),
                (15, Self::BothAgents),
                (15, Self::SourceHost),
            ]),
        }
    }

    /// The sides whose workers are killed.
    pub(super) fn workers(self, journey: &Journey) -> Vec<Side> {
        let (source, target) = (journey.from, journey.from.other());
        match self {
            Self::SourceWorker | Self::SourceHost => vec![source],
            Self::TargetWorker | Self::TargetHost => vec![target],
            Self::BothWorkers | Self::BothHosts => vec![source, target],
            Self::SourceAgent | Self::TargetAgent | Self::BothAgents => Vec::new(),
        }
    }

    /// The sides whose agents are killed.
    pub(super) fn agents(self, journey: &Journey) -> Vec<Side> {
        let (source, target) = (journey.from, journey.from.other());
        match self {
            Self::SourceAgent | Self::SourceHost => vec![source],
            Self::TargetAgent | Self::TargetHost => vec![target],
            Self::BothAgents | Self::BothHosts => vec![source, target],
            Self::SourceWorker | Self::TargetWorker | Self::BothWorkers => Vec::new(),
        }
    }

    /// Whether the source's worker is among the dead.
    pub(super) fn has_source_worker(self) -> bool {
        matches!(self, Self::SourceWorker | Self::SourceHost | Self::BothWorkers | Self::BothHosts)
    }

    /// Whether the target's worker is among the dead.
    pub(super) fn has_target_worker(self) -> bool {
        matches!(self, Self::TargetWorker | Self::TargetHost | Self::BothWorkers | Self::BothHosts)
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
            Self::BothAgents => "both agents",
            Self::SourceHost => "source's agent and worker",
            Self::TargetHost => "target's agent and worker",
            Self::BothHosts => "both agents and workers",
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |thousandths: u64| format!("{}.{} %", thousandths / 10, thousandths % 10);
        match self {
            Self::After { thousandths } => write!(f, "after {} of its time", percent(*thousandths)),
            Self::Close { step, delay } => write!(f, "{} µs after {step:?} was seen", delay.as_micros()),
            Self::Amid { direction, thousandths, delay } => {
                let (part, direction) = (percent(*thousandths), direction.verb());
                write!(f, "{} µs after {part} of the memory was seen {direction}d", delay.as_micros())
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { errand, pace, victim, moment, away, stall, afterwards } = self;
        let pace = if *pace == Pace::Fast { "fast" } else { "paced" };
        write!(f, "{errand}, {pace}; kill: {victim}, {moment}; dead agents stay away for {} ms", away.as_millis())?;
        if let Some(stall) = stall {
            write!(f, "; the target stands still for {} ms", stall.as_millis())?;
        }
        f.write_str(if *afterwards == Afterwards::Stopped { "; a survivor is stopped" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn plans(memory_in: MemoryIn, during: During) -> Vec<Plan> {
        (0..2_000).map(|round| Plan::draw(&mut Dice::of_round(1, round), Scope { memory_in, during })).collect()
    }

    fn steps(plans: &[Plan]) -> BTreeSet<Step> {
        let step = |plan: &Plan| match plan.moment {
            Moment::Close { step, .. } => Some(step),
            Moment::After { .. } | Moment::Amid { .. } => None,
        };
        plans.iter().filter_map(step).collect()
    }

    #[test]
    fn plans_cover_every_errand_victim_and_kind_of_moment() {
        let plans = plans(MemoryIn::Dram, During::Any);
        assert_eq!(plans.iter().map(|plan| plan.victim).collect::<BTreeSet<_>>().len(), 9);
        assert_eq!(plans.iter().map(|plan| plan.errand).collect::<BTreeSet<_>>().len(), 3);
        assert_eq!(steps(&plans).len(), 13, "{:?}", steps(&plans));
        let some = |wanted: fn(&Plan) -> bool| plans.iter().any(wanted);
        assert!(some(|plan| plan.stall.is_some()) && some(|plan| plan.pace == Pace::Fast));
        assert!(some(|plan| plan.afterwards == Afterwards::Stopped));
        assert!(some(|plan| matches!(plan.moment, Moment::After { thousandths } if thousandths > 1_000)));
        for wanted in [Direction::Decouple, Direction::Recouple] {
            assert!(
                plans.iter().any(|plan| matches!(plan.moment, Moment::Amid { direction, .. } if direction == wanted))
            );
        }
    }

    #[test]
    fn without_moves_of_memory_there_are_handoffs_alone() {
        let plans = plans(MemoryIn::Pool, During::Handoff);
        assert!(plans.iter().all(|plan| plan.errand == Errand::Migration));
        assert!(steps(&plans).iter().all(|step| (Step::Arming..=Step::Over).contains(step)), "{:?}", steps(&plans));
    }

    #[test]
    fn every_scope_draws_the_errands_that_it_names() {
        for memory_in in [MemoryIn::Dram, MemoryIn::Pool] {
            for during in [During::Handoff, During::Decouple, During::Recouple, During::Any] {
                let drawn: BTreeSet<_> = plans(memory_in, during).iter().map(|plan| plan.errand).collect();
                let named = Scope { memory_in, during }.errands().iter().copied().collect();
                assert_eq!(drawn, named, "{memory_in:?}, {during:?}");
            }
        }
    }

    #[test]
    fn nobody_kills_a_target_that_cannot_be_there() {
        for plan in plans(MemoryIn::Dram, During::Any) {
            let to_the_pool = match plan.moment {
                Moment::After { .. } => false,
                Moment::Close { step, .. } => step <= Step::Pooled,
                Moment::Amid { direction, .. } => direction == Direction::Decouple,
            };
            let alone = plan.errand != Errand::Migration;
            assert!(!(to_the_pool || alone) || !plan.victim.has_target_worker(), "{plan}");
        }
    }
}
