//! The target's side of a migration: getting a worker ready, and knowing what became of it.

use super::Host;
use super::pools::slot_number;
use super::table::Reservation;
use crate::error::{Error, Result};
use crate::message::{Phase, WorkerRequest};
use crate::name::GuestName;
use crate::order::ArmOrder;
use crate::process::ProcessId;
use crate::report::ArmNews;
use nil_pool::{GuestControl, Membership, Ownership, Pool};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a guest that is leaving may take until it may come back: its source is told a moment after its target.
const PATIENCE_WITH_LEAVING: Duration = Duration::from_secs(1);
/// How long a worker may take to build the machine and bring in the guest's memory.
pub(super) const PATIENCE_WITH_ARMING: Duration = Duration::from_secs(120);
/// How often to look whether the source has hung up. The guest's landing is noticed at once.
const LOOK_FOR_HANGUP: Duration = Duration::from_millis(50);
/// How long a worker stays armed when the agent that wanted it is no more.
const PATIENCE_WITH_ORPHANS: Duration = Duration::from_secs(2);

/// Whether a guest has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Landing {
    Landed,
    CalledOff,
}

/// The agent of the host that is to hand a guest over, as its target sees it.
#[derive(Debug)]
pub(crate) struct Source(mpsc::UnboundedSender<Result<ArmNews>>);

impl Source {
    /// A source, and what is said to it. It has hung up when that is dropped.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Result<ArmNews>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// A source that has hung up is noticed by [`Source::has_hung_up`].
    fn tell(&self, news: ArmNews) {
        let _ = self.0.send(Ok(news));
    }

    /// Says that it will not come to that.
    pub(crate) fn fail(&self, why: Error) {
        let _ = self.0.send(Err(why));
    }

    fn has_hung_up(&self) -> bool {
        self.0.is_closed()
    }
}

impl Host {
    /// Gets ready for a guest, tells its source so, and then tells it that the guest has landed. When the source hangs
    /// up before that, the worker is sent home. A guest that is to go on from here does so when it has landed.
    pub(crate) fn take_over(self: &Arc<Self>, order: &ArmOrder, source: &Source) -> Result<()> {
        let membership = self.pools.get(order.pool)?;
        let control = membership.pool().guest(order.slot, order.id)?;
        check_source(membership.pool(), &control, order)?;
        self.check_adopted(&order.name)?;
        let reserved = self.table.reserve(&order.name, self.dir.name(), PATIENCE_WITH_LEAVING);
        let reservation = reserved.map_err(|error| match self.table.find_id(order.id) {
            // Its worker may stand ready still because of an earlier attempt. The guest itself runs at its source.
            Some(_) => Error::refused(format!(
                "host {} has a worker for guest {} from an earlier attempt, which ends soon; try again in a moment",
                self.dir.name(),
                order.name
            )),
            None => error,
        })?;
        self.check_open()?;
        let way = self.expect_traveller(order)?;
        let landed = self.await_guest(order, &membership, &reservation, &control, source);
        match (way, matches!(landed, Ok(Landing::Landed))) {
            // Before its source hears of it, which asks for that job then.
            (Some(way), true) => self.send_on(way),
            (Some(way), false) => way.forget(&self.dir),
            (None, _) => {}
        }
        if landed? == Landing::Landed {
            source.tell(ArmNews::Landed);
        }
        Ok(())
    }

    /// Has a worker stand ready until the guest has landed, or is not to come.
    fn await_guest(
        self: &Arc<Self>,
        order: &ArmOrder,
        membership: &Membership,
        reservation: &Reservation<'_>,
        control: &GuestControl,
        source: &Source,
    ) -> Result<Landing> {
        let begun = Instant::now();
        let worker = self.start_worker(reservation, control, membership.slot(), None)?.id();
        tracing::debug!("guest {}: its worker is up after {:?}", order.name, begun.elapsed());
        let armed = self.order(&order.name, &WorkerRequest::Arm, PATIENCE_WITH_ARMING);
        if let Err(error) = armed {
            tracing::warn!("guest {}: it cannot be taken over from {}: {}", order.name, order.from, error.story());
            self.clear_away(&order.name, worker);
            return Err(error);
        }
        tracing::debug!("guest {}: armed after {:?}", order.name, begun.elapsed());
        source.tell(ArmNews::Armed { slot: slot_number(membership.slot()) });
        self.await_landing(&order.name, worker, source)
    }

