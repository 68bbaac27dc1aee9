//! The guests that an agent is occupied with, and the workers that run them.
//!
//! An entry begins as a reservation, so that of two orders for the same name one is refused before anything is built.
//! It goes when the guest has left, or when what was left of it has been dealt with.

use super::jobs::{End, Errand, Job};
use crate::error::{Error, Result};
use crate::message::{Lane, Phase, WorkerStatus};
use crate::name::{GuestName, HostName};
use crate::process::{Process, ProcessId};
use crate::report::{ProtectionReport, SandboxReport};
use crate::versions::Versions;
use nil_mover::MoveProgress;
use nil_pool::{GuestControl, GuestId, GuestSlot, PoolId};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A guest with a worker.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: GuestId,
    pub(super) control: GuestControl,
    pub(super) worker: Arc<Process>,
    pub(super) phase: Phase,
    pub(super) detail: Option<String>,
    /// The move of its memory that is on, as the worker tells.
    pub(super) moving: Option<MoveProgress>,
    /// Bytes per second that the move may use, as the worker tells.
    pub(super) move_limit: Option<u64>,
    /// Where its memory lies in the worker.
    pub(super) memory_address: Option<u64>,
    /// What the worker speaks.
    pub(super) versions: Versions,
    /// What confines the worker, as it tells.
    pub(super) sandbox: SandboxReport,
    /// How the guest is protected, as the worker tells.
    pub(super) protection: Option<ProtectionReport>,
    /// What is being done with it; of each lane one thing at a time.
    jobs: Jobs,
}

#[derive(Clone, Debug, Default)]
struct Jobs {
    main: Option<Arc<Job>>,
    pull_back: Option<Arc<Job>>,
}

impl Jobs {
    fn lane(&mut self, lane: Lane) -> &mut Option<Arc<Job>> {
        match lane {
            Lane::Main => &mut self.main,
            Lane::PullBack => &mut self.pull_back,
        }
    }
}

impl Entry {
    /// The entry of a guest whose worker says that of itself.
    pub(super) fn new(control: GuestControl, worker: Arc<Process>, status: WorkerStatus) -> Self {
        let WorkerStatus { guest: id, phase, detail, moving, move_limit, memory_address, .. } = status;
        let WorkerStatus { versions, sandbox, protection, .. } = status;
        let jobs = Jobs::default();
        Self {
            id,
            control,
            worker,
            phase,
            detail,
            moving,
            move_limit,
            memory_address,
            versions,
            sandbox,
            protection,
            jobs,
        }
    }

    /// Whether its record is the one in that slot of that pool.
    pub(super) fn is_home(&self, pool: PoolId, slot: GuestSlot) -> bool {
        self.control.pool().id() == pool && self.control.slot() == slot
    }

    /// What is being done with it in that lane.
    pub(super) fn job(&self, lane: Lane) -> Option<&Arc<Job>> {
        match lane {
            Lane::Main => self.jobs.main.as_ref(),
            Lane::PullBack => self.jobs.pull_back.as_ref(),
        }
    }
}

/// By name, because a name is what is reserved. `None`: reserved, no worker yet.
type Guests = BTreeMap<GuestName, Option<Entry>>;

#[derive(Debug, Default)]
pub(super) struct Table {
    guests: Mutex<Guests>,
    changed: Condvar,
}

/// A name that is taken for a guest to be. Dropping it gives the name back, unless an entry has come in its place.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    table: &'a Table,
    name: GuestName,
}

