//! One order, drawn from the seed: a guest goes to another host, and may be called back at any instant. Some go to hosts that
//! share no pool with theirs, over others.

use super::dice::Dice;
use super::fleet::Fleet;
use super::interrupt;
use super::resident::{Owner, Resident};
use nil_host::{
    Error, JobFilter, JobKind, LegResult, Migrate, MigrationOutcome, MigrationReport, Route, RouteOutcome, RouteReport,
    Settling,
};
use nil_mover::{Budget, Pace};
use serde::Serialize;
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a guest may stand frozen before its source takes it back. Longer than anywhere else: several guests and other
/// work share the processors, and a target that is only late is no reason to fail.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long a guest may be on its way when nobody orders anything: as long as agents that were killed come back.
const PATIENCE: Duration = Duration::from_secs(60);
/// One order in so many is called off.
const CALLED_OFF: u64 = 6;
/// One in so many is to a host that shares no pool with the guest's home, if there is one.
const FAR: u64 = 4;

/// What an order asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Errand {
    /// Which of the hosts that share a pool with the guest's, apart from its own; taken modulo their number.
    target: u64,
    /// Whether one of the others is meant: those that share none.
    far: bool,
    settling: Settling,
    pace: Pace,
    /// After which share of the time that such an order takes it is called off, in thousandths.
    call_off: Option<u64>,
}

/// How an order ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The guest runs at the target.
    Moved,
    /// It runs at its source: the target did not come in time.
    TakenBack,
    /// It runs at its source: the order was called off.
    CalledOff,
    /// It runs at its source: its memory could not be moved.
    Stalled,
    /// It runs on a host on its way, from which no way led on.
    Stranded,
    /// An agent said that it cannot be done.
    Refused,
    /// The agent that was to do it did not answer, or not any more.
    AgentGone,
}

/// What came of an order.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    /// Why, unless the guest moved.
    pub(crate) why: Option<String>,
    pub(crate) took: Duration,
    pub(crate) to: usize,
    pub(crate) report: Option<Report>,
}

/// What the agents have to say.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    Migration(Box<MigrationReport>),
    Route(Box<RouteReport>),
}

impl Errand {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        Self {
            target: dice.next(),
            far: dice.once_in(FAR),
            settling: dice.pick([(1, Settling::Recouple), (1, Settling::StayInPool)]),
            pace: dice.pick([(1, Pace::Fast), (1, Pace::default())]),
            call_off: dice.once_in(CALLED_OFF).then(|| dice.below(1_500)),
        }
    }

    /// Gives the order and waits for its end. `typical` is how long one takes that nobody calls off.
    pub(crate) fn run(&self, fleet: &Fleet, guest: &Resident, from: Owner, typical: Duration) -> Done {
        let members = fleet.members(guest.pool());
        let far: Vec<usize> = (0..fleet.hosts().len()).filter(|host| !members.contains(host)).collect();
        let is_far = self.far && !far.is_empty();
        let others: Vec<usize> =
            if is_far { far } else { members.into_iter().filter(|&host| host != from.host).collect() };
        let count = u64::try_from(others.len()).unwrap_or(1).max(1);
        let to = usize::try_from(self.target % count).ok().and_then(|at| others.get(at).copied()).unwrap_or(from.host);
        let deadline_us = u64::try_from(DEADLINE.as_micros()).unwrap_or(Migrate::DEADLINE_US);
        let (settling, budget) = (self.settling, Budget { pace: self.pace, bandwidth: None });
        let (name, host) = (guest.name().clone(), fleet.hosts()[to].name().clone());
        let begun = Instant::now();
        let answer = std::thread::scope(|scope| {
            let (over, ended) = channel::<()>();
            if let Some(thousandths) = self.call_off {
                let wait = typical * u32::try_from(thousandths).unwrap_or(1_000) / 1_000;
                scope.spawn(move || {
                    if ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                        // Whether it came too late, or the agent has gone, is seen by what becomes of the order.
                        let _ = call_off(fleet, guest, from.host, is_far);
                    }
                });
            }
            let answer = fleet.call(from.host).and_then(|mut agent| {
                if is_far {
                    let order = Route { deadline_us, settling, budget, ..Route::new(name, host) };
                    agent.route(&order, |_| {}).map(|report| Report::Route(Box::new(report)))
                } else {
                    let order = Migrate { deadline_us, settling, budget, ..Migrate::new(name, host) };
                    agent.migrate(&order, |_| {}).map(|report| Report::Migration(Box::new(report)))
                }
            });
            drop(over);
            answer
        });
        Done::of(answer, begun.elapsed(), to)
    }
}

/// Calls an order off.
fn call_off(fleet: &Fleet, guest: &Resident, host: usize, is_far: bool) -> nil_host::Result<String> {
    let mut agent = fleet.call(host)?;
    if !is_far {
        return agent.cancel_migration(guest.name());
    }
    let jobs = agent.jobs(&JobFilter::latest(0))?;
    let job = jobs.iter().find(|job| job.kind == JobKind::Route && job.guest.as_ref() == Some(guest.name()));
    job.map_or_else(|| Err(Error::Refused("it has not begun".to_owned())), |job| agent.cancel_job(job.id))
}

