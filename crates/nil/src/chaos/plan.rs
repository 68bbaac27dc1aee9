//! What is done in a round: drawn from the seed and the number of the round, and from nothing else.

use crate::lab::dice::Dice;
use crate::lab::errand::Errand;
use nil_host::Takeover;
use nil_mover::Direction;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// When an act begins at the latest, after its round has.
const LATEST: Duration = Duration::from_millis(250);
/// How long what was killed stays away at most: often it comes back before anybody has fenced it.
const LONGEST_ABSENCE: Duration = Duration::from_millis(900);
/// How long the pool is full at most.
const LONGEST_FULL: Duration = Duration::from_millis(600);
/// The most acts of a round.
const MOST_ACTS: u64 = 4;
/// For so many rounds agents treat dead hosts alike.
const ERA: u64 = 6;
/// A host is stopped for so many thousandths of its expiry, if it is not to expire.
const SHORT: std::ops::Range<u64> = 20..350;

/// What chance chooses from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Mix {
    /// Everything.
    All,
    /// Hosts that are killed, guests that migrate meanwhile: as many takeovers as can be.
    Deaths,
}

/// Something that is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// An agent and all its workers are killed; the host is a new one when it comes back.
    KillHost {
        host: usize,
        away: Duration,
    },
    KillAgent {
        host: usize,
        away: Duration,
    },
    KillWorker {
        guest: usize,
    },
    /// A host stands still until it has been fenced, and so much longer.
    StopHost {
        host: usize,
        longer: Duration,
    },
    /// A host stands still for so many thousandths of its expiry.
    PauseHost {
        host: usize,
        share: u64,
    },
    Migrate {
        guest: usize,
        errand: Errand,
    },
    Protect {
        guest: usize,
        interval: Duration,
    },
    Unprotect {
        guest: usize,
    },
    Move {
        guest: usize,
        direction: Direction,
    },
    FillPool {
        span: Duration,
    },
}

/// An act, and when it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timed {
    pub(super) after: Duration,
    pub(super) act: Act,
}

/// What is done in a round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) acts: Vec<Timed>,
    /// What agents do about dead hosts.
    pub(super) takeover: Takeover,
}

/// Of which there is so much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    pub(super) hosts: usize,
    pub(super) guests: usize,
    pub(super) mix: Mix,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    KillHost,
    KillAgent,
    KillWorker,
    StopHost,
    PauseHost,
    Migrate,
    Protect,
    Unprotect,
    Decouple,
    Recouple,
    FillPool,
}

impl Plan {
    pub(super) fn draw(seed: u64, round: u64, scope: Scope) -> Self {
        let mut dice = Dice::of_round(seed, round);
        let count = 1 + dice.below(MOST_ACTS);
        let mut victims = BTreeSet::new();
        let acts = (0..count).map(|number| Timed {
            after: up_to(&mut dice, LATEST),
            act: Act::draw(&mut dice, scope, number, &mut victims),
        });
        let acts = acts.collect();
        // Of numbers that no round has.
        let mut of_era = Dice::of_round(!seed, round / ERA);
        let takeover = match scope.mix {
            Mix::All => of_era.pick([(3, Takeover::Auto), (1, Takeover::Ask)]),
            Mix::Deaths => Takeover::Auto,
        };
        Self { acts, takeover }
    }

    /// Whether nothing is done to a host itself.
    pub(super) fn leaves_in_peace(&self, which: usize) -> bool {
        !self.acts.iter().any(|timed| timed.act.victim() == Some(which))
    }

    /// Whether something else than a blow is done to a guest, after which nobody can say what of it was committed.
    pub(super) fn handles(&self, which: usize) -> bool {
        self.acts.iter().any(|timed| match timed.act {
            Act::Migrate { guest, .. }
            | Act::Protect { guest, .. }
            | Act::Unprotect { guest }
            | Act::Move { guest, .. } => guest == which,
            Act::KillHost { .. }
            | Act::KillAgent { .. }
            | Act::KillWorker { .. }
            | Act::StopHost { .. }
            | Act::PauseHost { .. }
            | Act::FillPool { .. } => false,
        })
    }
}

impl Act {
    fn draw(dice: &mut Dice, scope: Scope, number: u64, victims: &mut BTreeSet<usize>) -> Self {
        let kind = match scope.mix {
            Mix::All => dice.pick([
                (6, Kind::KillHost),
                (2, Kind::KillAgent),
                (2, Kind::KillWorker),
                (1, Kind::StopHost),
                (1, Kind::PauseHost),
                (5, Kind::Migrate),
                (1, Kind::Protect),
                (1, Kind::Unprotect),
                (1, Kind::Decouple),
                (1, Kind::Recouple),
                (1, Kind::FillPool),
            ]),
            Mix::Deaths if number == 0 => Kind::KillHost,
            Mix::Deaths => dice.pick([(1, Kind::KillHost), (2, Kind::Migrate)]),
        };
        let guest = index(dice, scope.guests);
        let strikes = matches!(kind, Kind::KillHost | Kind::KillAgent | Kind::StopHost | Kind::PauseHost);
        // Two hosts at least are left in peace, so that somebody is there who can take.
        let left: Vec<usize> = (0..scope.hosts).filter(|host| !victims.contains(host)).collect();
        let host = dice.choose(&left).copied().filter(|_| strikes && left.len() > 2);
        victims.extend(host);
        match (kind, host) {
            (Kind::KillHost, Some(host)) => Self::KillHost { host, away: up_to(dice, LONGEST_ABSENCE) },
            (Kind::KillAgent, Some(host)) => Self::KillAgent { host, away: up_to(dice, LONGEST_ABSENCE) },
            (Kind::StopHost, Some(host)) => Self::StopHost { host, longer: up_to(dice, LONGEST_ABSENCE) },
            (Kind::PauseHost, Some(host)) => {
                Self::PauseHost { host, share: SHORT.start + dice.below(SHORT.end - SHORT.start) }
            }
            (Kind::KillHost | Kind::KillAgent | Kind::StopHost | Kind::PauseHost, None) | (Kind::Migrate, _) => {
                Self::Migrate { guest, errand: Errand::draw(dice) }
            }
            (Kind::KillWorker, _) => Self::KillWorker { guest },
            (Kind::Protect, _) => Self::Protect { guest, interval: interval(dice) },
            (Kind::Unprotect, _) => Self::Unprotect { guest },
            (Kind::Decouple, _) => Self::Move { guest, direction: Direction::Decouple },
            (Kind::Recouple, _) => Self::Move { guest, direction: Direction::Recouple },
            (Kind::FillPool, _) => Self::FillPool { span: up_to(dice, LONGEST_FULL) },
        }
    }

