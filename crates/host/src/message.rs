//! The messages on the sockets of agents and workers.
//!
//! ```text
//! client ──AgentRequest──▶ agent ──AgentRequest::Arm──▶ agent of the target
//!                            │                                 │
//!                      WorkerRequest                     WorkerRequest
//!                            ▼                                 ▼
//!                          worker  ═══ the pool, and nothing else ═══  worker
//! ```
//!
//! Agents answer with any number of [`AgentReply::Progress`] lines and one other line. [`AgentRequest::Arm`] alone has
//! two answers, [`AgentReply::Armed`] and then [`AgentReply::Landed`]; whoever asked hangs up to call it off.

use crate::name::{GuestName, HostName};
use crate::process::ProcessId;
use crate::report::{GuestReport, HostReport, MigrationReport, Progress};
use nil_migrate::HandoffReport;
use nil_pool::{GuestId, GuestSlot, PoolId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where a guest's image comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// One that is built into nil.
    Builtin(String),
    /// A file; an absolute path.
    File(PathBuf),
}

/// A VM to be started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunVm {
    /// Its name, free on the host.
    pub name: GuestName,
    /// The pool that is to hold its memory. The host must be a member.
    pub pool: PoolId,
    /// Bytes of memory, a multiple of the pool's granule.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// What to boot.
    pub image: ImageSource,
    /// What to tell it.
    pub command_line: String,
}

/// A guest to be moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Migrate {
    /// Which.
    pub guest: GuestName,
    /// Where to.
    pub to: HostName,
    /// How long the guest may stand frozen before the source takes it back, in microseconds.
    pub deadline_us: u64,
}

/// What is asked of an agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AgentRequest {
    /// Who are you?
    Describe,
    /// Which guests do you know?
    List,
    /// Start a VM.
    Run(RunVm),
    /// Move a guest of yours to another host.
    Migrate(Migrate),
    /// Stop a guest of yours and free its memory.
    Stop { guest: GuestName },
    /// Get ready to take over a guest.
    Arm(ArmOrder),
}

/// A guest that a host is to get ready for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ArmOrder {
    pub(crate) pool: PoolId,
    pub(crate) slot: GuestSlot,
    pub(crate) id: GuestId,
    pub(crate) name: GuestName,
    pub(crate) from: HostName,
}

/// What an agent answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AgentReply {
    Host(HostReport),
    Guests(Vec<GuestReport>),
    Guest(GuestReport),
    Progress(Progress),
    Migrated(Box<MigrationReport>),
    Done,
    /// The target's worker stands ready; the number is the target's host slot in the pool.
    Armed(u16),
    /// The guest runs on the target.
    Landed,
    /// A sentence that says why not.
    Refused(String),
}

/// What is asked of a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkerRequest {
    /// Tell your status, now and whenever it changes.
    Watch,
    /// Load and run this image.
    Boot { image: ImageSource, command_line: String },
    /// Get ready to take the guest over.
    Arm,
    /// Run the guest that was frozen here, and whose worker has died since.
    Thaw,
    /// Hand the guest to the host in that slot.
    Handoff { to: u16, deadline_us: u64 },
    /// Forget about taking the guest over, and end.
    Disarm,
    /// Stop the guest and end. Its record and memory stay.
    Stop,
    /// Send what the guest has written to its serial port, from that byte on, raw, until the worker ends.
    Console { from: u64 },
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkerReply {
    Status(WorkerStatus),
    Done,
    /// The guest is the target's.
    Released(Option<HandoffReport>),
    /// The guest runs here still, or again; the sentence says why.
    TakenBack(String),
    Refused(String),
}

/// What a worker is doing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    pub(crate) process: ProcessId,
    pub(crate) guest: GuestId,
    pub(crate) pool: PoolId,
    pub(crate) slot: GuestSlot,
    pub(crate) name: GuestName,
    pub(crate) phase: Phase,
    /// Why, where there is something to say.
    pub(crate) detail: Option<String>,
}

/// A worker's life: `Empty → Starting → Armed? → Running ⇄ Leaving → Released`, with ways out at every step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// It has no VM yet.
    Empty,
    /// It is building the VM.
    Starting,
    /// It waits to take the guest over.
    Armed,
    /// It runs the guest.
    Running,
    /// It is handing the guest over.
    Leaving,
    /// The guest has stopped by itself; the worker keeps what it wrote.
    Halted,
    /// The guest has left, and so does the worker.
    Released,
    /// It gave up taking the guest over.
    TornDown,
    /// It has stopped the guest because it was told to.
    Ended,
}

impl Phase {
    /// Whether the worker has nothing more to do with the guest.
    pub(crate) fn is_final(self) -> bool {
        match self {
            Self::Released | Self::TornDown | Self::Ended => true,
            Self::Empty | Self::Starting | Self::Armed | Self::Running | Self::Leaving | Self::Halted => false,
        }
    }
}
