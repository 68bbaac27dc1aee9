//! What became of a guest on its way over several hosts.

use super::{MigrationReport, RehomingReport};
use crate::name::{GuestName, HostName};
use nil_mover::MoveReport;
use nil_pool::GuestId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a way over several hosts ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum RouteOutcome {
    /// The guest runs on the target.
    Arrived,
    /// The guest runs on another host, and no way led on from there.
    Stranded {
        /// Why, in a sentence.
        why: String,
    },
    /// It was called off; the guest runs where it was by then.
    Cancelled {
        /// How things stand, in a sentence.
        why: String,
    },
}

/// One leg of a way: what one host's agent did.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LegReport {
    /// The host whose agent did it.
    pub at: HostName,
    /// What was to be done, in words.
    pub step: String,
    /// From the order to its end: microseconds.
    pub took_us: u64,
    /// What became of it.
    #[serde(flatten)]
    pub result: LegResult,
}

/// What became of a leg.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "leg")]
pub enum LegResult {
    /// A handoff, with what it reports.
    Handoff {
        /// Its report.
        report: Box<MigrationReport>,
    },
    /// A change of home, with what it reports.
    Rehoming {
        /// Its report.
        report: Box<RehomingReport>,
    },
    /// It could not be done.
    Failed {
        /// Why, in a sentence.
        why: String,
    },
}

impl LegResult {
    /// Bytes of the guest's memory that were copied.
    pub(crate) fn copied_bytes(&self) -> u64 {
        match self {
            Self::Handoff { report } => report.moved_bytes(),
            Self::Rehoming { report } => report.moved_bytes(),
            Self::Failed { .. } => 0,
        }
    }
}

/// A way over several hosts, measured.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteReport {
    /// The guest's name.
    pub guest: GuestName,
    /// The guest's identity.
    pub id: GuestId,
    /// Where it set out.
    pub from: HostName,
    /// Where it was to go.
    pub to: HostName,
    /// Where it runs now, as far as is known.
    pub now_at: HostName,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: RouteOutcome,
    /// The ways that were planned, one after the other, in short.
    pub plans: Vec<String>,
    /// What the first of them was predicted to take: microseconds.
    pub predicted_us: u64,
    /// From the order to its end: microseconds.
    pub total_us: u64,
    /// For how long the guest stood still in all of its handoffs: nanoseconds.
    pub blackout_ns: u64,
    /// Bytes of its memory that were copied, in all legs and at last.
    #[serde(default)]
    pub copied_bytes: u64,
    /// What was done, in order.
    pub legs: Vec<LegReport>,
    /// How the memory came into the target's DRAM; `None` when it stayed in the pool.
    pub recouple: Option<MoveReport>,
    /// What did not go as it should although it ended as it says, in sentences.
    pub remarks: Vec<String>,
}
