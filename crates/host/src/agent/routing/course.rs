//! The guests that are on their way, as far as calling that off goes.

use super::chart::Step;
use crate::error::{Error, Result};
use crate::name::{GuestName, HostName};
use crate::report::{RouteOutcome, RouteReport};
use nil_pool::GuestId;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The guests that are on their way over several hosts by order of this agent.
#[derive(Debug, Default)]
pub(in crate::agent) struct Routes(Mutex<BTreeMap<GuestId, Arc<Course>>>);

/// A guest that is among them, until this is dropped.
pub(super) struct Listed<'a> {
    routes: &'a Routes,
    id: GuestId,
}

/// How far a guest is, as far as calling it off goes.
#[derive(Debug)]
pub(in crate::agent) struct Course {
    guest: GuestName,
    to: HostName,
    state: Mutex<Way>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Way {
    cancelled: bool,
    /// What is being done, while it is.
    step: Option<Step>,
    /// How it ended, in a sentence.
    end: Option<(EndedAs, String)>,
}

/// What whoever has called it off is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::agent) enum EndedAs {
    CalledOff,
    Otherwise,
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<GuestId, Arc<Course>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, id: GuestId, course: &Arc<Course>) -> Result<Listed<'_>> {
        let mut routes = self.lock();
        if let Some(on) = routes.get(&id) {
            return Err(Error::Busy(format!("guest {} is on its way to host {} already", on.guest, on.to)));
        }
        routes.insert(id, Arc::clone(course));
        Ok(Listed { routes: self, id })
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.routes.lock().remove(&self.id);
    }
}

impl Course {
    pub(super) fn new(guest: &GuestName, to: &HostName) -> Self {
        Self { guest: guest.clone(), to: to.clone(), state: Mutex::default(), changed: Condvar::new() }
    }

    pub(super) fn guest(&self) -> &GuestName {
        &self.guest
    }

    pub(super) fn to(&self) -> &HostName {
        &self.to
    }

    /// Lets no step begin any more. Returns what is being done.
    pub(super) fn cancel(&self) -> Option<Step> {
        let mut way = self.lock();
        way.cancelled = true;
        way.step.clone()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    fn lock(&self) -> MutexGuard<'_, Way> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a step, unless it has been called off.
    pub(super) fn enter(&self, step: &Step) -> bool {
        let mut way = self.lock();
        if !way.cancelled {
            way.step = Some(step.clone());
        }
        !way.cancelled
    }

    pub(super) fn leave(&self) {
        self.lock().step = None;
    }

    pub(super) fn end(&self, report: &RouteReport) {
        let guest = &self.guest;
        let end = match &report.outcome {
            RouteOutcome::Cancelled { why } => (EndedAs::CalledOff, format!("guest {guest}: {why}")),
            RouteOutcome::Arrived => {
                (EndedAs::Otherwise, format!("it came too late: guest {guest} runs on host {}", self.to))
            }
            RouteOutcome::Stranded { why } => {
                (EndedAs::Otherwise, format!("guest {guest} runs on host {}: {why}", report.now_at))
            }
        };
        self.lock().end = Some(end);
        self.changed.notify_all();
    }

    /// Waits a while for its end; what whoever has called it off is told.
    pub(in crate::agent) fn wait(&self, patience: Duration) -> Option<(EndedAs, String)> {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |way| way.end.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.end.clone()
    }
}
