//! Reports of jobs in the pools, where every host finds them, also after the agent has ended.

use super::Host;
use super::ledger::{Ending, LAST, Record};
use crate::error::{Error, Result};
use crate::order::JobFilter;
use crate::report::{JobKind, JobReport, JobResult, JobSummary};
use nil_pool::{JobId, Membership, Pool, PoolId, Report};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

impl Host {
    /// Keeps the report of a migration, or a takeover, in the pool that has the guest, or had it when it set out.
    pub(super) fn keep_report(&self, record: &Record) {
        let report = record.report();
        let (JobKind::Migration | JobKind::Route | JobKind::Takeover, Some((pool, guest))) =
            (report.kind, record.subject())
        else {
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
            Err(unknown) => self.kept.lock(&self.pools.all()).find(id).ok_or(unknown),
        }
    }

    /// The jobs that are wanted: those under way, the newest first; then those that are over, the last one first, of this
    /// agent and those whose reports are in its pools.
    ///
    /// # Errors
    /// The one that they are to have ended before is not known, or is not over.
    pub(crate) fn jobs(&self, wanted: &JobFilter) -> Result<Vec<JobSummary>> {
        let pools = self.pools.all();
        let kept = self.kept.lock(&pools);
        let before = match wanted.before {
            None => None,
            Some(id) => Some(self.ledger.ending(id).or_else(|| kept.ending(id)).ok_or_else(|| no_such_end(id))?),
        };
        let mut over = self.ledger.over(wanted, before);
        over.extend(kept.over(wanted, before, |id| self.ledger.find(id).is_some()));
        drop(kept);
        over.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        over.dedup_by_key(|(at, _)| *at);
        over.truncate(wanted.past.into());
        let running = if before.is_some() { Vec::new() } else { self.ledger.under_way(wanted) };
        Ok(running.into_iter().chain(over.into_iter().map(|(_, job)| JobSummary::clone(&job))).collect())
    }
}

/// What the rings of the pools say, each report understood once.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<BTreeMap<PoolId, Ring>>);

/// One ring.
#[derive(Debug, Default)]
struct Ring {
    /// The sequence numbers of what has been read, by entry.
    seen: Vec<u64>,
    /// What was understood, by entry.
    endings: BTreeMap<usize, Ending>,
    over: BTreeMap<Ending, (usize, Arc<JobSummary>)>,
}

/// All of them, as they are now.
struct Shelf<'a> {
    pools: &'a [Arc<Membership>],
    rings: MutexGuard<'a, BTreeMap<PoolId, Ring>>,
}

impl Kept {
    /// Reads what has come meanwhile.
    fn lock<'a>(&'a self, pools: &'a [Arc<Membership>]) -> Shelf<'a> {
        let mut rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for membership in pools {
            rings.entry(membership.pool().id()).or_default().read(membership.pool());
        }
        Shelf { pools, rings }
    }
}

impl Ring {
    fn read(&mut self, pool: &Pool) {
        for (entry, report) in pool.reports_since(&mut self.seen) {
            if let Some(former) = self.endings.remove(&entry) {
                self.over.remove(&former);
            }
            let understood = report.as_ref().and_then(understand);
            let Some((at, job)) = understood.as_ref().and_then(|job| Some(((job.ended_ms?, job.id), job))) else {
                continue;
            };
            self.endings.insert(entry, at);
            self.over.insert(at, (entry, Arc::new(JobSummary::from(job))));
        }
    }
}

impl Shelf<'_> {
    fn ending(&self, id: JobId) -> Option<Ending> {
        let mut endings = self.rings.values().flat_map(|ring| ring.over.keys());
        endings.find(|(_, job)| *job == id).copied()
    }

    /// As [`Ledger::over`](super::ledger::Ledger::over), but for those that are known otherwise.
    fn over(
        &self,
        wanted: &JobFilter,
        before: Option<Ending>,
        is_known: impl Fn(JobId) -> bool,
    ) -> Vec<(Ending, Arc<JobSummary>)> {
        let in_ring = |ring: &Ring| {
            let candidates = ring.over.range(..before.unwrap_or(LAST)).rev();
            let meant = candidates.filter(|((_, id), (_, job))| wanted.admits(job.guest.as_ref()) && !is_known(*id));
            meant.take(wanted.past.into()).map(|(at, (_, job))| (*at, Arc::clone(job))).collect::<Vec<_>>()
        };
        self.rings.values().flat_map(in_ring).collect()
    }

    /// The whole report of a job.
    fn find(&self, id: JobId) -> Option<JobReport> {
        self.pools.iter().find_map(|membership| {
            let ring = self.rings.get(&membership.pool().id())?;
            let (_, (entry, _)) = ring.over.iter().find(|((_, job), _)| *job == id)?;
            // Another may have taken its place in this moment.
            understand(&membership.pool().report_at(*entry)?).filter(|report| report.id == id)
        })
    }
}

