//! What programs order from an agent.

use crate::error::{Error, Result};
use crate::itinerary::Onward;
use crate::name::{GuestName, HostName};
use nil_mover::{Budget, Direction, MovePlan, MoveRange, Pace};
use nil_pool::{GuestId, GuestSlot, JobId, LegRequest, OutputRule, PoolId, StripeRequest};
use nil_vmm::CpuModel;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use utoipa::openapi::{ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

/// The shortest and the longest that a guest may be ordered to wait for its target, in microseconds.
const DEADLINES: std::ops::RangeInclusive<u64> = 1_000..=60_000_000;

/// Where a guest's image comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// One that is built into nil.
    Builtin(String),
    /// A file; an absolute path.
    File(PathBuf),
}

// By hand, because a path has no schema of its own.
impl PartialSchema for ImageSource {
    fn schema() -> RefOr<Schema> {
        let text = |says| ObjectBuilder::new().schema_type(Type::String).description(Some(says));
        let one_of = |name: &str, says| ObjectBuilder::new().property(name, text(says)).required(name);
        OneOfBuilder::new()
            .item(one_of("builtin", "One that is built into nil."))
            .item(one_of("file", "A file; an absolute path."))
            .description(Some("Where a guest's image comes from."))
            .into()
    }
}

impl ToSchema for ImageSource {}

/// Where a new guest's memory is to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryIn {
    /// In its host's DRAM.
    Dram,
    /// In the pool.
    Pool,
}

/// A VM to be started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunVm {
    /// Its name, free on the host.
    pub name: GuestName,
    /// The pool that is to hold its record, its state, and its memory unless that lies in DRAM. The host must be a member.
    pub pool: PoolId,
    /// Bytes of memory, a multiple of the pool's granule.
    pub memory_bytes: u64,
    /// Where its memory is to lie.
    pub memory_in: MemoryIn,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// What to boot.
    pub image: ImageSource,
    /// What to tell it.
    pub command_line: String,
    /// The only hosts that may ever run it, of those that have joined the pool; all, if none is named.
    #[serde(default)]
    pub hosts: Vec<HostName>,
    /// The CPU that it is promised: the name of a level (`"x86-64-v2"`) or a whole model; `None` is all that its host has.
    #[serde(default)]
    #[schema(schema_with = model_schema)]
    pub cpu: Option<CpuModel>,
}

/// A model is told by the name of a level or as a whole.
fn model_schema() -> Schema {
    let name = ObjectBuilder::new().schema_type(Type::String).description(Some("`x86-64-v1` to `x86-64-v4`"));
    let none = ObjectBuilder::new().schema_type(Type::Null);
    let whole = Ref::from_schema_name("CpuModel");
    OneOfBuilder::new().item(none).item(name).item(whole).description(Some("The CPU that it is promised.")).into()
}

/// What becomes of the memory of a guest that was in DRAM when it has moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Settling {
    /// It is recoupled into the target's DRAM.
    Recouple,
    /// It stays in the pool.
    StayInPool,
}

/// How a guest's memory is to be spread over several pools when it leaves DRAM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Striping {
    /// Bytes that a share of weight 1 gets in each round, a multiple of the pools' granule.
    pub granularity: u64,
    /// The pools that take part, in the order of a round.
    pub shares: Vec<StripeShare>,
}

/// What one pool gets of striped memory. The host must be a member of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StripeShare {
    /// The pool.
    pub pool: PoolId,
    /// How many times the granularity it gets in each round: by its bandwidth.
    pub weight: u32,
}

/// A guest whose home is to move to another pool of its host: its record, its state area, and whatever of its memory is in
/// a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rehome {
    /// Which.
    pub guest: GuestName,
    /// Where to. The host must be a member.
    pub pool: PoolId,
    /// What moving its memory may cost the guest.
    pub budget: Budget,
    /// How long to wait for memory that cannot move, in microseconds.
    pub stall_timeout_us: u64,
    /// How long the whole of it may take before it is called off, in microseconds; `None` is no limit.
    pub time_limit_us: Option<u64>,
}

/// A guest that is to go to a host with which its own shares no pool: over others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Which.
    pub guest: GuestName,
    /// Where to.
    pub to: HostName,
    /// How long it may stand still at each handoff before its source takes it back, in microseconds.
    pub deadline_us: u64,
    /// What becomes of memory that was in DRAM.
    pub settling: Settling,
    /// What moving its memory may cost the guest.
    pub budget: Budget,
    /// How long each leg may wait for memory that cannot move, in microseconds.
    pub stall_timeout_us: u64,
    /// Hosts that it must not pass.
    pub avoid: Vec<HostName>,
    /// How long the whole of it may take before it is called off, in microseconds; `None` is no limit.
    pub time_limit_us: Option<u64>,
}

