//! Protecting guests: a place for commits in the pool, and a worker that makes them.
//!
//! A protected guest runs in its host's DRAM. One that is in the pool (it has come from another host, or was taken over)
//! is brought into DRAM first; until then, and while its memory moves, its protection is suspended, and `nil ps` says so.

use super::Host;
use super::jobs::Errand;
use super::relocating::{Relocated, Relocation};
use crate::error::{Error, Result};
use crate::message::{Lane, WorkerRequest};
use crate::name::GuestName;
use crate::order::ProtectGuest;
use crate::report::GuestReport;
use nil_mover::{Budget, Direction, MoveOutcome, MovePlan};
use nil_pool::{GuestControl, ProtectionSettings};
use std::sync::Arc;
use std::time::Duration;

/// How long a worker may take to begin, or to end a commit that it is at.
const PATIENCE: Duration = Duration::from_secs(20);
/// The version of the worker protocol that knows of it.
const SINCE: u32 = 3;

impl Host {
    /// Has a guest of this host protected; one that is already, as is said now.
    pub(crate) fn protect(self: &Arc<Self>, order: &ProtectGuest) -> Result<GuestReport> {
        let ProtectGuest { guest, interval_us, output, log_bytes } = order;
        let settings = ProtectionSettings { interval: Duration::from_micros(*interval_us), output: *output };
        if settings.clamped() != settings {
            return Err(Error::refused("the interval between two commits is between 1 ms and 1 hour; 25 ms is usual"));
        }
        let entry = self.movable(guest)?;
        if entry.versions.worker < SINCE {
            return Err(Error::refused(format!(
                "the worker of guest {guest} is of an older nil, which protects nothing; migrate the guest, and try again"
            )));
        }
        let membership = self.pools.get(entry.control.pool().id())?;
        membership.protect(&entry.control, settings, *log_bytes)?;
        self.order(guest, &WorkerRequest::Protect, PATIENCE)?;
        tracing::info!("guest {guest}: it is protected, with a commit every {:?}", settings.interval);
        self.report(guest, &entry).ok_or_else(|| self.unknown_guest(guest))
    }

    /// Has it protected no more, and frees what that took of the pool.
    pub(crate) fn unprotect(&self, guest: &GuestName) -> Result<()> {
        let entry = self.movable(guest)?;
        if !entry.control.is_protected() {
            return Err(Error::refused(format!("guest {guest} is not protected")));
        }
        self.order(guest, &WorkerRequest::Unprotect, PATIENCE)?;
        self.pools.get(entry.control.pool().id())?.unprotect(&entry.control)?;
        self.tidy_idle(guest, &entry.control);
        tracing::info!("guest {guest}: it is not protected any more");
        Ok(())
    }

    /// A guest that is protected and is in the pool comes into DRAM, so that its protection goes on. Takes long.
    pub(super) fn bring_home(&self, name: &GuestName) -> Result<()> {
        // Something is on with it: next time.
        let Ok(occupation) = self.table.occupy(name, Lane::Main, Errand::Settling) else { return Ok(()) };
        tracing::info!("guest {name}: it is protected; its memory comes into DRAM");
        let (direction, budget) = (Direction::Recouple, Budget::default());
        let stall_timeout_us = MovePlan::STALL_TIMEOUT_US;
        let relocation = Relocation { direction, ranges: None, budget, node: None, stall_timeout_us, striping: None };
        match self.relocate(&occupation, &relocation, &mut |_| {})? {
            Relocated { outcome: MoveOutcome::Stalled(stall), .. } => Err(Error::refused(stall.to_string())),
            Relocated { outcome: MoveOutcome::Done | MoveOutcome::Cancelled, .. } => Ok(()),
        }
    }
}

/// Refuses what cannot be done with a guest that is protected.
pub(super) fn require_unprotected(guest: &GuestName, control: &GuestControl, what: &str) -> Result<()> {
    if control.is_protected() {
        return Err(Error::refused(format!("guest {guest} is protected, so {what}; `nil unprotect {guest}` first")));
    }
    Ok(())
}
