//! A job in a list of many.

use super::{
    JobKind, JobOutcome, JobPhase, JobReport, JobResult, MigrationOutcome, Progress, RehomingOutcome, RouteOutcome,
    TakeoverOutcome, moved_bytes,
};
use crate::name::{GuestName, HostName};
use nil_mover::MoveOutcome;
use nil_pool::JobId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a person wants to know of a job first. The job by its number has the rest.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobSummary {
    /// Its number.
    pub id: JobId,
    /// What it is for.
    pub kind: JobKind,
    /// The guest, if it is about one.
    pub guest: Option<GuestName>,
    /// The host whose agent does it.
    pub host: HostName,
    /// The host to which the guest goes, if it does.
    pub to: Option<HostName>,
    /// How far it is.
    pub phase: JobPhase,
    /// What has become of it, when it is over.
    pub outcome: Option<JobOutcome>,
    /// The step that it is at, if it is not over.
    pub progress: Option<Progress>,
    /// When it was ordered: milliseconds since 1970.
    pub created_ms: u64,
    /// When it was over.
    pub ended_ms: Option<u64>,
    /// When it will be called off if it is not over: milliseconds since 1970.
    pub deadline_ms: Option<u64>,
    /// Why it ended as it did, where there is something to say.
    pub why: Option<String>,
    /// How long the guest stood still, if it was handed over, or taken from a dead host.
    pub blackout_ns: Option<u64>,
    /// Bytes of guests' memory that were copied.
    pub copied_bytes: u64,
}

impl From<&JobReport> for JobSummary {
    fn from(job: &JobReport) -> Self {
        let JobReport {
            id, kind, guest, host, to, phase, outcome, progress, created_ms, ended_ms, deadline_ms, ..
        } = job;
        let report = job.report.as_ref();
        let failure = job.failure.as_ref().map(|problem| problem.detail.clone());
        Self {
            id: *id,
            kind: *kind,
            guest: guest.clone(),
            host: host.clone(),
            to: to.clone(),
            phase: *phase,
            outcome: *outcome,
            progress: progress.clone().filter(|_| !job.is_over()),
            created_ms: *created_ms,
            ended_ms: *ended_ms,
            deadline_ms: *deadline_ms,
            why: failure.or_else(|| report.and_then(JobResult::why)),
            blackout_ns: report.and_then(JobResult::blackout_ns),
            copied_bytes: report.map_or(0, JobResult::copied_bytes),
        }
    }
}

impl JobSummary {
    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase == JobPhase::Ended
    }
}

impl JobResult {
    /// Why not all was done that was ordered, if so.
    fn why(&self) -> Option<String> {
        let of_move = |outcome: &MoveOutcome| match outcome {
            MoveOutcome::Done | MoveOutcome::Cancelled => None,
            MoveOutcome::Stalled(stall) => Some(stall.to_string()),
        };
        match self {
            Self::Migration(report) => match &report.outcome {
                MigrationOutcome::Moved => None,
                MigrationOutcome::TakenBack { why }
                | MigrationOutcome::Cancelled { why }
                | MigrationOutcome::Stalled { why } => Some(why.clone()),
            },
            Self::Rehoming(report) => match &report.outcome {
                RehomingOutcome::Rehomed => None,
                RehomingOutcome::Cancelled { why } | RehomingOutcome::Stalled { why } => Some(why.clone()),
            },
            Self::Route(report) => match &report.outcome {
                RouteOutcome::Arrived => None,
                RouteOutcome::Cancelled { why } | RouteOutcome::Stranded { why } => Some(why.clone()),
            },
            Self::Memory(moved) => moved.moved.as_ref().and_then(|report| of_move(&report.outcome)),
            Self::Settled(report) => of_move(&report.outcome),
            Self::Takeover(report) => match &report.outcome {
                TakeoverOutcome::Resumed | TakeoverOutcome::Rescued => None,
                outcome @ (TakeoverOutcome::Lost | TakeoverOutcome::Failed { .. }) => Some(outcome.to_string()),
            },
            Self::Drained(_) | Self::Rebalanced(_) => None,
        }
    }

    /// How long the guest stood still, if it was handed over, or taken from a dead host.
    fn blackout_ns(&self) -> Option<u64> {
        match self {
            Self::Migration(report) => report.handoff.as_ref().map(|handoff| handoff.blackout_ns),
            Self::Route(report) => Some(report.blackout_ns),
            Self::Takeover(report) => report.resumed_us.map(|us| us * 1000),
            Self::Rehoming(_) | Self::Memory(_) | Self::Settled(_) | Self::Drained(_) | Self::Rebalanced(_) => None,
        }
    }

    /// Bytes of guests' memory that were copied, those that went back among them.
    fn copied_bytes(&self) -> u64 {
        match self {
            Self::Migration(report) => report.moved_bytes(),
            Self::Rehoming(report) => report.moved_bytes(),
            Self::Memory(report) => moved_bytes([&report.moved, &report.moved_back]),
            Self::Settled(report) => report.copied_bytes,
            Self::Route(report) => report.copied_bytes,
            // What these consist of are jobs of their own.
            Self::Drained(_) | Self::Rebalanced(_) | Self::Takeover(_) => 0,
        }
    }
}
