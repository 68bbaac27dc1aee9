//! Killed agents that are to be started again.

use crate::lab::{Rack, Side};
use anyhow::Context;
use std::time::{Duration, Instant};

/// How long a restarted agent may take to answer until it is started once more: a child of the dead one that is still
/// being born holds its lock for a moment.
const START_AGAIN: Duration = Duration::from_secs(2);

/// The agents that were killed in a round.
#[derive(Debug)]
pub(super) struct Agents {
    away: Duration,
    killed: Vec<(Side, Option<Instant>)>,
}

impl Agents {
    pub(super) fn killed(sides: Vec<Side>, away: Duration) -> Self {
        Self { away, killed: sides.into_iter().map(|side| (side, None)).collect() }
    }

    /// Starts them when they have been away for long enough.
    pub(super) fn see_to(&mut self, rack: &Rack, struck: Instant) -> anyhow::Result<()> {
        if struck.elapsed() < self.away {
            return Ok(());
        }
        for (side, asked) in &mut self.killed {
            let due = asked.is_none_or(|asked| asked.elapsed() > START_AGAIN && rack.call(*side).is_err());
            if due {
                *asked = Some(Instant::now());
                rack.start_again(*side).with_context(|| format!("the agent of {side:?} cannot be started again"))?;
            }
        }
        Ok(())
    }

    pub(super) fn are_up(&self, rack: &Rack) -> bool {
        [Side::A, Side::B].into_iter().all(|side| rack.call(side).is_ok())
            && self.killed.iter().all(|(_, asked)| asked.is_some())
    }
}
