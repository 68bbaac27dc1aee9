//! Waiting for the moment, and killing.

use super::journey::{Journey, Step};
use super::plan::{Moment, Plan};
use super::trail::{GuestWords, Trail, Words};
use crate::lab::prey::{Known, Prey};
use crate::lab::{Rack, Side, interrupt};
use anyhow::bail;
use nil_mover::Direction;
use std::time::{Duration, Instant};

/// The sleep between two looks at the words while the moment is far.
const NAP: Duration = Duration::from_micros(50);
/// How near the moment must be for the words to be watched without sleeping: naps take twice as long as they should.
const NEAR: Duration = Duration::from_micros(300);
/// How long the words are watched without sleeping. It takes a CPU from those who are watched, so not for ever.
const SPIN_LIMIT: Duration = Duration::from_millis(20);
/// How long the moment may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a killed process may take to be dead: its memory is unmapped first.
const PATIENCE_WITH_DEATH: Duration = Duration::from_secs(60);

/// What was killed, and what the guest's words said.
#[derive(Debug)]
pub(super) struct Catch {
    /// Who was killed.
    pub(super) pids: Vec<i32>,
    /// When, counted from the beginning of the round.
    pub(super) at: Duration,
    /// Just before the kill.
    pub(super) before: Words,
    /// As soon as the last of the victims was dead.
    pub(super) at_death: Words,
    /// Whether all victims were killed; else some had gone by themselves before.
    pub(super) complete: bool,
    /// Whether the errand had ended before.
    pub(super) after_end: bool,
    /// The target's worker, standing still.
    pub(super) stalled: Option<Prey>,
}

/// A hunt under way.
#[derive(Debug)]
pub(super) struct Hunt<'a> {
    rack: &'a Rack,
    guest: &'a GuestWords,
    journey: Journey,
    plan: Plan,
    /// How long the errand takes when nobody is killed.
    typical: Duration,
    /// Who was there before it began, whose target's worker is not among them.
    known: Known,
    prey: Vec<Prey>,
    /// Sides whose workers are to be killed and have not been found yet.
    missing: Vec<Side>,
    stalled: Option<Prey>,
}

impl<'a> Hunt<'a> {
    /// Takes hold of those victims that are there already; the errand has not begun.
    pub(super) fn prepare(
        rack: &'a Rack,
        guest: &'a GuestWords,
        journey: Journey,
        plan: Plan,
        typical: Duration,
    ) -> anyhow::Result<Self> {
        let mut prey = Vec::new();
        let mut missing = Vec::new();
        for side in plan.victim.workers(&journey) {
            match Prey::worker(rack.host(side), &Known::nobody()) {
                Some(worker) if side == journey.from => prey.push(worker),
                None if side != journey.from => missing.push(side),
                Some(worker) => bail!("the target has a worker already, process {}", worker.pid()),
                None => bail!("the source has no worker"),
            }
        }
        for side in plan.victim.agents(&journey) {
            prey.push(Prey::agent(rack.host(side))?);
        }
        Ok(Self { rack, guest, journey, plan, typical, known: Known::now(), prey, missing, stalled: None })
    }

    /// Waits for the moment and kills. `over` tells whether the errand has ended, which makes any moment due.
    pub(super) fn kill(mut self, trail: &mut Trail, over: impl Fn() -> bool) -> anyhow::Result<Catch> {
        let mut seen = None;
        let mut spinning = None;
        loop {
            interrupt::check()?;
            let words = trail.look(self.guest);
            let elapsed = trail.begun().elapsed();
            let step = self.journey.step(&words);
            let ended = over();
            let due = match self.plan.moment {
                Moment::After { thousandths } => Some(self.share_of_time(thousandths)),
                Moment::Close { step: wanted, delay } => (step >= wanted).then(|| *seen.get_or_insert(elapsed) + delay),
                Moment::Amid { direction, thousandths, delay } => {
                    has_arrived(direction, thousandths, step, &words).then(|| *seen.get_or_insert(elapsed) + delay)
                }
            };
            let is_due = due.is_some_and(|due| elapsed >= due);
            self.find_missing();
            if self.plan.stall.is_some() && self.stalled.is_none() && matches!(step, Step::Offered | Step::Poised) {
                self.stall_target();
            }
            if ended || is_due && self.missing.is_empty() {
                return self.strike(trail, ended);
            }
            if elapsed > PATIENCE {
                bail!("the moment for the kill has not come within {PATIENCE:?}");
            }
            let near = match due {
                Some(due) => due.saturating_sub(elapsed) < NEAR,
                None => (Step::Armed..=Step::Frozen).contains(&step),
            };
            if near && spinning.get_or_insert_with(Instant::now).elapsed() < SPIN_LIMIT {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    fn share_of_time(&self, thousandths: u64) -> Duration {
        let micros = u64::try_from(self.typical.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(micros.saturating_mul(thousandths) / 1_000)
    }

    fn find_missing(&mut self) {
        let Self { rack, known, prey, missing, .. } = self;
        missing.retain(|&side| match Prey::worker(rack.host(side), known) {
            Some(worker) => {
                prey.push(worker);
                false
            }
            None => true,
        });
    }

    fn stall_target(&mut self) {
        self.stalled = Prey::worker(self.rack.host(self.journey.from.other()), &self.known);
        if let Some(target) = &self.stalled {
            target.stop();
        }
    }

    fn strike(self, trail: &mut Trail, after_end: bool) -> anyhow::Result<Catch> {
        let before = trail.look(self.guest);
        let at = trail.begun().elapsed();
        let hit: Vec<&Prey> = self.prey.iter().filter(|prey| prey.kill()).collect();
        let struck = Instant::now();
        while !hit.iter().all(|prey| prey.is_dead()) {
            trail.look(self.guest);
            if struck.elapsed() > SPIN_LIMIT {
                std::thread::sleep(NAP);
            }
            if struck.elapsed() > PATIENCE_WITH_DEATH {
                bail!("a killed process is not dead after {PATIENCE_WITH_DEATH:?}");
            }
        }
        let at_death = trail.look(self.guest);
        let complete = self.missing.is_empty() && hit.len() == self.prey.len();
        let pids = hit.into_iter().map(Prey::pid).collect();
        Ok(Catch { pids, at, before, at_death, complete, after_end, stalled: self.stalled })
    }
}

/// Whether so many thousandths of the memory have arrived on the side to which it goes.
fn has_arrived(direction: Direction, thousandths: u64, step: Step, words: &Words) -> bool {
    let (under_way, arrived) = match direction {
        Direction::Decouple => (Step::Leaving, words.places.pooled),
        Direction::Recouple => (Step::Returning, words.places.local),
    };
    let all = words.places.local + words.places.mixed + words.places.pooled + words.places.damaged;
    step > under_way || step == under_way && arrived * 1_000 >= thousandths * all
}
