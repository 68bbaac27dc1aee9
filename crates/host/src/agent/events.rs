//! What happens on the host, for whoever watches.
//!
//! Nobody is waited for: the last events are kept, and a watcher that is further behind than that is told so by being hung
//! up on. Numbers grow over restarts of the agent too, so that a watcher which comes back cannot mistake new events for
//! ones that it has seen.

use super::Host;
use super::ledger::{Record, now_ms};
use super::listing::state_of_phase;
use crate::feed::{Feed, Reader};
use crate::message::{Phase, WorkerStatus};
use crate::name::GuestName;
use crate::report::{Happening, HostEvent, HostStanding, LostPool, OfferReport, Progress};
use nil_pool::{GuestId, PoolId};
use std::sync::Arc;

/// How many events are kept.
const KEPT: usize = 1024;

/// The events of a host.
#[derive(Debug)]
pub(super) struct Events(Arc<Feed<HostEvent>>);

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Feed::beginning_at(KEPT, now_ms())))
    }
}

impl Events {
    fn tell(&self, what: Happening) {
        self.0.push(HostEvent { at_ms: now_ms(), what }, |_| false);
    }
}

impl Host {
    /// Lets a watcher follow, from the first event that has a greater number than `after`; `None` is from now on. What
    /// comes beside that is whether it has missed some.
    pub(crate) fn watch_events(&self, after: Option<u64>) -> (Reader<HostEvent>, Caught) {
        let (oldest, newest) = self.events.0.range();
        match after {
            None => (self.events.0.follow(newest), Caught::Up { next: newest + 1 }),
            Some(after) if (oldest - 1..=newest).contains(&after) => {
                (self.events.0.follow(after), Caught::Up { next: after + 1 })
            }
            Some(_) => (self.events.0.follow(newest), Caught::Behind { newest }),
        }
    }

    /// A guest with a worker here is in another phase. One that is on its way here is its source's until it has come.
    pub(super) fn tell_phase(&self, status: &WorkerStatus) {
        let WorkerStatus { name: guest, guest: id, phase, detail, .. } = status.clone();
        self.events.tell(match phase {
            Phase::Empty | Phase::Starting | Phase::Armed | Phase::TornDown => return,
            Phase::Released => Happening::GuestGone { guest, id },
            Phase::Running | Phase::Leaving | Phase::Halted | Phase::Ended => {
                Happening::Guest { guest, id, state: state_of_phase(phase), detail }
            }
        });
    }

    /// A guest has no worker here any more: it is as the pool says.
    pub(super) fn tell_rest(&self, guest: &GuestName, id: GuestId) {
        let left = self.list().into_iter().find(|report| report.id == id);
        self.events.tell(match left {
            Some(report) if report.host.as_deref() == Some(self.dir.name().as_str()) => {
                Happening::Guest { guest: guest.clone(), id, state: report.state, detail: report.detail }
            }
            Some(_) | None => Happening::GuestGone { guest: guest.clone(), id },
        });
    }

    /// Capacity is offered to this host, or it has answered.
    pub(super) fn tell_offer(&self, offer: OfferReport) {
        self.events.tell(Happening::Offer { offer });
    }

    /// Another host is in another state than before.
    pub(super) fn tell_host(&self, host: String, pool: PoolId, standing: HostStanding, detail: Option<String>) {
        self.events.tell(Happening::Host { host, pool, standing, detail });
    }

    /// A pool is no more.
    pub(super) fn tell_pool_lost(&self, lost: LostPool) {
        self.events.tell(Happening::PoolLost { lost });
    }

    pub(super) fn tell_job_begun(&self, record: &Record) {
        self.events.tell(Happening::JobBegun { job: Box::new(record.summary()) });
    }

    pub(super) fn tell_job_progress(&self, record: &Record, progress: Progress) {
        let (kind, guest) = (record.purpose().kind, record.purpose().guest.clone());
        self.events.tell(Happening::JobProgress { job: record.id(), kind, guest, progress });
    }

    pub(super) fn tell_job_ended(&self, record: &Record) {
        self.events.tell(Happening::JobEnded { job: Box::new(record.summary()) });
    }
}

/// Whether a watcher gets everything that it has not seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caught {
    /// It does; the next event has this number.
    Up {
        /// The number.
        next: u64,
    },
    /// It does not: it goes on after this event.
    Behind {
        /// The number of the newest event.
        newest: u64,
    },
}
