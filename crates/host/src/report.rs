//! What hosts say about themselves and their guests, for clients to show.

use crate::capabilities::Capabilities;
use crate::name::{GuestName, HostName};
use nil_migrate::HandoffReport;
use nil_mover::{MoveProgress, MoveReport};
use nil_pool::{GuestId, GuestKind, HostId, PoolId};
use nil_vmm::ModelName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use utoipa::ToSchema;

pub use event::{Happening, HostEvent};
pub(crate) use job::{ArmNews, CalledOff};
pub use job::{JobKind, JobOutcome, JobPhase, JobReport, JobResult};
pub use job_summary::JobSummary;
pub use known_host::{HostStanding, JoinedPool, KnownHost, Life};
pub(crate) use memory::describe;
pub use memory::{MemoryMoved, MemoryReport, PinReport, Whereabouts};
pub use offer::OfferReport;
pub use placement::{
    CordonReport, Departure, DrainOutcome, DrainReport, PlacementPlan, PlannedMove, RebalanceOutcome, RebalancePlan,
    RebalanceReport, Stay, Unevenness,
};
pub use protection::{ProtectionReport, ProtectionState};
pub use rehoming::{RehomingOutcome, RehomingReport};
pub use resources::Resources;
pub use route::{LegReport, LegResult, RouteOutcome, RouteReport};
pub use takeover::{Takeover, TakeoverOutcome, TakeoverReport};

mod event;
mod job;
mod job_summary;
mod known_host;
mod memory;
mod offer;
mod placement;
mod protection;
mod rehoming;
mod resources;
mod route;
mod takeover;

/// A host, as its agent describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostReport {
    /// Its name.
    pub name: HostName,
    /// Its identity, the same after every restart of its agent; `None` when nobody is there to tell.
    pub id: Option<HostId>,
    /// The agent's process; `None` when it does not run.
    pub agent_pid: Option<u32>,
    /// The pools that it has joined.
    pub pools: Vec<PoolReport>,
    /// Pools that it had joined and that are no more, since its agent was started.
    #[serde(default)]
    pub lost_pools: Vec<LostPool>,
    /// How many guests it runs.
    pub guests: usize,
    /// The guests that run on although the agent does not.
    pub unattended: Vec<GuestName>,
    /// Why its agent does not answer although somebody takes the call.
    #[serde(default)]
    pub silent: Option<String>,
    /// What others see of its lease, in the pool where that is worst; `None` where nobody else was asked.
    #[serde(default)]
    pub standing: Option<HostStanding>,
    /// What it can do for guests; `None` when nobody is there to tell.
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    /// What it has for guests; `None` when nobody is there to tell.
    #[serde(default)]
    pub resources: Option<Resources>,
}

/// A host's membership in a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolReport {
    /// The pool.
    pub id: PoolId,
    /// Where this host finds it.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The host's slot in the pool's host table.
    pub slot: u16,
    /// Bytes that can still be allocated.
    pub free_bytes: u64,
    /// Bytes that there are to allocate; 0 when an older agent does not tell.
    #[serde(default)]
    pub total_bytes: u64,
}

/// A pool whose memory is no more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LostPool {
    /// The pool.
    pub id: PoolId,
    /// Where this host had found it.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// When that was found: milliseconds since 1970, by the host's clock.
    pub at_ms: u64,
    /// What that means, in a sentence.
    pub why: String,
    /// The guests of it that ran on this host, and do no more.
    pub guests: Vec<GuestName>,
}

/// What a guest is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    /// It has a record in the pool, and has not run yet.
    Starting,
    /// It runs.
    Running,
    /// It is on its way to another host.
    Migrating,
    /// It has stopped by itself; its memory is kept until `nil vm stop`.
    Stopped,
    /// It is being stopped.
    Stopping,
    /// Its worker died while it ran. Its memory is kept until `nil vm stop`.
    Lost,
    /// The pool says one thing, the processes another, and nobody has cleared it up yet.
    Unclear,
}

/// A guest, as its host or the pool describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct GuestReport {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: GuestId,
    /// Which kind of guest it is.
    pub kind: GuestKind,
    /// The host that is responsible for it.
    pub host: Option<String>,
    /// What it is doing.
    pub state: GuestState,
    /// Why, where there is something to say.
    pub detail: Option<String>,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Its vCPUs.
    pub vcpus: u32,
    /// The CPU model that it was started with; `None` when the pool cannot tell.
    #[serde(default)]
    pub cpu_model: Option<ModelName>,
    /// How often it has changed owner, counted from 1.
    pub epoch: Option<u32>,
    /// Seconds since it was created, on whichever host.
    pub uptime_s: Option<u64>,
    /// The pool that holds its memory.
    #[schema(value_type = String)]
    pub pool: PathBuf,
    /// The process that runs it.
    pub worker_pid: Option<i32>,
    /// Where its memory lies; `None` when the pool cannot tell.
    pub memory: Option<MemoryReport>,
    /// The move of its memory that is on.
    pub moving: Option<MoveProgress>,
    /// Bytes per second that it may use of its host's bandwidth; `None` is no limit, or no move.
    pub move_limit: Option<u64>,
    /// Where its memory begins in the address space of that process.
    pub memory_address: Option<u64>,
    /// What confines that process; `None` when it is not known.
    #[serde(default)]
    pub sandbox: Option<SandboxReport>,
    /// How it is protected; `None` when it is not.
    #[serde(default)]
    pub protection: Option<ProtectionReport>,
}

