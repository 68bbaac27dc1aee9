//! A guest goes over several hosts to one with which its own shares no pool.
//!
//! ```text
//! look around ─▶ plan ─▶ leg ─▶ leg ─▶ … ─▶ arrived
//!      ▲                  │
//!      └── the guest runs somewhere: from there, around what failed      no way is left ─▶ stranded
//! ```
//!
//! The agent of the host that the guest sets out from has the say. Each leg is an order to the agent of the host that runs
//! the guest by then: to hand it over, or to move its home to the next pool. So a leg ends as it does for anybody else, and
//! leaves the guest running; what this agent adds is which comes next. If it dies, the leg that is on comes to its end, and
//! the guest stays there.

mod chart;
mod course;

pub(super) use course::{Course, Routes};

use super::Host;
use super::ledger::Record;
use super::moving::check_costs;
use super::relocating::Hearer;
use crate::compatibility::{Incompatibility, Verdict};
use crate::error::{Error, Result};
use crate::micros::micros;
use crate::name::{GuestName, HostName};
use crate::order::{Migrate, MoveMemory, Rehome, Route, Settling};
use crate::report::{
    GuestReport, GuestState, HostReport, LegReport, LegResult, MigrationOutcome, Progress, RehomingOutcome,
    RouteOutcome, RouteReport, Whereabouts,
};
use crate::survey::Survey;
use chart::{Chart, Plan, Step, Wanted};
use course::EndedAs;
use nil_mover::{Direction, MoveOutcome};
use nil_pool::{GuestId, PoolId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many ways are planned before it is given up.
const MOST_PLANS: usize = 8;
/// How long the agent of a host on which the guest has arrived may be away.
const PATIENCE_WITH_AGENTS: Duration = Duration::from_secs(10);
/// How often to look whether it is there again.
const LOOK_FOR_AGENT: Duration = Duration::from_millis(200);
/// How often a leg is told again that it is called off: it may have been about to begin.
const TELL_AGAIN: Duration = Duration::from_millis(50);

/// One guest's journey, and what has been learnt on it.
struct Traveller<'a> {
    host: &'a Host,
    order: &'a Route,
    course: Arc<Course>,
    id: GuestId,
    begun: Instant,
    /// Steps that were refused, or have broken off twice.
    failed: BTreeSet<Step>,
    /// Steps that have broken off because an agent went away: it may come back.
    broken_off: BTreeSet<Step>,
    report: RouteReport,
}

/// Where the guest is.
struct Position {
    at: HostName,
    home: PoolId,
    guest: GuestReport,
    chart: Chart,
}

/// How a plan ended.
enum Carried {
    Arrived,
    /// A leg failed; the guest runs somewhere.
    Broken,
    Cancelled(String),
}

impl Host {
    /// Sends a guest of ours to a host, over others.
    pub(super) fn route(self: &Arc<Self>, order: &Route, record: &Arc<Record>) -> Result<RouteReport> {
        let entry = self.movable(&order.guest)?;
        if order.to == *self.dir.name() {
            return Err(Error::refused(format!("guest {} is on host {} already", order.guest, order.to)));
        }
        check_costs(order.budget, order.stall_timeout_us)?;
        let course = Arc::new(Course::new(&order.guest, &order.to));
        let _listed = self.routes.begin(entry.id, &course)?;
        let mut traveller = Traveller::new(self, order, Arc::clone(&course), entry.id);
        // Before anything is done: a target that cannot be reached costs the guest nothing.
        let (position, plan) = traveller.set_out()?;
        self.begun_route(record, &course, (entry.control.pool().id(), entry.id))?;
        let travelled = traveller.travel(position, plan, &mut |progress| self.hear(record, progress));
        course.end(&travelled);
        Ok(travelled)
    }

    /// Calls off a guest's way over several hosts, between two legs or within one. Returns how things stand.
    pub(super) fn cancel_route(&self, course: &Course) -> Result<String> {
        let guest = course.guest();
        tracing::info!("guest {guest}: its way to host {} is called off", course.to());
        loop {
            if let Some(step) = course.cancel()
                && let Err(error) = self.cancel_step(guest, &step)
            {
                tracing::debug!("guest {guest}: {}", error.story());
            }
            match course.wait(TELL_AGAIN) {
                Some((EndedAs::CalledOff, how)) => return Ok(how),
                Some((EndedAs::Otherwise, how)) => return Err(Error::refused(how)),
                None => {}
            }
        }
    }

    fn cancel_step(&self, guest: &GuestName, step: &Step) -> Result<String> {
        let mut agent = self.call_host(step.host())?;
        match step {
            Step::Handoff { .. } => agent.cancel_migration(guest),
            Step::Rehome { .. } => agent.cancel_rehoming(guest),
        }
    }
}

