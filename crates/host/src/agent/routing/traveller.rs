//! One guest's journey as far as this host has the say: legs, plans around those that failed, and what comes after.

use super::Host;
use super::chart::{self, Chart, Plan, Wanted};
use super::course::{Course, Doing};
use super::following::is_breaking_off;
use super::way::{Next, Way};
use crate::agent::relocating::Hearer;
use crate::agent::table::Entry;
use crate::agent::undertaking::Work;
use crate::compatibility::{Incompatibility, Verdict};
use crate::error::{Error, Result};
use crate::itinerary::{MOST_FAILED, Onward, Step, check_steps, handoffs};
use crate::message::{Lane, Phase};
use crate::micros::micros;
use crate::name::HostName;
use crate::order::{Migrate, Rehome, Route, Settling};
use crate::report::{
    GuestReport, GuestState, JobResult, LegReport, LegResult, MigrationOutcome, Progress, RehomingOutcome,
    RouteOutcome, RouteReport, Whereabouts,
};
use crate::survey::Survey;
use nil_pool::{JobId, PoolId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many ways are planned on one host before it is given up.
const MOST_PLANS: usize = 8;
/// How long a guest may be neither here nor anywhere else.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look where it is.
const LOOK: Duration = Duration::from_millis(200);

/// One guest's journey, and what has been learnt on it.
pub(super) struct Traveller<'a> {
    host: &'a Arc<Host>,
    way: Way,
    order: Route,
    course: Arc<Course>,
    begun: Instant,
    report: RouteReport,
}

/// The guest, which runs here.
pub(super) struct Position {
    home: PoolId,
    guest: GuestReport,
    chart: Chart,
}

/// Where a guest is.
enum Found {
    Here(Box<Position>),
    /// On that host, as a pool has it.
    At(HostName),
    /// Nobody here can say: why, in a sentence.
    Nowhere(String),
}

/// How a plan ended, as far as it is this host's.
enum Carried {
    Arrived,
    /// The guest runs on the next host, which goes on.
    Further(Next),
    /// A leg failed.
    Broken,
    Cancelled,
}

impl<'a> Traveller<'a> {
    pub(super) fn new(host: &'a Arc<Host>, way: Way, course: Arc<Course>) -> Self {
        let here = host.dir.name().clone();
        let report = RouteReport {
            guest: way.guest.clone(),
            id: way.id,
            from: here.clone(),
            to: way.onward.way.to().clone(),
            now_at: here,
            outcome: RouteOutcome::Arrived,
            plans: Vec::new(),
            predicted_us: 0,
            total_us: 0,
            blackout_ns: 0,
            copied_bytes: 0,
            legs: Vec::new(),
            recouple: None,
            remarks: Vec::new(),
        };
        let order = way.onward.way.clone().order(way.guest.clone());
        Self { host, way, order, course, begun: Instant::now(), report }
    }

