//! What became of a guest's home.

use crate::name::{GuestName, HostName};
use nil_mover::MoveReport;
use nil_pool::GuestId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;

/// How a rehoming ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum RehomingOutcome {
    /// Its home is the new pool.
    Rehomed,
    /// It was called off: its home is the pool that it was.
    Cancelled {
        /// How things stand, in a sentence.
        why: String,
    },
    /// It waited in vain for memory that could not move: its home is the pool that it was.
    Stalled {
        /// Which memory, and why it could not move.
        why: String,
    },
}

/// A rehoming, measured.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RehomingReport {
    /// The guest's name.
    pub guest: GuestName,
    /// The guest's identity.
    pub id: GuestId,
    /// The host that runs it, all the while.
    pub host: HostName,
    /// The pool that was its home.
    #[schema(value_type = String)]
    pub from: PathBuf,
    /// The pool that was to be.
    #[schema(value_type = String)]
    pub to: PathBuf,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: RehomingOutcome,
    /// How its memory came from the old pool into the host's DRAM; `None` when none of it was there.
    pub recouple: Option<MoveReport>,
    /// How long it took, in the guest's worker, from the publication of the new record until everything referred to it:
    /// nanoseconds. The guest ran meanwhile. `None` when it did not come to that.
    pub switched_ns: Option<u64>,
    /// The epoch of the host's ownership by the new record.
    pub epoch: Option<u32>,
    /// How its memory came from the host's DRAM into the new pool; `None` when it stayed there.
    pub decouple: Option<MoveReport>,
    /// From the order until its end: microseconds.
    pub total_us: u64,
    /// What did not go as it should although the rehoming ended as it says, in sentences.
    pub remarks: Vec<String>,
}

impl RehomingReport {
    /// Bytes of the guest's memory that were copied, those that went back among them.
    pub(crate) fn moved_bytes(&self) -> u64 {
        super::moved_bytes([&self.recouple, &self.decouple])
    }
}
