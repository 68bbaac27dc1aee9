//! A rack with a guest on it, round after round, and what must hold between two rounds.

use super::drill;
use super::journey::Errand;
use super::judge::End;
use super::plan::{Afterwards, Plan, Scope};
use super::report::Loss;
use super::round::{Finding, Round};
use super::subject::{Subject, side_of};
use super::trail::Spread;
use crate::lab::dice::Dice;
use crate::lab::frequency::Frequency;
use crate::lab::soundness::{require_clean, require_sound};
use crate::lab::{GuestPlan, Rack, RackPlan, Side};
use anyhow::Context;
use nil_host::MemoryIn;
use nil_mover::Pace;
use std::collections::BTreeMap;
use std::time::Duration;

/// Undisturbed errands from which their duration is learnt, of each kind.
const QUIET: u32 = 3;
/// How many rounds of mere handoffs a guest plays until it verifies everything, at least.
const VERIFY_EVERY: u64 = 20;

/// How long each errand takes when nobody is killed.
pub(super) type Typical = BTreeMap<Errand, Duration>;

/// Two hosts, a guest, and what is known about them.
#[derive(Debug)]
pub(super) struct Stand {
    subject: Option<Subject>,
    rack: Rack,
    guest: GuestPlan,
    scope: Scope,
    frequency: Frequency,
    /// Free bytes of the pool without any guest.
    free: u64,
    pub(super) typical: Typical,
    round: Option<Round>,
    pub(super) tally: Tally,
}

/// What has been done besides killing, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The stories of rounds whose errand failed before anybody was killed.
    pub(super) failed_undisturbed: Vec<String>,
    pub(super) losses: Vec<Loss>,
    pub(super) guests_booted: u64,
    pub(super) verifications: u64,
    pub(super) pool_checks: u64,
    pub(super) drills: u64,
}

/// What came of a round.
#[derive(Clone, Copy, Debug)]
pub(super) enum Played {
    Killed(Plan, Finding),
    /// A victim had gone before.
    Missed,
}

impl Stand {
    /// Starts two hosts. `typical` is how long errands take, as far as that is known already.
    pub(super) fn build(rack: &RackPlan, guest: GuestPlan, scope: Scope, typical: Typical) -> anyhow::Result<Self> {
        let rack = Rack::build(rack)?;
        let free = rack.pool().usage().free;
        let frequency = Frequency::measure();
        let (subject, round, tally) = (None, None, Tally::default());
        Ok(Self { subject, rack, guest, scope, frequency, free, typical, round, tally })
    }

    /// Plays a round. An error is a violation, or an interruption.
    pub(super) fn play(&mut self, seed: u64, number: u64) -> anyhow::Result<Played> {
        self.round = None;
        let (birthplace, plan) = draw(seed, number, self.scope);
        let mut subject = match self.subject.take() {
            Some(subject) => subject,
            None => self.boot(birthplace)?,
        };
        self.make_ready(&mut subject, plan.errand).context("the guest cannot be made ready for the next round")?;
        let journey = subject.journey(&self.rack, plan.errand)?;
        let typical = self.typical.get(&plan.errand).copied().unwrap_or_default();
        let round = self.round.insert(Round::new(plan, journey));
        let finding = round.play(&self.rack, &subject, typical, self.free)?;
        if let Some(took) = round.took {
            self.typical.insert(plan.errand, (typical * 7 + took) / 8);
        }
        if round.failed_undisturbed {
            self.tally.failed_undisturbed.push(format!("round {number}: {}{}", round.history(), self.rack.logs()));
        }
        match finding.end {
            End::Lost { host, .. } => {
                self.tally.losses.extend(finding.complete.then(|| Loss::of(number, &plan, &finding)));
                self.bury(subject, side_of(&self.rack, host)?)?;
            }
            End::Runs { .. } => {
                self.examine(&mut subject, finding.rescued || number.is_multiple_of(VERIFY_EVERY))?;
                match plan.afterwards {
                    Afterwards::Kept => self.subject = Some(subject),
                    Afterwards::Stopped => self.stop(subject)?,
                }
            }
        }
        Ok(if finding.complete { Played::Killed(plan, finding) } else { Played::Missed })
    }

