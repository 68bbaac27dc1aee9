//! The jobs of an agent: what has been ordered that takes long, how far it is, how it ended.
//!
//! ```text
//! ordered ──▶ a thread of its own ──▶ the guest is occupied ──▶ … ──▶ over
//!                    │                        │                        │
//!                    ▼                        ▼                        ▼
//!            whoever ordered it       it has a number and      the report is kept with
//!            is told why not          stands in the ledger     the last thousand others
//! ```
//!
//! A job does not depend on whoever ordered it, nor on anybody who follows it. What is done with the guest itself, and how
//! that is called off, is in [`super::jobs`]: a record here points there.

use super::jobs::{Job, Stage};
use super::routing::Course;
use crate::error::{Error, Result};
use crate::feed::{Feed, Reader};
use crate::message::Lane;
use crate::name::{GuestName, HostName};
use crate::order::JobFilter;
use crate::problem::Problem;
use crate::report::{JobKind, JobOutcome, JobPhase, JobReport, JobResult, JobSummary, Progress};
use nil_pool::{GuestId, JobId, PoolId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// How many jobs that are over are kept.
const HISTORY: usize = 1000;
/// Later than any job ends.
pub(super) const LAST: Ending = (u64::MAX, JobId::from_bytes([0xFF; 16]));
/// How many steps of each job are kept. Numbers that grow are one step.
const STEPS: usize = 64;
/// How often those who follow many jobs hear of numbers that grow.
const PERIOD: Duration = Duration::from_millis(250);

/// What a job is for.
#[derive(Clone, Debug)]
pub(super) struct Purpose {
    pub(super) kind: JobKind,
    /// The guest, if it is about one.
    pub(super) guest: Option<GuestName>,
    pub(super) to: Option<HostName>,
    /// After this time it is called off.
    pub(super) limit: Option<Duration>,
}

/// What is being done, and how it is called off.
#[derive(Clone, Debug)]
pub(super) enum Doing {
    /// With the guest.
    Guest(Lane, Arc<Job>),
    /// With the host.
    Host(Arc<Job>),
    /// The guest is sent over several hosts, which is no occupation of it here.
    Route(Arc<Course>),
}

/// One job.
#[derive(Debug)]
pub(crate) struct Record {
    id: JobId,
    host: HostName,
    purpose: Purpose,
    created_ms: u64,
    steps: Arc<Feed<Progress>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Who wants to know whether it has begun.
    orderer: Option<oneshot::Sender<Result<JobReport>>>,
    doing: Option<Doing>,
    /// The guest that it is about, and the pool that has its record.
    subject: Option<(PoolId, GuestId)>,
    progress: Option<Progress>,
    /// When those who follow many jobs have heard of numbers that grow, if these were the last that they heard of.
    told: Option<Instant>,
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    at_ms: u64,
    outcome: std::result::Result<JobResult, Problem>,
}

/// Whether a job that has ended stands in the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    Recorded,
    /// It had not even begun: whoever ordered it has been told why.
    Refused,
}

/// All jobs that are not over, and the last of those that are.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    running: HashMap<JobId, Arc<Record>>,
    /// With what they say in short: they have said it all.
    over: BTreeMap<Ending, (Arc<Record>, Arc<JobSummary>)>,
    /// When those that are over have ended.
    endings: HashMap<JobId, Ending>,
}

/// By what jobs that are over are put in order: when they ended, in milliseconds since 1970, and which they are.
pub(super) type Ending = (u64, JobId);