fn no_such_end(id: JobId) -> Error {
    Error::Unknown(format!(
        "there is no job {id} that is over, before which others could have ended; begin with the newest"
    ))
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

#[cfg(test)]
mod tests {
    use super::*;
    use nil_pool::{CreateOptions, GRANULE, GuestId, HostId, HostIdentity, HostKind};

    fn member(directory: &tempfile::TempDir, name: &str) -> Arc<Membership> {
        let options = CreateOptions { size: Some(4 * GRANULE), ..CreateOptions::default() };
        let pool = Pool::create(&directory.path().join(name), &options).expect("a new pool");
        let (id, name) = (HostId::random(), name.to_owned());
        Arc::new(pool.join(&HostIdentity { id, name, kind: HostKind::Agent, address: None }).expect("membership"))
    }

    fn job(guest: &str, ended_ms: u64) -> JobReport {
        let job = serde_json::json!({
            "id": JobId::random(), "kind": "migration", "guest": guest, "host": "A", "to": "B", "phase": "ended",
            "outcome": "failed", "created_ms": 1, "ended_ms": ended_ms,
            "failure": { "title": "Unprocessable Content", "status": 422, "detail": "host B does not answer" },
        });
        serde_json::from_value(job).expect("a job's report")
    }

    fn keep(membership: &Membership, report: &JobReport) {
        let document = document(report).expect("a document");
        membership.keep_report(report.id, GuestId::random(), &document).expect("kept");
    }

    #[test]
    fn what_the_pools_keep_is_told_in_order_whichever_of_them_has_it() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let pools = vec![member(&directory, "one"), member(&directory, "two")];
        let jobs: Vec<JobReport> =
            [("g", 10), ("h", 20), ("g", 30), ("g", 40)].map(|(guest, at)| job(guest, at)).into();
        let kept = Kept::default();
        jobs.iter().enumerate().for_each(|(number, job)| keep(&pools[number % 2], job));
        // What is no report of a job is passed over.
        pools[0].keep_report(JobId::random(), GuestId::random(), b"{}").expect("kept");
        pools[0]
            .keep_report(JobId::random(), GuestId::random(), &document(&jobs[0]).expect("a document"))
            .expect("kept");
        let told = |wanted: &JobFilter, before, known: Option<JobId>| {
            let mut told = kept.lock(&pools).over(wanted, before, |id| Some(id) == known);
            told.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
            told.into_iter().map(|((at, _), _)| at).collect::<Vec<_>>()
        };
        let all = JobFilter::latest(9);
        assert_eq!(told(&all, None, None), [40, 30, 20, 10]);
        let third = kept.lock(&pools).ending(jobs[2].id);
        assert_eq!(told(&all, third, None), [20, 10]);
        assert_eq!(told(&all, None, Some(jobs[1].id)), [40, 30, 10]);
        let of_h = JobFilter { guest: Some("h".parse().expect("a good name")), ..all };
        assert_eq!(told(&of_h, None, None), [20]);
        let found = kept.lock(&pools).find(jobs[1].id).expect("kept");
        assert_eq!(found.failure.map(|failure| failure.detail), Some("host B does not answer".to_owned()));
        assert!(kept.lock(&pools).find(JobId::random()).is_none());
    }

    #[test]
    fn what_the_ring_has_forgotten_is_forgotten_here_too() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let pools = vec![member(&directory, "one")];
        let (kept, first) = (Kept::default(), job("g", 1));
        keep(&pools[0], &first);
        assert!(kept.lock(&pools).ending(first.id).is_some());
        let mut seen = Vec::new();
        drop(pools[0].pool().reports_since(&mut seen));
        (0..seen.len() as u64).for_each(|number| keep(&pools[0], &job("g", 2 + number)));
        let shelf = kept.lock(&pools);
        assert!(shelf.ending(first.id).is_none() && shelf.find(first.id).is_none());
        assert_eq!(shelf.over(&JobFilter::latest(JobFilter::MOST), None, |_| false).len(), seen.len());
    }
}
