//! Jobs of this agent, waited for, and those of the next host on a guest's way.

use super::Host;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::name::HostName;
use crate::report::{JobReport, JobResult, Progress, RouteReport};
use axum::http::StatusCode;
use nil_pool::JobId;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::relocating::Hearer;
use super::super::undertaking::Work;

/// How often to look whether a job of this agent is over.
const LOOK: Duration = Duration::from_millis(10);
/// How long the agent of a host to which a guest has gone on may be away.
const PATIENCE_WITH_AGENTS: Duration = Duration::from_secs(10);
/// How often to look whether it is there again.
const LOOK_FOR_AGENT: Duration = Duration::from_millis(200);
/// How long it may say nothing while its job is followed: it says that it is there every 15 s.
const PATIENCE_WITH_SILENCE: Duration = Duration::from_secs(60);

impl Host {
    /// Does something as a job of its own. `begun` hears its number, and `hear` of each step.
    ///
    /// # Errors
    /// It could not begin.
    pub(super) fn carry_through(
        self: &Arc<Self>,
        work: Work,
        begun: impl FnOnce(JobId),
        hear: Hearer<'_>,
    ) -> Result<JobReport> {
        let job = self.begin(work)?;
        begun(job);
        let mut heard = None;
        loop {
            let report = self.job_report(job)?;
            if report.is_over() {
                return Ok(report);
            }
            if report.progress != heard {
                heard.clone_from(&report.progress);
                report.progress.into_iter().for_each(&mut *hear);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Follows the job of the host to which a guest has gone on, over restarts of its agent.
    ///
    /// # Errors
    /// The agent is away, or does not know of it; or the job came to nothing. A sentence.
    pub(super) fn follow_further(
        &self,
        host: &HostName,
        job: JobId,
        hear: Hearer<'_>,
    ) -> std::result::Result<RouteReport, String> {
        let away_since = Cell::new(None);
        loop {
            let followed = self.call_host(host).and_then(|mut agent| {
                agent.set_patience(Some(PATIENCE_WITH_SILENCE));
                self.follow_once(&mut agent, job, &mut |progress| {
                    away_since.set(None);
                    hear(progress);
                })
            });
            let why = match followed.map(|report| (is_breaking_off(&report), report)) {
                Ok((false, JobReport { report: Some(JobResult::Route(report)), .. })) => return Ok(*report),
                Ok((false, report)) => return Err(report.into_error().story()),
                // The agent ends; the next one takes it up by the same number.
                Ok((true, report)) => report.into_error().story(),
                Err(error) => error.story(),
            };
            let since = away_since.get().unwrap_or_else(Instant::now);
            away_since.set(Some(since));
            if since.elapsed() >= PATIENCE_WITH_AGENTS {
                return Err(why);
            }
            std::thread::sleep(LOOK_FOR_AGENT);
        }
    }

    fn follow_once(&self, agent: &mut Client, job: JobId, hear: Hearer<'_>) -> Result<JobReport> {
        if self.orders.is_closed() {
            return Err(Error::Stopping { name: self.dir.name().clone() });
        }
        agent.follow(job, &mut |progress: &Progress| hear(progress.clone()))
    }
}

/// Whether a job has ended because its agent ends.
pub(super) fn is_breaking_off(report: &JobReport) -> bool {
    let status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
    report.failure.as_ref().is_some_and(|problem| problem.status == status)
}