impl Doing {
    /// Waits a while for its end. Whether it has come to it.
    pub(super) fn is_over_within(&self, patience: Duration) -> bool {
        match self {
            Self::Guest(_, job) | Self::Host(job) => job.wait(patience).is_some(),
            Self::Route(course) => course.wait(patience).is_some(),
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.guest {
            Some(guest) => write!(f, "guest {guest}: {}", self.kind),
            None => self.kind.fmt(f),
        }
    }
}

impl Record {
    /// A job that is about to begin. `orderer` is told when it has, or why it does not.
    pub(super) fn new(
        id: JobId,
        host: &HostName,
        purpose: Purpose,
        orderer: oneshot::Sender<Result<JobReport>>,
    ) -> Self {
        Self {
            id,
            host: host.clone(),
            purpose,
            created_ms: now_ms(),
            steps: Arc::new(Feed::new(STEPS)),
            state: Mutex::new(State {
                orderer: Some(orderer),
                doing: None,
                subject: None,
                progress: None,
                told: None,
                end: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    pub(super) fn purpose(&self) -> &Purpose {
        &self.purpose
    }

    /// Takes note of a step. Of numbers that grow only the last ones are kept. Returns whether others should hear of it,
    /// who follow many jobs: of numbers that grow they do now and then.
    pub(super) fn hear(&self, progress: Progress) -> bool {
        let grows = progress.moving.is_some();
        let mut state = self.lock();
        state.progress = Some(progress.clone());
        let is_news = !grows || state.told.is_none_or(|at| at.elapsed() >= PERIOD);
        if is_news {
            state.told = grows.then(Instant::now);
        }
        drop(state);
        self.steps.push(progress, |before| grows && before.moving.is_some());
        is_news
    }

    /// Lets those go who follow it, when it is over and everything about that has been written down.
    pub(super) fn close(&self) {
        self.steps.close();
    }

    /// Follows its steps, from the first one that has a greater number than `after`. The end of the job ends that.
    pub(crate) fn follow(&self, after: u64) -> Reader<Progress> {
        self.steps.follow(after)
    }

    /// What is being done, if it has begun and is not over.
    pub(super) fn doing(&self) -> Option<Doing> {
        let state = self.lock();
        state.doing.clone().filter(|_| state.end.is_none())
    }

    /// The guest that it is about, and the pool that has its record, once it has begun.
    pub(super) fn subject(&self) -> Option<(PoolId, GuestId)> {
        self.lock().subject
    }

    /// How things stand with it.
    pub(crate) fn report(&self) -> JobReport {
        self.report_of(&self.lock())
    }

    /// The same in short.
    pub(super) fn summary(&self) -> JobSummary {
        JobSummary::from(&self.report())
    }

    fn report_of(&self, state: &State) -> JobReport {
        let Purpose { kind, guest, to, limit } = &self.purpose;
        let phase = match (&state.end, &state.doing) {
            (Some(_), _) => JobPhase::Ended,
            (None, Some(Doing::Guest(_, job) | Doing::Host(job))) => job.look(phase_of),
            (None, Some(Doing::Route(_))) => JobPhase::Travelling,
            (None, None) => JobPhase::Preparing,
        };
        let end = state.end.as_ref().map(|end| &end.outcome);
        JobReport {
            id: self.id,
            kind: *kind,
            guest: guest.clone(),
            host: self.host.clone(),
            to: to.clone(),
            phase,
            outcome: end.map(|end| end.as_ref().map_or(JobOutcome::Failed, JobResult::outcome)),
            progress: state.progress.clone(),
            created_ms: self.created_ms,
            ended_ms: state.end.as_ref().map(|end| end.at_ms),
            deadline_ms: limit.map(|limit| self.created_ms.saturating_add(millis(limit))),
            failure: end.and_then(|end| end.as_ref().err().cloned()),
            report: end.and_then(|end| end.as_ref().ok().cloned()),
        }
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the jobs under way are for.
    pub(super) fn running(&self) -> Vec<JobKind> {
        self.lock().running.values().map(|record| record.purpose.kind).collect()
    }

    /// The jobs under way that are wanted, the newest first.
    pub(super) fn under_way(&self, wanted: &JobFilter) -> Vec<JobSummary> {
        let mut records: Vec<Arc<Record>> = self.lock().running.values().cloned().collect();
        records.retain(|record| wanted.admits(record.purpose.guest.as_ref()));
        records.sort_by_key(|record| std::cmp::Reverse((record.created_ms, record.id)));
        records.iter().map(|record| record.summary()).collect()
    }

    /// The jobs that are over and wanted, and ended before `before` if it is said: the last ones, the newest first.
    pub(super) fn over(&self, wanted: &JobFilter, before: Option<Ending>) -> Vec<(Ending, Arc<JobSummary>)> {
        let books = self.lock();
        let candidates = books.over.range(..before.unwrap_or(LAST)).rev();
        let meant = candidates.filter(|(_, (record, _))| wanted.admits(record.purpose.guest.as_ref()));
        meant.take(wanted.past.into()).map(|(at, (_, summary))| (*at, Arc::clone(summary))).collect()
    }

    /// When a job ended, if it is over and is kept.
    pub(super) fn ending(&self, id: JobId) -> Option<Ending> {
        self.lock().endings.get(&id).copied()
    }

    pub(super) fn find(&self, id: JobId) -> Option<Arc<Record>> {
        let books = self.lock();
        let is_over = || books.over.get(books.endings.get(&id)?).map(|(record, _)| record);
        books.running.get(&id).or_else(is_over).cloned()
    }

    /// A job has begun: from now on it can be followed and called off.
    /// `subject` is the guest that it is about, and the pool that has its record.
    pub(super) fn begin(&self, record: &Arc<Record>, doing: Doing, subject: Option<(PoolId, GuestId)>) {
        self.lock().running.insert(record.id, Arc::clone(record));
        let mut state = record.lock();
        (state.doing, state.subject) = (Some(doing), subject);
        if let Some(orderer) = state.orderer.take() {
            // Whoever has hung up does not want to know.
            let _ = orderer.send(Ok(record.report_of(&state)));
        }
    }

    /// A job is over. One that could not even begin stands in no ledger: whoever ordered it is told why. `count` counts it,
    /// before anybody can see that it is over. Some are over as soon as they begin: they are found here when their orderer
    /// is told.
    pub(super) fn end(
        &self,
        record: &Arc<Record>,
        outcome: Result<JobResult>,
        count: impl FnOnce(&JobReport),
    ) -> Ended {
        let mut state = record.lock();
        let (orderer, outcome) = match (state.orderer.take(), outcome) {
            (Some(orderer), Err(error)) => {
                // Whoever has hung up does not want to know.
                let _ = orderer.send(Err(error));
                return Ended::Refused;
            }
            (orderer, outcome) => (orderer, outcome.map_err(Problem::from)),
        };
        let ending = (now_ms(), record.id);
        state.end = Some(End { at_ms: ending.0, outcome });
        let report = record.report_of(&state);
        count(&report);
        drop(state);
        self.archive(record, ending);
        if let Some(orderer) = orderer {
            let _ = orderer.send(Ok(report));
        }
        Ended::Recorded
    }

    /// Keeps a job that is over, and forgets the oldest of too many.
    fn archive(&self, record: &Arc<Record>, ending: Ending) {
        let summary = Arc::new(record.summary());
        let mut books = self.lock();
        books.running.remove(&record.id);
        books.over.insert(ending, (Arc::clone(record), summary));
        books.endings.insert(record.id, ending);
        while books.over.len() > HISTORY {
            let Some(((_, oldest), _)) = books.over.pop_first() else { return };
            books.endings.remove(&oldest);
        }
    }
}

fn phase_of(stage: &Stage) -> JobPhase {
    match stage {
        Stage::Preparing => JobPhase::Preparing,
        Stage::Moving => JobPhase::Moving,
        Stage::Arming(_) => JobPhase::Arming,
        Stage::HandingOver => JobPhase::HandingOver,
        Stage::Switching => JobPhase::Switching,
        Stage::Undoing => JobPhase::Undoing,
        Stage::Landed => JobPhase::Landed,
    }
}

/// What to say of a job that is not known.
pub(super) fn unknown_job(id: JobId) -> Error {
    Error::Unknown(format!(
        "there is no job {id}; an agent knows the last {HISTORY} jobs until it ends, and a pool the last migrations"
    ))
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    type Answer = oneshot::Receiver<Result<JobReport>>;

    fn ordered(guest: &str) -> (Arc<Record>, Answer) {
        let guest = Some(guest.parse().expect("a good name"));
        let purpose = Purpose { kind: JobKind::Settle, guest, to: None, limit: None };
        let (orderer, answer) = oneshot::channel();
        (Arc::new(Record::new(JobId::random(), &"A".parse().expect("a good name"), purpose, orderer)), answer)
    }

    fn run(ledger: &Ledger, guest: &str) -> Arc<Record> {
        let (record, _) = ordered(guest);
        ledger.lock().running.insert(record.id, Arc::clone(&record));
        record
    }

    fn end(ledger: &Ledger, record: &Arc<Record>) {
        let moved = crate::joined::tests::report(nil_mover::MoveOutcome::Done, 100, 40);
        assert_eq!(ledger.end(record, Ok(JobResult::Settled(Box::new(moved))), |_| {}), Ended::Recorded);
    }

    fn ids(jobs: &[(Ending, Arc<JobSummary>)]) -> Vec<JobId> {
        jobs.iter().map(|(_, job)| job.id).collect()
    }

    #[test]
    fn jobs_under_way_and_those_that_are_over_are_told_apart() {
        let ledger = Ledger::default();
        let (on, over) = (run(&ledger, "g"), run(&ledger, "h"));
        end(&ledger, &over);
        let wanted = JobFilter::latest(10);
        assert_eq!(ledger.under_way(&wanted).iter().map(|job| job.id).collect::<Vec<_>>(), [on.id]);
        assert_eq!(ids(&ledger.over(&wanted, None)), [over.id]);
        assert_eq!(ledger.over(&wanted, None)[0].1.copied_bytes, 40);
        assert_eq!(ledger.running(), [JobKind::Settle]);
        assert!(
            ledger.find(on.id).is_some() && ledger.find(over.id).is_some() && ledger.find(JobId::random()).is_none()
        );
        assert!(ledger.ending(on.id).is_none() && ledger.ending(over.id).is_some());
        let of_other = JobFilter { guest: Some("g".parse().expect("a good name")), ..wanted };
        assert_eq!(ids(&ledger.over(&of_other, None)), []);
    }

    /// Looks for a job at the very moment at which its orderer is answered.
    struct Look {
        ledger: Arc<Ledger>,
        id: JobId,
        found: AtomicBool,
    }

    impl Wake for Look {
        fn wake(self: Arc<Self>) {
            self.found.store(self.ledger.find(self.id).is_some(), Ordering::Release);
        }
    }

    #[test]
    fn a_job_that_is_over_at_once_is_found_when_its_orderer_is_answered() {
        let ledger = Arc::new(Ledger::default());
        let (record, answer) = ordered("g");
        let look = Arc::new(Look { ledger: Arc::clone(&ledger), id: record.id, found: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&look));
        let mut answer = pin!(answer);
        assert!(answer.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        end(&ledger, &record);
        assert!(look.found.load(Ordering::Acquire), "it is in no ledger");
        let Poll::Ready(Ok(Ok(report))) = answer.poll(&mut Context::from_waker(&waker)) else { panic!("no answer") };
        assert_eq!((report.id, report.phase), (record.id, JobPhase::Ended));
    }

    #[test]
    fn page_after_page_every_job_comes_once_and_the_last_one_first() {
        let ledger = Ledger::default();
        let mut expected: Vec<JobId> = (0..10)
            .map(|_| run(&ledger, "g"))
            .map(|record| {
                end(&ledger, &record);
                record.id
            })
            .collect();
        expected.sort_by_key(|id| std::cmp::Reverse(ledger.ending(*id)));
        let (mut told, mut before) = (Vec::new(), None);
        loop {
            let page = ledger.over(&JobFilter::latest(3), before);
            told.extend(ids(&page));
            match page.last() {
                Some((at, _)) => before = Some(*at),
                None => break,
            }
        }
        assert_eq!(told, expected);
    }

    #[test]
    fn the_oldest_of_too_many_is_forgotten() {
        let ledger = Ledger::default();
        let first = run(&ledger, "g");
        ledger.archive(&first, (1, first.id));
        // By the end, not by the order: this one is older than all others, and was over last.
        let longest = run(&ledger, "g");
        (0..HISTORY).map(|_| run(&ledger, "g")).for_each(|record| end(&ledger, &record));
        ledger.archive(&longest, LAST);
        assert!(ledger.find(first.id).is_none() && ledger.find(longest.id).is_some());
        let books = ledger.lock();
        assert_eq!((books.over.len(), books.endings.len(), books.running.len()), (HISTORY, HISTORY, 0));
    }
}
