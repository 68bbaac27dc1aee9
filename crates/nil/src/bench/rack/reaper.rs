//! Kills agents at random instants, and has them started again.

use super::vigil::Vigil;
use crate::lab::chronicle::Chronicle;
use crate::lab::dice::Dice;
use crate::lab::fleet::Fleet;
use crate::lab::interrupt;
use crate::lab::prey::Prey;
use anyhow::Context;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long after it was due a kill comes at most, so that it falls into any step of what is going on.
const SPREAD: Duration = Duration::from_millis(60);
/// How long a killed agent stays away at most.
const LONGEST_ABSENCE: Duration = Duration::from_millis(1_500);
/// How long it may take to be dead, and to answer again.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Whom to kill, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kill {
    host: usize,
    delay: Duration,
    absence: Duration,
}

/// When an agent was away, or a host was being emptied: an order that failed in that time failed for a reason.
#[derive(Debug, Default)]
pub(super) struct Disturbances {
    under_way: AtomicU64,
    begun: AtomicU64,
}

/// A disturbance, while it lasts.
#[derive(Debug)]
pub(super) struct Disturbance<'a>(&'a Disturbances);

impl Kill {
    pub(super) fn draw(dice: &mut Dice, hosts: usize) -> Self {
        let micros = |dice: &mut Dice, most: Duration| {
            Duration::from_micros(dice.below(u64::try_from(most.as_micros()).unwrap_or(u64::MAX)))
        };
        let host = dice.below(u64::try_from(hosts).unwrap_or(u64::MAX));
        Self {
            host: usize::try_from(host).unwrap_or(0),
            delay: micros(dice, SPREAD),
            absence: micros(dice, LONGEST_ABSENCE),
        }
    }

    /// Kills the agent, and has it started again.
    pub(super) fn carry_out(
        self,
        fleet: &Fleet,
        disturbances: &Disturbances,
        vigil: &Vigil,
        chronicle: &Chronicle,
    ) -> anyhow::Result<()> {
        let name = fleet.hosts()[self.host].name();
        std::thread::sleep(self.delay);
        let prey = Prey::agent(&fleet.hosts()[self.host]).with_context(|| format!("agent {name}"))?;
        vigil.see(prey.pid());
        let _disturbance = disturbances.begin();
        prey.kill();
        chronicle.note(format!("agent {name}: killed, process {}", prey.pid()));
        interrupt::wait_for("the killed agent is not dead", PATIENCE, || Ok(prey.is_dead().then_some(())))?;
        std::thread::sleep(self.absence);
        let begun = Instant::now();
        fleet.bring_up(self.host)?;
        chronicle.note(format!("agent {name}: up again after {} ms", begun.elapsed().as_millis()));
        Ok(())
    }
}

impl Disturbances {
    pub(super) fn begin(&self) -> Disturbance<'_> {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        self.begun.fetch_add(1, Ordering::AcqRel);
        Disturbance(self)
    }

    /// How things stand; to be compared with how they stood. `None`: something is under way.
    pub(super) fn now(&self) -> Option<u64> {
        let begun = self.begun.load(Ordering::Acquire);
        (self.under_way.load(Ordering::Acquire) == 0).then_some(begun)
    }

    /// Whether there has been none since then.
    pub(super) fn none_since(&self, then: Option<u64>) -> bool {
        then.is_some_and(|then| self.begun.load(Ordering::Acquire) == then)
    }
}

impl Drop for Disturbance<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_begun_or_lasted_since_is_a_disturbance() {
        let disturbances = Disturbances::default();
        let quiet = disturbances.now();
        assert!(disturbances.none_since(quiet));
        let one = disturbances.begin();
        assert!(!disturbances.none_since(quiet) && !disturbances.none_since(disturbances.now()));
        drop(one);
        assert!(!disturbances.none_since(quiet), "it came and went");
        assert!(disturbances.none_since(disturbances.now()));
    }
}
