//! Beginning jobs, and calling them off by their number or when their time is up.

use super::Host;
use super::ledger::{Ended, Purpose, Record, unknown_job};
use super::table::Occupation;
use crate::error::{Error, Result};
use crate::order::{Migrate, MoveMemory, SettleOrder};
use crate::report::{JobKind, JobReport, JobResult, Progress};
use nil_mover::Direction;
use nil_pool::JobId;
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
    /// A guest has come; its memory is recoupled.
    Settle(SettleOrder),
}

impl Work {
    fn purpose(&self) -> Purpose {
        let (kind, guest, to, limit_us) = match self {
            Self::Migrate(order) => (JobKind::Migration, &order.guest, Some(&order.to), order.time_limit_us),
            Self::Move(order) => {
                let kind = match order.direction {
                    Direction::Decouple => JobKind::Decouple,
                    Direction::Recouple => JobKind::Recouple,
                };
                (kind, &order.guest, None, order.time_limit_us)
            }
            Self::Settle(order) => (JobKind::Settle, &order.guest, None, None),
        };
        Purpose { kind, guest: guest.clone(), to: to.cloned(), limit: limit_us.map(Duration::from_micros) }
    }
}

impl Host {
    /// Begins a job on a thread of its own. `begun` is told as soon as nothing stands in its way, or what does.
    pub(crate) fn undertake(self: &Arc<Self>, work: Work, begun: oneshot::Sender<Result<JobReport>>) -> Result<()> {
        let record = Arc::new(Record::new(self.dir.name(), work.purpose(), begun));
        self.spawn("job", move |host| {
            let outcome = match host.begin_order() {
                Ok(_order) => host.carry_out(&work, &record),
                Err(error) => Err(error),
            };
            if let Err(error) = &outcome {
                tracing::debug!("guest {}: {}", record.purpose().guest, error.story());
            }
            if host.ledger.end(&record, outcome) == Ended::Recorded {
                host.keep_report(&record);
                record.close();
                host.tell_job_ended(&record);
            }
        })
    }

    fn carry_out(self: &Arc<Self>, work: &Work, record: &Arc<Record>) -> Result<JobResult> {
        Ok(match work {
            Work::Migrate(order) => JobResult::Migration(Box::new(self.migrate(order, record)?)),
            Work::Move(order) => JobResult::Memory(Box::new(self.move_memory(order, record)?)),
            Work::Settle(order) => JobResult::Settled(Box::new(self.settle(order, record)?)),
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
        self.ledger.begin(record, occupation);
        self.tell_job_begun(record);
        let Some(limit) = record.purpose().limit else { return Ok(()) };
        let (record, job) = (Arc::clone(record), Arc::clone(&occupation.job));
        self.spawn("deadline", move |host| {
            if job.wait(limit).is_some() {
                return;
            }
            let guest = &record.purpose().guest;
            tracing::warn!("guest {guest}: the time for this job is up; it is called off");
            if let Err(error) = host.cancel_record(&record) {
                tracing::info!("guest {guest}: {}", error.story());
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
            Some((lane, job)) => self.call_off(&record.purpose().guest, lane, &job),
            None => Err(Error::Busy(format!("it came too late: job {} is over", record.id()))),
        }
    }
}
