//! Emptying this host.
//!
//! ```text
//! cordon ─▶ look around ─▶ plan ─▶ one wave of moves, each a job of its own ─▶ look around …
//!                 ▲                      │ one fails: its target is not tried with that guest again, for a while
//!                 └──────────────────────┘
//! nothing left: emptied.  Nothing that can go: incomplete, with the reason for each guest.
//! ```
//!
//! Only the first wave of a plan is carried out; then everything is looked at anew. So a plan never gets old, and what has
//! failed is planned around. A guest for which no host with its pool has room goes over other hosts. Each guest is tried [`ATTEMPTS`] times at most, so it comes to an end.

mod lessons;

use super::Host;
use super::calling_off::call_off_alone;
use super::jobs::{End, Errand, Job};
use super::ledger::Record;
use super::sending::Sent;
use crate::error::{Error, Result};
use crate::micros::micros;
use crate::name::GuestName;
use crate::order::Drain;
use crate::outlook::{Lessons, Outlook, Usage};
use crate::report::{DrainOutcome, DrainReport, PlacementPlan, PlannedMove, Progress, Stay};
use crate::survey::Survey;
use lessons::Experience;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often each guest is tried.
const ATTEMPTS: u32 = 5;
/// How long to wait for guests that are busy: that start, or with which something else is being done.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at guests that are busy, and before a host is tried again that has refused one.
const RESPITE: Duration = Duration::from_secs(1);
/// For how long what guests use of the processors is taken to stay as it is.
pub(super) const USAGE_HOLDS: Duration = Duration::from_secs(10);
/// How many moves at once a host may be asked for.
pub(super) const PARALLEL: std::ops::RangeInclusive<u32> = 1..=64;

/// Emptying, as far as it has come.
struct Draining<'a> {
    host: &'a Arc<Host>,
    order: &'a Drain,
    record: &'a Arc<Record>,
    job: &'a Job,
    begun: Instant,
    experience: Experience,
    /// What guests use of the processors, and when that was seen.
    usage: Option<(Instant, Usage)>,
    /// Since when there has been nothing to do but wait.
    waiting_since: Option<Instant>,
    report: DrainReport,
}

/// What there is to do.
struct Look {
    plan: PlacementPlan,
    /// Guests that are busy, or that may be taken a little later.
    passing: Vec<Stay>,
    /// Guests that were on their way here before the host was cordoned.
    comers: Vec<GuestName>,
}

impl Host {
    /// What would go where if this host were emptied now.
    pub(crate) fn drain_plan(&self, parallel: u32) -> Result<PlacementPlan> {
        check_parallel(parallel)?;
        let survey = Survey::take(&self.dir.run_dir())?;
        let outlook = Outlook::of(&survey, &Usage::watch(&survey.guests))?;
        let mut plan = outlook.drain(self.dir.name(), parallel, &Lessons::default())?;
        plan.left.extend(outlook.busy(self.dir.name()));
        Ok(plan)
    }

    /// Calls off the emptying of this host, and waits until it has stopped. Returns how things stand.
    pub(crate) fn cancel_drain(&self) -> Result<String> {
        let job = self.drainage.job();
        let job = job.ok_or_else(|| Error::refused(format!("host {} is not being emptied", self.dir.name())))?;
        call_off_alone(&job)
    }

    /// Empties this host, which is cordoned first and stays so.
    pub(super) fn drain(self: &Arc<Self>, order: &Drain, record: &Arc<Record>) -> Result<DrainReport> {
        check_parallel(order.parallel)?;
        let Some(emptying) = self.drainage.begin(Errand::Drain) else {
            return Err(Error::Busy(format!(
                "host {} is being emptied already; `nil drain` waits for that",
                self.dir.name()
            )));
        };
        self.cordon()?;
        self.begun_alone(record, &emptying.job);
        let draining = Draining {
            host: self,
            order,
            record,
            job: &emptying.job,
            begun: Instant::now(),
            experience: Experience::default(),
            usage: None,
            waiting_since: None,
            report: DrainReport {
                host: self.dir.name().clone(),
                outcome: DrainOutcome::Emptied,
                departures: Vec::new(),
                left: Vec::new(),
                plans: 0,
                total_us: 0,
                predicted_us: 0,
            },
        };
        let report = draining.run()?;
        if report.outcome == DrainOutcome::Cancelled {
            let (gone, left) = (report.departures.len(), report.left.len());
            let state = format!("{gone} guests have left, {left} are here still; the host stays cordoned");
            emptying.job.end(End::AsBefore(state));
        }
        Ok(report)
    }
}

