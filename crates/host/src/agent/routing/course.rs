//! The guests that are on their way, as far as calling that off goes.

use super::way::Next;
use crate::error::{Error, Result};
use crate::name::{GuestName, HostName};
use crate::report::{RouteOutcome, RouteReport};
use nil_pool::{GuestId, JobId};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The guests that are on their way over several hosts, and here, or gone on from here.
#[derive(Debug, Default)]
pub(in crate::agent) struct Routes(Mutex<BTreeMap<GuestId, Arc<Course>>>);

/// A guest that is among them, until this is dropped.
pub(super) struct Listed<'a> {
    routes: &'a Routes,
    id: GuestId,
    course: Arc<Course>,
}

/// How far a guest is, as far as calling it off goes.
#[derive(Debug)]
pub(in crate::agent) struct Course {
    guest: GuestName,
    to: HostName,
    from: Option<HostName>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    cancelled: bool,
    /// What is being done, while it is.
    doing: Option<Doing>,
    /// How it ended, in a sentence.
    end: Option<(EndedAs, String)>,
}

/// What is being done with a guest that is on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    /// A job of this agent's is one step of it.
    Leg(JobId),
    /// The guest has gone on to another host, whose job is the rest.
    Further(Next),
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

    /// A guest that has gone on from here may come back on its way.
    pub(super) fn begin(&self, id: GuestId, course: &Arc<Course>) -> Result<Listed<'_>> {
        let mut routes = self.lock();
        if let Some(on) = routes.get(&id).filter(|on| !on.has_gone_on()) {
            return Err(Error::Busy(format!("guest {} is on its way to host {} already", on.guest, on.to)));
        }
        routes.insert(id, Arc::clone(course));
        Ok(Listed { routes: self, id, course: Arc::clone(course) })
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut routes = self.routes.lock();
        if routes.get(&self.id).is_some_and(|course| Arc::ptr_eq(course, &self.course)) {
            routes.remove(&self.id);
        }
    }
}

impl Course {
    /// `from` is the host that has sent the guest here, if it has not set out here.
    pub(super) fn new(guest: &GuestName, to: &HostName, from: Option<&HostName>) -> Self {
        let (guest, to, from) = (guest.clone(), to.clone(), from.cloned());
        Self { guest, to, from, state: Mutex::default(), changed: Condvar::new() }
    }

    pub(super) fn guest(&self) -> &GuestName {
        &self.guest
    }

    pub(super) fn to(&self) -> &HostName {
        &self.to
    }

    /// The host that has sent the guest here, if it has not set out here.
    pub(super) fn from(&self) -> Option<&HostName> {
        self.from.as_ref()
    }

    /// Lets no step begin any more. Returns what is being done.
    pub(super) fn cancel(&self) -> Option<Doing> {
        let mut state = self.lock();
        state.cancelled = true;
        state.doing.clone()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    fn has_gone_on(&self) -> bool {
        matches!(self.lock().doing, Some(Doing::Further(_)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has begun. Whoever has called it off before calls that off, too.
    pub(super) fn enter(&self, doing: Doing) {
        self.lock().doing = Some(doing);
    }

    pub(super) fn leave(&self) {
        self.lock().doing = None;
    }

    /// It is over with that report, or broken off because this agent ends.
    pub(super) fn end(&self, report: Option<&RouteReport>) {
        let guest = &self.guest;
        let end = match report.map(|report| (&report.outcome, &report.now_at)) {
            Some((RouteOutcome::Cancelled { why }, _)) => (EndedAs::CalledOff, format!("guest {guest}: {why}")),
            Some((RouteOutcome::Arrived, _)) => {
                (EndedAs::Otherwise, format!("it came too late: guest {guest} runs on host {}", self.to))
            }
            Some((RouteOutcome::Stranded { why }, at)) => {
                (EndedAs::Otherwise, format!("guest {guest} runs on host {at}: {why}"))
            }
            None => (EndedAs::Otherwise, format!("guest {guest}: the agent ends, and the next one goes on with it")),
        };
        self.lock().end = Some(end);
        self.changed.notify_all();
    }

    /// Waits a while for its end; what whoever has called it off is told.
    pub(in crate::agent) fn wait(&self, patience: Duration) -> Option<(EndedAs, String)> {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |state| state.end.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.end.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_has_gone_on_may_come_back_and_one_that_is_here_has_one_way() {
        let course = || {
            let (guest, to) = ("g".parse().expect("a good name"), "Z".parse().expect("a good name"));
            Arc::new(Course::new(&guest, &to, None))
        };
        let (routes, id, first, second) = (Routes::default(), GuestId::random(), course(), course());
        let on = routes.begin(id, &first).expect("the first way");
        first.enter(Doing::Leg(JobId::random()));
        let why = routes.begin(id, &second).err().expect("it is here").to_string();
        assert!(why.contains("on its way to host Z already"), "{why}");
        first.enter(Doing::Further(Next { host: "H".parse().expect("a good name"), job: Some(JobId::random()) }));
        let back = routes.begin(id, &second).expect("it has come back");
        // What is over of the first way does not end the second.
        drop(on);
        routes.begin(id, &first).err().expect("it is here again");
        drop(back);
        routes.begin(id, &first).expect("it is over");
    }
}