impl Traveller<'_> {
    fn new<'a>(host: &'a Host, order: &'a Route, course: Arc<Course>, id: GuestId) -> Traveller<'a> {
        let report = RouteReport {
            guest: order.guest.clone(),
            id,
            from: host.dir.name().clone(),
            to: order.to.clone(),
            now_at: host.dir.name().clone(),
            outcome: RouteOutcome::Arrived,
            plans: Vec::new(),
            predicted_us: 0,
            total_us: 0,
            blackout_ns: 0,
            legs: Vec::new(),
            recouple: None,
            remarks: Vec::new(),
        };
        let (failed, broken_off) = (BTreeSet::new(), BTreeSet::new());
        Traveller { host, order, course, id, begun: Instant::now(), failed, broken_off, report }
    }

    /// Where the guest sets out, and which way.
    fn set_out(&mut self) -> Result<(Position, Plan)> {
        let Route { guest, to, .. } = self.order;
        let verdict = self.host.check_migration(&self.handoff_to(to, self.order.settling))?;
        let position = self.locate()?;
        let plan = self.plan(&position);
        // All that is wrong with the target is told at once, but that it shares no pool if there is a way all the same.
        let mut reasons: Vec<Incompatibility> = verdict.reasons.into_iter().map(|reason| reason.what).collect();
        let is_unfit = reasons.iter().any(|reason| !matches!(reason, Incompatibility::NotAMember { .. }));
        match plan {
            Ok(plan) if !is_unfit => {
                self.report.predicted_us = plan.predicted_us;
                return Ok((position, plan));
            }
            Ok(_) => {}
            Err(why) => reasons.push(Incompatibility::NoWay { why }),
        }
        Err(Verdict::new(guest.clone(), to.clone(), reasons).into_error())
    }

    fn travel(mut self, mut position: Position, mut plan: Plan, hear: Hearer<'_>) -> RouteReport {
        let former = position.guest.memory.as_ref().map(|memory| memory.whereabouts);
        let outcome = loop {
            let way =
                format!("{} (about {:.1} s)", plan.in_short, Duration::from_micros(plan.predicted_us).as_secs_f64());
            hear(Progress::step(format!("guest {}: {way}", self.order.guest)));
            self.report.plans.push(plan.in_short.clone());
            match self.carry_out(&plan, &position.chart, hear) {
                Carried::Arrived => break RouteOutcome::Arrived,
                Carried::Cancelled(why) => break RouteOutcome::Cancelled { why },
                Carried::Broken if self.report.plans.len() >= MOST_PLANS => {
                    break RouteOutcome::Stranded {
                        why: format!("{MOST_PLANS} ways were tried; {}", self.last_failure()),
                    };
                }
                Carried::Broken => {}
            }
            position = match self.locate() {
                Ok(position) => position,
                Err(error) => {
                    break RouteOutcome::Stranded { why: format!("{}; {}", self.last_failure(), error.story()) };
                }
            };
            self.report.now_at = position.at.clone();
            if position.at == self.order.to {
                break RouteOutcome::Arrived;
            }
            if let Some(stop) = self.must_stop() {
                break stop;
            }
            plan = match self.plan(&position) {
                Ok(plan) => plan,
                Err(why) => break RouteOutcome::Stranded { why: format!("{}; {why}", self.last_failure()) },
            };
            hear(Progress::step(format!("guest {} runs on {}; another way is taken", self.order.guest, position.at)));
        };
        if outcome == RouteOutcome::Arrived && self.order.settling == Settling::Recouple {
            match former {
                Some(Whereabouts::Dram) => self.settle(hear),
                Some(Whereabouts::Both) => self.report.remarks.push(format!(
                    "its memory, a part of which was in DRAM, is in the pool; `nil recouple {}` brings it into the DRAM of {}",
                    self.order.guest, self.order.to
                )),
                Some(Whereabouts::Pool) | None => {}
            }
        }
        self.report.outcome = outcome;
        self.report.total_us = micros(self.begun.elapsed());
        self.report
    }

    /// Where the guest is now, and what is around. Waits for the agent of its host, if that does not answer, and for what
    /// an earlier agent of that host has ordered.
    fn locate(&self) -> Result<Position> {
        let deadline = Instant::now() + PATIENCE_WITH_AGENTS;
        let mut was_moving = false;
        loop {
            let survey = Survey::take(&self.host.dir.run_dir())?;
            let found = survey.guests.iter().find(|guest| guest.id == self.id);
            let found = found.and_then(|guest| Some((guest.clone(), guest.host.as_deref()?.parse::<HostName>().ok()?)));
            if let Some((guest, at)) = found {
                let (guest, answering) = self.ask_its_host(&survey, guest, &at);
                // Hosts may find a pool in different places: this one has said where it is for itself.
                let pools = answering.as_ref().map(|host| host.pools.as_slice());
                let home = pools.unwrap_or_default().iter().find(|pool| pool.path == guest.pool).map(|pool| pool.id);
                let answers = answering.is_some();
                // One that has just been seen to move is not left alone yet by whoever sees to it.
                let is_moving = std::mem::replace(&mut was_moving, guest.moving.is_some()) || was_moving;
                if is_moving && answers && self.must_stop().is_none() {
                    std::thread::sleep(LOOK_FOR_AGENT);
                    continue;
                }
                if let Some(home) = home.filter(|_| guest.state == GuestState::Running) {
                    let chart = Chart::of(&survey).map_err(Error::refused)?;
                    return Ok(Position { at, home, guest, chart });
                }
                if guest.state == GuestState::Lost {
                    return Err(Error::refused(format!("guest {} was lost on host {at}", self.order.guest)));
                }
                if Instant::now() >= deadline {
                    let state =
                        if answers { format!("is {} there", guest.state.word()) } else { "has no agent".to_owned() };
                    return Err(Error::refused(format!("guest {} is on host {at}, which {state}", self.order.guest)));
                }
            } else if Instant::now() >= deadline {
                return Err(Error::refused(format!("no host that answers knows of guest {}", self.order.guest)));
            }
            std::thread::sleep(LOOK_FOR_AGENT);
        }
    }

    /// What the guest's host says of it and of itself, if it answers. One on another machine is in no survey.
    fn ask_its_host(&self, survey: &Survey, guest: GuestReport, at: &HostName) -> (GuestReport, Option<HostReport>) {
        if let Some(host) = survey.hosts.iter().find(|host| host.name == *at) {
            return (guest, Some(host.clone()).filter(|host| host.agent_pid.is_some() && host.silent.is_none()));
        }
        let asked = self.host.call_host(at).and_then(|mut agent| Ok((agent.describe()?, agent.ps()?)));
        let Ok((host, guests)) = asked else { return (guest, None) };
        let first_hand = guests.into_iter().find(|guest| guest.id == self.id);
        (first_hand.unwrap_or(guest), Some(host))
    }

    fn plan(&self, position: &Position) -> std::result::Result<Plan, String> {
        let in_dram = position.guest.memory.as_ref().is_some_and(|memory| memory.whereabouts == Whereabouts::Dram);
        position.chart.plan(&Wanted {
            from: &position.at,
            home: position.home,
            to: &self.order.to,
            memory_bytes: position.guest.memory_bytes,
            memory: if in_dram { chart::Whereabouts::Dram } else { chart::Whereabouts::Home },
            budget: self.order.budget,
            avoid: &self.order.avoid,
            failed: &self.failed,
        })
    }

    /// Takes one step after the other, until one fails.
    fn carry_out(&mut self, plan: &Plan, chart: &Chart, hear: Hearer<'_>) -> Carried {
        for step in &plan.steps {
            if !self.course.enter(step) {
                return Carried::Cancelled(self.called_off());
            }
            let begun = Instant::now();
            let result = self.take(step, hear);
            self.course.leave();
            let is_worth_another = result.as_ref().is_err_and(is_away) && self.broken_off.insert(step.clone());
            let result = result.unwrap_or_else(|error| LegResult::Failed { why: error.story() });
            let failure = failure_of(&result);
            if failure.is_none() {
                self.note(step, &result);
            }
            let told = tell(step, chart);
            self.report.legs.push(LegReport {
                at: step.host().clone(),
                step: told,
                took_us: micros(begun.elapsed()),
                result,
            });
            match failure {
                None => {}
                Some(Failure::Cancelled) => return Carried::Cancelled(self.called_off()),
                Some(Failure::Other(why)) => {
                    tracing::warn!("guest {}: {}: {why}", self.order.guest, tell(step, chart));
                    if !is_worth_another {
                        self.failed.insert(step.clone());
                    }
                    return Carried::Broken;
                }
            }
        }
        Carried::Arrived
    }

    fn take(&self, step: &Step, hear: Hearer<'_>) -> Result<LegResult> {
        let Route { guest, budget, stall_timeout_us, .. } = self.order;
        let (budget, stall_timeout_us) = (*budget, *stall_timeout_us);
        let mut agent = self.host.call_host(step.host())?;
        Ok(match step {
            Step::Rehome { to, .. } => {
                let order = Rehome { guest: guest.clone(), pool: *to, budget, stall_timeout_us, time_limit_us: None };
                LegResult::Rehoming { report: Box::new(agent.rehome(&order, |progress| hear(progress.clone()))?) }
            }
            Step::Handoff { to, .. } => {
                let order = self.handoff_to(to, Settling::StayInPool);
                LegResult::Handoff { report: Box::new(agent.migrate(&order, |progress| hear(progress.clone()))?) }
            }
        })
    }

    fn handoff_to(&self, to: &HostName, settling: Settling) -> Migrate {
        let Route { guest, deadline_us, budget, stall_timeout_us, .. } = self.order.clone();
        Migrate { deadline_us, settling, budget, stall_timeout_us, ..Migrate::new(guest, to.clone()) }
    }

    fn note(&mut self, step: &Step, result: &LegResult) {
        match (step, result) {
            (Step::Handoff { to, .. }, LegResult::Handoff { report }) => {
                self.report.now_at = to.clone();
                self.report.blackout_ns += report.handoff.as_ref().map_or(0, |handoff| handoff.blackout_ns);
                self.report.remarks.extend(report.remarks.iter().cloned());
            }
            (_, LegResult::Rehoming { report }) => self.report.remarks.extend(report.remarks.iter().cloned()),
            (_, LegResult::Handoff { .. } | LegResult::Failed { .. }) => {}
        }
    }

    /// Brings memory that was in DRAM at first into the target's. The guest has arrived, whatever becomes of that.
    fn settle(&mut self, hear: Hearer<'_>) {
        let Route { guest, to, budget, stall_timeout_us, .. } = self.order;
        let order = MoveMemory {
            budget: *budget,
            stall_timeout_us: *stall_timeout_us,
            ..MoveMemory::all_of(guest.clone(), Direction::Recouple)
        };
        let moved = self.host.call_host(to).and_then(|mut agent| agent.move_memory(&order, |step| hear(step.clone())));
        let why = match moved {
            Ok(moved) => {
                let whole = moved.moved.as_ref().is_none_or(|report| report.outcome == MoveOutcome::Done);
                self.report.recouple = moved.moved;
                if whole {
                    return;
                }
                "that ended early".to_owned()
            }
            Err(error) => error.story(),
        };
        self.report.remarks.push(format!(
            "its memory is still in the pool, or part of it: {why}; `nil recouple {guest}` brings it into the DRAM of {to}"
        ));
    }

    /// Whether it was called off.
    fn must_stop(&self) -> Option<RouteOutcome> {
        self.course.is_cancelled().then(|| RouteOutcome::Cancelled { why: self.called_off() })
    }

    fn called_off(&self) -> String {
        format!("it was called off: it runs on host {}", self.report.now_at)
    }

    fn last_failure(&self) -> String {
        let failed = self.report.legs.iter().rev().find_map(|leg| match failure_of(&leg.result)? {
            Failure::Other(why) => Some(format!("{}: {why}", leg.step)),
            Failure::Cancelled => None,
        });
        failed.unwrap_or_else(|| "no step has failed".to_owned())
    }
}

