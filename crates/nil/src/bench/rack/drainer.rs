//! Empties hosts of chance while guests move and agents die, and lets guests come again.

use super::reaper::{Disturbances, PATIENCE};
use super::stretch::Tally;
use crate::lab::chronicle::Chronicle;
use crate::lab::dice::Dice;
use crate::lab::fleet::Fleet;
use crate::lab::interrupt;
use crate::lab::lock::lock;
use anyhow::{Context, ensure};
use nil_host::{Drain, DrainOutcome, DrainReport};
use serde::Serialize;
use std::fmt;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How long a drain may take until it stops by itself.
const LIMIT: Duration = Duration::from_secs(60);
/// One in so many is called off, after this time at most.
const CALLED_OFF: u64 = 4;
const LATEST: Duration = Duration::from_millis(1_500);

/// Which host to empty, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Errand {
    host: usize,
    parallel: u32,
    call_off: Option<Duration>,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ended {
    /// The host had no guest any more.
    Emptied,
    /// Some could not leave.
    Incomplete,
    CalledOff,
    TimeUp,
    /// The agent refused, or did not answer, or not any more.
    AgentGone,
}

impl Errand {
    pub(super) fn draw(dice: &mut Dice, hosts: usize) -> Self {
        let host = dice.below(u64::try_from(hosts).unwrap_or(u64::MAX));
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            host: usize::try_from(host).unwrap_or(0),
            parallel: dice.pick([(1, 1), (2, Drain::PARALLEL)]),
            call_off: dice.once_in(CALLED_OFF).then(|| Duration::from_micros(dice.below(micros(LATEST)))),
        }
    }

    /// Empties the host, looks whether it is empty, and lets guests come again. The error is a violation.
    pub(super) fn carry_out(
        self,
        fleet: &Fleet,
        disturbances: &Disturbances,
        tally: &Mutex<Tally>,
        chronicle: &Chronicle,
    ) -> anyhow::Result<()> {
        let name = fleet.hosts()[self.host].name();
        let _disturbance = disturbances.begin();
        chronicle.note(format!("host {name}: is to be emptied, {self:?}"));
        let answer = self.drain(fleet);
        let (ended, moved) = match &answer {
            Ok(report) => (Ended::of(report), report.departures.len()),
            Err(_) => (Ended::AgentGone, 0),
        };
        let story = match &answer {
            Ok(report) => format!("{moved} guests left, still here: {:?}", report.left),
            Err(error) => error.story(),
        };
        chronicle.note(format!("host {name}: {ended}: {story}"));
        if ended == Ended::Emptied {
            // Nothing comes to a host that is cordoned, so it is empty still.
            let guests = fleet.call(self.host).and_then(|mut agent| agent.ps()).unwrap_or_default();
            let left = guests.iter().find(|guest| guest.host.as_deref() == Some(name.as_str()));
            ensure!(
                left.is_none(),
                "host {name}: it was emptied, and guest {:?} is there",
                left.map(|left| &left.name)
            );
        }
        let mut tally = lock(tally);
        *tally.drains.entry(ended).or_default() += 1;
        tally.drained_guests += u64::try_from(moved).unwrap_or(u64::MAX);
        drop(tally);
        interrupt::wait_for("a host does not let guests come again", PATIENCE, || {
            Ok(fleet
                .call(self.host)
                .and_then(|mut agent| agent.uncordon())
                .is_ok_and(|report| !report.cordoned)
                .then_some(()))
        })
        .with_context(|| format!("host {name}"))
    }

    fn drain(self, fleet: &Fleet) -> nil_host::Result<DrainReport> {
        let order = Drain { parallel: self.parallel, time_limit_us: u64::try_from(LIMIT.as_micros()).ok() };
        std::thread::scope(|scope| {
            let (over, ended) = channel::<()>();
            if let Some(wait) = self.call_off {
                scope.spawn(move || {
                    if ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                        // It may be over, and the agent may have gone: that is seen by what becomes of it.
                        let _ = fleet.call(self.host).and_then(|mut agent| agent.cancel_drain());
                    }
                });
            }
            let answer = fleet.call(self.host).and_then(|mut agent| agent.drain(&order, |_| {}));
            drop(over);
            answer
        })
    }
}

impl Ended {
    fn of(report: &DrainReport) -> Self {
        match report.outcome {
            DrainOutcome::Emptied => Self::Emptied,
            DrainOutcome::Incomplete => Self::Incomplete,
            DrainOutcome::Cancelled => Self::CalledOff,
            DrainOutcome::TimeUp => Self::TimeUp,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Emptied => "emptied",
            Self::Incomplete => "incomplete",
            Self::CalledOff => "called off",
            Self::TimeUp => "time up",
            Self::AgentGone => "agent gone",
        })
    }
}
