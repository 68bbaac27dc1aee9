//! Beginning jobs, and calling them off by their number or when their time is up.

use super::Host;
use super::calling_off::call_off_alone;
use super::jobs::Job;
use super::ledger::{Doing, Ended, Purpose, Record, unknown_job};
use super::migration::Leg;
use super::routing::{Course, Way};
use super::table::Occupation;
use crate::error::{Error, Result};
use crate::itinerary::Onward;
use crate::order::{Drain, Migrate, MoveMemory, Rebalance, Rehome, Route, SettleOrder};
use crate::report::{JobKind, JobReport, JobResult, Progress};
use nil_mover::Direction;
use nil_pool::{GuestId, JobId, PoolId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// What takes long.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// A guest of ours goes to another host.
    Migrate(Migrate),
    /// Memory of a guest of ours is decoupled or recoupled.
    Move(MoveMemory),
    /// The home of a guest of ours moves to another pool.
    Rehome(Rehome),
    /// A guest of ours goes to another host, over others.
    Route(Route),
    /// A guest that has come goes on, over others, as was said when it was armed for.
    GoOn(Box<Way>),
    /// A guest of ours goes to the next host on its way; this is left of it then.
    HandOn(Migrate, Option<Box<Onward>>),
    /// A guest has come; its memory is recoupled.
    Settle(SettleOrder),
    /// This host is emptied.
    Drain(Drain),
    /// Hosts are evened out.
    Rebalance(Rebalance),
}

impl Work {
    fn purpose(&self) -> Purpose {
        let (kind, guest, to, limit_us) = match self {
            // They stop by themselves when their time is up, so that they can say what is left.
            Self::Drain(_) => return Purpose { kind: JobKind::Drain, guest: None, to: None, limit: None },
            Self::Rebalance(_) => return Purpose { kind: JobKind::Rebalance, guest: None, to: None, limit: None },
            Self::Migrate(order) | Self::HandOn(order, _) => {
                (JobKind::Migration, &order.guest, Some(&order.to), order.time_limit_us)
            }
            Self::Move(order) => {
                let kind = match order.direction {
                    Direction::Decouple => JobKind::Decouple,
                    Direction::Recouple => JobKind::Recouple,
                };
                (kind, &order.guest, None, order.time_limit_us)
            }
            Self::Rehome(order) => (JobKind::Rehoming, &order.guest, None, order.time_limit_us),
            Self::Route(order) => (JobKind::Route, &order.guest, Some(&order.to), order.time_limit_us),
            Self::GoOn(way) => {
                let order = way.onward.way.clone().order(way.guest.clone());
                let limit = order.time_limit_us.map(Duration::from_micros);
                return Purpose { kind: JobKind::Route, guest: Some(order.guest), to: Some(order.to), limit };
            }
            Self::Settle(order) => (JobKind::Settle, &order.guest, None, None),
        };
        Purpose { kind, guest: Some(guest.clone()), to: to.cloned(), limit: limit_us.map(Duration::from_micros) }
    }

    /// The number that its job has.
    fn number(&self) -> JobId {
        match self {
            Self::GoOn(way) => way.onward.job,
            _ => JobId::random(),
        }
    }
}

impl Host {
    /// Begins a job on a thread of its own. `begun` is told as soon as nothing stands in its way, or what does.
    pub(crate) fn undertake(self: &Arc<Self>, work: Work, begun: oneshot::Sender<Result<JobReport>>) -> Result<()> {
        let record = Arc::new(Record::new(work.number(), self.dir.name(), work.purpose(), begun));
        self.spawn("job", move |host| {
            let outcome = match host.begin_order() {
                Ok(_order) => host.carry_out(&work, &record),
                Err(error) => Err(error),
            };
            if let Err(error) = &outcome {
                tracing::debug!("{}: {}", record.purpose(), error.story());
            }
            host.end_job(&record, outcome);
        })
    }

    /// A job is over.
    pub(super) fn end_job(&self, record: &Arc<Record>, outcome: Result<JobResult>) {
        if self.ledger.end(record, outcome, |report| self.counted.job_ended(report)) == Ended::Recorded {
            self.keep_report(record);
            record.close();
            self.tell_job_ended(record);
        }
    }

    /// The same for another thread of this agent, which is told when it has begun, or what stands in its way.
    pub(super) fn begin(self: &Arc<Self>, work: Work) -> Result<JobId> {
        let (tell, told) = oneshot::channel();
        self.undertake(work, tell)?;
        let begun = told.blocking_recv().unwrap_or_else(|_| Err(Error::refused("its job did not begin")));
        begun.map(|job| job.id)
    }

