//! Reports of jobs in the pools, where every host finds them, also after the agent has ended.

use super::Host;
use super::ledger::Record;
use crate::error::{Error, Result};
use crate::report::{JobKind, JobReport, JobResult};
use nil_pool::{JobId, Report};
use std::collections::BTreeSet;

impl Host {
    /// Keeps the report of a migration in the pool that has the guest, or had it when it set out.
    pub(super) fn keep_report(&self, record: &Record) {
        let report = record.report();
        let (JobKind::Migration | JobKind::Route, Some((pool, guest))) = (report.kind, record.subject()) else {
            return;
        };
        let kept = self.pools.get(pool).and_then(|membership| {
            let kept = membership.keep_report(report.id, guest, &document(&report)?);
            Ok(match kept {
                Err(nil_pool::Error::ReportTooLong { .. }) => {
                    membership.keep_report(report.id, guest, &document(&without_details(report.clone()))?)
                }
                kept => kept,
            }?)
        });
        match kept {
            // A pool that an older nil has made has no room for reports.
            Ok(()) | Err(Error::Pool(nil_pool::Error::NoReports { .. })) => {}
            Err(error) => {
                tracing::warn!("{}: its report is not kept: {}", record.purpose(), error.story());
            }
        }
    }

    /// The job of that number: one of this agent's, or one whose report is in a pool.
    pub(crate) fn job_report(&self, id: JobId) -> Result<JobReport> {
        match self.job(id) {
            Ok(record) => Ok(record.report()),
            Err(unknown) => {
                let kept = self.pools.all().into_iter().find_map(|membership| membership.pool().report(id));
                kept.and_then(|report| understand(&report)).ok_or(unknown)
            }
        }
    }

    /// All jobs, the newest first: those of this agent, and those whose reports are in its pools.
    pub(crate) fn job_reports(&self) -> Vec<JobReport> {
        let mut reports = self.ledger.reports();
        let mut known: BTreeSet<JobId> = reports.iter().map(|report| report.id).collect();
        let kept = self.pools.all().into_iter().flat_map(|membership| membership.pool().reports());
        reports.extend(kept.filter(|report| known.insert(report.job)).filter_map(|report| understand(&report)));
        reports.sort_by_key(|report| std::cmp::Reverse((report.created_ms, report.id)));
        reports
    }
}

fn document(report: &JobReport) -> Result<Vec<u8>> {
    serde_json::to_vec(report).map_err(|error| Error::refused(error.to_string()))
}

/// The same report, without how the memory moved.
fn without_details(mut report: JobReport) -> JobReport {
    report.progress = None;
    if let Some(JobResult::Migration(migration)) = &mut report.report {
        (migration.decouple, migration.recouple) = (None, None);
        migration.remarks = vec!["how the memory moved is too long a story for the pool".to_owned()];
    }
    if let Some(JobResult::Route(route)) = &mut report.report {
        route.recouple = None;
        route.legs.clear();
        route.remarks = vec!["what happened leg by leg is too long a story for the pool".to_owned()];
    }
    report
}

/// What another host has written, if it is the report of that job; a later version may write otherwise.
fn understand(kept: &Report) -> Option<JobReport> {
    let report: JobReport = serde_json::from_slice(&kept.bytes).ok()?;
    (report.id == kept.job && report.is_over()).then_some(report)
}