    /// Stops the guest, after the last round.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        match self.subject.take() {
            Some(subject) => self.stop(subject),
            None => Ok(()),
        }
    }

    /// Boots a guest; the first one also shows how long errands take.
    fn boot(&mut self, side: Side) -> anyhow::Result<Subject> {
        let mut subject = Subject::boot(&self.rack, side, (&self.guest, self.scope.memory_in), self.frequency)?;
        self.tally.guests_booted += 1;
        for &errand in self.scope.errands() {
            if !self.typical.contains_key(&errand) {
                let typical = self.learn(&mut subject, errand)?;
                self.typical.insert(errand, typical);
            }
        }
        Ok(subject)
    }

    fn learn(&self, subject: &mut Subject, errand: Errand) -> anyhow::Result<Duration> {
        let mut total = Duration::ZERO;
        for _ in 0..QUIET {
            self.make_ready(subject, errand)?;
            total += drill::undisturbed(&self.rack, subject, errand, Pace::default())?;
        }
        Ok(total / QUIET)
    }

    /// Brings the guest's memory to where an errand begins.
    fn make_ready(&self, subject: &mut Subject, errand: Errand) -> anyhow::Result<()> {
        let (wanted, way) = match (errand, subject.home()) {
            (Errand::Migration, MemoryIn::Dram) | (Errand::Decouple, _) => (Spread::Dram, Errand::Recouple),
            (Errand::Migration, MemoryIn::Pool) | (Errand::Recouple, _) => (Spread::Pool, Errand::Decouple),
        };
        let words = subject.words().now()?;
        if words.spread() != wanted {
            drill::undisturbed(&self.rack, subject, way, Pace::Fast)?;
        }
        Ok(())
    }

    /// What must hold of a guest that has survived its round: nothing of its memory is lost, and it can be moved on.
    fn examine(&mut self, subject: &mut Subject, must_verify: bool) -> anyhow::Result<()> {
        let side = subject.side(&self.rack)?;
        subject.look_at(&self.rack, side)?;
        self.check_pool()?;
        if must_verify || self.scope.has_moves() {
            self.tally.verifications += 1;
            require_clean(&subject.verify_all()?)?;
        }
        if self.scope.has_moves() {
            self.tally.drills += 1;
            drill::there_and_back(&self.rack, subject).context("the guest cannot be moved after the round")?;
            self.check_pool()?;
        }
        require_clean(&subject.verdict()?)
    }

    /// What must hold when a guest is lost: what it has left is sound, and can be freed.
    fn bury(&mut self, mut subject: Subject, side: Side) -> anyhow::Result<()> {
        self.check_pool()?;
        if subject.look_at_remains()? {
            require_clean(&subject.verdict()?)?;
        }
        subject.stop(&self.rack, side, self.free)?;
        self.check_pool()
    }

    /// Stops a guest that runs, and sees that nothing of it is left.
    fn stop(&mut self, subject: Subject) -> anyhow::Result<()> {
        let side = subject.side(&self.rack)?;
        subject.stop(&self.rack, side, self.free)?;
        self.check_pool()
    }

    fn check_pool(&mut self) -> anyhow::Result<()> {
        self.tally.pool_checks += 1;
        require_sound(self.rack.pool())
    }

    /// The story of the last round.
    pub(super) fn history(&self) -> String {
        self.round.as_ref().map_or_else(|| "no round had begun".to_owned(), Round::history)
    }

    /// What the hosts and workers have said last.
    pub(super) fn logs(&self) -> String {
        self.rack.logs()
    }
}

/// Where the guest of a round is booted if there is none, and what the round does.
pub(super) fn draw(seed: u64, number: u64, scope: Scope) -> (Side, Plan) {
    let mut dice = Dice::of_round(seed, number);
    let birthplace = dice.pick([(1, Side::A), (1, Side::B)]);
    (birthplace, Plan::draw(&mut dice, scope))
}
