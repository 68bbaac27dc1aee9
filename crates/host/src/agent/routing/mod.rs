//! A guest goes over several hosts to one with which its own shares no pool.
//!
//! ```text
//! host A     look around ─▶ plan ─▶ leg ─▶ … ─▶ handoff ═▶ follows H's job ─────────────▶ report, with all legs
//!                 ▲                  │             │ arm, with the rest of the way
//!                 └── around a leg that failed     ▼
//! host H                              the guest runs here ─▶ leg ─▶ … ─▶ handoff ═▶ follows Z's, or it has arrived
//!                                          ▲                  │
//!                                          └ look around, plan ┘       no way is left ─▶ stranded
//! ```
//!
//! The agent of the host that runs the guest has the say, and does what is to be done there: its legs are its own jobs. With
//! the arming of the next host goes what is left of the way ([`crate::itinerary`]), and that host's agent makes a job of it,
//! whose number the one before has chosen. So each agent follows the one after it, and nobody orders anything from another
//! but what the arming implies. If an agent dies the others do not notice but by its silence; the next one of that host takes
//! up what was written down ([`way`]).

mod chart;
mod course;
mod following;
mod traveller;
mod way;

pub(super) use course::{Course, Routes};
pub(super) use way::{Next, Way};

use super::Host;
use super::ledger::{Doing as JobDoing, Record, unknown_job};
use super::undertaking::Work;
use crate::body::RouteBody;
use crate::error::{Error, Result};
use crate::itinerary::{MOST_AVOIDED, MOST_HANDOFFS, Onward};
use crate::name::HostName;
use crate::order::{ArmOrder, Route, Settling, check_costs, check_deadline};
use crate::report::{RouteOutcome, RouteReport, Whereabouts};
use course::{Doing, EndedAs};
use nil_pool::JobId;
use std::sync::Arc;
use std::time::Duration;
use traveller::Traveller;

/// How often a leg is told again that it is called off: it may have been about to begin.
const TELL_AGAIN: Duration = Duration::from_millis(50);

impl Host {
    /// Sends a guest of ours to a host, over others.
    pub(super) fn route(self: &Arc<Self>, order: &Route, record: &Arc<Record>) -> Result<RouteReport> {
        let Route { guest, to, .. } = order;
        let entry = self.movable(guest)?;
        if to == self.dir.name() {
            return Err(Error::refused(format!("guest {guest} is on host {to} already")));
        }
        check_deadline(order.deadline_us)?;
        check_costs(order.budget, order.stall_timeout_us)?;
        if order.avoid.len() > MOST_AVOIDED {
            return Err(Error::refused(format!("{} hosts cannot be avoided, but {MOST_AVOIDED}", order.avoid.len())));
        }
        let course = Arc::new(Course::new(guest, to, None));
        let _listed = self.routes.begin(entry.id, &course)?;
        let pool = entry.control.pool().id();
        let memory = self.report(guest, &entry).and_then(|report| report.memory).map(|memory| memory.whereabouts);
        let brings_home = order.settling == Settling::Recouple;
        // What is in the pool stays there; what is partly in it, too.
        let all_in_dram = memory == Some(Whereabouts::Dram) && brings_home;
        let settling = if all_in_dram { Settling::Recouple } else { Settling::StayInPool };
        let body = RouteBody::from(&Route { settling, ..order.clone() });
        let (steps, failed, handoffs) = (Vec::new(), Vec::new(), MOST_HANDOFFS);
        let onward = Onward { job: record.id(), way: body, steps, failed, handoffs };
        let (guest, from, next, id) = (guest.clone(), None, None, entry.id);
        let way = Way { guest, id, pool, from, onward, next, written_ms: 0, taken_up: 0 };
        let mut traveller = Traveller::new(self, way, Arc::clone(&course));
        // Before anything is done: a target that cannot be reached costs the guest nothing.
        let (position, plan) = traveller.set_out(order.settling)?;
        self.begun_route(record, &course, (pool, id))?;
        let travelled = traveller.travel(position, plan, &mut |progress| self.hear(record, progress));
        course.end(travelled.as_ref().ok());
        let mut travelled = travelled?;
        if travelled.outcome == RouteOutcome::Arrived && memory == Some(Whereabouts::Both) && brings_home {
            travelled.remarks.push(format!(
                "its memory, a part of which was in DRAM, is in the pool; `nil recouple {}` brings it into the DRAM of {to}",
                order.guest
            ));
        }
        Ok(travelled)
    }

