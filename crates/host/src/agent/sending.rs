//! One guest of a plan goes where it is to go: a job of its host's agent, ordered and waited for.
//!
//! ```text
//! target has joined the guest's home    a migration
//! it has not                            a way over other hosts, or over another pool of its own
//! ```

use super::Host;
use super::undertaking::Work;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::micros::micros;
use crate::name::HostName;
use crate::order::{Migrate, Route};
use crate::report::{
    Departure, JobReport, JobResult, LegResult, MigrationOutcome, PlannedMove, RouteOutcome, RouteReport,
};
use nil_pool::JobId;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often to look whether a job of this agent is over.
const LOOK: Duration = Duration::from_millis(10);
/// How often to ask another agent.
const ASK: Duration = Duration::from_millis(100);

/// What came of one move.
pub(super) enum Sent {
    Gone(Departure),
    /// The guest is where it was, and why.
    Stayed(String),
    /// Something else is being done with it.
    Busy(String),
}

/// The agent that a job is ordered from.
enum Orderer<'a> {
    Here(&'a Arc<Host>),
    There(Box<Client>),
}

impl Orderer<'_> {
    fn order(&mut self, one: &PlannedMove) -> Result<JobId> {
        let (guest, to) = (one.guest.clone(), one.to.clone());
        match self {
            Self::Here(host) => {
                let work = if one.rehomed {
                    Work::Route(Route::new(guest, to))
                } else {
                    Work::Migrate(Migrate::new(guest, to))
                };
                host.begin(work)
            }
            Self::There(agent) if one.rehomed => agent.begin_route(&Route::new(guest, to)).map(|job| job.id),
            Self::There(agent) => agent.begin_migration(&Migrate::new(guest, to)).map(|job| job.id),
        }
    }

    fn look(&mut self, job: JobId) -> Result<JobReport> {
        match self {
            Self::Here(host) => host.job_report(job),
            Self::There(agent) => agent.job(job),
        }
    }

    fn cancel(&mut self, job: JobId) -> Result<String> {
        match self {
            Self::Here(host) => host.cancel_job(job),
            Self::There(agent) => agent.cancel_job(job),
        }
    }

    fn pause(&self) -> Duration {
        match self {
            Self::Here(_) => LOOK,
            Self::There(_) => ASK,
        }
    }
}

impl Host {
    /// Sends one guest on its way, and waits for what comes of that. As soon as it `must_stop`, it is called off.
    pub(super) fn send(self: &Arc<Self>, one: &PlannedMove, must_stop: impl Fn() -> bool) -> Sent {
        let begun = Instant::now();
        let mut orderer = if one.from == *self.dir.name() {
            Orderer::Here(self)
        } else {
            match self.call_host(&one.from) {
                Ok(agent) => Orderer::There(Box::new(agent)),
                Err(error) => return Sent::Stayed(error.story()),
            }
        };
        let job = match orderer.order(one) {
            Ok(job) => job,
            Err(Error::Busy(why)) => return Sent::Busy(why),
            Err(error) => return Sent::Stayed(error.story()),
        };
        let mut called_off = false;
        let report = loop {
            match orderer.look(job) {
                Ok(report) if report.is_over() => break report,
                Ok(_) => {}
                Err(error) => return Sent::Stayed(error.story()),
            }
            if !called_off && must_stop() {
                called_off = true;
                if let Err(error) = orderer.cancel(job) {
                    tracing::debug!("guest {}: {}", one.guest, error.story());
                }
            }
            std::thread::sleep(orderer.pause());
        };
        let gone = |to: &HostName, way: String, blackout_ns| {
            Sent::Gone(Departure {
                guest: one.guest.clone(),
                from: one.from.clone(),
                to: to.clone(),
                way,
                job,
                took_us: micros(begun.elapsed()),
                blackout_ns,
            })
        };
        match report.report {
            Some(JobResult::Migration(migration)) => match &migration.outcome {
                MigrationOutcome::Moved => {
                    gone(&one.to, one.way.clone(), migration.handoff.map(|handoff| handoff.blackout_ns))
                }
                MigrationOutcome::TakenBack { why }
                | MigrationOutcome::Cancelled { why }
                | MigrationOutcome::Stalled { why } => Sent::Stayed(why.clone()),
            },
            Some(JobResult::Route(route)) => match &route.outcome {
                RouteOutcome::Stranded { why } | RouteOutcome::Cancelled { why } if route.now_at == one.from => {
                    Sent::Stayed(why.clone())
                }
                // It is somewhere on its way: it has left, if not as far as was meant.
                RouteOutcome::Arrived | RouteOutcome::Stranded { .. } | RouteOutcome::Cancelled { .. } => {
                    let way = route.plans.last().unwrap_or(&one.way).clone();
                    gone(&route.now_at, way, longest_blackout(&route))
                }
            },
            _ => Sent::Stayed(report.into_error().story()),
        }
    }
}

/// The longest of its handoffs.
fn longest_blackout(route: &RouteReport) -> Option<u64> {
    let handoffs = route.legs.iter().filter_map(|leg| match &leg.result {
        LegResult::Handoff { report } => report.handoff.as_ref().map(|handoff| handoff.blackout_ns),
        LegResult::Rehoming { .. } | LegResult::Failed { .. } => None,
    });
    handoffs.max()
}