/// Whether nothing is wrong but that an agent has gone away.
fn is_away(error: &Error) -> bool {
    matches!(error, Error::Hangup { .. } | Error::Broken { .. } | Error::HostGone { .. } | Error::NobodyThere { .. })
}

/// Why a leg did not do what it was to do.
enum Failure {
    Cancelled,
    Other(String),
}

fn failure_of(result: &LegResult) -> Option<Failure> {
    match result {
        LegResult::Failed { why } => Some(Failure::Other(why.clone())),
        LegResult::Handoff { report } => match &report.outcome {
            MigrationOutcome::Moved => None,
            MigrationOutcome::Cancelled { .. } => Some(Failure::Cancelled),
            MigrationOutcome::TakenBack { why } | MigrationOutcome::Stalled { why } => {
                Some(Failure::Other(why.clone()))
            }
        },
        LegResult::Rehoming { report } => match &report.outcome {
            RehomingOutcome::Rehomed => None,
            RehomingOutcome::Cancelled { .. } => Some(Failure::Cancelled),
            RehomingOutcome::Stalled { why } => Some(Failure::Other(why.clone())),
        },
    }
}

fn tell(step: &Step, chart: &Chart) -> String {
    match step {
        Step::Rehome { at, to } => format!("at {at}, its home moves to pool {}", chart.pool_name(*to)),
        Step::Handoff { from, to, over } => format!("{from} hands it over to {to} in pool {}", chart.pool_name(*over)),
    }
}