    fn await_landing(&self, name: &GuestName, worker: ProcessId, source: &Source) -> Result<Landing> {
        let settled = |phase| !matches!(phase, Phase::Empty | Phase::Starting | Phase::Armed);
        let mut called_off: Option<Instant> = None;
        loop {
            match (self.table.wait(name, worker, LOOK_FOR_HANGUP, settled), called_off) {
                (Some(phase), _) if settled(phase) => return Ok(Landing::Landed),
                (Some(_), None) if source.has_hung_up() => {
                    self.disarm(name);
                    called_off = Some(Instant::now());
                }
                // The guest may have been quicker, and its worker about to say so.
                (Some(_), Some(at)) if at.elapsed() < PATIENCE_WITH_ORPHANS => {}
                (Some(_) | None, Some(_)) => return Ok(Landing::CalledOff),
                (Some(_), None) => {}
                (None, None) => return Err(Error::refused(format!("guest {name} did not come"))),
            }
        }
    }

    /// Sends an armed worker home, unless the guest has landed.
    fn disarm(&self, name: &GuestName) {
        match self.order(name, &WorkerRequest::Disarm, PATIENCE_WITH_LEAVING) {
            Ok(_) => tracing::info!("guest {name}: its source has called it off"),
            Err(error) => tracing::debug!("guest {name}: not disarmed: {}", error.story()),
        }
    }

    /// Sees to a worker that an earlier agent had started and not brought to run its guest: the order that was to follow
    /// may never come. It is given time for the guest to start or land all the same, and is then sent home.
    pub(super) fn see_off_orphan(self: &Arc<Self>, name: &GuestName, worker: ProcessId) {
        loop {
            let undecided = |phase| matches!(phase, Phase::Empty | Phase::Starting | Phase::Armed);
            match self.table.wait(name, worker, PATIENCE_WITH_ORPHANS, |phase| !undecided(phase)) {
                Some(Phase::Starting) => {}
                Some(Phase::Armed) => return self.disarm(name),
                Some(Phase::Empty) => return self.dismiss(name, worker),
                _ => return,
            }
        }
    }

    /// Ends a worker that has never been told what to do, and sees to the guest that it was started for: an earlier agent may
    /// have brought that back, or been about to take it back, and nobody else comes upon it again.
    fn dismiss(self: &Arc<Self>, name: &GuestName, worker: ProcessId) {
        match self.order(name, &WorkerRequest::Stop, PATIENCE_WITH_LEAVING) {
            Ok(_) => {
                tracing::info!("guest {name}: an earlier agent had not come to start it; its worker is dismissed");
                self.clear_away(name, worker);
                self.recover_where(|guest| guest == name);
            }
            Err(error) => tracing::warn!("guest {name}: its worker cannot be dismissed: {}", error.story()),
        }
    }
}

/// Refuses an order of anybody but the host that has the guest, as the pool says.
fn check_source(pool: &Pool, control: &GuestControl, order: &ArmOrder) -> Result<()> {
    let responsible = control.ownership().load().ok().and_then(Ownership::responsible);
    let owner = responsible.and_then(|slot| pool.host_name(slot));
    if owner.as_deref() == Some(order.from.as_str()) {
        return Ok(());
    }
    let owner = owner.map_or_else(|| "no host".to_owned(), |owner| format!("host {owner}"));
    Err(Error::refused(format!("guest {} is not host {}'s to hand over: {owner} has it", order.name, order.from)))
}