/// What confines the worker that runs a guest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SandboxReport {
    /// The layers that are in place; none when the sandbox is off.
    pub layers: Vec<SandboxLayer>,
    /// What could not be put in place, and why, in sentences.
    pub missing: Vec<String>,
}

/// A layer of a worker's sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLayer {
    /// It has no privilege that it does not need.
    Capabilities,
    /// It can open the files that it needs, and no others.
    Landlock,
    /// It can make the system calls that it needs, and no others.
    Seccomp,
    /// It is in a control group of its own.
    Cgroup,
}

impl SandboxLayer {
    /// The layer in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Capabilities => "capabilities",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Cgroup => "cgroup",
        }
    }
}

/// "seccomp+landlock+capabilities", "off", or with what is missing.
impl fmt::Display for SandboxReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers: Vec<&str> = self.layers.iter().rev().map(|layer| layer.word()).collect();
        let layers = if layers.is_empty() { "off".to_owned() } else { layers.join("+") };
        if self.missing.is_empty() { f.pad(&layers) } else { write!(f, "{layers} ({})", self.missing.join("; ")) }
    }
}

/// How a migration ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum MigrationOutcome {
    /// The guest runs on the target.
    Moved,
    /// The guest runs on its source, as if nothing had been.
    TakenBack {
        /// Why the target did not get it.
        why: String,
    },
    /// It was called off: the guest runs on its source, as if nothing had been.
    Cancelled {
        /// How things stand, in a sentence.
        why: String,
    },
    /// It waited in vain for memory that could not move: the guest runs on its source, as if nothing had been.
    Stalled {
        /// Which memory, and why it could not move.
        why: String,
    },
}

/// A migration, measured.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MigrationReport {
    /// The guest's name.
    pub guest: GuestName,
    /// The guest's identity.
    pub id: GuestId,
    /// The source.
    pub from: HostName,
    /// The target.
    pub to: HostName,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: MigrationOutcome,
    /// How the memory came into the pool; `None` when it was there.
    pub decouple: Option<MoveReport>,
    /// From when the memory was in the pool until the target stood armed, while the guest ran: microseconds.
    pub prepare_us: u64,
    /// From the order until the guest ran on the target (or on the source again): microseconds.
    pub total_us: u64,
    /// Bytes of guest memory that the handoff itself has copied: those that lie elsewhere in the pool, or in another one,
    /// than before. nil hands guests over by reference, so this is 0; it is counted from the guest's placement before and
    /// after.
    pub copied_bytes: u64,
    /// The handoff's phases; `None` when the guest was taken back.
    pub handoff: Option<HandoffReport>,
    /// How the memory came into the target's DRAM; `None` when it stayed in the pool.
    pub recouple: Option<MoveReport>,
    /// What did not go as it should although the migration ended as it says, in sentences.
    pub remarks: Vec<String>,
}

impl MigrationReport {
    /// Bytes of the guest's memory that were copied before and after the handoff, those that went back among them.
    pub(crate) fn moved_bytes(&self) -> u64 {
        moved_bytes([&self.decouple, &self.recouple])
    }
}

/// Bytes that moves have copied, if there were any.
fn moved_bytes(moves: [&Option<MoveReport>; 2]) -> u64 {
    moves.into_iter().flatten().map(|moved| moved.copied_bytes).sum()
}

/// A step of a long operation, for a person to see.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// A sentence in the present tense.
    pub step: String,
    /// The move of memory that is on.
    #[serde(default)]
    pub moving: Option<MoveProgress>,
}

impl Progress {
    pub(crate) fn step(step: impl Into<String>) -> Self {
        Self { step: step.into(), moving: None }
    }

    /// How far a move of a guest's memory is.
    pub(crate) fn of_move(guest: &GuestName, moving: MoveProgress) -> Self {
        Self { step: format!("guest {guest}: {}", describe(&moving)), moving: Some(moving) }
    }
}

impl GuestState {
    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Starting, Self::Running, Self::Migrating, Self::Stopped, Self::Stopping, Self::Lost, Self::Unclear];

    /// The state in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Migrating => "migrating",
            Self::Stopped => "stopped",
            Self::Stopping => "stopping",
            Self::Lost => "lost",
            Self::Unclear => "unclear",
        }
    }
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// "known: A, B" as half a sentence, or what to say when there are none.
pub(crate) fn known(thing: &str, names: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { format!("no {thing} is known") } else { format!("known: {}", names.join(", ")) }
}
