//! What happens on a host, for clients to watch.

use super::{GuestState, HostStanding, JobKind, JobSummary, LostPool, OfferReport, Progress};
use crate::name::GuestName;
use nil_pool::{GuestId, JobId, PoolId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that has happened on a host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostEvent {
    /// When: milliseconds since 1970, by the host's clock.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What can happen on a host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum Happening {
    /// A guest of this host is in another state than before.
    Guest {
        /// Its name.
        guest: GuestName,
        /// Its identity.
        id: GuestId,
        /// Its state now.
        state: GuestState,
        /// Why, where there is something to say.
        detail: Option<String>,
    },
    /// A guest is no more on this host: it was stopped, or has left.
    GuestGone {
        /// Its name.
        guest: GuestName,
        /// Its identity.
        id: GuestId,
    },
    /// Another host, in a pool of this one, is in another state than before.
    Host {
        /// Its name.
        host: String,
        /// The pool.
        pool: PoolId,
        /// Its state now.
        standing: HostStanding,
        /// What can be done, where there is something to do.
        detail: Option<String>,
    },
    /// The memory of a pool of this host is no more.
    PoolLost {
        /// What is known of that.
        lost: LostPool,
    },
    /// A job has begun.
    JobBegun {
        /// The job.
        job: Box<JobSummary>,
    },
    /// A job is a step further.
    JobProgress {
        /// The job.
        job: JobId,
        /// What it is for.
        kind: JobKind,
        /// The guest, if it is about one.
        guest: Option<GuestName>,
        /// How far it is.
        progress: Progress,
    },
    /// A job is over.
    JobEnded {
        /// The job.
        job: Box<JobSummary>,
    },
    /// Capacity is offered to this host, or the host has answered to that.
    Offer {
        /// The offer.
        offer: OfferReport,
    },
    /// Events have been missed: whoever watches should look how everything is.
    Missed,
}

impl Happening {
    /// The name of the event in the stream.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Guest { .. } => "guest",
            Self::GuestGone { .. } => "guest_gone",
            Self::Host { .. } => "host",
            Self::PoolLost { .. } => "pool_lost",
            Self::JobBegun { .. } => "job_begun",
            Self::JobProgress { .. } => "job_progress",
            Self::JobEnded { .. } => "job_ended",
            Self::Offer { .. } => "offer",
            Self::Missed => "missed",
        }
    }
}
