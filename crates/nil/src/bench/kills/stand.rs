//! A rack with a guest on it, round after round, and what must hold between two rounds.

use super::dice::Dice;
use super::judge::End;
use super::plan::{Plan, Victim};
use super::prey;
use super::round::{Finding, Round};
use super::subject::{Subject, side_of};
use crate::lab::frequency::Frequency;
use crate::lab::{GuestPlan, Rack, RackPlan, Side, interrupt};
use anyhow::{Context, bail, ensure};
use nil_host::MigrationOutcome;
use std::time::Duration;

/// Undisturbed migrations from which their duration is learnt.
const QUIET: u32 = 3;
/// How many rounds a guest plays until it verifies everything, at least.
const VERIFY_EVERY: u64 = 20;

/// How long a worker may take to end after the guest has left it.
const PATIENCE_WITH_OLD_WORKER: Duration = Duration::from_secs(20);

/// Two hosts, a guest, and what is known about them.
#[derive(Debug)]
pub(super) struct Stand {
    subject: Option<Subject>,
    rack: Rack,
    guest: GuestPlan,
    frequency: Frequency,
    /// Free bytes of the pool without any guest, and with one.
    free: u64,
    free_with_guest: Option<u64>,
    typical: Duration,
    round: Option<Round>,
    /// The stories of rounds whose migration failed before anybody was killed.
    pub(super) failed_undisturbed: Vec<String>,
    pub(super) guests_booted: u64,
    pub(super) verifications: u64,
    pub(super) pool_checks: u64,
}

/// What came of a round.
#[derive(Clone, Copy, Debug)]
pub(super) enum Played {
    Killed(Victim, Finding),
    /// The victim had gone before.
    Missed,
}

impl Stand {
    /// Starts two hosts. `typical` is how long a migration takes, as far as that is known already.
    pub(super) fn build(rack: &RackPlan, guest: GuestPlan, typical: Duration) -> anyhow::Result<Self> {
        let rack = Rack::build(rack)?;
        let free = rack.pool().usage().free;
        let frequency = Frequency::measure();
        Ok(Self {
            subject: None,
            rack,
            guest,
            frequency,
            free,
            free_with_guest: None,
            typical,
            round: None,
            failed_undisturbed: Vec::new(),
            guests_booted: 0,
            verifications: 0,
            pool_checks: 0,
        })
    }

    /// Plays a round. An error is a violation, or an interruption.
    pub(super) fn play(&mut self, seed: u64, number: u64) -> anyhow::Result<Played> {
        self.round = None;
        let mut dice = Dice::of_round(seed, number);
        let birthplace = dice.pick([(1, Side::A), (1, Side::B)]);
        let subject = match self.subject.take() {
            Some(subject) => subject,
            None => self.boot(birthplace)?,
        };
        let journey = subject.journey(&self.rack)?;
        let plan = Plan::draw(&mut dice, self.typical);
        let round = self.round.insert(Round::new(plan, journey));
        let finding = round.play(&self.rack, &subject)?;
        if let Some(took) = round.took {
            self.typical = (self.typical * 7 + took) / 8;
        }
        if round.failed_undisturbed {
            self.failed_undisturbed.push(format!("round {number}: {}{}", round.history(), self.rack.logs()));
        }
        let rescued = finding.is_some_and(|finding| finding.rescued);
        match finding.map(|finding| finding.end) {
            Some(End::Lost { host, .. }) => {
                self.inspect(&subject)?;
                let side = side_of(&self.rack, host)?;
                subject.stop(&self.rack, side, self.free)?;
                self.check_pool()?;
            }
            Some(End::Runs { .. }) | None => {
                if rescued || number.is_multiple_of(VERIFY_EVERY) {
                    self.verify(&subject)?;
                }
                self.inspect(&subject)?;
                self.subject = Some(subject);
            }
        }
        Ok(finding.map_or(Played::Missed, |finding| Played::Killed(plan.victim, finding)))
    }

    /// Boots a guest; the first one also shows how long a migration takes.
    fn boot(&mut self, side: Side) -> anyhow::Result<Subject> {
        let subject = Subject::boot(&self.rack, side, &self.guest, self.frequency)?;
        self.guests_booted += 1;
        if self.free_with_guest.is_none() {
            self.free_with_guest = Some(self.rack.pool().usage().free);
            self.learn(&subject, side)?;
        }
        Ok(subject)
    }

    fn learn(&mut self, subject: &Subject, side: Side) -> anyhow::Result<()> {
        let mut from = side;
        let mut total = 0;
        for _ in 0..QUIET {
            let order = subject.order_migration(&self.rack, from)?;
            let report = order.join().map_err(|_| anyhow::anyhow!("the migration panicked"))?;
            let report = report.context("the guest could not be migrated although nobody was killed")?;
            if let MigrationOutcome::TakenBack { why } = report.outcome {
                bail!("the guest could not be migrated although nobody was killed: {why}");
            }
            total += report.total_us;
            from = from.other();
            self.await_one_worker()?;
        }
        self.typical = Duration::from_micros(total / u64::from(QUIET));
        Ok(())
    }

    /// Waits until the worker that the guest has left has ended.
    fn await_one_worker(&self) -> anyhow::Result<()> {
        let alone = || Ok((prey::workers(&self.rack).len() == 1).then_some(()));
        interrupt::wait_for("the worker that the guest has left has not ended", PATIENCE_WITH_OLD_WORKER, alone)
    }

    /// What must hold whenever the hosts have settled.
    fn inspect(&mut self, subject: &Subject) -> anyhow::Result<()> {
        let verdict = subject.verdict()?;
        ensure!(verdict.is_clean(), "the guest found an error: {}", verdict.first_error.unwrap_or_default());
        let free = self.rack.pool().usage().free;
        if let Some(expected) = self.free_with_guest {
            ensure!(free == expected, "the pool has {free} bytes free with one guest, and had {expected} before");
        }
        self.check_pool()
    }

    fn check_pool(&mut self) -> anyhow::Result<()> {
        self.pool_checks += 1;
        let report = self.rack.pool().check(false);
        let findings = report.findings.iter().map(|finding| format!("{}: {}", finding.place, finding.what));
        ensure!(report.is_clean(), "the pool is not sound: {}", findings.collect::<Vec<_>>().join("; "));
        Ok(())
    }

    fn verify(&mut self, subject: &Subject) -> anyhow::Result<()> {
        self.verifications += 1;
        let verdict = subject.verify_all()?;
        ensure!(verdict.is_clean(), "the guest found an error: {}", verdict.first_error.unwrap_or_default());
        Ok(())
    }

    /// How long a migration takes.
    pub(super) fn typical(&self) -> Duration {
        self.typical
    }

    /// The story of the last round.
    pub(super) fn history(&self) -> String {
        self.round.as_ref().map_or_else(|| "no migration had begun".to_owned(), Round::history)
    }

    /// What the hosts and workers have said last.
    pub(super) fn logs(&self) -> String {
        self.rack.logs()
    }
}
