//! What grows with what happens.

use crate::report::{JobKind, JobOutcome, JobReport, JobResult};
use nil_mover::{Direction, MoveReport};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// Bounds for the time in which a guest stands still or a store waits: 25 µs to 1 s, in seconds.
const INSTANTS: [f64; 15] =
    [25e-6, 50e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 25e-3, 100e-3, 250e-3, 1.0];
/// Bounds for how long a job takes: 10 ms to half an hour, in seconds.
const JOBS: [f64; 12] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0, 1800.0];
/// Bounds for how long an answer takes: 0.25 ms to 10 s, in seconds.
const ANSWERS: [f64; 10] = [250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 25e-3, 100e-3, 500e-3, 2.5, 10.0];

/// Histograms that are told apart by labels.
type Histograms<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfOutcome {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfDirection {
    direction: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfAnswer {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfRoute {
    route: String,
}

/// Everything that is counted.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    jobs: Family<OfOutcome, Counter>,
    job_time: Histograms<OfKind>,
    blackout: Histogram,
    moved: Family<OfDirection, Counter>,
    stall: Histograms<OfDirection>,
    worker_deaths: Counter,
    hosts_fenced: Counter,
    events_missed: Counter,
    requests: Family<OfAnswer, Counter>,
    request_time: Histograms<OfRoute>,
}

/// A request that has been answered.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) method: String,
    /// The pattern that its path matches, so that there are only so many.
    pub(crate) route: String,
    pub(crate) status: u16,
    pub(crate) time: Duration,
}

impl Default for Counted {
    /// Whatever can be named beforehand is there from the beginning, at 0: the first of its kind is an increase, too.
    fn default() -> Self {
        let counted = Self {
            jobs: Family::default(),
            job_time: Family::new_with_constructor(|| Histogram::new(JOBS)),
            blackout: Histogram::new(INSTANTS),
            moved: Family::default(),
            stall: Family::new_with_constructor(|| Histogram::new(INSTANTS)),
            worker_deaths: Counter::default(),
            hosts_fenced: Counter::default(),
            events_missed: Counter::default(),
            requests: Family::default(),
            request_time: Family::new_with_constructor(|| Histogram::new(ANSWERS)),
        };
        for kind in JobKind::ALL.map(JobKind::word) {
            drop(counted.job_time.get_or_create(&OfKind { kind }));
            for outcome in JobOutcome::ALL.map(word) {
                drop(counted.jobs.get_or_create(&OfOutcome { kind, outcome }));
            }
        }
        for direction in [Direction::Decouple, Direction::Recouple].map(Direction::verb) {
            drop(counted.moved.get_or_create(&OfDirection { direction }));
            drop(counted.stall.get_or_create(&OfDirection { direction }));
        }
        counted
    }
}

impl Counted {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("jobs", "Jobs that have ended", self.jobs.clone());
        registry.register("job_seconds", "How long jobs took", self.job_time.clone());
        let blackout = "How long guests of this host stood still when they were handed over";
        registry.register("blackout_seconds", blackout, self.blackout.clone());
        registry.register("moved_bytes", "Bytes of guests' memory that were copied on their way", self.moved.clone());
        let stall = "The longest that a store of the guest waited, of each move of memory";
        registry.register("move_longest_stall_seconds", stall, self.stall.clone());
        let deaths = "Workers that have ended and should not have";
        registry.register("worker_deaths", deaths, self.worker_deaths.clone());
        registry.register("hosts_fenced", "Other hosts that this one has fenced", self.hosts_fenced.clone());
        let missed = "Times that a watcher of events was too slow and has missed some";
        registry.register("events_missed", missed, self.events_missed.clone());
        registry.register("api_requests", "Requests that were answered", self.requests.clone());
        registry.register("api_request_seconds", "How long answers took to begin", self.request_time.clone());
    }

    /// A job is over. What a migration has moved on the target's side counts there.
    pub(crate) fn job_ended(&self, job: &JobReport) {
        let kind = job.kind.word();
        let outcome = job.outcome.map_or("failed", word);
        self.jobs.get_or_create(&OfOutcome { kind, outcome }).inc();
        if let Some(ended) = job.ended_ms {
            let took = Duration::from_millis(ended.saturating_sub(job.created_ms));
            self.job_time.get_or_create(&OfKind { kind }).observe(took.as_secs_f64());
        }
        match &job.report {
            Some(JobResult::Migration(report)) => {
                if let Some(handoff) = &report.handoff {
                    self.blackout.observe(Duration::from_nanos(handoff.blackout_ns).as_secs_f64());
                }
                report.decouple.iter().for_each(|moved| self.moved(moved));
            }
            Some(JobResult::Memory(memory)) => {
                memory.moved.iter().chain(&memory.moved_back).for_each(|moved| self.moved(moved));
            }
            Some(JobResult::Settled(moved)) => self.moved(moved),
            Some(JobResult::Rehoming(report)) => {
                report.recouple.iter().chain(&report.decouple).for_each(|moved| self.moved(moved));
            }
            // What these consist of are jobs of their own.
            Some(JobResult::Route(_) | JobResult::Drained(_) | JobResult::Rebalanced(_) | JobResult::Takeover(_))
            | None => {}
        }
    }

    fn moved(&self, report: &MoveReport) {
        let direction = OfDirection { direction: report.direction.verb() };
        self.moved.get_or_create(&direction).inc_by(report.copied_bytes);
        self.stall.get_or_create(&direction).observe(Duration::from_micros(report.stall_us.max).as_secs_f64());
    }

    /// A worker has ended that should not have.
    pub(crate) fn worker_died(&self) {
        self.worker_deaths.inc();
    }

    /// This host has fenced another.
    pub(crate) fn host_fenced(&self) {
        self.hosts_fenced.inc();
    }

    /// A watcher has missed events.
    pub(crate) fn events_missed(&self) {
        self.events_missed.inc();
    }

    /// A request was answered.
    pub(crate) fn answered(&self, answered: Answered) {
        let Answered { method, route, status, time } = answered;
        self.request_time.get_or_create(&OfRoute { route: route.clone() }).observe(time.as_secs_f64());
        self.requests.get_or_create(&OfAnswer { method, route, status }).inc();
    }
}

fn word(outcome: JobOutcome) -> &'static str {
    match outcome {
        JobOutcome::Done => "done",
        JobOutcome::Cancelled => "cancelled",
        JobOutcome::Stalled => "stalled",
        JobOutcome::TakenBack => "taken_back",
        JobOutcome::Stranded => "stranded",
        JobOutcome::Failed => "failed",
        JobOutcome::Incomplete => "incomplete",
    }
}
