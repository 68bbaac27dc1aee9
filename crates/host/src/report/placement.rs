//! Plans that move many guests, and what came of them.

use crate::name::{GuestName, HostName};
use nil_pool::{GuestId, JobId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A move that is planned.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlannedMove {
    /// The guest.
    pub guest: GuestName,
    /// Its name for life.
    pub id: GuestId,
    /// Where it runs.
    pub from: HostName,
    /// Where it is to run.
    pub to: HostName,
    /// The way: `A –pool→ B`.
    pub way: String,
    /// How often it changes host on that way.
    pub handoffs: usize,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes that are copied on the way; handoffs copy none.
    pub copied_bytes: u64,
    /// Whether its home moves to another pool on that way, because the target has not joined its own.
    #[serde(default)]
    pub rehomed: bool,
    /// What it is predicted to take, in microseconds.
    pub predicted_us: u64,
}

/// A guest that stays where it is although it should not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Stay {
    /// The guest.
    pub guest: GuestName,
    /// Its name for life.
    pub id: GuestId,
    /// Why, in a sentence.
    pub why: String,
}

/// Moves for many guests.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PlacementPlan {
    /// Wave after wave, each begun when all moves of the one before are done.
    pub waves: Vec<Vec<PlannedMove>>,
    /// The guests for which nothing was found.
    pub left: Vec<Stay>,
    /// What all waves are predicted to take, in microseconds.
    pub predicted_us: u64,
    /// Bytes that are copied in all.
    pub copied_bytes: u64,
}

/// How evenly hosts are used, in thousandths of what they have. A host is used as far as its processors or its DRAM are,
/// whichever is more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Unevenness {
    /// The host that is used most.
    pub most: Option<HostName>,
    /// How far.
    pub highest_permille: u64,
    /// The mean.
    pub mean_permille: u64,
    /// The standard deviation.
    pub deviation_permille: u64,
}

/// A plan by which hosts are used more evenly.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RebalancePlan {
    /// The moves.
    pub plan: PlacementPlan,
    /// How evenly hosts are used now.
    pub before: Unevenness,
    /// How evenly when the plan is done.
    pub after: Unevenness,
}

/// A guest that has left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Departure {
    /// The guest.
    pub guest: GuestName,
    /// Where it ran.
    pub from: HostName,
    /// Where it runs now.
    pub to: HostName,
    /// The way: `A –pool→ B`.
    pub way: String,
    /// The job by which it went.
    pub job: JobId,
    /// How long that took, in microseconds.
    pub took_us: u64,
    /// How long the guest stood still at a handoff; of several, the longest. `None` if that is not known.
    pub blackout_ns: Option<u64>,
}

/// What has become of a host that was to be emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainOutcome {
    /// It has no guest any more.
    Emptied,
    /// Some guests could not leave.
    Incomplete,
    /// It was called off.
    Cancelled,
    /// Its time was up.
    TimeUp,
}

/// How a host was emptied, or was not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrainReport {
    /// The host. It stays cordoned.
    pub host: HostName,
    /// What has become of it.
    pub outcome: DrainOutcome,
    /// The guests that have left, in this order.
    pub departures: Vec<Departure>,
    /// The guests that have not, and why.
    pub left: Vec<Stay>,
    /// How often it was planned what is to go where.
    pub plans: u32,
    /// How long it took, in microseconds.
    pub total_us: u64,
    /// What the first plan had predicted, in microseconds.
    pub predicted_us: u64,
}

/// What has become of the evening out of hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RebalanceOutcome {
    /// All guests of the plan have moved, if there were any.
    Done,
    /// Some could not move.
    Incomplete,
    /// It was called off.
    Cancelled,
    /// Its time was up.
    TimeUp,
}

/// How hosts were evened out, or were not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RebalanceReport {
    /// What has become of it.
    pub outcome: RebalanceOutcome,
    /// How evenly hosts were used before.
    pub before: Unevenness,
    /// How evenly they were to be used.
    pub planned: Unevenness,
    /// How evenly they are used, with guests where they are now.
    pub after: Unevenness,
    /// The guests that have moved, in this order.
    pub moved: Vec<Departure>,
    /// The guests that were to move and have not, and why.
    pub left: Vec<Stay>,
    /// What the plan had predicted, in microseconds.
    pub predicted_us: u64,
    /// How long it took, in microseconds.
    pub total_us: u64,
}

/// Whether a host takes guests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CordonReport {
    /// The host.
    pub host: HostName,
    /// Whether it takes no more guests.
    pub cordoned: bool,
}

impl PlacementPlan {
    /// All moves, in order.
    pub fn moves(&self) -> impl Iterator<Item = &PlannedMove> {
        self.waves.iter().flatten()
    }

    /// Puts another plan behind this one.
    pub(crate) fn append(&mut self, other: Self) {
        let Self { waves, left, predicted_us, copied_bytes } = other;
        self.waves.extend(waves);
        self.left.extend(left);
        self.predicted_us = self.predicted_us.saturating_add(predicted_us);
        self.copied_bytes = self.copied_bytes.saturating_add(copied_bytes);
    }
}