    /// Where the guest sets out, and which way. `settling` is what is wanted of memory that is in DRAM.
    pub(super) fn set_out(&mut self, settling: Settling) -> Result<(Position, Plan)> {
        let Route { guest, to, .. } = &self.order;
        self.host.seek(to);
        let verdict = self.host.check_migration(&self.handoff_to(to, settling))?;
        let entry = self.host.movable(guest)?;
        let position = self.position(&entry)?;
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

    /// Goes on where the guest has come to, or where an earlier agent of this host has left it.
    ///
    /// # Errors
    /// [`Error::Stopping`]: this agent ends, and the next one takes it up.
    pub(super) fn go_on(mut self, hear: Hearer<'_>) -> Result<RouteReport> {
        if self.way.taken_up > 0 {
            self.report.remarks.push(format!(
                "the agent of host {} ended on the way, and the next one went on; what was done there before is not told",
                self.host.dir.name()
            ));
        }
        let found = self.locate();
        let plan = match &found {
            Found::Here(position) => self.given(position),
            Found::At(_) | Found::Nowhere(_) => None,
        };
        self.journey(found, plan, hear)
    }

    /// Takes the guest that way, or another.
    ///
    /// # Errors
    /// [`Error::Stopping`]: this agent ends, and the next one takes it up.
    pub(super) fn travel(self, position: Position, plan: Plan, hear: Hearer<'_>) -> Result<RouteReport> {
        self.journey(Found::Here(Box::new(position)), Some(plan), hear)
    }

    fn journey(mut self, found: Found, plan: Option<Plan>, hear: Hearer<'_>) -> Result<RouteReport> {
        self.report.outcome = self.go(found, plan, hear)?;
        self.way.forget(&self.host.dir);
        let legs = self.report.legs.iter().map(|leg| leg.result.copied_bytes());
        let at_last = self.report.recouple.as_ref().map(|moved| moved.copied_bytes);
        self.report.copied_bytes = legs.chain(at_last).sum();
        self.report.total_us = micros(self.begun.elapsed());
        Ok(self.report)
    }

    fn go(&mut self, mut found: Found, mut planned: Option<Plan>, hear: Hearer<'_>) -> Result<RouteOutcome> {
        loop {
            let position = match found {
                Found::Here(position) => position,
                Found::At(host) if host == self.order.to => return Ok(self.arrived()),
                Found::At(host) => {
                    self.report.now_at = host.clone();
                    let why = format!("guest {} is on host {host}", self.order.guest);
                    return self.follow(self.way.next.clone(), &why, hear);
                }
                Found::Nowhere(why) => return self.follow(self.way.next.clone(), &why, hear),
            };
            self.report.now_at = self.host.dir.name().clone();
            if self.course.is_cancelled() {
                return Ok(self.cancelled());
            }
            if self.report.plans.len() >= MOST_PLANS {
                return Ok(self.stranded(&format!("{MOST_PLANS} ways were tried")));
            }
            let plan = match planned.take().map_or_else(|| self.plan(&position), Ok) {
                Ok(plan) => plan,
                Err(why) => return Ok(self.stranded(&why)),
            };
            hear(Progress::step(told(self.order.guest.as_str(), &plan)));
            self.report.plans.push(plan.in_short.clone());
            (self.way.onward.steps, self.way.next) = (plan.steps.clone(), None);
            self.keep();
            match self.carry_out(&plan, &position.chart, hear)? {
                Carried::Arrived => return Ok(self.arrived()),
                Carried::Further(next) => return self.follow(Some(next), "", hear),
                Carried::Cancelled => return Ok(self.cancelled()),
                Carried::Broken => {}
            }
            found = self.locate();
            if matches!(found, Found::Here(_)) {
                hear(Progress::step(format!("guest {} is where it was; another way is sought", self.order.guest)));
            }
        }
    }

    /// Waits for the guest to be in nobody's hands here, and says where it is.
    fn locate(&self) -> Found {
        let deadline = Instant::now() + PATIENCE;
        let guest = &self.order.guest;
        loop {
            let why = match self.host.table.find_id(self.way.id) {
                Some(entry) if entry.phase == Phase::Running => {
                    // What an earlier agent, or somebody else, has ordered comes to its end first.
                    if !is_busy(&entry) || self.course.is_cancelled() {
                        let position = self.position(&entry);
                        return position
                            .map_or_else(|error| Found::Nowhere(error.story()), |it| Found::Here(Box::new(it)));
                    }
                    std::thread::sleep(LOOK);
                    continue;
                }
                Some(entry) => format!("the worker of guest {guest} is {:?} and does not run it", entry.phase),
                None => match self.host.list_where(|listed| listed.id == self.way.id).pop() {
                    None => {
                        return Found::Nowhere(format!("no pool of host {} has guest {guest}", self.host.dir.name()));
                    }
                    Some(GuestReport { state, host, .. }) => {
                        let host = host.and_then(|host| host.parse::<HostName>().ok());
                        let host = host.unwrap_or_else(|| self.host.dir.name().clone());
                        match state {
                            GuestState::Lost => {
                                return Found::Nowhere(format!("guest {guest} was lost on host {host}"));
                            }
                            GuestState::Running if host != *self.host.dir.name() => return Found::At(host),
                            state => format!("guest {guest} is {} on host {host}", state.word()),
                        }
                    }
                },
            };
            if Instant::now() >= deadline {
                return Found::Nowhere(why);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn position(&self, entry: &Entry) -> Result<Position> {
        let guest = self.host.report(&self.order.guest, entry);
        let guest = guest.ok_or_else(|| Error::refused(format!("guest {} has no record", self.order.guest)))?;
        let survey = Survey::take(&self.host.dir.run_dir())?;
        let chart = Chart::of(&survey).map_err(Error::refused)?;
        Ok(Position { home: entry.control.pool().id(), guest, chart })
    }

    fn plan(&self, position: &Position) -> std::result::Result<Plan, String> {
        let in_dram = position.guest.memory.as_ref().is_some_and(|memory| memory.whereabouts == Whereabouts::Dram);
        let plan = position.chart.plan(&Wanted {
            from: self.host.dir.name(),
            home: position.home,
            to: &self.order.to,
            memory_bytes: position.guest.memory_bytes,
            memory: if in_dram { chart::Whereabouts::Dram } else { chart::Whereabouts::Home },
            budget: self.order.budget,
            avoid: &self.order.avoid,
            failed: &self.way.onward.failed,
        })?;
        let left = self.way.onward.handoffs;
        if handoffs(&plan.steps) > usize::from(left) {
            return Err(format!("the way {} takes more than the {left} handoffs that are left", plan.in_short));
        }
        Ok(plan)
    }

    /// The plan that has come along with the guest, as far as it is not done.
    fn given(&self, position: &Position) -> Option<Plan> {
        let is_done = |step: &&Step| matches!(step, Step::Rehome { to, .. } if *to == position.home);
        let steps: Vec<Step> = self.way.onward.steps.iter().skip_while(is_done).cloned().collect();
        check_steps(&steps, self.host.dir.name(), position.home, &self.order.to).ok()?;
        Some(Plan { in_short: position.chart.in_short(&steps), steps, predicted_us: 0 })
    }

    /// Takes one step after the other, until one fails or the guest has left.
    fn carry_out(&mut self, plan: &Plan, chart: &Chart, hear: Hearer<'_>) -> Result<Carried> {
        for (number, step) in plan.steps.iter().enumerate() {
            if self.course.is_cancelled() {
                return Ok(Carried::Cancelled);
            }
            let begun = Instant::now();
            let work = self.work(step, &plan.steps[number + 1..]);
            let mut result = self.take(work, hear)?;
            let failure = failure_of(&result);
            if failure.is_none() {
                self.note(&mut result);
            }
            let (at, step_told) = (step.host().clone(), tell(step, chart));
            tracing::debug!("guest {}: {step_told}: {:?}", self.order.guest, begun.elapsed());
            self.report.legs.push(LegReport { at, step: step_told, took_us: micros(begun.elapsed()), result });
            match (failure, &self.way.next) {
                (None, Some(next)) if next.job.is_none() => return Ok(Carried::Arrived),
                (None, Some(next)) => return Ok(Carried::Further(next.clone())),
                (None, None) => {}
                (Some(Failure::Cancelled), _) => return Ok(Carried::Cancelled),
                (Some(Failure::Other(why)), _) => {
                    tracing::warn!("guest {}: {}: {why}", self.order.guest, tell(step, chart));
                    let failed = &mut self.way.onward.failed;
                    failed.push(step.clone());
                    failed.drain(..failed.len().saturating_sub(MOST_FAILED));
                    return Ok(Carried::Broken);
                }
            }
        }
        Ok(Carried::Broken)
    }

    /// The job that a step is, when `rest` comes after it. To whom it hands the guest is written down.
    fn work(&mut self, step: &Step, rest: &[Step]) -> Work {
        let Route { guest, budget, stall_timeout_us, settling, .. } = self.order.clone();
        match step {
            Step::Rehome { to, .. } => {
                Work::Rehome(Rehome { guest, pool: *to, budget, stall_timeout_us, time_limit_us: None })
            }
            Step::Handoff { to, .. } => {
                let job = (!rest.is_empty()).then(JobId::random);
                self.way.next = Some(Next { host: to.clone(), job });
                self.keep();
                let onward = job.map(|job| Onward {
                    job,
                    steps: rest.to_vec(),
                    handoffs: self.way.onward.handoffs.saturating_sub(1),
                    ..self.way.onward.clone()
                });
                let settling = if onward.is_some() { Settling::StayInPool } else { settling };
                Work::HandOn(self.handoff_to(to, settling), onward.map(Box::new))
            }
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// [`Error::Stopping`]
    fn take(&self, work: Work, hear: Hearer<'_>) -> Result<LegResult> {
        let done = self.host.carry_through(work, |job| self.course.enter(Doing::Leg(job)), hear);
        self.course.leave();
        let done = match done {
            Err(error @ Error::Stopping { .. }) => return Err(error),
            Err(error) => return Ok(LegResult::Failed { why: error.story() }),
            Ok(done) if is_breaking_off(&done) => return Err(Error::Stopping { name: self.host.dir.name().clone() }),
            Ok(done) => done,
        };
        Ok(match done.report {
            Some(JobResult::Migration(report)) => LegResult::Handoff { report },
            Some(JobResult::Rehoming(report)) => LegResult::Rehoming { report },
            _ => LegResult::Failed { why: done.into_error().story() },
        })
    }

    fn handoff_to(&self, to: &HostName, settling: Settling) -> Migrate {
        let Route { guest, deadline_us, budget, stall_timeout_us, .. } = self.order.clone();
        Migrate { deadline_us, settling, budget, stall_timeout_us, ..Migrate::new(guest, to.clone()) }
    }

    fn note(&mut self, result: &mut LegResult) {
        match result {
            LegResult::Handoff { report } => {
                self.report.blackout_ns += report.handoff.as_ref().map_or(0, |handoff| handoff.blackout_ns);
                self.report.remarks.append(&mut report.remarks);
                self.report.recouple = report.recouple.take();
            }
            LegResult::Rehoming { report } => self.report.remarks.append(&mut report.remarks),
            LegResult::Failed { .. } => {}
        }
    }

    /// The guest is not here any more, and this is why that is known: what the next host's job comes to is what the way
    /// comes to.
    fn follow(&mut self, next: Option<Next>, why: &str, hear: Hearer<'_>) -> Result<RouteOutcome> {
        let Some((host, job)) = next.and_then(|next| Some((next.host, next.job?))) else {
            return Ok(self.stranded(why));
        };
        self.report.now_at = host.clone();
        self.course.enter(Doing::Further(Next { host: host.clone(), job: Some(job) }));
        let further = self.host.follow_further(&host, job, hear);
        self.course.leave();
        match further {
            Ok(further) => {
                let RouteReport { now_at, outcome, plans, blackout_ns, legs, recouple, remarks, .. } = further;
                // The first of its plans is the rest of ours.
                self.report.plans.extend(plans.into_iter().skip(1));
                self.report.blackout_ns += blackout_ns;
                self.report.legs.extend(legs);
                self.report.remarks.extend(remarks);
                (self.report.now_at, self.report.recouple) = (now_at, recouple);
                Ok(outcome)
            }
            Err(_) if self.host.orders.is_closed() => Err(Error::Stopping { name: self.host.dir.name().clone() }),
            Err(error) => Ok(self.stranded(&format!(
                "it has gone on to host {host}, which has the say (job {job}), and cannot be followed there: {error}"
            ))),
        }
    }

    /// Writes down what is left. What cannot be written down is gone all the same, as long as this agent lives.
    fn keep(&mut self) {
        if let Err(error) = self.way.keep(&self.host.dir) {
            tracing::warn!("guest {}: its way would not be taken up again: {}", self.order.guest, error.story());
        }
    }

    fn arrived(&mut self) -> RouteOutcome {
        self.report.now_at = self.order.to.clone();
        RouteOutcome::Arrived
    }

    fn cancelled(&self) -> RouteOutcome {
        RouteOutcome::Cancelled { why: format!("it was called off: it runs on host {}", self.report.now_at) }
    }

    /// No way leads on: why, and what has failed last.
    fn stranded(&self, why: &str) -> RouteOutcome {
        let failed = self.report.legs.iter().rev().find_map(|leg| match failure_of(&leg.result)? {
            Failure::Other(why) => Some(format!("{}: {why}", leg.step)),
            Failure::Cancelled => None,
        });
        let why: Vec<&str> = failed.as_deref().into_iter().chain([why]).filter(|why| !why.is_empty()).collect();
        RouteOutcome::Stranded { why: why.join("; ") }
    }
}

/// Whether something is being done with it, or with its memory.
fn is_busy(entry: &Entry) -> bool {
    entry.moving.is_some() || entry.job(Lane::Main).is_some()
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

fn told(guest: &str, plan: &Plan) -> String {
    match plan.predicted_us {
        0 => format!("guest {guest}: {}", plan.in_short),
        us => format!("guest {guest}: {} (about {:.1} s)", plan.in_short, Duration::from_micros(us).as_secs_f64()),
    }
}

fn tell(step: &Step, chart: &Chart) -> String {
    match step {
        Step::Rehome { at, to } => format!("at {at}, its home moves to pool {}", chart.pool_name(*to)),
        Step::Handoff { from, to, over } => format!("{from} hands it over to {to} in pool {}", chart.pool_name(*over)),
    }
}
