//! Evening hosts out: guests go from those that are used most to those that are used least.
//!
//! ```text
//! look around ─▶ plan ─▶ wave of moves ─▶ wave of moves ─▶ … ─▶ look around: how even it has become
//! ```
//!
//! Any agent can do it for all hosts of its machine. Each move is a job of the agent of the guest's host; what does not go
//! stays, and is told with the reason. The plan is carried out as it is: who wants another one orders another job.

use super::Host;
use super::calling_off::call_off_alone;
use super::draining::{check_parallel, told};
use super::jobs::{End, Errand, Job};
use super::ledger::Record;
use super::sending::Sent;
use crate::error::{Error, Result};
use crate::micros::micros;
use crate::order::Rebalance;
use crate::outlook::{Outlook, Usage};
use crate::report::{PlannedMove, Progress, RebalanceOutcome, RebalancePlan, RebalanceReport, Stay, Unevenness};
use crate::survey::Survey;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most guests that one job moves.
const MOST_MOVES: u32 = 10_000;

impl Host {
    /// What would go where if hosts were evened out now.
    pub(crate) fn rebalance_plan(&self, order: &Rebalance) -> Result<RebalancePlan> {
        check(order)?;
        let survey = Survey::take(&self.dir.run_dir())?;
        Ok(Outlook::of(&survey, &Usage::watch(&survey.guests))?.rebalance(order))
    }

    /// Calls off the evening out that is on, and waits until it has stopped. Returns how things stand.
    pub(crate) fn cancel_rebalance(&self) -> Result<String> {
        let nothing = || Error::refused(format!("host {} is not evening hosts out", self.dir.name()));
        let job = self.rebalance.job().ok_or_else(nothing)?;
        call_off_alone(&job)
    }

    /// Evens out the hosts of this machine.
    pub(super) fn rebalance(self: &Arc<Self>, order: &Rebalance, record: &Arc<Record>) -> Result<RebalanceReport> {
        check(order)?;
        let Some(turn) = self.rebalance.begin(Errand::Rebalance) else {
            return Err(Error::Busy(format!("host {} is evening hosts out already", self.dir.name())));
        };
        self.begun_alone(record, &turn.job);
        let begun = Instant::now();
        self.hear(record, Progress::step("looking how far each host is used"));
        let survey = Survey::take(&self.dir.run_dir())?;
        let usage = Usage::watch(&survey.guests);
        let RebalancePlan { plan, before, after } = Outlook::of(&survey, &usage)?.rebalance(order);
        let limit = order.time_limit_us.map(Duration::from_micros);
        let stopped = || stopped(&turn.job, begun, limit);
        let mut report = RebalanceReport {
            outcome: RebalanceOutcome::Done,
            before,
            planned: after.clone(),
            after,
            moved: Vec::new(),
            left: plan.left,
            predicted_us: plan.predicted_us,
            total_us: 0,
        };
        let all: usize = plan.waves.iter().map(Vec::len).sum();
        for wave in &plan.waves {
            let moves: Vec<String> = wave.iter().map(told).collect();
            let done = report.moved.len();
            if stopped().is_none() {
                let step = format!("{done} of {all} guests have moved: {}", moves.join(", "));
                self.hear(record, Progress::step(step));
            }
            for (one, sent) in self.send_all(wave, &stopped) {
                match sent {
                    Sent::Gone(departure) => report.moved.push(departure),
                    Sent::Stayed(why) | Sent::Busy(why) => {
                        let (guest, id) = (one.guest.clone(), one.id);
                        report.left.push(Stay { guest, id, why: format!("it was to go to {}: {why}", one.to) });
                    }
                }
            }
        }
        report.outcome = match stopped() {
            Some(outcome) if report.moved.len() < all => outcome,
            _ if report.left.is_empty() => RebalanceOutcome::Done,
            _ => RebalanceOutcome::Incomplete,
        };
        // Who uses what is not looked at again: what counts is where they are now.
        report.after = self.evenness(&usage).unwrap_or(report.after);
        report.total_us = micros(begun.elapsed());
        if report.outcome == RebalanceOutcome::Cancelled {
            turn.job.end(End::AsBefore(format!("{} of {all} guests have moved, the others stay", report.moved.len())));
        }
        Ok(report)
    }

    /// Makes moves all at once; none if it is to stop.
    fn send_all<'a>(
        self: &Arc<Self>,
        wave: &'a [PlannedMove],
        stopped: &(impl Fn() -> Option<RebalanceOutcome> + Sync),
    ) -> Vec<(&'a PlannedMove, Sent)> {
        if let Some(why) = stopped() {
            let why = match why {
                RebalanceOutcome::TimeUp => "the time was up",
                RebalanceOutcome::Cancelled | RebalanceOutcome::Done | RebalanceOutcome::Incomplete => {
                    "that was called off"
                }
            };
            return wave.iter().map(|one| (one, Sent::Stayed(why.to_owned()))).collect();
        }
        std::thread::scope(|scope| {
            let send = |one| (one, scope.spawn(move || self.send(one, || stopped().is_some())));
            let sending: Vec<_> = wave.iter().map(send).collect();
            let panicked = |_| Sent::Stayed("the agent failed to send it".to_owned());
            sending.into_iter().map(|(one, sent)| (one, sent.join().unwrap_or_else(panicked))).collect()
        })
    }

    fn evenness(&self, usage: &Usage) -> Result<Unevenness> {
        Ok(Outlook::of(&Survey::take(&self.dir.run_dir())?, usage)?.evenness())
    }
}

/// Whether it was called off, or its time is up.
fn stopped(job: &Job, begun: Instant, limit: Option<Duration>) -> Option<RebalanceOutcome> {
    match (job.is_cancelled(), limit.is_some_and(|limit| begun.elapsed() >= limit)) {
        (true, _) => Some(RebalanceOutcome::Cancelled),
        (false, true) => Some(RebalanceOutcome::TimeUp),
        (false, false) => None,
    }
}

fn check(order: &Rebalance) -> Result<()> {
    check_parallel(order.parallel)?;
    if !(1..=MOST_MOVES).contains(&order.moves) {
        return Err(Error::refused(format!("1 to {MOST_MOVES} guests can be moved, and not {}", order.moves)));
    }
    if order.tolerance_percent > 100 {
        return Err(Error::refused(format!("a tolerance is 0 to 100 percent, and not {}", order.tolerance_percent)));
    }
    Ok(())
}
