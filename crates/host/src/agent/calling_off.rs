//! Calling off what is being done with a guest.

use super::Host;
use super::jobs::{End, Errand, Job, Stopping};
use crate::error::{Error, Result};
use crate::message::{Lane, WorkerRequest};
use crate::name::GuestName;
use nil_mover::Direction;
use std::time::Duration;

/// How long a worker may take to hear that it is to stop.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is told so: it may have been about to begin.
const TELL_AGAIN: Duration = Duration::from_millis(20);
/// How long to wait at a stretch for something that ends by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Host {
    /// Calls the migration of a guest off, and waits until the guest is where it was. Returns how things stand.
    pub(crate) fn cancel_migration(&self, guest: &GuestName) -> Result<String> {
        let entry = self.table.find(guest).ok_or_else(|| self.unknown_guest(guest))?;
        match entry.job(Lane::Main) {
            Some(job) if matches!(job.errand, Errand::Migration { .. }) => self.call_off(guest, Lane::Main, job),
            Some(job) if job.errand == Errand::Settling => Err(Error::refused(format!(
                "it came too late: guest {guest} runs on host {} already, and its memory is being recoupled; `nil \
                 recouple {guest} --cancel` leaves that in the pool",
                self.dir.name()
            ))),
            _ => Err(Error::refused(format!(
                "guest {guest} is not being moved to another host; it runs on host {}",
                self.dir.name()
            ))),
        }
    }

    /// Calls the rehoming of a guest off, and waits until its memory is where it was. Returns how things stand.
    pub(crate) fn cancel_rehoming(&self, guest: &GuestName) -> Result<String> {
        let entry = self.table.find(guest).ok_or_else(|| self.unknown_guest(guest))?;
        match entry.job(Lane::Main) {
            Some(job) if matches!(job.errand, Errand::Rehoming { .. }) => self.call_off(guest, Lane::Main, job),
            _ => Err(Error::refused(format!("the home of guest {guest} is not being moved"))),
        }
    }

    /// Calls a decoupling or recoupling off, and waits until the memory is where it was. Returns how things stand.
    pub(crate) fn cancel_move(&self, guest: &GuestName, direction: Direction) -> Result<String> {
        let entry = self.table.find(guest).ok_or_else(|| self.unknown_guest(guest))?;
        match (entry.job(Lane::Main), entry.job(Lane::PullBack)) {
            (Some(job), _) if matches!(job.errand, Errand::Rehoming { .. }) => Err(Error::refused(format!(
                "guest {guest}: {}; `nil rehome {guest} --cancel` calls that off",
                job.errand
            ))),
            (Some(job), _) if moves(&job.errand, direction) => self.call_off(guest, Lane::Main, job),
            (_, Some(job)) if direction == Direction::Recouple => self.call_off(guest, Lane::PullBack, job),
            (Some(job), _) if matches!(job.errand, Errand::Migration { .. }) => Err(Error::refused(format!(
                "guest {guest}: {}; `nil migrate {guest} --cancel` calls that off",
                job.errand
            ))),
            _ => Err(Error::refused(format!("nothing of guest {guest}'s memory is being {}d", direction.verb()))),
        }
    }

    pub(super) fn call_off(&self, guest: &GuestName, lane: Lane, job: &Job) -> Result<String> {
        tracing::info!("guest {guest}: {}; that is called off", job.errand);
        loop {
            job.cancel(|stopping| {
                let request = match stopping {
                    Stopping::Nothing => return,
                    Stopping::Move => WorkerRequest::CancelMove { lane },
                    Stopping::Handoff => WorkerRequest::CancelHandoff,
                };
                if let Err(error) = self.order(guest, &request, PATIENCE) {
                    tracing::debug!("guest {guest}: {}", error.story());
                }
            })?;
            if let Some(end) = job.wait(TELL_AGAIN) {
                return match end {
                    End::AsBefore(how) => Ok(how),
                    End::Otherwise(how) => Err(Error::refused(how)),
                };
            }
        }
    }
}

/// Calls off what is done with the host itself, and waits until it has stopped. Returns how things stand.
pub(super) fn call_off_alone(job: &Job) -> Result<String> {
    tracing::info!("{}; that is called off", job.errand);
    job.cancel(|_| {})?;
    loop {
        match job.wait(LOOK_AGAIN) {
            Some(End::AsBefore(how)) => return Ok(how),
            Some(End::Otherwise(how)) => return Err(Error::refused(how)),
            None => {}
        }
    }
}

fn moves(errand: &Errand, direction: Direction) -> bool {
    match errand {
        Errand::Move(moved) | Errand::Orphan(moved) => *moved == direction,
        Errand::Settling => direction == Direction::Recouple,
        Errand::PullBack
        | Errand::Migration { .. }
        | Errand::Rehoming { .. }
        | Errand::Drain
        | Errand::Rebalance
        | Errand::Takeover => false,
    }
}
