//! What an agent does that takes long, for clients to follow: jobs.

use super::{
    DrainOutcome, DrainReport, MemoryMoved, MigrationOutcome, MigrationReport, Progress, RebalanceOutcome,
    RebalanceReport, RehomingOutcome, RehomingReport, RouteOutcome, RouteReport, TakeoverOutcome, TakeoverReport,
};
use crate::error::Error;
use crate::name::{GuestName, HostName};
use crate::problem::Problem;
use nil_mover::{MoveOutcome, MoveReport};
use nil_pool::JobId;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// What a job is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A guest goes to another host.
    Migration,
    /// A guest's memory goes to the pool.
    Decouple,
    /// A guest's memory comes to its host's DRAM.
    Recouple,
    /// A guest's home moves to another pool of its host.
    Rehoming,
    /// A guest goes over several hosts to one that shares no pool with its own.
    Route,
    /// A guest's memory comes to its host's DRAM, after the guest has come from another host.
    Settle,
    /// The host is emptied.
    Drain,
    /// Hosts are evened out.
    Rebalance,
    /// A guest is taken from a host that was fenced.
    Takeover,
}

/// How far a job is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// Nothing has been begun that would have to be undone.
    Preparing,
    /// The guest's memory is being moved.
    Moving,
    /// The target gets ready.
    Arming,
    /// The guest is being handed over.
    HandingOver,
    /// The guest's worker switches to its new home.
    Switching,
    /// The guest is on its way over several hosts; each leg is a job of the host that it is on.
    Travelling,
    /// What was moved is being moved back.
    Undoing,
    /// The guest runs on the target; its memory may still be on its way.
    Landed,
    /// It is over.
    Ended,
}

/// What has become of a job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// What was ordered has been done.
    Done,
    /// It was called off, and things are as they were.
    Cancelled,
    /// It waited in vain for memory that could not move, and things are as they were.
    Stalled,
    /// The target did not take the guest, which runs on its source.
    TakenBack,
    /// The guest runs on a host on its way, from which no way led on.
    Stranded,
    /// It could not be done; `failure` says why.
    Failed,
    /// It was done in part; the report says what is left.
    Incomplete,
}

/// What a job has to say when it is over.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// Of a migration.
    Migration(Box<MigrationReport>),
    /// Of a decoupling or recoupling.
    Memory(Box<MemoryMoved>),
    /// Of a change of home.
    Rehoming(Box<RehomingReport>),
    /// Of a way over several hosts.
    Route(Box<RouteReport>),
    /// Of the recoupling after a migration.
    Settled(Box<MoveReport>),
    /// Of the emptying of the host.
    Drained(Box<DrainReport>),
    /// Of the evening out of hosts.
    Rebalanced(Box<RebalanceReport>),
    /// Of a takeover.
    Takeover(Box<TakeoverReport>),
}

/// A job, as its agent describes it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobReport {
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
    /// The step that it is at, or was at last.
    pub progress: Option<Progress>,
    /// When it was ordered: milliseconds since 1970.
    pub created_ms: u64,
    /// When it was over.
    pub ended_ms: Option<u64>,
    /// When it will be called off if it is not over: milliseconds since 1970.
    pub deadline_ms: Option<u64>,
    /// What could not be done.
    pub failure: Option<Problem>,
    /// What it has to say, when it is over.
    pub report: Option<JobResult>,
}

impl JobReport {
    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase == JobPhase::Ended
    }

    /// What to say of a job that has nothing to report.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self.failure {
            Some(problem) => problem.into(),
            None => Error::refused(format!("job {} ended without a report", self.id)),
        }
    }
}

impl JobResult {
    /// How a job ended that has this to say.
    pub(crate) fn outcome(&self) -> JobOutcome {
        let of_move = |outcome: &MoveOutcome| match outcome {
            MoveOutcome::Done => JobOutcome::Done,
            MoveOutcome::Cancelled => JobOutcome::Cancelled,
            MoveOutcome::Stalled(_) => JobOutcome::Stalled,
        };
        match self {
            Self::Migration(report) => match report.outcome {
                MigrationOutcome::Moved => JobOutcome::Done,
                MigrationOutcome::TakenBack { .. } => JobOutcome::TakenBack,
                MigrationOutcome::Cancelled { .. } => JobOutcome::Cancelled,
                MigrationOutcome::Stalled { .. } => JobOutcome::Stalled,
            },
            Self::Rehoming(report) => match report.outcome {
                RehomingOutcome::Rehomed => JobOutcome::Done,
                RehomingOutcome::Cancelled { .. } => JobOutcome::Cancelled,
                RehomingOutcome::Stalled { .. } => JobOutcome::Stalled,
            },
            Self::Route(report) => match report.outcome {
                RouteOutcome::Arrived => JobOutcome::Done,
                RouteOutcome::Cancelled { .. } => JobOutcome::Cancelled,
                RouteOutcome::Stranded { .. } => JobOutcome::Stranded,
            },
            Self::Memory(moved) => moved.moved.as_ref().map_or(JobOutcome::Done, |report| of_move(&report.outcome)),
            Self::Settled(report) => of_move(&report.outcome),
            Self::Drained(report) => match report.outcome {
                DrainOutcome::Emptied => JobOutcome::Done,
                DrainOutcome::Incomplete | DrainOutcome::TimeUp => JobOutcome::Incomplete,
                DrainOutcome::Cancelled => JobOutcome::Cancelled,
            },
            Self::Rebalanced(report) => match report.outcome {
                RebalanceOutcome::Done => JobOutcome::Done,
                RebalanceOutcome::Incomplete | RebalanceOutcome::TimeUp => JobOutcome::Incomplete,
                RebalanceOutcome::Cancelled => JobOutcome::Cancelled,
            },
            Self::Takeover(report) => match report.outcome {
                TakeoverOutcome::Resumed | TakeoverOutcome::Rescued => JobOutcome::Done,
                TakeoverOutcome::Lost | TakeoverOutcome::Failed { .. } => JobOutcome::Failed,
            },
        }
    }
}

impl JobOutcome {
    /// Every outcome.
    pub const ALL: [Self; 7] =
        [Self::Done, Self::Cancelled, Self::Stalled, Self::TakenBack, Self::Stranded, Self::Failed, Self::Incomplete];
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Migration,
        Self::Decouple,
        Self::Recouple,
        Self::Rehoming,
        Self::Route,
        Self::Settle,
        Self::Drain,
        Self::Rebalance,
        Self::Takeover,
    ];

    /// The kind in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Migration => "migration",
            Self::Decouple => "decouple",
            Self::Recouple => "recouple",
            Self::Rehoming => "rehoming",
            Self::Route => "route",
            Self::Settle => "settle",
            Self::Drain => "drain",
            Self::Rebalance => "rebalance",
            Self::Takeover => "takeover",
        }
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Something was called off.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct CalledOff {
    /// How things stand now, in a sentence.
    pub(crate) state: String,
}

/// What the agent of a target says after it has been asked to get ready: one of these in each line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ArmNews {
    /// The worker stands ready.
    Armed {
        /// The target's slot in the pool.
        slot: u16,
    },
    /// The guest runs on the target.
    Landed,
    /// It will not come to that.
    Failed(Problem),
}