/// Waits until no agent sends that guest over hosts, or any guest: a way goes on although an agent has died that had ordered
/// it, and an agent that is started again takes it up.
pub(crate) fn await_arrival(fleet: &Fleet, guest: Option<&Resident>) -> anyhow::Result<()> {
    let under_way = JobFilter { guest: guest.map(|guest| guest.name().clone()), ..JobFilter::latest(0) };
    interrupt::wait_for("a guest is on its way", PATIENCE, || {
        let is_on_its_way = (0..fleet.hosts().len()).any(|host| {
            let jobs = fleet.call(host).and_then(|mut agent| agent.jobs(&under_way));
            jobs.map_or(true, |jobs| jobs.iter().any(|job| job.kind == JobKind::Route))
        });
        Ok((!is_on_its_way).then_some(()))
    })
}

impl Report {
    /// How long the guest stood still, at each handoff.
    pub(crate) fn blackouts(&self) -> Vec<u64> {
        match self {
            Self::Migration(report) => report.handoff.iter().map(|handoff| handoff.blackout_ns).collect(),
            Self::Route(report) => {
                let handoffs = report.legs.iter().filter_map(|leg| match &leg.result {
                    LegResult::Handoff { report } => report.handoff.as_ref(),
                    LegResult::Rehoming { .. } | LegResult::Failed { .. } => None,
                });
                handoffs.map(|handoff| handoff.blackout_ns).collect()
            }
        }
    }

    /// Bytes of the guest's memory that handoffs have copied.
    pub(crate) fn copied_bytes(&self) -> u64 {
        match self {
            Self::Migration(report) => report.copied_bytes,
            Self::Route(report) => {
                let copied = report.legs.iter().map(|leg| match &leg.result {
                    LegResult::Handoff { report } => report.copied_bytes,
                    LegResult::Rehoming { .. } | LegResult::Failed { .. } => 0,
                });
                copied.sum()
            }
        }
    }
}

impl Done {
    fn of(answer: nil_host::Result<Report>, took: Duration, to: usize) -> Self {
        let (outcome, why, report) = match answer {
            Ok(Report::Route(report)) => {
                let (outcome, why) = match &report.outcome {
                    RouteOutcome::Arrived => (Outcome::Moved, None),
                    RouteOutcome::Cancelled { why } => (Outcome::CalledOff, Some(why.clone())),
                    RouteOutcome::Stranded { why } => (Outcome::Stranded, Some(why.clone())),
                };
                (outcome, why, Some(Report::Route(report)))
            }
            Ok(Report::Migration(report)) => {
                let (outcome, why) = match &report.outcome {
                    MigrationOutcome::Moved => (Outcome::Moved, None),
                    MigrationOutcome::TakenBack { why } => (Outcome::TakenBack, Some(why.clone())),
                    MigrationOutcome::Cancelled { why } => (Outcome::CalledOff, Some(why.clone())),
                    MigrationOutcome::Stalled { why } => (Outcome::Stalled, Some(why.clone())),
                };
                (outcome, why, Some(Report::Migration(report)))
            }
            Err(
                error @ (Error::HostGone { .. } | Error::Hangup { .. } | Error::Broken { .. } | Error::NoAnswer { .. }),
            ) => (Outcome::AgentGone, Some(error.story()), None),
            Err(error) => (Outcome::Refused, Some(error.story()), None),
        };
        Self { outcome, why, took, to, report }
    }
}

impl Outcome {
    /// Whether the order was carried out, one way or the other, by the agents.
    pub(crate) fn is_answer(self) -> bool {
        match self {
            Self::Moved | Self::TakenBack | Self::CalledOff | Self::Stalled | Self::Stranded => true,
            Self::Refused | Self::AgentGone => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Moved => "moved",
            Self::TakenBack => "taken back",
            Self::CalledOff => "called off",
            Self::Stalled => "stalled",
            Self::Stranded => "stranded",
            Self::Refused => "refused",
            Self::AgentGone => "agent gone",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_errands_and_some_of_them_are_called_off() {
        let draw = |round| Errand::draw(&mut Dice::of_round(7, round));
        assert_eq!(draw(3), draw(3));
        let called_off = (0..600).filter(|&round| draw(round).call_off.is_some()).count();
        assert!((50..150).contains(&called_off), "{called_off} of 600");
    }

    #[test]
    fn an_agent_that_dies_is_told_from_one_that_refuses() {
        let hangup = Error::Hangup { peer: "the agent".into() };
        assert_eq!(Done::of(Err(hangup), Duration::ZERO, 0).outcome, Outcome::AgentGone);
        let refusal = Done::of(Err(Error::Refused("it is busy".into())), Duration::ZERO, 0);
        assert_eq!((refusal.outcome, refusal.why.as_deref()), (Outcome::Refused, Some("it is busy")));
    }
}