/// A guest with which something is being done. While this lives, nothing else is begun with it in that lane.
#[derive(Debug)]
pub(super) struct Occupation<'a> {
    table: &'a Table,
    name: GuestName,
    lane: Lane,
    pub(super) job: Arc<Job>,
    pub(super) control: GuestControl,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `name`, waiting up to `patience` for a guest that is leaving to have left.
    pub(super) fn reserve(&self, name: &GuestName, host: &HostName, patience: Duration) -> Result<Reservation<'_>> {
        let guests = self.lock();
        let waited = self.changed.wait_timeout_while(guests, patience, |guests| guests.contains_key(name));
        let (mut guests, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if guests.contains_key(name) {
            return Err(Error::GuestNameTaken { name: name.clone(), host: host.clone() });
        }
        guests.insert(name.clone(), None);
        Ok(Reservation { table: self, name: name.clone() })
    }

    /// Begins something with a guest that has a worker here.
    ///
    /// # Errors
    /// What is being done with it already in that lane; `None` when it is not here.
    pub(super) fn occupy(
        &self,
        name: &GuestName,
        lane: Lane,
        errand: Errand,
    ) -> std::result::Result<Occupation<'_>, Option<Arc<Job>>> {
        let mut guests = self.lock();
        let entry = guests.get_mut(name).and_then(Option::as_mut).ok_or(None)?;
        if let Some(job) = entry.job(lane) {
            return Err(Some(Arc::clone(job)));
        }
        let job = Arc::new(Job::new(errand));
        *entry.jobs.lane(lane) = Some(Arc::clone(&job));
        let control = entry.control.clone();
        Ok(Occupation { table: self, name: name.clone(), lane, job, control })
    }

    /// Every guest that has a worker.
    pub(super) fn entries(&self) -> Vec<(GuestName, Entry)> {
        let guests = self.lock();
        guests.iter().filter_map(|(name, entry)| Some((name.clone(), entry.clone()?))).collect()
    }

    /// Guests that may be here soon: names that are taken, workers that stand ready.
    pub(super) fn comers(&self) -> Vec<GuestName> {
        let guests = self.lock();
        let comes = |entry: &Option<Entry>| {
            entry.as_ref().is_none_or(|entry| matches!(entry.phase, Phase::Empty | Phase::Starting | Phase::Armed))
        };
        guests.iter().filter(|(_, entry)| comes(entry)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether a name is taken, be it by a worker that has yet to come up.
    pub(super) fn is_taken(&self, name: &GuestName) -> bool {
        self.lock().contains_key(name)
    }

    pub(super) fn find(&self, name: &GuestName) -> Option<Entry> {
        self.lock().get(name).cloned().flatten()
    }

    pub(super) fn find_id(&self, id: GuestId) -> Option<Entry> {
        self.lock().values().flatten().find(|entry| entry.id == id).cloned()
    }

    /// Takes note of what a worker says. A guest that has left, or did not come, leaves the table at once: the name may
    /// be wanted again while its worker is still tidying up. Returns the phase before, if the worker is in the table.
    pub(super) fn note(&self, status: &WorkerStatus) -> Option<Phase> {
        let mut guests = self.lock();
        let entry = guests.get_mut(&status.name)?.as_mut().filter(|entry| entry.worker.id() == status.process)?;
        let before = std::mem::replace(&mut entry.phase, status.phase);
        entry.detail.clone_from(&status.detail);
        entry.memory_address = status.memory_address;
        entry.protection.clone_from(&status.protection);
        entry.moving.clone_from(&status.moving);
        entry.move_limit = status.move_limit;
        if matches!(status.phase, Phase::Released | Phase::TornDown) {
            guests.remove(&status.name);
        }
        self.changed.notify_all();
        Some(before)
    }

    /// The guest that `worker` runs has another home.
    pub(super) fn rehouse(&self, name: &GuestName, worker: ProcessId, control: &GuestControl) {
        let mut guests = self.lock();
        let entry = guests.get_mut(name).and_then(Option::as_mut).filter(|entry| entry.worker.id() == worker);
        if let Some(entry) = entry {
            entry.control = control.clone();
        }
    }

    /// Removes the guest that `worker` runs, if it is still in the table.
    pub(super) fn remove(&self, name: &GuestName, worker: ProcessId) -> Option<Entry> {
        let mut guests = self.lock();
        guests.get(name)?.as_ref().filter(|entry| entry.worker.id() == worker)?;
        let entry = guests.remove(name).flatten();
        self.changed.notify_all();
        entry
    }

    /// Waits until no memory of the guest that `worker` runs is being moved, or it has left the table, or time is up.
    /// Returns whether nothing is being moved.
    pub(super) fn wait_unmoved(&self, name: &GuestName, worker: ProcessId, patience: Duration) -> bool {
        let moves = |guests: &mut Guests| {
            let entry = guests.get(name).and_then(Option::as_ref).filter(|entry| entry.worker.id() == worker);
            entry.is_some_and(|entry| entry.moving.is_some())
        };
        let waited = self.changed.wait_timeout_while(self.lock(), patience, moves);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Waits until the worker's phase is one that `enough` likes, or it has left the table (`None`), or time is up.
    pub(super) fn wait(
        &self,
        name: &GuestName,
        worker: ProcessId,
        patience: Duration,
        enough: impl Fn(Phase) -> bool,
    ) -> Option<Phase> {
        let deadline = Instant::now() + patience;
        let mut guests = self.lock();
        loop {
            let entry = guests.get(name)?.as_ref().filter(|entry| entry.worker.id() == worker)?;
            let (phase, left) = (entry.phase, deadline.saturating_duration_since(Instant::now()));
            if enough(phase) || left.is_zero() {
                return Some(phase);
            }
            guests = self.changed.wait_timeout(guests, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Reservation<'_> {
    /// Puts the guest's entry in the place of the reservation.
    pub(super) fn fill(&self, entry: Entry) {
        self.table.lock().insert(self.name.clone(), Some(entry));
        self.table.changed.notify_all();
    }

    pub(super) fn name(&self) -> &GuestName {
        &self.name
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut guests = self.table.lock();
        if matches!(guests.get(&self.name), Some(None)) {
            guests.remove(&self.name);
            self.table.changed.notify_all();
        }
    }
}

impl Occupation<'_> {
    pub(super) fn name(&self) -> &GuestName {
        &self.name
    }

    pub(super) fn lane(&self) -> Lane {
        self.lane
    }
}

impl Occupation<'_> {
    /// The guest has another home now. Returns its former one.
    pub(super) fn rehouse(&mut self, control: &GuestControl) -> GuestControl {
        if let Some(Some(entry)) = self.table.lock().get_mut(&self.name)
            && entry.job(self.lane).is_some_and(|job| Arc::ptr_eq(job, &self.job))
        {
            entry.control = control.clone();
        }
        std::mem::replace(&mut self.control, control.clone())
    }

    /// Gives the lane up, for others to take.
    pub(super) fn leave(&self) {
        if let Some(Some(entry)) = self.table.lock().get_mut(&self.name)
            && entry.job(self.lane).is_some_and(|job| Arc::ptr_eq(job, &self.job))
        {
            *entry.jobs.lane(self.lane) = None;
        }
    }
}

impl Drop for Occupation<'_> {
    fn drop(&mut self) {
        self.leave();
        // Whoever has called it off waits for an answer.
        self.job.end(End::Otherwise(format!(
            "guest {}: {} no more; `nil ps` shows how things stand",
            self.name, self.job.errand
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (GuestName, HostName) {
        ("g".parse().expect("a good name"), "A".parse().expect("a good name"))
    }

    #[test]
    fn a_reserved_name_is_not_given_to_another_until_it_is_given_back() {
        let (table, (guest, host)) = (Table::default(), names());
        let reservation = table.reserve(&guest, &host, Duration::ZERO).expect("the name is free");
        let error = table.reserve(&guest, &host, Duration::ZERO).expect_err("the name is taken");
        assert!(matches!(error, Error::GuestNameTaken { .. }), "{error}");
        drop(reservation);
        table.reserve(&guest, &host, Duration::ZERO).expect("the name is free again");
    }

    #[test]
    fn whoever_has_patience_gets_the_name_when_it_is_given_back() {
        let (table, (guest, host)) = (Table::default(), names());
        let reservation = table.reserve(&guest, &host, Duration::ZERO).expect("the name is free");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| table.reserve(&guest, &host, Duration::from_secs(60)).is_ok());
            drop(reservation);
            assert!(waiting.join().expect("no panic"));
        });
    }

    #[test]
    fn a_reservation_is_no_guest_yet() {
        let (table, (guest, host)) = (Table::default(), names());
        let _reservation = table.reserve(&guest, &host, Duration::ZERO).expect("the name is free");
        assert!(table.find(&guest).is_none());
        let errand = Errand::Settling;
        assert!(matches!(table.occupy(&guest, Lane::Main, errand), Err(None)));
        assert!(table.entries().is_empty());
    }
}