impl Draining<'_> {
    fn run(mut self) -> Result<DrainReport> {
        loop {
            let Look { plan, passing, comers } = self.look()?;
            if let Some(outcome) = self.stopped() {
                let here = plan.moves().map(|one| Stay {
                    guest: one.guest.clone(),
                    id: one.id,
                    why: format!("it was to go to {}, and {}", one.to, why_not(outcome)),
                });
                let left = here.chain(self.experience.explain(plan.left.clone())).chain(passing).collect();
                return Ok(self.end(outcome, left));
            }
            match plan.waves.first() {
                Some(wave) => {
                    self.waiting_since = None;
                    self.tell(&plan, wave);
                    self.carry_out(wave);
                }
                None if !(passing.is_empty() && comers.is_empty()) && self.has_patience() => {
                    let passing = passing.iter().map(|stay| &stay.guest);
                    let names: Vec<&str> = passing.chain(&comers).map(GuestName::as_str).collect();
                    self.host.hear(self.record, Progress::step(format!("waiting for {}", names.join(", "))));
                    std::thread::sleep(RESPITE);
                }
                None => {
                    let left: Vec<Stay> = self.experience.explain(plan.left).into_iter().chain(passing).collect();
                    let outcome = if left.is_empty() { DrainOutcome::Emptied } else { DrainOutcome::Incomplete };
                    return Ok(self.end(outcome, left));
                }
            }
        }
    }

    /// Looks at what is here now, and plans for it.
    fn look(&mut self) -> Result<Look> {
        // First: who has come by the time of the survey is in that.
        let comers = self.host.table.comers();
        let survey = Survey::take(&self.host.dir.run_dir())?;
        if self.usage.as_ref().is_none_or(|(at, _)| at.elapsed() > USAGE_HOLDS) {
            self.usage = Some((Instant::now(), Usage::watch(&survey.guests)));
        }
        let usage = self.usage.as_ref().map(|(_, usage)| usage.clone()).unwrap_or_default();
        let outlook = Outlook::of(&survey, &usage)?;
        let name = self.host.dir.name();
        let mut plan = outlook.drain(name, self.order.parallel, &self.experience.lessons())?;
        self.report.plans += 1;
        if self.report.plans == 1 {
            self.report.predicted_us = plan.predicted_us;
        }
        // Who refused it may only have been away.
        let (again, left): (Vec<Stay>, Vec<Stay>) =
            plan.left.into_iter().partition(|stay: &Stay| self.experience.forgive(stay.id));
        plan.left = left;
        let is_here = |stay: &Stay| {
            survey.guests.iter().any(|guest| guest.id == stay.id && guest.host.as_deref() == Some(name.as_str()))
        };
        plan.left.extend(self.experience.given_up().filter(is_here));
        let mut passing = again;
        passing.extend(outlook.busy(name));
        Ok(Look { plan, passing, comers })
    }

    /// Whether it was called off, or its time is up.
    fn stopped(&self) -> Option<DrainOutcome> {
        let limit = self.order.time_limit_us.map(Duration::from_micros);
        match (self.job.is_cancelled(), limit.is_some_and(|limit| self.begun.elapsed() >= limit)) {
            (true, _) => Some(DrainOutcome::Cancelled),
            (false, true) => Some(DrainOutcome::TimeUp),
            (false, false) => None,
        }
    }

    fn has_patience(&mut self) -> bool {
        self.waiting_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE
    }

    /// Tells those who follow how far it is.
    fn tell(&self, plan: &PlacementPlan, wave: &[PlannedMove]) {
        let gone = self.report.departures.len();
        let all = gone + plan.moves().count() + plan.left.len();
        let moves: Vec<String> = wave.iter().map(told).collect();
        let left = nil_fabric::Duration(self.time_left(plan));
        let step = format!("{gone} of {all} guests have left, about {left} to go: {}", moves.join(", "));
        self.host.hear(self.record, Progress::step(step));
    }

    /// What the rest is expected to take: as long as what is done has taken for each guest, or else as predicted.
    fn time_left(&self, plan: &PlacementPlan) -> u64 {
        match u64::try_from(self.report.departures.len()).unwrap_or(u64::MAX) {
            0 => plan.predicted_us,
            gone => (micros(self.begun.elapsed()) / gone).saturating_mul(plan.moves().count() as u64),
        }
    }

    /// Makes the moves of a wave, all at once, and takes note of what came of them.
    fn carry_out(&mut self, wave: &[PlannedMove]) {
        let sent: Vec<(&PlannedMove, Sent)> = std::thread::scope(|scope| {
            let this = &*self;
            let sending: Vec<_> = wave
                .iter()
                .map(|one| (one, scope.spawn(move || this.host.send(one, || this.stopped().is_some()))))
                .collect();
            let panicked = |_| Sent::Stayed("the agent failed to send it".to_owned());
            sending.into_iter().map(|(one, sent)| (one, sent.join().unwrap_or_else(panicked))).collect()
        });
        let mut busy = 0;
        for (one, sent) in sent {
            match sent {
                Sent::Gone(departure) => self.report.departures.push(departure),
                Sent::Stayed(why) => {
                    tracing::warn!("guest {}: it was to go to {}, and is here still: {why}", one.guest, one.to);
                    self.experience.failed(one, why);
                }
                Sent::Busy(why) => {
                    tracing::debug!("guest {}: {why}", one.guest);
                    busy += 1;
                    self.experience.busy(one, why);
                }
            }
        }
        if busy == wave.len() {
            std::thread::sleep(RESPITE);
        }
    }

    fn end(mut self, outcome: DrainOutcome, left: Vec<Stay>) -> DrainReport {
        self.report.outcome = outcome;
        self.report.left = left;
        self.report.total_us = micros(self.begun.elapsed());
        self.report
    }
}

/// A move in short: with its way, if it is not a handoff alone.
pub(super) fn told(one: &PlannedMove) -> String {
    let PlannedMove { guest, to, way, rehomed, .. } = one;
    if *rehomed { format!("{guest}: {way}") } else { format!("{guest} → {to}") }
}

fn why_not(outcome: DrainOutcome) -> &'static str {
    match outcome {
        DrainOutcome::Cancelled => "that was called off",
        DrainOutcome::TimeUp => "the time was up",
        DrainOutcome::Emptied | DrainOutcome::Incomplete => "it did not",
    }
}

pub(super) fn check_parallel(parallel: u32) -> Result<()> {
    if PARALLEL.contains(&parallel) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "so many moves at once can be asked of a host: {} to {}, and not {parallel}",
        PARALLEL.start(),
        PARALLEL.end()
    )))
}