    fn carry_out(self: &Arc<Self>, work: &Work, record: &Arc<Record>) -> Result<JobResult> {
        Ok(match work {
            Work::Migrate(order) => JobResult::Migration(Box::new(self.migrate(order, Leg::Alone, record)?)),
            Work::HandOn(order, onward) => {
                JobResult::Migration(Box::new(self.migrate(order, Leg::OfWay(onward.as_deref()), record)?))
            }
            Work::GoOn(way) => JobResult::Route(Box::new(self.go_on(way, record)?)),
            Work::Move(order) => JobResult::Memory(Box::new(self.move_memory(order, record)?)),
            Work::Rehome(order) => JobResult::Rehoming(Box::new(self.rehome(order, record)?)),
            Work::Route(order) => JobResult::Route(Box::new(self.route(order, record)?)),
            Work::Settle(order) => JobResult::Settled(Box::new(self.settle(order, record)?)),
            Work::Drain(order) => JobResult::Drained(Box::new(self.drain(order, record)?)),
            Work::Rebalance(order) => JobResult::Rebalanced(Box::new(self.rebalance(order, record)?)),
        })
    }

    /// Whoever follows a job hears of a step.
    pub(super) fn hear(&self, record: &Record, progress: Progress) {
        if record.hear(progress.clone()) {
            self.tell_job_progress(record, progress);
        }
    }

    /// What the job does with the guest has begun.
    pub(super) fn begun(self: &Arc<Self>, record: &Arc<Record>, occupation: &Occupation<'_>) -> Result<()> {
        let subject = (occupation.control.pool().id(), occupation.control.id());
        let doing = Doing::Guest(occupation.lane(), Arc::clone(&occupation.job));
        self.begin_doing(record, doing, Some(subject))
    }

    /// A guest has set out over several hosts.
    pub(super) fn begun_route(
        self: &Arc<Self>,
        record: &Arc<Record>,
        course: &Arc<Course>,
        subject: (PoolId, GuestId),
    ) -> Result<()> {
        self.begin_doing(record, Doing::Route(Arc::clone(course)), Some(subject))
    }

    /// What the job does with this host, and no guest in particular, has begun.
    pub(super) fn begun_alone(&self, record: &Arc<Record>, job: &Arc<Job>) {
        self.ledger.begin(record, Doing::Host(Arc::clone(job)), None);
        self.tell_job_begun(record);
    }

    /// The same with a guest that has no worker here yet.
    pub(super) fn begun_with(&self, record: &Arc<Record>, job: &Arc<Job>, subject: (PoolId, GuestId)) {
        self.ledger.begin(record, Doing::Host(Arc::clone(job)), Some(subject));
        self.tell_job_begun(record);
    }

    /// Says that a job has begun, and calls it off when its time is up.
    fn begin_doing(
        self: &Arc<Self>,
        record: &Arc<Record>,
        doing: Doing,
        subject: Option<(PoolId, GuestId)>,
    ) -> Result<()> {
        self.ledger.begin(record, doing.clone(), subject);
        self.tell_job_begun(record);
        let Some(limit) = record.purpose().limit else { return Ok(()) };
        let record = Arc::clone(record);
        self.spawn("deadline", move |host| {
            if doing.is_over_within(limit) {
                return;
            }
            tracing::warn!("{}: its time is up; it is called off", record.purpose());
            if let Err(error) = host.cancel_record(&record) {
                tracing::info!("{}: {}", record.purpose(), error.story());
            }
        })
    }

    /// The job of that number, if this agent has begun it and has not forgotten it.
    pub(crate) fn job(&self, id: JobId) -> Result<Arc<Record>> {
        self.ledger.find(id).ok_or_else(|| unknown_job(id))
    }

    /// Calls a job off, and waits until it is known how things stand. Returns that, in a sentence.
    pub(crate) fn cancel_job(&self, id: JobId) -> Result<String> {
        let record = self.job(id)?;
        self.cancel_record(&record)
    }

    fn cancel_record(&self, record: &Record) -> Result<String> {
        match record.doing() {
            Some(Doing::Guest(lane, job)) => {
                let guest = record.purpose().guest.as_ref().ok_or_else(|| unknown_job(record.id()))?;
                self.call_off(guest, lane, &job)
            }
            Some(Doing::Host(job)) => call_off_alone(&job),
            Some(Doing::Route(course)) => self.cancel_route(&course),
            None => Err(Error::Busy(format!("it came too late: job {} is over", record.id()))),
        }
    }
}
