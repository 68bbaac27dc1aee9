//! A migration over several hosts, for `nil migrate`: its report, and calling it off.

use super::duration::of_micros;
use nil_host::{
    Client, GuestName, JobFilter, JobKind, LegReport, LegResult, PATIENCE_WITH_AGENTS, RouteOutcome, RouteReport,
    RunDir, Survey,
};
use serde::Serialize;
use std::fmt;

/// Calls off a guest's way over several hosts, whichever host's agent has the say. `None` when it is not on one.
pub(super) fn cancel(survey: &Survey, run_dir: &RunDir, guest: &GuestName) -> Option<nil_host::Result<String>> {
    let agents = survey.hosts.iter().filter(|host| host.agent_pid.is_some());
    agents.filter_map(|host| Client::connect(&run_dir.host(&host.name)).ok()).find_map(|mut agent| {
        let of_guest = JobFilter { guest: Some(guest.clone()), ..JobFilter::latest(0) };
        let under_way = agent.within(PATIENCE_WITH_AGENTS, |agent| agent.jobs(&of_guest)).ok()?;
        let job = under_way.into_iter().find(|job| job.kind == JobKind::Route && job.host == *agent.host())?;
        Some(agent.cancel_job(job.id))
    })
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Report(pub(super) RouteReport);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteReport { guest, from, to, now_at, outcome, plans, total_us, blackout_ns, legs, remarks, .. } = &self.0;
        match outcome {
            RouteOutcome::Arrived => {
                let still = of_micros(blackout_ns.div_ceil(1000));
                writeln!(
                    f,
                    "{guest} moved from {from} to {to} in {}: it stood still for {still} in all",
                    of_micros(*total_us)
                )?;
            }
            RouteOutcome::Stranded { why } => writeln!(f, "{guest} runs on {now_at}, it did not get to {to}: {why}")?,
            RouteOutcome::Cancelled { why } => writeln!(f, "{guest}: {why}")?,
        }
        for plan in plans {
            writeln!(f, "way: {plan}")?;
        }
        for leg in legs {
            writeln!(f, "  {}", Leg(leg))?;
        }
        if let Some(recouple) = &self.0.recouple {
            writeln!(f, "recoupled in {} while it ran", of_micros(recouple.elapsed_us))?;
        }
        for remark in remarks {
            writeln!(f, "{remark}")?;
        }
        Ok(())
    }
}

/// One leg in one line.
struct Leg<'a>(&'a LegReport);

impl fmt::Display for Leg<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LegReport { step, took_us, result, .. } = self.0;
        write!(f, "{step}: ")?;
        match result {
            LegResult::Handoff { report } => match &report.handoff {
                Some(handoff) => write!(f, "stood still for {}", of_micros(handoff.blackout_ns.div_ceil(1000)))?,
                None => write!(f, "{}", outcome_word(&report.outcome))?,
            },
            LegResult::Rehoming { report } => {
                let bytes = report.decouple.as_ref().map_or(0, |moved| moved.total_bytes);
                write!(f, "{} moved", nil_pool::Bytes(bytes))?;
            }
            LegResult::Failed { why } => write!(f, "failed: {why}")?,
        }
        write!(f, ", after {}", of_micros(*took_us))
    }
}

fn outcome_word(outcome: &nil_host::MigrationOutcome) -> String {
    match outcome {
        nil_host::MigrationOutcome::Moved => "moved".to_owned(),
        nil_host::MigrationOutcome::TakenBack { why }
        | nil_host::MigrationOutcome::Cancelled { why }
        | nil_host::MigrationOutcome::Stalled { why } => why.clone(),
    }
}