    /// Goes on with a guest that has come on its way, or with a way that an earlier agent of this host has left.
    pub(super) fn go_on(self: &Arc<Self>, way: &Way, record: &Arc<Record>) -> Result<RouteReport> {
        let course = Arc::new(Course::new(&way.guest, way.onward.way.to(), way.from.as_ref()));
        let _listed = self.routes.begin(way.id, &course)?;
        self.begun_route(record, &course, (way.pool, way.id))?;
        let traveller = Traveller::new(self, way.clone(), Arc::clone(&course));
        let travelled = traveller.go_on(&mut |progress| self.hear(record, progress));
        course.end(travelled.as_ref().ok());
        travelled
    }

    /// What a guest that is to come has before it, if the arming for it says so and that can be gone. It is written down.
    pub(super) fn expect_traveller(&self, order: &ArmOrder) -> Result<Option<Way>> {
        let Some(onward) = &order.onward else { return Ok(None) };
        onward.check(self.dir.name(), order.pool)?;
        if self.ledger.find(onward.job).is_some() {
            return Err(Error::refused(format!("there is a job {} on host {} already", onward.job, self.dir.name())));
        }
        let (guest, from, onward) = (order.name.clone(), Some(order.from.clone()), onward.clone());
        let (id, pool, next) = (order.id, order.pool, None);
        let mut way = Way { guest, id, pool, from, onward, next, written_ms: 0, taken_up: 0 };
        way.keep(&self.dir)?;
        Ok(Some(way))
    }

    /// A guest has come that is to go on.
    pub(super) fn send_on(self: &Arc<Self>, way: Way) {
        let guest = way.guest.clone();
        if let Err(error) = self.begin(Work::GoOn(Box::new(way))) {
            tracing::warn!("guest {guest}: it has come, and does not go on: {}", error.story());
        }
    }

    /// Takes up the ways that an earlier agent has left.
    pub(super) fn take_up_ways(self: &Arc<Self>) {
        for way in Way::left(&self.dir) {
            tracing::info!("guest {}: its way to host {} is taken up", way.guest, way.onward.way.to());
            self.send_on(Way { taken_up: way.taken_up.saturating_add(1), ..way });
        }
    }

    /// Calls off a guest's way over several hosts, between two legs or within one, here or further on. Returns how things
    /// stand.
    pub(super) fn cancel_route(&self, course: &Course) -> Result<String> {
        let guest = course.guest();
        tracing::info!("guest {guest}: its way to host {} is called off", course.to());
        loop {
            let called_off = match course.cancel() {
                Some(Doing::Leg(job)) => self.cancel_job(job).map(drop),
                Some(Doing::Further(next)) => self.cancel_further(&next),
                None => Ok(()),
            };
            if let Err(error) = called_off {
                tracing::debug!("guest {guest}: {}", error.story());
            }
            match course.wait(TELL_AGAIN) {
                Some((EndedAs::CalledOff, how)) => return Ok(how),
                Some((EndedAs::Otherwise, how)) => return Err(Error::refused(how)),
                None => {}
            }
        }
    }

    fn cancel_further(&self, next: &Next) -> Result<()> {
        let Some(job) = next.job else { return Ok(()) };
        self.call_host(&next.host)?.cancel_onward(job).map(drop)
    }

    /// The same as [`Host::cancel_route`] for a guest that has come on its way, by order of a host for which the caller
    /// `speaks`: the one that has sent it here, and no other.
    pub(crate) fn cancel_onward(&self, id: JobId, speaks: impl FnOnce(&HostName) -> bool) -> Result<String> {
        match self.job(id)?.doing() {
            Some(JobDoing::Route(course)) if course.from().is_some_and(speaks) => self.cancel_route(&course),
            Some(_) => {
                Err(Error::refused(format!("job {id} is none that you have sent here; an operator may call it off")))
            }
            None if self.job(id)?.report().is_over() => Err(Error::Busy(format!("it came too late: job {id} is over"))),
            None => Err(unknown_job(id)),
        }
    }
}