    /// The host that it is done to.
    fn victim(self) -> Option<usize> {
        match self {
            Self::KillHost { host, .. }
            | Self::KillAgent { host, .. }
            | Self::StopHost { host, .. }
            | Self::PauseHost { host, .. } => Some(host),
            Self::KillWorker { .. }
            | Self::Migrate { .. }
            | Self::Protect { .. }
            | Self::Unprotect { .. }
            | Self::Move { .. }
            | Self::FillPool { .. } => None,
        }
    }

    /// Its name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KillHost { .. } => "kill_host",
            Self::KillAgent { .. } => "kill_agent",
            Self::KillWorker { .. } => "kill_worker",
            Self::StopHost { .. } => "stop_host",
            Self::PauseHost { .. } => "pause_host",
            Self::Migrate { .. } => "migrate",
            Self::Protect { .. } => "protect",
            Self::Unprotect { .. } => "unprotect",
            Self::Move { direction: Direction::Decouple, .. } => "decouple",
            Self::Move { direction: Direction::Recouple, .. } => "recouple",
            Self::FillPool { .. } => "fill_pool",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::KillHost { host, away } => write!(f, "host h{host} is killed, and away for {} ms", away.as_millis()),
            Self::KillAgent { host, away } => {
                write!(f, "agent h{host} is killed, and away for {} ms", away.as_millis())
            }
            Self::KillWorker { guest } => write!(f, "guest g{guest}: its worker is killed"),
            Self::StopHost { host, longer } => {
                write!(f, "host h{host} is stopped until it is fenced, and {} ms longer", longer.as_millis())
            }
            Self::PauseHost { host, share } => write!(f, "host h{host} is paused for {share} ‰ of its expiry"),
            Self::Migrate { guest, errand } => write!(f, "guest g{guest}: is to migrate, {errand:?}"),
            Self::Protect { guest, interval } => write!(f, "guest g{guest}: is to be protected, every {interval:?}"),
            Self::Unprotect { guest } => write!(f, "guest g{guest}: is to be protected no more"),
            Self::Move { guest, direction } => write!(f, "guest g{guest}: {} its memory", direction.verb()),
            Self::FillPool { span } => write!(f, "pool: is full for {} ms", span.as_millis()),
        }
    }
}

/// How long from one commit of a guest to the next: the longer, the more is undone.
pub(super) fn interval(dice: &mut Dice) -> Duration {
    Duration::from_millis(dice.pick([(1, 10), (2, 25), (1, 120)]))
}

fn index(dice: &mut Dice, count: usize) -> usize {
    usize::try_from(dice.below(u64::try_from(count).unwrap_or(u64::MAX))).unwrap_or(0)
}

fn up_to(dice: &mut Dice, most: Duration) -> Duration {
    Duration::from_micros(dice.below(u64::try_from(most.as_micros()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: Scope = Scope { hosts: 4, guests: 8, mix: Mix::All };

    #[test]
    fn a_seed_draws_the_same_rounds() {
        let draw = |seed| (0..50).map(|round| Plan::draw(seed, round, SCOPE)).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn every_act_is_drawn_sooner_or_later_and_two_hosts_are_always_left_in_peace() {
        let mut seen = BTreeSet::new();
        for round in 0..2_000 {
            let plan = Plan::draw(1, round, SCOPE);
            let victims: Vec<usize> = plan.acts.iter().filter_map(|timed| timed.act.victim()).collect();
            let different: BTreeSet<usize> = victims.iter().copied().collect();
            assert!(victims.len() <= SCOPE.hosts - 2 && different.len() == victims.len(), "{plan:?}");
            assert!((0..SCOPE.hosts).filter(|host| plan.leaves_in_peace(*host)).count() >= 2, "{plan:?}");
            seen.extend(plan.acts.iter().map(|timed| timed.act.name()));
        }
        assert_eq!(seen.len(), 11, "{seen:?}");
    }

    #[test]
    fn in_a_run_of_deaths_a_host_dies_in_every_round() {
        let scope = Scope { mix: Mix::Deaths, ..SCOPE };
        for round in 0..200 {
            let plan = Plan::draw(3, round, scope);
            assert!(matches!(plan.acts[0].act, Act::KillHost { .. }) && plan.takeover == Takeover::Auto);
        }
    }
}