/// A guest to be moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Migrate {
    /// Which.
    pub guest: GuestName,
    /// Where to.
    pub to: HostName,
    /// How long the guest may stand frozen before the source takes it back, in microseconds.
    pub deadline_us: u64,
    /// What becomes of its memory there.
    pub settling: Settling,
    /// What decoupling and recoupling may cost.
    pub budget: Budget,
    /// How long they may wait for memory that cannot move, in microseconds.
    pub stall_timeout_us: u64,
    /// Over which pools memory that is decoupled is spread; `None` is the guest's own pool alone.
    pub striping: Option<Striping>,
    /// How long the whole of it may take before it is called off, in microseconds; `None` is no limit.
    pub time_limit_us: Option<u64>,
}

/// A part of a guest's memory as the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestRange {
    /// Guest-physical address of its first byte.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
}

/// A guest's memory to be decoupled or recoupled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MoveMemory {
    /// Whose.
    pub guest: GuestName,
    /// Which way.
    pub direction: Direction,
    /// Which part; `None` is all of it. A part that is recoupled is *held*: it does not go back to the pool before the
    /// same part is decoupled.
    pub range: Option<GuestRange>,
    /// What it may cost.
    pub budget: Budget,
    /// The NUMA node that recoupled memory is to come to.
    pub node: Option<u32>,
    /// How long to wait for memory that cannot move, in microseconds.
    pub stall_timeout_us: u64,
    /// Why a part is pulled back, for those who wait for it.
    pub reason: Option<String>,
    /// Over which pools memory that is decoupled is spread; `None` is the guest's own pool alone.
    pub striping: Option<Striping>,
    /// How long the whole of it may take before it is called off, in microseconds; `None` is no limit.
    pub time_limit_us: Option<u64>,
}

/// A guest to be protected: commits are made of it, to which another host can bring it back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProtectGuest {
    /// Which.
    pub guest: GuestName,
    /// How long from one commit to the next, in microseconds.
    pub interval_us: u64,
    /// What becomes of its output before the commit that follows it.
    pub output: OutputRule,
    /// Bytes of each of the two redo logs, a multiple of the pool's granule; `None` is an eighth of the memory, and 64 MiB at least.
    pub log_bytes: Option<u64>,
}

/// Memory of a guest that must not move from where it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PinMemory {
    /// Whose.
    pub guest: GuestName,
    /// Which part.
    pub range: GuestRange,
    /// Who needs it so.
    pub owner: String,
    /// What for.
    pub reason: String,
}

/// A guest that a host is to get ready for; what one agent asks of another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArmOrder {
    /// The pool that has its record.
    pub(crate) pool: PoolId,
    /// Where in that pool.
    #[schema(value_type = u16)]
    pub(crate) slot: GuestSlot,
    /// Its identity.
    pub(crate) id: GuestId,
    /// Its name.
    pub(crate) name: GuestName,
    /// The host that runs it.
    pub(crate) from: HostName,
    /// Where the guest goes on to once it runs there; `None` when it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) onward: Option<Onward>,
}

/// Memory that was in the source's DRAM before a migration, and is to come into the target's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettleOrder {
    /// Whose.
    pub(crate) guest: GuestName,
    /// Which part.
    pub(crate) ranges: Vec<MoveRange>,
    /// What it may cost.
    pub(crate) budget: Budget,
    /// How long to wait for memory that cannot move, in microseconds.
    pub(crate) stall_timeout_us: u64,
}

/// A host is to be emptied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// How many guests leave at once: 1 to 64.
    #[serde(default = "moves_at_once")]
    pub parallel: u32,
    /// How long it may take before it stops, in microseconds; none is no limit.
    #[serde(default)]
    pub time_limit_us: Option<u64>,
}

/// Hosts are to be used more evenly.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rebalance {
    /// So many guests move at most: 1 to 10000.
    pub moves: u32,
    /// A host that is used no more than this above the mean of those with which it shares memory is left alone, in percent.
    pub tolerance_percent: u32,
    /// So many moves at once have one host as source or target: 1 to 64.
    pub parallel: u32,
    /// How long it may take before it stops, in microseconds; none is no limit.
    pub time_limit_us: Option<u64>,
}

impl Default for Rebalance {
    /// 32 moves, 10 percent, 4 at once, no limit.
    fn default() -> Self {
        Self { moves: 32, tolerance_percent: 10, parallel: Drain::PARALLEL, time_limit_us: None }
    }
}

/// Which jobs somebody wants to know of: those under way, and some of those that are over.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct JobFilter {
    /// How many of those that are over, at most: 0 to 1000.
    #[serde(default = "past_jobs")]
    #[param(minimum = 0, maximum = 1000)]
    pub past: u16,
    /// Only those that ended before this one did; then those under way are left out.
    #[serde(default)]
    pub before: Option<JobId>,
    /// Only those of the guest of this name.
    #[serde(default)]
    pub guest: Option<GuestName>,
}

impl JobFilter {
    /// How many jobs that are over are told unless something else is said.
    pub const PAST: u16 = 100;
    /// The most that are.
    pub const MOST: u16 = 1000;

    /// Those under way, and so many of those that are over.
    #[must_use]
    pub fn latest(past: u16) -> Self {
        Self { past, before: None, guest: None }
    }

    /// Whether it lets a job of that guest through.
    pub(crate) fn admits(&self, guest: Option<&GuestName>) -> bool {
        self.guest.as_ref().is_none_or(|wanted| guest == Some(wanted))
    }
}

impl fmt::Display for JobFilter {
    /// As it stands in the query of a request.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "past={}", self.past)?;
        self.before.iter().try_for_each(|before| write!(f, "&before={before}"))?;
        self.guest.iter().try_for_each(|guest| write!(f, "&guest={guest}"))
    }
}

fn past_jobs() -> u16 {
    JobFilter::PAST
}

impl Drain {
    /// How many guests leave at once unless something else is said.
    pub const PARALLEL: u32 = 4;
}

pub(crate) fn moves_at_once() -> u32 {
    Drain::PARALLEL
}

impl Migrate {
    /// How long a guest may stand frozen, if nothing else is said: 1 s.
    pub const DEADLINE_US: u64 = 1_000_000;

    /// The migration of `guest` to the host `to`, with all defaults: memory that was in DRAM goes back to DRAM.
    #[must_use]
    pub fn new(guest: GuestName, to: HostName) -> Self {
        Self {
            guest,
            to,
            deadline_us: Self::DEADLINE_US,
            settling: Settling::Recouple,
            budget: Budget::default(),
            stall_timeout_us: MovePlan::STALL_TIMEOUT_US,
            striping: None,
            time_limit_us: None,
        }
    }
}

impl Route {
    /// The way of `guest` to the host `to`, with all defaults: memory that was in DRAM goes back to DRAM.
    #[must_use]
    pub fn new(guest: GuestName, to: HostName) -> Self {
        Self {
            guest,
            to,
            deadline_us: Migrate::DEADLINE_US,
            settling: Settling::Recouple,
            budget: Budget::default(),
            stall_timeout_us: MovePlan::STALL_TIMEOUT_US,
            avoid: Vec::new(),
            time_limit_us: None,
        }
    }
}

impl MoveMemory {
    /// All of a guest's memory, with all defaults.
    #[must_use]
    pub fn all_of(guest: GuestName, direction: Direction) -> Self {
        let MovePlan { direction, budget, node, stall_timeout_us, .. } = MovePlan::of_everything(direction);
        Self {
            guest,
            direction,
            range: None,
            budget,
            node,
            stall_timeout_us,
            reason: None,
            striping: None,
            time_limit_us: None,
        }
    }
}

impl Striping {
    /// The same, as pools want it.
    pub(crate) fn request(&self) -> StripeRequest {
        let leg = |&StripeShare { pool, weight }: &StripeShare| LegRequest { pool, weight };
        StripeRequest { granularity: self.granularity, legs: self.shares.iter().map(leg).collect() }
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, bytes } = self;
        match bytes {
            bytes if bytes % (1 << 20) == 0 => write!(f, "{address:#x}+{}M", bytes >> 20),
            bytes if bytes % (1 << 10) == 0 => write!(f, "{address:#x}+{}K", bytes >> 10),
            bytes => write!(f, "{address:#x}+{bytes}"),
        }
    }
}

/// Refuses a deadline that no handoff could keep to, or after which a guest would have stood still too long.
pub(crate) fn check_deadline(deadline_us: u64) -> Result<()> {
    if DEADLINES.contains(&deadline_us) {
        return Ok(());
    }
    Err(Error::refused("a handoff's deadline is between 1 ms and 60 s; the default is 1s"))
}

/// Refuses a budget with which nothing could ever move.
pub(crate) fn check_costs(budget: Budget, stall_timeout_us: u64) -> Result<()> {
    if budget.bandwidth == Some(0) {
        return Err(Error::refused("with a bandwidth of 0 nothing ever moves; leave it away for no limit"));
    }
    match budget.pace {
        Pace::Paced { max_stall_us: 0, .. } => {
            Err(Error::refused("memory cannot move without any stall; choose a longest stall of 1us or more"))
        }
        Pace::Paced { max_slowdown_pct: 0 | 101.., .. } => {
            Err(Error::refused("a slowdown is between 1 % and 100 %; the default is 20 %"))
        }
        Pace::Paced { .. } | Pace::Fast if stall_timeout_us == 0 => {
            Err(Error::refused("a stall timeout of 0 gives up before anything has begun; the default is 30s"))
        }
        Pace::Paced { .. } | Pace::Fast => Ok(()),
    }
}

/// A host that is dead, or a guest of one.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TakeoverOrder {
    /// Its name.
    pub(crate) name: String,
}
